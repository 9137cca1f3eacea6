"""Computes the contents of the files of LeRobot v3.0 (with video) and v2.1.

    v3.0   data/chunk-000/file-000.parquet      v2.1   data/chunk-000/episode_000000.parquet
           videos/KEY/chunk-000/file-000.mp4           videos/chunk-000/KEY/episode_000000.mp4
           meta/episodes/chunk-000/file-000.parquet    meta/episodes.jsonl, episodes_stats.jsonl
           meta/info.json, stats.json, tasks.parquet   meta/info.json, tasks.jsonl

Robot masks (which lossy video would blur) and the privileged poses of objects are not exported.

Source: lerobot 0.4.4 and 0.3.3, datasets/utils.py and lerobot_dataset.py.
"""

import json
from typing import Any, Sequence

import pyarrow as pa

from tap_ray.dataset import layout, tables
from tap_ray.dataset.layout import CHUNKS_SIZE, MASK, OBJECT_POSE, DatasetHeader, image_columns
from tap_ray.dataset.reader import DatasetInfo
from tap_ray.dataset.statistics import stats_to_json

LEFT_OUT = (MASK, OBJECT_POSE)
VIDEO_V3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_V21 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V21 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
KEY_EVERY = 2
"""Frames from one key frame to the next, as in lerobot, because training reads single frames."""


def columns(header: DatasetHeader, *, video: bool) -> list[str]:
    """Columns of a data file."""
    left_out = (*LEFT_OUT, *(image_columns(header.spec) if video else ()))
    return [name for name in layout.features(header) if name not in left_out]


def features(header: DatasetHeader, pix_fmt: str) -> dict[str, dict[str, Any]]:
    """The features of info.json; `pix_fmt` is that of the video, "" without one."""
    found = {name: feature for name, feature in layout.features(header).items() if name not in LEFT_OUT}
    for camera in image_columns(header.spec) if pix_fmt else ():
        height, width = header.image_size
        found[camera] = found[camera] | {
            "dtype": "video",
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": pix_fmt,
                "video.is_depth_map": False,
                "video.fps": header.spec.control_hz,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    return found


def described(table: pa.Table, header: DatasetHeader) -> pa.Table:
    """An episode's data with the metadata that the `datasets` library needs: which columns are images."""
    kinds: dict[str, Any] = {}
    for name in table.column_names:
        feature = layout.features(header)[name]
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["dtype"] == "image":
            value = {"_type": "Image"}
        elif feature["shape"] != [1]:
            value = {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}
        kinds[name] = value
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})


def data_file_v21(episode: int) -> str:
    """Path of an episode's data."""
    return DATA_V21.format(episode_chunk=episode // CHUNKS_SIZE, episode_index=episode)


def video_file_v21(camera: str, episode: int) -> str:
    """Path of a camera's video of an episode."""
    return VIDEO_V21.format(episode_chunk=episode // CHUNKS_SIZE, video_key=camera, episode_index=episode)


def video_file_v3(camera: str, number: int) -> str:
    """Path of a camera's video that belongs to the n-th data file."""
    chunk, file = divmod(number, CHUNKS_SIZE)
    return VIDEO_V3.format(video_key=camera, chunk_index=chunk, file_index=file)


def episodes_v3(table: pa.Table, number: int, header: DatasetHeader) -> pa.Table:
    """The episode table of the n-th data file: ours, with where each episode lies in each camera's video, s."""
    left_out = tuple(f"stats/{name}/" for name in LEFT_OUT)
    table = table.select([name for name in table.column_names if not name.startswith(left_out)])
    chunk, file = divmod(number, CHUNKS_SIZE)
    begin, rows, hz = 0, [], header.spec.control_hz
    for length in table["length"].to_pylist():
        rows.append((chunk, file, begin / hz, (begin + length) / hz))
        begin += length
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    for camera in image_columns(header.spec):
        for name, values in zip(names, zip(*rows, strict=True), strict=True):
            table = table.append_column(f"videos/{camera}/{name}", pa.array(values))
    return table.replace_schema_metadata(None)


def meta_v3(dataset: DatasetInfo, pix_fmt: str) -> dict[str, bytes]:
    """Path -> contents of the derived files."""
    info = dict(dataset.info) | {"video_path": VIDEO_V3, "features": features(dataset.header, pix_fmt)}
    kept = {name: stats for name, stats in dataset.stats.items() if name not in LEFT_OUT}
    return {
        layout.TASKS: tables.tasks_bytes(dataset.tasks),
        layout.STATS: layout.json_bytes(stats_to_json(kept)),
        layout.INFO: layout.json_bytes(info),
    }


def meta_v21(dataset: DatasetInfo, episode_tables: Sequence[pa.Table], pix_fmt: str) -> dict[str, bytes]:
    """Path -> contents of the derived files."""
    num = len(dataset)
    info = {
        "codebase_version": "v2.1",
        "robot_type": dataset.spec.robot,
        "total_episodes": num,
        "total_frames": int(dataset.lengths.sum()),
        "total_tasks": len(dataset.tasks),
        "total_videos": num * len(dataset.spec.cameras) if pix_fmt else 0,
        "total_chunks": -(-num // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": dataset.info["fps"],
        "splits": {"train": f"0:{num}"},
        "data_path": DATA_V21,
        "video_path": VIDEO_V21 if pix_fmt else None,
        "features": features(dataset.header, pix_fmt),
    }
    rows = list(zip(dataset.episodes["episode_index"], dataset.episodes["instruction"], dataset.lengths, strict=True))
    episodes = [{"episode_index": int(n), "tasks": [text], "length": int(steps)} for n, text, steps in rows]
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(dataset.tasks)]
    return {
        "meta/tasks.jsonl": _lines(tasks),
        "meta/episodes.jsonl": _lines(episodes),
        "meta/episodes_stats.jsonl": _lines(_episode_stats(episode_tables)),
        layout.INFO: layout.json_bytes(info),
    }


def _episode_stats(episode_tables: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """One line per episode; v2.1 has no quantiles."""
    lines = []
    for table in episode_tables:
        stats = tables.table_stats(table)
        for row, index in enumerate(table["episode_index"].to_pylist()):
            episode_stats = {
                name: {key: part[key][row].tolist() for key in ("min", "max", "mean", "std", "count")}
                for name, part in stats.items()
                if name not in LEFT_OUT
            }
            lines.append({"episode_index": index, "stats": episode_stats})
    return lines


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
