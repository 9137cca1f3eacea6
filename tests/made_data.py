"""A tiny dataset on disk whose images are the moving square's: demonstrations if tasks are instructions."""

from dataclasses import replace
from pathlib import Path
from typing import Sequence

import numpy as np

from tap_ray.dataset.crop_files import cut_block, missing_blocks
from tap_ray.dataset.crops import CropConfig
from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.rng import generator
from tap_ray.types import Trajectory
from tests.moving_square import SIZE, SPEC, draw

STEPS = 8
BAR = np.zeros((STEPS, SIZE, SIZE), np.uint8)
BAR[:, 32:36, 12:36] = 255


def write_made_dataset(path: Path, *, num_episodes: int, tasks: Sequence[str], crops: bool = False) -> Path:
    """Episodes of 8 steps; task number i asks for dx = -0.02 (even i) or +0.02 m (odd i) at every step.

    With `crops` a robot (a bar below the square, not drawn) has a mask, and what it touches in step 4 is cut out.
    """
    sizes = {"image_size": (SIZE, SIZE), "num_objects": 1, "episodes_per_file": 4, "robot_mask": crops}
    header = DatasetHeader(spec=SPEC, plan={"made": True}, **sizes)  # type: ignore[arg-type]
    with DatasetWriter(path, header) as writer:
        for index in range(num_episodes):
            number = index % len(tasks)
            trajectory = replace(_trajectory(index, 0.02 if number % 2 else -0.02), robot_mask=BAR if crops else None)
            meta = {"seed": index, "explorer": "made", "embodiment": "square"}
            writer.append(encode_episode(trajectory, index=index, task=tasks[number], meta=meta))
    if crops:
        dataset = open_dataset(path)
        for block in missing_blocks(dataset, CropConfig()):
            cut_block(dataset, CropConfig(), block)
    return path


def _trajectory(index: int, dx: float) -> Trajectory:
    rng = generator(11, "made", index)
    action = np.zeros((STEPS, 7), np.float32)
    action[:, 0] = dx + rng.uniform(-0.005, 0.005, STEPS)
    action[:, 1] = rng.uniform(-0.02, 0.02, STEPS)
    action[:, 2] = rng.uniform(-0.02, 0.02, STEPS)
    action[:, 6] = rng.choice([-1, 1], STEPS)
    center = SIZE / 2 + np.concatenate([np.zeros((1, 2)), np.cumsum(action[:-1, :2], 0)]) * 60
    state = np.zeros((STEPS, 7), np.float32)
    state[:, :3] = np.cumsum(action[:, :3], 0)
    state[:, 3] = 1.0
    contact = np.arange(STEPS) == STEPS // 2
    return Trajectory(
        rgb=draw(np.full(STEPS, 60), center, np.full(STEPS, 5.0), np.full(STEPS, 220)),
        state=state,
        action=action,
        contact=contact,
        object_pose=np.zeros((STEPS, 1, 7), np.float32),
        robot_mask=None,
        partial=contact,
        entire=contact,
        object_name=("square",),
        instruction="",
        num_clipped=0,
    )
