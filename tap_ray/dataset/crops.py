"""Cuts crops of the object that the robot touches next and of the place where it releases it, without labels or object
poses.

    contact   . . . . . . X X X X . X X . . . . . . .       one bout: the gap of one step is joined
    frame         b         t - 1 t           e   e + 2
                  |- - - - - - - - - - - - - -|             frames that lead to the bout or belong to it
                            |                     |
    robot painted out:   before                after        regions that differ between the two: blobs
                            |- object crop                  a blob that the object left, near the robot's first touch
                            '- place crop                   a blob where it arrived, near the robot's last touch

The object has left a blob if the image before contrasts with the surroundings of the blob and the image after does not;
it has arrived in a blob if it is the other way round. Both crops are cut from the image before: the object in its first
position, and whatever was at its last position before (a plate, a cloth, the bare table).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from tap_ray.dataset.inpaint_robot import inpaint_robot
from tap_ray.errors import ConfigError

SIDE_PX = 96
"""Side of the images for which a crop has its size."""
AFTER_STEPS = 2
"""Number of steps after its last touch at which an object is assumed to be at rest."""
AREA_BONUS_PX, MOST_BONUS_AREA_PX = 0.02, 150
"""Amount by which a blob counts as nearer for each of its pixels, px, and the largest number of pixels that count:
noise makes small blobs."""
NEAR_PERCENTILE = 20
"""The distance of a blob from the robot is this percentile of the distances of its pixels."""
AROUND_PX = 15
"""Side of the square whose unchanged pixels are the surroundings of a change, px."""
UNLIKE_PX = 0.1
"""Amount by which a blob that arrived counts as farther, px, for each gray level (summed over the channels) by which
its median color differs from that of the blob that left."""


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Settings of how crops are found and cut. Sizes are in pixels of the dataset's images; the defaults are for 96
    px."""

    size_px: int = 24
    """C, side of a crop, px; even. In images larger than 96 px it shows a larger square, made smaller (`shown_px`)."""
    lead_steps: int = 30
    """Number of frames before the first touch that lead up to a contact; 0: only the frames of the contact itself."""
    gap_steps: int = 2
    """Touches that are separated by at most this number of steps are one contact."""
    min_change: int = 28
    """A pixel has changed if one of its channels differs by more than this, gray levels."""
    min_blob_px: int = 8
    """Fewest pixels of a change that counts."""
    max_distance_px: int = 10
    """Farthest that a change may be from the robot that touched, px."""
    mask_grow_px: int = 2
    """Dilate the robot's mask by this before the robot is painted over, px: it hides JPEG artifacts. 0: no dilation."""

    def __post_init__(self) -> None:
        lowest = {"size_px": 2, "lead_steps": 0, "gap_steps": 0, "min_change": 0, "min_blob_px": 1, "mask_grow_px": 0}
        for name, low in {**lowest, "max_distance_px": 1}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"crops.{name} must be at least {low}; got {getattr(self, name)}.")
        if self.size_px % 2:
            raise ConfigError(f"crops.size_px must be even; got {self.size_px}.")

    def shown_px(self, image_size: tuple[int, int]) -> int:
        """Side of the square of the image that a crop shows, px; even. The same part of the scene in larger images."""
        return 2 * round(self.size_px / 2 * max(1.0, min(image_size) / SIDE_PX))


