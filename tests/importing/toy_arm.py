"""A made-up arm, and what public datasets would say of it: their column names, units and signs.

The end effector waves over a table at about 0.1 m/s and turns a little; the gripper closes half-way. It follows its
commands one frame later.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from tests.importing.make_rlds import with_frame_of_rlds, write_rlds

Y, X = 32, 48
TASKS = ("pick up the cup", "close the drawer", "push the block")


@dataclass(frozen=True, kw_only=True)
class Motion:
    """T frames."""

    position: np.ndarray
    """(T + 1, 3) m, where the end effector was told to be; entry t holds before frame t's command."""
    rotation: Rotation
    """(T + 1,)."""
    open: np.ndarray
    """(T + 1,) 0 closed .. 1 open."""
    rgb: np.ndarray
    """(T, Y, X, 3): the upper left corner has the episode in red, the frame in green."""
    task: str

    def __len__(self) -> int:
        return len(self.rgb)


def motion(episode: int, fps: float, seconds: float = 6.0) -> Motion:
    number = int(fps * seconds)
    time_s = np.arange(number + 1) / fps
    waves = np.stack([np.sin(0.9 * time_s + episode), np.sin(1.1 * time_s), np.cos(0.7 * time_s)], axis=1)
    rgb = np.full((number, Y, X, 3), 90, np.uint8)
    rgb[:, :16, :24] = 0
    rgb[:, :16, :24, 0], rgb[:, :16, :24, 1] = 60 * (episode % 4), np.arange(number)[:, None, None]
    return Motion(
        position=[0.3, 0, 0.2] + 0.1 * waves,
        rotation=Rotation.from_euler("xyz", 0.3 * waves + [3.0, 0, 0.2]),
        open=np.where(time_s < seconds / 2, 1.0, 0.0),
        rgb=rgb,
        task=TASKS[episode % 3],
    )


def turns(rotation: Rotation) -> Rotation:
    """(T,): from each frame's to the next one's, in the base frame."""
    return rotation[1:] * rotation[:-1].inv()


def bridge(episode: int) -> dict[str, Any]:
    """Steps of `bridge_dataset`."""
    made = motion(episode, 5, 8)
    state = np.concatenate([made.position, made.rotation.as_euler("xyz"), made.open[:, None]], axis=1)[:-1]
    action = np.concatenate(
        [np.diff(made.position, axis=0), turns(made.rotation).as_euler("xyz"), made.open[1:, None]], axis=1
    )
    images = {f"observation/image_{number}": made.rgb for number in range(4)}
    return steps(made, images | {"observation/state": state, "action": action})


def droid(episode: int) -> dict[str, Any]:
    """Steps of `droid`."""
    made = motion(episode, 15)
    pose = np.concatenate([made.position, made.rotation.as_euler("xyz")], axis=1)
    return steps(
        made,
        {
            "observation/exterior_image_1_left": made.rgb,
            "observation/wrist_image_left": made.rgb,
            "observation/cartesian_position": pose[:-1],
            "observation/joint_position": np.sin(made.position[:-1, [0, 1, 2, 0, 1, 2, 0]]),
            "observation/gripper_position": 1 - made.open[:-1, None],
            "action": np.zeros((len(made), 7)),
            "action_dict/cartesian_position": pose[1:],
            "action_dict/gripper_position": 1 - made.open[1:, None],
        },
    )


def libero_numbers(made: Motion) -> tuple[np.ndarray, np.ndarray]:
    """State (T, 8) and action (T, 7)."""
    fingers = 0.04 * made.open[:, None] * [1, -1]
    state = np.concatenate([made.position, made.rotation.as_rotvec(), fingers], axis=1)[:-1]
    move, turn = np.diff(made.position, axis=0) / 0.05, turns(made.rotation).as_rotvec() / 0.5
    return state, np.concatenate([move, turn, 1 - 2 * made.open[1:, None]], axis=1)


def libero(episode: int) -> dict[str, Any]:
    """Steps of `libero_spatial_no_noops`."""
    made = motion(episode, 20)
    state, action = libero_numbers(made)
    images = {"observation/image": made.rgb, "observation/wrist_image": made.rgb}
    return steps(made, images | {"observation/state": state, "action": action})


def steps(made: Motion, columns: dict[str, Any]) -> dict[str, Any]:
    """With the instruction and RLDS's own columns; float32, as TFRecord has it."""
    plain = {
        name: values.astype(np.float32) if values.dtype.kind == "f" else values for name, values in columns.items()
    }
    return with_frame_of_rlds(plain | {"language_instruction": [made.task] * len(made)})


RLDS = {"bridge": ("bridge_dataset", bridge), "droid": ("droid", droid), "libero": ("libero_spatial_no_noops", libero)}
"""Mapping -> name of the dataset, and its steps."""


def write_public(mapping: str, folder: Path, num_episodes: int = 3) -> Path:
    """A toy of the RLDS dataset that a shipped mapping is for."""
    name, made = RLDS[mapping]
    return write_rlds(folder / name, [made(episode) for episode in range(num_episodes)], files=1)


def write_libero_hdf5(
    folder: Path, num_episodes: int = 3, images: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> Path:
    """Toys of LIBERO's files, one a task; images upside down."""
    folder.mkdir()
    for episode in range(num_episodes):
        made = motion(episode, 20)
        state, action = libero_numbers(made)
        with h5py.File(folder / f"task_{episode}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": made.task})
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
            demo = data.create_group("demo_0")
            demo["actions"] = action
            demo["obs/agentview_rgb"] = images(made.rgb)[:, ::-1, ::-1]
            demo["obs/ee_pos"], demo["obs/ee_ori"] = state[:, :3], state[:, 3:6]
            demo["obs/gripper_states"] = state[:, 6:]
    return folder
