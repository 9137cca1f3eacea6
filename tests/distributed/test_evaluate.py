"""Fleets on the closed-form robot of tests/line_world.py, in real Ray processes."""

import functools
import os
import time
from dataclasses import replace

import pytest
import ray

from tap_ray.distributed.evaluate import FleetConfig, evaluate, validate_settings
from tap_ray.errors import CheckpointError, ConfigError, TapRayError
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.results import append, stored
from tap_ray.evaluate.settings import InferenceConfig
from tests import line_world
from tests.line_world import Forward, line_failure_inputs, line_robots

pytestmark = [pytest.mark.cluster, pytest.mark.local_ray]

PROTOCOL = Protocol(tasks=("line", "other"), env_version="1", episodes=6, max_steps=5)
BAD = cells(PROTOCOL)[2]


@pytest.fixture(scope="module", autouse=True)
def _pickled() -> None:
    ray.cloudpickle.register_pickle_by_value(line_world)  # the workers need not find our tests


def make_vector(scene, num, **bad):
    return line_robots(num, scene, **bad)


def make_policy(scene, num):
    return Forward()


def run(folder, **changes):
    arguments = {
        "make_vector": make_vector,
        "make_policy": make_policy,
        "make_failure_inputs": line_failure_inputs,
        "folder": folder,
        "config": FleetConfig(fleets=2, robots=4),
        "progress": False,
    }
    return evaluate(PROTOCOL, **(arguments | changes))


def outcomes(results):
    names = ("cell", "partial_once", "entire_once", "partial_end", "entire_end", "num_steps", "error", "failure")
    return [tuple(getattr(r, name) for name in names) for r in results]


def in_one_process():
    robots = EpisodeRunner(PROTOCOL, make_vector, make_policy, line_failure_inputs)
    return [result for cell in cells(PROTOCOL) for result in robots.run([cell]).results]


def test_fleets_agree_with_one_process(tmp_path):
    results = run(tmp_path)
    assert outcomes(results) == outcomes(in_one_process())
    assert stored(tmp_path / "episodes.jsonl") == {r.cell: r for r in results}
    assert len(list((tmp_path / "clips").iterdir())) == 4  # two tasks, a success and a failure of each


def test_a_killed_process_costs_only_the_cell_that_kills(tmp_path):
    deadly = functools.partial(make_vector, bad_seed=BAD.seed, how="exit")
    results = run(tmp_path, make_vector=deadly)
    for there, here in zip(results, in_one_process(), strict=True):
        if there.cell == BAD:
            assert there.error.startswith("its process died 3 times: The actor died unexpectedly")
            assert not there.partial_once
        else:
            assert outcomes([there]) == outcomes([here])


class Refuses(Forward):
    """Raises an error in these tasks."""

    def __init__(self, scene, tasks):
        super().__init__()
        self.refuses = scene.task in tasks

    def act(self, obs, info):
        if self.refuses:
            raise RuntimeError("no such layer")
        return super().act(obs, info)


def refuses(scene, num, *, tasks):
    return Refuses(scene, tasks)


def test_what_never_works_is_an_error_and_not_a_success_of_zero(tmp_path):
    for robots in (4, 1):
        with pytest.raises(
            TapRayError, match=r"^All of the first \d+ episodes crashed, each also alone; the last one: "
        ):
            run(
                tmp_path,
                make_policy=functools.partial(refuses, tasks=PROTOCOL.tasks),
                config=FleetConfig(fleets=2, robots=robots),
            )
    assert not (tmp_path / "episodes.jsonl").exists()  # so the same command, once that works, runs all of them
    results = run(tmp_path, make_policy=functools.partial(refuses, tasks=PROTOCOL.tasks[:1]))
    for there, here in zip(results, in_one_process(), strict=True):
        if there.cell.task == PROTOCOL.tasks[0]:
            assert (there.error, there.failure) == ("RuntimeError: no such layer", "crashed")
        else:
            assert outcomes([there]) == outcomes([here])


def test_more_fleets_than_cpus_do_not_wait_for_each_other(tmp_path):
    results = run(tmp_path, config=FleetConfig(fleets=5, robots=1))
    assert outcomes(results) == outcomes(in_one_process())


def make_counted(scene, num, folder):
    (folder / f"{time.time_ns()}-{os.getpid()}").write_text(str(num))
    return line_robots(num, scene)


def test_a_resumed_evaluation_runs_the_groups_that_miss_a_result_as_they_were(tmp_path):
    """Six cells of a task are two groups of three: in two of the four one is missing, and only that is stored."""
    expected = in_one_process()
    missing = [expected[1], expected[7]]
    append(tmp_path / "episodes.jsonl", [replace(r, num_clipped=77) for r in expected if r not in missing])
    made = tmp_path / "made"
    made.mkdir()
    results = run(tmp_path, make_vector=functools.partial(make_counted, folder=made))
    assert [r.num_clipped for r in results] == [0 if r in missing else 77 for r in expected]
    assert [file.read_text() for file in made.iterdir()] == ["3", "3"]
    for file in made.iterdir():
        file.unlink()
    assert run(tmp_path, make_vector=functools.partial(make_counted, folder=made)) == results
    assert not list(made.iterdir())


def test_results_of_other_cells_are_left_alone(tmp_path):
    append(tmp_path / "episodes.jsonl", in_one_process())
    smaller = evaluate(
        replace(PROTOCOL, tasks=("other",)),
        make_vector=make_vector,
        make_policy=make_policy,
        make_failure_inputs=line_failure_inputs,
        folder=tmp_path,
    )
    assert [r.cell.task for r in smaller] == ["other"] * 6


def no_policy(scene, num):
    raise CheckpointError("runs/x has no weights: train it again.")


def test_a_policy_that_cannot_be_loaded_ends_the_evaluation(tmp_path):
    with pytest.raises(CheckpointError, match=r"^runs/x has no weights: train it again\.$"):
        run(tmp_path, make_policy=no_policy)
    assert not (tmp_path / "episodes.jsonl").exists()


def deadly_policy(scene, num):
    os._exit(1)


def test_fleets_that_die_at_once_end_the_evaluation(tmp_path):
    with pytest.raises(TapRayError, match=r"^4 fleets in a row died while they started \(out of memory\?\): The actor"):
        run(tmp_path, make_policy=deadly_policy)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (
            1.0,
            "^--gpus-per-fleet 1: 1 process with that many GPUs cannot be placed: the Ray cluster has 0 GPUs, at most "
            "0 on one machine, and no autoscaler. Request fewer",
        ),
        (1.5, "a fraction of one GPU, or a whole number of GPUs; got 1.5"),
        (-1.0, "got -1"),
    ],
)
def test_gpus_that_no_machine_has(tmp_path, gpus, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, config=FleetConfig(gpus=gpus))


def test_robots_that_need_a_gpu_reserve_one_beside_the_processes_of_the_policy(tmp_path):
    validate_settings(FleetConfig(gpus=0.5, gpu_scenes=True, inference=InferenceConfig(actors=1, gpus=0.5)))
    with pytest.raises(ConfigError, match=r"or a simulator that needs no GPU \(--sim maniskill\)\.$"):
        run(tmp_path, config=FleetConfig(gpus=1.0, gpu_scenes=True))


@pytest.mark.parametrize("config", [FleetConfig(fleets=-1), FleetConfig(robots=0)])
def test_fleets_that_make_no_sense(tmp_path, config):
    with pytest.raises(ConfigError, match="--fleets must be at least 0 and --robots-per-fleet at least 1; got "):
        run(tmp_path, config=config)
