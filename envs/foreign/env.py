"""Wraps a foreign environment as one of ours: observation, action and info of tap_ray/types.py."""

import importlib
from typing import Any, ClassVar, Mapping

import gymnasium as gym
import numpy as np
from PIL import Image

from envs.foreign.adapter import RENDER, Adapter, Numbers
from envs.kinematics.rotations import matrix_quaternion, quaternion_matrix
from envs.observations import image_spaces, resized_projection
from envs.scene.tasks import NUM_SLOTS
from tap_ray.errors import ConfigError, SpecError
from tap_ray.plugins import load_reference
from tap_ray.specs import EE_DELTA_ACTION
from tap_ray.types import EnvConfig

ENDLESS = 10**9
"""Number of steps for the environment's own time limit, so that only ours applies."""


def foreign_env(adapter: Adapter) -> gym.Env:
    """The environment itself.

    Raises:
        ConfigError: it is not installed, or cannot be made; the message contains its error.
    """
    kwargs = dict(adapter.kwargs or {})
    module, _, name = adapter.env.rpartition(":")
    try:
        if module and name.isidentifier():
            return load_reference(adapter.env)(**kwargs)
        if module:
            importlib.import_module(module)
        if RENDER in adapter.camera_of.values():
            kwargs.setdefault("render_mode", "rgb_array")
        return gym.make(adapter.env, max_episode_steps=ENDLESS, disable_env_checker=True, **kwargs)
    except (ImportError, AttributeError, TypeError, gym.error.Error) as error:
        raise ConfigError(
            f"The environment {adapter.env} cannot be created: {type(error).__name__}: {error}. Install its package, "
            "or correct the adapter."
        ) from error


