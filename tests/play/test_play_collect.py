"""Collection in one process, on the real robot without images."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

import envs
from envs.kinematics.reachable import sample_poses
from tap_ray import bounds
from tap_ray.config import digest, from_dict
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.play.collect import CollectPlan, PlayFleet, check_robots, collect, in_batches
from tap_ray.play.demos import DemoFleet, DemoPlan, steps_until_done
from tap_ray.play.explorers import ExplorerConfig, MixedConfig
from tap_ray.play.motion import MotionConfig
from tap_ray.play.planners import WaypointConfig
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.play.settings import PlayJobConfig, plan_of
from tap_ray.types import EnvConfig, RandomizeConfig

FAST = ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300), mixed=MixedConfig(uniform=1, curious=1))
PLAN = CollectPlan(
    env=EnvConfig(render=False, max_steps=6, image_size=16), explorer="mixed", explorers=FAST, round_episodes=2
)
ARMS = envs.spec(PLAN.env).arms


def played(num_robots, num_episodes=7, plan=PLAN):
    return list(
        collect(plan, envs.make_vector, sample_poses, arms=ARMS, num_episodes=num_episodes, num_robots=num_robots)
    )


def test_an_episode_is_the_same_from_any_number_of_robots():
    alone = played(1)
    assert [pickle.dumps(e) for e in alone] == [pickle.dumps(e) for e in played(2)]
    assert [episode.index for episode in alone] == list(range(7))
    assert {episode.task for episode in alone} == {"play"}
    assert {episode.meta["explorer"] for episode in alone} <= {"uniform", "waypoint", "contact", "curious"}
    assert len({episode.action.tobytes() for episode in alone}) == 7


def test_another_seed_is_other_play():
    other = CollectPlan(env=PLAN.env, explorer="mixed", explorers=FAST, seed=1)
    assert not np.array_equal(played(1, 1)[0].action, played(1, 1, other)[0].action)


class Breaks:
    """A vector environment whose robots crash when they are given one of these seeds."""

    def __init__(self, env, seeds):
        self._env, self._seeds = env, seeds

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, *, seed):
        if set(seed) & self._seeds:
            raise RuntimeError("the arm fell off")
        return self._env.reset(seed=seed)


def test_a_crash_drops_only_its_own_attempt_with_a_reason():
    bad = next(iter(played(1, 1))).meta["seed"]
    fleet = PlayFleet(
        PLAN, lambda config, num: Breaks(envs.make_vector(config, num), {bad}), sample_poses, arms=ARMS, num_robots=2
    )
    first, second = fleet.run([0, 1])
    assert (first.episode, first.reason) == (None, "crashed: RuntimeError: the arm fell off")
    assert pickle.dumps(second.episode) == pickle.dumps(played(1, 2)[1])


def test_a_simulator_that_cannot_be_made_is_an_error_and_later_costs_an_attempt():
    bad, left = played(1, 2)[1].meta["seed"], [1]

    def make(config, num):
        if not left:
            raise RuntimeError("no memory left")
        left.pop()
        return Breaks(envs.make_vector(config, num), {bad})

    fleet = PlayFleet(PLAN, make, sample_poses, arms=ARMS)
    outcomes = [fleet.run([attempt])[0] for attempt in (0, 1, 2)]
    assert [outcome.reason for outcome in outcomes] == [
        "",
        "crashed: RuntimeError: the arm fell off",
        "crashed: RuntimeError: no memory left",
    ]
    with pytest.raises(
        TapRayError,
        match=r"^The simulator 'pybullet' does not start on this machine with --robots-per-fleet 1: RuntimeError: no",
    ):
        PlayFleet(PLAN, make, sample_poses, arms=ARMS).run([0])


def test_a_fleet_whose_first_attempts_all_crash_says_why(monkeypatch):
    monkeypatch.setattr("tap_ray.play.collect.MAX_FIRST_CRASHES", 2)
    seeds, made = [episode.meta["seed"] for episode in played(1, 4)], []

    def fleet(*bad, num_robots=3):
        def make(config, num):
            made.append(num)
            return Breaks(envs.make_vector(config, num), {seeds[attempt] for attempt in bad})

        return PlayFleet(PLAN, make, sample_poses, arms=ARMS, num_robots=num_robots)

    crashed = "RuntimeError: the arm fell off"
    message = (
        rf"^All of the first 2 episodes crashed, each also alone; the last one: {crashed}\. The simulator does not "
        r"work on this machine: fix that, or try another --sim\.$"
    )
    with pytest.raises(TapRayError, match=message) as raised:
        fleet(0, 1, 2).run([0, 1, 2])
    assert repr(raised.value.__cause__) == "RuntimeError('the arm fell off')"
    assert made == [3] * 3  # of three robots each: together, then two attempts
    alone = fleet(0, 1, num_robots=1)
    assert [o.reason for o in alone.run([0])] == [f"crashed: {crashed}"]
    with pytest.raises(TapRayError, match=message):  # also over batches
        alone.run([1])
    assert [o.reason for o in fleet(0, 2).run([0, 1, 2])] == [f"crashed: {crashed}", "", f"crashed: {crashed}"]


class Diverges(Breaks):
    """A vector environment in which the robot with the bad seed becomes NaN: seen from the start, or after a step.

    Such a simulator cannot even be closed.
    """

    def __init__(self, env, seeds, first):
        super().__init__(env, set())
        self._bad, self._first = seeds, first

    def reset(self, *, seed):
        obs, info = self._env.reset(seed=seed)
        self._robots = [robot for robot, each in enumerate(seed) if each in self._bad]
        return self._spoilt(obs) if self._first else obs, info

    def step(self, action):
        obs, *rest = self._env.step(action)
        return self._spoilt(obs), *rest

    def _spoilt(self, obs):
        obs["state"][self._robots] = np.nan
        return obs

    def close(self):
        self._env.close()
        if self._robots:
            raise RuntimeError("no simulator to close")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (True, "crashed: FloatingPointError: the action of step 0 is NaN or infinite"),
        (False, "crashed: FloatingPointError: state is NaN or infinite at step 1"),
    ],
)
def test_a_simulator_that_diverges_costs_its_own_attempt_only(first, reason):
    plan = replace(PLAN, explorer="uniform")
    whole = played(1, 3, plan)
    bad = {whole[1].meta["seed"]}
    fleet = PlayFleet(
        plan,
        lambda config, num: Diverges(envs.make_vector(config, num), bad, first),
        sample_poses,
        arms=ARMS,
        num_robots=2,
    )
    one, two = fleet.run([0, 1])
    assert pickle.dumps(one.episode) == pickle.dumps(whole[0])
    assert (two.episode, two.reason) == (None, reason)
    [three] = fleet.run([2])
    assert pickle.dumps(three.episode) == pickle.dumps(whole[2])


def test_users_mistakes_are_raised_not_recorded():
    with pytest.raises(ConfigError, match="Unknown task 'put'"):
        played(1, 1, CollectPlan(env=EnvConfig(task="put"), explorers=FAST, explorer="waypoint"))


def test_demonstrations_are_successes_with_their_instruction():
    tasks = ("push_pumpkin_left", "put_carrot_on_plate")
    plan = DemoPlan(tasks=tasks, env=EnvConfig(render=False, image_size=16))
    fleet = DemoFleet(plan, envs.make_vector, envs.make_expert, num_robots=2)
    outcomes = [*fleet.run([0, 2]), *fleet.run([1, 3])]
    kept = [outcome for outcome in outcomes if outcome.episode]
    assert len(kept) >= 3
    for outcome in kept:
        assert outcome.episode.meta["task"] == tasks[outcome.attempt % 2]
        assert outcome.episode.meta["success"]
        assert outcome.episode.task != "play"
    for outcome in outcomes:
        assert (outcome.episode is None) == bool(outcome.reason)
    alone = DemoFleet(plan, envs.make_vector, envs.make_expert)
    for outcome in kept:
        [same] = alone.run([outcome.attempt])
        assert same.episode.action.tobytes() == outcome.episode.action.tobytes()
        assert len(same.episode) < 60  # it ends soon after success
    short = DemoPlan(tasks=tasks, env=EnvConfig(render=False, image_size=16, max_steps=2), success_hold_steps=1)
    [early] = DemoFleet(short, envs.make_vector, envs.make_expert).run([1])
    assert early.reason == "the object was never grasped"


def test_a_demonstration_ends_when_the_task_has_been_done_for_a_while():
    entire = np.array([False, True, True, False, True, True, True, False])
    assert [steps_until_done(entire, linger) for linger in (1, 2, 3, 4)] == [2, 3, 7, None]


def test_batches_are_of_one_task_and_in_order():
    assert in_batches(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert in_batches([0, 1, 2, 3, 4, 6], 2, num_tasks=2) == [[0, 2], [1, 3], [4, 6]]
    assert in_batches([3, 16, 17, 25], 2, span=8) == [[3], [16, 17], [25]]


RANDOM = replace(PLAN, env=replace(PLAN.env, render=True, randomize=RandomizeConfig()))


def test_randomized_play_records_what_was_drawn_and_goes_on(tmp_path):
    episodes = played(2, 5, RANDOM)
    header = DatasetHeader(
        spec=envs.spec(RANDOM.env),
        plan=RANDOM.to_json(),
        image_size=(16, 16),
        num_objects=episodes[0].object_pose.shape[1],
    )
    assert header.plan["env"]["randomize"]["camera_move_m"] == 0.12
    for until in (2, 5):  # a second job resumes where the first one stopped
        with DatasetWriter(tmp_path / "play", header) as writer:
            for episode in episodes[writer.committed : until]:
                writer.append(episode)
    rows = open_dataset(tmp_path / "play").episodes.to_dict("records")
    assert [row["random_cloth"] for row in rows] == [episode.meta["random_cloth"] for episode in episodes]
    for row in rows:
        assert 0 < row["random_joint_rad"] <= 0.2
        assert len(row["random_cloth_ground"]) == (7 if row["random_cloth"] else 0)
        assert row["random_distractors"].count(",") < 4
    assert len({row["random_camera_up_m"] for row in rows}) == 5
    assert [pickle.dumps(e) for e in played(1, 3, RANDOM)] == [pickle.dumps(e) for e in episodes[:3]]


def test_a_plan_without_randomization_is_what_it_was_before_there_was_any():
    """The digest is of commit 174618d."""
    assert digest(CollectPlan(env=EnvConfig(), explorer="mixed").to_json()) == "ef0bd87028154e9e"
    assert "randomize" not in CollectPlan(explorer="mixed").to_json()["env"]
    assert digest(RANDOM.to_json()) != digest(PLAN.to_json())
    values = {key: value for key, value in RANDOM.to_json().items() if key != "kind"}
    assert from_dict(CollectPlan, values) == RANDOM


def test_only_play_that_asks_for_it_is_randomized():
    bounds = RandomizeConfig(camera_move_m=0.05)
    assert plan_of(PlayJobConfig(), control_lag=1.0).env.randomize is None
    assert plan_of(PlayJobConfig(randomize=True, randomization=bounds), control_lag=1.0).env.randomize == bounds
    with pytest.raises(ConfigError, match=r"--randomization\.\* has no effect without --randomize\. Add"):
        plan_of(PlayJobConfig(randomization=bounds), control_lag=1.0)
    demos = DemoPlan(tasks=("put_carrot_on_plate",), env=EnvConfig(randomize=bounds))
    with pytest.raises(ConfigError, match="`randomize` is only for play"):
        DemoFleet(demos, envs.make_vector, envs.make_expert).run([0])


FAR_AWAY = MotionConfig(bounds_low_m=(5, 5, 5), bounds_high_m=(6, 6, 6))


def fleet_of(**constants):
    """Made, not run: what its explorers lack is reported at once."""
    return PlayFleet(
        CollectPlan(explorer="mixed", explorers=replace(FAST, **constants)), envs.make_vector, sample_poses, arms=ARMS
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: bounds.check(CollectPlan(jpeg_quality=0)), r"--jpeg-quality must be in \[1, 95\]; got 0"),
        (lambda: bounds.check(CollectPlan(round_episodes=0)), "--round-episodes must be at least 1; got 0"),
        (lambda: CollectPlan(explorer="curios"), "Unknown explorer 'curios'. Did you mean 'curious'?"),
        (
            lambda: check_robots(PLAN, 3),
            "3 robots in a fleet need round_episodes >= 3; got 2. Raise --round-episodes",
        ),
        (lambda: DemoPlan(tasks=()), r"tasks must name at least one task, each once; got \[\]"),
        (lambda: DemoPlan(tasks=("a", "a")), "each once"),
        (
            lambda: DemoPlan(tasks=("a",), success_hold_steps=61),
            "success_hold_steps must be in 1 .. max_steps = 60; got 61",
        ),
        (lambda: PlayFleet(PLAN, envs.make_vector, sample_poses, arms=ARMS, num_robots=0), "at least 1 robot; got 0"),
        (lambda: fleet_of(motion=FAR_AWAY), "Only 0 of 300 reachable poses"),
        (lambda: fleet_of(waypoint=WaypointConfig(z_thresh_m=0.001)), "No safe pose is below z_thresh_m 0.001"),
    ],
)
def test_what_cannot_work_is_said(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
