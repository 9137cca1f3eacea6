"""Provides policies without learning: a scripted expert that reads privileged object poses, and uniform noise.

The expert is a list of phases per robot. Each phase names a tool pose to steer to, a gripper command and when it is
over; noise is added to its actions, so that demonstrations contain errors and their corrections.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from envs.kinematics.rotations import axis_angle_matrix, quaternion_matrix, turn_between
from envs.kinematics.solver import DOWN
from envs.scene.objects import OBJECTS, ObjectModel
from envs.scene.tasks import PUSH_M, TASKS, TaskModel
from tap_ray.errors import ConfigError, nearest
from tap_ray.plugins import Registry
from tap_ray.rng import generator
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig, Info, Observation, Policy

OPEN, CLOSED = 1.0, -1.0
STAY = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, OPEN)
CLEARANCE_M = 0.07
"""Height above the object from which it is approached."""
CARRY_Z_M = 0.14
"""Height of the tool on its way to the target, above the table."""


MAX_YAW_RAD = 1.9
"""Largest yaw of the gripper from straight: the wrist has joint limits."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Speed and noise of the expert."""

    step_m: float = 0.035
    """Longest motion per control step, m."""
    turn_rad: float = 0.25
    """Largest rotation per control step, rad."""
    noise_m: float = 0.003
    """Standard deviation of the Gaussian noise on each of dx, dy, dz, m; 0 disables."""
    noise_rad: float = 0.02
    """Standard deviation of the Gaussian noise on each of drx, dry, drz, rad; 0 disables."""
    push_probability: float = 0.02
    """Probability per step that a displacement begins; 0 disables it."""
    push_m: float = 0.015
    """Length of a displacement per step, m."""
    push_steps: int = 3
    """Number of steps that a displacement lasts."""


@dataclass(frozen=True, kw_only=True)
class PhaseGoal:
    """The goal of a phase."""

    position_m: np.ndarray
    """(3,) tool position."""
    yaw_rad: float
    gripper: float
    next: str
    """Phase that follows once the goal is reached."""
    within_m: float = 0.008
    """Distance within which the goal counts as reached, m."""
    hold: int = 0
    """Smallest number of steps to stay."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the expert knows about one robot at one step."""

    tool_m: np.ndarray
    """(3,) measured tool position."""
    tool: np.ndarray
    """(3, 3) measured orientation."""
    commanded_m: np.ndarray
    """(3,) commanded tool position, which an action moves."""
    commanded: np.ndarray
    """(3, 3) commanded orientation."""
    item_m: np.ndarray
    """(3,) center of the object to move."""
    item: np.ndarray
    """(3, 3) orientation of the object to move."""
    target_m: np.ndarray
    """(3,) center of the target (zero for a push)."""
    entire: bool


@dataclass(frozen=True, kw_only=True)
class ExpertScene:
    """What an expert needs to know about its simulator: sizes of objects, heights, and the lag of the end effector."""

    object: Mapping[str, ObjectModel] = field(default_factory=lambda: OBJECTS)
    """Sizes of objects, and where to grasp them."""
    carry_z_m: float = CARRY_Z_M
    """Height of the tool on its way to the target, table frame."""
    drop_in_m: float = -0.02
    """Height of the underside of an object above the upper side of the basket when it is released, m; negative inside
    it."""
    lags: bool = False
    """Whether the end effector follows its command so slowly that the expert must use the commanded pose."""


