"""Converts a source's frames to an episode with the mapping's control rate and tap_ray's units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from tap_ray.dataset.statistics import image_stats
from tap_ray.errors import ConfigError, DataError
from tap_ray.importing.mapping import FACTORS, Mapping, Numbers, slots_of
from tap_ray.importing.source import Source
from tap_ray.media.image import encode_jpeg, is_rgb_jpeg
from tap_ray.specs import RobotSpec
from tap_ray.types import PLAY_TASK, Episode


def kept_frames(num_frames: int, fps: float, control_hz: float) -> np.ndarray:
    """(K + 1,) int64: the frame at which each control step begins, and the one after the last step's end.

    A control step with missing frames is left out.
    """
    steps = int(num_frames * control_hz / fps + 1e-6)
    return np.minimum(np.round(np.arange(steps + 1) * fps / control_hz), num_frames).astype(np.int64)


def state_of(mapping: Mapping, numbers: dict[str, np.ndarray], frames: np.ndarray) -> np.ndarray:
    """(K, S) float32, slots as in the mapping."""
    parts = []
    for group in mapping.state:
        rows_TD = numbers[group.column][:, group.at][frames[:-1]]
        if group.rotation:
            turned = _rotations(group, rows_TD) * Rotation.from_quat(mapping.tool_quat, scalar_first=True).inv()
            quaternion = np.asarray(turned.as_quat(canonical=True, scalar_first=True))
            parts.append(quaternion if len(group.slots) == 4 else turned.as_rotvec())
        else:
            origin = [mapping.origin_m["xyz".index(name[-1])] if name[-4:-1] == "ee_" else 0.0 for name in group.slots]
            parts.append(_in_our_units(group, rows_TD) - origin)
    return np.concatenate([np.zeros((len(frames) - 1, 0)), *parts], axis=1).astype(np.float32)


def action_of(mapping: Mapping, numbers: dict[str, np.ndarray], frames: np.ndarray) -> np.ndarray:
    """(K, A) float32, slots as in the mapping: the total command of each control step."""
    first, last = frames[:-1], frames[1:] - 1
    parts = []
    for group in mapping.action:
        rows_TD = numbers[group.column][:, group.at]
        if group.gripper:
            part = np.clip(2 * _in_our_units(group, rows_TD)[last] - 1, -1, 1)
        elif group.kind == "absolute":
            before = np.maximum(first - 1, 0)  # the command in effect when the step began
            part = _change(group, rows_TD[before], rows_TD[last])
        elif group.rotation:
            part = np.stack([_composed(group, rows_TD[a:b]) for a, b in zip(first, last + 1, strict=True)])
        else:
            sums = np.concatenate([np.zeros((1, len(group.slots))), np.cumsum(_in_our_units(group, rows_TD), axis=0)])
            part = sums[last + 1] - sums[first]
        parts.append(part)
    return np.concatenate([np.zeros((len(first), 0)), *parts], axis=1).astype(np.float32)


def _in_our_units(group: Numbers, rows_TD: np.ndarray) -> np.ndarray:
    """Convert numbers to our units; a gripper is in 0 (closed) .. 1 (open)."""
    if group.gripper:
        return (rows_TD - group.closed) / (group.open - group.closed)
    return rows_TD * group.scale * FACTORS[group.unit]


def _rotations(group: Numbers, rows_TD: np.ndarray) -> Rotation:
    if group.rotation.startswith("quaternion"):
        return Rotation.from_quat(rows_TD, scalar_first=group.rotation.endswith("wxyz"))
    angles = _in_our_units(group, rows_TD)
    return Rotation.from_euler("xyz", angles) if group.rotation == "euler_xyz" else Rotation.from_rotvec(angles)


def _change(group: Numbers, begin_KD: np.ndarray, end_KD: np.ndarray) -> np.ndarray:
    if group.rotation:
        return np.asarray((_rotations(group, end_KD) * _rotations(group, begin_KD).inv()).as_rotvec())
    return _in_our_units(group, end_KD) - _in_our_units(group, begin_KD)


def _composed(group: Numbers, rows_ND: np.ndarray) -> np.ndarray:
    """Compose rotations: R_next = exp([dr]) R, so that later ones are applied from the left."""
    turned = Rotation.identity()
    for one in _rotations(group, rows_ND):
        turned = one * turned
    return np.asarray(turned.as_rotvec())


def columns_of(mapping: Mapping) -> list[str]:
    """The source's columns that a mapping reads."""
    return list(dict.fromkeys(group.column for group in (*mapping.state, *mapping.action)))


