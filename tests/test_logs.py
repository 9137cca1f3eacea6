"""Files of lines on a disk and on a (loopback) S3 server: each line once, in order, whatever is killed when."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tap_ray import logs, storage
from tap_ray.compare.reading import read_curves
from tap_ray.errors import StorageError
from tap_ray.training import session
from tests import s3
from tests.fresh import another_process


class KilledError(Exception):
    """In the place of a kill."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def numbers(file: Path, process: Any = logs) -> list[int]:
    return [int(line) for line in process.read(file).split()]


@pytest.fixture(params=["local", "s3"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "local":
        return tmp_path / "log.jsonl"
    return storage.to_path(request.getfixturevalue("bucket")) / "log.jsonl"


def test_lines_are_there_once_and_in_order(file: Path):
    assert not logs.exists(file)
    with pytest.raises(FileNotFoundError):
        logs.read(file)
    logs.append(file, "1\n2\n")
    logs.append(file, "3\n")
    assert logs.exists(file)
    assert logs.read(file) == b"1\n2\n3\n"
    logs.join(file)
    logs.append(file, "3\n")  # on purpose
    assert logs.read(file) == b"1\n2\n3\n3\n"
    logs.rewrite(file, b"1\n")
    assert logs.read(file) == b"1\n"
    logs.append(file, "4\n")
    logs.join(file)
    logs.join(file)
    assert names(file.parent) == ["log.jsonl"]
    assert file.read_bytes() == b"1\n4\n"


def test_a_file_of_an_older_tap_ray_goes_on(bucket: str):
    file = storage.to_path(bucket) / "log.jsonl"
    storage.write(file, b"1\n2\n")
    logs.append(file, "3\n")
    assert (numbers(file), file.read_bytes()) == ([1, 2, 3], b"1\n2\n")


def test_a_line_is_one_upload_and_nothing_is_read(bucket: str, wire: s3.Wire):
    file = storage.to_path(bucket) / "log.jsonl"
    logs.append(file, "0\n")
    wire.requests.clear()
    for number in range(1, 10):
        logs.append(file, f"{number}\n")
    assert [(each.method, each.sent) for each in wire.requests] == [("PUT", 2)] * 9
    assert numbers(file) == list(range(10))
    assert wire.took("GET", "log.jsonl.parts/") == []  # its own are known


def test_a_reader_fetches_each_part_once(bucket: str, wire: s3.Wire):
    file = storage.to_path(bucket) / "log.jsonl"
    logs.append(file, "0\n")
    logs.append(file, "1\n")
    reader = another_process()
    assert numbers(file, reader) == [0, 1]
    assert len(wire.took("GET", "log.jsonl.parts/")) == 2
    logs.append(file, "2\n")
    assert numbers(file, reader) == [0, 1, 2]
    assert len(wire.took("GET", "log.jsonl.parts/")) == 3


def test_many_parts_are_joined_on_the_way(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "MANY", 3)
    file = storage.to_path(bucket) / "log.jsonl"
    for number in range(8):
        logs.append(file, f"{number}\n")
    assert (numbers(file), file.read_bytes()) == (list(range(8)), b"0\n1\n2\n3\n4\n5\n")
    assert len(logs.part_names(file)) == 2


def test_a_lost_answer_adds_no_line_twice(bucket: str, monkeypatch: pytest.MonkeyPatch):
    file, write = storage.to_path(bucket) / "log.jsonl", storage.write

    def lost(path: Path, data: bytes) -> None:
        write(path, data)
        raise StorageError("no answer")

    logs.append(file, "1\n")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", lost)
        with pytest.raises(StorageError):
            logs.append(file, "2\n")
    assert numbers(file) == [1, 2]
    logs.append(file, "2\n")
    logs.append(file, "3\n")
    assert numbers(file) == [1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", lost)
        with pytest.raises(StorageError):
            logs.append(file, "4\n")
    logs.append(file, "5\n")  # whoever gave up on 4
    assert numbers(file) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("deadly", [0, 1, 2, 3])
@pytest.mark.parametrize("old", [b"", b"0\n"])
def test_a_kill_while_parts_are_joined(bucket: str, monkeypatch: pytest.MonkeyPatch, deadly: int, old: bytes):
    """Two uploads and two removals; die before each of them. Another life continues."""
    file, steps = storage.to_path(bucket) / "log.jsonl", iter(range(4))
    if old:
        storage.write(file, old)
    logs.append(file, "1\n")
    logs.append(file, "2\n")

    def dying(function):
        def step(*args):
            if next(steps) == deadly:
                raise KilledError
            return function(*args)

        return step

    want, (bucket_fs, _) = [*map(int, old.split()), 1, 2], storage.fs_and_key(file)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", dying(storage.write))
        patch.setattr(bucket_fs, "rm", dying(bucket_fs.rm))
        with pytest.raises(KilledError):
            logs.join(file)
    again = another_process()
    assert numbers(file, again) == want
    again.append(file, "3\n")
    assert numbers(file, again) == [*want, 3]
    again.rewrite(file, again.read(file))
    assert [int(line) for line in file.read_bytes().split()] == [*want, 3]
    assert names(file.parent) == ["log.jsonl"]


APPENDS = """
import sys
from tap_ray import logs, storage
for number in range(10):
    logs.append(storage.to_path(sys.argv[1]), f"{int(sys.argv[2]) + number}\\n")
"""


def test_processes_and_readers_at_the_same_time(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Nobody writes over another's lines; who reads while they are joined sees each line once."""
    uri = f"{bucket}/log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDS, uri, first]) for first in ("0", "10")]
    assert [writer.wait() for writer in writers] == [0, 0]
    file = storage.to_path(uri)
    assert sorted(numbers(file)) == list(range(20))
    assert [n for n in numbers(file) if n < 10] == list(range(10))

    monkeypatch.setattr(logs, "MANY", 2)
    logs.rewrite(file, b"")
    done, seen = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            seen.append(numbers(file, another_process()))

    thread = threading.Thread(target=look)
    thread.start()
    for number in itertools.count():
        logs.append(file, f"{number}\n")
        if number >= 11 and len(seen) > 3:
            break
    done.set()
    thread.join()
    assert all(lines == list(range(len(lines))) for lines in seen)


def test_metrics_in_parts_are_cut_and_compared(bucket: str):
    """A run that was killed after step 3 and resumes from the checkpoint of step 2."""
    file = storage.to_path(bucket) / session.METRICS
    killed = another_process()
    for step in (1, 2, 3):
        killed.append(file, json.dumps({"step": step, "toy/loss": 1 / step}) + "\n")
    points = read_curves(file.parent, "toy").points
    assert points["step"].tolist() == [1, 2, 3]
    session.forget_after(file, 2)
    logs.append(file, '{"step": 3, "toy/loss": 0.25}\n')
    assert session.read_metrics(file) == [
        {"step": 1, "toy/loss": 1.0},
        {"step": 2, "toy/loss": 0.5},
        {"step": 3, "toy/loss": 0.25},
    ]