class ScriptedEpisode:
    """The phases of one robot in one episode."""

    def __init__(self, task: TaskModel, scene: ExpertScene, config: ExpertConfig, seed: int, view: View) -> None:
        self._task, self._scene, self._config = task, scene, config
        self._rng = generator(seed, "expert")
        self._start_m = view.item_m.copy()
        self._phase, self._steps = "above", 0
        self._yaw_rad = 0.0
        self._push_m, self._push_left = np.zeros(3), 0

    def act(self, view: View) -> np.ndarray:
        """(7,) action."""
        goal = self._phase_goal(view)
        goal_matrix = axis_angle_matrix(np.array([0, 0, goal.yaw_rad])) @ DOWN
        left_m, left_rad = goal.position_m - view.tool_m, turn_between(view.tool, goal_matrix)
        away, turn = goal.position_m - view.commanded_m, turn_between(view.commanded, goal_matrix)
        self._steps += 1
        there = np.linalg.norm(left_m) < goal.within_m and np.linalg.norm(left_rad) < 0.15
        if there and self._steps > goal.hold:
            self._phase, self._steps = goal.next, 0
        action = np.concatenate(
            [_shorten(away, self._config.step_m), _shorten(turn, self._config.turn_rad), [goal.gripper]]
        )
        action[:6] += self._noise()
        return action.astype(np.float32)

    def _noise(self) -> np.ndarray:
        """(6,) Gaussian noise, and occasionally a displacement that lasts several steps."""
        config, rng = self._config, self._rng
        if self._push_left == 0 and rng.random() < config.push_probability:
            direction = rng.normal(size=3) * (1.0, 1.0, 0.5)
            self._push_m = direction / np.linalg.norm(direction) * config.push_m
            self._push_left = config.push_steps
        push = self._push_m if self._push_left > 0 else np.zeros(3)
        self._push_left = max(0, self._push_left - 1)
        scale = [config.noise_m] * 3 + [config.noise_rad] * 3
        return rng.normal(size=6) * scale + np.concatenate([push, np.zeros(3)])

    def _phase_goal(self, view: View) -> PhaseGoal:
        return self._push_goal(view) if self._task.goal == "push_left" else self._place_goal(view)

    def _place_goal(self, view: View) -> PhaseGoal:
        """Goals to grasp, carry and release; starts again if the object is not where the phase needs it."""
        item = self._scene.object[self._task.object[0]]
        grasp_m = view.item_m + view.item @ [item.grasp_x_m, 0, 0]
        grasp_m = np.array([*grasp_m[:2], view.item_m[2] - item.half_size_m[2] + item.grasp_z_m])
        above_m = np.array([*grasp_m[:2], grasp_m[2] + CLEARANCE_M])
        held = bool(np.linalg.norm(grasp_m - view.tool_m) < 0.035)
        if self._phase in ("over", "lower") and not held:
            self._phase, self._steps = "above", 0
        if self._phase in ("above", "down"):
            self._yaw_rad = _grasp_yaw(item, view)
        target_m = view.target_m + view.tool_m - view.item_m  # where the tool is when the object is on the target
        release_z = view.target_m[2] + self._drop_m() + view.tool_m[2] - view.item_m[2]
        yaw = self._yaw_rad
        match self._phase:
            case "above":
                if view.entire:
                    return PhaseGoal(
                        position_m=np.array([*view.tool_m[:2], self._scene.carry_z_m]),
                        yaw_rad=yaw,
                        gripper=OPEN,
                        next="above",
                    )
                return PhaseGoal(position_m=above_m, yaw_rad=yaw, gripper=OPEN, next="down", within_m=0.015)
            case "down":
                return PhaseGoal(position_m=grasp_m, yaw_rad=yaw, gripper=OPEN, next="close")
            case "close":
                return PhaseGoal(position_m=view.commanded_m, yaw_rad=yaw, gripper=CLOSED, next="lift", hold=1)
            case "lift":
                up = np.array([*view.tool_m[:2], self._scene.carry_z_m])
                return PhaseGoal(position_m=up, yaw_rad=yaw, gripper=CLOSED, next="over", within_m=0.02)
            case "over":
                over = np.array([*target_m[:2], self._scene.carry_z_m])
                return PhaseGoal(position_m=over, yaw_rad=yaw, gripper=CLOSED, next="lower", within_m=0.012)
            case "lower":
                low = np.array([*target_m[:2], release_z])
                return PhaseGoal(position_m=low, yaw_rad=yaw, gripper=CLOSED, next="open")
            case "open":
                return PhaseGoal(position_m=view.commanded_m, yaw_rad=yaw, gripper=OPEN, next="retreat", hold=1)
            case _:
                up = np.array([*view.tool_m[:2], self._scene.carry_z_m])
                return PhaseGoal(position_m=up, yaw_rad=yaw, gripper=OPEN, next="above", within_m=0.03)

    def _drop_m(self) -> float:
        """Height of the object's center above the target's when it is released."""
        item, target = (self._scene.object[name].half_size_m[2] for name in self._task.object)
        return target + item + (0.005 if self._task.goal != "in" else self._scene.drop_in_m)

    def _push_goal(self, view: View) -> PhaseGoal:
        """Goals to move to the right of the object, down, and push to the left along y."""
        item = self._scene.object[self._task.object[0]]
        beside = view.item_m - [0, item.half_size_m[1] + 0.045, 0]
        lost = abs(view.item_m[0] - view.tool_m[0]) > 0.025 or view.tool_m[1] > view.item_m[1]
        if self._phase == "push" and lost:
            self._phase, self._steps = "above", 0
        high, low = np.array([*beside[:2], 0.13]), np.array([*beside[:2], 0.035])
        up = np.array([*view.tool_m[:2], self._scene.carry_z_m])
        match self._phase:
            case "above" if view.entire:
                return PhaseGoal(position_m=up, yaw_rad=0.0, gripper=CLOSED, next="above")
            case "above":
                return PhaseGoal(position_m=high, yaw_rad=0.0, gripper=CLOSED, next="down", within_m=0.02)
            case "down":
                return PhaseGoal(position_m=low, yaw_rad=0.0, gripper=CLOSED, next="push", within_m=0.015)
            case "push":
                if view.item_m[1] - self._start_m[1] >= PUSH_M + 0.01:
                    self._phase, self._steps = "retreat", 0
                far = np.array([view.item_m[0], view.tool_m[1] + self._config.step_m, 0.03])
                return PhaseGoal(position_m=far, yaw_rad=0.0, gripper=CLOSED, next="push", within_m=0.0)
            case _:
                return PhaseGoal(position_m=up, yaw_rad=0.0, gripper=CLOSED, next="above", within_m=0.03)


