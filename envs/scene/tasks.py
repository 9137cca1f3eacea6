"""Defines the tasks: objects, instructions, and the rules of partial and entire success.

The first four are SIMPLER's WidowX tasks (their first instruction is SIMPLER's own), the fifth is from the paper's real
robot. "Left" is the robot's left, +y of the base frame.
"""

from dataclasses import dataclass
from math import hypot
from typing import Callable

import numpy as np

from envs.scene.objects import OBJECTS, ObjectModel
from tap_ray.errors import ConfigError, nearest
from tap_ray.plugins import Registry

NUM_SLOTS = 4
"""Number of object slots in `info`."""
LIFT_M = 0.01
"""Height from which on a grasped object counts as lifted, m."""
PUSH_M = 0.10
"""How far to the left an object must be pushed, m."""
PLAY = "play"
FIELD_LOW_M, FIELD_HIGH_M = (0.20, -0.15), (0.37, 0.15)
"""Corners of the rectangle that objects start in, base frame x and y."""
TRIES = 40
"""Number of layouts drawn before other objects are drawn (play)."""


@dataclass(frozen=True, kw_only=True)
class Touch:
    """Contacts after a control step; indices are object slots."""

    gripper: tuple[tuple[frozenset[int], frozenset[int]], ...]
    """Objects that the left and the right finger of each gripper touch."""
    finger_during: frozenset[int]
    """Objects that either touched at some time during the last control step."""
    pair: frozenset[tuple[int, int]]
    """Objects that touch each other, smaller index first."""


GOALS = ("on", "stack", "in", "push_left")
"""Goals that `check_success` below knows."""


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """One task: move object 0, to object 1 if there is one."""

    name: str
    object: tuple[str, ...]
    """Names of the moved object, then of its target: keys of OBJECTS, or of `own_object`."""
    goal: str
    """One of GOALS, or any word if the task brings its own `check_success`."""
    sentence: tuple[str, ...]
    """Paraphrases of the instruction, drawn by the seed."""
    tolerance_m: float = 0.0
    """Largest horizontal distance from the target's center (push_left: unused)."""
    own_object: tuple[ObjectModel, ...] = ()
    """Objects that are not in OBJECTS; play does not draw them."""
    check_success: Callable[[np.ndarray, np.ndarray, Touch], tuple[bool, bool]] | None = None
    """For a goal that is not in GOALS, the function that checks it: (start_M7, now_M7, touch) -> (partial, entire), as
    in the function `check_success` below."""

    def __post_init__(self) -> None:
        if self.check_success is None and self.goal not in GOALS:
            raise ConfigError(
                f"Task {self.name!r}: goal must be one of {', '.join(GOALS)}; got {self.goal!r}. For another goal, "
                "pass a function as check_success."
            )
        if not 1 <= len(self.object) <= NUM_SLOTS or not self.sentence:
            raise ConfigError(
                f"Task {self.name!r} needs 1 to {NUM_SLOTS} objects and at least one sentence; got {len(self.object)} "
                f"objects and {len(self.sentence)} sentences."
            )

    @property
    def models(self) -> tuple[ObjectModel, ...]:
        """The models of its objects."""
        known = OBJECTS | {model.name: model for model in self.own_object}
        for name in self.object:
            if name not in known:
                raise ConfigError(f"Task {self.name!r}: unknown object {name!r}. {nearest(name, known)}")
        return tuple(known[name] for name in self.object)


BUILT_IN: dict[str, TaskModel] = {
    "put_spoon_on_cloth": TaskModel(
        name="put_spoon_on_cloth",
        object=("spoon", "cloth"),
        goal="on",
        tolerance_m=0.06,
        sentence=(
            "put the spoon on the towel",
            "put the spoon on the cloth",
            "place the spoon on the blue cloth",
            "move the spoon onto the towel",
            "lay the spoon down on the cloth",
            "pick up the spoon and put it on the towel",
        ),
    ),
    "put_carrot_on_plate": TaskModel(
        name="put_carrot_on_plate",
        object=("carrot", "plate"),
        goal="on",
        tolerance_m=0.05,
        sentence=(
            "put carrot on plate",
            "put the carrot on the plate",
            "place the carrot on the white plate",
            "move the carrot onto the plate",
            "serve the carrot on the plate",
            "pick up the carrot and lay it on the plate",
        ),
    ),
    "stack_green_on_yellow": TaskModel(
        name="stack_green_on_yellow",
        object=("green block", "yellow block"),
        goal="stack",
        tolerance_m=0.02,
        sentence=(
            "stack the green block on the yellow block",
            "put the green block on top of the yellow block",
            "place the green cube on the yellow cube",
            "stack green on yellow",
            "set the green block onto the yellow one",
            "pick up the green block and stack it on the yellow block",
        ),
    ),
    "put_eggplant_in_basket": TaskModel(
        name="put_eggplant_in_basket",
        object=("eggplant", "basket"),
        goal="in",
        tolerance_m=0.06,
        sentence=(
            "put eggplant into yellow basket",
            "put the eggplant in the basket",
            "place the eggplant into the yellow basket",
            "drop the eggplant in the basket",
            "move the eggplant into the basket",
            "pick up the eggplant and put it in the yellow basket",
        ),
    ),
    "push_pumpkin_left": TaskModel(
        name="push_pumpkin_left",
        object=("pumpkin",),
        goal="push_left",
        tolerance_m=0.0,
        sentence=(
            "push the pumpkin to the left",
            "push the pumpkin left",
            "slide the pumpkin to the left",
            "move the pumpkin to the left by pushing it",
            "shove the pumpkin leftwards",
            "give the pumpkin a push to the left",
        ),
    ),
}

