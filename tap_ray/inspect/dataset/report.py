"""Inspects a dataset: survey -> checks -> report.json, index.html and a few lines for the terminal."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tap_ray import runs, storage
from tap_ray.compare.plots import svg
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.inspect.dataset import content_checks, frames, motion_checks, page, plots, survey
from tap_ray.inspect.dataset.check import Check
from tap_ray.inspect.settings import InspectConfig
from tap_ray.media.text_table import as_text
from tap_ray.play import report as play
from tap_ray.progress_bar import progress_bar
from tap_ray.specs import missing_slots
from tap_ray.types import PLAY_TASK

REPORT, PAGE = "report.json", "index.html"
STRIPS = 3
"""Largest number of film strips per check."""
SHEET = 6
"""Number of episodes on the page's contact sheet."""
OF_EXPLORERS = 500
"""Largest number of episodes by which explorers are compared."""


def inspect(config: InspectConfig) -> Path:
    """Inspect a dataset, write the results and print them; returns the page.

    Raises:
        DataError: there is no dataset, or it cannot be opened.
        StorageError: the page cannot be written.
    """
    dataset = open_dataset(config.data)
    out = storage.to_path(config.out or config.data / "inspection")
    storage.make_folder(out)
    num = min(config.episodes or len(dataset), len(dataset))
    indices = sorted({int(index) for index in np.linspace(0, len(dataset) - 1, num).round()})
    seen = survey.survey_of(dataset, progress_bar(iterable=indices, unit="episode", desc="numbers"))
    some = [index for index in frames.chosen(dataset.lengths, config.images) if index not in seen.damaged]
    looked = frames.look(dataset, progress_bar(iterable=some, unit="episode", desc="images"))
    found = checks(seen, looked)
    report = {
        "dataset": str(dataset.path),
        "hash": runs.hash_of(dataset.path),
        "facts": overview(seen, looked),
        "results": dict(Counter(check.kind for check in found)),
        "checks": [dataclasses.asdict(check) for check in found],
    }
    runs.write_json(out / REPORT, report)
    storage.write(out / PAGE, _page(seen, looked, found).encode())
    print(text(seen, looked, found))
    return out / PAGE


def checks(seen: survey.Survey, looked: frames.Frames) -> list[Check]:
    """Run all checks, in the order in which they are shown."""
    whole = motion_checks.whole(seen, looked)
    if not seen.episodes:
        return [whole]
    of_motion = (motion_checks.rate, motion_checks.smoothness, motion_checks.consistency, motion_checks.saturation)
    of_content = (content_checks.coverage, content_checks.contact, content_checks.duplicates)
    return [
        whole,
        *(check(seen) for check in (*of_motion, motion_checks.gripper, motion_checks.idle, *of_content)),
        content_checks.images(looked),
        *(content_checks.images(other, camera=name) for name, other in looked.others.items()),
        content_checks.language(seen),
        content_checks.outliers(seen, looked),
    ]


def overview(seen: survey.Survey, looked: frames.Frames) -> str:
    """A sentence about what was inspected."""
    dataset, hz = seen.dataset, seen.spec.control_hz
    read = len(seen.episodes) + len(seen.damaged)
    part = "" if read == len(dataset) else f" The numbers of {read} episodes were read, evenly spread."
    return (
        f"{len(dataset)} episodes, {int(dataset.lengths.sum())} steps at {hz:g} Hz "
        f"({dataset.lengths.sum() / hz / 60:.3g} min) of robot {seen.spec.robot}, images of "
        f"{dataset.header.image_size[1]} x {dataset.header.image_size[0]} px.{part} {looked.num} images of "
        f"{len(looked.episodes)} episodes were checked."
    )


def summary(found: Sequence[Check]) -> str:
    """A sentence about how many checks had which result."""
    counts = Counter(check.kind for check in found)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def text(seen: survey.Survey, looked: frames.Frames, found: Sequence[Check]) -> str:
    """The text that the job prints."""
    width = max(len(check.name) for check in found)
    lines = [overview(seen, looked), ""]
    lines += [f"{check.kind:13} {check.name:{width}}  {check.text}" for check in found]
    return "\n".join(
        [*lines, "", f"{summary(found)}. These results are advice: they do not change the exit status, which is 0."]
    )


def _page(seen: survey.Survey, looked: frames.Frames, found: Sequence[Check]) -> str:
    dataset = seen.dataset
    strips = {check.name: _strips(dataset, check) for check in found if check.kind != "good"} if seen.episodes else {}
    sources = [("dataset", dataset.path), ("hash", runs.hash_of(dataset.path)), *_plan(dataset)]
    return page.render(
        f"Inspection of {dataset.path.name}",
        found,
        overview=overview(seen, looked),
        summary=summary(found) + ".",
        plots=plots.drawn(seen, looked) if seen.episodes else {},
        strips=strips,
        more={"sheet": _sheet(dataset, looked), "explorers": _explorers(seen), "sources": sources},
    )


def _strips(dataset: DatasetInfo, check: Check) -> list[tuple[np.ndarray, str]]:
    most = 2 * STRIPS if check.name == "episodes that stand out" else STRIPS
    readable = [index for index in check.episodes if check.name != "whole"]
    return [
        (frames.strip(dataset, n, between=check.at.get(n)), f"Episode {n}: {check.why.get(n, check.name)}")
        for n in readable[:most]
    ]


def _sheet(dataset: DatasetInfo, looked: frames.Frames) -> dict[str, str] | None:
    if not looked.episodes:
        return None
    at = np.unique(np.linspace(0, len(looked.episodes) - 1, SHEET).round().astype(int))
    indices = [looked.episodes[n].index for n in at]
    rows = [frames.strip(dataset, index) for index in indices]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    return page.image(sheet, f"One row per episode, from its first to its last image: {', '.join(map(str, indices))}")


def _explorers(seen: survey.Survey) -> dict[str, Any] | None:
    """A table of the explorers, as in the report of a collection; None if there are no explorers or no end effector is
    known."""
    dataset = seen.dataset
    tasks = {each.instruction for each in seen.episodes}
    if tasks != {PLAY_TASK} or "explorer" not in dataset.episodes or missing_slots(dataset.spec, "ee_pos"):
        return None
    some = [each.index for each in seen.episodes[:: max(1, len(seen.episodes) // OF_EXPLORERS)]]
    played = play.read(dataset, some)
    rows = play.summarize(played, dataset.spec.control_hz)
    figures = (play.quality_figure(played, rows, dataset.spec.control_hz), play.workspace_figure(played))
    return {
        "head": list(rows[0]),
        "rows": [[as_text(value) for value in row.values()] for row in rows],
        "words": list(play.EXPLAINED.items()),
        "svgs": [Markup(svg(figure)) for figure in figures],
    }


def _plan(dataset: DatasetInfo) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in dataset.header.plan.items() if isinstance(value, (str, int, float))]
