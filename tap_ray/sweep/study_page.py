"""Writes the tables of a study's page from the study's JSON; text above and below them is kept.

python -m tap_ray.sweep.study_page docs/results/*.json
"""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from tap_ray import runs
from tap_ray.compare.reading import KINDS
from tap_ray.compare.sentences import pooled
from tap_ray.compare.tables import STANDARD, p_text, short
from tap_ray.errors import DataError, exit_status
from tap_ray.metrics import wilson
from tap_ray.sweep.study import SCORES, SCRATCH
from tap_ray.sweep.tables import ARM, BUDGET, HEADINGS, short_names, show

BEGIN, END = "<!-- tables: written from {}, do not edit -->", "<!-- end of tables -->"
METHOD = (
    "Means over seeds in percent, partial/entire. Brackets: 95 % intervals of a bootstrap over seeds and, "
    "independently, over the cells that all of them share (Owen 2007); with one seed, over cells alone. A rate of 0 "
    "or 100 % has an interval of width 0, which only means that all episodes had the same result."
)
MIXED = (
    "The two cells of one scene, which differ in the instruction, are redrawn as if they were independent, which they "
    "are not: intervals here may be too narrow or too wide."
)
PAIRS = (
    "Differences in points, paired by seed and cell. McNemar: exact, over the pairs of all seeds, which share their "
    "cells and are therefore not fully independent; p is not corrected for the number of rows."
)
DROPS = (
    "Entire success in the standard scenario minus that in another, in points, paired by seed and cell: an initial "
    "state has one seed in all scenarios. Brackets as above; a drop without any is of a study from before they were "
    "computed."
)
FOLLOWED = (
    "Whose object was moved first, in scenes with the objects of two tasks, each scene evaluated with both "
    "instructions. Followed: that of the instructed task, of the episodes that moved either (50 % for a policy that "
    "ignores the instruction). Wrong object: that of the other task, of all episodes. Episodes of all seeds together, "
    "with Wilson 95 % intervals, which take all of them for independent. The seeds share their cells, which makes the "
    "intervals somewhat too narrow. The two cells of a scene are related: a policy that ignores the instruction moves "
    "the same object in both and follows in one of them, so its interval is too wide."
)
REPLACED = (
    "Where the scratch arm's curve over demonstrations (straight lines over their logarithm) first reaches the Avg-All "
    "of an arm that had play: the adaptability of its Stage 1."
)
SHOWN = ("r2_mean", "r2_move", "r2_contact", "r2_release", "gripper_accuracy")
"""Metrics of Stage 1 that are shown."""
Record = Mapping[str, Any]
"""A study's JSON, as `study_report.write` writes it, or a part of it."""


def write(file: Path) -> Path:
    """Write the tables of NAME.json into NAME.md beside it, between its two marks; creates the page if it does not
    exist.

    Raises:
        DataError: the page has no marks.
    """
    page, begin = file.with_suffix(".md"), BEGIN.format(file.name)
    record = runs.read_json(file)
    text = page.read_text() if page.exists() else f"# {record['name']}\n\n{begin}\n{END}\n"
    if begin not in text or END not in text:
        raise DataError(
            f"{page} lacks the lines '{begin}' and '{END}', between which its tables are written. Add them, or move "
            "the page away."
        )
    above, below = text.split(begin)[0], text.split(END)[1]
    image = file.with_suffix(".png")
    page.write_text(f"{above}{begin}\n\n{tables(record, image.name if image.exists() else '')}\n\n{END}{below}")
    return page


def tables(record: Record, image: str = "") -> str:
    """All tables of a study as Markdown.

    Args:
        record: the study's JSON.
        image: file name of its curves, "" if there are none.
    """
    trials = record["trials"]
    done = sum("tasks" in trial for trial in trials)
    parts = [f"`{record['command']}`", _origin(record, done)]
    for scenario, points in record["points"].items():
        parts += [f"## Success: {scenario}", METHOD, _success(points, trials, scenario, record["protocol"]["tasks"])]
        if table := _followed(points, trials, scenario):
            parts += [MIXED, f"## Does it follow the instruction: {scenario}", FOLLOWED, table]
    if table := _drops(record["points"]):
        parts += ["## Scenario drops", DROPS, table]
    for scenario, found in record["against_scratch"].items():
        if found:
            parts += [f"## Against {SCRATCH}: {scenario}", PAIRS, _differences(found)]
    if found := record["replaced"]:
        lines = [f"- {_words(each['axes'])}: {each['text']}" for each in found]
        parts += ["## What play replaces", REPLACED, "\n".join(lines)]
    if image:
        parts += ["## Curves", f"![Success over play and demonstrations]({image})"]
    if table := _stage_1(trials):
        parts += ["## Stage 1 on held-out play", table]
    if left := [trial for trial in trials if "tasks" not in trial]:
        lines = [f"- {_trial(trial)}: {trial['state']}{': ' * bool(trial['error'])}{trial['error']}" for trial in left]
        parts += ["## Not evaluated", "\n".join(lines)]
    return "\n\n".join(parts)


def _origin(record: Record, done: int) -> str:
    trials, protocol, (commit, dirty, _) = record["trials"], record["protocol"], record["git"].partition("+")
    stopped = " (the others were stopped early)" * bool(record["sweep"].get("asha"))
    return (
        f"{done} of {len(trials)} trials evaluated{stopped}, {record['wall_s'] / 60:.0f} minutes of wall-clock. "
        f"Commit `{commit[:12] or 'unknown'}{'+dirty' * bool(dirty)}`, {record['machine']}, "
        f"torch {record['packages']['torch']}. Protocol `{protocol['hash']}`: {protocol['episodes']} cells of each "
        f"task, cell seed {protocol['seed']}."
    )


