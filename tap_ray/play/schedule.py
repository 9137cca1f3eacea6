"""Decides which attempts to make until enough episodes are kept, in an order that depends only on their outcomes.

Attempt numbers run round-robin over the tasks: attempt a belongs to task a modulo `num_tasks`, so the first n episodes
of a dataset are balanced. They are made in generations: each has exactly as many attempts of each task as are missing,
so no attempt is wasted, and the dataset does not depend on which process makes them.
"""

from typing import Any, Mapping

from tap_ray.errors import DataError

MAX_TRIES = 4
"""A task is given up after this number of attempts per wanted episode (and 20 more)."""


class Schedule:
    """Counts attempts and kept episodes. Outcomes must be recorded in the order of `pending`."""

    def __init__(self, *, num_tasks: int, episodes: int) -> None:
        """`episodes` is the number of episodes of each of `num_tasks` tasks."""
        self.num_tasks = num_tasks
        self.episodes = episodes
        self.kept = [0] * num_tasks
        self.tried = [0] * num_tasks
        self._generation: list[int] = []
        self._done = 0
        self.dropped: list[tuple[int, str]] = []
        """Attempt and reason of every episode that was not kept."""

    def pending(self) -> list[int]:
        """The rest of the current generation, or a new one; empty when enough episodes are kept.

        Raises:
            DataError: a task fails again and again.
        """
        if self._done == len(self._generation):
            self._generation, self._done = self._next_generation(), 0
        return self._generation[self._done :]

    def _next_generation(self) -> list[int]:
        attempts = []
        for task in range(self.num_tasks):
            missing = self.episodes - self.kept[task]
            if missing > 0 and self.tried[task] >= MAX_TRIES * self.episodes + 20:
                raise DataError(self._hopeless(task))
            attempts += [
                number * self.num_tasks + task for number in range(self.tried[task], self.tried[task] + missing)
            ]
        return sorted(attempts)

    def _hopeless(self, task: int) -> str:
        reasons = [reason for attempt, reason in self.dropped if attempt % self.num_tasks == task]
        return (
            f"Only {self.kept[task]} of {self.tried[task]} attempts of task number {task} could be kept; the last "
            f"reason: {reasons[-1] if reasons else 'none given'}. Fix that, or request fewer episodes."
        )

    def record(self, attempt: int, reason: str | None) -> None:
        """Record the outcome of the next pending attempt. `reason` says why it was dropped; None keeps it."""
        assert attempt == self._generation[self._done], "outcomes come in order"
        task = attempt % self.num_tasks
        self._done += 1
        self.tried[task] += 1
        if reason is None:
            self.kept[task] += 1
        else:
            self.dropped.append((attempt, reason))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `restore` is the inverse."""
        return {
            "kept": list(self.kept),
            "tried": list(self.tried),
            "left": self._generation[self._done :] if self.num_tasks > 1 else [],
            "dropped": [list(pair) for pair in self.dropped],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continue from the values of `to_json`. With one task the rest of a generation follows from the counts
        alone."""
        self.kept, self.tried = list(data["kept"]), list(data["tried"])
        self._generation, self._done = list(data["left"]), 0
        self.dropped = [(int(attempt), str(reason)) for attempt, reason in data["dropped"]]
