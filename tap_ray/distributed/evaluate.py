"""Runs evaluations with fleets: Ray actors run chunks of cells, and the driver stores every result as it comes.

    cells -> chunks -> [ fleet 0 | fleet 1 | ... ] -> episodes.jsonl, clips/        (resume: cells stored are not run)

A fleet is one process with several robots in lockstep and one copy of the policy, so inference is batched over its
robots; or it asks a process that computes the policy for several fleets (inference.py). When a process dies or hangs,
the cells of its chunk are run again one by one in new processes; a cell that kills several of them while it runs alone
is a failure with a reason. The loss of a machine or of memory is never a result: its cells are run again
(actor_pool.py).
"""

from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import ray

from tap_ray import logs
from tap_ray.crashes import MAX_FIRST_CRASHES, never_works
from tap_ray.distributed import gauges, inference, placement
from tap_ray.distributed.actor_pool import ActorPool, GivenUp
from tap_ray.distributed.faults import Timeouts
from tap_ray.errors import ConfigError
from tap_ray.evaluate import results as store
from tap_ray.evaluate import video
from tap_ray.evaluate.episodes import (
    ChunkResult,
    EpisodeRunner,
    MakeFailureInputs,
    MakePolicy,
    MakeVector,
    chunks,
    crashed,
)
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.settings import InferenceConfig
from tap_ray.progress_bar import progress_bar
from tap_ray.types import Cell, EpisodeResult


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How many processes and robots run an evaluation, and where. The protocol does not depend on it."""

    fleets: int = 0
    """Number of processes; 0: see `placement.num_fleets`."""
    robots: int = 12
    """Number of robots in a process, stepped in lockstep; the policy sees them as one batch. Fewer robots per process
    keep more processes busy."""
    gpus: float = 0.0
    """GPUs (or a share of one) for each fleet's own copy of the policy, and for its robots; 0: none."""
    gpu_scenes: bool = False
    """Whether the robots need a GPU."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Processes that compute the policy for all fleets."""
    labels: tuple[str, ...] = ()
    """KEY=VALUE that a node must have; none: any node."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """How long a fleet may take for a chunk."""


class Fleet:
    """One process of robots (a Ray actor)."""

    def __init__(
        self,
        protocol: Protocol,
        make_vector: MakeVector,
        make_failure_inputs: MakeFailureInputs,
        make_policy: MakePolicy,
    ) -> None:
        self._protocol, self._make_policy = protocol, make_policy
        self._robots = EpisodeRunner(protocol, make_vector, make_policy, make_failure_inputs)

    def ready(self) -> None:
        """Load the policy once, so that a missing or broken one is an error before the first cell."""
        self._make_policy(self._protocol.env_config(self._protocol.tasks[0], self._protocol.scenarios[0]), 1)

    def run(self, cells: Sequence[Cell]) -> ChunkResult:
        """See `EpisodeRunner.run`."""
        return self._robots.run(cells)


def evaluate(
    protocol: Protocol,
    *,
    make_vector: MakeVector,
    make_policy: MakePolicy,
    make_failure_inputs: MakeFailureInputs,
    folder: Path,
    config: FleetConfig | None = None,
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run every cell of a protocol that has no result in `folder` yet. Ray must be connected.

    Args:
        protocol: the cells.
        make_vector: builds a fleet's robots; must pickle.
        make_policy: builds the evaluated policy in the fleet's process, or in those of `config.inference`; must pickle.
        make_failure_inputs: builds the inputs of the failure rules for a scene; must pickle.
        folder: gets `episodes.jsonl` and `clips/`, as results come.
        config: fleets and robots.
        progress: whether to draw a bar.

    Returns:
        One result for each cell, in the protocol's order.

    Raises:
        ConfigError: the fleet settings are invalid, or no machine has the GPUs.
        TapRayError: the policy cannot be loaded, or the disk refused; or all episodes crash, at least
            MAX_FIRST_CRASHES in more than one scene, or all there are. Then no result is stored.
    """
    config = config or FleetConfig()
    validate_settings(config)
    all_cells = cells(protocol)
    done = store.stored(folder / "episodes.jsonl")
    done = {cell: done[cell] for cell in all_cells if cell in done}
    # Robots in one batch change each other's last bits, so a resumed evaluation uses the same groups, on
    # any number of fleets.
    parts = [part for part in chunks(all_cells, config.robots) if not done.keys() >= set(part)]
    if parts:
        scene = protocol.env_config(protocol.tasks[0], protocol.scenarios[0])
        with inference.policies(make_policy, scene, config.inference) as policies:
            pool = _pool((protocol, make_vector, make_failure_inputs), policies, config, len(parts))
            with progress_bar(total=len(all_cells), initial=len(done), unit="episode", disable=not progress) as bar:
                played = (_result(chunk, result) for chunk, result in pool.map_unordered(map(tuple, parts)))
                works = any(not episode.error for episode in done.values())
                for result in played if works else _once_one_works(played):
                    new = _store(folder, result, done)
                    done |= {episode.cell: episode for episode in new}
                    _show(bar, len(new), done)
    logs.join(folder / "episodes.jsonl")
    return [done[cell] for cell in all_cells]


