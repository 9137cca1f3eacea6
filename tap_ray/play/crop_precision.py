"""Compares crops, which vision cuts for Stage 1, with the simulator's object poses: a diagnosis for the report on play.

Nothing that learns reads these poses.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from tap_ray.dataset.crop_files import cut_episode
from tap_ray.dataset.crops import AFTER_STEPS, CROPS, Crops, contact_bouts
from tap_ray.dataset.layout import image_columns
from tap_ray.dataset.lerobot import CONTACT, MASK, OBJECT_POSE, DatasetInfo, read_episode
from tap_ray.metrics import wilson

NUM_EPISODES = 60
"""Number of episodes that are compared."""
MakeScene = Callable[[], gym.vector.VectorEnv]
"""Function that builds one robot's scene; its `reset` with an episode's seed gives that episode's camera."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Counts over some episodes."""

    bouts: int
    """Contacts after the first frame."""
    crops: int
    """Contacts with a crop."""
    right: int
    """Crops whose center is nearest to the object that the contact moved most."""

    def __str__(self) -> str:
        found = f"Crops for Stage 1: {self.crops} of {self.bouts} contacts have one"
        if not self.crops:
            return f"{found}."
        rate = wilson(self.right, self.crops)
        bounds = f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        return (
            f"{found}; {self.right} of them, {100 * self.right / self.crops:.0f} % {bounds}, show the "
            "object that was moved, by the simulator's poses."
        )


def measure(dataset: DatasetInfo, make_scene: MakeScene) -> Precision | None:
    """Compare the crops of the first episodes.

    Args:
        dataset: play.
        make_scene: builds the scene in which it was collected.

    Returns:
        The counts; None without robot masks, contact, object poses, the seeds of the scenes, or a calibration of the
        camera (`info["camera"]`).
    """
    header = dataset.header
    if not (header.robot_mask and header.contact and header.num_objects and "seed" in dataset.episodes):
        return None
    bouts, crops, right = 0, 0, 0
    columns = [image_columns(dataset.spec)[0], MASK, CONTACT, OBJECT_POSE]
    scene = make_scene()
    try:
        for index, seed in enumerate(dataset.episodes["seed"][:NUM_EPISODES]):
            _, info = scene.reset(seed=[int(seed)])  # pyright: ignore[reportArgumentType]
            if "camera" not in info:
                return None
            episode = read_episode(dataset, index, columns)
            cut = cut_episode(episode, CROPS)
            bouts += int((contact_bouts(episode.contact, CROPS.gap_steps)[:, 0] > 0).sum())
            crops += len(cut)
            right += num_right(cut, episode.object_pose[:, :, :3].astype(float), info["camera"][0])
    finally:
        scene.close()
    return Precision(bouts=bouts, crops=crops, right=right)


def num_right(crops: Crops, position_TM3: np.ndarray, camera_34: np.ndarray) -> int:
    """Number of crops whose center is nearest to the object that moved most during the contact.

    Args:
        crops: of one episode.
        position_TM3: of its objects, m, table frame; zeros for empty slots.
        camera_34: calibration of its camera.
    """
    right = 0
    for touch, end, center in zip(crops.touch_B, crops.end_B, crops.object_px, strict=True):
        before_M3, after_M3 = position_TM3[touch - 1], position_TM3[min(end + AFTER_STEPS, len(position_TM3) - 1)]
        there_M = before_M3.any(axis=1)
        seen_M3 = np.pad(before_M3, ((0, 0), (0, 1)), constant_values=1.0) @ camera_34.T
        pixel_M2 = seen_M3[:, 1::-1] / seen_M3[:, 2:]  # row, column
        far_M = np.where(there_M, np.linalg.norm(pixel_M2 - center, axis=1), np.inf)
        moved_M = np.where(there_M, np.linalg.norm(after_M3 - before_M3, axis=1), -1.0)
        right += int(far_M.argmin() == moved_M.argmax())
    return right
