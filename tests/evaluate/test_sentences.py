"""Who follows the sentence: cells in pairs, the object moved first, and the two rates, all by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

import envs
from tap_ray.compare.reading import read_result
from tap_ray.compare.sentences import sentence_table
from tap_ray.config import digest
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import chunks
from tap_ray.evaluate.failures import FailureInputs, first_moved
from tap_ray.evaluate.protocol import Protocol, cells, check
from tap_ray.evaluate.results import count_followed, metrics, stored, summarize, write_parquet
from tap_ray.play.demos import DemoPlan
from tap_ray.play.settings import DemosJobConfig, demo_plan_of
from tap_ray.types import EpisodeResult, Trajectory

CARROT, PUSH = "put_carrot_on_plate", "push_pumpkin_left"
MIXED = Protocol(suite="tabletop_mixed", tasks=tuple(envs.TASKS), env_version="3", episodes=4)
PAIR = replace(MIXED, tasks=(CARROT, PUSH), episodes=2)
INPUTS = FailureInputs(arms=(), mover={CARROT: 0, PUSH: 2})


def test_cells_come_in_pairs():
    mixed_cells = cells(MIXED)
    assert len(mixed_cells) == 5 * 4
    by_seed = {}
    for cell in mixed_cells:
        by_seed.setdefault(cell.seed, []).append((cell.task, cell.partner))
    assert len(by_seed) == 10  # 5 pairs, 2 states each
    assert all(sorted(pair) == sorted(one[::-1] for one in pair) and len(pair) == 2 for pair in by_seed.values())
    scene = MIXED.env_config(CARROT, "standard", PUSH)
    assert (scene.task, scene.partner) == (CARROT, PUSH)
    assert [(c[0].task, c[0].partner, len(c)) for c in chunks(mixed_cells, 8)][:2] == [
        ("put_spoon_on_cloth", CARROT, 2),
        ("put_spoon_on_cloth", "put_eggplant_in_basket", 2),
    ]


def test_more_episodes_hold_the_fewer():
    assert set(cells(MIXED)) < set(cells(replace(MIXED, episodes=8)))


def test_no_other_suite_has_another_hash():
    """The literals are of commit 3b5f51e."""
    tasks = tuple(envs.TASKS)
    assert Protocol(tasks=tasks, env_version="3").hash == "901fbcd87922ca2d"
    simpler = Protocol(suite="simpler", sim="maniskill", tasks=tasks[:4], env_version="3", episodes=30)
    assert simpler.hash == "74c4753999a8e1ea"
    assert digest(DemoPlan(tasks=(CARROT,)).to_json()) == "090b033ed575d224"
    assert MIXED.hash != replace(MIXED, suite="tabletop").hash


@pytest.mark.parametrize(
    ("protocol", "want"),
    [
        (replace(MIXED, tasks=(CARROT,)), "Name all tasks, or one of the pairs put_spoon_on_cloth"),
        (replace(MIXED, tasks=("put_spoon_on_cloth", CARROT, PUSH)), "under the sentences of both its tasks"),
        (replace(MIXED, episodes=5), "--episodes must be a multiple of 2; got 5"),
    ],
)
def test_half_a_pair_is_refused(protocol, want):
    with pytest.raises(ConfigError, match=want):
        check(protocol, known_tasks=envs.TASKS)


def test_the_suites_scenes_can_be_made():
    checked: list[envs.EnvConfig] = []
    for protocol in (MIXED, PAIR):
        check(protocol, known_tasks=envs.TASKS, check_scene=lambda scene: (checked.append(scene), envs.check(scene)))
    assert {scene.task for scene in checked} >= {*MIXED.tasks, *PAIR.tasks}


def moving(*moves: tuple[int, int, float, float]) -> Trajectory:
    """Ten steps of carrot, plate, pumpkin; each of `moves` is (slot, from this step on, m sideways, m upwards)."""
    pose = np.zeros((10, 4, 7), np.float32)
    for slot, step, sideways, up in moves:
        pose[step:, slot, 1], pose[step:, slot, 2] = sideways, up
    empty = np.zeros((10, 0), np.float32)
    never = np.zeros(10, bool)
    return Trajectory(
        rgb=np.zeros((10, 1, 1, 3), np.uint8),
        state=empty,
        action=empty,
        contact=never,
        object_pose=pose,
        robot_mask=None,
        partial=never,
        entire=never,
        object_name=("carrot", "plate", "pumpkin", ""),
        instruction="",
        num_clipped=0,
    )


@pytest.mark.parametrize(
    ("moves", "want"),
    [
        ((), ""),
        (((0, 4, 0.05, 0.0),), CARROT),
        (((2, 4, 0.05, 0.0),), PUSH),
        (((0, 4, 0.05, 0.0), (2, 3, 0.05, 0.0)), PUSH),  # a step earlier
        (((0, 4, 0.05, 0.0), (2, 4, 0.06, 0.0)), PUSH),  # at once: farther
        (((0, 4, 0.07, 0.0), (2, 4, 0.06, 0.0)), CARROT),
        (((0, 6, 0.0, 0.011), (2, 4, 0.029, 0.0)), CARROT),  # brushed by 29 mm only; lifted by 11
        (((1, 2, 0.10, 0.0),), ""),  # the plate is moved by neither task
        (((1, 2, 0.10, 0.0), (2, 8, 0.10, 0.0)), PUSH),
    ],
)
def test_first_moved(moves, want):
    assert first_moved(moving(*moves), INPUTS) == want


def test_nobody_is_told_of_in_other_scenes():
    assert first_moved(moving((0, 4, 0.05, 0.0)), replace(INPUTS, mover={})) == ""


def results(moved, protocol=PAIR):
    return [
        EpisodeResult(
            cell=cell,
            partial_once=False,
            entire_once=False,
            partial_end=False,
            entire_end=False,
            num_steps=60,
            num_clipped=0,
            seconds=0.5,
            policy_ms=1.0,
            failure="never_reached",
            first_moved=task,
        )
        for cell, task in zip(cells(protocol), moved, strict=True)
    ]


def test_rates_by_hand():
    """Carrot asked: carrot, pumpkin; push asked: carrot, none. So 1 of 3 followed, 2 of 4 went wrong."""
    rates = count_followed(results([CARROT, PUSH, CARROT, ""]))
    assert (rates["followed"]["k"], rates["followed"]["n"], rates["followed"]["rate"]) == (1, 3, pytest.approx(1 / 3))
    assert (rates["wrong_object"]["k"], rates["wrong_object"]["n"], rates["wrong_object"]["rate"]) == (2, 4, 0.5)
    # Wilson, 2 of 4: 0.5 -+ 1.96 * sqrt(4 * 0.25 + 1.96^2 / 4) / (4 + 1.96^2)
    assert rates["wrong_object"]["low"] == pytest.approx(0.1500, abs=1e-4)
    assert rates["wrong_object"]["high"] == pytest.approx(0.8500, abs=1e-4)
    assert count_followed(results([""] * 4))["followed"]["rate"] is None


def test_a_policy_that_ignores_instructions_follows_half_of_them():
    assert count_followed(results([CARROT] * 4))["followed"]["rate"] == 0.5


def test_they_stand_in_results_metrics_and_table(tmp_path):
    rows = results([CARROT, PUSH, CARROT, ""])
    summary = summarize(rows, PAIR, policy="bc")
    assert summary["sentence"] == count_followed(rows)
    assert summary["tasks"][CARROT]["standard"]["sentence"]["followed"]["rate"] == 0.5
    flat = metrics(summary)
    assert (flat["evaluate/followed"], flat["evaluate/wrong_object"]) == (pytest.approx(1 / 3), 0.5)
    (tmp_path / "results.json").write_text(json.dumps(summary))
    write_parquet(tmp_path / "episodes.parquet", rows)
    table = [line.split() for line in sentence_table(read_result(tmp_path)).splitlines()[-3:]]
    assert table[0] == ["carrot", "1/2", "50", "%", "9-91", "1/2", "50", "%", "9-91"]
    assert table[1] == ["pumpkin", "0/1", "0", "%", "0-79", "1/2", "50", "%", "9-91"]
    assert table[2] == ["all,", "standard", "1/3", "33", "%", "6-79", "2/4", "50", "%", "15-85"]


def test_other_suites_say_nothing_of_it():
    protocol = Protocol(tasks=(CARROT,), env_version="3", episodes=2)
    summary = summarize(results(["", ""], protocol), protocol, policy="bc")
    assert "sentence" not in summary
    assert "sentence" not in summary["tasks"][CARROT]["standard"]
    assert "evaluate/followed" not in metrics(summary)


def test_results_from_before_there_were_partners_still_load(tmp_path):
    """A line as commit 3b5f51e appended it."""
    old = {
        "task": "a", "scenario": "standard", "initial_state": 0, "seed": 7, "partial_once": True, "entire_once": False,
        "partial_end": False, "entire_end": False, "num_steps": 60, "num_clipped": 2, "seconds": 0.5, "policy_ms": 3.0,
        "error": "", "failure": "dropped",
    }  # fmt: skip
    (tmp_path / "episodes.jsonl").write_text(json.dumps(old) + "\n")
    [result] = stored(tmp_path / "episodes.jsonl").values()
    assert (result.cell.seed, result.cell.partner, result.failure, result.first_moved) == (7, "", "dropped", "")


def test_demonstrations_of_both_tasks_of_each_pair():
    plan = demo_plan_of(DemosJobConfig(tasks=(CARROT,)), envs.TASKS, (("spoon", CARROT), (CARROT, PUSH)))
    assert [(scene.task, scene.partner) for scene in plan.scenes] == [(CARROT, "spoon"), (CARROT, PUSH)]
    assert plan.to_json()["partners"] == ["spoon", PUSH]
    with pytest.raises(ConfigError, match=r"Either each of the 1 tasks has a partner, or none has; got \['a', 'b'\]"):
        DemoPlan(tasks=(CARROT,), partners=("a", "b"))
