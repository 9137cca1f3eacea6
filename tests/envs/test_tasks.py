"""Scenes and success checks: laid-out cases with known answers."""

import numpy as np
import pytest

from envs.scene.objects import OBJECTS
from envs.scene.tasks import FIELD_HIGH_M, FIELD_LOW_M, NUM_SLOTS, PLAY, PUSH_M, TASKS, Touch, check_success, draw_scene

NOBODY: frozenset[int] = frozenset()
ITEM = frozenset({0})


def touch(left: bool = False, right: bool = False, *, resting: bool = False) -> Touch:
    """Which fingers hold the object, and whether it rests on the target."""
    return Touch(
        gripper=((NOBODY, NOBODY), (ITEM if left else NOBODY, ITEM if right else NOBODY)),
        finger_during=ITEM if left or right else NOBODY,
        pair=frozenset({(0, 1)}) if resting else frozenset(),
    )


def poses(item: tuple[float, float, float], target: tuple[float, float, float] = (0.3, 0.1, 0.02)) -> np.ndarray:
    out = np.zeros((NUM_SLOTS, 7), np.float32)
    out[0, :4], out[1, :4] = (*item, 1), (*target, 1)
    return out


START = poses((0.3, -0.1, 0.02))


@pytest.mark.parametrize("task", TASKS)
def test_sentences(task: str) -> None:
    sentences = TASKS[task].sentence
    assert len(set(sentences)) >= 5
    assert all(sentence.strip() == sentence and sentence for sentence in sentences)
    drawn = {draw_scene(task, np.random.default_rng(seed)).sentence for seed in range(60)}
    assert drawn == set(sentences)


def test_simpler_sentences_come_first() -> None:
    assert [task.sentence[0] for task in TASKS.values()][:4] == [
        "put the spoon on the towel",
        "put carrot on plate",
        "stack the green block on the yellow block",
        "put eggplant into yellow basket",
    ]


@pytest.mark.parametrize("task", [*TASKS, PLAY])
def test_scenes_lie_inside_and_apart(task: str) -> None:
    counts = set()
    for seed in range(200):
        scene = draw_scene(task, np.random.default_rng(seed))
        counts.add(len(scene.object))
        for i, here in enumerate(scene.position_m):
            assert np.all(np.array(here) >= FIELD_LOW_M)
            assert np.all(np.array(here) <= FIELD_HIGH_M)
            for j in range(i):
                gap = np.hypot(*(np.array(here) - scene.position_m[j]))
                assert gap > scene.object[i].radius_m + scene.object[j].radius_m
        if task == "push_pumpkin_left":
            assert scene.position_m[0][1] + PUSH_M < FIELD_HIGH_M[1]
    assert counts == ({2, 3, 4} if task == PLAY else {len(TASKS[task].object)})


def test_grasped_objects_fit_the_gripper() -> None:
    for task in TASKS.values():
        assert 2 * OBJECTS[task.object[0]].half_size_m[1] < 0.070
        assert 0.02 <= OBJECTS[task.object[0]].mass_kg <= 0.08


@pytest.mark.parametrize(
    ("now", "contacts", "want"),
    [
        (poses((0.3, -0.1, 0.02)), touch(), (False, False)),
        (poses((0.3, -0.1, 0.04)), touch(left=True, right=True), (True, False)),  # lifted by 2 cm
        (poses((0.3, -0.1, 0.025)), touch(left=True, right=True), (False, False)),  # by 5 mm
        (poses((0.3, -0.1, 0.04)), touch(left=True), (False, False)),  # one finger
        (poses((0.3, 0.1, 0.06)), touch(resting=True), (False, True)),  # 4 cm above: stacked
        (poses((0.319, 0.1, 0.06)), touch(resting=True), (False, True)),  # 19 mm off
        (poses((0.321, 0.1, 0.06)), touch(resting=True), (False, False)),  # 21 mm off
        (poses((0.3, 0.1, 0.06)), touch(left=True, resting=True), (False, False)),  # not released
        (poses((0.3, 0.1, 0.06)), touch(), (False, False)),  # hovers
        (poses((0.3, 0.105, 0.02)), touch(resting=True), (False, False)),  # beside it
    ],
)
def test_stacking(now: np.ndarray, contacts: Touch, want: tuple[bool, bool]) -> None:
    assert check_success("stack_green_on_yellow", START, now, contacts) == want


def test_basket_wants_it_inside_not_on_the_rim() -> None:
    basket = (0.3, 0.1, 0.025)
    assert check_success("put_eggplant_in_basket", START, poses((0.31, 0.1, 0.03), basket), touch(resting=True)) == (
        False,
        True,
    )
    assert check_success("put_eggplant_in_basket", START, poses((0.31, 0.1, 0.075), basket), touch(resting=True)) == (
        False,
        False,
    )
    assert check_success("put_eggplant_in_basket", START, poses((0.37, 0.1, 0.03), basket), touch(resting=True)) == (
        False,
        False,
    )


def test_push_counts_the_robots_left() -> None:
    def pushed(meters: float, **contacts: bool) -> tuple[bool, bool]:
        return check_success("push_pumpkin_left", START, poses((0.3, -0.1 + meters, 0.02)), touch(**contacts))

    assert pushed(0.101) == (False, True)
    assert pushed(0.099, right=True) == (True, False)
    assert pushed(-0.2) == (False, False)


def test_play_is_never_done() -> None:
    assert check_success(PLAY, START, poses((0.3, 0.1, 0.06)), touch(resting=True)) == (False, False)
