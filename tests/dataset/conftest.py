"""Made-up robots for the dataset's tests: trajectories whose every number follows from the episode's index."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.rng import generator
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec
from tap_ray.types import Episode, Trajectory

SPEC = RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
SIZE = 32


def synthetic_trajectory(index: int, *, size: int = SIZE, steps: int | None = None, mask: bool = True) -> Trajectory:
    """A gray robot block that crosses a colored, slightly noisy table; length 8 + index % 5 unless told."""
    rng = generator(7, "synthetic", index)
    steps = steps or 8 + index % 5
    background = rng.integers(40, 220, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    rgb = np.clip(background + rng.integers(-4, 5, (steps, size, size, 3)), 0, 255).astype(np.uint8)
    robot = np.zeros((steps, size, size), np.uint8)
    for t in range(steps):
        left = (t * size // (2 * steps)) // 2 * 2
        robot[t, size // 4 : size // 2, left : left + size // 4] = 255
    rgb[robot == 255] = 90
    state = np.zeros((steps, 7), np.float32)
    state[:, :3] = np.cumsum(rng.uniform(-0.02, 0.02, (steps, 3)), 0) + np.array([0.3, 0.0, 0.15])
    state[:, 3] = 1.0
    action = rng.uniform(SPEC.action_low_A, SPEC.action_high_A, (steps, 7)).astype(np.float32)
    action[:, 6] = np.where(rng.random(steps) < 0.5, -1, 1)
    pose = np.zeros((steps, 2, 7), np.float32)
    pose[:, :, 3] = 1.0
    pose[:, 1, 0] = np.linspace(0, 0.05, steps)
    contact = np.zeros(steps, bool)
    contact[steps // 2 : steps // 2 + 2] = True
    return Trajectory(
        rgb=rgb,
        state=state,
        action=action,
        contact=contact,
        object_pose=pose,
        robot_mask=robot if mask else None,
        partial=contact,
        entire=np.arange(steps) >= steps - 2 if index % 2 else np.zeros(steps, bool),
        object_name=("spoon", "cloth"),
        instruction="put the spoon on the cloth",
        num_clipped=index % 3,
    )


def synthetic_episode(index: int, *, mask: bool = True, **kwargs: int) -> Episode:
    """`synthetic_trajectory`, encoded; three tasks in turn."""
    return encode_episode(
        synthetic_trajectory(index, mask=mask, **kwargs),
        index=index,
        task=f"task {index % 3}",
        meta={"seed": 1000 + index, "explorer": "synthetic", "embodiment": "widowx"},
    )


def synthetic_header(*, size: int = SIZE, mask: bool = True, episodes_per_file: int = 4) -> DatasetHeader:
    return DatasetHeader(
        spec=SPEC,
        plan={"seed": 7, "explorer": "synthetic"},
        image_size=(size, size),
        num_objects=2,
        robot_mask=mask,
        episodes_per_file=episodes_per_file,
    )


def write_dataset(path: Path, num_episodes: int, **header: int) -> Path:
    """Write episodes 0 .. num_episodes - 1, continuing where the dataset ends."""
    with DatasetWriter(path, synthetic_header(**header)) as writer:
        for index in range(writer.committed, num_episodes):
            writer.append(synthetic_episode(index))
    return path


@pytest.fixture(scope="session")
def play_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten episodes in three files. Read only."""
    return write_dataset(tmp_path_factory.mktemp("data") / "play", 10)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The functions above; tests cannot import a conftest."""
    return SimpleNamespace(
        trajectory=synthetic_trajectory,
        episode=synthetic_episode,
        header=synthetic_header,
        write=write_dataset,
        spec=SPEC,
    )
