"""Combines several arms at one table, each with its own explorer, into one explorer.

The table is divided along y, arm 0 (the left one) first. An arm stays in its own part and sees the objects that lie
there, so that arms never collide. H arms.
"""

from dataclasses import replace
from typing import Any, Sequence

import numpy as np

from tap_ray.play.motion import MotionConfig
from tap_ray.types import Explorer, Info, Observation

GAP_M = 0.06
"""Gap between the parts of the table of two arms, m: half the width of a gripper."""


def split_workspace(motion: MotionConfig, num_arms: int) -> list[MotionConfig]:
    """Divide the safety box B among the arms from left (+y) to right."""
    if num_arms == 1:
        return [motion]
    (x0, y0, z0), (x1, y1, z1) = motion.bounds_low_m, motion.bounds_high_m
    wide = (y1 - y0 - GAP_M * (num_arms - 1)) / num_arms
    left = [y1 - arm * (wide + GAP_M) for arm in range(num_arms)]
    return [replace(motion, bounds_low_m=(x0, top - wide, z0), bounds_high_m=(x1, top, z1)) for top in left]


class MultiArmExplorer:
    """An explorer for H arms, made of H explorers for one arm."""

    def __init__(self, explorers: Sequence[Explorer], motions: Sequence[MotionConfig]) -> None:
        """`motions` holds each arm's part of the table."""
        self._explorers, self._motions = list(explorers), list(motions)

    def reset(self, obs: Observation, info: Info, rng: np.random.Generator) -> None:
        """Begin an episode; each arm draws from its own random generator."""
        for arm, (explorer, arm_rng) in enumerate(zip(self._explorers, rng.spawn(len(self._explorers)), strict=True)):
            explorer.reset(*self._seen(obs, info, arm), arm_rng)

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """The actions (7 H,) of all arms."""
        return np.concatenate(
            [explorer.act(*self._seen(obs, info, arm)) for arm, explorer in enumerate(self._explorers)]
        )

    def _seen(self, obs: Observation, info: Info, arm: int) -> tuple[Observation, dict[str, Any]]:
        """The info of one arm: its own last motion, the objects in its part of the table, and all other entries."""
        low, high = self._motions[arm].bounds_low_m[1], self._motions[arm].bounds_high_m[1]
        names = str(info["object_name"]).split(",")
        near = [low <= pose[1] <= high for pose in info["object_pose"]]
        arm_info = {
            "ee_action": np.split(info["ee_action"], len(self._explorers))[arm],
            "object_name": ",".join(name if here else "" for name, here in zip(names, near, strict=True)),
        }
        return obs, {**info, **arm_info}