def _result(chunk: Sequence[Cell], result: ChunkResult | GivenUp) -> ChunkResult:
    if isinstance(result, GivenUp):
        return ChunkResult(results=[crashed(cell, result.reason) for cell in chunk], clips=[])
    return result


def _once_one_works(results: Iterator[ChunkResult]) -> Iterator[ChunkResult]:
    """The same results, none of them before an episode has not crashed. Raises an error if all crash, and that is not
    one scene's own fault."""
    held: list[ChunkResult] = []
    episodes: list[EpisodeResult] = []
    for result in results:
        held.append(result)
        episodes += result.results
        if any(not episode.error for episode in result.results):
            yield from held
            yield from results
            return
        scenes = {(episode.cell.task, episode.cell.scenario, episode.cell.partner) for episode in episodes}
        if len(episodes) >= MAX_FIRST_CRASHES and len(scenes) > 1:
            break
    cure = "The simulator or the policy does not work: fix that, and run the command again."
    raise never_works(len(episodes), episodes[-1].error, cure)


def _store(folder: Path, result: ChunkResult, done: Mapping[Cell, EpisodeResult]) -> list[EpisodeResult]:
    """Store the results of a chunk's cells that have none yet; returns these results."""
    new = [episode for episode in result.results if episode.cell not in done]
    store.append(folder / "episodes.jsonl", new)
    gauges.count("tap_episodes", len(new), run=str(folder))
    gauges.count("tap_frames", sum(episode.num_steps for episode in new), run=str(folder))
    for clip in result.clips:
        video.keep(folder / "clips", clip)
    return new


def _pool(make: tuple[Any, ...], policies: Sequence[MakePolicy], config: FleetConfig, num_chunks: int) -> ActorPool:
    """The pool of fleets for a number of chunks. Fleets take turns at `policies`; `make` holds the other arguments of
    `Fleet`."""
    place = placement.selector(config.labels)
    instead = "a simulator that needs no GPU (--sim maniskill)" if config.gpu_scenes else "0 to compute on CPUs"
    placement.require_gpus(config.gpus, flag="--gpus-per-fleet", labels=place, instead=instead)
    fleets, needs = placement.of_fleets(config.fleets, num_chunks, place, config.gpus)
    actor = ray.remote(**needs.options())(Fleet)
    least_s = inference.INFERENCE_TIMEOUT_S if config.inference.actors else 0.0
    shared = [ray.put(part) for part in make]
    turns = cycle([ray.put(policy) for policy in policies])  # a policy may contain its weights: store it once
    return ActorPool(
        start=lambda: actor.remote(*shared, next(turns)),
        num_fleets=fleets,
        split=lambda chunk: [(cell,) for cell in chunk] if len(chunk) > 1 else [],
        needs=needs,
        timeouts=replace(config.timeouts, least_s=max(config.timeouts.least_s, least_s)),
    )


def validate_settings(config: FleetConfig) -> None:
    """Raise a ConfigError for invalid fleet settings."""
    if config.fleets < 0 or config.robots < 1:
        raise ConfigError(
            f"--fleets must be at least 0 and --robots-per-fleet at least 1; got {config.fleets} and {config.robots}."
        )
    shared = config.inference
    if shared.actors and config.gpus and not config.gpu_scenes:
        raise ConfigError(
            f"--gpus-per-fleet {config.gpus:g} has no effect with --inference.actors {shared.actors}: fleets then hold "
            "no policy. Use --inference.gpus instead."
        )
    if shared.gpus and not shared.actors:
        raise ConfigError(
            f"--inference.gpus {shared.gpus:g} has no effect without --inference.actors. Add --inference.actors N, one "
            "for each GPU, or use --gpus-per-fleet."
        )


def _show(bar: Any, num_new: int, done: dict[Cell, EpisodeResult]) -> None:
    entire = sum(result.entire_once for result in done.values()) / len(done)
    errors = sum(bool(result.error) for result in done.values())
    bar.set_postfix_str(f"entire {entire:.0%}" + (f", {errors} crashed" if errors else ""), refresh=False)
    bar.update(num_new)