def motion(mapping: Mapping, source: Source, episode: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, S) state, (K, A) action, and the frames (K + 1) from which they were made.

    Raises:
        DataError: the episode is damaged, or shorter than one control step.
    """
    numbers = source.numbers(episode, columns_of(mapping))
    if not numbers:
        raise ConfigError("The source has no time stamps, so the mapping must name a column whose rows can be counted.")
    num_frames = len(next(iter(numbers.values())))
    frames = kept_frames(num_frames, mapping.fps or source.fps, mapping.control_hz)
    if len(frames) < 2:
        raise DataError(
            f"Episode {episode} of the source has {num_frames} frames, which is less than one control step at "
            f"{mapping.control_hz:g} Hz. Omit it with --omit {episode}."
        )
    state, action = state_of(mapping, numbers, frames), action_of(mapping, numbers, frames)
    for name, values in (("state", state), ("action", action)):
        if not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise DataError(
                f"Episode {episode} of the source: {name} is NaN or infinite at control step {step}. Omit the episode "
                f"with --omit {episode}."
            )
    return state, action, frames


def as_like(mapping: Mapping, like: RobotSpec, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """State and action with the slots of `like` in its order, not clipped."""
    have = list(slots_of(mapping.state)), list(slots_of(mapping.action))
    state_at = [have[0].index(slot.name) for slot in like.state]
    action_at = [have[1].index(slot.name) for slot in like.action]
    return state[:, state_at], action[:, action_at]


def beyond(like: RobotSpec, action: np.ndarray) -> np.ndarray:
    """(K, A) bool: actions outside the robot's range, which are clipped."""
    slack = 1e-5
    return (action < like.action_low_A - slack) | (action > like.action_high_A + slack)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How episodes are stored."""

    quality: int
    """Quality of the JPEG files, 1 to 95."""
    like: RobotSpec | None = None
    """Robot whose slots and ranges the episodes get."""


def episode_of(mapping: Mapping, source: Source, number: int, *, index: int, options: ConvertOptions) -> Episode:
    """Convert episode `number` of the source to our episode `index`.

    Raises:
        DataError: the episode is damaged.
    """
    state, action, frames = motion(mapping, source, number)
    meta: dict[str, Any] = {"attempt": number, "explorer": "imported", "embodiment": mapping.robot}
    if (like := options.like) is not None:
        state, action = as_like(mapping, like, state, action)
        meta["num_clipped"] = int(beyond(like, action).any(axis=1).sum())
        action = action.clip(like.action_low_A, like.action_high_A)
    kept = [int(frame) for frame in frames[:-1]]
    (images, files), *others = (
        _images_of(mapping, source, number, camera, kept, options.quality) for camera in mapping.camera_of.values()
    )
    return Episode(
        index=index,
        task=sentence_of(mapping, source, number),
        image_jpeg=files,
        mask_png=None,
        state=state,
        action=action,
        contact=np.zeros(0, bool),
        object_pose=np.zeros((len(action), 0, 7), np.float32),
        image_stats=image_stats(images),
        meta=meta,
        extra_jpeg=[other for _, other in others],
        extra_stats=[image_stats(other) for other, _ in others],
    )


def _images_of(
    mapping: Mapping, source: Source, number: int, camera: str, frames: list[int], quality: int
) -> tuple[np.ndarray, list[bytes]]:
    """(K, Y, X, 3) uint8 square images of these frames, and their JPEG files: the source's own, bit for bit, where they
    are JPEG files of such images, else new ones."""
    stored = source.images(number, camera, frames)
    if not mapping.image_turn_deg and all(rgb.shape[:2] == (mapping.image_size,) * 2 for rgb in stored):
        files = source.files(number, camera, frames)
        if files and all(map(is_rgb_jpeg, files)):
            return np.stack(stored), files
    images = np.stack([square(mapping, rgb) for rgb in stored])
    return images, [encode_jpeg(rgb, quality) for rgb in images]


def sentence_of(mapping: Mapping, source: Source, number: int) -> str:
    """The episode's instruction; PLAY_TASK if there is none."""
    column = source.default_instruction if mapping.instruction is None else mapping.instruction
    return mapping.sentence or (source.instruction(number, column).strip() if column else "") or PLAY_TASK


def square(mapping: Mapping, rgb_YX3: np.ndarray) -> np.ndarray:
    """The central square of the image, upright, `image_size` px wide and high."""
    image, size = Image.fromarray(rgb_YX3).rotate(mapping.image_turn_deg), mapping.image_size
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX))
