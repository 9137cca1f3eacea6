"""Small datasets for jobs.inspect_dataset: a clean one, and what a flaw makes of an episode of it.

An episode of 40 steps at 5 Hz. The end effector swings by 6 cm along x, 4 cm along y and 3 cm up, each at its own pace,
from a place of its own; an action is exactly the change of the state that follows it. The gripper is told to close in
steps 12 .. 27, and follows a step later down to an opening of 0.4, where it holds something that it touches in steps
14 .. 27. The image is the table with a square where the end effector is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.rng import generator
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec, slots
from tap_ray.types import Trajectory

T, SIZE, NUM = 40, 32, 12
SPEC = RobotSpec(
    robot="made",
    action=EE_DELTA_ACTION,
    state=(*EE_POSE_STATE, *slots("1 (0 closed, 1 open)", 0, 1, "gripper_opening")),
)
CLOSED = slice(12, 28)
SENTENCES = ("lift the spoon", "push the cup")


@dataclass
class Made:
    """An episode that a flaw may change."""

    index: int
    state: np.ndarray
    action: np.ndarray
    rgb: np.ndarray
    contact: np.ndarray
    task: str


def clean(index: int) -> Made:
    """Episode `index`."""
    rng = generator(5, "flawed", index)
    t = np.arange(T + 1)
    turns, phase = rng.uniform(0.7, 1.6, 3), rng.uniform(0, 2 * np.pi, 3)
    middle = np.array([0.3, 0.0, 0.15]) + rng.uniform(-0.05, 0.05, 3)
    path = middle + np.array([0.06, 0.04, 0.03]) * np.sin(2 * np.pi * t[:, None] / T * turns + phase)
    half_turn = 0.3 * np.sin(2 * np.pi * t / T + phase[0])
    opening = np.ones(T + 1)
    opening[13:29] = 0.4
    opening[13] = 0.7
    state = np.zeros((T, 8), np.float32)
    state[:, :3], state[:, 7] = path[:T], opening[:T]
    state[:, 3], state[:, 6] = np.cos(half_turn[:T]), np.sin(half_turn[:T])
    state[:, 4] = 0.01 * np.sin(half_turn[:T])
    state[:, 5] = 0.01 * np.cos(t[:T] / 7)
    action = np.zeros((T, 7), np.float32)
    action[:, :3] = np.diff(path, axis=0)
    action[:, 3:5] = 0.05 * np.sin(2 * np.pi * t[:T, None] / T + phase[:2])
    action[:, 5] = 2 * np.diff(half_turn)
    action[:, 6] = 1
    action[CLOSED, 6] = -1
    contact = np.zeros(T, bool)
    contact[14:28] = True
    return Made(index, state, action, draw(state), contact, SENTENCES[index % 2])


def draw(state: np.ndarray) -> np.ndarray:
    """(T, SIZE, SIZE, 3) uint8: a table in two halves, a dark square at the end effector, larger the higher it is."""
    rgb = np.full((len(state), SIZE, SIZE, 3), (180, 150, 120), np.uint8)
    rgb[:, :, SIZE // 2 :] = (120, 140, 170)
    for frame, (x, y, z) in zip(rgb, state[:, :3], strict=True):
        row, column, half = int(16 + 100 * (x - 0.3)), int(16 + 120 * y), int(3 + 20 * (z - 0.1))
        frame[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = (40, 40, 40)
    return rgb


def write(path: Path, flaw: Callable[[Made], None] = lambda made: None, *, num: int = NUM, **plan: str) -> Path:
    """A dataset of `num` episodes, each changed by the flaw."""
    header = DatasetHeader(
        spec=SPEC, plan={"kind": "made", **plan}, image_size=(SIZE, SIZE), num_objects=1, episodes_per_file=5
    )
    with DatasetWriter(path, header) as writer:
        for index in range(num):
            made = clean(index)
            flaw(made)
            meta = {"seed": index, "explorer": "made", "embodiment": "made"}
            writer.append(encode_episode(trajectory(made), index=index, task=made.task, meta=meta))
    return path


def trajectory(made: Made) -> Trajectory:
    """As the recorder gives it."""
    steps = len(made.action)
    return Trajectory(
        rgb=made.rgb,
        state=made.state.astype(np.float32),
        action=made.action.astype(np.float32),
        contact=made.contact,
        object_pose=np.zeros((steps, 1, 7), np.float32),
        robot_mask=None,
        partial=made.contact,
        entire=made.contact,
        object_name=("spoon",),
        instruction=made.task,
        num_clipped=0,
    )


def short(made: Made, steps: int) -> None:
    """Only the first steps of it."""
    for name in ("state", "action", "rgb", "contact"):
        setattr(made, name, getattr(made, name)[:steps])
