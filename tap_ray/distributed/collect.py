"""Collects on many machines with a pool of fleets and writers; every episode is written exactly once.

    attempts -> blocks -> [ fleet 0 | fleet 1 | ... ] -> put in order -> writers.py: the driver, or processes
                   ^                                           |
                   '--------- novelty memory by round ---------'

An attempt is a pure function of (plan, number), so a fleet that dies costs a re-run (actor_pool.py). An attempt that
kills its process every time is dropped with that reason. A block is sent to a fleet only when the novelty memory of its
rounds is known, and contains it, so fleets never wait for each other.
"""

import pickle
import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Iterator, Mapping, Protocol, Sequence

import ray

from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import gauges, placement
from tap_ray.distributed.actor_pool import ActorPool, GivenUp, SideTask
from tap_ray.distributed.placement import Pool
from tap_ray.distributed.sink import Block, Played, Source
from tap_ray.distributed.writers import sink_of
from tap_ray.errors import StorageError
from tap_ray.play.collect import AttemptResult, in_batches
from tap_ray.play.novelty import RoundVisitCounts, VisitCounts
from tap_ray.play.schedule import Schedule
from tap_ray.progress_bar import progress_bar

BLOCK_BATCHES = 8
"""Batches that a fleet is given at a time, if there are enough of them: each call costs as much as a few control steps
(docs/results/log.md)."""

VisitsOf = Callable[[AttemptResult], VisitCounts]
"""Function from an outcome to the visits that it adds to the novelty memory."""


class Player(Protocol):
    """Robots in one process: `play.collect.PlayFleet` or `play.demos.DemoFleet`."""

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """Run the attempts and return one outcome for each."""
        ...


class Fleet:
    """A process of robots (a Ray actor)."""

    def __init__(self, make_player: Callable[[Any], Player], visits_of: VisitsOf | None = None) -> None:
        self._make_player, self._visits_of = make_player, visits_of
        self._player: Player | None = None
        self._seen: dict[int, VisitCounts] = {}

    def ready(self) -> None:
        """Build the robots, so that a problem with them is an error before the first attempt."""
        self._player = self._make_player(self._seen.__getitem__)

    def run(self, block: Block, memory: Mapping[int, Any]) -> tuple[list[Played], list[bytes]]:
        """Return what the driver needs to know of a block's attempts, and their pickled episodes. `memory` holds
        references to the novelty memory of its rounds.

        Pickled, because arrays would stay views into the object store until their turn has come.
        """
        assert self._player is not None
        for number in [number for number in self._seen if number not in memory]:
            del self._seen[number]
        self._seen |= {number: ray.get(counts) for number, counts in memory.items() if number not in self._seen}
        outcomes = [outcome for batch in block for outcome in self._player.run(list(batch))]
        episodes = [b"" if outcome.episode is None else pickle.dumps(outcome.episode) for outcome in outcomes]
        played = [self._played(outcome, len(episode)) for outcome, episode in zip(outcomes, episodes, strict=True)]
        return played, episodes

    def _played(self, outcome: AttemptResult, num_bytes: int) -> Played:
        played = Played(attempt=outcome.attempt, reason=outcome.reason, num_bytes=num_bytes)
        if outcome.episode is not None:
            played = replace(
                played,
                kept=True,
                steps=len(outcome.episode),
                contact_steps=int(outcome.episode.contact.sum()),
                task=outcome.episode.task,
            )
        return replace(played, visits=dict(self._visits_of(outcome))) if self._visits_of else played


class FleetByReference(Fleet):
    """A fleet that returns its episodes by reference: they stay in its node's object store. The caller owns them, so
    they outlive the fleet."""

    @ray.method(num_returns=2)
    def run(self, block: Block, memory: Mapping[int, Any]) -> tuple[list[Played], list[bytes]]:
        """See `Fleet`."""
        return super().run(block, memory)