TASKS = Registry("task", BUILT_IN, expected=TaskModel)
"""All tasks, those of installed packages included."""


def known_task(name: str) -> str:
    """`name`, if it is a task or "play".

    Raises:
        ConfigError: it is neither; the message names the nearest.
    """
    if name not in (*TASKS, PLAY):
        raise ConfigError(f"Unknown task {name!r}. {nearest(name, (*TASKS, PLAY))}")
    return name


@dataclass(frozen=True, kw_only=True)
class Scene:
    """How one episode starts."""

    object: tuple[ObjectModel, ...]
    position_m: tuple[tuple[float, float], ...]
    """x and y of each object, m, base frame."""
    yaw_rad: tuple[float, ...]
    sentence: str
    """Empty for play."""
    slot: tuple[int, ...] = ()
    """The object in each slot of `info`, those of the asked task first (mixed.py); if empty, in order."""

    @property
    def shown(self) -> tuple[int, ...]:
        """Index of the object in each slot."""
        return self.slot or tuple(range(len(self.object)))


def draw_scene(task: str, rng: np.random.Generator) -> Scene:
    """Draw objects (play only), sentence and poses without overlap."""
    sentence = "" if task == PLAY else str(rng.choice(TASKS[task].sentence))
    pushed = task != PLAY and TASKS[task].goal == "push_left"
    high = (FIELD_HIGH_M[0], FIELD_HIGH_M[1] - (PUSH_M + 0.02 if pushed else 0.0))
    count = int(rng.integers(2, NUM_SLOTS + 1))
    while True:
        if task == PLAY:
            models = tuple(OBJECTS[str(name)] for name in rng.permutation(sorted(OBJECTS))[:count])
        else:
            models = TASKS[task].models
        position = rng.uniform(FIELD_LOW_M, high, (TRIES, len(models), 2))
        fitting = [try_ for try_ in position if _apart(try_, models)]
        if fitting:  # otherwise the objects are too large to lie side by side: draw others
            break
    return Scene(
        object=models,
        position_m=tuple((float(x), float(y)) for x, y in fitting[0]),
        yaw_rad=tuple(float(angle) for angle in rng.uniform(-np.pi / 2, np.pi / 2, len(models))),
        sentence=sentence,
    )


def _apart(position_m: np.ndarray, models: tuple[ObjectModel, ...]) -> bool:
    """Whether the circles of all objects are at least 1 cm apart."""
    return all(
        hypot(*(position_m[i] - position_m[j])) > models[i].radius_m + models[j].radius_m + 0.01
        for i in range(len(models))
        for j in range(i)
    )


def check_success(task: str, start_M7: np.ndarray, now_M7: np.ndarray, touch: Touch) -> tuple[bool, bool]:
    """Whether the task is partly and entirely done now.

    Args:
        task: a key of TASKS, or "play", which is never done.
        start_M7: object poses at the start of the episode, as in `info`.
        now_M7: object poses now.
        touch: contacts now.

    Returns:
        (partial, entire). Partial: both fingers of a gripper hold the object and it is lifted by 1 cm (push: a finger
        touches it). Entire: it lies on or in the target, within tolerance, touched by no finger (push: 10 cm to the
        left).
    """
    if task == PLAY:
        return False, False
    model = TASKS[task]
    if model.check_success is not None:
        partial, entire = model.check_success(start_M7, now_M7, touch)
        return bool(partial), bool(entire)
    held = any(0 in left and 0 in right for left, right in touch.gripper)
    touched = any(0 in finger for gripper in touch.gripper for finger in gripper)
    if model.goal == "push_left":
        return 0 in touch.finger_during, bool(now_M7[0, 1] - start_M7[0, 1] >= PUSH_M)
    partial = held and bool(now_M7[0, 2] - start_M7[0, 2] > LIFT_M)
    away = now_M7[0, :3] - now_M7[1, :3]
    near = float(np.hypot(away[0], away[1])) <= model.tolerance_m
    return partial, near and not touched and (0, 1) in touch.pair and _height_fits(model, float(away[2]))


def _height_fits(model: TaskModel, up_m: float) -> bool:
    """Whether the object's center is at the height that the goal requires, `up_m` above the target's center."""
    item, target = (each.half_size_m[2] for each in model.models)
    match model.goal:
        case "in":
            return up_m - item < target
        case "stack":
            return abs(up_m - item - target) < 0.01
        case _:
            return up_m > 0.0
