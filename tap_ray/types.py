"""READ FIRST. The data that the parts of the project exchange, with dtype, shape, unit and frame of every array.

Shape letters: N robots (or windows) in a batch, T steps of an episode, H steps of an action chunk, A action slots,
S state slots, Y X pixel rows and columns, M object slots.

An observation is a dict, batched when it comes from a vector environment:
    "rgb"    (N, Y, X, 3) uint8   the first camera (of our own robots a third-person one)
    "extra_rgb" (N, V, Y, X, 3) uint8  the V other cameras, in the order of RobotSpec.cameras; only where there are any
    "state"  (N, S)       float32 proprioception, slots as in RobotSpec.state

An environment's `info` (privileged: only experts, privileged explorers and the evaluation may read it):
    "object_pose"  (M, 7) float32  x y z (m, table frame), quaternion wxyz; unused slots are zero
    "object_name"  str             the M slots' names joined by ",", "" for an unused slot
    "contact"      bool            a finger touched one of these objects (no distractor) during the last control step
                                   (ManiSkill: at its end); left out where it is unknown
    "robot_mask"   (Y, X) uint8    255 where the robot or its shadow is seen (only with EnvConfig.robot_mask)
    "camera"       (3, 4) float64  calibration of the first camera, not privileged: a point x y z 1 (m, table frame) ->
                                   column w, row w, w (px; pixel centers are whole numbers). Only if actions move the
                                   end effector; left out where it is unknown
    "segmentation" (Y, X) uint8    which body the pixel shows (only with EnvConfig.segmentation): ELSEWHERE, ARM,
                                   GRIPPER, or FIRST_OBJECT + slot. The gripper's shadow is ELSEWHERE
    "partial", "entire"            bool, true now; "partial_once", "entire_once": true at any step so far
    "action"       (A,) float32    the action as executed, clipped into range (at reset: zeros, gripper open)
    "ee_action"    (7,) float32    the commanded end-effector motion, clipped (only if actions move the end effector)
    "num_clipped"  int             actions of this episode that had to be clipped into range
    "instruction"  str             the instruction of this episode; play never reads it
    "drawn"        str             JSON object of numbers and texts: the randomization of this episode (at reset only,
                                   and only with EnvConfig.randomize)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from tap_ray.errors import ConfigError
from tap_ray.specs import ONE_CAMERA, RobotSpec

ELSEWHERE, ARM, GRIPPER, FIRST_OBJECT = 0, 1, 2, 3
"""Values of `info["segmentation"]`: neither robot nor object; the arm; its last link and what hangs on it; the object
in slot 0, from where slots count on."""

Observation = Mapping[str, np.ndarray]
Info = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RandomizeConfig:
    """How far an episode of play may differ from the standard scene; 0 turns a part off.

    Evaluation's cloths, camera shifts and distractors are never drawn (envs/scene/randomize.py). The counterpart on a
    real robot: change the tablecloth, the lamp and the clutter, and nudge the camera, while it plays.
    """

    cloth_probability: float = 0.75
    """Probability that the table is covered with a cloth, plain or printed, of random colors."""
    cloth_saturation: float = 0.7
    """Highest saturation (HSV) of the colors of cloths and distractors, 0 (gray) .. 1."""
    cloth_period_m: tuple[float, float] = (0.05, 0.16)
    """Smallest and largest period of a cloth's print, m."""
    camera_move_m: float = 0.12
    """Largest displacement of the camera, m; half of it in ManiSkill, whose camera is close to the arm."""
    camera_turn_rad: float = 0.06
    """Largest error of the moved camera's direction, rad: to either side, and up or down."""
    light_turn_rad: float = 0.35
    """Largest change of the light's direction, rad; none in ManiSkill, whose background is a photograph."""
    light_gain: float = 0.25
    """Largest relative change of the brightness of the whole image."""
    light_tint: float = 0.08
    """Largest relative change of each color channel of the whole image."""
    max_distractors: int = 4
    """Largest number of distractors, which are not objects of play; every number up to it is equally likely."""
    joint_rad: float = 0.2
    """Largest initial distance of each joint from its home position, rad."""

    def __post_init__(self) -> None:
        for name, most in RANDOMIZE_MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ConfigError(f"{name} must be in 0 .. {most}; got {value}.")
        low, high = self.cloth_period_m
        if not 0.02 <= low <= high <= 0.5:
            raise ConfigError(f"cloth_period_m must be (least, greatest) within 0.02 .. 0.5 m; got {low} and {high}.")


