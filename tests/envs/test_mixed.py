"""Mixed scenes: one scene under two sentences, objects apart, and an expert that the sentence alone sends right."""

import numpy as np
import pytest

import envs
from envs.scene.mixed import draw_mixed
from envs.scene.tasks import TASKS
from tap_ray.errors import ConfigError
from tap_ray.evaluate.failures import failure_inputs_of, first_moved
from tap_ray.evaluate.protocol import SUITES
from tap_ray.metrics import wilson
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig, Trajectory

PAIRS = SUITES["tabletop_mixed"].pairs


def test_every_task_shares_the_table_with_two_others() -> None:
    assert {task: sum(task in pair for pair in PAIRS) for task in TASKS} == dict.fromkeys(TASKS, 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_both_sentences_show_the_same_scene(pair: tuple[str, str]) -> None:
    seen = []
    for task, partner in (pair, pair[::-1]):
        env = envs.make(EnvConfig(task=task, partner=partner, image_size=48, segmentation=True))
        obs, info = env.reset(seed=5)
        env.close()
        names = [name for name in info["object_name"].split(",") if name]
        assert tuple(names) == TASKS[task].object + TASKS[partner].object
        assert info["instruction"] in TASKS[task].sentence
        # A pixel's object by name, so that the order of the slots does not matter.
        labels = {name: info["segmentation"] == 3 + slot for slot, name in enumerate(names)}
        seen.append((obs, dict(zip(names, info["object_pose"], strict=False)), labels))
    (first, poses, labels), (second, other_poses, other_labels) = seen
    assert np.array_equal(first["rgb"], second["rgb"])
    assert np.array_equal(first["state"], second["state"])
    assert poses.keys() == other_poses.keys()
    for name in poses:
        assert np.array_equal(poses[name], other_poses[name])
        assert labels[name].any()
        assert np.array_equal(labels[name], other_labels[name])


def test_what_is_pushed_has_free_way_whoever_is_asked() -> None:
    for seed in range(20):
        scene = draw_mixed("stack_green_on_yellow", "push_pumpkin_left", np.random.default_rng(seed))
        names = [model.name for model in scene.object]
        x, y = scene.position_m[names.index("pumpkin")]
        assert y + 0.10 < 0.15
        for name, (x_there, y_there) in zip(names, scene.position_m, strict=True):
            ahead = name != "pumpkin" and y < y_there < y + 0.13
            assert not ahead or abs(x_there - x) > 0.033 + 0.02


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (EnvConfig(task="put_carrot_on_plate", partner="put_spoon"), "Unknown task 'put_spoon' as partner"),
        (EnvConfig(task="play", partner="put_carrot_on_plate"), "got task 'play' and partner 'put_carrot_on_plate'"),
        (
            EnvConfig(task="put_carrot_on_plate", partner="put_carrot_on_plate"),
            "needs the objects of two different tasks",
        ),
        (
            EnvConfig(task="put_carrot_on_plate", partner="push_pumpkin_left", scenario="distractors"),
            "Mixed scenes have no room for the scenario 'distractors'",
        ),
    ],
)
def test_what_cannot_be_mixed_is_said(config: EnvConfig, want: str) -> None:
    with pytest.raises(ConfigError, match=want):
        envs.check(config)


def attempt(instructed: EnvConfig, executed: EnvConfig, seeds: list[int]) -> list[Trajectory]:
    """The expert of `executed` in the scenes of its own sentence, which otherwise are those of `instructed`."""
    assert {instructed.task, instructed.partner} == {executed.task, executed.partner}
    env = envs.make_ee_control(executed, len(seeds))
    out = rollout(env, envs.make_expert(executed, len(seeds)), env_seeds=seeds, policy_seeds=seeds).trajectories
    env.close()
    return list(out)


def followed(instructed: EnvConfig, executed: EnvConfig, seeds: list[int]) -> list[bool]:
    # In the scene of `executed` slots are in its order; whose object it was does not depend on that.
    inputs = failure_inputs_of(envs.spec(executed), mover=envs.movers(executed))
    moved = [first_moved(trajectory, inputs) for trajectory in attempt(instructed, executed, seeds)]
    assert all(moved)
    return [task == instructed.task for task in moved]


@pytest.mark.long_proof
def test_the_expert_follows_the_sentence_and_a_blind_one_half_of_them() -> None:
    true, blind = [], []
    rng = np.random.default_rng(0)
    for one, two in PAIRS:
        pair = [EnvConfig(task=a, partner=b, render=False, image_size=16) for a, b in ((one, two), (two, one))]
        for instructed in pair:
            true += followed(instructed, instructed, [0, 1, 2])
            blind += followed(instructed, pair[int(rng.integers(2))], [3, 4, 5])
            blind += followed(instructed, pair[int(rng.integers(2))], [6, 7, 8])
    assert sum(true) >= 0.95 * len(true)
    low, high = wilson(sum(blind), len(blind), confidence=0.999)[1:]
    assert low < 0.5 < high
