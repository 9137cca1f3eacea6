"""In an environment with lerobot 0.4.4 (see test_lerobot.py): does its own class open our dataset, with equal frames?

    LEROBOT_PYTHON tests/dataset/lerobot_compat.py PATH

Compares every column of three frames, the statistics and the episodes' metadata with the raw files, which it reads
with pyarrow and Pillow only.
"""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image


def main(root: Path) -> None:
    dataset = LeRobotDataset("local/tap_ray", root=root)
    files = sorted((root / "data").glob("*/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    print(f"lerobot: {dataset.num_episodes} episodes, {dataset.num_frames} frames, fps {dataset.fps}")
    assert dataset.num_frames == len(rows) == len(dataset)
    for index in (0, len(rows) // 2, len(rows) - 1):
        compare_frame(dataset[index], rows[index])
        print(f"frame {index}: every column equals ours; task {dataset[index]['task']!r}")
    compare_stats(dataset, root)
    compare_query(root, rows)
    print("extra columns:", [name for name in dataset.meta.episodes.features if name.startswith("tap_ray/")])
    print("lerobot_compat: ok")


def compare_frame(frame: dict, row: dict) -> None:
    for name, value in row.items():
        have = frame[name].numpy()
        if isinstance(value, dict):
            image = np.asarray(Image.open(BytesIO(value["bytes"])), np.float32)
            image = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
            value = image / max(image.max(), 255.0 if image.shape[0] == 3 else 1.0)
        np.testing.assert_allclose(have, np.asarray(value), atol=1e-6, err_msg=name)


def compare_stats(dataset: LeRobotDataset, root: Path) -> None:
    """Our stats.json against lerobot's own merging of our per-episode statistics."""
    parts = []
    for file in sorted((root / "meta/episodes").glob("*/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            part: dict = {}
            for name, value in row.items():
                if name.startswith("stats/"):
                    part.setdefault(name.split("/")[1], {})[name.split("/")[2]] = np.array(value)
            parts.append(part)
    merged = aggregate_stats(parts)
    ours = json.loads((root / "meta/stats.json").read_text())
    for feature, stats in merged.items():
        for key, value in stats.items():
            np.testing.assert_allclose(np.array(ours[feature][key]), value, rtol=1e-9, atol=1e-9, err_msg=feature)
            np.testing.assert_allclose(dataset.meta.stats[feature][key], value, rtol=1e-9, atol=1e-9, err_msg=feature)
    print(f"statistics of {len(merged)} features equal lerobot's aggregate_stats")


def compare_query(root: Path, rows: list[dict]) -> None:
    """An action chunk by delta_timestamps, and one episode alone."""
    chunk = LeRobotDataset("local/tap_ray", root=root, delta_timestamps={"action": [0, 0.2, 0.4]})[1]["action"].numpy()
    np.testing.assert_allclose(chunk, [rows[i]["action"] for i in (1, 2, 3)])
    alone = LeRobotDataset("local/tap_ray", root=root, episodes=[1])
    assert len(alone) == sum(row["episode_index"] == 1 for row in rows)
    print("delta_timestamps chunk and a single episode equal ours")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
