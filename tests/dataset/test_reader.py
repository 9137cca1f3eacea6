"""Reading: a round trip, and every error a user can meet."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_ray.config import digest
from tap_ray.dataset import layout
from tap_ray.dataset.lerobot import open_dataset, read_episode
from tap_ray.dataset.reader import read_columns
from tap_ray.errors import DataError, SpecError
from tap_ray.runs import hash_of


@pytest.fixture
def copy(play_dataset: Path, tmp_path: Path) -> Path:
    """A dataset to be damaged."""
    return Path(shutil.copytree(play_dataset, tmp_path / "copy"))


def test_every_number_comes_back(made: SimpleNamespace, play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    for index in range(10):
        episode, again, columns = made.episode(index), read_episode(dataset, index), read_columns(dataset, index)
        for name in ("index", "task", "image_jpeg", "mask_png"):
            assert getattr(again, name) == getattr(episode, name)
        for name in ("state", "action", "contact", "object_pose"):
            np.testing.assert_array_equal(getattr(again, name), getattr(episode, name))
            assert getattr(again, name).dtype == getattr(episode, name).dtype
        assert again.meta == episode.meta
        assert set(columns["task_index"]) == {index % 3}
        np.testing.assert_allclose(columns["timestamp"], np.arange(len(episode)) / 5)


def test_what_is_not_asked_for_is_empty(made: SimpleNamespace, play_dataset: Path) -> None:
    episode = read_episode(open_dataset(play_dataset), 1, [layout.ACTION])
    assert len(episode) == 9
    assert (episode.state.shape, episode.object_pose.shape, episode.contact.shape) == ((9, 0), (9, 0, 7), (0,))
    assert (episode.image_jpeg, episode.mask_png) == ((), None)


def test_facts(made: SimpleNamespace, play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    assert len(dataset) == 10
    assert dataset.tasks == ("task 0", "task 1", "task 2")
    assert dataset.lengths.tolist() == [8, 9, 10, 11, 12, 8, 9, 10, 11, 12]
    assert dataset.spec == made.spec
    assert dataset.episodes["seed"].tolist() == list(range(1000, 1010))
    assert dataset.episodes["success"].tolist() == [False, True] * 5
    assert dataset.episodes["dataset_to_index"].iloc[-1] == dataset.info["total_frames"] == 100
    assert dataset.stats[layout.IMAGE]["mean"].shape == (3, 1, 1)
    assert hash_of(play_dataset) == digest({"plan": dataset.header.to_json()["hash"], "episodes": 10})


def test_statistics_are_those_of_all_numbers(play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    actions = np.concatenate([read_episode(dataset, index, [layout.ACTION]).action for index in range(10)])
    np.testing.assert_allclose(dataset.stats[layout.ACTION]["mean"], actions.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(dataset.stats[layout.ACTION]["std"], actions.std(0, dtype=np.float64), rtol=1e-9)


def test_facts_cross_processes(play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.header == dataset.header
    assert again.episodes.equals(dataset.episodes)


@pytest.mark.parametrize(("name", "message"), [("missing", "does not exist"), ("", "has no folder meta/")])
def test_no_data_set(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"There is no dataset at .*{message}.*jobs.collect_play"):
        open_dataset(tmp_path / name)


def test_empty(made: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty: no episode has been committed yet"):
        open_dataset(made.write(tmp_path / "empty", 0))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_other_version(copy: Path) -> None:
    change_json(copy / layout.INFO, codebase_version="v2.1")
    with pytest.raises(DataError, match=r"version 'v2.1', but tap_ray reads 'v3.0'. Import it"):
        open_dataset(copy)


def test_other_header_version(copy: Path) -> None:
    change_json(copy / layout.HEADER, version=99)
    with pytest.raises(DataError, match="has version 99, but this version of tap_ray reads 1"):
        open_dataset(copy)


def test_header_with_an_unknown_spec(copy: Path) -> None:
    change_json(copy / layout.HEADER, spec={"robot": "widowx"})
    with pytest.raises(SpecError, match="written by another version"):
        open_dataset(copy)


def test_no_header(copy: Path) -> None:
    (copy / layout.HEADER).unlink()
    with pytest.raises(DataError, match="was not made by tap_ray, so its robot's conventions are unknown"):
        open_dataset(copy)


def test_feature_mismatch(copy: Path) -> None:
    info = json.loads((copy / layout.INFO).read_text())
    info["features"]["action"]["shape"] = [6]
    change_json(copy / layout.INFO, features=info["features"])
    with pytest.raises(DataError, match=r"(?s)info.json do not match.*action: info.json .*\[6\].*--repair"):
        open_dataset(copy)


def test_cut_off_info(copy: Path) -> None:
    (copy / layout.INFO).write_text('{"codebase_version": "v3')
    with pytest.raises(DataError, match=r"is not valid JSON .*--repair"):
        open_dataset(copy)


def test_cut_off_parquet(copy: Path) -> None:
    file = copy / layout.data_file(1)
    file.write_bytes(file.read_bytes()[:1000])
    dataset = open_dataset(copy)
    with pytest.raises(
        DataError, match=r"file-001.parquet \(1000 bytes\) is truncated, damaged, or not a Parquet file.*Copy it again"
    ):
        read_episode(dataset, 5)


def test_missing_data_file(copy: Path) -> None:
    (copy / layout.data_file(1)).unlink()
    with pytest.raises(DataError, match=r"file-001.parquet is missing, but the dataset's metadata refers to it"):
        read_episode(open_dataset(copy), 5)


def test_missing_episode_table(copy: Path) -> None:
    (copy / layout.episodes_file(1)).unlink()
    with pytest.raises(DataError, match=r"file-001.parquet is missing, but file-002.parquet exists"):
        open_dataset(copy)


def test_every_moment_of_a_commit_can_be_read(made: SimpleNamespace, tmp_path: Path) -> None:
    """A dataset of 6 episodes grows to 10, and one of none to 6; a reader looks after each file that has appeared."""
    for before, after in ((6, 10), (0, 6)):
        path, grown = made.write(tmp_path / f"{before}", before), made.write(tmp_path / f"to-{after}", after)
        names = [f"{kind(n)}" for n in range(3) for kind in (layout.data_file, layout.episodes_file)]
        seen = []
        for name in [*names, layout.TASKS, layout.STATS, layout.INFO]:
            if not (grown / name).exists():
                continue
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(grown / name, path / name)
            if not (path / layout.episodes_file(0)).exists():
                continue
            dataset = open_dataset(path)
            reference = open_dataset(made.write(tmp_path / f"only-{len(dataset)}", len(dataset)))
            assert (dataset.info, dataset.tasks) == (reference.info, reference.tasks)
            for feature, values in reference.stats.items():
                for key, value in values.items():
                    np.testing.assert_array_equal(dataset.stats[feature][key], value, f"{name} {feature} {key}")
            for index in range(len(dataset)):
                read_episode(dataset, index, [layout.ACTION])
            seen.append(len(dataset))
        assert seen == ([6, 6, 6, 8, 8, 10, 10, 10, 10] if before else [4, 4, 6, 6, 6, 6])


def test_episode_tables_are_missing_at_the_end(copy: Path) -> None:
    (copy / layout.episodes_file(2)).unlink()
    with pytest.raises(DataError, match=r"says 10 episodes, but the episode tables contain 8: some are missing.*--rep"):
        open_dataset(copy)


def replace_action(copy: Path, value: float) -> None:
    """Rewrite the first data file with its very first action changed."""
    file = pq.ParquetFile(copy / layout.data_file(0))
    groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
    actions = np.stack(groups[0]["action"].to_pylist()).astype(np.float32)
    actions[0, 0] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), type=groups[0].schema.field("action").type)
    groups[0] = groups[0].set_column(groups[0].column_names.index("action"), "action", column)
    with pq.ParquetWriter(copy / layout.data_file(0), file.schema_arrow) as writer:
        for group in groups:
            writer.write_table(group)


def test_nan_in_an_action(copy: Path) -> None:
    replace_action(copy, np.nan)
    with pytest.raises(DataError, match="episode 0 has NaN or infinite numbers in 'action'"):
        read_episode(open_dataset(copy), 0)


def test_no_such_episode_or_feature(play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    with pytest.raises(DataError, match="has episodes 0 to 9; there is no episode 10"):
        read_episode(dataset, 10)
    with pytest.raises(DataError, match=r"no feature 'observation.image.main'. Did you mean 'observation.images.main'"):
        read_episode(dataset, 0, ["observation.image.main"])