class Rounds:
    """The run's novelty memory by round, as the driver gives it to fleets."""

    def __init__(self, memory: RoundVisitCounts | None, oldest: Callable[[], int | None] = lambda: None) -> None:
        """Create the rounds of a run.

        Args:
            memory: novelty memory; None if the robots need none.
            oldest: the first attempt that may have to be played again, though its round is over; None: none.
        """
        self._memory, self._oldest = memory, oldest
        self._shared: dict[int, Any] = {}

    @property
    def round_episodes(self) -> int | None:
        """Number of episodes in a round; None without a memory."""
        return self._memory.round_episodes if self._memory else None

    def known(self, block: Block) -> bool:
        """Whether the memory of a block's last round is known."""
        return self._memory is None or max(self._numbers(block)) <= self._memory.current + 1

    def references(self, block: Block) -> dict[int, Any]:
        """Return round -> reference to its memory in the object store."""
        if self._memory is None:
            return {}
        oldest = self._oldest()
        needed = self._memory.current if oldest is None else min(self._memory.current, self._round(oldest))
        for old in [number for number in self._shared if number < needed]:
            del self._shared[old]
        numbers = self._numbers(block)
        for number in numbers - self._shared.keys():
            self._shared[number] = ray.put(self._memory.before(number))
        return {number: self._shared[number] for number in numbers}

    def _numbers(self, block: Block) -> set[int]:
        return {self._round(attempt) for batch in block for attempt in batch}

    def _round(self, attempt: int) -> int:
        assert self._memory is not None
        return attempt // self._memory.round_episodes


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How a pool runs attempts: the novelty memory, and where the episodes stay."""

    rounds: Rounds = field(default_factory=lambda: Rounds(None))
    visits_of: VisitsOf | None = None
    by_reference: bool = False
    """Whether episodes stay where they were played."""
    may_begin: Callable[[Block], bool] = lambda block: True
    side_task: SideTask | None = None


def run_attempts(
    make_player: Callable[[Any], Player],
    batches: Sequence[Sequence[int]],
    pool: Pool,
    options: PoolOptions | None = None,
) -> Iterator[Played]:
    """Run batches of attempts on a pool of fleets and yield outcomes in the order of completion.

    Ray must be connected.

    Args:
        make_player: builds a fleet's robots in its process, given its novelty memory; must pickle.
        batches: attempts, at most one a robot.
        pool: fleets and robots.
        options: novelty memory, to which the caller adds outcomes in order, and where episodes stay; None: no memory.

    Raises:
        TapRayError: what a fleet raised, or see `ActorPool.map_unordered`.
    """
    options, label_selector = options or PoolOptions(), placement.selector(pool.labels)
    fleets, needs = placement.of_fleets(pool.fleets, len(batches), label_selector, pool.gpus)
    actor = ray.remote(**needs.options())(FleetByReference if options.by_reference else Fleet)
    actors = ActorPool(
        start=lambda: actor.remote(make_player, options.visits_of),
        num_fleets=fleets,
        split=parts,
        needs=needs,
        ahead=1,  # fleets must not wait for the driver's writer
        timeouts=pool.timeouts,
    )
    for block, result in actors.map_unordered(
        in_blocks(batches, fleets, pool.robots, options.rounds.round_episodes),
        may_begin=lambda block: options.rounds.known(block) and options.may_begin(block),
        extra=lambda block: (options.rounds.references(block),),
        side_task=options.side_task,
    ):
        if isinstance(result, GivenUp):
            yield Played(attempt=block[0][0], reason=result.reason)
        else:
            outcomes, episodes = result
            for position, played in enumerate(outcomes):
                yield replace(played, source=Source(block=block, episodes=episodes, position=position))


def parts(block: Block) -> list[Hashable]:
    """Split a block into single attempts; empty if it has one attempt only."""
    attempts = [attempt for batch in block for attempt in batch]
    return [((attempt,),) for attempt in attempts] if len(attempts) > 1 else []


def in_blocks(batches: Sequence[Sequence[int]], fleets: int, robots: int, round_episodes: int | None) -> list[Block]:
    """Group batches into the blocks that fleets are given at a time.

    With a novelty memory only two rounds are open at a time. Blocks are short enough that a round has one for each
    fleet, and the attempts of a block lie less than a round apart, so that a block never waits for itself.
    """
    most = min(BLOCK_BATCHES, len(batches) // (BLOCK_BATCHES * fleets))
    if round_episodes is not None:
        most = min(most, round_episodes // (robots * fleets))
    blocks: list[list[tuple[int, ...]]] = []
    for batch in batches:
        fits = bool(blocks) and len(blocks[-1]) < most
        if fits and (round_episodes is None or batch[-1] - blocks[-1][0][0] < round_episodes):
            blocks[-1].append(tuple(batch))
        else:
            blocks.append([tuple(batch)])
    return [tuple(block) for block in blocks]


@dataclass(kw_only=True)
class CollectionStats:
    """Counts of what has been collected during this call."""

    episodes: int = 0
    frames: int = 0
    contact_frames: int = 0
    seconds: float = 0.0
    spilled_bytes: int = 0
    """Bytes that the cluster's object stores wrote to disk meanwhile because they were full, for all jobs."""

    @property
    def frames_s(self) -> float:
        """Control steps per second of all fleets together."""
        return self.frames / max(self.seconds, 1e-9)

    @property
    def contact_rate(self) -> float:
        """Share of the frames in which a finger touches an object."""
        return self.contact_frames / max(self.frames, 1)


