"""Computes the results of a study: each point's outcomes over seeds x cells, and differences from the scratch arm.

ledger --> points --> table: partial/entire of each task, means over seeds, intervals
                 '--> scratch at the same demonstrations, seeds and cells: difference, McNemar
                 '--> scratch's curve over demonstrations: how many of them play replaces
"""

from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

import numpy as np

from tap_ray import storage
from tap_ray.compare.reading import CELL, KINDS, Result, read_result
from tap_ray.errors import DataError
from tap_ray.metrics import Interval, McNemar, crossed_bootstrap, mcnemar, reached_at
from tap_ray.rng import generator
from tap_ray.sweep.tables import ARM, BUDGET, DEMOS, SEED, TrialRow, without_seed

SCRATCH = "scratch"
"""The arm that the others are compared with; without arms, the points with budget 0 and no other play."""
SCORES = ("avg_partial", "avg_entire", "avg_all")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """The outcomes of a point of a study: trials that differ in their seed only, evaluated in the same cells of one
    scenario."""

    values: Mapping[str, Any]
    """Values by axis, without the seed."""
    seeds: tuple[int, ...]
    task_C: np.ndarray
    """Task of each cell."""
    cell_seed_C: np.ndarray
    """Seed of each cell. An initial state has one in all scenarios, so these are paired."""
    success_KSC: np.ndarray
    """bool: partial and entire success, by seed and cell."""
    with_play: bool = True
    """Whether it is trained on play; not, for example, behavior cloning with twice the steps."""

    def score_SC(self, score: str) -> np.ndarray:
        """(S, C) float scores to average. "avg_all" is the mean of partial and entire success."""
        parts = {"avg_partial": (0,), "avg_entire": (1,), "avg_all": (0, 1)}[score]
        return self.success_KSC[list(parts)].mean(axis=0)

    def of_seeds(self, seeds: Sequence[int]) -> "Outcomes":
        """The same with these seeds only, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=tuple(seeds), success_KSC=self.success_KSC[:, rows])

    def rate(self, task: str, kind: str) -> float:
        """Success in one task, mean over seeds."""
        return float(self.success_KSC[KINDS.index(kind)][:, self.task_C == task].mean())

    def interval(self, score: str) -> Interval:
        """Mean over seeds and cells with its 95 % interval."""
        table = self.score_SC(score)
        return _interval(float(table.mean()), crossed_bootstrap(table, self.task_C, _rng()))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A point against scratch, paired on the seeds and cells that both have."""

    values: Mapping[str, Any]
    against: Mapping[str, Any]
    """The scratch point's values."""
    num_seeds: int
    by: Mapping[str, Interval]
    """Score -> point minus scratch, in [-1, 1], 95 % interval."""
    tests: Mapping[str, McNemar]
    """Kind -> exact McNemar over the pairs of all seeds; first: the point, second: scratch."""


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """How many demonstrations per task scratch needs to match a point that also had play."""

    values: Mapping[str, Any]
    demos: int
    """Demonstrations per task of the point."""
    first: int
    last: int
    """Smallest and largest number of demonstrations of scratch's curve."""
    needed: Interval
    """Demonstrations: at the curve's means, and the 2.5 % and 97.5 % quantiles over redrawn seeds and cells. `first`
    means that number or fewer, infinity means more than `last`."""

    @property
    def text(self) -> str:
        """ "10 with play = 17 without (95 %: 12 to > 50)"."""
        shown = [self._shown(value) for value in self.needed]
        return f"{self.demos} with play = {shown[0]} without (95 %: {shown[1]} to {shown[2]})"

    def _shown(self, value: float) -> str:
        if value <= self.first:
            return f"<= {self.first}"
        return f"> {self.last}" if np.isinf(value) else f"{value:.0f}"


def evaluations(rows: Sequence[TrialRow]) -> dict[str, Result]:
    """The result of each evaluated trial, by the trial's id.

    Raises:
        CheckpointError: a folder is missing or damaged.
    """
    return {row.id: read_result(storage.to_path(row.runs["evaluate"])) for row in rows if row.result}


