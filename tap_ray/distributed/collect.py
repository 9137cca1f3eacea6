"""Collection on many machines: a crew of fleets, one writer in the driver, every episode exactly once.

    attempts -> blocks -> [ fleet 0 | fleet 1 | ... ] -> put in order -> DatasetWriter
                   ^                                           |
                   '--------- novelty memory by round ---------'

An attempt is a pure function of (plan, number), so a fleet that dies costs a re-run (crew.py). An attempt that takes
its process down every time is dropped with that reason. A block is given out only once the novelty memory of its
rounds is known, and brings it along: fleets wait for nobody.
"""

import pickle
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator, Mapping, Protocol, Sequence

import ray

from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import gauges, placement
from tap_ray.distributed.crew import Crew, GivenUp
from tap_ray.distributed.placement import Pool
from tap_ray.play.collect import Outcome, in_batches
from tap_ray.play.novelty import RoundMemory, Visits
from tap_ray.play.schedule import Schedule
from tap_ray.progress_bar import progress_bar

BLOCK_BATCHES = 8
"""Batches that a fleet is given at a time, where there are enough to share out: each hand-over costs the machine as
much as a few control steps (docs/results/log.md)."""

Block = tuple[tuple[int, ...], ...]
"""Batches of attempts."""


class Player(Protocol):
    """Robots in one process: `play.collect.PlayFleet` or `play.demos.DemoFleet`."""

    def run(self, attempts: Sequence[int]) -> list[Outcome]:
        """One outcome for each attempt."""
        ...


class Fleet:
    """A process of robots (a Ray actor)."""

    def __init__(self, make_player: Callable[[Any], Player]) -> None:
        self._make_player = make_player
        self._player: Player | None = None
        self._seen: dict[int, Visits] = {}

    def ready(self) -> None:
        """Build the robots, so that what is wrong with them is an error before the first attempt."""
        self._player = self._make_player(self._seen.__getitem__)

    def run(self, block: Block, memory: Mapping[int, Any]) -> bytes:
        """Pickled outcomes of a block; `memory`: references to the novelty memory of its rounds.

        Pickled, because arrays would stay views into the driver's object store until their turn has come.
        """
        assert self._player is not None
        for number in [number for number in self._seen if number not in memory]:
            del self._seen[number]
        self._seen |= {number: ray.get(there) for number, there in memory.items() if number not in self._seen}
        return pickle.dumps([outcome for batch in block for outcome in self._player.run(list(batch))])


