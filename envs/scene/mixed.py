"""Makes mixed scenes: the objects of two tasks on one table, so that only the instruction says which task is meant.

Poses, joints and image follow from the seed and the unordered pair of tasks, not from which of the two is asked.
Objects are kept apart as rectangles and not as circles, because the circles of two tasks do not fit on the table.
"""

from typing import Sequence

import numpy as np

from envs.scene.objects import OBJECTS, ObjectModel
from envs.scene.tasks import FIELD_HIGH_M, FIELD_LOW_M, PLAY, PUSH_M, TASKS, Scene
from tap_ray.errors import ConfigError, nearest
from tap_ray.types import EnvConfig

GAP_M = 0.015
"""Smallest distance between two objects, m."""
FINGERS_M = 0.035
"""Smallest distance of a grasped object to any other, m: open fingers come down beside it."""
BEHIND_M, AHEAD_M, ASIDE_M = 0.12, PUSH_M + 0.05, 0.04
"""Free space behind the center of a pushed object (where the tool comes down), ahead of it and to either side, m."""
PLACES, ROUNDS = 200, 1000
"""Largest number of positions tried for each object, and of layouts."""


Pose = tuple[float, float, float]
"""x and y, m, and yaw, rad."""
Rectangle = tuple[np.ndarray, np.ndarray, np.ndarray]
"""N rectangles: centers (N, 2) and half sides (2,), m, and yaws (N,), rad."""


def require_pair(config: EnvConfig) -> None:
    """Raise an error if `config.partner` cannot share the table with `config.task`.

    Raises:
        ConfigError: it is not another task, or the scenario has no such scenes.
    """
    if not config.partner:
        return
    if config.partner not in TASKS:
        raise ConfigError(f"Unknown task {config.partner!r} as partner. {nearest(config.partner, TASKS)}")
    if config.task in (PLAY, config.partner):
        raise ConfigError(
            f"A mixed scene needs the objects of two different tasks; got task {config.task!r} and partner "
            f"{config.partner!r}."
        )
    if config.scenario == "distractors":
        raise ConfigError("Mixed scenes have no room for the scenario 'distractors'. Omit it, or omit the partner.")


def draw_mixed(task: str, partner: str, rng: np.random.Generator) -> Scene:
    """Draw poses of both tasks' objects and `task`'s sentence; all but slots and sentence are the same for `partner`.

    Raises:
        AssertionError: no layout was found in ROUNDS tries (the objects of the pair do not fit).
    """
    words = rng.spawn(1)[0]  # its own node of the seed tree, so that later draws do not depend on the sentence
    names = [name for one in sorted((task, partner)) for name in TASKS[one].object]
    task_objects = [names.index(name) for name in TASKS[task].object]
    models = tuple(OBJECTS[name] for name in names)
    boxes = _lay_out(models, rng)
    return Scene(
        object=models,
        position_m=tuple((x, y) for x, y, _ in boxes),
        yaw_rad=tuple(yaw for *_, yaw in boxes),
        sentence=str(words.choice(TASKS[task].sentence)),
        slot=(*task_objects, *(i for i in range(len(names)) if i not in task_objects)),
    )


def _lay_out(models: Sequence[ObjectModel], rng: np.random.Generator) -> list[Pose]:
    """Poses of `models`; large objects are placed first."""
    order = sorted(range(len(models)), key=lambda i: -float(np.prod(_ground(models[i], np.zeros((1, 3)))[1])))
    low, high = (*FIELD_LOW_M, -np.pi / 2), (*FIELD_HIGH_M, np.pi / 2)
    for _ in range(ROUNDS):
        placed: dict[int, np.ndarray] = {}
        for i in order:
            pose_N3 = rng.uniform(low, high, (PLACES, 3))
            free_N = np.ones(PLACES, bool)
            if _is_pushed(models[i]):
                free_N = pose_N3[:, 1] <= FIELD_HIGH_M[1] - PUSH_M - 0.02
            for j, pose_3 in placed.items():
                apart_N = _apart_m(_ground(models[i], pose_N3), _ground(models[j], pose_3[None]))
                free_N &= apart_N > _gap_m(models[i], models[j])
            if not free_N.any():
                break
            placed[i] = pose_N3[free_N.argmax()]
        else:
            return [(float(x), float(y), float(yaw)) for x, y, yaw in (placed[i] for i in range(len(models)))]
    raise AssertionError(f"None of {ROUNDS} sampled layouts had room for {[model.name for model in models]}")


def _is_pushed(model: ObjectModel) -> bool:
    return any(task.goal == "push_left" and task.object[0] == model.name for task in TASKS.built_in.values())


def _gap_m(first: ObjectModel, second: ObjectModel) -> float:
    grasped = any(model.grasp_z_m > 0 and not _is_pushed(model) for model in (first, second))
    return FINGERS_M if grasped else GAP_M


def _ground(model: ObjectModel, pose_N3: np.ndarray) -> Rectangle:
    """The area that an object needs: its bounding box, or for a pushed object its path to the left."""
    if _is_pushed(model):
        half_m = (ASIDE_M, (AHEAD_M + BEHIND_M) / 2)
        return pose_N3[:, :2] + (0.0, (AHEAD_M - BEHIND_M) / 2), np.array(half_m), np.zeros(len(pose_N3))
    return pose_N3[:, :2], np.array(model.half_size_m[:2]), pose_N3[:, 2]


def _apart_m(first: Rectangle, second: Rectangle) -> np.ndarray:
    """(N,) widest gap of two rectangles along one of their four sides' directions, m; negative if they overlap."""
    axes = [
        np.stack([np.cos(yaw), np.sin(yaw), -np.sin(yaw), np.cos(yaw)], 1).reshape(-1, 2, 2)
        for *_, yaw in (first, second)
    ]
    away_N2, gaps = first[0] - second[0], []
    for side_N2 in (axes[0][:, 0], axes[0][:, 1], axes[1][:, 0], axes[1][:, 1]):
        reach_N = sum(
            (np.abs((axes_N22 * side_N2[:, None]).sum(2)) * half).sum(1)
            for (_, half, _), axes_N22 in zip((first, second), axes, strict=True)
        )
        gaps.append(np.abs((away_N2 * side_N2).sum(1)) - reach_N)
    return np.max(gaps, axis=0)
