"""Makes a digital-twin task in ManiSkill, starts its episodes, and applies a scenario's changes."""

from dataclasses import dataclass, replace
from typing import Any, Sequence

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from envs.kinematics.rotations import matrix_quaternion
from envs.maniskill.backend import environment
from envs.maniskill.background import background, camera_of, intrinsics_of, photo_px, resized
from envs.maniskill.tasks import ManiSkillTask
from envs.maniskill.tensors import numpy, tensor
from envs.maniskill.wrist import WRIST_CAMERA, mount_wrist_camera
from envs.robots import WIDOWX, ArmModel
from envs.scene.objects import ObjectModel, Part
from envs.scene.scenarios import Perturbation

CAMERA = "3rd_view_camera"
NOTHING = Perturbation(joint_offset_rad=(np.zeros(6),))


@dataclass(frozen=True, kw_only=True)
class Start:
    """How one episode begins, in ManiSkill's world frame; one row per object."""

    xyz_m: np.ndarray
    """(M, 3)."""
    quat_wxyz: np.ndarray
    """(M, 4)."""
    sentence: str


def draw(task: ManiSkillTask, xyz: np.ndarray, quat: np.ndarray, sentence: str, rng: np.random.Generator) -> Start:
    """Draw poses that SIMPLER does not enumerate, from the same part of the table as SIMPLER's own.

    Args:
        task: the task.
        xyz: (P, M, 3) SIMPLER's own places; heights are taken from the first.
        quat: (Q, M, 4) SIMPLER's own orientations.
        sentence: the episode's instruction.
        rng: random generator.
    """
    place = xyz[0].copy()
    while True:
        place[: task.num_placed, :2] = rng.uniform(task.low_m, task.high_m, (task.num_placed, 2))
        away_m = np.linalg.norm(place[:, None, :2] - place[None, :, :2], axis=-1)
        if (away_m[np.triu_indices(len(place), 1)] >= task.min_separation_m).all():
            break
    orientation = quat[rng.integers(len(quat))].copy()
    yaw = rng.uniform(-np.pi, np.pi, task.num_turned)
    orientation[: task.num_turned] = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1)
    return Start(xyz_m=place, quat_wxyz=orientation, sentence=sentence)


