"""One set of functions for a folder of this machine and for a bucket on a real (loopback) S3 server."""

import contextlib
import errno
import os
import pickle
from pathlib import Path

import pytest
import s3fs

from tap_ray import cache, storage
from tap_ray.errors import ConfigError, StorageError
from tap_ray.job import run_job
from tap_ray.play.settings import PlayJobConfig
from tests import s3


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    if request.param == "local":
        return tmp_path / "root"
    return storage.to_path(request.getfixturevalue("bucket"))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_paths_and_file_uris_are_plain_paths(tmp_path: Path):
    assert storage.to_path("runs/x") == Path("runs/x")
    assert storage.to_path("file:///mnt/runs/a%20b") == Path("/mnt/runs/a b")
    assert storage.to_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert type(storage.to_path("file:///mnt")) is type(Path())
    assert not storage.is_remote(storage.to_path("file:///mnt"))


def test_a_uri_is_used_like_a_path(bucket: str):
    path = storage.to_path(f"{bucket}/play/")
    assert str(path) == f"{bucket}/play"
    assert str(path / "meta" / "info.json") == f"{bucket}/play/meta/info.json"
    assert storage.to_path(path) is path
    assert storage.to_path(str(path)) == path.resolve() == pickle.loads(pickle.dumps(path))
    assert len({path, storage.to_path(str(path))}) == 1
    assert (path.name, str(path.parent), storage.is_remote(path)) == ("play", bucket, True)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("s3:/bucket/x", "needs two slashes"),
        (Path("s3://bucket/x"), "needs two slashes"),
        ("file://mnt/x", "three slashes: file:///folder"),
        ("s3://bucket", r"does not name a folder\. Give s3://bucket/FOLDER"),
        ("s3:///x", r"does not name a folder\. Give s3://BUCKET/FOLDER"),
        ("s3://me:secret@bucket/x", "must not contain credentials"),
        ("s4://bucket/x", r"s4://bucket/x cannot be used: .*s4.* S3 \(s3://\) and file:/// are always supported"),
        ("gs://bucket/x", "cannot be used: Please install gcsfs"),
    ],
)
def test_uris_that_cannot_be(uri: str | Path, text: str):
    with pytest.raises(ConfigError, match=text):
        storage.to_path(uri)


def test_files_come_whole_grow_and_go(root: Path):
    storage.make_folder(root)
    storage.write(root / "a.json", b"old")
    storage.write(root / "a.json", b"new")
    storage.write_all({root / "c.bin": b"1", root / "log.jsonl": b"2"})
    with storage.atomic_write(root / "deep" / "b.bin") as here:
        here.write_bytes(b"xyz")
    with storage.atomic_write(root / "report", folder=True) as here:
        (here / "in").mkdir()
        (here / "in" / "c.txt").write_text("c")
    assert names(root) == ["a.json", "c.bin", "deep/b.bin", "log.jsonl", "report/in/c.txt"]
    assert (root / "a.json").read_bytes() == b"new"
    assert storage.read_all([root / "log.jsonl", root / "deep" / "b.bin"]) == [b"2", b"xyz"]
    with storage.local_copy(root / "report") as here:
        assert (here / "in" / "c.txt").read_text() == "c"
    with storage.local_copy(root / "a.json") as here:
        assert here.read_bytes() == b"new"
    storage.remove(root / "report", first="in/c.txt")
    storage.remove(root / "report")
    assert names(root) == ["a.json", "c.bin", "deep/b.bin", "log.jsonl"]


