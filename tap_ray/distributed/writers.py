"""Writes the episodes of fleets, in the driver or in processes that read them from the nodes' object stores.

    fleet --> episodes of a block, in its node's object store ------> [ writer 0 | writer 1 | ... ] --> data files under
      |                                                                     ^                |          temporary names
      '--> Played: length, task, visits --> driver, in order --> FileWork --'                v
                                                                              rows of their episodes --> driver: commit

The driver receives the outcome of each attempt and rows of metadata; episodes never pass through it. Lengths and tasks
determine each episode's place (`dataset/filing.py`), so the files equal those of a single process, to the byte. If a
machine dies with episodes that were reported and not yet written, they are collected again, with the novelty memory of
their round, and must equal what was reported.
"""

import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from tap_ray import storage
from tap_ray.dataset import layout
from tap_ray.dataset.filing import FileWork, Place, Written, write_file
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import faults, placement
from tap_ray.distributed.faults import Death, Kind
from tap_ray.distributed.placement import Pool
from tap_ray.distributed.sink import Block, InDriver, Played, Progress, Sink, Source
from tap_ray.errors import TapRayError
from tap_ray.types import Episode

STORE_SHARE = 0.3
"""Share of the object stores that episodes may fill while they wait to be written. Beyond it fleets wait, except the
one that is next in order."""
FLEETS_PER_WRITER = 32
"""Fleets per writer. On a local disk a writer with its own core keeps up with 166 (docs/scaling.md); this leaves time
for uploads."""
MAX_WRITER_DEATHS = 5
"""Number of processes in a row that may die while they write one file (on machines that stay alive) before the job
ends."""
TICK_S = 0.5
"""Longest wait for a file before the driver looks again for lost episodes and hanging processes, s."""
COMMIT_PARTIAL_S = 30.0
"""How long an interrupted collection may continue to write its finished episodes, s."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Returned instead of a file: the numbers of the blocks whose episodes are lost."""

    blocks: tuple[int, ...]


class Writer:
    """A process that writes data files (a Ray actor)."""

    def __init__(self, path: Path, header: DatasetHeader) -> None:
        self._path, self._header = path, header

    def write(self, work: FileWork, blocks: list[Any], sources: list[tuple[int, int]], schema: Any) -> Written | Lost:
        """Write a file.

        Args:
            work: the file to write.
            blocks: references to pickled episodes.
            sources: block, and position in it, of each of the file's episodes.
            schema: see `filing.write_file`.

        Raises:
            TapRayError: what `filing.write_file` raises.
        """
        try:
            found = ray.get(blocks)
        except ObjectLostError:
            return Lost(blocks=tuple(number for number, block in enumerate(blocks) if not _exists(block)))
        episodes: Iterator[Episode] = (pickle.loads(found[block][position]) for block, position in sources)
        return write_file(self._path, self._header, work, episodes, schema)


def _exists(block: Any) -> bool:
    try:
        ray.get(block)
    except ObjectLostError:
        return False
    return True


@dataclass(kw_only=True)
class _Job:
    """A data file that is being written."""

    work: FileWork
    kept: list[Played]
    progress: Mapping[str, Any]
    written: Written | None = None
    running: bool = False
    deaths: int = 0


@dataclass(kw_only=True)
class _Process:
    actor: Any
    call: Any = None
    job: _Job | None = None
    blocks: Sequence[Any] = ()
    """References that were passed to its current call."""
    since_s: float = 0.0


