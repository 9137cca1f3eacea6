"""The writer: the same bytes however often it is interrupted, and nothing half-written."""

import contextlib
import errno
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Callable, Iterator

import numpy as np
import pytest

from tap_ray.dataset import commit, layout
from tap_ray.dataset.lerobot import open_dataset, repair, verify
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import DataError, StorageError
from tap_ray.media.image import encode_jpeg
from tap_ray.rng import generator
from tap_ray.types import Episode
from tests.distributed.kills import KILLS

LONG = pytest.mark.long_proof


def digests(path: Path) -> dict[str, str]:
    """Path -> sha256 of every file of a dataset."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def broken(path: Path) -> list[str]:
    return [problem for rule in verify(path) for problem in rule.problems]


def test_files_are_those_of_the_format(play_dataset: Path) -> None:
    assert list(digests(play_dataset)) == [
        ".lock",  # of its writers
        *(f"data/chunk-000/file-00{i}.parquet" for i in range(3)),
        *(f"meta/episodes/chunk-000/file-00{i}.parquet" for i in range(3)),
        "meta/info.json",
        "meta/stats.json",
        "meta/tap_ray.json",
        "meta/tasks.parquet",
    ]


def test_interrupted_after_every_episode_gives_the_same_bytes(
    made: SimpleNamespace, tmp_path: Path, play_dataset: Path
) -> None:
    for count in range(1, 11):
        made.write(tmp_path / "play", count)
    assert digests(tmp_path / "play") == digests(play_dataset)


def test_uncommitted_episodes_leave_nothing_behind(made: SimpleNamespace, tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "play", made.header())
    for index in range(6):
        writer.append(made.episode(index))
    assert (writer.committed, writer.appended) == (4, 6)
    give_up(writer)
    assert broken(tmp_path / "play") == []
    assert len(open_dataset(tmp_path / "play")) == 4


def test_progress_comes_back_with_the_commit_it_belongs_to(made: SimpleNamespace, tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "demos", made.header())
    assert writer.progress == {}
    for index in range(6):
        writer.append(made.episode(index), {"next_attempt": 2 * index + 1, "dropped": {"timeout": index}})
    assert writer.committed == 4
    give_up(writer)  # episodes 4 and 5 were not committed
    with DatasetWriter(tmp_path / "demos", made.header()) as again:
        assert again.committed == 4
        assert again.progress == {"next_attempt": 7, "dropped": {"timeout": 3}}


@pytest.fixture
def interrupt_at() -> Iterator[Callable[[int], None]]:
    """Ctrl-C at the n-th bytecode of the writer's own methods: a signal may come between any two."""
    left = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_qualname.startswith("DatasetWriter."):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    def arm(number: int) -> None:
        left[0] = number
        sys.settrace(trace)

    before = sys.gettrace()
    yield arm
    sys.settrace(before)


def test_ctrl_c_between_any_two_bytecodes_commits_whole_episodes(
    made: SimpleNamespace, tmp_path: Path, interrupt_at: Callable[[int], None]
) -> None:
    """While the fourth episode fills its file: what is committed and what its progress says are the same."""
    episodes = [made.episode(index) for index in range(5)]
    whole = tmp_path / "whole"

    def write(path: Path, interrupt: int = 0) -> bool:
        """Go on where the dataset says; whether it came to the end."""
        with DatasetWriter(path, made.header()) as writer:
            for index in range(writer.progress.get("next", 0), 5):
                if interrupt and index == 3:
                    interrupt_at(interrupt)
                writer.append(replace(episodes[index], index=writer.appended), {"next": index + 1})
                sys.settrace(None)
        return True

    write(whole)
    expected, number, undisturbed = digests(whole), 1, False
    while not undisturbed:
        path = tmp_path / str(number)
        with contextlib.suppress(KeyboardInterrupt):
            undisturbed = write(path, number)
        write(path)
        assert digests(path) == expected, f"bytecode {number}"
        shutil.rmtree(path)
        number += 10  # all of them take ten times as long
    assert number > 100


class Killed(BaseException):
    """Stands for SIGKILL at a chosen system call: nothing that the writer does afterwards counts."""


def give_up(writer: DatasetWriter) -> None:
    """Unlock as where the storage fails: nothing more is committed."""
    with contextlib.suppress(StorageError), writer:
        raise StorageError("gone")


def append_to_the_end(writer: DatasetWriter, episodes: list[Episode]) -> None:
    for episode in episodes:
        writer.append(episode)
    writer.commit()


