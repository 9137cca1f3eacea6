"""A robot arm over a table, as a Gymnasium environment at 5 Hz control (PyBullet)."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from envs.camera import Look, Picture, take_picture
from envs.kinematics import kinematics, limit_tilt
from envs.physics import TICKS, World
from envs.robots import robot, spec_of
from envs.rotations import axis_angle_matrix, matrix_quaternion, turn_between
from envs.tasks import NUM_SLOTS, Scene, draw_scene, judge, known_task
from tap_ray.errors import SpecError
from tap_ray.specs import EE_DELTA_ACTION
from tap_ray.types import EnvConfig

LEASH_M, LEASH_RAD = 0.03, 0.3
"""How far the commanded pose may run ahead of the measured one when something is in the way."""


class TabletopEnv(gym.Env[Any, np.ndarray]):
    """One robot, one table. Observation, action and info are those of tap_ray/types.py and tap_ray/specs.py.

    Episodes never terminate early (`terminated` is always False); they are truncated after `max_steps`. The reward is
    1 while the task is entirely done, else 0.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        config: EnvConfig,
        *,
        teleoperated: bool = False,
        look: Look | None = None,
        render_size: int | None = None,
        render_mode: str = "rgb_array",
    ) -> None:
        """Start a simulation of `config`.

        Args:
            config: task, robot, image size, step limit.
            teleoperated: actions move the hand (specs.EE_DELTA_ACTION) whatever the robot's own actions are, and
                `info["action"]` says what that was in its own.
            look: camera, light and table; None for the standard one.
            render_size: side of what `render` returns, px; None for the observation's.
            render_mode: only "rgb_array".
        """
        self.config = config
        self.render_mode = render_mode
        self.model = robot(config.robot)
        self.robot_spec = spec_of(self.model)
        self._arm, self._base_m = kinematics(self.model), np.array(self.model.base_m)
        self._task = known_task(config.task)
        self._look = look or Look()
        self._render_size = render_size or config.image_size
        size, state = config.image_size, self.robot_spec.state
        self._state_low = np.array([slot.low for slot in state], np.float32)
        self._state_high = np.array([slot.high for slot in state], np.float32)
        self._by_hand = teleoperated or self.model.control == "hand"
        taken = EE_DELTA_ACTION if self._by_hand else self.robot_spec.action
        self._taken = taken
        self._low_A = np.array([slot.low for slot in taken], np.float32)
        self._high_A = np.array([slot.high for slot in taken], np.float32)
        self.action_space = gym.spaces.Box(self._low_A, self._high_A)
        self.observation_space = gym.spaces.Dict(
            rgb=gym.spaces.Box(0, 255, (size, size, 3), np.uint8),
            state=gym.spaces.Box(self._state_low, self._state_high),
        )
        self._world = World(self.model, self.robot_spec.control_hz)
        self._scene: Scene | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode whose sentence, objects, poses and joints all follow from `seed`."""
        super().reset(seed=seed)
        self._scene = draw_scene(self._task, self.np_random)
        noise = self.np_random.normal(0.0, self.model.home_noise_rad, len(self.model.joint))
        home = np.array(self.model.home_rad) + noise
        self._world.build(self._scene, home, self._look.table_rgb)
        self._world.settle(home)
        self._position_m, self._matrix = self._world.tool_pose()
        self._joint_rad = home
        self._start_M7 = self._world.object_poses(NUM_SLOTS)
        self._num_steps = self._num_clipped = 0
        self._partial_once = self._entire_once = False
        return self._look_around(_still(len(self._taken)), _still(len(self.robot_spec.action)))

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action (A,), clipped into the spec's range.

        Raises:
            SpecError: wrong shape or a value that is not a number.
        """
        if self._scene is None:
            raise SpecError("step() came before reset(). Call env.reset(seed=...) once, then step().")
        executed = self._checked(action)
        before = self._held_joints()
        path = self._plan(executed) if self._by_hand else self._plan_joints(before, executed)
        own = executed
        if self.model.control == "joints":
            own = np.append(path[-1] - before, executed[-1]).astype(np.float32)
        self._world.move(path, (float(executed[-1]) + 1.0) / 2.0)
        self._num_steps += 1
        obs, info = self._look_around(executed, own)
        return obs, float(info["entire"]), False, self._num_steps >= self.config.max_steps, info

    def render(self) -> np.ndarray:
        """The camera's picture, (render_size, render_size, 3) uint8."""
        if self._scene is None:
            raise SpecError("render() came before reset(). Call env.reset(seed=...) first.")
        return self._photograph(self._render_size, mask=False).rgb

    def close(self) -> None:
        """End the simulation."""
        self._world.close()

    def _checked(self, action: np.ndarray) -> np.ndarray:
        value = np.asarray(action, np.float32)
        names = ", ".join(f"{slot.name} ({slot.unit})" for slot in self._taken)
        want = f"An action of {self.model.name} is {len(self._taken)} finite numbers: {names}"
        if value.shape != self._low_A.shape:
            raise SpecError(f"{want}. This one has shape {value.shape}: pass one action a robot and step.")
        if not np.isfinite(value).all():
            raise SpecError(f"{want}. This one is {value.tolist()}: look for NaN in the policy's output.")
        clipped = np.clip(value, self._low_A, self._high_A)
        self._num_clipped += int(not np.array_equal(clipped, value))
        return clipped

    def _held_joints(self) -> np.ndarray:
        """(J,) rad, the commanded joints, no farther from the measured ones than the leash allows."""
        measured, _ = self._world.joints()
        return measured + np.clip(self._joint_rad - measured, -LEASH_RAD, LEASH_RAD)

    def _plan_joints(self, start_rad: np.ndarray, action: np.ndarray) -> list[np.ndarray]:
        """Turn the commanded joints by `action`, as far as the tool stays in the workspace; returns the targets."""
        for part in (1.0, 0.5, 0.25):
            goal = start_rad + part * action[:-1]
            position_m, matrix = self._arm.forward(goal)
            inside = _within(position_m + self._base_m, self.model.workspace_low_m, self.model.workspace_high_m)
            bent = _within(goal, self.model.joint_low_rad, self.model.joint_high_rad)
            if inside and bent and matrix[2, 0] <= -np.cos(self.model.max_tilt_rad):
                break
        else:
            goal = start_rad
        self._joint_rad = goal
        self._position_m, self._matrix = self._world.tool_pose()
        return [start_rad + tick / TICKS * (goal - start_rad) for tick in range(1, TICKS + 1)]

    def _plan(self, action: np.ndarray) -> list[np.ndarray]:
        """Move the commanded pose by `action` and return the joint targets (TICKS of (J,), rad) that lead there."""
        measured_m, measured = self._world.tool_pose()
        ahead = self._position_m - measured_m
        start_m = measured_m + ahead * min(1.0, LEASH_M / max(float(np.linalg.norm(ahead)), 1e-9))
        lag = turn_between(measured, self._matrix)
        start = axis_angle_matrix(lag * min(1.0, LEASH_RAD / max(float(np.linalg.norm(lag)), 1e-9))) @ measured
        goal_m = np.clip(start_m + action[:3], self.model.workspace_low_m, self.model.workspace_high_m)
        goal = limit_tilt(axis_angle_matrix(action[3:6]) @ start, self.model.max_tilt_rad)
        away_m, turn = goal_m - start_m, turn_between(start, goal)
        joints = self._arm.inverse(start_m - self._base_m, start, self._joint_rad)
        self._joint_rad = self._joint_rad if joints is None else joints
        for move_part, turn_part in ((1.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
            path = self._path((start_m, start), move_part * away_m, turn_part * turn)
            if path is not None:
                self._position_m = start_m + move_part * away_m
                self._matrix = axis_angle_matrix(turn_part * turn) @ start
                self._joint_rad = path[-1]
                return path
        self._position_m, self._matrix = start_m, start
        return [self._joint_rad] * TICKS

    def _path(
        self, start: tuple[np.ndarray, np.ndarray], away_m: np.ndarray, turn_rad: np.ndarray
    ) -> list[np.ndarray] | None:
        """Joint targets along a straight line and a steady turn; None where the arm cannot follow."""
        path, last = [], self._joint_rad
        most = self.model.joint_speed_rad_s / self.robot_spec.control_hz / TICKS
        for tick in range(1, TICKS + 1):
            part = tick / TICKS
            goal_m, goal = start[0] + part * away_m, axis_angle_matrix(part * turn_rad) @ start[1]
            joints = self._arm.inverse(goal_m - self._base_m, goal, last)
            if joints is None or np.abs(joints - last).max() > most:
                return None
            path.append(joints)
            last = joints
        return path

    def _look_around(self, executed: np.ndarray, own: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and info now. `executed`: the action as it was taken; `own`: as the robot's own."""
        assert self._scene is not None
        picture = self._picture()
        poses, touch = self._world.object_poses(NUM_SLOTS), self._world.touch()
        partial, entire = judge(self._task, self._start_M7, poses, touch)
        self._partial_once |= partial
        self._entire_once |= entire
        names = [model.name for model in self._scene.object]
        info: dict[str, Any] = {
            "object_pose": poses,
            "object_name": ",".join(names + [""] * (NUM_SLOTS - len(names))),
            "contact": bool(touch.finger_during),
            "partial": partial,
            "entire": entire,
            "partial_once": self._partial_once,
            "entire_once": self._entire_once,
            "num_clipped": self._num_clipped,
            "instruction": self._scene.sentence,
            "action": own,
        }
        if self._by_hand:
            info["hand_action"] = executed
        if self.config.robot_mask:
            body = picture.body
            assert body is not None
            info["robot_mask"] = np.where(np.isin(body, self._world.robot_and_shadow), 255, 0).astype(np.uint8)
        return {"rgb": picture.rgb, "state": self._state()}, info

    def _picture(self) -> Picture:
        size = self.config.image_size
        if not self.config.render:
            return Picture(rgb=np.zeros((size, size, 3), np.uint8), body=np.full((size, size), -1, np.int32))
        return self._photograph(size, mask=self.config.robot_mask)

    def _photograph(self, size: int, *, mask: bool) -> Picture:
        if self._look.hand_shadow:
            self._world.cast_hand_shadow(self._look.light)
        return take_picture(self._world.client, self._look, size, mask=mask)

    def _state(self) -> np.ndarray:
        """(S,) float32 proprioception, in the order of the spec."""
        joints, opening = self._world.joints()
        position_m, matrix = self._world.tool_pose()
        state = np.concatenate([joints, [opening], position_m, matrix_quaternion(matrix)])
        return np.clip(state.astype(np.float32), self._state_low, self._state_high)


def _within(value: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> bool:
    return bool((value >= low).all() and (value <= high).all())


def _still(num: int) -> np.ndarray:
    """(num,) action that moves nothing and opens the gripper."""
    action = np.zeros(num, np.float32)
    action[-1] = 1.0
    return action