RANDOMIZE_MOST: Mapping[str, float] = {
    "cloth_probability": 1,
    "cloth_saturation": 1,
    "camera_move_m": 0.16,
    "camera_turn_rad": 0.15,
    "light_turn_rad": 0.6,
    "light_gain": 0.5,
    "light_tint": 0.3,
    "max_distractors": 8,
    "joint_rad": 0.3,
}
"""Largest legal values: beyond them objects leave the image, look alike or do not fit, or the arm cannot reach its
posture."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Settings of a simulated robot and its scene. `envs.make(EnvConfig())` returns a `gymnasium.Env`."""

    task: str = "play"
    """A task of envs/scene/tasks.py, or "play": objects of several tasks are on the table, and there is no goal."""
    robot: str = "widowx"
    """Embodiment, a key of envs/robots.py."""
    sim: str = "pybullet"
    """"pybullet", "maniskill", or "maniskill_gpu": its physics on a GPU, not the same to the last bit; or one of an
    installed package."""
    image_size: int = 96
    """Side of the square camera images, px."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """The robot's cameras: "main" views the table, "wrist" is mounted on the end effector (with two arms "left_wrist"
    and "right_wrist")."""
    max_steps: int = 60
    """Control steps until truncation (5 per second)."""
    scenario: str = "standard"
    """A key of envs/scene/scenarios.py; "standard" changes nothing. Distractors are in the image, never in `info`."""
    robot_mask: bool = False
    """Whether info has a mask of the robot."""
    segmentation: bool = False
    """Whether info has the segmentation of the image (end effector, arm, each object)."""
    render: bool = True
    """Whether images are rendered. False gives black images without the cost (for policies that need no image)."""
    randomize: RandomizeConfig | None = None
    """What is randomized in each episode of play, and how far; None: nothing."""
    partner: str = ""
    """Another task whose objects are on the table as well, so that only the instruction says which of the two tasks is
    meant. The slots of `info` have the objects of `task` first. Empty: no other objects."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What one robot did in one episode, in memory. Entry t holds what was seen *before* action t was taken."""

    rgb: UInt8[np.ndarray, "T Y X 3"]
    state: Float32[np.ndarray, "T S"]
    action: Float32[np.ndarray, "T A"]
    """Actions as executed, i.e. after clipping into the spec's range."""
    contact: Bool[np.ndarray, "C"]
    """Whether a finger touches an object. C = T, or 0 if contact is unknown (the environment does not report it)."""
    object_pose: Float32[np.ndarray, "T M 7"]
    robot_mask: UInt8[np.ndarray, "T Y X"] | None
    partial: Bool[np.ndarray, "T"]
    """After action t."""
    entire: Bool[np.ndarray, "T"]
    """After action t."""
    object_name: tuple[str, ...]
    instruction: str
    num_clipped: int
    segmentation: UInt8[np.ndarray, "T Y X"] | None = None
    """Values as in `info`; None unless asked for."""
    drawn: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was randomized: numbers and texts as in `info`; empty if nothing."""
    extra_rgb: UInt8[np.ndarray, "T V Y X 3"] | None = None
    """The other cameras; None where there is one."""

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode as it travels from a fleet to the writer, and as the reader gives it back: small, picklable, images
    encoded."""

    index: int
    """In a fleet the number of its attempt: its seed and bytes follow from the plan and this number. In a dataset its
    place among the episodes."""
    task: str
    """The sentence in tasks.parquet: an instruction, or PLAY_TASK for play."""
    image_jpeg: Sequence[bytes]
    """T JPEG files, (Y, X, 3)."""
    mask_png: Sequence[bytes] | None
    """T PNG files, (Y, X, 1), 255 = robot; None without masks."""
    state: Float32[np.ndarray, "T S"]
    action: Float32[np.ndarray, "T A"]
    contact: Bool[np.ndarray, "C"]
    """Whether a finger touches an object. C = T, or 0 if contact is unknown (imports, foreign environments) or was not
    read."""
    object_pose: Float32[np.ndarray, "T M 7"]
    """Privileged; kept for probes and reports, never read by a policy."""
    image_stats: Mapping[str, np.ndarray]
    """min, max, mean, std, q01 ... q99 of the images in [0, 1], each (3, 1, 1) float64, and count (1,) int64; empty in
    an episode that was read."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Scalars beside the data: seed, explorer, embodiment, contact_rate, object_displacement_m, success, ... What is
    not known is left out."""
    extra_jpeg: Sequence[Sequence[bytes]] = ()
    """Likewise T JPEG files of each of the other cameras."""
    extra_stats: Sequence[Mapping[str, np.ndarray]] = ()
    """Likewise `image_stats` of each of the other cameras."""

    def __len__(self) -> int:
        return len(self.action)


