"""Defines the protocol that a policy is evaluated on, and its hash. Results with different hashes are never compared.

A protocol is a list of cells (task, scenario, initial state, seed), the same for every policy, so that differences
between policies are paired. An initial state has one seed in every scenario, so scenarios are paired as well.
"""

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping

from tap_ray.config import digest
from tap_ray.errors import ConfigError, nearest
from tap_ray.rng import seed_of
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import Cell, EnvConfig

SUCCESS = "once"
"""The success rule of every protocol: true at any step, as the paper and SIMPLER count; the state at the end is stored
beside it."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The common settings of the tasks of a suite."""

    num_states: int = 0
    """Number of initial states of each task that the suite enumerates; the seed of each is its index. Further states
    are drawn."""
    longer: Mapping[str, int] = field(default_factory=dict)
    """Task -> factor of the protocol's number of steps."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of tasks whose objects share a table; each initial state of a pair is evaluated with both instructions."""


SUITES = {
    "tabletop": Suite(),
    "tabletop_mixed": Suite(
        pairs=(
            ("put_spoon_on_cloth", "put_carrot_on_plate"),
            ("put_carrot_on_plate", "push_pumpkin_left"),
            ("push_pumpkin_left", "stack_green_on_yellow"),
            ("stack_green_on_yellow", "put_eggplant_in_basket"),
            ("put_eggplant_in_basket", "put_spoon_on_cloth"),
        ),
    ),
    # arXiv 2607.02466: 60 steps, 120 for the eggplant, 24 episodes a task
    "foreign": Suite(),  # an environment of --env
    "simpler": Suite(num_states=24, longer={"put_eggplant_in_basket": 2}),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Exactly the settings that define what is evaluated: no policy, no machine, no number of workers."""

    tasks: tuple[str, ...]
    """Tasks, each evaluated in every scenario."""
    env_version: str
    """Version of the simulated scenes; results of different versions have different protocols."""
    suite: str = "tabletop"
    """A key of SUITES."""
    scenarios: tuple[str, ...] = ("standard",)
    """Scenarios; "standard" changes nothing."""
    episodes: int = 24
    """Cells of each task in each scenario. Nested: the first 24 of 100 are the 24."""
    seed: int = 0
    """Root of the cells' seeds, at the node "evaluate" of the seed tree, which neither play nor demonstrations use."""
    max_steps: int = 60
    """Control steps of an episode, which always runs to its end; the suite multiplies them for some tasks."""
    image_size: int = 96
    """Side of the camera images that the policy receives, px."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """Cameras whose images the policy receives."""
    robot: str = "widowx"
    """Embodiment."""
    sim: str = "pybullet"
    """Simulator."""

    @property
    def hash(self) -> str:
        """16 hex digits over the cells (in any order) and all that they share."""
        shared = {key: value for key, value in self.to_json(with_hash=False).items() if key not in _IN_CELLS}
        named = sorted(
            [c.task, c.scenario, c.initial_state, c.seed, *([c.partner] * bool(c.partner))] for c in cells(self)
        )
        return digest({**shared, "cells": named})

    def to_json(self, *, with_hash: bool = True) -> dict[str, Any]:
        """Plain values for results.json."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        if self.cameras == ONE_CAMERA:  # protocols from before there were several cameras keep their hashes
            del values["cameras"]
        values["success"] = SUCCESS
        return {"hash": self.hash, **values} if with_hash else values

    def partners(self, task: str) -> list[str]:
        """The evaluated tasks that share a table with `task`."""
        pairs = [pair for pair in SUITES[self.suite].pairs if task in pair and set(pair) <= set(self.tasks)]
        return [other for pair in pairs for other in pair if other != task]

    def env_config(self, task: str, scenario: str, partner: str = "") -> EnvConfig:
        """The scene of one task in one scenario, with another task's objects or without."""
        return EnvConfig(
            task=task,
            partner=partner,
            scenario=scenario,
            robot=self.robot,
            sim=self.sim,
            image_size=self.image_size,
            cameras=self.cameras,
            max_steps=self.max_steps * SUITES[self.suite].longer.get(task, 1),
        )


_IN_CELLS = ("tasks", "scenarios", "episodes", "seed")


def cells(protocol: Protocol) -> list[Cell]:
    """All cells, ordered by task, scenario and initial state."""
    return [
        _cell(protocol, task, scenario, state)
        for task in protocol.tasks
        for scenario in protocol.scenarios
        for state in range(protocol.episodes)
    ]


def _cell(protocol: Protocol, task: str, scenario: str, state: int) -> Cell:
    """Partners alternate; both tasks of a pair have the same seed for the same initial state."""
    partners = protocol.partners(task)
    if partners:
        partner = partners[state % len(partners)]
        pair = "+".join(sorted((task, partner)))
        seed = seed_of(protocol.seed, "evaluate", pair, state // len(partners))
        return Cell(task=task, scenario=scenario, initial_state=state, seed=seed, partner=partner)
    enumerated = state < SUITES[protocol.suite].num_states
    seed = state if enumerated else seed_of(protocol.seed, "evaluate", task, state)
    return Cell(task=task, scenario=scenario, initial_state=state, seed=seed)


def policy_seed(protocol_seed: int, cell: Cell) -> int:
    """Seed of the policy's own noise in a cell; it depends only on the cell."""
    return seed_of(protocol_seed, "evaluate_policy", cell.task, cell.scenario, cell.initial_state)


def check(
    protocol: Protocol, *, known_tasks: Iterable[str], check_scene: Callable[[EnvConfig], object] | None = None
) -> None:
    """Raise an error unless the protocol can be run.

    Args:
        protocol: the requested protocol.
        known_tasks: tasks of the suite.
        check_scene: raises if a scene cannot be made; called for each task and scenario.

    Raises:
        ConfigError: a suite or task is unknown (with the nearest match), a name is given twice, or there are no cells.
    """
    if protocol.suite not in SUITES:
        raise ConfigError(f"Unknown suite {protocol.suite!r}. {nearest(protocol.suite, SUITES)}")
    known = list(known_tasks)
    for task in protocol.tasks:
        if task not in known:
            raise ConfigError(f"Unknown task {task!r}. {nearest(task, known)}")
    for kind, names in (("task", protocol.tasks), ("scenario", protocol.scenarios)):
        if len(set(names)) < len(names) or not names:
            raise ConfigError(f"Name at least one {kind}, and each only once; got {list(names)}.")
    for name in ("episodes", "max_steps", "image_size"):
        if getattr(protocol, name) < 1:
            raise ConfigError(f"{name} must be at least 1; got {getattr(protocol, name)}.")
    if SUITES[protocol.suite].pairs:
        _check_pairs(protocol)
    if check_scene is not None:
        for cell in {(c.task, c.scenario, c.partner): c for c in cells(protocol)}.values():
            check_scene(protocol.env_config(cell.task, cell.scenario, cell.partner))


def _check_pairs(protocol: Protocol) -> None:
    """Raise an error unless every scene is evaluated with both instructions."""
    counts = {task: len(protocol.partners(task)) for task in protocol.tasks}
    most = max(counts.values())
    if not most or set(counts.values()) != {most}:
        pairs = ", ".join(" + ".join(pair) for pair in SUITES[protocol.suite].pairs)
        raise ConfigError(
            f"The suite {protocol.suite!r} evaluates each scene under the sentences of both its tasks. Name all "
            f"tasks, or one of the pairs {pairs}; got {', '.join(protocol.tasks)}."
        )
    if protocol.episodes % most:
        raise ConfigError(
            f"Each task shares the table with {most} other tasks in turn, so --episodes must be a multiple of {most}; "
            f"got {protocol.episodes}."
        )
