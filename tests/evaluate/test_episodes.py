"""Cells on the closed-form robot of tests/line_world.py: even seeds succeed once, at step 4, and not at the end."""

import numpy as np
import pytest

from tap_ray.evaluate.episodes import EpisodeRunner, chunks
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, cells, policy_seed
from tap_ray.types import Cell
from tests.line_world import Forward, line_failure_inputs, line_robots

PROTOCOL = Protocol(tasks=("line",), env_version="1", episodes=8, max_steps=5)
CELLS = cells(PROTOCOL)


def robots(make_policy=lambda scene, num: Forward(), **bad):
    return EpisodeRunner(PROTOCOL, lambda scene, num: line_robots(num, scene, **bad), make_policy, line_failure_inputs)


def test_the_protocol_has_both_outcomes():
    assert {cell.seed % 2 for cell in CELLS} == {0, 1}


def test_results_by_hand():
    results = robots().run(CELLS).results
    assert [r.cell for r in results] == CELLS
    for result in results:
        good = result.cell.seed % 2 == 0
        assert (result.partial_once, result.entire_once) == (good, good)
        assert (result.partial_end, result.entire_end) == (good, False)
        assert (result.num_steps, result.num_clipped, result.error) == (5, 0, "")
        assert result.failure == ("" if good else "timed_out")
        assert result.seconds > 0
        assert result.policy_ms > 0


def test_outcomes_do_not_depend_on_the_number_of_robots():
    fleet = robots()
    together = fleet.run(CELLS).results
    alone = [fleet.run([cell]).results[0] for cell in CELLS]
    outcome = [(r.cell, r.partial_once, r.entire_once, r.partial_end, r.entire_end) for r in together]
    assert outcome == [(r.cell, r.partial_once, r.entire_once, r.partial_end, r.entire_end) for r in alone]


def test_policies_get_the_cells_own_seeds():
    policy = Forward()
    robots(lambda scene, num: policy).run(CELLS)
    assert policy.seeds == [policy_seed(0, cell) for cell in CELLS]


class NoPolicyForOne(Forward):
    """Raises at its second step when one of its robots is in the bad cell."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def act(self, obs, info):
        if self.bad in self.seeds and float(obs["rgb"].max()) == 1:
            raise FloatingPointError("a NaN came out")
        return super().act(obs, info)


@pytest.mark.parametrize("culprit", ["scene", "policy"])
def test_a_crash_costs_only_its_own_cell(culprit):
    bad = CELLS[3]
    if culprit == "scene":
        fleet, error = robots(bad_seed=bad.seed), "RuntimeError: the arm fell off at step 2"
    else:
        policy = NoPolicyForOne(policy_seed(0, bad))
        fleet, error = robots(lambda scene, num: policy), "FloatingPointError: a NaN came out"
    crashed = fleet.run(CELLS)
    sound = robots().run(CELLS)
    assert [r.cell for r in crashed.results] == CELLS
    for there, here in zip(crashed.results, sound.results, strict=True):
        if there.cell == bad:
            assert (there.error, there.failure) == (error, "crashed")
            assert not there.partial_once
            assert there.num_steps == 0
        else:
            assert (there.error, there.entire_once) == ("", here.entire_once)
    assert fleet.run(CELLS[:2]).results[0].error == ""


def test_robots_are_kept_while_the_scene_stays():
    made = []

    def make(scene, num):
        made.append((scene.task, num))
        return line_robots(num, scene)

    fleet = EpisodeRunner(PROTOCOL, make, lambda scene, num: Forward(), line_failure_inputs)
    other = Cell(task="other", scenario="standard", initial_state=0, seed=2)
    for chunk in (CELLS[:4], CELLS[4:], [other], CELLS[:1]):
        fleet.run(chunk)
    fleet.close()
    fleet.close()
    assert made == [("line", 4), ("other", 1), ("line", 1)]


def test_a_clip_of_a_success_and_of_a_failure():
    evaluated = robots().run(CELLS)
    first = {good: next(c for c in CELLS if (c.seed % 2 == 0) == good) for good in (True, False)}
    assert [(c.result.entire_once, c.result.cell) for c in evaluated.clips] == list(first.items())
    assert evaluated.clips[0].rgb.shape == (5, 8, 8, 3)
    assert evaluated.clips[0].instruction == "go to one (line)"


def test_chunks_share_a_scene_and_differ_by_one_at_most():
    many = cells(Protocol(tasks=("a", "b"), scenarios=("s", "t"), env_version="1", episodes=10))
    parts = chunks(many, 4)
    assert [len(part) for part in parts] == [4, 3, 3] * 4
    assert [cell for part in parts for cell in part] == many
    assert all(len({(c.task, c.scenario) for c in part}) == 1 for part in parts)
    assert chunks([], 4) == []
    assert [len(p) for p in chunks(many[:3], 24)] == [3]


def test_the_expert_beats_random_on_the_real_table():
    import envs

    protocol = Protocol(tasks=("put_carrot_on_plate",), env_version="1", episodes=4, image_size=32)
    inputs = lambda scene: failure_inputs_of(envs.spec(scene), push_m=envs.push_goal_m(scene.task))  # noqa: E731
    expert = EpisodeRunner(protocol, envs.make_vector, envs.make_expert, inputs).run(cells(protocol)).results
    noise = lambda scene, num: envs.random_policy(envs.spec(scene))  # noqa: E731
    random = EpisodeRunner(protocol, envs.make_vector, noise, inputs).run(cells(protocol)).results
    assert not [r.error for r in expert + random if r.error]
    assert np.mean([r.entire_once for r in expert]) >= 0.75
    assert np.mean([r.entire_once for r in random]) == 0
    assert all(bool(r.failure) != r.entire_once for r in expert + random)
