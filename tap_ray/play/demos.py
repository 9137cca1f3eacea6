"""Collects demonstrations: scripted experts attempt tasks, and the attempts that succeed are kept."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Sequence

import numpy as np

from tap_ray.config import FORMER, keys_renamed
from tap_ray.dataset.encode import encode_episode
from tap_ray.errors import ConfigError
from tap_ray.play.collect import (
    AttemptResult,
    MakeVector,
    VectorEnvCache,
    pad_batch,
    plan_values,
)
from tap_ray.rng import seed_of
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig, Policy, Trajectory

MakeExpert = Callable[[EnvConfig, int], Policy]
"""Type of `envs.make_expert`, which makes the expert of the config's task for a number of robots."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What demonstrations are collected: exactly the settings that an episode's bytes depend on."""

    tasks: tuple[str, ...]
    """Tasks, in the order in which their episodes alternate."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Robot, image size, steps of an episode; its task is replaced by each of `tasks`."""
    partners: tuple[str, ...] = ()
    """For each of `tasks`, the task whose objects are on the table as well (EnvConfig.partner); empty: none."""
    seed: int = 0
    """Root of the seed tree."""
    jpeg_quality: int = 90
    """Quality of the stored JPEG images, 1 to 95."""
    success_hold_steps: int = 8
    """A demonstration ends when the task has been done for this many steps in a row; at least 1."""

    def __post_init__(self) -> None:
        if not self.tasks or len({env.task + env.partner for env in self.scenes}) != len(self.tasks):
            raise ConfigError(f"tasks must name at least one task, each once; got {list(self.tasks)}.")
        if not 1 <= self.success_hold_steps <= self.env.max_steps:
            raise ConfigError(
                f"success_hold_steps must be in 1 .. max_steps = {self.env.max_steps}; got {self.success_hold_steps}."
            )

    @property
    def scenes(self) -> list[EnvConfig]:
        """The scene of each of `tasks`.

        Raises:
            ConfigError: some tasks have a partner and others none.
        """
        partners = self.partners or ("",) * len(self.tasks)
        if len(partners) != len(self.tasks):
            raise ConfigError(
                f"Either each of the {len(self.tasks)} tasks has a partner, or none has; got {list(partners)}."
            )
        return [replace(self.env, task=t, partner=p) for t, p in zip(self.tasks, partners, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a dataset's header, in the format of older datasets: former names, and partners only if
        there are any."""
        values = {"kind": "demos", **keys_renamed(plan_values(self), FORMER)}
        return values if self.partners else {key: value for key, value in values.items() if key != "partners"}


class DemoFleet:
    """Robots driven by experts, in one process."""

    def __init__(
        self, plan: DemoPlan, make_vector: MakeVector, make_expert: MakeExpert, *, num_robots: int = 1
    ) -> None:
        """Prepare `num_robots` robots side by side; the simulators start with the first episode."""
        self.plan = plan
        self.robots = VectorEnvCache(make_vector, num_robots)
        self._make_expert = make_expert

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """Run these attempts, at most one per robot, all of one task: the attempt number modulo the number of tasks."""
        return self.robots.run(self._attempt, attempts)

    def _attempt(self, attempts: Sequence[int]) -> list[AttemptResult]:
        plan, num_robots = self.plan, self.robots.num_robots
        number = attempts[0] % len(plan.tasks)
        assert all(attempt % len(plan.tasks) == number for attempt in attempts), "a batch is of one task"
        config = plan.scenes[number]
        env_seeds = [seed_of(plan.seed, "demos", attempt, "env") for attempt in pad_batch(attempts, num_robots)]
        result = rollout(
            self.robots.of(config),
            self._make_expert(config, num_robots),
            env_seeds=env_seeds,
            policy_seeds=[
                seed_of(plan.seed, "demos", attempt, "expert") for attempt in pad_batch(attempts, num_robots)
            ],
            settle=plan.success_hold_steps,
        )
        outcomes = []
        for attempt, seed, trajectory in zip(attempts, env_seeds, result.trajectories, strict=False):
            length = steps_until_done(trajectory.entire, plan.success_hold_steps)
            if length is None:
                outcomes.append(AttemptResult(attempt=attempt, episode=None, reason=_why(trajectory)))
                continue
            trajectory = head(trajectory, length)
            meta = {
                "attempt": attempt,
                "seed": seed,
                "explorer": "expert",
                "embodiment": config.robot,
                "task": config.task,
                **({"partner": config.partner} if config.partner else {}),
            }
            episode = encode_episode(
                trajectory, index=attempt, task=trajectory.instruction, meta=meta, jpeg_quality=plan.jpeg_quality
            )
            outcomes.append(AttemptResult(attempt=attempt, episode=episode))
        return outcomes


def steps_until_done(entire_T: np.ndarray, success_hold_steps: int) -> int | None:
    """Steps until the task has been done for `success_hold_steps` in a row; None if that never happens.

    It uses one robot's steps only, so a demonstration does not depend on the other robots in the process.
    """
    run = 0
    for step, entire in enumerate(entire_T):
        run = run + 1 if entire else 0
        if run == success_hold_steps:
            return step + 1
    return None


def head(trajectory: Trajectory, num_steps: int) -> Trajectory:
    """The first steps of a trajectory."""
    arrays = {f.name: getattr(trajectory, f.name) for f in fields(trajectory)}
    return replace(trajectory, **{k: v[:num_steps] for k, v in arrays.items() if isinstance(v, np.ndarray)})


def _why(trajectory: Trajectory) -> str:
    """Why an attempt is not a demonstration, as one of a few reasons that can be counted."""
    if trajectory.entire.any():
        return "done, but not long enough"
    if trajectory.partial.any():
        return "partly done only"
    return "the object was never grasped"
