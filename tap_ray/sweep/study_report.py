"""A study's results as files to keep: NAME.json with every trial, NAME.md with the paper's table, NAME.png."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from tap_ray import runs
from tap_ray.compare.reading import KINDS, Result
from tap_ray.compare.tables import p_text, short
from tap_ray.metrics import Interval
from tap_ray.sweep.study import SCORES, SCRATCH, Difference, Outcomes, differences, judged, outcomes, replaced
from tap_ray.sweep.study_plot import draw
from tap_ray.sweep.tables import ARM, BUDGET, HEADINGS, SEED, TrialRow, short_names, show

METHOD = (
    "Means over seeds in percent, partial/entire. Brackets: 95 % intervals of a bootstrap over seeds and, "
    "independently, over the cells that all of them share (Owen 2007); with one seed, over cells alone. A rate of 0 or "
    "100 % has an interval of no width, which says only that every episode went alike."
)
PAIRS = (
    "Differences in points, paired by seed and cell. McNemar: exact, over the pairs of all seeds, which share their "
    "cells and so are not quite independent; p is not corrected for the number of rows."
)
REPLACED = (
    "Where the scratch arm's curve over demonstrations (straight lines over their logarithm) first reaches the Avg-All "
    "of an arm that had play: the adaptability of its Stage 1."
)


@dataclass(frozen=True, kw_only=True)
class About:
    """How a study came about."""

    name: str
    """Of its files."""
    command: str
    num_trials: int
    wall_s: float
    """Wall-clock over all lives, s."""
    plan: Mapping[str, Any]
    """The sweep's file."""
    asha: bool = False
    """Whether trials were stopped early, so that not all were judged."""


def write(folder: Path, rows: Sequence[TrialRow], about: About) -> list[Path]:
    """Write what is known by now; nothing while no trial has been judged.

    Args:
        folder: made if it is not there.
        rows: the sweep's ledger.
        about: how they came about.

    Returns:
        The files.

    Raises:
        CheckpointError: the folder of an evaluation is missing or damaged.
        StorageError: the disk refused.
    """
    results = judged(rows)
    if not results:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    protocol = next(iter(results.values())).protocol
    blocks = {scenario: outcomes(rows, results, scenario) for scenario in protocol["scenarios"]}
    first = next(iter(blocks.values()))
    files = [folder / f"{about.name}{suffix}" for suffix in (".md", ".json", ".png")]
    curves = draw(files[2], first)
    runs.write_json(files[1], _json(rows, results, blocks, about))
    text = _markdown(rows, blocks, about, protocol, image=files[2].name if curves else "")
    files[0].write_text(text)
    return files if curves else files[:2]


def _json(
    rows: Sequence[TrialRow],
    results: Mapping[str, Result],
    blocks: Mapping[str, Sequence[Outcomes]],
    about: About,
) -> dict[str, Any]:
    first = next(iter(blocks.values()))
    return {
        "name": about.name,
        "command": about.command,
        "wall_s": round(about.wall_s, 1),
        "protocol": dict(next(iter(results.values())).protocol),
        **{key: value for key, value in runs.provenance().items() if key not in ("started", "command")},
        "trials": [_trial(row, results.get(row.id)) for row in rows],
        "points": {
            scenario: [
                {"axes": point.values, "seeds": point.seeds, "n": len(point.task_C)}
                | {score: _plain(point.interval(score)) for score in SCORES}
                for point in points
            ]
            for scenario, points in blocks.items()
        },
        "against_scratch": {
            scenario: [_against(d) for d in differences(points)] for scenario, points in blocks.items()
        },
        "replaced": [{"axes": r.values, "needed": _plain(r.needed), "text": r.text} for r in replaced(first)],
        "sweep": dict(about.plan),
    }


def _trial(row: TrialRow, result: Result | None) -> dict[str, Any]:
    told = {
        "id": row.id,
        "axes": {axis: value for axis, value in row.values.items() if axis != SEED},
        "seed": row.values.get(SEED),
        "state": row.state,
        "error": row.error,
        "seconds": {stage: round(seconds, 1) for stage, seconds in row.seconds.items()},
        "wall_s": round(sum(row.seconds.values()), 1),
        "stage_1": row.stage_1,
        "validation": row.validation,
    }
    if result is None:
        return told
    manifest = runs.read_json(result.path / "manifest.json") if (result.path / "manifest.json").exists() else {}
    counts = {
        task: {
            scenario: {"n": entry["n"], **{kind: entry[kind]["k"] for kind in KINDS}}
            for scenario, entry in row_of.items()
        }
        for task, row_of in result.tasks.items()
    }
    return told | {
        "n": len(result.episodes),
        "tasks": counts,
        **{score: (row.result or {}).get(score) for score in SCORES},
        "protocol_hash": result.protocol["hash"],
        "commit": manifest.get("git", ""),
        "hardware": manifest.get("machine", ""),
        "runs": row.runs,
    }


