"""A dataset on a (loopback) S3 server: the bytes of a local one, whatever is killed, and every rule of the format."""

import io
import itertools
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tap_ray import cache, locks, storage
from tap_ray.dataset import crop_files, layout, row_groups
from tap_ray.dataset.action_chunks import ActionChunkConfig, load
from tap_ray.dataset.crop_files import missing_blocks, read_crops
from tap_ray.dataset.crops import CropConfig
from tap_ray.dataset.lerobot import main
from tap_ray.dataset.reader import open_dataset, read_columns, read_episode, read_episodes, require_readable
from tap_ray.dataset.recovery import repair
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.verify import verify
from tap_ray.dataset.windows import WindowConfig
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import DataError, StorageError
from tests import s3
from tests.dataset.test_writer import LONG, Children, Killed, append_to_the_end, children, give_up
from tests.digests import digests
from tests.made_data import write_made_dataset

__all__ = ["children"]


def broken(path: Path) -> list[str]:
    return [problem for rule in verify(path) for problem in rule.problems]


def test_the_same_bytes_and_the_same_windows_as_on_a_local_disk(
    made: SimpleNamespace, bucket: str, play_dataset: Path, capsys: pytest.CaptureFixture[str]
):
    path = made.write(storage.to_path(bucket), 6)
    before = open_dataset(path)
    assert len(before) == 6
    read_episode(before, 5)  # its file, which the next commit makes longer, is copied to this machine
    made.write(path, 10)
    assert digests(path) == digests(play_dataset)
    assert main(["verify", str(path)]) == 0
    assert "broken" not in capsys.readouterr().out.replace("0 broken", "")

    here, there = open_dataset(play_dataset), open_dataset(str(path))
    for index in (0, 5, 9):
        one, other = read_episode(here, index), read_episode(there, index)
        assert read_columns(here, index).keys() == read_columns(there, index).keys()
        np.testing.assert_array_equal(one.action, other.action)
        assert one.image_jpeg == other.image_jpeg
    np.testing.assert_array_equal(read_episode(before, 5).state, read_episode(here, 5).state)
    config = WindowConfig(batch_size=8, group_size=4, holdout_every=0)
    for _, one, other in zip(range(5), iterate(here, config, seed=1), iterate(there, config, seed=1), strict=False):
        np.testing.assert_array_equal(one.rgb, other.rgb)


WINDOW_COLUMNS = [layout.IMAGE, layout.STATE, layout.ACTION, layout.CONTACT, "task_index"]


def chunk_bytes(path: Path, groups: Iterable[int], columns: Sequence[str]) -> int:
    """Bytes of these columns in these row groups, as the file's footer has them."""
    about = pq.read_metadata(io.BytesIO(storage.read(path)))
    chunks = [about.row_group(group).column(i) for group in groups for i in range(about.num_columns)]
    return sum(c.total_compressed_size for c in chunks if c.path_in_schema.startswith(tuple(columns)))


@pytest.fixture
def large(made: SimpleNamespace, bucket: str) -> Path:
    """64 episodes in one file, mostly images, with a footer of 77 kB."""
    path = storage.to_path(bucket)
    with DatasetWriter(path, made.header(size=128, episodes_per_file=64)) as writer:
        for index in range(64):
            writer.append(made.episode(index, size=128, steps=8))
    return path


def test_a_group_fetches_its_own_bytes_and_an_epoch_each_byte_once(large: Path, wire: s3.Wire):
    """16 episodes of a file: their columns, with the small masks between them; the footer once."""
    dataset, file = open_dataset(str(large)), large / layout.data_file(0)
    group, epoch = range(0, 64, 4), range(64)
    wire.requests.clear()

    episodes = list(read_episodes(dataset, group, WINDOW_COLUMNS))
    assert [len(episode.image_jpeg) for episode in episodes] == [8] * 16
    tail, footer, *pieces = [each.got for each in wire.took("GET", "data/")]
    assert (tail, 70_000 < footer < 90_000, len(pieces)) == (65536, True, 16)
    needed = chunk_bytes(file, group, WINDOW_COLUMNS)
    assert needed <= sum(pieces) < 1.1 * needed

    list(read_episodes(dataset, epoch, WINDOW_COLUMNS))
    fetched = sum(each.got for each in wire.took("GET", "data/")) - tail - footer
    assert fetched < 1.1 * chunk_bytes(file, epoch, WINDOW_COLUMNS)
    wire.requests.clear()
    row_groups.read_footer.cache_clear()  # as in another process
    list(read_episodes(open_dataset(str(large)), epoch, WINDOW_COLUMNS))
    assert wire.took("GET", "data/") == []