class Rounds:
    """The run's novelty memory, as the driver hands it out."""

    def __init__(self, memory: RoundMemory | None) -> None:
        """`memory`: None if its robots need none."""
        self._memory = memory
        self._shared: dict[int, Any] = {}

    def known(self, block: Block) -> bool:
        """Whether a block's last round can be played yet."""
        return self._memory is None or max(self._numbers(block)) <= self._memory.current + 1

    def references(self, block: Block) -> dict[int, Any]:
        """Round -> its memory in the object store."""
        if self._memory is None:
            return {}
        for old in [number for number in self._shared if number < self._memory.current]:
            del self._shared[old]
        numbers = self._numbers(block)
        for number in numbers - self._shared.keys():
            self._shared[number] = ray.put(self._memory.before(number))
        return {number: self._shared[number] for number in numbers}

    def _numbers(self, block: Block) -> set[int]:
        assert self._memory is not None
        return {attempt // self._memory.round_episodes for batch in block for attempt in batch}


def play_out(
    make_player: Callable[[Any], Player],
    batches: Sequence[Sequence[int]],
    pool: Pool,
    memory: RoundMemory | None = None,
) -> Iterator[Outcome]:
    """Play batches of attempts on a crew of fleets; outcomes come as they are ready, in any order. Ray is connected.

    Args:
        make_player: builds a fleet's robots in its process, given its novelty memory; must pickle.
        batches: attempts, at most one a robot.
        pool: fleets and robots.
        memory: novelty memory, to which the caller adds what comes in, in order; None: robots need none.

    Raises:
        TapRayError: what a fleet raised, or see `Crew.work`.
    """
    wanted = placement.selector(pool.labels)
    cpus = placement.num_fleets(wanted)
    fleets = min(pool.fleets or cpus, len(batches))
    needs = placement.Needs(cpus=placement.share(min(fleets, cpus), wanted), labels=wanted)
    actor = ray.remote(**needs.options())(Fleet)
    crew = Crew(
        start=lambda: actor.remote(make_player),
        num_fleets=fleets,
        split=parts,
        needs=needs,
        ahead=1,  # fleets must not wait for the driver's writer
        patience=pool.patience,
    )
    rounds = Rounds(memory)
    blocks = in_blocks(batches, fleets, pool.robots, memory.round_episodes if memory else None)
    for block, result in crew.work(blocks, may_begin=rounds.known, extra=lambda block: (rounds.references(block),)):
        if isinstance(result, GivenUp):
            yield Outcome(attempt=block[0][0], episode=None, reason=result.reason)
        else:
            yield from pickle.loads(result)


def parts(block: Block) -> list[Hashable]:
    """A block's attempts one by one; none if it is one."""
    attempts = [attempt for batch in block for attempt in batch]
    return [((attempt,),) for attempt in attempts] if len(attempts) > 1 else []


def in_blocks(batches: Sequence[Sequence[int]], fleets: int, robots: int, round_episodes: int | None) -> list[Block]:
    """Cut batches into the blocks that fleets are given at a time.

    With a novelty memory only two rounds are in play: blocks are so short that a round has one for each fleet, and the
    attempts of one lie less than a round apart, so that it never waits for itself, whatever is left to play.
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
class Tally:
    """What has come in during this call."""

    episodes: int = 0
    frames: int = 0
    contact_frames: int = 0
    seconds: float = 0.0
    spilled_bytes: int = 0
    """Written to disk by the cluster's object stores meanwhile, because they were full; of all jobs."""

    @property
    def frames_s(self) -> float:
        """Control steps a second, all fleets together."""
        return self.frames / max(self.seconds, 1e-9)

    @property
    def contact_rate(self) -> float:
        """Part of the frames with a finger on an object."""
        return self.contact_frames / max(self.frames, 1)


class Collection:
    """One run of collection: what to try, where to write, what to remember."""

    def __init__(
        self,
        writer: DatasetWriter,
        schedule: Schedule,
        *,
        memory: RoundMemory | None = None,
        visits_of: Callable[[Outcome], Visits] | None = None,
        control_hz: float = 5.0,
    ) -> None:
        """Go on from what the data set has committed.

        Args:
            writer: of the data set, opened.
            schedule: what is wanted.
            memory: novelty memory of explorers that need one, else None.
            visits_of: what an outcome adds to the memory.
            control_hz: of the robots, for "times real time".
        """
        self.writer, self.schedule, self.memory = writer, schedule, memory
        self._visits_of, self._control_hz = visits_of, control_hz
        self.tally = Tally()
        if writer.progress:
            schedule.restore(writer.progress["schedule"])
            if memory is not None:
                self.memory = RoundMemory.from_json(writer.progress["memory"])

    def run(self, make_player: Callable[[Any], Player], pool: Pool, *, progress: bool = True) -> Tally:
        """Collect until enough is kept and committed.

        Args:
            make_player: builds a fleet's robots in its process, given its novelty memory; must pickle.
            pool: fleets and robots.
            progress: whether to draw a bar.

        Raises:
            DataError: a task's attempts keep failing, or episodes do not fit the data set.
            TapRayError: what a fleet's robots raised.
            StorageError: the disk refused; what was committed before is whole.
        """
        start, spilled = time.monotonic(), placement.spilled_bytes()
        total = self.schedule.num_tasks * self.schedule.episodes
        with progress_bar(total=total, initial=self.writer.appended, unit="episode", disable=not progress) as bar:
            while pending := self.schedule.pending():
                for outcome in self._in_order(pending, make_player, pool):
                    self._take(outcome)
                    self.tally.seconds = time.monotonic() - start
                    self._show(bar)
        self.writer.commit()
        self.tally.spilled_bytes = max(0, placement.spilled_bytes() - spilled)
        return self.tally

    def _in_order(self, pending: list[int], make_player: Callable[[Any], Player], pool: Pool) -> Iterator[Outcome]:
        """Outcomes of `pending` in its order."""
        order, waiting = iter(pending), dict[int, Outcome]()
        span = self.memory.round_episodes if self.memory is not None else None
        batches = in_batches(pending, pool.robots, self.schedule.num_tasks, span=span)
        due = next(order)
        for outcome in play_out(make_player, batches, pool, self.memory):
            waiting[outcome.attempt] = outcome
            while due in waiting:
                yield waiting.pop(due)
                due = next(order, -1)
            gauges.show("tap_writer_lag_episodes", len(waiting), run=str(self.writer.path))
        assert not waiting, f"nobody asked for {list(waiting)[:5]}"

    def _take(self, outcome: Outcome) -> None:
        """Write an outcome, and remember what it saw."""
        self.schedule.record(outcome.attempt, None if outcome.episode else outcome.reason)
        if self.memory is not None and self._visits_of is not None:
            self.memory.add(self._visits_of(outcome))
        run = str(self.writer.path)
        if outcome.episode is None:
            gauges.count("tap_episodes_dropped", run=run)
        else:
            self.writer.append(replace(outcome.episode, index=self.writer.appended), self._progress())
            gauges.count("tap_episodes", run=run)
            gauges.count("tap_frames", len(outcome.episode), run=run)
            self.tally.episodes += 1
            self.tally.frames += len(outcome.episode)
            self.tally.contact_frames += int(outcome.episode.contact.sum())

    def _progress(self) -> Mapping[str, Any]:
        memory = {"memory": self.memory.to_json()} if self.memory is not None else {}
        return {"schedule": self.schedule.to_json(), **memory}

    def _show(self, bar: Any) -> None:
        tally, dropped = self.tally, len(self.schedule.dropped)
        text = (
            f"{tally.frames_s:.0f} frames/s, {tally.frames_s / self._control_hz:.0f}x real time, "
            f"contact {tally.contact_rate:.0%}" + (f", {dropped} dropped" if dropped else "")
        )
        bar.set_postfix_str(text, refresh=False)
        bar.update(self.writer.appended - bar.n)