CROPS = CropConfig()
"""Settings of the crops of training windows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """The B bouts of contact of an episode that moved something, in order, and which bout each of the T frames belongs
    to."""

    object_rgb: np.ndarray
    """(B, C, C, 3) uint8, the object before it was touched."""
    place_rgb: np.ndarray
    """(B, C, C, 3) uint8, the place where it came to rest, before it did; zeros where there is none."""
    has_place: np.ndarray
    """(B,) bool."""
    object_px: np.ndarray
    """(B, 2) int64, row and column of the center of the object's crop."""
    place_px: np.ndarray
    """(B, 2) int64, row and column of the center of the place's crop; zeros where there is none."""
    bout_T: np.ndarray
    """(T,) int64, the bout that a frame leads to or belongs to; -1: none."""
    touch_B: np.ndarray
    """(B,) int64, step of the first touch."""
    end_B: np.ndarray
    """(B,) int64, step of the last touch."""

    def __len__(self) -> int:
        return len(self.touch_B)

    @property
    def begin_B(self) -> np.ndarray:
        """(B,) int64, the first frame that belongs to each bout."""
        return np.array([np.flatnonzero(self.bout_T == bout)[0] for bout in range(len(self))], np.int64)


def contact_bouts(contact_T: np.ndarray, gap_steps: int) -> np.ndarray:
    """(B, 2) int64: first and last step of each bout of contact; bouts at most `gap_steps` apart are joined."""
    touched = np.flatnonzero(contact_T)
    if not len(touched):
        return np.zeros((0, 2), np.int64)
    apart = np.flatnonzero(np.diff(touched) > gap_steps + 1)
    return np.stack([touched[np.append(0, apart + 1)], touched[np.append(apart, len(touched) - 1)]], axis=1)


def cut(rgb_TYX3: np.ndarray, mask_TYX: np.ndarray, contact_T: np.ndarray, config: CropConfig) -> Crops:
    """Cut the crops of an episode; a pure function of its images.

    A bout has no crop if the robot touches an object from the first frame on, or if nothing near the robot moved away.
    It has no place if the contact lasts until the episode ends, or nothing arrived near the robot's last touch. An
    object that is pushed by less than its own width is visible in the place crop itself.

    With two arms `contact_T` does not say which one touches: simultaneous contacts are one bout, and of two objects
    that are moved in it the one nearer to either gripper is used.

    Args:
        rgb_TYX3: uint8.
        mask_TYX: True where the robot (or its shadow) is seen.
        contact_T: True where a finger touched something in the step before the frame.
        config: sizes and thresholds.
    """
    num_steps, image_y, image_x = mask_TYX.shape
    bouts = contact_bouts(contact_T, config.gap_steps).tolist()
    last = num_steps - 1
    compared = [(max(0, touch - 1), min(end + AFTER_STEPS, last)) for touch, end in bouts]
    inpainted = inpaint_robot(
        rgb_TYX3, mask_TYX, grow_px=config.mask_grow_px, steps=[t for pair in compared for t in pair]
    )
    inpainted = inpainted.reshape(-1, 2, image_y, image_x, 3)
    bout_T = np.full(num_steps, -1, np.int64)
    object_rgb, place_rgb, object_px, place_px, spans = [], [], [], [], []
    free, shown_px = 0, config.shown_px((image_y, image_x))
    for (touch, end), (before, after) in zip(bouts, inpainted, strict=True):
        begin, free = max(free, touch - config.lead_steps), end + 1
        if touch == 0:  # there is no image before
            continue
        left, arrived = changes(before, after, config)
        thing = nearest(left, mask_TYX[touch], config)
        if thing is None:
            continue
        color = np.median(before[thing], axis=0)
        unlike = [UNLIKE_PX * np.abs(np.median(after[blob], axis=0) - color).sum() for blob in arrived]
        place = nearest(arrived, mask_TYX[end], config, unlike) if end < last else None
        bout_T[begin : end + 1] = len(spans)
        spans.append((touch, end))
        object_px.append(center(thing))
        place_px.append((0, 0) if place is None else center(place))
        object_rgb.append(_small(crop(before, object_px[-1], shown_px), config))
        place_rgb.append(None if place is None else _small(crop(before, place_px[-1], shown_px), config))
    nothing = np.zeros((config.size_px, config.size_px, 3), np.uint8)
    span_B2 = np.array(spans, np.int64).reshape(-1, 2)
    return Crops(
        object_rgb=np.array(object_rgb, np.uint8).reshape(-1, *nothing.shape),
        place_rgb=np.array([nothing if rgb is None else rgb for rgb in place_rgb], np.uint8).reshape(
            -1, *nothing.shape
        ),
        has_place=np.array([rgb is not None for rgb in place_rgb], bool),
        object_px=np.array(object_px, np.int64).reshape(-1, 2),
        place_px=np.array(place_px, np.int64).reshape(-1, 2),
        bout_T=bout_T,
        touch_B=span_B2[:, 0],
        end_B=span_B2[:, 1],
    )


