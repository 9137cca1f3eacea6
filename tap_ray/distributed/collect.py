"""Collection on many machines: a Ray Data pool of fleets, one writer in the driver, every episode exactly once.

    attempts -> blocks -> [ fleet 0 | fleet 1 | ... ] -> put in order -> DatasetWriter        (Ray Data actor pool)
                                |                             |
                                '------- Notebook <-----------'     novelty memory by round; who is being played

An attempt is a pure function of (plan, number), so a fleet that dies costs a re-run: Ray restarts it and repeats what
it had in hand. An attempt that takes its process down every time is dropped with that reason.
"""

import logging
import pickle
import time
import warnings
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Callable, Iterator, Mapping, Protocol, Sequence

import pyarrow as pa
import ray
import ray.data

from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import placement
from tap_ray.distributed.placement import Pool
from tap_ray.errors import TapRayError
from tap_ray.play.collect import Outcome, in_batches
from tap_ray.play.novelty import RoundMemory, Visits
from tap_ray.play.schedule import Schedule
from tap_ray.progress_bar import progress_bar

LIVES = 4
"""How often an attempt may be found unfinished by a new process before it is taken for the culprit."""
PATIENCE_S, PATIENCE_BLOCKS = 15.0, 4.0
"""How long a fleet waits for the novelty memory of a round before it hands the attempt back: s, and times the longest
block so far of any fleet (results come a block at a time), whichever is more. Repeating a dead fleet's work may put a
later round before an earlier one in the same queue; then waiting would never end."""
POLL_S = 0.05
BLOCK_BATCHES = 8
"""Batches that a fleet is given at a time, where there are enough to share out: each hand-over costs the machine as
much as a few control steps (EXPERIMENTS.md)."""
MAX_PASSES_WITHOUT_NEWS = 3


class Player(Protocol):
    """Robots in one process: `play.collect.PlayFleet` or `play.demos.DemoFleet`."""

    def run(self, attempts: Sequence[int]) -> list[Outcome]:
        """One outcome for each attempt."""
        ...


class Notebook:
    """What fleets must know of each other; a Ray actor without a core of its own, on the driver's node."""

    def __init__(self) -> None:
        self._rounds: dict[int, Visits] = {}
        self._begun: Counter[int] = Counter()
        self._longest_s = 0.0

    def publish(self, number: int, visits: Visits) -> None:
        """Make a round's novelty memory known; rounds before the previous one are over and forgotten."""
        self._rounds[number] = visits
        for old in [old for old in self._rounds if old < number - 1]:
            del self._rounds[old]

    def before(self, number: int) -> tuple[Visits | None, float]:
        """A round's novelty memory (None if it is not known yet), and how long the longest block so far took, s."""
        return self._rounds.get(number), self._longest_s

    def begin(self, attempts: Sequence[int]) -> int:
        """A process is about to play these. Returns how often one of them was begun before and never finished.

        A block in which that happened is not begun again: the fleet begins its attempts one by one.
        """
        before = max(self._begun[attempt] for attempt in attempts)
        if not before or len(attempts) == 1:
            self._begun.update(attempts)
        return before

    def finish(self, attempts: Sequence[int], seconds: float) -> None:
        """The process has survived them; they took so long, without the waiting."""
        self._longest_s = max(self._longest_s, seconds)
        for attempt in attempts:
            del self._begun[attempt]

    def forgive(self) -> None:
        """The driver has stopped the fleets: what they had begun now was not their death."""
        self._begun = Counter({attempt: times - 1 for attempt, times in self._begun.items() if times > 1})


def _answer(reference: Any) -> Any:
    return ray.get(reference)


class SharedMemory:
    """The run's novelty memory as a fleet sees it: `play.collect.Memory`."""

    def __init__(self, notebook: Any) -> None:
        """`notebook`: handle of the Notebook actor."""
        self._notebook = notebook
        self._last: tuple[int, Visits] | None = None
        self.waited_s = 0.0
        """Spent waiting so far, s."""

    def __call__(self, number: int) -> Visits | None:
        """Wait until the round's memory is known; None if that takes too long, see PATIENCE_S."""
        if self._last is None or self._last[0] != number:
            start = time.monotonic()
            visits = self._wait(number, start)
            self.waited_s += time.monotonic() - start
            if visits is None:
                return None
            self._last = (number, visits)
        return self._last[1]

    def _wait(self, number: int, start: float) -> Visits | None:
        while True:
            visits, longest_s = _answer(self._notebook.before.remote(number))
            if visits is not None or time.monotonic() - start > max(PATIENCE_S, PATIENCE_BLOCKS * longest_s):
                return visits
            time.sleep(POLL_S)


