"""Holds the novelty memory: counts of the voxels that a run's robots have visited, shared by all of them, in rounds.

An episode must be determined by (plan, index) alone, on any machine. Its memory is therefore not "all visits so far"
but the visits of all episodes of the rounds before the previous one: round r sees rounds 0 .. r-2. The round in between
keeps every robot busy while the last episodes of a round are still being collected.

    round      0      1      2      3
    sees       -      -      0     0,1
"""

from collections import Counter
from typing import Any, Mapping

import numpy as np

from tap_ray.play.safe_poses import voxel_of

VisitCounts = Mapping[str, int]
"""Cell -> control steps spent in it. A cell is "hand:i,j,k" or "<object>:i,j,k" with the voxel's indices."""

END_EFFECTOR = "hand"
"""Name of the end effector in the keys of cells; collections that are resumed hold such keys."""


def cells_of(name: str, pos_m: np.ndarray, leaf_m: float) -> Counter[str]:
    """Count the cells of positions (T, 3), m, of the end effector or object called `name`."""
    voxel, count = np.unique(voxel_of(pos_m, leaf_m).reshape(-1, 3), axis=0, return_counts=True)
    return Counter({cell(name, v): int(c) for v, c in zip(voxel, count, strict=True)})


def cell(name: str, voxel: np.ndarray) -> str:
    """Key of one voxel (3,) of the end effector or object called `name`."""
    return f"{name}:{voxel[0]},{voxel[1]},{voxel[2]}"


def episode_visits(ee_pos_T3: np.ndarray, object_pose_TM7: np.ndarray, objects: str, leaf_m: float) -> Counter[str]:
    """Count the cells that an episode visited: those of the end effector and of every object.

    Args:
        ee_pos_T3: tool positions, m.
        object_pose_TM7: privileged object poses.
        objects: the M slots' names joined by ",", as in `info["object_name"]`.
        leaf_m: edge of a cell, m.
    """
    visits = cells_of(END_EFFECTOR, ee_pos_T3, leaf_m)
    for slot, name in enumerate(objects.split(",")):
        if name:
            visits += cells_of(name, object_pose_TM7[:, slot, :3], leaf_m)
    return visits


def novelty(count: int) -> float:
    """1 / sqrt(1 + n): the usual bonus of count-based exploration (Bellemare et al. 2016, arXiv 1606.01868)."""
    return float((1 + count) ** -0.5)


class RoundVisitCounts:
    """Visit counts by round; see the top of this file. Episodes are added in index order."""

    def __init__(self, round_episodes: int) -> None:
        """Start empty. `round_episodes` is the number of episodes in a round."""
        self.round_episodes = round_episodes
        self.num_added = 0
        """Number of episodes added so far: the index of the next one."""
        self._past: Counter[str] = Counter()
        self._rounds: dict[int, Counter[str]] = {}

    @property
    def current(self) -> int:
        """Round of the next episode to be added; the memory of earlier rounds is not needed any more."""
        return self.num_added // self.round_episodes

    def add(self, visits: VisitCounts) -> None:
        """Add the visits of episode `num_added`; an episode that was dropped adds {}."""
        self._rounds.setdefault(self.current, Counter()).update(visits)
        self.num_added += 1
        for number in [number for number in self._rounds if number <= self.current - 2]:
            self._past.update(self._rounds.pop(number))

    def before(self, number: int) -> VisitCounts | None:
        """Visits of rounds 0 .. number - 2, or None while some of their episodes are missing.

        Args:
            number: a round from `current` on.
        """
        assert number >= self.current, f"round {number} is over: {self.current} is being played"
        if number > self.current + 1:
            return None
        seen = Counter(self._past)
        for earlier, visits in self._rounds.items():
            if earlier <= number - 2:
                seen.update(visits)
        return dict(seen)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        rounds = {str(number): dict(visits) for number, visits in self._rounds.items()}
        return {
            "round_episodes": self.round_episodes,
            "num_added": self.num_added,
            "past": dict(self._past),
            "rounds": rounds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RoundVisitCounts":
        """Inverse of `to_json`."""
        memory = cls(data["round_episodes"])
        memory.num_added = data["num_added"]
        memory._past = Counter(data["past"])
        memory._rounds = {int(number): Counter(visits) for number, visits in data["rounds"].items()}
        return memory