def _success(points: Sequence[Record], trials: Sequence[Record], scenario: str, tasks: Sequence[str]) -> str:
    lines = []
    for point in points:
        of = _of(point, trials)
        cells = ["/".join(_rate([t["tasks"][task][scenario] for t in of], kind) for kind in KINDS) for task in tasks]
        scores = [_spanned(point[score]) for score in SCORES]
        n = point["n"] // len(tasks)
        lines.append([*_axes(point["axes"]).values(), *cells, *scores, str(n), str(len(point["seeds"]))])
    axes = _axes(points[0]["axes"])
    return _table([*axes, *(short(task) for task in tasks), *HEADINGS.values(), "n a task", "seeds"], lines)


def _followed(points: Sequence[Record], trials: Sequence[Record], scenario: str) -> str:
    """A row for each point whose episodes had the objects of two tasks; "" if there are none."""
    lines = []
    for point in points:
        counts = [count[scenario] for trial in _of(point, trials) for count in trial["tasks"].values()]
        if not all("followed" in count for count in counts):
            return ""
        row = list(_axes(point["axes"]).values())
        for kind in ("followed", "wrong_object"):
            k, n = pooled(count[kind] for count in counts)
            row += [f"{k} of {n}", _spanned(wilson(k, n)._asdict())]
        lines.append(row)
    return _table([*_axes(points[0]["axes"]), "followed", "%", "wrong object", "%"], lines)


def _drops(points: Mapping[str, Sequence[Record]]) -> str:
    """A row for each point, a column for each scenario but the standard one; "" if that is the only one, or missing."""
    others = {scenario: found for scenario, found in points.items() if scenario != STANDARD}
    if not others or STANDARD not in points:
        return ""
    lines = [
        [*_axes(point["axes"]).values(), *(_drop(point, found[number]) for found in others.values())]
        for number, point in enumerate(points[STANDARD])
    ]
    return _table([*_axes(points[STANDARD][0]["axes"]), *others], lines)


def _drop(standard: Record, other: Record) -> str:
    if "drop" in other:
        return _spanned(other["drop"], sign="+")
    return f"{100 * (standard['avg_entire']['rate'] - other['avg_entire']['rate']):+.1f}"


def _of(point: Record, trials: Sequence[Record]) -> list[Record]:
    """The evaluated trials of a point."""
    return [t for t in trials if "tasks" in t and t["axes"] == point["axes"] and t["seed"] in (*point["seeds"], None)]


def _rate(counts: Sequence[Record], kind: str) -> str:
    """Mean over seeds, %."""
    return f"{100 * sum(count[kind] / count['n'] for count in counts) / len(counts):.1f}"


def _differences(found: Sequence[Record]) -> str:
    lines = []
    for each in found:
        tests = [
            f"{test['only_first']} : {test['only_second']}, p {p_text(test['p_value'])}"
            for test in (each["mcnemar"]["partial"], each["mcnemar"]["entire"])
        ]
        by = [_spanned(each[score], sign="+") for score in SCORES]
        lines.append([*_axes(each["axes"]).values(), *by, *tests, str(each["seeds"])])
    headings = [*_axes(found[0]["axes"]), *(f"{name}, points" for name in HEADINGS.values())]
    return _table([*headings, "partial, only this : only scratch", "entire, likewise", "seeds"], lines)


def _stage_1(trials: Sequence[Record]) -> str:
    """Means over the runs of Stage 1 that have the same arm, budget and settings; each run counts once."""
    trained = [trial for trial in trials if trial["stage_1"]]
    runs_of = {trial.get("runs", {}).get("pretrain", trial["id"]): trial for trial in reversed(trained)}
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for trial in reversed(runs_of.values()):
        stage_1_axes = {a: v for a, v in trial["axes"].items() if a in (ARM, BUDGET) or a.startswith("pretrain.")}
        groups.setdefault(tuple(_axes(stage_1_axes).items()), []).append(trial["stage_1"])
    names = sorted({name for trial in trained for name in trial["stage_1"] if name.rpartition("/")[2] in SHOWN})
    if not names:
        return ""
    lines = []
    for axes, same in groups.items():
        values = [[metrics[name] for metrics in same if name in metrics] for name in names]
        means = [f"{sum(of) / len(of):.3f}" if of else "-" for of in values]
        lines.append([*(text for _, text in axes), *means, str(len(same))])
    return _table([*(name for name, _ in next(iter(groups))), *names, "runs"], lines)


def _axes(values: Record) -> dict[str, str]:
    """Short name -> text of each axis."""
    names = short_names(list(values))
    return {names[axis].replace("_", " "): show(value) for axis, value in values.items()}


def _words(values: Record) -> str:
    return ", ".join(f"{name} {value}" for name, value in _axes(values).items()) or "the only one"


def _trial(trial: Record) -> str:
    seed = {} if trial["seed"] is None else {"seed": trial["seed"]}
    return f"{trial['id']} ({_words({**trial['axes'], **seed})})"


def _spanned(interval: Record, sign: str = "") -> str:
    if interval["rate"] != interval["rate"]:  # a share of no episodes
        return "-"
    mean, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("rate", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [list(headings), ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def main() -> int:
    """Run the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m tap_ray.sweep.study_page",
        description="Write the tables of a study's page from the study's JSON; text above and below them is kept.",
    )
    parser.add_argument("file", nargs="+", type=Path, help="NAME.json of a study; the page is NAME.md beside it")
    flags = parser.parse_args()
    return exit_status(lambda: [print(write(file)) for file in flags.file])


if __name__ == "__main__":
    sys.exit(main())
