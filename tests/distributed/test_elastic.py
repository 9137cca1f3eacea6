"""Training with fewer workers than asked for, on a cluster that loses machines."""

import sys
from pathlib import Path

import pytest
import ray.cloudpickle

from tap_ray.distributed.connect import connect
from tap_ray.distributed.train import train
from tap_ray.runs import read_json
from tap_ray.settings import WorkersConfig
from tap_ray.training import session
from tests.distributed import toy_training as toy
from tests.distributed.nodes import meanwhile, nodes, wait_for
from tests.distributed.toy_training import toy_task

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.long_proof,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own log files of killed nodes
]


def test_training_goes_on_with_two_workers_where_there_is_no_room_for_three(tmp_path: Path, toy_dataset: Path):
    """A job takes half of each machine; the one with one CPU that is left of three has room for two workers in all."""
    for module in (toy, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # the workers need not find our tests
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=40, every=10)
    hold = tmp_path / "hold"
    with nodes() as cluster, connect(cluster.address):
        machines = [cluster.add("train", cpus=1) for _ in range(3)]

        def lose_two() -> None:
            try:
                wait_for(lambda: session.newest_step(task.run) == 10)
                for machine in machines[1:]:
                    cluster.kill(machine)
            finally:
                hold.unlink()

        with meanwhile(lose_two):
            train(toy.held(task, hold), WorkersConfig(num_workers=3, min_workers=1), progress=False)

    kept = read_json(task.run / "checkpoints" / "step-00000040" / "state.json")
    assert kept["batches"] == [[3, 10], [2, 30]]
    assert [line["step"] for line in session.read_metrics(task.run / "metrics.jsonl") if "toy/loss" in line] == [
        *range(1, 41)
    ]
