"""Defines a simulator without physics, seen from above: a tool that is always at its commanded position, and objects
that it pushes aside."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from envs.experts import ExpertScene
from envs.kinematics.rotations import axis_angle_matrix, matrix_quaternion
from envs.kinematics.solver import kinematics
from envs.robots import ROBOTS, robot, spec_of
from envs.scene.tasks import NUM_SLOTS, TASKS, Touch, check_success, draw_scene
from tap_ray.errors import ConfigError
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER, EnvConfig

CORNER_M, SIDE_M = np.array([0.05, -0.3]), 0.6
"""The square of the table that the camera shows, m; x points down and y to the right."""
GRIPPER_RADIUS_M = 0.015


class FlatlandEnv(gym.Env[Any, np.ndarray]):
    """One robot; tap_ray/types.py says what an observation and `info` hold."""

    def __init__(self, config: EnvConfig) -> None:
        self._config, self._arm = config, robot(config.robot).arm[0]
        self._spec, size = spec_of(robot(config.robot)), config.image_size
        low_S, high_S = (
            np.array([getattr(slot, end) for slot in self._spec.state], np.float32) for end in ("low", "high")
        )
        self.action_space = gym.spaces.Box(self._spec.action_low_A, self._spec.action_high_A)
        images = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"rgb": images, "state": gym.spaces.Box(low_S, high_S)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode that follows from `seed`."""
        super().reset(seed=seed)
        self._scene = draw_scene(self._config.task, self.np_random)
        self._ee_pos_m, self._matrix = kinematics(self._arm).forward(np.array(self._arm.home_rad))
        self._ee_pos_m = self._ee_pos_m + self._arm.base_m
        self._pose_M7 = np.zeros((NUM_SLOTS, 7), np.float32)
        things = zip(self._scene.object, self._scene.position_m, self._scene.yaw_rad, strict=True)
        for slot, (thing, place_m, yaw) in enumerate(things):
            self._pose_M7[slot] = [*place_m, thing.half_size_m[2], np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self._start_M7, self._open, self._pushed = self._pose_M7.copy(), 1.0, frozenset[int]()
        self._num_steps = self._num_clipped = 0
        self._once = np.zeros(2, bool)
        return self._seen(), self._info(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the tool, and push aside the objects in its way."""
        taken = np.clip(action, self._spec.action_low_A, self._spec.action_high_A).astype(np.float32)
        self._num_clipped += int(not np.array_equal(taken, action))
        self._num_steps += 1
        workspace = self._arm.workspace_low_m, self._arm.workspace_high_m
        self._ee_pos_m = np.clip(self._ee_pos_m + taken[:3], *workspace)
        self._matrix = axis_angle_matrix(taken[3:6].astype(np.float64)) @ self._matrix
        self._open = (float(taken[6]) + 1) / 2
        self._pushed = frozenset(slot for slot, thing in enumerate(self._scene.object) if self._push(slot, thing))
        info = self._info(taken)
        return self._seen(), float(info["entire"]), False, self._num_steps >= self._config.max_steps, info

    def _push(self, slot: int, thing: Any) -> bool:
        """Push an object away from the tool; returns whether it moved."""
        away_m, room_m = self._pose_M7[slot, :2] - self._ee_pos_m[:2], min(thing.half_size_m[:2]) + GRIPPER_RADIUS_M
        distance_m = float(np.hypot(*away_m))
        if distance_m >= room_m or self._ee_pos_m[2] > 2 * thing.half_size_m[2]:
            return False
        self._pose_M7[slot, :2] += away_m / max(distance_m, 1e-6) * (room_m - distance_m)
        return True

    def _seen(self) -> dict[str, np.ndarray]:
        whose = self._whose()
        colors = np.array([(150, 140, 130), (60, 60, 60), (20, 20, 20), *self._colors()], np.uint8)
        joints = np.array(self._arm.home_rad)  # it has none
        pose = np.concatenate([joints, [self._open], self._ee_pos_m, matrix_quaternion(self._matrix)])
        return {"rgb": colors[whose], "state": pose.astype(np.float32)}

    def _colors(self) -> list[tuple[int, int, int]]:
        return [(220, 120, 30), (60, 160, 60), (60, 90, 200), (200, 60, 160)]

    def _whose(self) -> np.ndarray:
        """(Y, X) uint8, values as in `info["segmentation"]`: discs on the table, and the tool above them."""
        size = self._config.image_size
        grid_m = (np.arange(size) + 0.5) / size * SIDE_M
        whose = np.full((size, size), ELSEWHERE, np.uint8)
        discs = [
            (pose[:2], min(thing.half_size_m[:2]), FIRST_OBJECT + slot)
            for slot, (pose, thing) in enumerate(zip(self._pose_M7, self._scene.object, strict=False))
        ]
        for middle_m, radius_m, value in [*discs, (self._ee_pos_m[:2], GRIPPER_RADIUS_M, GRIPPER)]:
            x_m, y_m = middle_m - CORNER_M
            whose[np.hypot(grid_m[:, None] - x_m, grid_m[None] - y_m) < radius_m] = value
        return whose

    def _info(self, taken: np.ndarray) -> dict[str, Any]:
        touch = Touch(gripper=((self._pushed, self._pushed),), finger_during=self._pushed, pair=frozenset())
        now = check_success(self._config.task, self._start_M7, self._pose_M7, touch)
        self._once |= now
        names = [thing.name for thing in self._scene.object]
        info = {"instruction": self._scene.sentence, "num_clipped": self._num_clipped}
        whose = self._whose()
        if self._config.robot_mask:
            info["robot_mask"] = np.isin(whose, (ARM, GRIPPER)).astype(np.uint8) * 255
        if self._config.segmentation:
            info["segmentation"] = whose
        return info | {
            "object_pose": self._pose_M7.copy(),
            "object_name": ",".join(names + [""] * (NUM_SLOTS - len(names))),
            "contact": bool(self._pushed),
            "partial": now[0],
            "entire": now[1],
            "partial_once": bool(self._once[0]),
            "entire_once": bool(self._once[1]),
            "action": taken,
            "ee_action": taken,
        }


@dataclass(frozen=True, kw_only=True)
class Flatland:
    """The interface that tap_ray expects of a simulator (`envs.simulator.Simulator`)."""

    suites: tuple[str, ...] = ("tabletop",)
    control_lag: float = 1.0

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be done by pushing."""
        return tuple(name for name in TASKS.built_in if TASKS[name].goal == "push_left")

    @property
    def robots(self) -> tuple[str, ...]:
        """The robots with one arm whose actions move the end effector."""
        return tuple(name for name in ROBOTS if len(robot(name).arm) == 1 and robot(name).control == "end_effector")

    def cameras(self, name: str) -> tuple[str, ...]:
        """One camera, from above."""
        return ONE_CAMERA

    def version(self) -> str:
        """Version of the scenes. Raise it when they change; the package's own version is added to it."""
        return "1"

    def check(self, config: EnvConfig) -> None:
        """Raise an error for scenarios, randomization and a second task."""
        for name, usual in (("scenario", "standard"), ("randomize", None), ("partner", "")):
            if getattr(config, name) != usual:
                raise ConfigError(f"flatland has no {name}: leave it out.")

    def make(self, config: EnvConfig, *, ee_control: bool = False, render_size: int | None = None) -> gym.Env:
        """Make one robot; its actions always move the end effector."""
        return FlatlandEnv(config)

    def make_vector(self, config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
        """Make robots side by side, which are not reset automatically."""
        return gym.vector.SyncVectorEnv(
            [lambda: FlatlandEnv(config)] * num_robots, autoreset_mode=gym.vector.AutoresetMode.DISABLED
        )

    def expert_scene(self, task: str) -> ExpertScene:
        """The objects are those of tap_ray."""
        return ExpertScene()


FLATLAND = Flatland()
