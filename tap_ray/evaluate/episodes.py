"""Runs cells in one process; `tap_ray.distributed.evaluate` runs many of these side by side."""

from dataclasses import dataclass
from typing import Callable, Iterable, Sequence

import gymnasium as gym
import numpy as np

from tap_ray.crashes import isolated
from tap_ray.evaluate.failures import FailureInputs, failure_of, first_moved
from tap_ray.evaluate.protocol import Protocol, policy_seed
from tap_ray.rollout import Rollout, rollout
from tap_ray.types import Cell, EnvConfig, EpisodeResult, Policy

MakeVector = Callable[[EnvConfig, int], gym.vector.VectorEnv]
"""Function (scene, number of robots) -> that many robots in lockstep."""
MakePolicy = Callable[[EnvConfig, int], Policy]
"""Function (scene, number of robots) -> the evaluated policy, for that many robots at once."""
MakeFailureInputs = Callable[[EnvConfig], FailureInputs]
"""Function from a scene to the inputs of its failure rules."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The images of one cell, from which videos are made."""

    result: EpisodeResult
    rgb: np.ndarray
    """(T, Y, X, 3) uint8."""
    instruction: str


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """The results of a chunk of cells."""

    results: list[EpisodeResult]
    clips: list[Clip]
    """The first success and the first failure of the chunk."""


class EpisodeRunner:
    """The robots of one fleet, kept between chunks that share a scene."""

    def __init__(
        self,
        protocol: Protocol,
        make_vector: MakeVector,
        make_policy: MakePolicy,
        make_failure_inputs: MakeFailureInputs,
    ) -> None:
        self._protocol, self._make_vector, self._make_policy = protocol, make_vector, make_policy
        self._make_failure_inputs = make_failure_inputs
        self._scene: tuple[EnvConfig, int] | None = None
        self._robots: tuple[gym.vector.VectorEnv, Policy] | None = None

    def run(self, cells: Sequence[Cell]) -> ChunkResult:
        """Run cells of one task and scenario, one robot each; a crash costs only the cell that causes it.

        A cell that crashes alone is a failure whose `error` says why; it counts in every denominator.
        """
        parts = isolated(self._run_batch, cells, _without_result, restart=self.close)
        return ChunkResult(
            results=[r for p in parts for r in p.results], clips=_first([c for p in parts for c in p.clips])
        )

    def close(self) -> None:
        """End the simulators."""
        robots, self._scene, self._robots = self._robots, None, None
        if robots is not None:
            robots[0].close()

    def _run_batch(self, cells: Sequence[Cell]) -> ChunkResult:
        scene = self._protocol.env_config(cells[0].task, cells[0].scenario, cells[0].partner)
        env, policy = self._at(scene, len(cells))
        done = rollout(
            env,
            policy,
            env_seeds=[cell.seed for cell in cells],
            policy_seeds=[policy_seed(self._protocol.seed, cell) for cell in cells],
        )
        return _score(cells, done, self._make_failure_inputs(scene))

    def _at(self, scene: EnvConfig, num_robots: int) -> tuple[gym.vector.VectorEnv, Policy]:
        """The robots in this scene; those of the previous chunk if they fit."""
        if self._robots is None or self._scene != (scene, num_robots):
            self.close()
            self._robots = self._make_vector(scene, num_robots), self._make_policy(scene, num_robots)
            self._scene = (scene, num_robots)
        return self._robots


def _score(cells: Sequence[Cell], done: Rollout, inputs: FailureInputs) -> ChunkResult:
    """One result for each of N trajectories."""
    clips = [
        Clip(
            rgb=trajectory.rgb,
            instruction=trajectory.instruction,
            result=EpisodeResult(
                cell=cell,
                partial_once=bool(trajectory.partial.any()),
                entire_once=bool(trajectory.entire.any()),
                partial_end=bool(trajectory.partial[-1]),
                entire_end=bool(trajectory.entire[-1]),
                num_steps=len(trajectory),
                num_clipped=trajectory.num_clipped,
                seconds=done.seconds / len(cells),
                policy_ms=1e3 * done.policy_seconds / done.num_calls,
                failure=failure_of(trajectory, inputs),
                first_moved=first_moved(trajectory, inputs),
            ),
        )
        for cell, trajectory in zip(cells, done.trajectories, strict=True)
    ]
    return ChunkResult(results=[clip.result for clip in clips], clips=_first(clips))


def _first(clips: Sequence[Clip]) -> list[Clip]:
    """The first success and the first failure."""
    wins = [clip for clip in clips if clip.result.entire_once]
    losses = [clip for clip in clips if not clip.result.entire_once]
    return wins[:1] + losses[:1]


def crashed(cell: Cell, reason: str) -> EpisodeResult:
    """The failure that stands for a cell that could not be finished."""
    return EpisodeResult(
        cell=cell,
        partial_once=False,
        entire_once=False,
        partial_end=False,
        entire_end=False,
        num_steps=0,
        num_clipped=0,
        seconds=0.0,
        policy_ms=0.0,
        error=reason,
        failure="crashed",
    )


def _without_result(cell: Cell, error: Exception) -> ChunkResult:
    return ChunkResult(results=[crashed(cell, f"{type(error).__name__}: {error}")], clips=[])


def chunks(cells: Iterable[Cell], size: int) -> list[list[Cell]]:
    """Group cells of the same task, scenario and partner into chunks of at most `size`, whose sizes differ by at most
    one."""
    scenes: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        scenes.setdefault((cell.task, cell.scenario, cell.partner), []).append(cell)
    return [
        [same[i] for i in part]
        for same in scenes.values()
        for part in np.array_split(np.arange(len(same)), -(-len(same) // size))
    ]