class Collection:
    """One run of collection: schedule, writer and novelty memory."""

    def __init__(
        self,
        writer: DatasetWriter,
        schedule: Schedule,
        *,
        memory: RoundVisitCounts | None = None,
        visits_of: VisitsOf | None = None,
        control_hz: float = 5.0,
    ) -> None:
        """Resume from the committed part of the dataset.

        Args:
            writer: open writer of the dataset.
            schedule: attempts to run.
            memory: novelty memory of explorers that need one; else None.
            visits_of: computes what an outcome adds to the memory; must pickle.
            control_hz: control rate of the robots, Hz, to report the speed as a multiple of real time.
        """
        self.writer, self.schedule, self.memory = writer, schedule, memory
        self._visits_of, self._control_hz = visits_of if memory is not None else None, control_hz
        self.stats = CollectionStats()
        self._left: set[int] = set()
        """Attempts of the present generation that have not been taken."""
        self._taking = False
        if writer.progress:
            schedule.restore(writer.progress["schedule"])
            if memory is not None:
                self.memory = RoundVisitCounts.from_json(writer.progress["memory"])

    def run(self, make_player: Callable[[Any], Player], pool: Pool, *, progress: bool = True) -> CollectionStats:
        """Collect until enough episodes are kept and committed.

        Args:
            make_player: builds a fleet's robots in its process, given its novelty memory; must pickle.
            pool: fleets, robots and writers.
            progress: whether to draw a bar.

        Raises:
            DataError: a task's attempts keep failing, or episodes do not fit the dataset.
            TapRayError: what a fleet's robots raised.
            StorageError: the disk refused; all committed data is intact.
        """
        start, spilled = time.monotonic(), placement.spilled_bytes()
        total = self.schedule.num_tasks * self.schedule.episodes
        self._sink = sink_of(self.writer, pool)
        rounds = Rounds(self.memory, oldest=lambda: self._sink.oldest)
        options = PoolOptions(
            rounds=rounds,
            visits_of=self._visits_of,
            by_reference=self._sink.by_reference,
            may_begin=self._may_begin,
            side_task=self._sink,
        )
        play = partial(run_attempts, make_player, pool=pool, options=options)
        with progress_bar(total=total, initial=self.writer.appended, unit="episode", disable=not progress) as bar:
            try:
                while pending := self.schedule.pending():
                    for played in self._in_order(pending, play, pool):
                        self.take(played)
                        self.stats.seconds = time.monotonic() - start
                        self._show(bar)
                while lost := self._sink.finish(self._progress):
                    for played in play([batch for block in lost for batch in block]):
                        self._arrive(played, {})
                self._show_lag(0)
            except StorageError:
                raise
            except BaseException:
                self._sink.commit_partial(None if self._taking else self._progress)
                raise
            finally:
                self._sink.close()
        self.stats.spilled_bytes = max(0, placement.spilled_bytes() - spilled)
        return self.stats

    def _in_order(self, pending: list[int], play: Callable[..., Iterator[Played]], pool: Pool) -> Iterator[Played]:
        """Yield the outcomes of `pending` in its order."""
        order, waiting = iter(pending), dict[int, Played]()
        span = self.memory.round_episodes if self.memory is not None else None
        self._left, self._due = set(pending), next(order)
        for played in play(in_batches(pending, pool.robots, self.schedule.num_tasks, span=span)):
            self._arrive(played, waiting)
            while self._due in waiting:
                self._left.remove(self._due)
                yield waiting.pop(self._due)
                self._due = next(order, -1)
            self._show_lag(len(waiting))
        assert not waiting, f"outcomes of attempts that are not pending: {list(waiting)[:5]}"

    def _may_begin(self, block: Block) -> bool:
        """Whether a block may begin: there is memory for its episodes, or it is the next one in order."""
        return (
            not self._sink.full
            or block[0][0] <= self._due
            or any(self._sink.wants_again(attempt) for batch in block for attempt in batch)
        )

    def _arrive(self, played: Played, waiting: dict[int, Played]) -> None:
        """Store an outcome until it is next in order; of a repeated attempt, keep only a lost episode."""
        if played.attempt in self._left:
            if played.attempt not in waiting:
                self._sink.arrived(played)
            waiting[played.attempt] = played
        elif self._sink.wants_again(played.attempt):
            self._sink.restore(played)

    def take(self, played: Played) -> None:
        """Write an attempt's episode, and add its visits to the novelty memory."""
        self._taking = True
        self.schedule.record(played.attempt, None if played.kept else played.reason)
        if self.memory is not None:
            self.memory.add(played.visits)
        run = str(self.writer.path)
        if not played.kept:
            gauges.count("tap_episodes_dropped", run=run)
        else:
            self._sink.add(played, self._progress)
            gauges.count("tap_episodes", run=run)
            gauges.count("tap_frames", played.steps, run=run)
            self.stats.episodes += 1
            self.stats.frames += played.steps
            self.stats.contact_frames += played.contact_steps
        self._taking = False

    def _show_lag(self, waiting: int) -> None:
        """Update the metric of episodes that wait for their turn or to be written."""
        gauges.show("tap_writer_lag_episodes", waiting + self._sink.backlog, run=str(self.writer.path))

    def _progress(self) -> Mapping[str, Any]:
        memory = {"memory": self.memory.to_json()} if self.memory is not None else {}
        return {"schedule": self.schedule.to_json(), **memory}

    def _show(self, bar: Any) -> None:
        stats, dropped = self.stats, len(self.schedule.dropped)
        text = f"{stats.frames_s:.0f} frames/s, {stats.frames_s / self._control_hz:.0f}x real time"
        text += f", contact {stats.contact_rate:.0%}" if self.writer.header.contact else ""
        text += f", {dropped} dropped" if dropped else ""
        bar.set_postfix_str(text, refresh=False)
        bar.update(self._sink.num_episodes - bar.n)