class ForeignEnv(gym.Env[Any, np.ndarray]):
    """One robot in a foreign environment. Episodes last `max_steps`; the robot stands still once the environment has
    ended."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, adapter: Adapter, config: EnvConfig, *, ee_control: bool = False) -> None:
        """Start the environment.

        Args:
            adapter: the meaning of its numbers.
            config: image size, number of steps, and whether masks are needed.
            ee_control: actions are specs.EE_DELTA_ACTION whatever its own are; slots that it lacks have no effect.

        Raises:
            ConfigError: it cannot be made, or its spaces do not match the adapter.
        """
        self.adapter, self.config, self.render_mode = adapter, config, "rgb_array"
        self._spec, self._ee_control = adapter.spec, ee_control
        self._env = foreign_env(adapter)
        space: Any = self._env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ConfigError(
                f"{adapter.env} has the action space {space}; an adapter supports a one-dimensional Box only."
            )
        self._native = space
        for part in adapter.action:
            if max(part.positions) >= space.shape[0]:
                raise ConfigError(
                    f"The actions of {adapter.env} have {space.shape[0]} numbers, but the adapter has "
                    f"{list(part.slots)} at the positions {part.positions}."
                )
        slots = EE_DELTA_ACTION if ee_control else self._spec.action
        self._taken = [slot.name for slot in slots]
        self._robot_slots = [slot.name for slot in self._spec.action]
        low_A, high_A = (np.array([getattr(slot, end) for slot in slots], np.float32) for end in ("low", "high"))
        self.action_space = gym.spaces.Box(low_A, high_A)
        size, state = config.image_size, self._spec.state
        self._low_S = np.array([slot.low for slot in state], np.float32)
        self._high_S = np.array([slot.high for slot in state], np.float32)
        self._first, *self._others = adapter.camera_of.values()
        images = image_spaces(len(adapter.camera_of), size)
        self.observation_space = gym.spaces.Dict({**images, "state": gym.spaces.Box(self._low_S, self._high_S)})
        self._seen: Any = None
        self._projection_34: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode that follows from `seed`."""
        super().reset(seed=seed)
        self._seen, info = self._env.reset(seed=None if seed is None else seed % 2**31, options=options)
        self._ended = self._partial_once = self._entire_once = False
        self._num_steps = self._num_clipped = 0
        self._sentence = str(self.np_random.choice(self.adapter.instruction))
        still = np.array([float(name == "gripper") for name in self._taken], np.float32)
        return self._observation(), self._info(info, still)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action, clipped into range and divided among the environment's steps."""
        value, space = np.asarray(action, np.float32), self.action_space
        if value.shape != space.shape or not np.isfinite(value).all():  # pyright: ignore[reportAttributeAccessIssue]
            raise SpecError(
                f"An action of {self.adapter.robot} must be {len(self._taken)} finite numbers; got {value}."
            )
        clipped = np.clip(value, space.low, space.high)  # pyright: ignore[reportAttributeAccessIssue]
        self._num_clipped += int(not np.array_equal(clipped, value))
        native, reward = self._native_action(clipped), 0.0
        info: Mapping[str, Any] = self._last_info
        for _ in range(self.adapter.repeat):
            if not self._ended:
                self._seen, paid, ended, _, info = self._env.step(native)
                reward, self._ended = reward + float(np.asarray(paid).sum()), bool(np.asarray(ended).any())
        self._num_steps += 1
        return self._observation(), reward, False, self._num_steps >= self.config.max_steps, self._info(info, clipped)

    def render(self) -> Any:
        """The first camera's image, (image_size, image_size, 3) uint8."""
        return self._image(self._first)

    def close(self) -> None:
        """End it."""
        self._env.close()

    def _native_action(self, taken: np.ndarray) -> np.ndarray:
        """The environment's own numbers for one of its steps."""
        by_name = dict(zip(self._taken, taken.tolist(), strict=True))
        native = np.zeros(self._native.shape, np.float64)
        for part in self.adapter.action:
            for name, at in zip(part.slots, part.positions, strict=True):
                if part.closed is not None and part.open is not None:
                    native[at] = part.closed + (by_name[name] + 1) / 2 * (part.open - part.closed)
                else:
                    native[at] = by_name[name] / part.scale / self.adapter.repeat
        return np.clip(native, self._native.low, self._native.high).astype(self._native.dtype)

    def _observation(self) -> dict[str, np.ndarray]:
        size = self.config.image_size
        black = np.zeros((size, size, 3), np.uint8)
        rgb, *others = (self._image(camera) if self.config.render else black for camera in (self._first, *self._others))
        extra = {"extra_rgb": np.stack(others)} if others else {}
        state = np.concatenate([self._numbers(part) for part in self.adapter.state])
        return {"rgb": rgb, **extra, "state": np.clip(state, self._low_S, self._high_S).astype(np.float32)}

    def _numbers(self, part: Numbers) -> np.ndarray:
        """Numbers of the state, in our units and frame."""
        if part.constant:
            return np.array(part.constant, np.float64)
        values = self._column(part.column, part.positions) * part.scale
        if part.closed is not None and part.open is not None:
            return (values - part.closed) / (part.open - part.closed)
        if part.slots == ("ee_x", "ee_y", "ee_z"):
            return values - self.adapter.origin_m
        if part.slots == ("ee_qw", "ee_qx", "ee_qy", "ee_qz"):
            turn = quaternion_matrix(np.array(self.adapter.tool_quat))
            return matrix_quaternion(quaternion_matrix(values / np.linalg.norm(values)) @ turn.T)
        return values

    def _column(self, name: str, at: tuple[int, ...] | None) -> np.ndarray:
        found, way = self._seen, name.split(".") if name else []
        for step in way:
            if not isinstance(found, Mapping) or step not in found:
                there = ", ".join(found) if isinstance(found, Mapping) else "no further columns"
                raise ConfigError(
                    f"The observations of {self.adapter.env} have no {name!r}: at {step!r} there is {there}."
                )
            found = found[step]
        values = np.asarray(found)
        if at is None:
            return values
        values = values.reshape(-1)
        if max(at) >= len(values):
            raise ConfigError(
                f"{name!r} of {self.adapter.env} has {len(values)} numbers, but the adapter reads the positions "
                f"{list(at)}."
            )
        return values[list(at)].astype(np.float64)

    def _image(self, camera: str) -> np.ndarray:
        image: Any = self._env.render() if camera == RENDER else self._column(camera, None)
        rows = np.asarray(image)
        rows = rows[0] if rows.ndim == 4 else rows
        if rows.ndim != 3 or rows.shape[2] < 3 or rows.dtype != np.uint8:
            raise ConfigError(
                f"The camera {camera!r} of {self.adapter.env} must give uint8 images of shape (Y, X, 3); got "
                f"{rows.dtype} {rows.shape}."
            )
        if camera == self._first and self.adapter.projection and self._projection_34 is None:
            side, top, left = middle_square(rows.shape[:2])
            scale = self.config.image_size / side
            own_34 = np.reshape(self.adapter.projection, (3, 4))
            self._projection_34 = resized_projection(own_34, across=scale, down=scale, left_px=left, top_px=top)
        return self._squared(rows[..., :3], Image.Resampling.BOX)

    def _squared(self, rows: np.ndarray, how: Image.Resampling) -> np.ndarray:
        """The central square of an image, in the requested size."""
        side, top, left = middle_square(rows.shape[:2])
        square = np.ascontiguousarray(rows[top : top + side, left : left + side])
        size = self.config.image_size
        return square if side == size else np.asarray(Image.fromarray(square).resize((size, size), how))

    def _info(self, info: Mapping[str, Any], executed: np.ndarray) -> dict[str, Any]:
        adapter, by_name = self.adapter, dict(zip(self._taken, executed, strict=True))
        self._last_info = info
        partial, entire, contact = (
            bool(np.asarray(self._flag(info, name)).any())
            for name in (adapter.partial, adapter.success, adapter.contact)
        )
        partial |= entire and not adapter.partial
        self._partial_once |= partial
        self._entire_once |= entire
        names = [thing.name for thing in adapter.objects]
        info = {
            "object_pose": self._object_pose(),
            "object_name": ",".join(names + [""] * (NUM_SLOTS - len(names))),
            **({"contact": contact} if adapter.contact else {}),
            "partial": partial,
            "entire": entire,
            "partial_once": self._partial_once,
            "entire_once": self._entire_once,
            "num_clipped": self._num_clipped,
            "instruction": self._sentence,
            "action": np.array([by_name[name] for name in self._robot_slots], np.float32),
        }
        if self._ee_control:
            executable = [name in self._robot_slots for name in self._taken]
            info["ee_action"] = np.where(executable, executed, 0).astype(np.float32)
            if self._projection_34 is not None:
                info["camera"] = self._projection_34.copy()
        if self.config.robot_mask:
            seen = (self._column(adapter.robot_mask, None).squeeze() != 0).astype(np.uint8) * 255
            info["robot_mask"] = self._squared(seen, Image.Resampling.NEAREST)
        return info

    def _flag(self, info: Mapping[str, Any], name: str) -> Any:
        """A flag of info; False if the adapter defines none, and before the first step if info lacks it."""
        if name and name not in info and self._num_steps:
            raise ConfigError(f"The info of {self.adapter.env} has no {name!r}; it has {', '.join(info) or 'nothing'}.")
        return info.get(name, False) if name else False

    def _object_pose(self) -> np.ndarray:
        poses = np.zeros((NUM_SLOTS, 7), np.float32)
        for slot, thing in enumerate(self.adapter.objects):
            values = self._column(thing.column, thing.at)
            poses[slot, :3] = values[:3] - self.adapter.origin_m
            poses[slot, 3:] = values[3:7] if len(values) == 7 else (1, 0, 0, 0)
        return poses


def middle_square(rows_columns: tuple[int, ...]) -> tuple[int, int, int]:
    """Side, first row and first column of the central square of an image, px."""
    side = min(rows_columns)
    top, left = ((length - side) // 2 for length in rows_columns)
    return side, top, left