class Writers:
    """A sink in which processes write; the driver plans their files and commits them in order."""

    by_reference = True

    def __init__(self, writer: DatasetWriter, num: int, pool: Pool) -> None:
        """Start at most `num` processes, when there are files for them.

        Raises:
            DataError: the dataset has columns that tap_ray does not know.
        """
        writer.require_known_columns()
        self._writer, self.num_writers, self._timeouts = writer, num, pool.timeouts
        self._end, self._carried = writer.end, writer.end.in_file
        self._open: list[tuple[Played, Place]] = []
        self._jobs: dict[int, _Job] = {}
        self._sources: dict[int, Source | None] = {}
        self._again: list[Block] = []
        self._processes: list[_Process] = []
        self._held_bytes = 0
        label_selector = placement.selector(pool.labels)
        self._most_bytes = STORE_SHARE * sum(placement.of_nodes("object_store_memory", label_selector))
        if storage.is_remote(writer.path):
            options: dict[str, Any] = placement.Needs(cpus=0, labels=label_selector).options()
            path = writer.path
        else:  # other machines may not see this folder
            options = {"num_cpus": 0, "scheduling_strategy": placement.here()}
            path = writer.path.absolute()
        # Without a CPU: a fleet that waits for its episodes to be written holds its own.
        self._start = lambda: ray.remote(**options)(Writer).remote(path, writer.header)

    @property
    def num_episodes(self) -> int:
        return self._end.num_episodes

    @property
    def backlog(self) -> int:
        return len(self._sources)

    @property
    def full(self) -> bool:
        return self._held_bytes >= self._most_bytes

    @property
    def oldest(self) -> int | None:
        return min(self._sources, default=None)

    def arrived(self, played: Played) -> None:
        self._held_bytes += played.num_bytes

    def wants_again(self, attempt: int) -> bool:
        return attempt in self._sources and self._sources[attempt] is None

    def restore(self, played: Played) -> None:
        """Take what was played again.

        Raises:
            TapRayError: the repeated attempt gave another episode.
        """
        waiting = [self._open, *([(kept, None) for kept in job.kept] for job in self._jobs.values())]
        [before] = [kept for some in waiting for kept, _ in some if kept.attempt == played.attempt]
        if not before.same_as(played):
            raise TapRayError(
                f"Attempt {before.attempt} was lost with its machine before it was written, and had another result "
                f"when it was repeated: {before.steps} steps at first, now {played.steps} {played.reason}. The "
                "simulator is not deterministic. The committed episodes are intact, and the same command resumes from "
                "there."
            )
        self._sources[played.attempt] = played.source

    def add(self, played: Played, progress: Progress) -> None:
        place = self._end.place(played.task)
        self._sources[played.attempt] = played.source
        self._open.append((played, place))
        self._end = self._end.after(played.task, played.steps, self._writer.header.episodes_per_file)
        if self._end.in_file == 0:
            self._close_file(progress())

    def _close_file(self, progress: Mapping[str, Any]) -> None:
        places = tuple(place for _, place in self._open)
        work = FileWork(number=places[0].file_number, carried=self._carried, places=places)
        self._jobs[work.number] = _Job(work=work, kept=[played for played, _ in self._open], progress=dict(progress))
        self._open, self._carried = [], 0

    def futures(self) -> list[Any]:
        return [process.call for process in self._processes if process.job]

    def poll(self) -> list[Block]:
        if running := {process.call: process for process in self._processes if process.job}:
            ended, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
            for call in ended:
                self._on_result(running[call])
        self._end_hung()
        self._commit_ready()
        self._hand_out()
        again, self._again = self._again, []
        return again

    def _on_result(self, process: _Process) -> None:
        job = process.job
        assert job is not None
        try:
            answer: Any = ray.get(process.call)
        except RayTaskError as error:
            process.job, self._open = None, []
            self._jobs = {number: other for number, other in self._jobs.items() if number < job.work.number}
            raise (error.cause if isinstance(error.cause, TapRayError) else error) from None
        except faults.LOST as error:
            self._on_writer_death(process, faults.death_of(process.actor, error))
            return
        if isinstance(answer, Lost):
            self._reschedule_lost([process.blocks[number] for number in answer.blocks])
        else:
            job.written = answer
            for played in job.kept:
                self._sources.pop(played.attempt, None)
                self._held_bytes -= played.num_bytes
        job.running, process.job, process.blocks = False, None, ()

    def _reschedule_lost(self, blocks: Sequence[Any]) -> None:
        """Schedule lost blocks to be run again, once for all files that need them."""
        for attempt, source in list(self._sources.items()):
            if source is not None and source.episodes in blocks:
                self._sources[attempt] = None
                if source.block not in self._again:
                    self._again.append(source.block)

    def _on_writer_death(self, process: _Process, death: Death) -> None:
        job = process.job
        assert job is not None
        self._processes.remove(process)
        ray.kill(process.actor)  # it may only be unreachable
        job.running = False
        job.deaths += death.kind.own_fault or death.kind is Kind.MEMORY
        if job.deaths >= MAX_WRITER_DEATHS:
            raise TapRayError(
                f"{job.deaths} processes in a row died while they wrote {layout.data_file(job.work.number)} (out of "
                f"memory?): {death.reason} The committed episodes are intact, and the same command resumes from there."
            )

    def _end_hung(self) -> None:
        now_s, most_s = time.monotonic(), self._timeouts.least_s
        for process in [process for process in self._processes if process.job and now_s - process.since_s > most_s]:
            if faults.placed(process.actor):
                self._on_writer_death(process, faults.hang_of(process.actor, now_s - process.since_s))
            else:
                process.since_s = now_s  # it has not been placed so far

    def _commit_ready(self) -> None:
        """Commit all finished files that are next in order together: the small metadata files are then written only
        once."""
        ready = []
        for number in sorted(self._jobs):
            if (written := self._jobs[number].written) is None:
                break
            ready.append((written, self._jobs[number].progress))
        if ready and not self._writer.busy:
            self._writer.commit_files(ready)
            for written, _ in ready:
                del self._jobs[written.number]

    def _hand_out(self) -> None:
        for job in self._jobs.values():
            if job.running or job.written or any(self._sources[played.attempt] is None for played in job.kept):
                continue
            if self._writer.schema is None and job.work.number > 0:
                return  # the first file says what columns the rows have
            process = self._idle()
            if process is None:
                return
            found = [source for played in job.kept if (source := self._sources[played.attempt])]
            blocks = list(dict.fromkeys(source.episodes for source in found))
            sources = [(blocks.index(source.episodes), source.position) for source in found]
            process.call = process.actor.write.remote(job.work, blocks, sources, self._writer.schema)
            process.blocks, process.since_s = blocks, time.monotonic()
            process.job, job.running = job, True

    def _idle(self) -> _Process | None:
        for process in self._processes:
            if process.job is None:
                return process
        if len(self._processes) == self.num_writers:
            return None
        self._processes.append(_Process(actor=self._start()))
        return self._processes[-1]

    def finish(self, progress: Progress) -> list[Block]:
        if self._open:
            self._close_file(progress())
        while self._jobs:
            if again := self.poll():
                return again
            self._wait()
        _ = self._writer.committed
        return []

    def _wait(self) -> None:
        if calls := self.futures():
            ray.wait(calls, num_returns=1, timeout=TICK_S)
        else:
            _ = self._writer.committed  # what the next file waits for

    def commit_partial(self, progress: Progress | None) -> None:
        try:
            if self._open and progress is not None:
                self._close_file(progress())
            until_s = time.monotonic() + COMMIT_PARTIAL_S
            while self._jobs and not self.poll() and time.monotonic() < until_s:
                self._wait()
        except Exception:  # noqa: BLE001  what ended the collection is raised; this only saves work
            return

    def close(self) -> None:
        for process in self._processes:
            ray.kill(process.actor)


def sink_of(writer: DatasetWriter, pool: Pool) -> Sink:
    """The sink that the pool asks for. Ray must be connected."""
    num = pool.writers
    if num < 0:
        num = (pool.fleets or placement.num_fleets(placement.selector(pool.labels), pool.gpus)) // FLEETS_PER_WRITER
    return Writers(writer, num, pool) if num else InDriver(writer)