class ManiSkillScene:
    """ManiSkill's simulation of a task: N scenes, each with an episode's initial poses and perturbation."""

    def __init__(self, task: ManiSkillTask, num_robots: int, image_size: int, *, wrist: bool, gpu: bool) -> None:
        """Start the simulation; `wrist`: with a camera on the gripper as well.

        Raises:
            ConfigError: ManiSkill cannot run here.
        """
        self.task = task
        self.perturbations = [NOTHING] * num_robots
        """What the scenario or the randomization does to the episode of each robot."""
        self.distractors: list[Any] = []
        """ManiSkill's actors, scene by scene."""
        self._photo_px = photo_px(image_size)
        intrinsics = intrinsics_of(self._photo_px)
        self._sensor = {"width": self._photo_px[0], "height": self._photo_px[1], "intrinsic": intrinsics}
        self.env = environment(task.env_id, num_robots, dict(self._sensor), gpu=gpu)
        photo = np.asarray(Image.open(self.env.rgb_overlay_paths[CAMERA]).convert("RGB"))
        self._photo = resized(photo, self._photo_px)
        self.camera = camera_of(self.env._sensor_configs[CAMERA].pose.sp, intrinsics)
        self.places = numpy(self.env.xyz_configs), numpy(self.env.quat_configs)
        self.home_rad = numpy(self.env.agent.robot.get_qpos())[0, :6]
        base = self.env.agent.robot.pose
        self.base = numpy(base.p)[0], Rotation.from_quat(numpy(base.q)[0], scalar_first=True)
        """Where every scene's robot stands: place (3,), m, and turn, in that scene's world."""
        own_scene = self.env._load_scene

        def load_scene(options: dict[str, Any]) -> None:
            own_scene(options)
            parts = [
                self._spawn_distractors(robot, perturbation) for robot, perturbation in enumerate(self.perturbations)
            ]
            self.distractors = [actor for part in parts for actor in part]

        self.env._load_scene = load_scene
        self._wrist = wrist
        if wrist:
            mount_wrist_camera(self.env, self._photo_px[1])

    def begin(
        self, starts: Sequence[Start], perturbations: Sequence[Perturbation]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode in each scene. Returns ManiSkill's observation and flags."""
        env, n = self.env, len(starts)
        env.xyz_configs = env.xyz_configs.new_tensor(np.stack([start.xyz_m for start in starts]))
        env.quat_configs = env.quat_configs.new_tensor(np.stack([start.quat_wxyz for start in starts]))
        # ManiSkill numbers pairs of (place, orientation); scene i takes place i and orientation i.
        pairs = tensor(np.arange(n) * (n + 1), env.device)
        self._photograph(perturbations)
        # A scene built anew: PhysX remembers contacts, and the same seed would not always give the same bytes. A GPU's
        # physics is not that exact anyway, and thousands of scenes are not built in a moment.
        again = not env.gpu_sim_enabled or self._wrist != (WRIST_CAMERA in env._sensors)
        again |= any(_builds(old, new) for old, new in zip(self.perturbations, perturbations, strict=True))
        self.perturbations = list(perturbations)
        obs, flags = env.reset(seed=[0] * n if n > 1 else 0, options={"episode_id": pairs, "reconfigure": again})
        offset = np.stack([perturbation.joint_offset_rad[0] for perturbation in perturbations])
        if offset.any():
            obs = self._bend(offset)
        return obs, flags

    def close(self) -> None:
        """End the simulation."""
        self.distractors = []
        self.env.close()

    def _bend(self, offset_N6: np.ndarray) -> dict[str, Any]:
        """Begin with other joints; returns the new observation."""
        env = self.env
        joints = env.agent.robot.get_qpos().clone()
        joints[:, :6] += joints.new_tensor(offset_N6)
        env.agent.reset(init_qpos=joints)
        if env.gpu_sim_enabled:
            env.scene._gpu_apply_all()
            env.scene.px.gpu_update_articulation_kinematics()
            env.scene._gpu_fetch_all()
        env.agent.controller.reset()
        return env.get_obs()

    def _photograph(self, perturbations: Sequence[Perturbation]) -> None:
        """Set the background and the camera pose of each scene."""
        from mani_skill.utils.structs.pose import Pose

        photos = [
            background(self._photo, self.camera, self.task, cloth=one.cloth, offset=one.camera_offset)
            for one in perturbations
        ]
        self.env._rgb_overlay_images = {CAMERA: tensor(np.stack(photos), self.env.device)}
        self.cameras = [self.camera.moved(perturbation.camera_offset) for perturbation in perturbations]
        """The camera of each scene in this episode."""
        camera_pos_m = tensor(np.stack([one.camera_pos_m for one in self.cameras]).astype(np.float32), self.env.device)
        quat = np.stack([matrix_quaternion(one.matrix) for one in self.cameras]).astype(np.float32)
        pose = Pose.create_from_pq(camera_pos_m, tensor(quat, self.env.device))
        self.env._custom_sensor_configs = {**self._sensor, "pose": pose}

    def _spawn_distractors(self, robot: int, perturbation: Perturbation) -> list[Any]:
        """Build a perturbation's distractors in scene number `robot`. They are drawn, not overlaid.

        ManiSkill moves the robot to its position after it has built the scene, so the robot's current pose cannot be
        used.
        """
        import sapien

        base, built = sapien.Pose(self.base[0], self.base[1].as_quat(scalar_first=True)), []
        for number, one in enumerate(perturbation.distractor):
            turn = [np.cos(one.yaw_rad / 2), 0, 0, np.sin(one.yaw_rad / 2)]
            builder = self.env.scene.create_actor_builder()
            builder.set_scene_idxs([robot])
            _shape(builder, one.object)
            builder.initial_pose = base * sapien.Pose([*one.position_m, self.task.table_z_m + 0.002], turn)
            actor = builder.build(name=f"distractor_{robot}_{number}")
            self.env.remove_object_from_greenscreen(actor)
            built.append(actor)
        return built


def _builds(old: Perturbation, new: Perturbation) -> bool:
    """Whether a scene must be rebuilt for the next episode."""
    return bool(old.distractor or new.distractor) or old.camera_offset != new.camera_offset


def arm_of(task: ManiSkillTask, home_rad: np.ndarray) -> ArmModel:
    """The WidowX of a task, with its home posture and its workspace."""
    low, high = WIDOWX.workspace_low_m, WIDOWX.workspace_high_m
    lowest = task.table_z_m + (0.08 if task.has_sink else 0.0)
    return replace(
        WIDOWX,
        home_rad=tuple(float(joint) for joint in home_rad),
        workspace_low_m=(low[0], low[1], max(low[2], lowest)),
        workspace_high_m=(high[0], high[1], max(high[2], task.carry_z_m + 0.06)),
    )


def _shape(builder: Any, model: ObjectModel) -> None:
    """Add the parts of a model; its origin is the center of its underside."""
    import sapien

    solid = [part for part in model.part if part.solid]
    density = model.mass_kg / sum(_volume(part) for part in solid)
    for part in model.part:
        # SAPIEN's cylinders are along x; ours are along z unless `lying`.
        standing = part.shape == "cylinder" and not part.lying
        pose = sapien.Pose(part.at_m, [0.5**0.5, 0, 0.5**0.5, 0] if standing else [1, 0, 0, 0])
        size: dict[str, Any]
        match part.shape:
            case "box":
                size = {"half_size": [side / 2 for side in part.size_m]}
            case "cylinder":
                size = {"radius": part.size_m[0], "half_length": part.size_m[2] / 2}
            case _:
                size = {"radius": part.size_m[0]}
        if part.rgb is not None:
            getattr(builder, f"add_{part.shape}_visual")(pose=pose, material=list(part.rgb), **size)
        if part.solid:
            getattr(builder, f"add_{part.shape}_collision")(pose=pose, density=density, **size)


def _volume(part: Part) -> float:
    x, y, z = part.size_m
    match part.shape:
        case "box":
            return x * y * z
        case "cylinder":
            return float(np.pi * x * y * z)
        case _:
            return float(4 / 3 * np.pi * x**3)
