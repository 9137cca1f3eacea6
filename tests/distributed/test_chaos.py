"""Machines, processes and memory are lost under evaluation and play, again and again: never a result, never an end."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
from ray.util.placement_group import placement_group, remove_placement_group

from tap_ray.distributed import actor_pool
from tap_ray.distributed.collect import Pool, run_attempts
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate
from tap_ray.distributed.faults import Timeouts
from tap_ray.distributed.train import report_waiting
from tap_ray.errors import TapRayError
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.play.collect import AttemptResult
from tests import line_world
from tests.distributed.nodes import Nodes, meanwhile, nodes, wait_for, workers
from tests.line_world import Forward, line_failure_inputs, line_robots

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own log files of killed nodes
]
LABELS = ("role=work",)
PROTOCOL = Protocol(tasks=("line",), env_version="1", episodes=3, max_steps=5)
LOSSES = 5
"""More than MAX_ITEM_DEATHS of an item, and than starting fleets may die."""


@pytest.fixture(scope="module", autouse=True)
def _pickled():
    for module in (line_world, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # the workers need not find our tests


@pytest.fixture(scope="module")
def head():
    with nodes() as made, connect(made.address):
        yield made


@pytest.fixture
def cluster(head: Nodes) -> Nodes:
    """Nothing but one new node, of two CPUs."""
    for node in [*head.live]:
        head.kill(node)
    head.add("work")
    return head


def begin(folder: Path) -> None:
    """Say that something has begun here."""
    (folder / f"begun-{time.time_ns()}").touch()


def begun(folder: Path) -> int:
    return len(list(folder.glob("begun-*")))


def hold(folder: Path) -> None:
    while (folder / "hold").exists():
        time.sleep(0.02)


def lose(cluster: Nodes, folder: Path, times: int, each: int = 1) -> None:
    """So many times: kill the node that so many fleets have begun on, and add another. Then let them continue."""
    try:
        for number in range(times):
            wait_for(lambda number=number: begun(folder) >= each * (number + 1))
            old = cluster.live[0]
            cluster.add("work")
            cluster.kill(old)
    finally:
        (folder / "hold").unlink()


def run_evaluation(folder: Path, config: FleetConfig, **make: Any) -> list[Any]:
    functions = {"make_vector": robots, "make_policy": forward, "make_failure_inputs": line_failure_inputs} | make
    return evaluate(PROTOCOL, **functions, folder=folder, config=config, progress=False)


def robots(scene, num):
    return line_robots(num, scene)


def forward(scene, num):
    return Forward()


def undisturbed() -> list[tuple]:
    alone = EpisodeRunner(PROTOCOL, robots, forward, line_failure_inputs)
    return [comparable(result) for cell in cells(PROTOCOL) for result in alone.run([cell]).results]


def comparable(result) -> tuple:
    return (result.cell, result.partial_once, result.entire_once, result.num_steps, result.error, result.failure)


def held_robots(folder, scene, num):
    begin(folder)
    hold(folder)
    return line_robots(num, scene)


@pytest.mark.long_proof
def test_a_cell_whose_machines_keep_dying_is_not_a_failure(cluster: Nodes, tmp_path: Path):
    (tmp_path / "hold").touch()
    config = FleetConfig(fleets=1, robots=1, labels=LABELS)
    with meanwhile(partial(lose, cluster, tmp_path, LOSSES)):
        results = run_evaluation(tmp_path, config, make_vector=partial(held_robots, tmp_path))
    assert [comparable(result) for result in results] == undisturbed()


def held_policy(folder, scene, num):
    if (folder / "hold").exists():
        begin(folder)
    hold(folder)
    return Forward()


@pytest.mark.long_proof
def test_machines_lost_while_fleets_start_do_not_count(cluster: Nodes, tmp_path: Path):
    """Two fleets at a time, three times: more than may die at their start."""
    (tmp_path / "hold").touch()
    config = FleetConfig(fleets=2, robots=1, labels=LABELS)
    with meanwhile(partial(lose, cluster, tmp_path, 3, 2)):
        results = run_evaluation(tmp_path, config, make_policy=partial(held_policy, tmp_path))
    assert actor_pool.MAX_START_DEATHS < 3 * 2
    assert [comparable(result) for result in results] == undisturbed()


class HeldPlayer:
    """Plays attempt 0 only when the file is gone."""

    def __init__(self, folder: Path, memory: Any) -> None:
        self.folder = folder

    def run(self, attempts):
        if 0 in attempts:
            begin(self.folder)
            hold(self.folder)
        return [AttemptResult(attempt=attempt, episode=None, reason="played") for attempt in attempts]


@pytest.mark.long_proof
def test_an_attempt_that_loses_its_machine_again_and_again_is_played(cluster: Nodes, tmp_path: Path):
    (tmp_path / "hold").touch()
    with meanwhile(partial(lose, cluster, tmp_path, LOSSES)):
        outcomes = list(run_attempts(partial(HeldPlayer, tmp_path), [[0], [1]], Pool(fleets=1, labels=LABELS)))
    assert sorted((outcome.attempt, outcome.reason) for outcome in outcomes) == [(0, "played"), (1, "played")]


@pytest.mark.long_proof
def test_processes_that_die_before_their_machine_do_not_count(cluster: Nodes, tmp_path: Path):
    """As many of a cell's processes die on one machine as would make it the culprit; then the machine goes."""
    (tmp_path / "hold").touch()
    config = FleetConfig(fleets=1, robots=1, labels=LABELS)
    [node] = cluster.live

    def shut_down() -> None:
        try:
            for number in range(actor_pool.MAX_ITEM_DEATHS):
                wait_for(lambda number=number: begun(tmp_path) > number)
                for process in workers(node, "ray::Fleet"):
                    process.kill()
            cluster.kill(node)
        finally:
            (tmp_path / "hold").unlink()
        cluster.add("work")

    with meanwhile(shut_down):
        results = run_evaluation(tmp_path, config, make_vector=partial(held_robots, tmp_path))
    assert [comparable(result) for result in results] == undisturbed()