@pytest.mark.parametrize("deadly_rename", [1, 3, 5, 7, 10, *(pytest.param(n, marks=LONG) for n in (2, 4, 6, 8, 9))])
def test_a_kill_at_any_rename_is_repaired(
    made: SimpleNamespace, tmp_path: Path, play_dataset: Path, monkeypatch: pytest.MonkeyPatch, deadly_rename: int
) -> None:
    """A file that grows and a new one, five renames each; die before each of them in turn."""
    path, count, rename = tmp_path / "play", 0, os.replace
    made.write(path, 2)  # a short last file, which the next commit replaces

    def deadly(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == deadly_rename:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", deadly)
        writer = DatasetWriter(path, made.header())
        with pytest.raises(Killed):
            append_to_the_end(writer, [made.episode(index) for index in range(2, 10)])
        give_up(writer)
    assert broken(path) != []
    repair(path)
    assert broken(path) == []
    made.write(path, 10)
    assert digests(path) == digests(play_dataset)


CHILD = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("made", sys.argv[1]); made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)

def write(path, num_episodes, wait_at):
    with made.DatasetWriter(path, made.synthetic_header(size=16, mask=False, episodes_per_file=3)) as writer:
        print(os.getpid(), flush=True)
        for index in range(writer.committed, num_episodes):
            if index == wait_at:
                signal.pause()
            writer.append(made.synthetic_episode(index, size=16, steps=4, mask=False), {"next": index + 1})

for line in sys.stdin:
    path, wait_at = line.split()
    pid = os.fork()  # a fresh process for each writing, without importing everything again
    if pid == 0:
        write(path, 54, int(wait_at))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Children:
    """Runs writing processes one after another; `kill_at` sends SIGKILL to one soon after a file exists."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def write(self, path: Path, *, kill_at: Path | None = None, delay_s: float = 0.0, wait_at: int = -1) -> int:
        """Exit status of a process that writes the dataset, or continues with it; at episode `wait_at` it waits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(path, wait_at, file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        if kill_at is not None:
            while not kill_at.exists():
                time.sleep(0.001)
            time.sleep(delay_s)
            os.kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())


@pytest.fixture
def children() -> Iterator[Children]:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent / "conftest.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Children(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.slow
def test_sigkills_at_random_moments_give_the_same_bytes(tmp_path: Path, children: Children) -> None:
    rng = generator(0, "kill")
    for kill in range(max(4, KILLS)):
        file = tmp_path / "killed" / layout.episodes_file(kill)
        delay_s, wait_at = rng.uniform(0, 0.03), 3 * kill + 20  # far from the end, whatever keeps the killer
        status = children.write(tmp_path / "killed", kill_at=file, delay_s=delay_s, wait_at=wait_at)
        assert status == -signal.SIGKILL
        repair(tmp_path / "killed")
        assert broken(tmp_path / "killed") == []
        assert 3 * (kill + 1) <= len(open_dataset(tmp_path / "killed")) < 54
    assert children.write(tmp_path / "killed") == 0
    assert children.write(tmp_path / "whole") == 0
    assert len(open_dataset(tmp_path / "killed")) == 54
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 kB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root: run this test with sudo")
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if (result := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a tmpfs here ({result.stderr.strip()}): run outside the container")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_data_set_verifies(
    made: SimpleNamespace, tmp_path: Path, small_disk: Path
) -> None:
    path = small_disk / "play"
    with pytest.raises(StorageError, match=r"(?s)Cannot write .*No space left.*MB are free.*Free some space"):
        made.write(path, 100)
    assert not list(path.rglob("*.tmp"))
    assert broken(path) == []
    assert (committed := len(open_dataset(path))) >= 4
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert digests(made.write(path, committed + 5)) == digests(made.write(tmp_path / "whole", committed + 5))


