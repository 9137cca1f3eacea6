"""Computes how many demonstrations play replaces: how many a policy without Stage 1 needs for the score of one with
Stage 1.

It needs policies from scratch at two or more numbers of demonstrations among the runs that are compared. At each
number the best of their settings counts, as the mean over its seeds; these scores are joined by straight lines over the
logarithm of that number, as in a study (`tap_ray/sweep/study.py`), which also has intervals over seeds.
"""

from typing import Sequence

import numpy as np

from tap_ray.compare.reading import KINDS, Result
from tap_ray.metrics import reached_at

HEADING = "what play replaces"


def replaced(results: Sequence[Result]) -> list[str]:
    """For each result the text "N demonstrations instead of n", from Avg-All in the first scenario; "" where it cannot
    be computed."""
    known = [result.trained for result in results]
    scores = [float(np.mean([result.average(result.scenarios[0], kind).rate for kind in KINDS])) for result in results]
    of_scratch: dict[int, dict[str, list[float]]] = {}
    for one, score in zip(known, scores, strict=True):
        if one is not None and one.scratch:
            of_scratch.setdefault(one.demos, {}).setdefault(one.setting, []).append(score)
    if len(of_scratch) < 2:
        return [""] * len(results)
    demos = sorted(of_scratch)
    curve = [max(float(np.mean(seeds)) for seeds in of_scratch[number].values()) for number in demos]
    return [
        "" if one is None or one.scratch else _text(one.demos, reached_at(demos, curve, score), demos)
        for one, score in zip(known, scores, strict=True)
    ]


def _text(num_demos: int, needed: float, demos: Sequence[int]) -> str:
    if needed > demos[-1]:
        return f"more than {demos[-1]} demonstrations instead of {num_demos}"
    if round(needed) <= demos[0]:
        return f"at most {demos[0]} demonstrations instead of {num_demos}"
    return f"{needed:.0f} demonstrations instead of {num_demos}"
