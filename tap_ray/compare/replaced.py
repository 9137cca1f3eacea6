"""What play replaces: how many demonstrations the policies without Stage 1 need for the score of one with Stage 1.

It needs policies from scratch at two or more numbers of demonstrations among the runs that are compared. Their scores
are joined by straight lines over the logarithm of that number, as in a study (`tap_ray/sweep/study.py`), which also has
intervals over seeds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from tap_ray import storage
from tap_ray.compare.reading import KINDS, Result
from tap_ray.metrics import reached_at
from tap_ray.runs import read_json

HEADING = "what play replaces"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a policy was trained."""

    demos: int
    """Demonstrations of all tasks together."""
    scratch: bool


def trained(run: Path) -> Trained | None:
    """Read it from a run of jobs.align; None for another job, or where the number of demonstrations is not known."""
    manifest = read_json(run / "manifest.json")
    if manifest.get("job") != "align" or not (run / "config.json").exists():
        return None
    config, parents = read_json(run / "config.json"), manifest.get("parents", {})
    demos = config.get("windows", {}).get("num_episodes", 0) or _size(parents.get("demos", {}))
    return Trained(demos=demos, scratch=not parents.keys() & {"init", "prior", "play"}) if demos else None


def _size(parent: dict[str, Any]) -> int:
    info = storage.to_path(parent["path"]) / "meta" / "info.json" if parent else None
    return int(read_json(info).get("total_episodes", 0)) if info is not None and info.exists() else 0


def replaced(results: Sequence[Result]) -> list[str]:
    """For each result "N demonstrations instead of n", "" where it cannot be said; Avg-All in the first scenario."""
    known = [trained(result.policy_run) if result.policy_run is not None else None for result in results]
    scores = [float(np.mean([result.average(result.scenarios[0], kind).rate for kind in KINDS])) for result in results]
    of_scratch: dict[int, list[float]] = {}
    for one, score in zip(known, scores, strict=True):
        if one is not None and one.scratch:
            of_scratch.setdefault(one.demos, []).append(score)
    if len(of_scratch) < 2:
        return [""] * len(results)
    demos = sorted(of_scratch)
    curve = [float(np.mean(of_scratch[number])) for number in demos]
    return [
        "" if one is None or one.scratch else _text(one.demos, reached_at(demos, curve, score), demos)
        for one, score in zip(known, scores, strict=True)
    ]


def _text(own: int, needed: float, demos: Sequence[int]) -> str:
    if needed > demos[-1]:
        return f"more than {demos[-1]} demonstrations instead of {own}"
    if round(needed) <= demos[0]:
        return f"at most {demos[0]} demonstrations instead of {own}"
    return f"{needed:.0f} demonstrations instead of {own}"
