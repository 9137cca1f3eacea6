"""Datasets that processes write: the bytes of the driver's own, whatever dies between an episode and its file."""

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.cloudpickle

from tap_ray import storage
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import writers
from tap_ray.distributed.collect import Collection, Pool, Rounds
from tap_ray.distributed.connect import connect
from tap_ray.distributed.faults import Timeouts
from tap_ray.distributed.sink import Played
from tap_ray.distributed.writers import MAX_WRITER_DEATHS, Writers, sink_of
from tap_ray.errors import DataError, StorageError, TapRayError
from tap_ray.play.collect import AttemptResult
from tap_ray.play.novelty import RoundVisitCounts
from tap_ray.play.schedule import Schedule
from tests.digests import digests as every_digest
from tests.distributed import toy_player
from tests.distributed.nodes import meanwhile, nodes, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own log files of killed nodes
]
EPISODES = 18
"""Five files of four, of which the last is not full."""
ROUND = 4
STEPS = 150
"""An episode has 250 kB: what is smaller than 100 kB travels to the driver inside Ray's answer."""
CRASHES = (5, 11)


@pytest.fixture(scope="module", autouse=True)
def _pickled() -> None:
    for module in (toy_player, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # the workers need not find our tests


@pytest.fixture
def no_ray(expected: dict[str, str], shared_ray: ExitStack) -> Iterator[None]:
    """The shared Ray is stopped, and starts again when the test is over."""
    shared_ray.close()
    yield
    shared_ray.enter_context(connect(num_cpus=2))


class Remembers:
    """Its episodes carry how much had been seen before their round. From attempt `held` on it waits for the file."""

    def __init__(self, folder: Path, held: int, memory: Any) -> None:
        self.folder, self.held, self.memory = folder, held, memory

    def run(self, attempts: Any) -> list[AttemptResult]:
        return [self.play(attempt) for attempt in attempts]

    def play(self, attempt: int) -> AttemptResult:
        while attempt >= self.held and (self.folder / "hold").exists():
            time.sleep(0.02)
        (self.folder / f"played-{attempt}-{uuid.uuid4().hex}").touch()
        if attempt in CRASHES:
            return AttemptResult(attempt=attempt, episode=None, reason="crashed")
        episode = toy_player.episode(attempt, STEPS)
        seen = sum(self.memory(attempt // ROUND).values())
        return AttemptResult(attempt=attempt, episode=replace(episode, meta={**episode.meta, "seen": seen}))


def visits_of(outcome: AttemptResult) -> dict[str, int]:
    return {f"cell {outcome.attempt % 5}": outcome.attempt} if outcome.episode else {}


def times_played(folder: Path, attempt: int) -> int:
    return len(list(folder.glob(f"played-{attempt}-*")))


def collection(writer: DatasetWriter, episodes: int = EPISODES) -> Collection:
    schedule = Schedule(num_tasks=1, episodes=episodes)
    return Collection(writer, schedule, memory=RoundVisitCounts(ROUND), visits_of=visits_of)


def gather(path: Path, pool: Pool, *, episodes: int = EPISODES, make: Any = None, folder: Path | None = None) -> None:
    folder = folder or Path(path)
    make = make or partial(Remembers, folder, 10**9)
    with DatasetWriter(path, toy_player.robots().synthetic_header()) as writer:
        collection(writer, episodes).run(make, pool, progress=False)


digests = partial(every_digest, skip="played-")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that the driver itself writes."""
    path = tmp_path_factory.mktemp("data") / "expected"
    gather(path, Pool(fleets=2))
    found = digests(path)
    assert len(found) == 5 + 5 + 4
    return found


@pytest.mark.slow
@pytest.mark.long_proof
def test_episodes_that_a_machine_takes_along_are_played_again(no_ray: None, expected: dict[str, str], tmp_path: Path):
    """Once in the middle of a file, while others are still played; once when all have been told but none is left."""
    (tmp_path / "hold").touch()
    with nodes() as cluster, connect(cluster.address):
        cluster.add("play")

        def lose() -> None:
            cluster.add("play")
            cluster.kill(cluster.live[0])

        with DatasetWriter(tmp_path / "data", toy_player.robots().synthetic_header()) as writer:
            run = collection(writer)

            def lose_once() -> None:
                try:
                    wait_for(lambda: run.schedule.kept[0] == 9)
                    lose()
                finally:
                    (tmp_path / "hold").unlink()

            with meanwhile(lose_once), pytest.MonkeyPatch.context() as patch:
                finish, lost = Writers.finish, []

                def lose_and_finish(self: Writers, progress: Any) -> Any:
                    if not lost:
                        lost.append(lose())
                    return finish(self, progress)

                patch.setattr(Writers, "finish", lose_and_finish)
                run.run(partial(Remembers, tmp_path, 10), Pool(fleets=2, writers=2), progress=False)
    assert not run.schedule.dropped[2:]
    assert times_played(tmp_path, 9) == 2
    assert times_played(tmp_path, 19) == 2
    assert digests(tmp_path / "data") == expected


@pytest.mark.long_proof
def test_on_an_object_store(no_ray: None, expected: dict[str, str], bucket: str, tmp_path: Path):
    with connect(num_cpus=2):
        for episodes in (7, EPISODES):
            gather(storage.to_path(bucket), Pool(fleets=2, writers=2), episodes=episodes, folder=tmp_path)
    assert digests(storage.to_path(bucket)) == expected


@pytest.mark.parametrize("num", [1, pytest.param(4, marks=pytest.mark.long_proof)])
def test_processes_write_the_bytes_of_the_driver(expected: dict[str, str], tmp_path: Path, num: int):
    gather(tmp_path, Pool(fleets=2, writers=num))
    assert digests(tmp_path) == expected


@pytest.mark.long_proof
def test_going_on_in_a_file_that_is_not_full(expected: dict[str, str], tmp_path: Path):
    """By processes and by the driver in turn."""
    for episodes, num in ((2, 2), (3, 0), (10, 1), (11, 2), (EPISODES, 2)):
        gather(tmp_path, Pool(fleets=2, writers=num), episodes=episodes)
    assert digests(tmp_path) == expected


@pytest.mark.long_proof
def test_fleets_wait_while_object_stores_are_full_and_still_finish(
    expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writers, "STORE_SHARE", 0.0)
    gather(tmp_path, Pool(fleets=2, writers=1))
    assert digests(tmp_path) == expected


def kill(name: str) -> list[int]:
    """SIGKILL this Ray's processes of a kind."""
    killed = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, pytest.param(4, marks=pytest.mark.long_proof)])
@pytest.mark.long_proof
def test_killed_writers_and_fleets_cost_nothing_but_time(expected: dict[str, str], tmp_path: Path, num: int):
    """Fleets die when two episodes of a file have been told; then its writer, as soon as there is one, and again."""
    (tmp_path / "hold").touch()
    killed: list[int] = []
    with DatasetWriter(tmp_path / "data", toy_player.robots().synthetic_header()) as writer:
        run = collection(writer)

        def kill_some() -> None:
            try:
                wait_for(lambda: run.schedule.kept[0] == 9)  # attempts 0 to 9 but for 5
                killed.extend(wait_for(lambda: kill("ray::Fleet")))
            finally:
                (tmp_path / "hold").unlink()
            for _ in range(2):
                killed.extend(wait_for(lambda: kill("ray::Writer") or run.schedule.kept[0] == EPISODES))

        with meanwhile(kill_some):
            run.run(partial(Remembers, tmp_path, 10), Pool(fleets=2, writers=num), progress=False)
    assert len(killed) >= 3
    assert times_played(tmp_path, 9) == 1  # its bytes outlived its fleet
    assert digests(tmp_path / "data") == expected


@pytest.mark.long_proof
def test_a_writer_that_hangs_is_replaced(expected: dict[str, str], tmp_path: Path):
    """It is stopped (SIGSTOP) while its first file is on the way, for longer than a writer may take."""
    stopped: list[psutil.Process] = []

    def stop_one() -> bool:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not stopped and "ray::Writer" in " ".join(process.cmdline()):
                    process.suspend()
                    stopped.append(process)
        return bool(stopped)

    with meanwhile(lambda: wait_for(stop_one)):
        gather(tmp_path, Pool(fleets=2, writers=1, timeouts=Timeouts(least_s=10.0)))
    wait_for(lambda: not stopped[0].is_running())  # its raylet collects it
    assert digests(tmp_path) == expected


class Interrupted(Collection):
    """Ctrl-C after ten episodes."""

    def _show(self, bar: Any) -> None:
        if self.stats.episodes == 10:
            raise KeyboardInterrupt


@pytest.mark.long_proof
def test_ctrl_c_keeps_what_has_been_told(expected: dict[str, str], tmp_path: Path):
    header, schedule = toy_player.robots().synthetic_header(), Schedule(num_tasks=1, episodes=EPISODES)
    with DatasetWriter(tmp_path, header) as writer:
        run = Interrupted(writer, schedule, memory=RoundVisitCounts(ROUND), visits_of=visits_of)
        with pytest.raises(KeyboardInterrupt):
            run.run(partial(Remembers, tmp_path, 10**9), Pool(fleets=2, writers=2), progress=False)
    with DatasetWriter(tmp_path, toy_player.robots().synthetic_header()) as writer:
        assert writer.committed == 10
    gather(tmp_path, Pool(fleets=2, writers=2))
    assert digests(tmp_path) == expected


class OtherMeta(Remembers):
    """Its episodes lack a key from attempt 6 on."""

    def play(self, attempt: int) -> AttemptResult:
        outcome = super().play(attempt)
        if outcome.episode is None or attempt < 6:
            return outcome
        return replace(outcome, episode=replace(outcome.episode, meta={"seed": 1}))


def test_an_episode_that_does_not_fit_is_said_and_the_files_before_are_kept(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"Episode \d+ has meta \['seed'\], but the first one has \['contact_rate', 'emb"
    ):
        gather(tmp_path, Pool(fleets=2, writers=2), make=partial(OtherMeta, tmp_path, 10**9))
    with DatasetWriter(tmp_path, toy_player.robots().synthetic_header()) as writer:
        assert writer.committed == 4


def test_a_disk_that_refuses(tmp_path: Path):
    DatasetWriter(tmp_path / "data", toy_player.robots().synthetic_header()).close()
    (tmp_path / "data" / "data").write_text("in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*file-000\.parquet\..*: Not a directory\. .* MB are free"):
        gather(tmp_path / "data", Pool(fleets=2, writers=2), folder=tmp_path)


class Ends:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


class Deadly(Remembers):
    """Attempt 6 ends whoever writes it."""

    def play(self, attempt: int) -> AttemptResult:
        outcome = super().play(attempt)
        if attempt == 6 and outcome.episode is not None:
            return replace(outcome, episode=replace(outcome.episode, meta={"seed": Ends()}))
        return outcome


@pytest.mark.slow
@pytest.mark.long_proof
def test_an_episode_that_ends_every_writer_ends_the_job(tmp_path: Path):
    with pytest.raises(
        TapRayError,
        match=rf"{MAX_WRITER_DEATHS} processes in a row died while they wrote data/chunk-000/file-001\.parquet",
    ):
        gather(tmp_path, Pool(fleets=2, writers=1), make=partial(Deadly, tmp_path, 10**9))
    with DatasetWriter(tmp_path, toy_player.robots().synthetic_header()) as writer:
        assert writer.committed == 4


def test_how_many_write(tmp_path: Path):
    with DatasetWriter(tmp_path, toy_player.robots().synthetic_header()) as writer:
        for fleets, num, expected in ((31, -1, None), (0, -1, None), (64, -1, 2), (64, 0, None), (1, 3, 3)):
            sink = sink_of(writer, Pool(fleets=fleets, writers=num))
            assert (sink.num_writers if isinstance(sink, Writers) else None) == expected


def test_what_is_played_again_and_differs_is_no_data(tmp_path: Path):
    with DatasetWriter(tmp_path, toy_player.robots().synthetic_header()) as writer:
        sink = Writers(writer, 1, Pool(writers=1))
        played = Played(attempt=7, kept=True, steps=60, task="play")
        sink.add(played, dict)
        assert sink.oldest == 7
        assert sink.wants_again(7)  # it has no source
        sink.restore(replace(played, num_bytes=5))
        message = "Attempt 7 was lost with its machine before it was written, and had another result when it was "
        with pytest.raises(TapRayError, match=message + "repeated: 60 steps at first, now 59"):
            sink.restore(replace(played, steps=59))


def test_the_memory_of_a_round_is_kept_as_long_as_it_may_be_played_again():
    memory = RoundVisitCounts(2)
    oldest: list[int | None] = [1]
    rounds = Rounds(memory, oldest=lambda: oldest[0])
    first = rounds.references(((1,),))
    for number in range(6):
        memory.add({f"cell {number}": 1})
    assert memory.current == 3
    assert rounds.references(((1,),)) == first
    assert ray.get(rounds.references(((6,),))[3]) == {f"cell {n}": 1 for n in range(4)}
    oldest[0] = None
    rounds.references(((7,),))
    with pytest.raises(AssertionError, match="round 0 is over"):
        rounds.references(((1,),))