class Fleet:
    """A process of robots, as Ray Data calls it: a block of batches of attempts in, a block of pickled outcomes out.

    A TapRayError comes out as a value: Ray Data would wrap it, and fill the terminal with its own stack.
    """

    def __init__(self, make_player: Callable[[Any], Player], notebook: Any) -> None:
        self._make_player = make_player
        self._notebook = notebook
        self._memory = SharedMemory(notebook)

    @cached_property
    def _player(self) -> Player:
        """Built with the first block: a constructor that raises leaves nothing but a dead process."""
        return self._make_player(self._memory)

    def __call__(self, block: pa.Table) -> pa.Table:
        try:
            results: Sequence[Outcome | TapRayError] = self._run(block["attempts"].to_pylist())
        except TapRayError as error:
            results = [error]
        return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.binary())})

    def _run(self, batches: list[list[int]]) -> list[Outcome]:
        """Outcomes of a block, up to the first batch that is handed back: the rest of it would wait as long again."""
        player, attempts = self._player, [attempt for batch in batches for attempt in batch]
        begun = _answer(self._notebook.begin.remote(attempts))
        if begun and len(attempts) > 1:  # one of them may have taken the process down: find out which
            return _until_handed_back(lambda batch: self._run([batch]), [[attempt] for attempt in attempts])
        if begun >= LIVES:
            outcomes = [Outcome(attempt=attempts[0], episode=None, reason=f"its process died {begun} times")]
            self._notebook.finish.remote(attempts, 0.0)
            return outcomes
        start, waited_s = time.monotonic(), self._memory.waited_s
        outcomes = _until_handed_back(player.run, batches)
        seconds = time.monotonic() - start - (self._memory.waited_s - waited_s)
        self._notebook.finish.remote(attempts, seconds)
        return outcomes


def _until_handed_back(play: Callable[[list[int]], list[Outcome]], batches: list[list[int]]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for batch in batches:
        outcomes += play(batch)
        if any(outcome.handed_back for outcome in outcomes):
            break
    return outcomes


def play_out(
    make_player: Callable[[Any], Player],
    batches: Sequence[list[int]],
    pool: Pool,
    notebook: Any,
    round_episodes: int | None = None,
) -> Iterator[Outcome]:
    """Play batches of attempts on a pool of fleets; outcomes come as they are ready, in any order. Ray is connected.

    Args:
        make_player: builds a fleet's robots in its process, given its novelty memory; must pickle.
        batches: attempts, at most one a robot.
        pool: fleets and robots.
        notebook: handle of the Notebook actor.
        round_episodes: of a novelty memory, whose rounds wait for each other; None: nobody waits.

    Raises:
        TapRayError: what a fleet raised.
    """
    wanted = placement.selector(pool.labels)
    cpus = placement.num_fleets(wanted)
    fleets = min(pool.fleets or cpus, len(batches))
    _prepare_ray_data()
    tables = [
        pa.table({"attempts": pa.array(block, pa.list_(pa.int64()))})
        for block in in_blocks(batches, fleets, pool.robots, round_episodes)
    ]
    stream = ray.data.from_arrow(tables).map_batches(
        Fleet,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=min(fleets, cpus), max_size=fleets),
        num_cpus=placement.share(min(fleets, cpus), wanted),
        label_selector=wanted or None,
        fn_constructor_kwargs={"make_player": make_player, "notebook": notebook},
    )
    # Ray Data would keep a block until the next one is there: fleets may wait for a round whose last block that is.
    for table in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for blob in table["result"]:  # type: ignore[index]
            result: Outcome | TapRayError = pickle.loads(blob.as_py())
            if isinstance(result, TapRayError):
                raise result
            yield result


