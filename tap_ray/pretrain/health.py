"""Checks whether a Stage 1 run is good enough for Stage 2: compares its held-out metrics with those of good runs.

The thresholds are a little below what runs on 3,200 episodes of contact play reached: contact .84, release .53 and next
step .19 after 3,000 steps (docs/results/pointing.md), yaw .55 after 1,500 (docs/results/turning.md). Contact point
and yaw predicted best what Stage 2 would gain; probes of object positions alone were misleading.
"""

import math
from dataclasses import dataclass
from typing import Mapping

NAME = "play"
NEXT_OBJECT = ("r2_contact", "action_mse", "action_loss")
"""Metrics that runs with the next-object objective have, and those of inverse dynamics alone do not."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A held-out metric and the value that it should reach."""

    metric: str
    what: str
    """The metric in words."""
    least: float
    cure: str
    """What to do if it is too low."""
    of: str = ""
    """Training metric of runs that should have this one: they lack it where no held-out play shows such a target."""


THRESHOLDS = (
    Threshold(
        metric="r2_contact",
        what="contact point",
        least=0.75,
        cure="collect more episodes or train longer",
        of="reach_mse",
    ),
    Threshold(
        metric="r2_yaw",
        what="gripper's yaw at the grasp",
        least=0.4,
        cure="train longer, without --policy.glimpse-px 0",
    ),
    Threshold(
        metric="r2_release",
        what="release point",
        least=0.5,
        cure="collect more play that carries and releases objects",
        of="reach_mse",
    ),
    Threshold(metric="r2_mean", what="motion of the next step", least=0.15, cure="train longer"),
)
"""Thresholds for the next-object objective; those of inverse dynamics, which sees where the end effector went, are
higher."""
INVERSE_THRESHOLDS = (
    Threshold(metric="r2_mean", what="motion between two images", least=0.9, cure="train longer"),
    Threshold(
        metric="gripper_accuracy",
        what="accuracy of the gripper",
        least=0.9,
        cure="collect more play that opens and closes the gripper",
    ),
)


def readiness(metrics: Mapping[str, float]) -> str:
    """One line: "ready", or what is too low and what to do; "" if there are no such metrics.

    Args:
        metrics: the last held-out metrics of a Stage 1 run, "play/r2_contact" and so on.
    """
    have = {name.removeprefix(f"{NAME}/"): value for name, value in metrics.items() if name.startswith(f"{NAME}/")}
    thresholds = THRESHOLDS if any(name in have for name in NEXT_OBJECT) else INVERSE_THRESHOLDS
    if not any(each.metric in have for each in thresholds):
        return ""
    found = {each: have.get(each.metric, math.nan) for each in thresholds if {each.metric, each.of} & have.keys()}
    too_low = {each: value for each, value in found.items() if not value >= each.least}
    if not too_low:
        listed = ", ".join(f"{each.what} {value:.2f}" for each, value in found.items())
        return f"Stage 1 is ready: held-out R^2 of {listed}."
    listed = "; ".join(
        f"{each.what} is {f'{value:.2f}' if each.metric in have else 'unknown'} (at least {each.least:g} is needed; "
        f"{each.cure})"
        for each, value in too_low.items()
    )
    return f"Stage 1 is not ready: {listed}."