def outcomes(rows: Sequence[TrialRow], results: Mapping[str, Result], scenario: str) -> list[Outcomes]:
    """The points in the order of their first trials.

    Raises:
        DataError: trials were evaluated in different cells.
    """
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.id in results:
            groups.setdefault(repr(without_seed(row.values)), []).append(row)
    found, first = [], None
    for same in groups.values():
        tables = [results[row.id].episodes.xs(scenario, level="scenario", drop_level=False) for row in same]
        for table in tables:
            first = table.index if first is None else first
            if not table.index.equals(first):
                raise DataError(
                    "The trials of a sweep must be evaluated in the same cells, but these were not. Evaluate them "
                    "again."
                )
        success = [[table[f"{kind}_once"].to_numpy(bool) for table in tables] for kind in KINDS]
        found.append(
            Outcomes(
                values=without_seed(same[0].values),
                seeds=tuple(int(row.values.get(SEED, 0)) for row in same),
                task_C=np.asarray(tables[0].index.get_level_values(CELL[0]), dtype=str),
                cell_seed_C=tables[0].index.get_level_values(CELL[3]).to_numpy(),
                success_KSC=np.array(success),
                with_play=same[0].with_play,
            )
        )
    return found


def is_scratch(point: Outcomes) -> bool:
    """Whether a point belongs to the scratch arm. Without arms, one with budget 0 does not if its motion prior or its
    co-training has play."""
    if ARM in point.values:
        return point.values[ARM] == SCRATCH
    return point.values.get(BUDGET) == 0 and not point.with_play


def baselines(point: Outcomes, points: Sequence[Outcomes], *, any_demos: bool = False) -> list[Outcomes]:
    """The scratch points with the same Stage 2 settings as a point; with `any_demos` with any number of
    demonstrations."""

    def stage_2(values: Mapping[str, Any]) -> dict[str, Any]:
        return {a: v for a, v in values.items() if a.startswith("align.") or (a == DEMOS and not any_demos)}

    return [other for other in points if is_scratch(other) and stage_2(other.values) == stage_2(point.values)]


def differences(points: Sequence[Outcomes]) -> list[Difference]:
    """The difference of every point from scratch at the same demonstrations, if there is such a scratch point with a
    common seed."""
    found = []
    for point in points:
        others = [] if is_scratch(point) else baselines(point, points)
        seeds = [seed for seed in point.seeds if others and seed in others[0].seeds]
        if not seeds:
            continue
        first, second = point.of_seeds(seeds), others[0].of_seeds(seeds)
        by = {}
        for score in SCORES:
            table = first.score_SC(score) - second.score_SC(score)
            by[score] = _interval(float(table.mean()), crossed_bootstrap(table, point.task_C, _rng()))
        tests = {
            kind: mcnemar(first.success_KSC[k].ravel(), second.success_KSC[k].ravel()) for k, kind in enumerate(KINDS)
        }
        found.append(Difference(values=point.values, against=second.values, num_seeds=len(seeds), by=by, tests=tests))
    return found


def drop(standard: Outcomes, other: Outcomes) -> Interval:
    """Entire success of a point in the standard scenario minus that in another, paired by seed and cell, in [-1, 1]."""
    assert standard.seeds == other.seeds
    assert np.array_equal(standard.cell_seed_C, other.cell_seed_C), "an initial state has one seed in all scenarios"
    table = standard.score_SC("avg_entire") - other.score_SC("avg_entire")
    return _interval(float(table.mean()), crossed_bootstrap(table, standard.task_C, _rng()))


def replaced(points: Sequence[Outcomes], score: str = "avg_all") -> list[Replaced]:
    """For each point with play, the number of demonstrations at which scratch's curve reaches its score."""
    found = []
    for point in points:
        without_play = is_scratch(point) or not point.with_play
        curve = [] if without_play else baselines(point, points, any_demos=True)
        curve = sorted((p for p in curve if p.values.get(DEMOS)), key=lambda p: p.values[DEMOS])
        seeds = [seed for seed in point.seeds if all(seed in other.seeds for other in curve)]
        if len(curve) < 2 or not seeds:
            continue
        demos = [int(other.values[DEMOS]) for other in curve]
        tables = np.stack([each.of_seeds(seeds).score_SC(score) for each in (*curve, point)])
        means = tables.mean(axis=(1, 2))
        drawn = [reached_at(demos, draw[:-1], draw[-1]) for draw in crossed_bootstrap(tables, point.task_C, _rng())]
        # Quantiles are draws, not interpolated, because infinity cannot be interpolated.
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        found.append(
            Replaced(
                values=point.values,
                demos=int(point.values[DEMOS]),
                first=demos[0],
                last=demos[-1],
                needed=Interval(reached_at(demos, means[:-1], means[-1]), float(low), float(high)),
            )
        )
    return found


def _interval(mean: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def _rng() -> np.random.Generator:
    """The generator of the bootstrap, with a fixed seed so that pages are reproducible."""
    return generator(0, "study")
