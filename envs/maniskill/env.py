"""SIMPLER's four WidowX tasks: ManiSkill's digital twins of the Bridge robot, behind our environment contract.

Nothing of the tasks is re-implemented: scenes, controller, grasp and success flags are ManiSkill's own
(mani_skill/envs/tasks/digital_twins/bridge_dataset_eval; SIMPLER, arXiv 2405.05941). What differs is translated here:
    seeds       0 .. 23 are SIMPLER's initial states; any other draws poses from the same part of the table
    rotation    our axis-angle -> the Euler angles "XYZ" that ManiSkill's controller takes, same frame (base), same side
    poses       ManiSkill's world -> the robot's base frame (types.py's table frame: the WidowX stands in its origin)
    image       640 x 480 -> the square that a policy sees
    cameras     the camera "wrist" is not of SIMPLER: envs/maniskill/wrist.py
"""

from dataclasses import replace
from typing import Any, ClassVar, Mapping, Sequence

import gymnasium as gym
import numpy as np
from scipy.spatial.transform import Rotation

from envs.maniskill.background import photo_px
from envs.maniskill.scene import CAMERA, ManiSkillScene, Start, arm_of, draw
from envs.maniskill.tasks import CAMERA_OFFSETS, MANISKILL_PLAY, MANISKILL_TASKS, NUM_STATES, THINGS
from envs.maniskill.tensors import numpy, tensor
from envs.maniskill.wrist import WRIST_CAMERA
from envs.observations import image_spaces
from envs.robots import robot, spec_of
from envs.scene.randomize import draw_randomized, drawn_json, tinted
from envs.scene.scenarios import (
    BUILT_IN,
    Perturbation,
    SceneConstraints,
    draw_perturbation,
    kept_out_by,
    known_scenario,
)
from envs.scene.tasks import NUM_SLOTS, PLAY, TASKS
from tap_ray.errors import SpecError
from tap_ray.rng import generator
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER, EnvConfig

FINGER_M = (0.015, 0.037)
"""Closed and open finger joints, m."""
CAMERA_SCALE = 0.5
"""Scale of random moves of the camera, which is close to the arm."""
GRIPPER_LINKS = ("gripper", "left_finger", "right_finger", "fingers", "ee_")
"""Prefixes of the names of the wrist's last link and of all links attached to it."""
MIN_FORCE_N = 1e-3
"""Contact force from which on a finger touches an object, N."""


