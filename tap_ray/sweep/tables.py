"""Holds a sweep's ledger, one JSON file per trial, and its tables: a row per trial, and a row per point over its
seeds."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit  # a quarter of a second quicker to import than scipy.stats

from tap_ray.config import from_dict
from tap_ray.media.text_table import grid
from tap_ray.metrics import Interval, wilson
from tap_ray.runs import read_json, write_json

TRIALS = "trials"
"""Folder of the ledger within a sweep's run."""
ARM, BUDGET, DEMOS, SEED = "arm", "budget", "demos_per_task", "seed"
"""Axes of a study: the arm, episodes of play, demonstrations of each task, and the seed, over which results are
averaged."""
METRICS = ("avg_partial", "avg_entire", "avg_all")
HEADINGS = {"avg_partial": "Avg-P", "avg_entire": "Avg-E", "avg_all": "Avg-All"}
State = Literal["waiting", "running", "trained", "done", "stopped", "failed"]


@dataclass(kw_only=True)
class TrialRow:
    """The ledger's row of one trial, plain JSON."""

    id: str
    values: dict[str, Any]
    """Values by axis."""
    state: State = "waiting"
    """"trained": waits for the finalists to be chosen, or was not among them; "stopped": by successive halving."""
    stage: str = ""
    """Description of its current stage."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of each stage, s, including earlier runs of the same trial."""
    worked: dict[str, float] = field(default_factory=dict)
    """The part of `seconds` spent in training steps or episodes, s."""
    runs: dict[str, str] = field(default_factory=dict)
    """Stage -> its run folder."""
    with_play: bool = True
    """Whether it is trained on play: in Stage 1, as a motion prior or in co-training."""
    stage_1: dict[str, float] = field(default_factory=dict)
    """Stage 1's last metrics on held-out play."""
    validation: dict[str, float] = field(default_factory=dict)
    """The alignment's last metrics on held-out demonstrations."""
    result: dict[str, Any] | None = None
    """The averages of results.json, and "k" and "n": successes and episodes of "partial" and "entire"."""
    error: str = ""
    """Why it failed."""
    mlflow_run_id: str | None = None
    logged_step: int = -1
    """The last step whose metrics are in MLflow; of a stopped trial, the step at which it was stopped."""


def path_of(folder: Path, id: str) -> Path:
    """A trial's file in a sweep's run folder."""
    return folder / TRIALS / f"{id}.json"


def write_row(folder: Path, row: TrialRow) -> None:
    """Write a trial's row into the ledger; a reader sees the old or the new one."""
    write_json(path_of(folder, row.id), asdict(row))


def read_row(folder: Path, id: str, values: Mapping[str, Any]) -> TrialRow:
    """Read a trial's row; a new one if there is none yet."""
    file = path_of(folder, id)
    return (
        from_dict(TrialRow, read_json(file), where=str(file)) if file.exists() else TrialRow(id=id, values={**values})
    )


@dataclass(frozen=True, kw_only=True)
class Point:
    """Trials that differ in their seed only."""

    values: Mapping[str, Any]
    """By axis, without the seed."""
    rows: Sequence[TrialRow]
    """Rows of the evaluated trials."""

    def each(self, metric: str) -> list[float]:
        """A value for each seed."""
        return [row.result[metric] for row in self.rows if row.result]

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.each(metric)))

    def over_seeds(self, metric: str) -> Interval:
        """Mean over seeds with Student's 95 % interval, clipped to [0, 1]; no wider than the mean with one seed."""
        values = np.array(self.each(metric))
        num = len(values)
        half = stdtrit(num - 1, 0.975) * values.std(ddof=1) / np.sqrt(num) if num > 1 else 0.0
        return Interval(
            float(values.mean()), max(0.0, float(values.mean() - half)), min(1.0, float(values.mean() + half))
        )

    def pooled(self, kind: str) -> Interval:
        """Wilson 95 % interval of "partial" or "entire", all seeds' episodes together."""
        results = [row.result for row in self.rows if row.result]
        return wilson(sum(result["k"][kind] for result in results), sum(result["n"] for result in results))


