"""Records episodes for saliency maps: frames until the task is done, and their segmentation."""

from dataclasses import dataclass, replace
from typing import Iterator, Mapping

import numpy as np

from tap_ray.dataset.crops import CropConfig, cut
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import MakePolicy, MakeVector, chunks
from tap_ray.evaluate.protocol import Protocol, cells, policy_seed
from tap_ray.inspect.features import crops_of, no_crops
from tap_ray.inspect.saliency_mass import KNOWN_REGIONS
from tap_ray.rollout import rollout
from tap_ray.types import ARM, ELSEWHERE, Cell, Trajectory

FLEET = 8
"""Number of robots that are rolled out side by side."""


@dataclass(frozen=True, kw_only=True)
class EpisodeClip:
    """One episode until its task was done, with F + `ahead` frames, of which the first F are analyzed."""

    cell: Cell
    instruction: str
    rgb: np.ndarray
    """(F + ahead, Y, X, 3) uint8, of V > 1 cameras (F + ahead, V, Y, X, 3)."""
    state: np.ndarray
    """(F, S) float32."""
    segmentation: np.ndarray
    """(F + ahead, Y, X) uint8, values as in tap_ray/types.py; of the first camera."""
    regions: tuple[str, ...]
    """The regions of `saliency_mass.KNOWN_REGIONS` that are known."""
    crops: Mapping[str, np.ndarray]
    """Crops of the object that is touched next in each of the F frames, and of the place where it is released, cut out
    of the whole episode; see `features.inputs`."""


def record_clips(
    protocol: Protocol,
    make_vector: MakeVector,
    make_policy: MakePolicy,
    *,
    ahead: int,
    scene_options: tuple[str, ...] = ("segmentation", "robot_mask"),
) -> Iterator[EpisodeClip]:
    """Roll out the protocol's cells one scene after the other.

    Args:
        protocol: which cells.
        make_vector: builds the robots.
        make_policy: builds the policy that moves them.
        ahead: steps from a frame to its second image.
        scene_options: options of the scenes that add a segmentation or a mask, a key of `saliency_mass.KNOWN_REGIONS`.

    Raises:
        ConfigError: the simulator has no segmentation.
    """
    for same in chunks(cells(protocol), FLEET):
        first = same[0]
        scene = protocol.env_config(first.task, first.scenario, first.partner)
        scene = replace(scene, **{"robot_mask": False, **dict.fromkeys(scene_options, True)})
        env = make_vector(scene, len(same))
        try:
            done = rollout(
                env,
                make_policy(scene, len(same)),
                env_seeds=[cell.seed for cell in same],
                policy_seeds=[policy_seed(protocol.seed, cell) for cell in same],
                settle=1 + ahead,
            )
        finally:
            env.close()
        for cell, trajectory in zip(same, done.trajectories, strict=True):
            yield clip_of(cell, trajectory, sim=protocol.sim, ahead=ahead, scene_options=scene_options)


def clip_of(
    cell: Cell,
    trajectory: Trajectory,
    *,
    sim: str,
    ahead: int,
    scene_options: tuple[str, ...] = ("segmentation", "robot_mask"),
) -> EpisodeClip:
    """Frames before the action that first completes the task, that of the action included; all if none does."""
    if any(getattr(trajectory, name) is None for name in scene_options):
        raise ConfigError(
            f"sim {sim!r} has no segmentation (info['segmentation']), so the saliency on objects cannot be measured."
        )
    whose, mask = trajectory.segmentation, trajectory.robot_mask
    if whose is None:
        robot = np.zeros(trajectory.rgb.shape[:3], bool) if mask is None else mask > 0
        whose = np.where(robot, ARM, ELSEWHERE).astype(np.uint8)
    crops = no_crops(len(trajectory))
    if mask is not None and len(trajectory.contact):
        crops = crops_of(cut(trajectory.rgb, mask > 0, trajectory.contact, CropConfig()))
    rgb = trajectory.rgb
    if trajectory.extra_rgb is not None:
        rgb = np.concatenate([rgb[:, None], trajectory.extra_rgb], axis=1)
    done = np.flatnonzero(trajectory.entire)
    num = min(len(trajectory) - ahead, int(done[0]) + 1 if len(done) else len(trajectory))
    return EpisodeClip(
        cell=cell,
        instruction=trajectory.instruction,
        rgb=rgb[: num + ahead],
        state=trajectory.state[:num],
        segmentation=whose[: num + ahead],
        regions=KNOWN_REGIONS[scene_options],
        crops={name: value[:num] for name, value in crops.items()},
    )
