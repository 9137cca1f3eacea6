"""The command: each rule, broken in turn, is named; the exit status is 0, 1 or 2."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_ray.dataset import layout
from tap_ray.dataset.lerobot import DatasetWriter, main, open_dataset, read_episode
from tap_ray.dataset.reader import read_columns
from tap_ray.errors import DataError


@pytest.fixture
def copy(play_dataset: Path, tmp_path: Path) -> Path:
    """A dataset to be damaged."""
    return Path(shutil.copytree(play_dataset, tmp_path / "copy"))


def change_info(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((path / layout.INFO).read_text())
    change(info)
    (path / layout.INFO).write_text(json.dumps(info))


def change_data(path: Path, change: Callable[[pa.Table], pa.Table], *, merge: bool = False) -> None:
    """Rewrite the first data file with its first row group changed, or with all rows in one group."""
    file = pq.ParquetFile(path / layout.data_file(0))
    groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
    groups[0] = change(groups[0])
    if merge:
        groups = [pa.concat_tables(groups)]
    with pq.ParquetWriter(path / layout.data_file(0), groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), pa.field(name, values.type), values)


def break_image(path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table[layout.IMAGE].to_pylist()
        rows[3]["bytes"] = rows[3]["bytes"][:200]
        return with_column(table, layout.IMAGE, pa.array(rows, table.schema.field(layout.IMAGE).type))

    change_data(path, change)


def break_stats(path: Path) -> None:
    stats = json.loads((path / layout.STATS).read_text())
    stats["action"]["mean"][0] += 1
    (path / layout.STATS).write_text(json.dumps(stats))


def break_contact(path: Path) -> None:
    change_data(path, lambda table: with_column(table, layout.CONTACT, pa.array(np.full(8, np.inf, np.float32))))


def break_tasks(path: Path) -> None:
    pd.DataFrame({"task_index": [0, 1, 2], "task": list("abc")}).to_parquet(path / layout.TASKS)


def break_order(path: Path) -> None:
    change_data(path, lambda table: with_column(table, "index", pa.array(np.arange(1, 9))))


def break_episodes(path: Path) -> None:
    table = pq.read_table(path / layout.episodes_file(2))
    pq.write_table(with_column(table, "dataset_from_index", pa.array([0, 12])), path / layout.episodes_file(2))


def break_columns(path: Path) -> None:
    file = path / layout.data_file(2)
    pq.write_table(pq.read_table(file).drop_columns([layout.OBJECT_POSE]), file)


def break_groups(path: Path) -> None:
    change_data(path, lambda table: table, merge=True)


def cut_off(path: Path) -> None:
    file = path / layout.data_file(1)
    file.write_bytes(file.read_bytes()[:-8])


def break_page(path: Path, name: str, column: int) -> None:
    """Overwrite 16 bytes where the page of a column begins; the file's footer stays whole."""
    file = path / name
    data = bytearray(file.read_bytes())
    place = pq.read_metadata(file).row_group(0).column(column).data_page_offset
    data[place : place + 16] = b"\xff" * 16
    file.write_bytes(data)


def leave_temporary(path: Path) -> None:
    (path / "data/chunk-000/file-003.parquet.tmp").write_bytes(b"half")


def leave_folder(path: Path) -> None:
    """As a report that was killed while its video was written."""
    (path / "report/.play.mp4.r4t98wga.tmp").mkdir(parents=True)
    (path / "report/.play.mp4.r4t98wga.tmp/play.mp4").write_bytes(b"half")


def leave_uncommitted(path: Path) -> None:
    shutil.copy(path / layout.data_file(2), path / layout.data_file(3))