class SimplerVectorEnv(gym.vector.VectorEnv):
    """N copies of a task in one ManiSkill simulation: on a GPU any N, on a CPU one. Contract: tap_ray/types.py."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": gym.vector.AutoresetMode.DISABLED,
    }

    def __init__(
        self, config: EnvConfig, num_robots: int = 1, *, render_size: int | None = None, gpu: bool = False
    ) -> None:
        """Start a simulation of `config`.

        Raises:
            ConfigError: ManiSkill cannot run here.
        """
        self.config, self.num_envs = config, num_robots
        self.task = MANISKILL_PLAY if config.task == PLAY else MANISKILL_TASKS[config.task]
        self.robot_spec = replace(spec_of(robot(config.robot)), cameras=config.cameras)
        self._low_A, self._high_A = self.robot_spec.action_low_A, self.robot_spec.action_high_A
        self._state_low = np.array([slot.low for slot in self.robot_spec.state], np.float32)
        self._state_high = np.array([slot.high for slot in self.robot_spec.state], np.float32)
        size = config.image_size
        self.single_action_space = gym.spaces.Box(self._low_A, self._high_A)
        images, state = image_spaces(len(config.cameras), size), gym.spaces.Box(self._state_low, self._state_high)
        self.single_observation_space = gym.spaces.Dict({**images, "state": state})
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_robots)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_robots)
        self._render_size = render_size or size
        scenario = known_scenario(config.scenario)
        self._scenario = (
            replace(scenario, camera_offsets=CAMERA_OFFSETS) if scenario == BUILT_IN["viewpoint"] else scenario
        )
        self.scene = ManiSkillScene(self.task, num_robots, size, wrist=len(config.cameras) > 1, gpu=gpu)
        """ManiSkill's simulation."""
        self._env = self.scene.env
        if not config.render:
            self._env._obs_mode = "none"
        self._instruction = [""] * num_robots
        self._num_steps = -1

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode on each robot; a seed below NUM_STATES is one of SIMPLER's initial states.

        `options={"variant": 2}` picks one of the scenario's sets, cloths or camera offsets instead of drawing it.

        Raises:
            SpecError: there is not one seed >= 0 for each robot, or only some robots are to be reset.
        """
        seeds = self._seeds(seed)
        if "reset_mask" in (options or {}):
            raise SpecError(
                "The robots of one ManiSkill simulation are reset together, so reset_mask is not supported."
            )
        starts = [self._start_of(one) for one in seeds]
        variant = (options or {}).get("variant")
        perturbations = [self._perturbation(one, start, variant) for one, start in zip(seeds, starts, strict=True)]
        obs, truth = self.scene.begin(starts, perturbations)
        self._instruction = [start.sentence for start in starts]
        self._tint = [
            perturbation.light.tint if perturbation.light else (1.0, 1.0, 1.0) for perturbation in perturbations
        ]
        size = self.config.image_size
        self._projection_N34 = np.stack([camera.projection(photo_px(size), size) for camera in self.scene.cameras])
        n = self.num_envs
        self._num_steps, self._num_clipped = 0, np.zeros(n, np.int64)
        self._partial_once, self._entire_once = np.zeros(n, bool), np.zeros(n, bool)
        still = np.zeros((n, len(self._low_A)), np.float32)
        still[:, self.robot_spec.grippers] = 1.0
        seen, info = self._obs_and_info(obs, truth, still)
        if self.config.randomize:
            info["drawn"] = np.array([drawn_json(perturbation) for perturbation in perturbations])
        return seen, info

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute one action (N, A) on each robot, clipped into the spec's range.

        Raises:
            SpecError: wrong shape or a value that is not a number, or no episode has begun.
        """
        if self._num_steps < 0:
            raise SpecError("step() was called before reset(). Call env.reset(seed=...) once, then step().")
        executed = self._checked(actions)
        obs, _, _, _, truth = self._env.step(tensor(to_maniskill_action(executed), self._env.device))
        self._num_steps += 1
        seen, info = self._obs_and_info(obs, truth, executed)
        over = np.full(self.num_envs, self._num_steps >= self.config.max_steps)
        return seen, info["entire"].astype(np.float64), np.zeros(self.num_envs, bool), over, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The cameras' images, (N, render_size, render_size, 3) uint8; as sharp as the observation's, not sharper."""
        if self._num_steps < 0:
            raise SpecError("render() was called before reset(). Call env.reset(seed=...) first.")
        return self._tinted(squared(self._env._get_obs_sensor_data()[CAMERA]["rgb"], self._render_size))

    def close_extras(self, **_: Any) -> None:
        """End the simulation."""
        self.scene.close()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int]:
        """One seed for each robot; an int is the first robot's, and the next ones follow, as in Gymnasium."""
        if seed is None or isinstance(seed, (int, np.integer)):
            first = int(seed) if seed is not None else int(self.np_random.integers(NUM_STATES, 2**31))
            seeds = [first + number for number in range(self.num_envs)]
        else:
            drawn = self.np_random.integers(NUM_STATES, 2**31, len(seed))
            seeds = [int(new) if one is None else int(one) for one, new in zip(seed, drawn, strict=True)]
        if len(seeds) != self.num_envs or min(seeds) < 0:
            raise SpecError(f"ManiSkill needs one seed >= 0 for each of its {self.num_envs} robots; got {seed}.")
        return seeds

    def _start_of(self, seed: int) -> Start:
        """How the episode of a seed begins."""
        xyz, quat = self.scene.places
        sentences = TASKS[self.config.task].sentence if self.config.task in TASKS else ("",)
        if seed < NUM_STATES and self.config.task != PLAY:
            place, way = divmod(seed, len(quat))
            return Start(xyz_m=xyz[place], quat_wxyz=quat[way], sentence=sentences[0])
        rng = np.random.default_rng(seed)
        return draw(self.task, xyz, quat, str(rng.choice(sentences)), rng)

    def _perturbation(self, seed: int, start: Start, variant: int | None) -> Perturbation:
        """What the scenario or the randomization does to the episode of `seed`."""
        scene, (base_m, base_turn) = self.scene, self.scene.base
        things = [THINGS[name] for name in self.task.object]
        place_m = [(float(x), float(y)) for x, y, _ in base_turn.inv().apply(start.xyz_m - base_m)]
        constraints = SceneConstraints(
            arm=(arm_of(self.task, scene.home_rad),),
            keep_out=kept_out_by(self.config.task, things, place_m),
            view=scene.camera.viewpoint(self.task.table_z_m, photo_px(self.config.image_size)[1]),
            distractor_areas_m=self.task.distractor_areas_m,
            robot_occludes=False,
            scale=self.task.distractor_scale,
            clearance_m=0.03,
        )
        if self.config.randomize:
            still = replace(self.config.randomize, light_turn_rad=0.0)
            return draw_randomized(still, seed, constraints, unseen=CAMERA_OFFSETS, camera=CAMERA_SCALE)
        rng = generator(seed, "scenario", self._scenario.name)
        return draw_perturbation(self._scenario, rng, constraints, variant=variant)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        value = np.asarray(actions, np.float32)
        want = f"An action must be (N = {self.num_envs}, A = {len(self._low_A)}) finite numbers"
        if value.shape != (self.num_envs, len(self._low_A)):
            raise SpecError(f"{want}; got an action of shape {value.shape}. Pass one action for each robot and step.")
        if not np.isfinite(value).all():
            raise SpecError(f"{want}; got {value.tolist()}. Check the policy's output for NaN.")
        clipped = np.clip(value, self._low_A, self._high_A)
        self._num_clipped += (clipped != value).any(axis=1)
        return clipped

    def _obs_and_info(
        self, obs: Mapping[str, Any], truth: Mapping[str, Any], executed: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and info now. `truth`: ManiSkill's own flags."""
        partial = numpy(self._env.consecutive_grasp) > 0
        entire = numpy(truth["success"]).astype(bool)
        self._partial_once |= numpy(truth["is_src_obj_grasped"]).astype(bool)
        self._entire_once |= entire
        names = ",".join([*self.task.object, *[""] * (NUM_SLOTS - len(self.task.object))])
        info: dict[str, Any] = {
            "object_pose": self._object_poses(),
            "object_name": np.array([names] * self.num_envs),
            "contact": self._contact(),
            "partial": partial,
            "entire": entire,
            "partial_once": self._partial_once.copy(),
            "entire_once": self._entire_once.copy(),
            "num_clipped": self._num_clipped.copy(),
            "instruction": np.array(self._instruction),
            "action": executed,
            "ee_action": executed,
            "camera": self._projection_N34.copy(),
        }
        if self.config.render:
            info |= self._masks(squared(obs["sensor_data"][CAMERA]["segmentation"], self.config.image_size)[..., 0])
        return {**self._images(obs), "state": self._state()}, info

    def _images(self, obs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Images of the cameras, as in tap_ray/types.py."""
        cameras = [CAMERA, WRIST_CAMERA][: len(self.config.cameras)]
        size = self.config.image_size
        if self.config.render:
            seen = [self._tinted(squared(obs["sensor_data"][name]["rgb"], size)) for name in cameras]
        else:
            seen = [np.zeros((self.num_envs, size, size, 3), np.uint8) for _ in cameras]
        return {"rgb": seen[0], **({"extra_rgb": np.stack(seen[1:], axis=1)} if seen[1:] else {})}

    def _tinted(self, rgb_NYX3: np.ndarray) -> np.ndarray:
        return np.stack([tinted(rgb, tint) for rgb, tint in zip(rgb_NYX3, self._tint, strict=True)])

    def _masks(self, ids_NYX: np.ndarray) -> dict[str, np.ndarray]:
        """Robot mask and segmentation, if the config asks for them; `ids_NYX` are ManiSkill's segmentation ids."""
        links = {link.name: int(link.per_scene_id[0]) for link in self._env.agent.robot.get_links()}
        masks: dict[str, np.ndarray] = {}
        if self.config.robot_mask:
            masks["robot_mask"] = np.where(np.isin(ids_NYX, list(links.values())), 255, 0)
        if self.config.segmentation:
            whose = np.full(ids_NYX.shape, ELSEWHERE)
            for name, number in links.items():
                whose[ids_NYX == number] = GRIPPER if name.startswith(GRIPPER_LINKS) else ARM
            for slot, item in enumerate(self._env.objs.values()):
                whose[ids_NYX == int(item.per_scene_id[0])] = FIRST_OBJECT + slot
            masks["segmentation"] = whose
        return {name: mask.astype(np.uint8) for name, mask in masks.items()}

    def _state(self) -> np.ndarray:
        """(N, S) float32 proprioception, in the order of the spec."""
        joints = numpy(self._env.agent.robot.get_qpos())
        closed, open_ = FINGER_M
        opening = (joints[:, 6:8].mean(axis=1, keepdims=True) - closed) / (open_ - closed)
        tool = self.pose_in_base(self._env.agent.robot.links_map["ee_gripper_link"].pose)
        return np.clip(np.concatenate([joints[:, :6], opening, tool], axis=1), self._state_low, self._state_high)

    def _object_poses(self) -> np.ndarray:
        """(N, M, 7) float32."""
        poses = np.zeros((self.num_envs, NUM_SLOTS, 7), np.float32)
        for slot, item in enumerate(self._env.objs.values()):
            poses[:, slot] = self.pose_in_base(item.pose)
        return poses

    def pose_in_base(self, pose: Any) -> np.ndarray:
        """(N, 7) float32: a pose of ManiSkill's world in the robot's base frame, x y z (m), quaternion wxyz, w >= 0."""
        base_m, base_turn = self.scene.base
        from_world = base_turn.inv()
        turn = from_world * Rotation.from_quat(numpy(pose.q), scalar_first=True)
        place_m = from_world.apply(numpy(pose.p) - base_m)
        return np.concatenate([place_m, turn.as_quat(canonical=True, scalar_first=True)], axis=1).astype(np.float32)

    def _contact(self) -> np.ndarray:
        """(N,) bool: a finger touches an object at the end of the control step."""
        forces = [
            numpy(self._env.scene.get_pairwise_contact_forces(finger, item))
            for finger in (self._env.agent.finger1_link, self._env.agent.finger2_link)
            for item in self._env.objs.values()
        ]
        return (np.linalg.norm(np.stack(forces), axis=-1) > MIN_FORCE_N).any(axis=0)


class SimplerEnv(gym.Env[Any, np.ndarray]):
    """One robot: `SimplerVectorEnv` of one robot, without the batch axis."""

    metadata: ClassVar[dict[str, Any]] = SimplerVectorEnv.metadata

    def __init__(
        self,
        config: EnvConfig,
        *,
        render_size: int | None = None,
        render_mode: str = "rgb_array",
        gpu: bool = False,
    ) -> None:
        """Start a simulation of `config`; errors as of `SimplerVectorEnv`."""
        self.vector_env = SimplerVectorEnv(config, render_size=render_size, gpu=gpu)
        """The same environment with a batch axis of size 1."""
        self.config, self.render_mode, self.robot_spec = config, render_mode, self.vector_env.robot_spec
        self.action_space = self.vector_env.single_action_space
        self.observation_space = self.vector_env.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; a seed below NUM_STATES is one of SIMPLER's initial states."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(NUM_STATES, 2**31)) if seed is None else seed
        obs, info = self.vector_env.reset(seed=drawn, options=options)
        return _single(obs), _single(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action (A,), clipped into the spec's range; errors as of `SimplerVectorEnv.step`."""
        obs, reward, done, over, info = self.vector_env.step(np.asarray(action, np.float32)[None])
        return _single(obs), float(reward[0]), bool(done[0]), bool(over[0]), _single(info)

    def render(self) -> np.ndarray:
        """The camera's image, (render_size, render_size, 3) uint8."""
        return self.vector_env.render()[0]

    def close(self) -> None:
        """End the simulation."""
        self.vector_env.close()


def to_maniskill_action(action_NA: np.ndarray) -> np.ndarray:
    """(N, 7) our actions as ManiSkill's controller takes them: the rotation as Euler angles "XYZ", rad, float32."""
    turn = Rotation.from_rotvec(action_NA[:, 3:6]).as_euler("XYZ")
    return np.concatenate([action_NA[:, :3], turn, action_NA[:, 6:]], axis=1).astype(np.float32)


def squared(image_NYXC: Any, size: int) -> np.ndarray:
    """(N, size, size, C): ManiSkill's tensor of images or of segmentation ids, as the square that a policy sees.

    Images twice as large, the usual case, are made smaller on the tensor's own device, so that a GPU sends a quarter.
    """
    is_image = image_NYXC.shape[3] == 3
    if image_NYXC.shape[1:3] == (2 * size, 2 * size):
        if not is_image:
            return numpy(image_NYXC[:, ::2, ::2])
        sums = image_NYXC.reshape(-1, size, 2, size, 2, 3).int().sum((2, 4))
        return numpy(((sums + 2) >> 2).byte())
    image = numpy(image_NYXC)
    if image.shape[1:3] == (size, size):
        return np.ascontiguousarray(image)
    import cv2  # mani-skill's own dependency

    way = cv2.INTER_AREA if is_image else cv2.INTER_NEAREST
    resized = [cv2.resize(one, (size, size), interpolation=way) for one in image]
    return np.stack(resized).reshape(len(resized), size, size, image.shape[3])


def _single(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The only robot's entries; NumPy scalars become Python scalars."""
    entries = {key: value[0] for key, value in batch.items()}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in entries.items()}