class Expert:
    """A `Policy` for N robots of one task: one `ScriptedEpisode` each, for the arm that begins nearest to the object.

    It moves end effectors, whatever the robot's own actions are (`envs.make_ee_control`); other arms stay where they
    are.
    """

    def __init__(
        self, task: TaskModel, spec: RobotSpec, num_robots: int, config: ExpertConfig, scene: ExpertScene
    ) -> None:
        self._task, self._num_robots, self._config, self._scene = task, num_robots, config, scene
        self._arms = spec.arms
        self._nearest_arm: list[int] = []
        self._scripts: list[ScriptedEpisode] = []

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Begin an episode on every robot; `seeds` (N) are those of the noise."""
        self._commanded: list[tuple[np.ndarray, np.ndarray] | None] = [None] * self._num_robots
        self._nearest_arm = [self._nearest(obs, info, robot) for robot in range(self._num_robots)]
        views = [self._view(obs, info, robot) for robot in range(self._num_robots)]
        self._scripts = [
            ScriptedEpisode(self._task, self._scene, self._config, seed, view)
            for seed, view in zip(seeds, views, strict=True)
        ]

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, 7) float32 actions, 7 more for each further arm."""
        action_NE7 = np.tile(np.array(STAY, np.float32), (self._num_robots, len(self._arms), 1))
        for robot, script in enumerate(self._scripts):
            action_NE7[robot, self._nearest_arm[robot]] = script.act(self._view(obs, info, robot))
        return action_NE7.reshape(self._num_robots, -1)

    def _nearest(self, obs: Observation, info: Info, robot: int) -> int:
        """Index of the arm whose tool is horizontally nearest to the object."""
        ee_pos_m = [obs["state"][robot, arm.ee_pos][:2] for arm in self._arms]
        item = info["object_pose"][robot][0, :2]
        return int(np.argmin([np.linalg.norm(ee_m - item) for ee_m in ee_pos_m]))

    def _view(self, obs: Observation, info: Info, robot: int) -> View:
        arm, state = self._arms[self._nearest_arm[robot]], np.asarray(obs["state"][robot], float)
        measured = state[..., arm.ee_pos], quaternion_matrix(state[..., arm.ee_quat])
        commanded_m, commanded = self._command(measured, info["ee_action"][robot], robot)
        poses: Any = np.asarray(info["object_pose"][robot], float)
        return View(
            tool_m=measured[0],
            tool=measured[1],
            commanded_m=commanded_m,
            commanded=commanded,
            item_m=poses[0, :3],
            item=quaternion_matrix(poses[0, 3:]),
            target_m=poses[1, :3],
            entire=bool(info["entire"][robot]),
        )

    def _command(
        self, measured: tuple[np.ndarray, np.ndarray], action: np.ndarray, robot: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The commanded pose: the measured one, or if that lags, the sum of the executed actions."""
        if not self._scene.lags:
            return measured
        before = self._commanded[robot]
        if before is None:
            now = measured
        else:
            now = before[0] + action[:3], axis_angle_matrix(np.asarray(action[3:6], float)) @ before[1]
        self._commanded[robot] = now
        return now


class RandomPolicy:
    """A `Policy` that draws every action slot uniformly over its range: the lower bound."""

    def __init__(self, spec: RobotSpec) -> None:
        self._low_A, self._high_A = spec.action_low_A, spec.action_high_A
        self._rngs: list[np.random.Generator] = []

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Begin an episode; `seeds` (N), one per robot."""
        self._rngs = [generator(seed, "random") for seed in seeds]

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) float32 actions."""
        return np.stack([rng.uniform(self._low_A, self._high_A) for rng in self._rngs]).astype(np.float32)


def expert(
    task: str, spec: RobotSpec, num_robots: int, config: ExpertConfig | None = None, scene: ExpertScene | None = None
) -> Expert:
    """The scripted expert of `task` for `num_robots` robots; `scene` describes the simulator, None means our own table.

    Raises:
        ConfigError: the task is unknown or has no goal ("play").
    """
    if task not in TASKS:
        raise ConfigError(f"There is no expert for task {task!r}. {nearest(task, TASKS)}")
    model, scene = TASKS[task], scene or ExpertScene()
    if model.check_success is not None:
        raise ConfigError(
            f"There is no expert for task {task!r}, because it defines its own goal. Its package can provide one "
            "(entry point tap_ray.experts, docs/how-to/robot.md)."
        )
    if model.own_object:
        scene = replace(scene, object={**scene.object, **{each.name: each for each in model.own_object}})
    return Expert(model, spec, num_robots, config or ExpertConfig(), scene)


EXPERTS: Registry[Callable[[EnvConfig, int], Policy]] = Registry("expert", {})
"""Task -> function that makes its expert for a scene and a number of robots, from installed packages. Experts move end
effectors."""


def random_policy(spec: RobotSpec) -> RandomPolicy:
    """Uniform noise over `spec`'s action range."""
    return RandomPolicy(spec)


def _shorten(vector: np.ndarray, most: float) -> np.ndarray:
    """`vector`, shortened to at most the length `most`."""
    length = float(np.linalg.norm(vector))
    return vector if length <= most else vector * (most / length)


def _grasp_yaw(item: ObjectModel, view: View) -> float:
    """Tool yaw, rad, that closes the fingers across the object's short side: the one nearest to the tool's own."""
    object_yaw = np.arctan2(view.item[1, 0], view.item[0, 0])
    tool_yaw = np.arctan2(-view.tool[0, 1], view.tool[1, 1])
    period = np.pi / 2 if item.half_size_m[0] == item.half_size_m[1] else np.pi
    yaw = object_yaw + np.round((tool_yaw - object_yaw) / period) * period
    return float(yaw - np.sign(yaw) * period if abs(yaw) > MAX_YAW_RAD else yaw)