def test_a_folder_is_uploaded_all_at_once(bucket: str, s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch):
    slow = s3.Wire(s3_server, delay_s=1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    with storage.atomic_write(storage.to_path(bucket) / "step-5", folder=True) as here:
        for number in range(4):
            (here / f"{number}.bin").write_bytes(bytes(number))
    assert [each.sent for each in sorted(slow.took("PUT"))] == [0, 1, 2, 3]
    assert slow.most > 1
    slow.close()


def test_what_fails_while_it_is_staged_never_appears(root: Path):
    storage.make_folder(root)
    storage.write(root / "a.bin", b"old")
    with contextlib.suppress(ZeroDivisionError), storage.atomic_write(root / "a.bin") as here:
        here.write_bytes(b"half")
        _ = 1 / 0
    with (
        pytest.raises(StorageError, match=r"Cannot write .*a\.bin: No space left on device\. "),
        storage.atomic_write(root / "a.bin") as here,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (root / "a.bin").read_bytes() == b"old"
    assert names(root) == ["a.bin"]


def test_a_copy_is_made_once_for_each_version(bucket: str, wire: s3.Wire, tmp_path: Path):
    file = storage.to_path(bucket) / "data" / "a.parquet"
    with pytest.raises(FileNotFoundError):
        cache.cached(file)
    storage.write(file, b"one")
    first = cache.cached(file)
    assert cache.cached(file) == first
    assert [each.got for each in wire.took("GET", "a.parquet")] == [3]
    storage.write(file, b"three")
    assert (cache.cached(file).read_bytes(), first.read_bytes()) == (b"three", b"one")
    assert cache.cached(tmp_path) == tmp_path
    assert storage.versions(tmp_path) == {}


def test_ranges_are_fetched_once_and_are_of_one_version(bucket: str, wire: s3.Wire):
    """Bytes 2 to 4 and 4 to 6 share a request; a later reader finds them, also when the file has been replaced."""
    file, other = storage.to_path(bucket) / "a.bin", storage.to_path(bucket) / "b.bin"
    storage.write(file, b"0123456789")
    storage.write(other, b"abc")
    version = storage.version(file)
    ranges = [
        cache.Range(file, version, 2, 4),
        cache.Range(file, version, 4, 6),
        cache.Range(file, version, -3, None),
        cache.Range(other, storage.version(other), -9, None),
    ]
    assert cache.read_ranges(ranges) == [b"23", b"45", b"789", b"abc"]
    assert sorted(each.got for each in wire.took("GET", ".bin")) == [3, 3, 4]
    assert {path.stat().st_mode & 0o777 for path in cache.cache_folder().iterdir()} == {0o600}
    storage.write(file, b"9876543210")
    assert cache.read_ranges(ranges) == [b"23", b"45", b"789", b"abc"]
    assert len(wire.took("GET", ".bin")) == 3
    with pytest.raises(
        cache.ReplacedError, match=r"a\.bin was replaced while it was being read\. Run the same"
    ) as error:
        cache.read_ranges([cache.Range(file, version, 0, 2)])
    assert (error.value.path, error.value.version) == (file, version)
    assert pickle.loads(pickle.dumps(error.value)).version == version
    with pytest.raises(OSError, match="it ends before byte 20"):
        cache.read_ranges([cache.Range(file, storage.version(file), 8, 20)])
    file.unlink()
    with pytest.raises(FileNotFoundError):
        cache.read_ranges([cache.Range(file, version, 0, 2)])


def test_a_process_looks_at_its_copies_now_and_then(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Room for 6400 bytes: after the first copy it looks each time that it has added 100."""
    monkeypatch.setenv("TAP_RAY_CACHE_GB", "6400e-9")
    file, looks = storage.to_path(bucket) / "a.bin", []
    storage.write(file, bytes(1000))
    monkeypatch.setattr(cache.os, "scandir", lambda folder: looks.append(folder) or [])
    for first in range(0, 250, 10):
        cache.read_ranges([cache.Range(file, storage.version(file), first, first + 10)])
    assert len(looks) == 3


def test_copies_are_their_owners_and_the_longest_unused_make_room(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Room for 250 bytes and files of 100: the third takes the place of the second, as the first was used again."""
    monkeypatch.setenv("TAP_RAY_CACHE_GB", "250e-9")
    files = [storage.to_path(bucket) / f"{number}.parquet" for number in range(4)]
    for file in files:
        storage.write(file, bytes(100))
    first, second = [cache.cached(file) for file in files[:2]]
    assert [path.stat().st_mode & 0o777 for path in (first, first.parent)] == [0o600, 0o700]
    foreign = first.parent / "mine.parquet"
    foreign.write_bytes(bytes(1000))
    for path in (first, second, foreign):
        os.utime(path, (0, 0))
    assert cache.cached(files[0]) == first
    assert first.stat().st_mtime_ns == 0
    third = cache.cached(files[2])
    assert set(first.parent.iterdir()) == {first, third, foreign}
    cache.cached(files[3])  # nothing may go: the others may be about to be opened
    assert len(list(first.parent.iterdir())) == 4


def test_how_large_the_cache_may_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TAP_RAY_CACHE_GB", raising=False)
    assert cache.cache_bytes(free=300, used=100) == 200
    monkeypatch.setenv("TAP_RAY_CACHE_GB", "0.5")
    assert cache.cache_bytes(free=300, used=100) == 5e8
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("TAP_RAY_CACHE_GB", wrong)
        with pytest.raises(
            ConfigError, match=rf"a positive number of GB, e\.g\. 50: .*; got '{wrong}'\. If it is unset"
        ):
            cache.cache_bytes(free=300, used=100)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent server is given up at once."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_such_bucket(bucket: str):
    path = storage.to_path("s3://no-such-bucket/play")
    with pytest.raises(StorageError, match=r"no-such-bucket/play: there is no bucket 'no-such-bucket'\. Create it"):
        storage.require_reachable(path)
    with pytest.raises(
        StorageError, match=r"Cannot write .*a: The specified bucket does not exist\. Create the bucket"
    ):
        storage.write(path / "a", b"")
    storage.require_reachable(storage.to_path(bucket))  # nothing there, but the bucket is


def test_refused_credentials(s3_server: s3.Server, bucket: str, impatient: None):
    s3_server.check_credentials(True)
    try:
        with pytest.raises(StorageError, match=r"Cannot read s3://.*: .* Check the credentials \(AWS_ACCESS_KEY_ID"):
            storage.require_reachable(storage.to_path(bucket))
    finally:
        s3_server.check_credentials(False)


def test_nobody_answers(bucket: str, impatient: None, monkeypatch: pytest.MonkeyPatch):
    port = s3.free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    path = storage.to_path(bucket)
    for action in (storage.require_reachable, lambda path: storage.write(path, b"")):
        with pytest.raises(
            StorageError, match=rf"Could not connect .*AWS_ENDPOINT_URL \(now http://127.0.0.1:{port}\)"
        ):
            action(path)


def test_no_credentials_at_all(bucket: str, impatient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # ~/.aws
    with pytest.raises(StorageError, match=r"Unable to locate credentials\. Check the credentials"):
        storage.require_reachable(storage.to_path(bucket))


def test_a_job_says_so_in_one_line_with_exit_status_2(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["collect_play", "--out", "s3://no-such-bucket/play"])
    with pytest.raises(SystemExit) as ended:
        run_job(collected, PlayJobConfig)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["collect_play", "--out", f"{bucket}/play"])
    run_job(collected, PlayJobConfig)
    assert capsys.readouterr().out == f"{bucket}/play\n"


def collected(config: PlayJobConfig) -> Path:
    assert config.out is not None
    return config.out


def test_what_a_killed_process_left_in_a_folder_goes(tmp_path: Path):
    (tmp_path / "final/.model.safetensors.ab12cd.tmp").mkdir(parents=True)
    (tmp_path / "final/.model.safetensors.ab12cd.tmp/model.safetensors").write_bytes(b"half")
    (tmp_path / "final/.policy.json.tmp").write_bytes(b"{")
    storage.write(tmp_path / "final/kept.json", b"{}")
    with storage.atomic_write(tmp_path / "final", folder=True) as here:
        (here / "model.safetensors").write_bytes(b"whole")
    assert names(tmp_path) == ["final/kept.json", "final/model.safetensors"]