@pytest.mark.parametrize(("number", "remedy"), [(errno.EROFS, "Make the folder writable"), (errno.EIO, "Fix the disk")])
def test_storage_errors_say_what_to_do(tmp_path: Path, number: int, remedy: str) -> None:
    error = commit.storage_error(OSError(number, os.strerror(number)), "write", tmp_path / "missing" / "file")
    assert remedy in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_going_on_after_the_disk_refused(
    made: SimpleNamespace, tmp_path: Path, play_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may free some space and call again: nothing is lost, no file gets a fifth episode."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with DatasetWriter(tmp_path / "play", made.header()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            for index in range(4):
                writer.append(made.episode(index))
            for _ in range(2):
                with pytest.raises(StorageError, match="No space left"):
                    writer.commit()
        assert (writer.committed, writer.appended) == (4, 4)  # tried again
        for index in range(4, 10):
            writer.append(made.episode(index))
    assert digests(tmp_path / "play") == digests(play_dataset)


def test_the_next_file_fills_while_the_last_one_is_committed(
    made: SimpleNamespace, tmp_path: Path, play_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert go_on.wait(60)
        fsync(descriptor)

    with DatasetWriter(tmp_path / "play", made.header()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", slow)
            for index in range(7):
                writer.append(made.episode(index))
            assert writer.appended == 7
            assert not list(tmp_path.rglob("*.parquet")), "nothing appears before it is whole"
            go_on.set()
            assert writer.committed == 4
        for index in range(7, 10):
            writer.append(made.episode(index))
    assert digests(tmp_path / "play") == digests(play_dataset)


def test_another_plan_or_robot_is_refused_and_named(made: SimpleNamespace, tmp_path: Path) -> None:
    made.write(tmp_path / "play", 4)
    other = replace(made.header(), plan={"seed": 8, "explorer": "synthetic"}, spec=replace(made.spec, robot="franka"))
    with pytest.raises(DataError, match=r"(?s)plan.seed: 7 before, 8 now.*spec.robot: 'widowx' before, 'franka' now"):
        DatasetWriter(tmp_path / "play", other)


def test_a_folder_that_is_not_ours_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(DataError, match=r"letters.txt but no meta/tap_ray.json, so it is not a dataset"):
        DatasetWriter(tmp_path, made.header())


def test_two_writers_at_once_are_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    with (
        DatasetWriter(tmp_path / "play", made.header()),
        pytest.raises(DataError, match="being written by another process"),
    ):
        DatasetWriter(tmp_path / "play", made.header())
    with DatasetWriter(tmp_path / "play", made.header()):
        pass


def test_a_missing_index_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    with (
        DatasetWriter(tmp_path / "play", made.header()) as writer,
        pytest.raises(DataError, match=r"expects episode 0 next; got episode 1"),
    ):
        writer.append(made.episode(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.full((8, 7), np.nan, np.float32)}, "action is NaN or infinite at step 0"),
        (
            {"action": np.zeros((8, 6), np.float32)},
            r"action has length or shape \(8, 6\); the dataset's header expects \(8, 7\)",
        ),
        (
            {"state": np.zeros((7, 7), np.float32)},
            r"state has length or shape \(7, 7\); the dataset's header expects \(8, 7\)",
        ),
        ({"mask_png": None}, "mask_png has length or shape None; the dataset's header expects 8"),
        ({"image_jpeg": []}, "image_jpeg has length or shape 0; the dataset's header expects 8"),
        ({"object_pose": np.zeros((8, 3, 7), np.float32)}, r"object_pose has length or shape \(8, 3, 7\)"),
        ({"image_jpeg": [encode_jpeg(np.zeros((9, 7, 3), np.uint8))] * 8}, "images are 9 x 7 px, .* says 32 x 32"),
        ({"meta": {"seed": [1]}}, r"meta\['seed'\] must be a scalar or a str; got a list"),
        ({"action": np.zeros((0, 7), np.float32)}, "Episode 0 has no steps"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(
    made: SimpleNamespace, tmp_path: Path, change: dict, message: str
) -> None:
    episode = made.episode(0)
    for name, value in change.items():
        object.__setattr__(episode, name, value)  # its own checks, which only tests have, are passed by
    with DatasetWriter(tmp_path / "play", made.header()) as writer, pytest.raises(DataError, match=message):
        writer.append(episode)


def test_meta_keys_and_kinds_stay_the_same(made: SimpleNamespace, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "play", made.header()) as writer:
        writer.append(made.episode(0))
        episode = made.episode(1)
        with pytest.raises(DataError, match="Every episode of a dataset needs the same keys"):
            writer.append(replace(episode, meta={"seed": 1}))
        with pytest.raises(DataError, match=r"meta\['seed'\] is string, but in the first episode it is int64"):
            writer.append(replace(episode, meta={**episode.meta, "seed": "1001"}))
        writer.append(replace(episode, meta={**episode.meta, "contact_rate": np.float32(0.5)}))
