"""In an environment with lerobot (0.4.4 for v3.0, 0.3.3 for v2.1): is an export what we have?

    PYTHON tests/exporting/lerobot_export.py OURS EXPORT

Every number of every frame, and images within the codec's error, against our raw files, which it reads with pyarrow and
Pillow only. Then what openpi's loader does: the fps from the metadata, an action chunk by delta_timestamps, the prompt
from the task (openpi, src/openpi/training/data_loader.py, create_torch_dataset).
"""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from PIL import Image

IMAGE = "observation.images.main"
LEFT_OUT = ("observation.images.robot_mask", "privileged.object_pose")
HORIZON = 4


def main(ours: Path, export: Path) -> None:
    rows = [row for file in sorted((ours / "data").glob("*/*.parquet")) for row in pq.read_table(file).to_pylist()]
    dataset = LeRobotDataset("local/tap_ray", root=export)
    assert dataset.num_frames == len(rows) == len(dataset)
    errors = np.array([compare(dataset[index], row) for index, row in enumerate(rows)])
    print(f"{dataset.num_episodes} episodes, {len(rows)} frames: every number equals ours")
    print(f"images: mean error {errors.mean():.3f}, of the worst image {errors.max():.3f}, of 255")
    openpi(export, rows)
    print("lerobot_export: ok")


def compare(frame: dict, row: dict) -> float:
    for name, value in row.items():
        if name not in (IMAGE, *LEFT_OUT):
            np.testing.assert_allclose(frame[name].numpy(), np.asarray(value), atol=1e-6, err_msg=name)
    assert not any(name in frame for name in LEFT_OUT)
    image = np.asarray(Image.open(BytesIO(row[IMAGE]["bytes"])).convert("RGB"), np.float32)
    decoded = 255 * frame[IMAGE].numpy().transpose(1, 2, 0)
    assert decoded.shape == image.shape
    return float(np.abs(decoded - image).mean())


def openpi(export: Path, rows: list[dict]) -> None:
    meta = LeRobotDatasetMetadata("local/tap_ray", root=export)
    chunk = {"action": [step / meta.fps for step in range(HORIZON)]}
    dataset = LeRobotDataset("local/tap_ray", root=export, delta_timestamps=chunk)
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=False, num_workers=0)
    batch = next(iter(loader))
    assert batch["action"].shape == (5, HORIZON, len(rows[0]["action"]))
    for n in range(5):
        assert rows[n + HORIZON]["episode_index"] == 0, "made so that the first chunks are whole"
        want = [rows[n + step]["action"] for step in range(HORIZON)]
        np.testing.assert_allclose(batch["action"][n].numpy(), want, atol=1e-6)
    last = max(n for n, row in enumerate(rows) if row["episode_index"] == 0)
    assert dataset[last]["action_is_pad"].tolist() == [False, True, True, True]
    prompts = meta.tasks if isinstance(meta.tasks, dict) else dict(enumerate(meta.tasks.index))
    assert prompts[int(batch["task_index"][0])] == dataset[0]["task"]
    print(f"openpi's batch: {tuple(batch['action'].shape)}, prompt {dataset[0]['task']!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
