"""Crops cut by tasks of Ray: the files of a single process, only what is missing, and errors that say what is wrong."""

import shutil
from pathlib import Path

import pytest

from tap_ray.dataset import crop_files
from tap_ray.dataset.crop_files import cut_block, folder, missing_blocks, read_crops
from tap_ray.dataset.crops import CROPS
from tap_ray.distributed import crops
from tap_ray.errors import DataError
from tests.carried_square import write

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Data copying its own settings
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_files, "BLOCK_EPISODES", 4)


def test_tasks_write_the_files_of_a_single_process(tmp_path: Path):
    dataset = write(tmp_path / "play", 10)
    shutil.copytree(tmp_path / "play", tmp_path / "alone")
    for block in [(0, 3), (4, 7), (8, 9)]:
        cut_block(write(tmp_path / "alone", 10), CROPS, block)
    cut_block(dataset, CROPS, (4, 7))
    assert crops.cut_all(dataset, CROPS, progress=False) == 6  # episodes 0 to 3, 8 and 9
    assert crops.cut_all(dataset, CROPS, progress=False) == 0
    written = {file.name: file.read_bytes() for file in folder(dataset, CROPS).iterdir()}
    alone = folder(dataset, CROPS).relative_to(tmp_path / "play")
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "alone" / alone).iterdir()}
    assert [len(each) for each in read_crops(dataset, [0, 7, 9], CROPS)] == [1, 0, 1]


def test_a_damaged_data_file_is_told(tmp_path: Path):
    dataset = write(tmp_path / "play", 4)
    file = tmp_path / "play/data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated, damaged, or not a Parquet"):
        crops.cut_missing([dataset])
    assert missing_blocks(dataset, CROPS) == [(0, 3)]
