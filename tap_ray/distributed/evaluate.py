"""Evaluation fleets: Ray actors that each run chunks of cells, while the driver stores every result as it comes.

    cells -> chunks -> [ fleet 0 | fleet 1 | ... ] -> episodes.jsonl, clips/        (resume: cells stored are not run)

A fleet is one process with several robots in lockstep and one copy of the policy, so inference is batched over its
robots. A chunk is given only to a fleet that has said it is ready: a fleet that the cluster has no room for waits and
blocks nobody. When a process dies, the cells of its chunk are run again one by one in fresh processes; a cell that
kills the process twice while it is alone there is a failure with a reason. Chunks of a machine that dies are run again.
"""

from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from tap_ray.distributed import placement
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.evaluate import results as store
from tap_ray.evaluate import video
from tap_ray.evaluate.episodes import Judged, MakeFacts, MakePolicy, MakeVector, Robots, chunks, crashed
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.progress_bar import progress_bar
from tap_ray.types import Cell, EpisodeResult

LIVES = 2
"""How often a cell may kill the process that runs it alone."""


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How many robots work on an evaluation, and where. It does not change any result's protocol."""

    fleets: int = 0
    """Processes; 0: one for each CPU of the cluster."""
    robots: int = 12
    """Robots in a process, stepped in lockstep; the policy sees them as one batch. Fewer of them keep more
    processes busy."""
    gpus: float = 0.0
    """GPUs (or a share of one) for each fleet's policy; 0: none."""
    labels: tuple[str, ...] = ()
    """KEY=VALUE that a node must have; none: any node."""


class Fleet:
    """One process of robots (a Ray actor)."""

    def __init__(
        self, protocol: Protocol, make_vector: MakeVector, make_policy: MakePolicy, make_facts: MakeFacts
    ) -> None:
        self._protocol, self._make_policy = protocol, make_policy
        self._robots = Robots(protocol, make_vector, make_policy, make_facts)

    def ready(self) -> None:
        """Load the policy once, so that a missing or broken one is an error before the first cell."""
        self._make_policy(self._protocol.env_config(self._protocol.tasks[0], self._protocol.scenarios[0]), 1)

    def run(self, cells: Sequence[Cell]) -> Judged:
        """See `Robots.run`."""
        return self._robots.run(cells)