def in_blocks(
    batches: Sequence[list[int]], fleets: int, robots: int, round_episodes: int | None
) -> list[list[list[int]]]:
    """Cut batches into the blocks that fleets are given at a time.

    With a novelty memory only two rounds are in play: blocks are so short that a round has one for each fleet, and the
    attempts of one lie less than a round apart, so that it never waits for itself, whatever is left to play.
    """
    most = min(BLOCK_BATCHES, len(batches) // (BLOCK_BATCHES * fleets))
    if round_episodes is not None:
        most = min(most, round_episodes // (robots * fleets))
    blocks: list[list[list[int]]] = []
    for batch in batches:
        fits = bool(blocks) and len(blocks[-1]) < most
        if fits and (round_episodes is None or batch[-1] - blocks[-1][0][0] < round_episodes):
            blocks[-1].append(batch)
        else:
            blocks.append([batch])
    return blocks


def _prepare_ray_data() -> None:
    """Replace fleets that die while they start; no progress bars, no talk: jobs draw their own bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray Data warns of settings that it makes itself
        context = ray.data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = (
        LIVES  # machines die while fleets start; a player's errors come as values
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


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
        actor = ray.remote(num_cpus=0, scheduling_strategy=placement.here())(Notebook)  # type: ignore[call-overload]
        notebook: Any = actor.remote()
        if self.memory is not None:
            self._publish(notebook, self.memory.current)
            self._publish(notebook, self.memory.current + 1)
        total = self.schedule.num_tasks * self.schedule.episodes
        with progress_bar(total=total, initial=self.writer.appended, unit="episode", disable=not progress) as bar:
            while pending := self.schedule.pending():
                for outcome in self._in_order(pending, make_player, pool, notebook):
                    self._take(outcome, notebook)
                    self.tally.seconds = time.monotonic() - start
                    self._show(bar)
        self.writer.commit()
        ray.kill(notebook)
        self.tally.spilled_bytes = max(0, placement.spilled_bytes() - spilled)
        return self.tally

    def _in_order(
        self, pending: list[int], make_player: Callable[[Any], Player], pool: Pool, notebook: Any
    ) -> Iterator[Outcome]:
        """Outcomes of `pending` in its order.

        An attempt that is handed back unplayed holds up all later rounds, so it ends the pass; another one begins.
        """
        todo, waiting, idle = deque(pending), dict[int, Outcome](), 0
        while todo:
            left = [attempt for attempt in todo if attempt not in waiting]
            idle += 1
            round_episodes = self.memory.round_episodes if self.memory is not None else None
            batches = in_batches(left, pool.robots, self.schedule.num_tasks, span=round_episodes)
            for outcome in play_out(make_player, batches, pool, notebook, round_episodes):
                if outcome.handed_back:
                    notebook.forgive.remote()
                    break
                waiting[outcome.attempt] = outcome
                idle = 0
                while todo and todo[0] in waiting:
                    yield waiting.pop(todo.popleft())
            assert idle < MAX_PASSES_WITHOUT_NEWS, f"attempts {left[:5]} ... never come back"

    def _take(self, outcome: Outcome, notebook: Any) -> None:
        """Write an outcome, and remember what it saw."""
        self.schedule.record(outcome.attempt, None if outcome.episode else outcome.reason)
        if self.memory is not None and self._visits_of is not None:
            current = self.memory.current
            self.memory.add(self._visits_of(outcome))
            if self.memory.current > current:
                self._publish(notebook, self.memory.current + 1)
        if outcome.episode is not None:
            self.writer.append(replace(outcome.episode, index=self.writer.appended), self._progress())
            self.tally.episodes += 1
            self.tally.frames += len(outcome.episode)
            self.tally.contact_frames += int(outcome.episode.contact.sum())

    def _progress(self) -> Mapping[str, Any]:
        memory = {"memory": self.memory.to_json()} if self.memory is not None else {}
        return {"schedule": self.schedule.to_json(), **memory}

    def _publish(self, notebook: Any, number: int) -> None:
        assert self.memory is not None
        visits = self.memory.before(number)
        if visits is not None:
            ray.get(notebook.publish.remote(number, visits))

    def _show(self, bar: Any) -> None:
        tally, dropped = self.tally, len(self.schedule.dropped)
        text = (
            f"{tally.frames_s:.0f} frames/s, {tally.frames_s / self._control_hz:.0f}x real time, "
            f"contact {tally.contact_rate:.0%}" + (f", {dropped} dropped" if dropped else "")
        )
        bar.set_postfix_str(text, refresh=False)
        bar.update(self.writer.appended - bar.n)
