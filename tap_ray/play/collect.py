"""Collects episodes in one process and without Ray: every attempt is a pure function of (plan, index).

`attempt` numbers count attempts, episode numbers count kept episodes. Play keeps every attempt, unless a simulator
crashes; then the crash is recorded with its reason and another attempt replaces it.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Iterator, Sequence

import gymnasium as gym
import numpy as np

from tap_ray.config import to_dict
from tap_ray.crashes import MAX_FIRST_CRASHES, isolated, never_works
from tap_ray.dataset.encode import encode_episode
from tap_ray.errors import ConfigError, TapRayError, nearest
from tap_ray.play.explorers import (
    EXPLORERS,
    MIXED,
    ExplorerConfig,
    choices,
    explorer_values,
    make_explorer,
    needs_memory,
    pick,
)
from tap_ray.play.multi_arm import MultiArmExplorer, split_workspace
from tap_ray.play.novelty import RoundVisitCounts, VisitCounts, episode_visits
from tap_ray.play.safe_poses import SamplePoses, build_library
from tap_ray.rng import generator, seed_of
from tap_ray.rollout import PerRobot, rollout
from tap_ray.specs import ONE_CAMERA, ArmSlots
from tap_ray.types import PLAY_TASK, EnvConfig, Episode, Explorer, Trajectory

MakeVector = Callable[[EnvConfig, int], gym.vector.VectorEnv]
CountsBefore = Callable[[int], VisitCounts | None]
"""Function from a round to the visits that it may use; it is called only for rounds for which they are known."""
NO_SIMULATOR = "The simulator does not work on this machine: fix that, or try another --sim."


@dataclass(frozen=True, kw_only=True)
class CollectPlan:
    """What play is collected: exactly the settings that an episode's bytes depend on."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(robot_mask=True))
    """Robot, scene, image size, steps of an episode, masks."""
    explorer: str = "visual"
    """Name of the explorer that moves the robots; see the top of play/explorers.py."""
    explorers: ExplorerConfig = field(default_factory=ExplorerConfig)
    """Constants of the explorers."""
    seed: int = 0
    """Root of the seed tree."""
    jpeg_quality: int = 90
    """Quality of the stored JPEG images, 1 to 95."""
    round_episodes: int = 32
    """Episodes in a round of the shared novelty memory."""

    def __post_init__(self) -> None:
        for name in choices(self.explorer, self.explorers):
            if name not in EXPLORERS:
                raise ConfigError(f"Unknown explorer {name!r}. {nearest(name, (*EXPLORERS, MIXED))}")

    @property
    def needs_memory(self) -> bool:
        """Whether its robots share a novelty memory."""
        return needs_memory(self.explorer, self.explorers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a dataset's header; an explorer of an installed package with its version."""
        values = {**plan_values(self), "explorers": explorer_values(self.explorer, self.explorers)}
        found = dict.fromkeys(EXPLORERS.package(name) for name in choices(self.explorer, self.explorers))
        packages = ", ".join(package for package in found if package)
        return {"kind": "play", **values, **({"explorer_package": packages} if packages else {})}


def plan_values(plan: Any) -> dict[str, Any]:
    """Plain JSON values of a plan. The option `segmentation` is left out, because segmentations are never recorded.

    Disabled randomization, an empty partner and a single camera are left out too, so that datasets from before these
    options existed still have the same plan.
    """
    values = to_dict(plan)
    del values["env"]["segmentation"]
    if values["env"]["randomize"] is None:
        del values["env"]["randomize"]
    if not values["env"]["partner"]:
        del values["env"]["partner"]
    if plan.env.cameras == ONE_CAMERA:
        del values["env"]["cameras"]
    return values


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """The outcome of one attempt."""

    attempt: int
    episode: Episode | None
    """The episode; None if it is not kept, and `reason` says why."""
    reason: str = ""


class VectorEnvCache:
    """Caches vector environments; each is built when its task is first used, and again after a crash, which costs only
    the attempt that causes it."""

    def __init__(self, make_vector: MakeVector, num_robots: int) -> None:
        """Each environment steps `num_robots` robots side by side in this process."""
        if num_robots < 1:
            raise ConfigError(f"A fleet needs at least 1 robot; got {num_robots}.")
        self._make_vector = make_vector
        self.num_robots = num_robots
        self._envs: dict[EnvConfig, gym.vector.VectorEnv] = {}
        self._works, self._crashes = False, 0

    def run(self, play: Callable[[Sequence[int]], list[AttemptResult]], attempts: Sequence[int]) -> list[AttemptResult]:
        """Run a batch of attempts with `play`; a crash costs only the attempt that causes it.

        Raises:
            TapRayError: no attempt has been finished in this process, and MAX_FIRST_CRASHES have crashed alone.
        """

        def finished(some: Sequence[int]) -> list[AttemptResult]:
            outcomes = play(some)
            self._works = True
            return outcomes

        def crashed(attempt: int, error: Exception) -> list[AttemptResult]:
            reason = f"{type(error).__name__}: {error}"
            self._crashes += 1
            if self._crashes >= MAX_FIRST_CRASHES and not self._works:
                raise never_works(self._crashes, reason, NO_SIMULATOR) from error
            return [AttemptResult(attempt=attempt, episode=None, reason=f"crashed: {reason}")]

        parts = isolated(finished, attempts, crashed, restart=self.close)
        return [outcome for part in parts for outcome in part]

    def of(self, config: EnvConfig) -> gym.vector.VectorEnv:
        """The environment for `config`.

        Raises:
            TapRayError: the first one cannot be made, which no attempt is to blame for.
        """
        if config not in self._envs:
            try:
                self._envs[config] = self._make_vector(config, self.num_robots)
            except Exception as error:
                if self._works or isinstance(error, TapRayError):
                    raise
                raise TapRayError(
                    f"The simulator {config.sim!r} does not start on this machine with --robots-per-fleet "
                    f"{self.num_robots}: {type(error).__name__}: {error}. Fix that, or try fewer robots."
                ) from error
        return self._envs[config]

    def close(self) -> None:
        """End the simulators; the next `of` starts new ones, even if ending these raises an error."""
        ended, self._envs = self._envs, {}
        for env in ended.values():
            env.close()


def in_batches(
    attempts: Sequence[int], num_robots: int, num_tasks: int = 1, *, span: int | None = None
) -> list[list[int]]:
    """Cut attempts into batches of up to `num_robots`, each of one task (attempt number modulo `num_tasks`).

    Batches come in the order of their first attempt; the attempts of a batch lie less than `span` apart (None: no
    limit).
    """
    batches: list[list[int]] = []
    for task in range(num_tasks):
        batch: list[int] = []
        for attempt in (a for a in attempts if a % num_tasks == task):
            if not batch or len(batch) == num_robots or (span is not None and attempt - batch[0] >= span):
                batch = []
                batches.append(batch)
            batch.append(attempt)
    return sorted(batches)


def pad_batch(attempts: Sequence[int], num_robots: int) -> list[int]:
    """Pad a batch to the number of robots; surplus robots repeat the last attempt and are ignored."""
    return [*attempts, *[attempts[-1]] * (num_robots - len(attempts))]


class PlayFleet:
    """Robots that play, in one process."""

    def __init__(
        self,
        plan: CollectPlan,
        make_vector: MakeVector,
        sample_poses: SamplePoses,
        *,
        num_robots: int = 1,
        arms: Sequence[ArmSlots],
        memory: CountsBefore | None = None,
    ) -> None:
        """Build the safe-pose libraries and, as a check, its explorers; the simulators start with the first episode.

        Args:
            plan: what to collect.
            make_vector: `envs.make_ee_control`: explorers move end effectors.
            sample_poses: `envs.kinematics.reachable.sample_poses`.
            num_robots: robots side by side in this process; does not change any episode.
            arms: the arms of each robot, from its spec.
            memory: the run's novelty memory; None if there are no visits yet.

        Raises:
            ConfigError: an explorer cannot be used with these constants, or no safe pose is reachable.
        """
        self.plan = plan
        self.robots = VectorEnvCache(make_vector, num_robots)
        self._memory = memory
        self._arms, self._motions = arms, split_workspace(plan.explorers.motion, len(arms))
        self._libraries = [
            build_library(
                plan.explorers.safe_poses,
                partial(sample_poses, arm=arm) if arm else sample_poses,
                plan.env,
                seed=plan.seed,
                low_m=motion.bounds_low_m,
                high_m=motion.bounds_high_m,
            )
            for arm, motion in enumerate(self._motions)
        ]
        for name in choices(plan.explorer, plan.explorers):
            self._explorer(name, {})

    def _explorer(self, name: str, visits: VisitCounts) -> Explorer:
        """The explorer called `name` for all arms of a robot."""
        explorers = [
            make_explorer(name, replace(self.plan.explorers, motion=motion), arm=arm, library_M7=library, visits=visits)
            for arm, motion, library in zip(self._arms, self._motions, self._libraries, strict=True)
        ]
        return explorers[0] if len(explorers) == 1 else MultiArmExplorer(explorers, self._motions)

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """Run these attempts, at most one per robot."""
        rounds = {attempt // self.plan.round_episodes for attempt in attempts}
        seen = {number: self._seen(number) for number in rounds}
        return self.robots.run(lambda some: self._play(some, seen), attempts)

    def _seen(self, number: int) -> VisitCounts:
        if self._memory is None or not self.plan.needs_memory:
            return {}
        visits = self._memory(number)
        assert visits is not None, f"round {number} cannot be played yet"
        return visits

    def _play(self, attempts: Sequence[int], seen: dict[int, VisitCounts]) -> list[AttemptResult]:
        plan, all_attempts = self.plan, pad_batch(attempts, self.robots.num_robots)
        names = [pick(plan.explorer, plan.explorers, generator(plan.seed, "play", a, "pick")) for a in all_attempts]
        explorers = [
            self._explorer(name, seen[a // plan.round_episodes]) for name, a in zip(names, all_attempts, strict=True)
        ]
        env_seeds = [seed_of(plan.seed, "play", a, "env") for a in all_attempts]
        result = rollout(
            self.robots.of(plan.env),
            PerRobot(explorers),
            env_seeds=env_seeds,
            policy_seeds=[seed_of(plan.seed, "play", a, "explorer") for a in all_attempts],
        )
        return [
            AttemptResult(attempt=a, episode=encode_play(plan, trajectory, a, name=name, seed=seed))
            for a, trajectory, name, seed in zip(attempts, result.trajectories, names, env_seeds, strict=False)
        ]


def encode_play(plan: CollectPlan, trajectory: Trajectory, attempt: int, *, name: str, seed: int) -> Episode:
    """Encode one trajectory of play as an episode, with the metadata that a report needs."""
    drawn = {f"random_{key}": value for key, value in trajectory.drawn.items()}
    meta = {"attempt": attempt, "seed": seed, "explorer": name, "embodiment": plan.env.robot, **drawn}
    return encode_episode(trajectory, index=attempt, task=PLAY_TASK, meta=meta, jpeg_quality=plan.jpeg_quality)


def visits_of(plan: CollectPlan, outcome: AttemptResult, *, arms: Sequence[ArmSlots]) -> VisitCounts:
    """The visits that an attempt adds to the novelty memory; none if it was dropped."""
    if outcome.episode is None or not plan.needs_memory:
        return {}
    episode = outcome.episode
    ee_pos_T3 = np.concatenate([episode.state[:, arm.ee_pos] for arm in arms])
    return episode_visits(ee_pos_T3, episode.object_pose, str(episode.meta["objects"]), plan.explorers.curious.leaf_m)


def check_robots(plan: CollectPlan, num_robots: int) -> None:
    """Raise an error if the rounds of the novelty memory are too short for this number of robots in a fleet.

    Raises:
        ConfigError: a fleet's batch would span rounds that wait for each other.
    """
    if plan.needs_memory and num_robots > plan.round_episodes:
        raise ConfigError(
            f"{num_robots} robots in a fleet need round_episodes >= {num_robots}; got {plan.round_episodes}. Raise "
            "--round-episodes (it changes the data), or use fewer robots, or an explorer without memory."
        )


def collect(
    plan: CollectPlan,
    make_vector: MakeVector,
    sample_poses: SamplePoses,
    *,
    arms: Sequence[ArmSlots],
    num_episodes: int,
    num_robots: int = 1,
) -> Iterator[Episode]:
    """Collect `num_episodes` episodes in this process, in order; dropped attempts are skipped. Other arguments as for
    `PlayFleet`."""
    check_robots(plan, num_robots)
    memory = RoundVisitCounts(plan.round_episodes)
    fleet = PlayFleet(plan, make_vector, sample_poses, arms=arms, num_robots=num_robots, memory=memory.before)
    attempt = kept = 0
    try:
        while kept < num_episodes:
            batch = list(range(attempt, attempt + min(num_robots, num_episodes - kept)))
            for outcome in fleet.run(batch):
                memory.add(visits_of(plan, outcome, arms=arms))
                if outcome.episode is not None:
                    yield replace(outcome.episode, index=kept)
                    kept += 1
            attempt += len(batch)
    finally:
        fleet.robots.close()
