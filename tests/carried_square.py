"""Play made by hand: a gripper carries a small red square over a gray table and lets go of it on a blue plate."""

from pathlib import Path

import numpy as np

from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.lerobot import DatasetInfo, open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec
from tap_ray.types import Episode, Trajectory

SPEC = RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
SIDE, STEPS = 64, 12
TABLE, ROBOT, RED, BLUE = (150, 150, 150), (20, 20, 20), (220, 30, 30), (30, 30, 220)
FROM, TO = (20, 12), (44, 50)
"""Upper left corner of a red 6 x 6 square before it is carried, and after: its center is 2 more (rounded down)."""


def paint(image: np.ndarray, corner: tuple[int, int], side: int, color: tuple[int, int, int]) -> None:
    image[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = color


def carried(touch: int = 3, end: int = 7, plate: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, masks and contact: the gripper comes, carries the red square onto a blue plate, goes up again."""
    rgb = np.full((STEPS, SIDE, SIDE, 3), TABLE, np.uint8)
    mask = np.zeros((STEPS, SIDE, SIDE), bool)
    for t in range(STEPS):
        if plate:
            paint(rgb[t], (TO[0] - 3, TO[1] - 3), 12, BLUE)
        moving = touch <= t <= end
        part = (t - touch) / max(end - touch, 1) if moving else float(t > end)
        thing = (int(FROM[0] + part * (TO[0] - FROM[0])), int(FROM[1] + part * (TO[1] - FROM[1])))
        paint(rgb[t], thing, 6, RED)
        gripper = (thing[0] - 5, thing[1]) if moving else (0, 30)  # 5 rows above the square it holds
        paint(rgb[t], gripper, 6, ROBOT)
        mask[t] = (rgb[t] == ROBOT).all(-1)
    return rgb, mask, (np.arange(STEPS) >= touch) & (np.arange(STEPS) <= end)


def played(index: int, *, mask: bool = True) -> Episode:
    """Episode i touches at step 2 + i % 4; every eighth never touches."""
    rgb, masks, contact = carried(touch=2 + index % 4)
    contact &= index % 8 != 7
    state = np.zeros((STEPS, 7), np.float32)
    state[:, 0] = index + np.arange(STEPS) / 100
    trajectory = Trajectory(
        rgb=rgb,
        state=state,
        action=np.zeros((STEPS, 7), np.float32),
        contact=contact,
        object_pose=np.zeros((STEPS, 1, 7), np.float32),
        robot_mask=255 * masks.astype(np.uint8) if mask else None,
        partial=contact,
        entire=contact,
        object_name=("square",),
        instruction="",
        num_clipped=0,
    )
    return encode_episode(trajectory, index=index, task="play")


def write(path: Path, num_episodes: int, *, mask: bool = True) -> DatasetInfo:
    header = DatasetHeader(
        spec=SPEC, plan={"made": True}, image_size=(SIDE, SIDE), num_objects=1, robot_mask=mask, episodes_per_file=4
    )
    with DatasetWriter(path, header) as writer:
        for index in range(writer.committed, num_episodes):
            writer.append(played(index, mask=mask))
    return open_dataset(path)