def evaluate(
    protocol: Protocol,
    *,
    make_vector: MakeVector,
    make_policy: MakePolicy,
    make_facts: MakeFacts,
    folder: Path,
    config: FleetConfig | None = None,
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run every cell of a protocol that has no result in `folder` yet. Ray must be connected.

    Args:
        protocol: the cells.
        make_vector: builds a fleet's robots; must pickle.
        make_policy: builds the judged policy in the fleet's process; must pickle.
        make_facts: what tells why an episode failed; must pickle.
        folder: gets `episodes.jsonl` and `clips/`, as results come.
        config: fleets and robots.
        progress: whether to draw a bar.

    Returns:
        One result for each cell, in the protocol's order.

    Raises:
        ConfigError: fleets that cannot be, or that no machine has the GPUs for.
        TapRayError: the policy cannot be loaded, or the disk refused.
    """
    config = config or FleetConfig()
    require_sensible(config)
    wanted = cells(protocol)
    done = store.stored(folder / "episodes.jsonl")
    done = {cell: done[cell] for cell in wanted if cell in done}
    # Robots that share a pass through the network change each other's last bits: the same groups in every life, on
    # however many fleets.
    parts = [part for part in chunks(wanted, config.robots) if not done.keys() >= set(part)]
    if parts:
        require_gpus(config.gpus)
        place = placement.selector(config.labels)
        cpus = placement.num_fleets(place)
        fleets = config.fleets or cpus
        share = placement.share(min(fleets, cpus), place)
        # "DEFAULT": a trial of a sweep has a placement group, and fleets must not be squeezed into it.
        actor = ray.remote(num_cpus=share, num_gpus=config.gpus, label_selector=place, scheduling_strategy="DEFAULT")(
            Fleet
        )
        crew = _Crew(lambda: actor.remote(protocol, make_vector, make_policy, make_facts), min(fleets, len(parts)))
        with progress_bar(total=len(wanted), initial=len(done), unit="episode", disable=not progress) as bar:
            try:
                for judged in crew.work(parts):
                    new = [result for result in judged.results if result.cell not in done]
                    store.append(folder / "episodes.jsonl", new)
                    for clip in judged.clips:
                        video.keep(folder / "clips", clip)
                    done |= {result.cell: result for result in new}
                    _show(bar, len(new), done)
            finally:
                crew.dismiss()
    return [done[cell] for cell in wanted]


def require_sensible(config: FleetConfig) -> None:
    """Raise ConfigError for fleets that cannot be."""
    if config.fleets < 0 or config.robots < 1:
        raise ConfigError(
            f"--fleets is at least 0 and --robots-per-fleet at least 1; got {config.fleets} and {config.robots}."
        )


def require_gpus(gpus: float, *, flag: str = "--gpus-per-fleet") -> None:
    """Raise unless some machine of the cluster can hold a fleet: Ray would wait for one, without end."""
    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if gpus < 0 or (gpus > 1 and gpus % 1):
        raise ConfigError(f"{flag} is 0, a share of one GPU, or a whole number of them; got {gpus:g}.")
    if gpus > most:
        raise ConfigError(
            f"{flag} {gpus:g}: no machine of the Ray cluster has so many GPUs (the best has {most:g}). Ask "
            "for fewer, a share of one (e.g. 0.25), or 0 to run the policy on CPUs."
        )


def _show(bar: Any, num_new: int, done: dict[Cell, EpisodeResult]) -> None:
    entire = sum(result.entire_once for result in done.values()) / len(done)
    errors = sum(bool(result.error) for result in done.values())
    bar.set_postfix_str(f"entire {entire:.0%}" + (f", {errors} crashed" if errors else ""), refresh=False)
    bar.update(num_new)


def with_its_node(death: Exception) -> bool:
    """Whether a machine was lost, not a process: no cell is to blame, and a result on its way may be lost as well."""
    return isinstance(death, ObjectLostError) or "node has died" in str(death)


class _Crew:
    """Fleets and what each of them does now."""

    def __init__(self, start: Callable[[], Any], num_fleets: int) -> None:
        self._start = start
        self._busy: dict[Any, tuple[Any, list[Cell] | None]] = {}  # future -> fleet and its cells (None: it starts)
        self._idle: list[Any] = []
        self._deaths: Counter[Cell | None] = Counter()  # None: a fleet died before it was ready
        for _ in range(num_fleets):
            self._recruit()

    def work(self, todo: Iterable[list[Cell]]) -> Iterator[Judged]:
        """Yield what each chunk gave, as it comes, in any order."""
        left = deque(todo)
        while left or any(chunk for _, chunk in self._busy.values()):
            while left and self._idle:
                fleet, chunk = self._idle.pop(), left.popleft()
                self._busy[fleet.run.remote(chunk)] = (fleet, chunk)
            [future], _ = ray.wait(list(self._busy), num_returns=1)
            judged = self._collect(future, left)
            if judged is not None:
                yield judged

    def dismiss(self) -> None:
        """Stop every fleet."""
        for fleet in [*self._idle, *(fleet for fleet, _ in self._busy.values())]:
            ray.kill(fleet)

    def _recruit(self) -> None:
        fleet = self._start()
        self._busy[fleet.ready.remote()] = (fleet, None)

    def _collect(self, future: Any, left: deque[list[Cell]]) -> Judged | None:
        """What a finished call gave; None if a fleet has become ready, or has died and its cells wait again."""
        fleet, chunk = self._busy.pop(future)
        try:
            judged: Any = ray.get(future)
        except (RayActorError, OutOfMemoryError, ObjectLostError) as death:
            ray.kill(fleet)  # it may only be out of reach
            self._recruit()
            if not with_its_node(death):
                return self._mourn(chunk, " ".join(str(death).split()), left)
            left.extend([chunk] if chunk else [])
            return None
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, TapRayError) else error) from None
        self._idle.append(fleet)
        return judged

    def _mourn(self, chunk: list[Cell] | None, death: str, left: deque[list[Cell]]) -> Judged | None:
        """Queue the cells of a dead process one by one; a cell that killed often enough becomes a failure."""
        if chunk is None or len(chunk) == 1:
            culprit = chunk[0] if chunk else None
            self._deaths[culprit] += 1
            if self._deaths[culprit] >= LIVES and culprit is None:
                raise TapRayError(f"Evaluation fleets die before they are ready (out of memory?): {death}")
            if self._deaths[culprit] >= LIVES and culprit is not None:
                return Judged(results=[crashed(culprit, f"its process died {LIVES} times: {death}")], clips=[])
        left.extend([cell] for cell in chunk or [])
        return None