def hanging_robots(folder, times, scene, num):
    """Robots of which the third cell's hangs in its first step, so many times."""
    env = line_robots(num, scene)
    step, reset = env.step, env.reset

    def reset_and_see(*, seed=None, options=None):
        env.hangs = cells(PROTOCOL)[2].seed in (seed or []) and begun(folder) < times
        return reset(seed=seed, options=options)

    def step_or_hang(action):
        if env.hangs:
            begin(folder)
            time.sleep(3600)
        return step(action)

    env.reset, env.step = reset_and_see, step_or_hang
    return env


QUICK = Timeouts(least_s=6.0, factor=1.0)


@pytest.mark.parametrize("times", [1, pytest.param(99, marks=pytest.mark.long_proof)])
def test_a_robot_that_hangs(cluster: Nodes, tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch):
    """Once: its cell is run again. Always: a failure with that reason."""
    monkeypatch.setattr(actor_pool, "GRACE_S", 1.0)  # no machine dies here
    config = FleetConfig(fleets=1, robots=1, labels=LABELS, timeouts=QUICK)
    results = run_evaluation(tmp_path, config, make_vector=partial(hanging_robots, tmp_path, times))
    expected = undisturbed()
    if times == 1:
        assert [comparable(result) for result in results] == expected
    else:
        assert [comparable(result) for result in results[:2]] == expected[:2]
        assert results[2].error.startswith(f"its process hung {actor_pool.MAX_ITEM_DEATHS} times: no answer within ")
        assert begun(tmp_path) == actor_pool.MAX_ITEM_DEATHS


class Hangs:
    def __init__(self, folder: Path, memory: Any) -> None:
        self.folder = folder

    def run(self, attempts):
        if 3 in attempts and not begun(self.folder):
            begin(self.folder)
            time.sleep(3600)
        return [AttemptResult(attempt=attempt, episode=None, reason="played") for attempt in attempts]


@pytest.mark.long_proof
def test_a_player_that_hangs(cluster: Nodes, tmp_path: Path):
    pool = Pool(fleets=1, labels=LABELS, timeouts=QUICK)
    outcomes = list(run_attempts(partial(Hangs, tmp_path), [[number] for number in range(5)], pool))
    assert sorted((outcome.attempt, outcome.reason) for outcome in outcomes) == [(n, "played") for n in range(5)]


@pytest.mark.long_proof
def test_too_little_memory_ends_the_job_with_one_error(tmp_path: Path):
    """A monitor that takes a hundredth of the memory for too much ends every process; both jobs report it alike."""
    code = f"""
import sys, ray
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.distributed import test_chaos
test_chaos.starved(sys.argv[1], {str(tmp_path)!r})
"""
    for what in ("evaluate", "collect"):
        env = os.environ | {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
        completed = subprocess.run(
            [sys.executable, "-c", code, what], env=env, capture_output=True, text=True, timeout=500
        )
        assert (
            "Out of memory: Ray's memory monitor has ended 6 processes in a row, and no work was completed in between. "
            "Use fewer --fleets"
        ) in completed.stdout, completed.stdout + completed.stderr
        assert "All completed work is kept, and the same command resumes from there." in completed.stdout


def starved(what: str, folder: str) -> None:
    """An evaluation or a collection where nothing fits; prints how it ends."""
    _timeouts = Timeouts(memory_s=0.01)
    with connect(num_cpus=1):
        try:
            if what == "evaluate":
                run_evaluation(
                    Path(folder), FleetConfig(fleets=1, robots=1, timeouts=_timeouts), make_vector=slow_robots
                )
            else:
                list(run_attempts(Slow, [[0], [1]], Pool(fleets=1, timeouts=_timeouts)))
        except TapRayError as error:
            print(error)


def slow_robots(scene, num):
    time.sleep(30)
    return line_robots(num, scene)


class Slow:
    def __init__(self, memory: Any) -> None:
        pass

    def run(self, attempts):
        time.sleep(30)
        return [AttemptResult(attempt=attempt, episode=None, reason="played") for attempt in attempts]


def test_a_job_says_what_it_waits_for(cluster: Nodes, capsys: pytest.CaptureFixture[str], monkeypatch):
    """A training's workers and a fleet that no node has room for; the fleet's comes."""
    monkeypatch.setattr(actor_pool, "REPORT_WAITING_S", 1.0)
    taken = ray.remote(num_cpus=2)(Forward).remote()

    def free() -> None:
        wait_for(lambda: "waiting for" in capsys.readouterr().out)
        ray.kill(taken)

    ray.get(taken.reset.remote(None, None, [1]))
    group = placement_group([{"CPU": 2}], bundle_label_selector=[{"role": "work"}])

    def output() -> str:
        report_waiting()
        return capsys.readouterr().out

    wait_for(lambda: output() == "waiting for 2 CPU on role=work (2 in the cluster, 0 free)\n")
    remove_placement_group(group)
    with meanwhile(free):
        outcomes = list(run_attempts(Quick, [[0]], Pool(fleets=1, labels=LABELS)))
    assert [outcome.reason for outcome in outcomes] == ["played"]


class Quick:
    def __init__(self, memory: Any) -> None:
        pass

    def run(self, attempts):
        return [AttemptResult(attempt=attempt, episode=None, reason="played") for attempt in attempts]