def _against(difference: Difference) -> dict[str, Any]:
    return {
        "axes": difference.values,
        "against": difference.against,
        "seeds": difference.num_seeds,
        **{score: _plain(interval) for score, interval in difference.by.items()},
        "mcnemar": {kind: test._asdict() for kind, test in difference.tests.items()},
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    """JSON knows no infinity: null."""
    return {key: value if math.isfinite(value) else None for key, value in interval._asdict().items()}


def _markdown(
    rows: Sequence[TrialRow],
    blocks: Mapping[str, Sequence[Outcomes]],
    about: About,
    protocol: Mapping[str, Any],
    *,
    image: str,
) -> str:
    first, made = next(iter(blocks.values())), runs.provenance()
    done = sum(bool(row.result) for row in rows)
    parts = [
        f"# {about.name}",
        f"`{about.command}`",
        f"{done} of {about.num_trials} trials judged{' (the others were stopped early)' * about.asha}, "
        f"{about.wall_s / 60:.0f} minutes of wall-clock. Commit `{made['git'][:12] or 'unknown'}"
        f"{'+dirty' * made['git'].endswith('+dirty')}`, {made['machine']}, torch {made['packages']['torch']}. Protocol "
        f"`{protocol['hash']}`: {protocol['episodes']} cells of each task, cell seed {protocol['seed']}.",
    ]
    for scenario, points in blocks.items():
        parts += [f"## Success: {scenario}", METHOD, _success(points, protocol["tasks"])]
    for scenario, points in blocks.items():
        if found := differences(points):
            parts += [f"## Against {SCRATCH}: {scenario}", PAIRS, _differences(found)]
    if found := replaced(first):
        names = [_axes(r.values) for r in found]
        lines = [f"- {_words(name)}: {r.text}" for name, r in zip(names, found, strict=True)]
        parts += ["## What play replaces", REPLACED, "\n".join(lines)]
    if image:
        parts += ["## Curves", f"![Success over play and demonstrations]({image})"]
    if table := _stage_1(rows):
        parts += ["## Stage 1 on held-out play", table]
    if left := [row for row in rows if not row.result]:
        parts += ["## Not judged", "\n".join(f"- {row.id} ({_words(_axes(row.values))}): {_why(row)}" for row in left)]
    return "\n\n".join(parts) + "\n"


def _success(points: Sequence[Outcomes], tasks: Sequence[str]) -> str:
    axes = list(_axes(points[0].values))
    lines = []
    for point in points:
        cells = ["/".join(f"{100 * point.rate(task, kind):.1f}" for kind in KINDS) for task in tasks]
        scores = [_spanned(point.interval(score)) for score in SCORES]
        n = len(point.task_C) // len(tasks)
        lines.append([*_axes(point.values).values(), *cells, *scores, str(n), str(len(point.seeds))])
    return _table([*axes, *(short(task) for task in tasks), *HEADINGS.values(), "n a task", "seeds"], lines)


def _differences(found: Sequence[Difference]) -> str:
    lines = []
    for each in found:
        tests = [
            f"{test.only_first} : {test.only_second}, p {p_text(test.p_value)}"
            for test in (each.tests["partial"], each.tests["entire"])
        ]
        by = [_spanned(each.by[score], sign="+") for score in SCORES]
        lines.append([*_axes(each.values).values(), *by, *tests, str(each.num_seeds)])
    headings = [*_axes(found[0].values), *(f"{name}, points" for name in HEADINGS.values())]
    return _table([*headings, "partial, only this : only scratch", "entire, likewise", "seeds"], lines)


def _stage_1(rows: Sequence[TrialRow]) -> str:
    """Means over the runs of Stage 1 that have the same arm, budget and settings; each run counts once."""
    runs_of = {row.runs.get("pretrain", row.id): row for row in reversed(rows) if row.stage_1}
    groups: dict[tuple[tuple[str, str], ...], list[TrialRow]] = {}
    for row in reversed(runs_of.values()):
        own = {axis: v for axis, v in row.values.items() if axis in (ARM, BUDGET) or axis.startswith("pretrain.")}
        groups.setdefault(tuple(_axes(own).items()), []).append(row)
    names = sorted({n for row in runs_of.values() for n in row.stage_1 if n.rpartition("/")[2] in SHOWN})
    if not names:
        return ""
    lines = []
    for own, same in groups.items():
        values = [[row.stage_1[name] for row in same if name in row.stage_1] for name in names]
        means = [f"{sum(of) / len(of):.3f}" if of else "-" for of in values]
        lines.append([*(text for _, text in own), *means, str(len(same))])
    return _table([*(name for name, _ in next(iter(groups))), *names, "runs"], lines)


SHOWN = ("r2_mean", "r2_move", "r2_contact", "r2_release", "gripper_accuracy")
"""Of Stage 1's metrics."""


def _axes(values: Mapping[str, Any]) -> dict[str, str]:
    """Short name -> text of each axis."""
    names = short_names(list(values))
    return {names[axis].replace("_", " "): show(value) for axis, value in values.items()}


def _words(axes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in axes.items()) or "the only one"


def _why(row: TrialRow) -> str:
    return f"{row.state}{': ' * bool(row.error)}{row.error}"


def _spanned(interval: Interval, sign: str = "") -> str:
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(headings), ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
