"""Checks whether a Stage 1 run is good enough for Stage 2: compares its held-out metrics with those of good runs.

The thresholds are a little below what runs on 3,200 episodes of contact play reached: contact .84, release .53 and next
step .19 after 3,000 steps (docs/results/pointing.md), yaw .55 after 1,500 (docs/results/turning.md). Contact point
and yaw predicted best what Stage 2 would gain; probes of object positions alone were misleading.
"""

from dataclasses import dataclass
from typing import Mapping

NAME = "play"


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A held-out metric and its target value."""

    metric: str
    what: str
    """The metric in words."""
    aim: float
    cure: str
    """What to do if it is too low."""


AIMS = (
    Aim(metric="r2_contact", what="contact point", aim=0.75, cure="collect more episodes or train longer"),
    Aim(
        metric="r2_yaw",
        what="gripper's yaw at the grasp",
        aim=0.4,
        cure="train longer, without --policy.glimpse-px 0",
    ),
    Aim(metric="r2_release", what="release point", aim=0.5, cure="collect more play that carries and releases objects"),
    Aim(metric="r2_mean", what="translation of the next step", aim=0.15, cure="train longer"),
)
"""Targets for the next-object objective; those of inverse dynamics, which sees where the end effector went, are
higher."""
INVERSE_AIMS = (
    Aim(metric="r2_mean", what="translation between two images", aim=0.9, cure="train longer"),
    Aim(metric="gripper_accuracy", what="gripper", aim=0.9, cure="collect more play that opens and closes the gripper"),
)


def readiness(metrics: Mapping[str, float]) -> str:
    """One line: "ready", or what is missing and what to do; "" if there are no such metrics.

    Args:
        metrics: the last held-out metrics of a Stage 1 run, "play/r2_contact" and so on.
    """
    aims = AIMS if f"{NAME}/r2_contact" in metrics else INVERSE_AIMS
    found = {aim: metrics[f"{NAME}/{aim.metric}"] for aim in aims if f"{NAME}/{aim.metric}" in metrics}
    if not found:
        return ""
    short = {aim: value for aim, value in found.items() if not value >= aim.aim}
    if not short:
        told = ", ".join(f"{aim.what} {value:.2f}" for aim, value in found.items())
        return f"Stage 1 is ready: held-out R^2 of {told}."
    told = "; ".join(
        f"{aim.what} is {value:.2f} (at least {aim.aim:g} is needed; {aim.cure})" for aim, value in short.items()
    )
    return f"Stage 1 is not ready: {told}."
