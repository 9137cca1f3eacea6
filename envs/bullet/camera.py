"""Renders the cameras with TinyRenderer, so that an image is the same on every machine and needs no GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pybullet as p

from envs.robots import WRIST_FOV_DEG, WRIST_M, WRIST_TARGET_M
from envs.scene.objects import Color, Vector
from envs.scene.randomize import tinted
from envs.scene.textures import Cloth


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """The appearance of the scene; a scenario may replace any field."""

    camera_pos_m: Vector = (0.66, -0.40, 0.44)
    """Camera, base frame. From the side: a frontal camera hides motion along its axis."""
    target_m: Vector = (0.275, -0.01, 0.07)
    """Point that it looks at."""
    fov_deg: float = 41.0
    light: Vector = (0.5, -0.3, 1.0)
    """Direction towards the light."""
    gripper_shadow: bool = True
    """Whether the gripper has a dark patch as its shadow, which makes motion along the camera's axis visible."""
    shadow: bool = False
    """Real shadows of everything; they double the cost of an image."""
    table_rgb: Color = (0.72, 0.66, 0.58)
    tint: Color = (1.0, 1.0, 1.0)
    """Factor of each color of the finished image."""
    cloth: Cloth | None = None
    """Lies over the whole table top; its `table_rgb` is then the cloth's mean color."""


@dataclass(frozen=True, kw_only=True)
class Eye:
    """Position and direction of a camera, table frame."""

    position_m: Vector
    target_m: Vector
    up: Vector = (0.0, 0.0, 1.0)
    fov_deg: float
    nearest_m: float = 0.05
    """Distance of the near clipping plane, m."""


def wrist_eye(position_m: np.ndarray, matrix: np.ndarray) -> Eye:
    """The camera on the gripper whose tool is at `position_m` (3,) with orientation `matrix` (3, 3), table frame."""
    eye, target = (tuple((position_m + matrix @ np.array(at)).tolist()) for at in (WRIST_M, WRIST_TARGET_M))
    up = tuple(matrix[:, 2].tolist())
    return Eye(position_m=eye, target_m=target, up=up, fov_deg=WRIST_FOV_DEG, nearest_m=0.01)


def main_eye(config: RenderConfig) -> Eye:
    """The third-person camera."""
    return Eye(position_m=config.camera_pos_m, target_m=config.target_m, fov_deg=config.fov_deg)


def matrices(eye: Eye) -> tuple[Sequence[float], Sequence[float]]:
    """OpenGL's view and projection matrices, 16 numbers each, column by column."""
    return (
        p.computeViewMatrix(eye.position_m, eye.target_m, eye.up),
        p.computeProjectionMatrixFOV(eye.fov_deg, 1.0, eye.nearest_m, 3.0),
    )


def projection_of(config: RenderConfig, size: int) -> np.ndarray:
    """(3, 4): how the third-person camera projects points of the table frame onto `size` x `size` pixels, as
    `info["camera"]`. TinyRenderer samples a pixel at its lower left corner, not at its center (seen in its images)."""
    view, projection = (np.reshape(matrix, (4, 4)).T for matrix in matrices(main_eye(config)))
    x, y, _, w = projection @ view
    return np.stack([(x + w) * size / 2, (w - y) * size / 2 - w, w])


@dataclass(frozen=True, kw_only=True)
class CameraImage:
    """One image and its segmentation."""

    rgb: np.ndarray
    """(Y, X, 3) uint8."""
    body: np.ndarray | None
    """(Y, X) int32, PyBullet's body number, -1 for nothing; None if not asked for."""
    link: np.ndarray | None = None
    """(Y, X) int32, that body's link, -1 for its base; None if not asked for."""


BODY_BITS = 24
"""Number of bits of the body's id in PyBullet's segmentation; with links, the bits above hold link + 1."""


def render_image(
    client: int, config: RenderConfig, size: int, *, mask: bool, links: bool = False, eye: Eye | None = None
) -> CameraImage:
    """Render `size` x `size` pixels of the simulation `client`, as `eye` sees it (None: the third-person camera).

    `mask` also returns which body each pixel shows, `links` (with `mask`) which of that body's links.
    """
    eye = eye or main_eye(config)
    flags = p.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX if links else 0
    view, projection = matrices(eye)
    _, _, rgba, _, body = p.getCameraImage(
        size,
        size,
        view,
        projection,
        lightDirection=config.light,
        shadow=int(config.shadow),
        renderer=p.ER_TINY_RENDERER,
        flags=flags if mask else p.ER_NO_SEGMENTATION_MASK,
        physicsClientId=client,
    )
    rgb = tinted(np.asarray(rgba, np.uint8).reshape(size, size, 4)[:, :, :3], config.tint)
    if not mask:
        return CameraImage(rgb=rgb, body=None)
    number = np.asarray(body, np.int32).reshape(size, size)
    if not links:
        return CameraImage(rgb=rgb, body=number)
    there = number >= 0
    return CameraImage(
        rgb=rgb,
        body=np.where(there, number & ((1 << BODY_BITS) - 1), -1),
        link=np.where(there, (number >> BODY_BITS) - 1, -1),
    )