PLAY_TASK = "play"
"""The one neutral task string of every play episode: language is never involved."""


class Policy(Protocol):
    """Anything that acts for N robots at once: a network, an expert, random, N explorers."""

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Begin a new episode for all N robots. `seeds` (N) are nodes of the seed tree for the policy's own noise."""
        ...

    def act(self, obs: Observation, info: Info) -> Float32[np.ndarray, "N A"]:
        """Actions in the units and order of the robot's spec."""
        ...


class Explorer(Protocol):
    """Behavior of one playing robot. Observations are not batched; all random numbers come from the given generator."""

    def reset(self, obs: Observation, info: Info, rng: np.random.Generator) -> None: ...

    def act(self, obs: Observation, info: Info) -> Float32[np.ndarray, "A"]: ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One episode of an evaluation protocol. The same cells are run for every policy, so differences are paired."""

    task: str
    scenario: str
    initial_state: int
    """Which of the task's initial states; the environment's seed follows from it."""
    seed: int
    """Seed given to env.reset."""
    partner: str = ""
    """Other task whose objects lie on the table as well; its cell of the same seed shows the same scene."""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """The result of one cell. A crash is a failure with a reason, never a missing row."""

    cell: Cell
    partial_once: bool
    entire_once: bool
    partial_end: bool
    entire_end: bool
    num_steps: int
    num_clipped: int
    seconds: float
    policy_ms: float
    """Mean time of one policy call, ms."""
    error: str = ""
    """Why the episode crashed; empty if it did not."""
    failure: str = ""
    """Label of tap_ray/evaluate/failures.py; empty for a success, and in results older than the labels."""
    first_moved: str = ""
    """In a mixed scene the task whose object (slot 0 of its own) was moved first, asked or partner; empty for neither,
    and in other scenes."""


@dataclass(frozen=True, kw_only=True)
class ActionChunkBatch:
    """A batch of N action chunks, H steps each, of one or several robots: no images. A, S as specs.UNIFIED_*."""

    action: Float32[np.ndarray, "N H A"]
    """Normalized by the statistics of its own dataset; zero in the dims that the robot does not have."""
    state: Float32[np.ndarray, "N H S"]
    """State before each action, normalized and masked likewise."""
    step_mask: Bool[np.ndarray, "N H"]
    """False where the episode had not begun or was over."""
    dim_mask: Bool[np.ndarray, "N A"]
    """The robot's own action dims."""
    source: np.ndarray
    """(N,) int64, number of the dataset."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A batch of training windows (o_t, o_{t+k}, a_{t:t+H}) that never cross an episode. Torch-free."""

    rgb: UInt8[np.ndarray, "N Y X 3"]
    """Image of the first camera at t."""
    goal_rgb: UInt8[np.ndarray, "N Y X 3"] | None
    """Image at t+k; None where no goal is used (alignment)."""
    k: np.ndarray
    """(N,) int64, steps between the two."""
    state: Float32[np.ndarray, "N S"]
    action: Float32[np.ndarray, "N H A"]
    """a_{t:t+H}, physical units; past the episode's end the last action is repeated and masked."""
    action_mask: Bool[np.ndarray, "N H"]
    """False where the chunk runs past the episode's end."""
    reach: Float32[np.ndarray, "N R"] | None
    """Self-supervised targets from the robot's own future, base frame m; see `dataset.reach.reach_targets`."""
    reach_mask: Bool[np.ndarray, "N R"] | None
    task_index: np.ndarray
    """(N,) int64 into the dataset's tasks."""
    chunk_state: Float32[np.ndarray, "N H S"] | None = None
    """State before each action of the chunk (a motion prior reads them); None unless asked for."""
    past_action: Float32[np.ndarray, "N P A"] | None = None
    """The P actions before t, physical units; None unless asked for."""
    past_state: Float32[np.ndarray, "N P S"] | None = None
    """State before each of them."""
    past_mask: Bool[np.ndarray, "N P"] | None = None
    """False where the episode had not begun."""
    object_crop: UInt8[np.ndarray, "N C C 3"] | None = None
    """The object that the robot touches next (or now), as it looked before; see dataset/crops.py. None unless asked
    for."""
    place_crop: UInt8[np.ndarray, "N C C 3"] | None = None
    """The place where it will leave it, as it looked before."""
    crop_mask: Bool[np.ndarray, "N 2"] | None = None
    """Whether there is a crop of the object, and of the place; where not, the crop is zeros."""
    crop_px: Float32[np.ndarray, "N 2 2"] | None = None
    """Row and column, px, of the object and the place in the image (the centers of their crops)."""
    crop_px_mask: Bool[np.ndarray, "N 2"] | None = None
    """Whether they are there now: the object until it is touched, the place as long as the crop is known."""
    goal_row: np.ndarray | None = None
    """(N,) int64, row of `rgb` that is the image at t+k, instead of `goal_rgb`; a row's own number (k = 0): no goal."""
    extra_rgb: UInt8[np.ndarray, "N V Y X 3"] | None = None
    """Images of the other cameras at t; None where there is one camera."""
    goal_extra_rgb: UInt8[np.ndarray, "N V Y X 3"] | None = None
    """Images of the other cameras at t+k."""
    play: "Window | None" = None
    """Windows of play that are trained on beside demonstrations, as many as asked for; None: none."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A worker's part of an endless sequence of batches, and where it resumes. The parts of workers are disjoint."""

    start_batch: int = 0
    """Batches that this worker has had already."""
    worker: int = 0
    """0 .. num_workers - 1."""
    num_workers: int = 1
    """How many share an epoch."""
    before: tuple[tuple[int, int], ...] = ()
    """(number of workers, batches of each) of each earlier part of the run that had another number of workers;
    `start_batch` counts from their end."""

    @property
    def num_before(self) -> int:
        """Number of batches of all workers in those earlier parts."""
        return sum(num_workers * num_batches for num_workers, num_batches in self.before)


ALL = Shard()
"""The whole sequence from the beginning, for a single worker."""

__all__ = [
    "ALL",
    "ARM",
    "ELSEWHERE",
    "FIRST_OBJECT",
    "GRIPPER",
    "PLAY_TASK",
    "ActionChunkBatch",
    "Cell",
    "EnvConfig",
    "Episode",
    "EpisodeResult",
    "Explorer",
    "Info",
    "Observation",
    "Policy",
    "RandomizeConfig",
    "RobotSpec",
    "Shard",
    "Trajectory",
    "Window",
]