def points(rows: Sequence[TrialRow]) -> list[Point]:
    """Group evaluated trials by everything except their seed, in the order of their first trials."""
    found: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.result:
            found.setdefault(repr(without_seed(row.values)), []).append(row)
    return [Point(values=without_seed(same[0].values), rows=same) for same in found.values()]


def without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by axis, without the seed."""
    return {axis: value for axis, value in values.items() if axis != SEED}


def best(rows: Sequence[TrialRow], metric: str) -> TrialRow | None:
    """The trial to keep: the best seed of the best point (not the luckiest seed of all); None if none was evaluated."""
    found = points(rows)
    if not found:
        return None
    top = max(found, key=lambda point: point.mean(metric))  # the first of several best ones
    return max(top.rows, key=lambda row: row.result[metric] if row.result else 0.0)


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Axis -> its last word, or as many words as distinguish it from the others."""
    found = {}
    for axis in axes:
        words = axis.split(".")
        tails = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        found[axis] = next(t for t in tails if sum(o == t or o.endswith(f".{t}") for o in axes) == 1)
    return found


def show(value: Any) -> str:
    """A value of an axis as text: 0.00212, not 0.0021234567."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def label(values: Mapping[str, Any]) -> str:
    """Values by axis, in words: "budget 400, seed 1"."""
    names = short_names(list(values))
    return ", ".join(f"{names[axis]} {show(value)}" for axis, value in values.items()) or "the only one"


def rows_json(rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """The results of a sweep without times, so that interruptions do not change them."""
    return [
        {
            "id": row.id,
            "values": row.values,
            "state": row.state,
            "validation": {name: v for name, v in row.validation.items() if not name.endswith(("_s", "_pct"))},
            "result": row.result,
            "error": row.error,
        }
        for row in rows
    ]


def text_table(rows: Sequence[TrialRow]) -> str:
    """The text table of a sweep: each point with its seeds, then the trials that were not evaluated and why."""
    lines = []
    for point in points(rows):
        seeds = point.over_seeds("avg_all")
        lines.append(
            (
                label(point.values),
                *(f"{100 * point.mean(metric):.1f}" for metric in METRICS),
                f"{100 * seeds.low:.0f}-{100 * seeds.high:.0f}" if len(point.rows) > 1 else "-",
                *(
                    "{1:.0f}-{2:.0f}".format(*(100 * end for end in point.pooled(kind)))
                    for kind in ("partial", "entire")
                ),
                str(len(point.rows)),
            )
        )
    headings = (*HEADINGS.values(), "over seeds", "P, Wilson", "E, Wilson")
    blocks = [f"percent, mean over n seeds; 95 % intervals\n{grid(headings, lines)}"] if lines else []
    others = [row for row in rows if not row.result]
    blocks += [f"{row.id} ({label(row.values)}): {row.state}{': ' * bool(row.error)}{row.error}" for row in others]
    return "\n".join(blocks)


def cost_text(rows: Sequence[TrialRow], *, wall_s: float, at_once: int) -> str:
    """How the time was spent: training and episodes, the rest of their stages, and trial slots without a stage.

    Trial slots are without a stage while a trial starts, and at the end of a sweep when no trials are left.
    """
    worked = {stage: sum(row.worked.get(stage, 0.0) for row in rows) for row in rows for stage in row.worked}
    total, staged = wall_s * at_once, sum(sum(row.seconds.values()) for row in rows)
    rest, free = max(0.0, staged - sum(worked.values())), max(0.0, total - staged)
    parts = [f"{stage} {seconds:.0f} s" for stage, seconds in worked.items()]
    parts += [f"the rest of their stages {rest:.0f} s" + (f" ({100 * rest / staged:.0f} %)" if staged else "")]
    return f"{wall_s:.0f} s of wall-clock, {at_once} at a time: {', '.join(parts)}; without a stage {free:.0f} s"