BREAKS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "image": (break_image, "episode 0, frame 3: observation.images.main cannot be decoded", False),
    "contact": (break_contact, "episode 0: observation.contact contains NaN or infinity", False),
    "order": (break_order, "episode 0: index violates the rule", False),
    "episodes": (break_episodes, "episode 8: dataset_from_index is 0, expected 77", False),
    "columns": (break_columns, "privileged.object_pose is absent, expected fixed_size_list", False),
    "groups": (break_groups, "episode 0: row group has 38 rows, expected 8", False),
    "truncated": (cut_off, "file-001.parquet", False),
    "page of frames": (lambda p: break_page(p, layout.data_file(1), 3), "file-001.parquet", False),
    "page of episodes": (lambda p: break_page(p, layout.episodes_file(1), 9), "file-001.parquet", False),
    "page of tasks": (lambda p: break_page(p, layout.TASKS, 1), "meta/tasks.parquet: does not match", True),
    "stats": (break_stats, "meta/stats.json: does not match the committed episodes", True),
    "tasks": (break_tasks, "meta/tasks.parquet: does not match the committed episodes", True),
    "temporary": (leave_temporary, "file-003.parquet.tmp: temporary file of an unfinished write", True),
    "folder": (leave_folder, "report/.play.mp4.r4t98wga.tmp: temporary file of an unfinished write", True),
    "uncommitted": (leave_uncommitted, "file-003.parquet: data file that was never committed", True),
    "fps": (lambda p: change_info(p, lambda i: i.pop("fps")), "lacks fps", True),
    "splits": (
        lambda p: change_info(p, lambda i: i.update(splits={})),
        "splits is {}, expected {'train'",
        True,
    ),
    "names": (
        lambda p: change_info(p, lambda i: i["features"][layout.IMAGE].update(names=["h", "w", "c"])),
        "observation.images.main has the names ['h', 'w', 'c'], expected height, width, channels",
        True,
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_rule_is_named_and_what_can_be_mended_is(
    copy: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    break_it, problem, mendable = BREAKS[case]
    break_it(copy)
    assert main(["verify", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert problem in printed
    assert "-> " in printed
    assert main(["verify", str(copy), "--repair"]) == (0 if mendable else 1)
    assert ("repaired  " in capsys.readouterr().out) == mendable


@pytest.mark.parametrize(
    ("name", "column"), [(layout.data_file(1), 3), (layout.episodes_file(1), 9), (layout.TASKS, 1)]
)
def test_a_damaged_page_is_an_error_that_names_its_file(copy: Path, name: str, column: int) -> None:
    break_page(copy, name, column)
    with pytest.raises(DataError, match=rf"{Path(name).name}.*damaged.*(Copy|--repair)"):
        read_episode(open_dataset(copy), 4)


def test_a_repair_leaves_a_running_writer_alone(
    made: SimpleNamespace, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_uncommitted(copy)
    with DatasetWriter(copy, made.header()):
        leave_uncommitted(copy)  # what it is committing now
        assert main(["verify", str(copy), "--repair"]) == 1
        assert f"cannot repair: {copy} is being written by another process. Wait for it" in capsys.readouterr().out
        assert (copy / layout.data_file(3)).exists()
    assert main(["verify", str(copy), "--repair"]) == 0


def test_a_users_column_is_left_alone(made: SimpleNamespace, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """next.reward in every data file, in info.json and stats.json, laid out as lerobot's tools do."""
    for number in range(3):
        file = pq.ParquetFile(copy / layout.data_file(number))
        groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        groups = [group.append_column("next.reward", pa.array(np.ones(len(group), np.float32))) for group in groups]
        with pq.ParquetWriter(copy / layout.data_file(number), groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
    reward = {"dtype": "float32", "shape": [1], "names": None}
    change_info(copy, lambda info: info["features"].update({"next.reward": reward}))
    stats = json.loads((copy / layout.STATS).read_text())
    stats["next.reward"] = {"mean": [1.0]}
    (copy / layout.STATS).write_text(json.dumps(stats, indent=4))
    assert main(["verify", str(copy)]) == 0
    (copy / layout.TASKS).unlink()
    assert main(["verify", str(copy), "--repair"]) == 0
    assert "repaired  meta/tasks.parquet" in capsys.readouterr().out
    dataset = open_dataset(copy)
    assert dataset.info["features"]["next.reward"] == reward
    assert set(read_columns(dataset, 0)) == set(layout.features(made.header()))
    with (
        DatasetWriter(copy, made.header()) as writer,
        pytest.raises(DataError, match=r"does not know: next\.reward\."),
    ):
        writer.append(made.episode(10))


def test_a_good_data_set(play_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(play_dataset)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "13 rules checked, 0 broken"
    assert all(line.startswith("ok ") for line in lines[:-1])


def test_an_empty_data_set(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(made.write(tmp_path / "empty", 0))]) == 1
    assert "no episode has been committed yet" in capsys.readouterr().out


def test_no_data_set_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert "There is no dataset at" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["verfy", str(tmp_path)])
    assert stop.value.code == 2