def test_states_are_read_without_images(large: Path, wire: s3.Wire):
    dataset, file = open_dataset(str(large)), large / layout.data_file(0)
    require_readable(dataset)
    _, _, *pieces = [each.got for each in wire.took("GET", "data/")]
    assert len(pieces) == 64
    assert sum(pieces) < 64 * row_groups.SMALL
    assert sum(pieces) < chunk_bytes(file, range(64), [layout.IMAGE]) / 4
    motions = load(dataset, ActionChunkConfig(horizon=4, holdout_every=0))
    assert len(motions.action_FA) == 64 * 8
    assert len(wire.took("GET", "data/")) == 2 + 64


def test_a_writer_that_goes_on_does_not_fetch_full_files(made: SimpleNamespace, large: Path, wire: s3.Wire):
    with DatasetWriter(str(large), made.header(size=128, episodes_per_file=64)) as writer:
        assert writer.committed == 64
    assert len(wire.took("GET", "data/")) == 2
    assert sum(each.got for each in wire.took("GET", "data/")) < 200_000


def test_crops_are_fetched_a_block_once(bucket: str, wire: s3.Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ten episodes in blocks of four, the images as on a disk."""
    monkeypatch.setattr(crop_files, "BLOCK_EPISODES", 4)
    made = {"num_episodes": 10, "tasks": ["play"], "crops": True}
    here = open_dataset(write_made_dataset(tmp_path / "play", **made))
    there = open_dataset(write_made_dataset(storage.to_path(bucket), **made))
    crop_files.read_rows.cache_clear()
    shutil.rmtree(cache.cache_folder())
    wire.requests.clear()
    config = CropConfig()
    for one, other in zip(read_crops(here, range(10), config), read_crops(there, range(10), config), strict=True):
        np.testing.assert_array_equal(one.object_rgb, other.object_rgb)
        assert one.bout_T.tolist() == other.bout_T.tolist()
    assert len(wire.took("GET", "/crops/")) == 3
    read_crops(there, [9, 0], config)
    assert missing_blocks(there, config) == []
    assert len(wire.took("GET", "/crops/")) == 3


def test_a_file_that_has_grown_is_followed_and_another_is_refused(made: SimpleNamespace, bucket: str):
    path = made.write(storage.to_path(bucket), 2)
    before, never_read = open_dataset(path), open_dataset(path)
    read_episode(before, 0, [layout.ACTION])
    made.write(path, 3)
    episode = read_episode(before, 1)  # was not fetched before the file was replaced
    np.testing.assert_array_equal(episode.state, made.episode(1).state)
    assert before.versions == open_dataset(path).versions != never_read.versions
    assert read_episode(never_read, 1).image_jpeg == made.episode(1).image_jpeg

    storage.remove(path)
    with DatasetWriter(path, made.header()) as writer:
        for index in range(3):
            writer.append(replace(made.episode(index), state=made.episode(index).state + 1))
    with pytest.raises(DataError, match=r"file-000\.parquet have changed since the dataset was opened\. Run the same"):
        read_episode(before, 0, [layout.OBJECT_POSE])


@pytest.mark.parametrize("deadly_upload", [2, 7, *(pytest.param(n, marks=LONG) for n in (3, 4, 5, 6))])
def test_a_kill_at_any_upload_is_repaired(
    made: SimpleNamespace, bucket: str, play_dataset: Path, monkeypatch: pytest.MonkeyPatch, deadly_upload: int
):
    """A file that grows and a new one, in three steps each; die before some upload, in each of them and the next."""
    path, count, write = storage.to_path(bucket), itertools.count(1), storage.write
    made.write(path, 2)

    def deadly(file: Path, data: bytes) -> None:
        if next(count) == deadly_upload:
            raise Killed
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", deadly)
        writer = DatasetWriter(path, made.header())
        with pytest.raises(Killed):
            append_to_the_end(writer, [made.episode(index) for index in range(2, 10)])
        give_up(writer)
    repair(path)
    assert broken(path) == []
    made.write(path, 10)
    assert digests(path) == digests(play_dataset)


@pytest.mark.slow
@pytest.mark.long_proof
def test_sigkills_at_random_moments_give_the_same_bytes(bucket: str, tmp_path: Path, children: Children):
    path = storage.to_path(bucket)
    for kill in range(2):
        file = path / layout.episodes_file(4 * kill)
        status = children.write(path, kill_at=file, delay_s=0.03 * kill, wait_at=12 * kill + 20)
        assert status == -signal.SIGKILL
    assert children.write(path) == 0
    assert children.write(tmp_path / "whole") == 0
    assert digests(path) == digests(tmp_path / "whole")
    assert broken(path) == []


def test_what_need_not_wait_is_uploaded_together(
    made: SimpleNamespace, s3_server: s3.Server, bucket: str, wire: s3.Wire
):
    """The data first; then the table that commits it, the tasks and the statistics; info.json last."""
    with DatasetWriter(bucket, made.header()) as writer:
        for index in range(4):
            writer.append(made.episode(index))
        writer.commit()
        puts = [each.path.partition(bucket.rpartition("/")[2])[2] for each in wire.took("PUT")]
    puts = [put for put in puts if "lock" not in put]
    assert puts[:2] == ["/meta/tap_ray.json", "/data/chunk-000/file-000.parquet"]
    assert set(puts[2:5]) == {"/meta/episodes/chunk-000/file-000.parquet", "/meta/tasks.parquet", "/meta/stats.json"}
    assert puts[5:] == ["/meta/info.json"]


@pytest.mark.parametrize("ahead", [layout.TASKS, layout.STATS])
def test_derived_files_newer_than_the_tables_are_ignored(
    made: SimpleNamespace, bucket: str, tmp_path: Path, ahead: str
):
    """A kill in the second step: the tables know task 0 and 8 frames, one of the others task 1 and 17."""
    path = made.write(storage.to_path(bucket), 1)
    storage.write(path / ahead, (made.write(tmp_path / "longer", 2) / ahead).read_bytes())
    dataset = open_dataset(path)
    assert (dataset.tasks, dataset.stats["index"]["count"].tolist()) == (("task 0",), [8])
    assert len(repair(path)) == 1
    assert broken(path) == []


def test_a_second_writer_is_refused(made: SimpleNamespace, bucket: str):
    with (
        DatasetWriter(bucket, made.header()),
        pytest.raises(DataError, match=r"s3://.* is being written by another process"),
    ):
        DatasetWriter(bucket, made.header())
    DatasetWriter(bucket, made.header()).close()


def test_a_writer_that_lost_its_lock_writes_no_more(
    made: SimpleNamespace, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    writer = DatasetWriter(bucket, made.header())
    monkeypatch.setattr(locks, "LEASE_S", 0.0)  # it looks before each write, not only after a long silence
    path = storage.to_path(bucket)
    storage.write(path.with_name(f"{path.name}.lock"), b'{"owner": "another process"}')
    with pytest.raises(StorageError, match="was lost"):
        append_to_the_end(writer, [made.episode(0)])
    assert not (storage.to_path(bucket) / "data").exists()
    give_up(writer)


def test_a_missing_dataset_ends_with_status_2(bucket: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DataError, match=r"There is no dataset at s3://.*: it does not exist\. Collect one"):
        open_dataset(bucket)
    assert main(["verify", bucket]) == 2
    assert "it has no folder meta/" in capsys.readouterr().err
    assert main(["verify", "s3://no-such-bucket/play"]) == 2
    assert "there is no bucket 'no-such-bucket'" in capsys.readouterr().err
    assert main(["verify", "file://play"]) == 2


def test_the_message_of_a_damaged_file_names_its_uri(made: SimpleNamespace, bucket: str):
    path = made.write(storage.to_path(bucket), 4)
    file = path / layout.data_file(0)
    storage.write(file, storage.read(file)[:-100])
    with pytest.raises(
        DataError, match=rf"^{bucket}/data/chunk-000/file-000\.parquet .* truncated, damaged, or not a Parquet"
    ):
        read_episode(open_dataset(path), 0)
    file.unlink()
    with pytest.raises(DataError, match=r"file-000\.parquet is missing, but"):
        read_episode(open_dataset(path), 0)
