"""Simulates a robot arm at a table as a Gymnasium environment with 5 Hz control (PyBullet)."""

from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from envs.bullet.camera import CameraImage, RenderConfig, projection_of, render_image, wrist_eye
from envs.bullet.controller import CartesianController
from envs.bullet.world import World
from envs.kinematics.rotations import matrix_quaternion
from envs.observations import image_spaces
from envs.robots import ee_action_slots, robot, spec_of, wrist_cameras
from envs.scene.mixed import draw_mixed
from envs.scene.randomize import draw_randomized, drawn_json, turned_light
from envs.scene.scenarios import (
    CAMERA_OFFSETS,
    Perturbation,
    SceneConstraints,
    Viewpoint,
    draw_perturbation,
    kept_out_by,
    known_scenario,
    offset_view,
)
from envs.scene.tasks import NUM_SLOTS, Scene, check_success, draw_scene, known_task
from tap_ray.errors import SpecError
from tap_ray.rng import generator
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig


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
        ee_control: bool = False,
        render_config: RenderConfig | None = None,
        render_size: int | None = None,
        render_mode: str = "rgb_array",
    ) -> None:
        """Start a simulation of `config`.

        Args:
            config: task, robot, image size, step limit.
            ee_control: actions move the end effector (specs.EE_DELTA_ACTION) whatever the robot's own actions are, and
                `info["action"]` is the action in its own slots.
            render_config: camera, light and table; None for the standard one.
            render_size: side of the image of `render`, px; None for the observation's.
            render_mode: only "rgb_array".
        """
        self.config = config
        self.render_mode = render_mode
        self.model = robot(config.robot)
        self.robot_spec = replace(spec_of(self.model), cameras=config.cameras)
        self._controllers = [CartesianController(arm, self.robot_spec.control_hz) for arm in self.model.arm]
        self._task = known_task(config.task)
        self._scenario = known_scenario(config.scenario)
        self.render_config = self._standard_config = render_config or RenderConfig()
        self._render_size = render_size or config.image_size
        size, state = config.image_size, self.robot_spec.state
        self._state_low = np.array([slot.low for slot in state], np.float32)
        self._state_high = np.array([slot.high for slot in state], np.float32)
        self._ee_control = ee_control or self.model.control == "end_effector"
        taken = ee_action_slots(self.model) if self._ee_control else self.robot_spec.action
        self._taken_spec = replace(self.robot_spec, action=taken)
        self._low_A, self._high_A = self._taken_spec.action_low_A, self._taken_spec.action_high_A
        self.action_space = gym.spaces.Box(self._low_A, self._high_A)
        images, state = image_spaces(len(config.cameras), size), gym.spaces.Box(self._state_low, self._state_high)
        self.observation_space = gym.spaces.Dict({**images, "state": state})
        known = wrist_cameras(self.model)
        self._wrists = [known[name] for name in config.cameras[1:]]
        self.world = World(self.model, self.robot_spec.control_hz)
        self._scene: Scene | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode whose sentence, objects, poses and joints, and the scenario's change, follow from `seed`.

        `options={"variant": 2}` picks one of the scenario's sets, cloths or camera offsets instead of drawing it.
        """
        super().reset(seed=seed)
        partner = self.config.partner
        rng = self.np_random
        self._scene = draw_mixed(self._task, partner, rng) if partner else draw_scene(self._task, rng)
        noise = [self.np_random.normal(0.0, arm.home_noise_rad, len(arm.joint)) for arm in self.model.arm]
        perturbation = self._perturbation(self._scene, seed, (options or {}).get("variant"))
        self.render_config = _changed(self._standard_config, perturbation)
        self._projection_34 = projection_of(self.render_config, self.config.image_size)
        extra = {} if self.config.randomize is None else {"drawn": drawn_json(perturbation)}
        home = [
            np.array(arm.home_rad) + part + offset
            for arm, part, offset in zip(self.model.arm, noise, perturbation.joint_offset_rad, strict=True)
        ]
        self.world.build(self._scene, home, self.render_config, perturbation.distractor)
        self.world.settle(home)
        for controller, arm, joints in zip(self._controllers, self.world.arms, home, strict=True):
            controller.reset(arm, joints)
        self._start_M7 = self.world.object_poses(NUM_SLOTS)
        self._num_steps = self._num_clipped = 0
        self._partial_once = self._entire_once = False
        obs, info = self._obs_and_info(noop_action(self._taken_spec), noop_action(self.robot_spec))
        return obs, info | extra

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action (A,), clipped into the spec's range.

        Raises:
            SpecError: wrong shape or a value that is not a number.
        """
        if self._scene is None:
            raise SpecError("step() was called before reset(). Call env.reset(seed=...) once, then step().")
        executed = self._checked(action)
        parts = np.split(executed, len(self._controllers))
        plans = [
            controller.plan(part, ee_control=self._ee_control, control=self.model.control)
            for controller, part in zip(self._controllers, parts, strict=True)
        ]
        self.world.move([path for path, _ in plans], [(float(part[-1]) + 1.0) / 2.0 for part in parts])
        robot_action = np.concatenate([action for _, action in plans])
        self._num_steps += 1
        obs, info = self._obs_and_info(executed, robot_action)
        return obs, float(info["entire"]), False, self._num_steps >= self.config.max_steps, info

    def render(self) -> np.ndarray:
        """The camera's image, (render_size, render_size, 3) uint8."""
        if self._scene is None:
            raise SpecError("render() was called before reset(). Call env.reset(seed=...) first.")
        return self._photograph(self._render_size, mask=False).rgb

    def close(self) -> None:
        """End the simulation."""
        self.world.close()

    def _perturbation(self, scene: Scene, seed: int | None, variant: int | None) -> Perturbation:
        """What the scenario or the randomization does to the episode of `seed`."""
        constraints = SceneConstraints(
            arm=self.model.arm,
            keep_out=kept_out_by(self._task, scene.object, scene.position_m),
            view=_view(self._standard_config),
        )
        if (self._scenario.changes or self.config.randomize) and seed is None:
            seed = int(self.np_random.integers(2**62))
        if self.config.randomize:
            return draw_randomized(self.config.randomize, seed or 0, constraints, unseen=CAMERA_OFFSETS)
        rng = generator(seed or 0, "scenario", self._scenario.name)
        return draw_perturbation(self._scenario, rng, constraints, variant=variant)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        value = np.asarray(action, np.float32)
        names = ", ".join(f"{slot.name} ({slot.unit})" for slot in self._taken_spec.action)
        want = f"An action of {self.model.name} must be {len(self._low_A)} finite numbers: {names}"
        if value.shape != self._low_A.shape:
            raise SpecError(f"{want}; got an action of shape {value.shape}. Pass one action for each robot and step.")
        if not np.isfinite(value).all():
            raise SpecError(f"{want}; got {value.tolist()}. Check the policy's output for NaN.")
        clipped = np.clip(value, self._low_A, self._high_A)
        self._num_clipped += int(not np.array_equal(clipped, value))
        return clipped

    def _obs_and_info(
        self, executed: np.ndarray, robot_action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and info now. `executed` is the executed action; `robot_action` is the same in the robot's own
        slots."""
        assert self._scene is not None
        image = self._image()
        poses, touch = self.world.object_poses(NUM_SLOTS), self.world.touch()
        partial, entire = check_success(self._task, self._start_M7, poses, touch)
        self._partial_once |= partial
        self._entire_once |= entire
        names = [self._scene.object[number].name for number in self._scene.shown]
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
            "action": robot_action,
        }
        if self._ee_control:
            info |= {"ee_action": executed, "camera": self._projection_34.copy()}
        if self.config.robot_mask:
            body = image.body
            assert body is not None
            info["robot_mask"] = np.where(np.isin(body, self.world.robot_and_shadow), 255, 0).astype(np.uint8)
        if self.config.segmentation:
            assert image.body is not None
            assert image.link is not None
            info["segmentation"] = self.world.segmentation(image.body, image.link)
        return {"rgb": image.rgb, **self._extra_images(), "state": self._state()}, info

    def _image(self) -> CameraImage:
        size = self.config.image_size
        if not self.config.render:
            nobody = np.full((size, size), -1, np.int32)
            return CameraImage(rgb=np.zeros((size, size, 3), np.uint8), body=nobody, link=nobody)
        links = self.config.segmentation
        return self._photograph(size, mask=self.config.robot_mask or links, links=links)

    def _extra_images(self) -> dict[str, np.ndarray]:
        """Images of the wrist cameras; empty if there are none."""
        size = self.config.image_size
        if not self.config.render:
            return {"extra_rgb": np.zeros((len(self._wrists), size, size, 3), np.uint8)} if self._wrists else {}
        eyes = [wrist_eye(*self.world.arms[number].tool_pose()) for number in self._wrists]
        client, config = self.world.client, self.render_config
        seen = [render_image(client, config, size, mask=False, eye=eye).rgb for eye in eyes]
        return {"extra_rgb": np.stack(seen)} if seen else {}

    def _photograph(self, size: int, *, mask: bool, links: bool = False) -> CameraImage:
        if self.render_config.gripper_shadow:
            for arm in self.world.arms:
                arm.cast_shadow(self.render_config.light)
        return render_image(self.world.client, self.render_config, size, mask=mask, links=links)

    def _state(self) -> np.ndarray:
        """(S,) float32 proprioception, in the order of the spec."""
        parts: list[Any] = []
        for arm in self.world.arms:
            joints, opening = arm.joints()
            position_m, matrix = arm.tool_pose()
            parts += [joints, [opening], position_m, matrix_quaternion(matrix)]
        state = np.concatenate(parts)
        return np.clip(state.astype(np.float32), self._state_low, self._state_high)


def _view(config: RenderConfig) -> Viewpoint:
    return Viewpoint(camera_pos_m=config.camera_pos_m, target_m=config.target_m, fov_deg=config.fov_deg)


def _changed(config: RenderConfig, perturbation: Perturbation) -> RenderConfig:
    """The appearance of the scene after a perturbation."""
    if perturbation.cloth is not None:
        cloth = None if perturbation.cloth.pattern == "plain" else perturbation.cloth  # a plain one needs no texture
        config = replace(config, cloth=cloth, table_rgb=perturbation.cloth.mean_rgb)
    if perturbation.light is not None:
        config = replace(config, light=turned_light(config.light, perturbation.light), tint=perturbation.light.tint)
    if perturbation.camera_offset is not None:
        view = offset_view(_view(config), perturbation.camera_offset)
        config = replace(config, camera_pos_m=view.camera_pos_m, target_m=view.target_m)
    return config


def noop_action(spec: RobotSpec) -> np.ndarray:
    """(A,) action that moves nothing and opens the grippers."""
    action = np.zeros(len(spec.action), np.float32)
    action[list(spec.grippers)] = 1.0
    return action