def changes(
    before_YX3: np.ndarray, after_YX3: np.ndarray, config: CropConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Masks (Y, X) bool of the blobs where something moved away, and of those where something arrived."""
    changed = np.abs(before_YX3.astype(np.int16) - after_YX3).max(-1) > config.min_change
    same = 1 - np.asarray(ndimage.binary_dilation(changed), np.float32)
    share = ndimage.uniform_filter(same, AROUND_PX) + 1e-6
    kept = before_YX3 * same[:, :, None]
    around = np.stack([ndimage.uniform_filter(kept[..., c], AROUND_PX) / share for c in range(3)], axis=-1)
    stood_out, stands_out = (np.abs(rgb - around).sum(-1) for rgb in (before_YX3, after_YX3))
    left = stood_out > stands_out
    return blobs(changed & left, config), blobs(changed & ~left, config)


def blobs(mask_YX: np.ndarray, config: CropConfig) -> list[np.ndarray]:
    """Masks of the connected components that are large enough; pixels that are one pixel apart are connected."""
    labels, _ = ndimage.label(ndimage.binary_dilation(mask_YX))  # pyright: ignore[reportGeneralTypeIssues]
    labels = labels * mask_YX
    sizes = np.bincount(labels.ravel())
    return [labels == label for label in range(1, len(sizes)) if sizes[label] >= config.min_blob_px]


def nearest(
    found: Sequence[np.ndarray], robot_YX: np.ndarray, config: CropConfig, farther_px: Sequence[float] | None = None
) -> np.ndarray | None:
    """The blob nearest to the robot, with a preference for large ones; None if there is none nearby.

    Args:
        found: masks (Y, X).
        robot_YX: mask of the robot.
        config: the largest distance.
        farther_px: number added to each blob's distance for the comparison, px.
    """
    if not found or not robot_YX.any():
        return None
    distance_YX = np.asarray(ndimage.distance_transform_edt(~robot_YX))
    distance = np.array([
        np.percentile(distance_YX[blob], NEAR_PERCENTILE) - AREA_BONUS_PX * min(blob.sum(), MOST_BONUS_AREA_PX)
        for blob in found
    ])  # fmt: skip
    best = int(np.argmin(distance if farther_px is None else distance + farther_px))
    return found[best] if distance[best] < config.max_distance_px else None


def center(blob: np.ndarray) -> tuple[int, int]:
    """Row and column of a mask's center of mass."""
    y, x = np.nonzero(blob)
    return int(y.mean()), int(x.mean())


def crop(rgb_YX3: np.ndarray, at: tuple[int, int], size_px: int) -> np.ndarray:
    """(size, size, 3) part of an image around (y, x); beyond the image its edge is repeated."""
    rows, columns = (
        np.clip(place + np.arange(-(size_px // 2), size_px - size_px // 2), 0, side - 1)
        for place, side in zip(at, rgb_YX3.shape[:2], strict=True)
    )
    return rgb_YX3[np.ix_(rows, columns)]


def _small(rgb_YX3: np.ndarray, config: CropConfig) -> np.ndarray:
    """(C, C, 3): a crop of the image in the size of all crops, by the mean of its pixels."""
    if len(rgb_YX3) == config.size_px:
        return rgb_YX3
    return np.asarray(Image.fromarray(rgb_YX3).resize((config.size_px, config.size_px), Image.Resampling.BOX))
