"""Reads a dataset of tap_ray with LeRobot's own class: frames, action chunks, and the task of each episode.

python examples/read_with_lerobot.py data/play       (with lerobot 0.4 installed: pip install lerobot==0.4.4)
"""

import sys

from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata  # pyright: ignore

fps = LeRobotDatasetMetadata("local/dataset", root=sys.argv[1]).fps
chunk = {"action": [step / fps for step in range(4)]}  # s from the frame on
dataset = LeRobotDataset("local/dataset", root=sys.argv[1], delta_timestamps=chunk)
frame = dataset[len(dataset) // 2]
print(f"{dataset.num_episodes} episodes, {dataset.num_frames} frames at {dataset.fps} Hz")
for name, value in frame.items():
    print(f"{name:32} {tuple(value.shape) if hasattr(value, 'shape') else value!r}")
print("contact:", [f"{100 * rate:.0f} %" for rate in dataset.meta.episodes["tap_ray/contact_rate"][:5]])
