"""A driver to be killed: trains the toy task under a local Ray of its own, or on the cluster of RAY_ADDRESS,
or with "here FILE" as its last arguments without Ray, waiting after its first checkpoint until the file is gone."""

import sys
from pathlib import Path

import ray.cloudpickle
import toy_training

from tap_ray import storage
from tap_ray.distributed.connect import connect
from tap_ray.distributed.train import train
from tap_ray.settings import WorkersConfig
from tap_ray.training import session

if __name__ == "__main__":
    run, data, steps = storage.to_path(sys.argv[1]), storage.to_path(sys.argv[2]), int(sys.argv[3])
    here = sys.argv[4:5] == ["here"]
    task = toy_training.toy_task(run, data, ray=not here, steps=steps, every=10, pause_s=0.03)
    if here:
        session.work(toy_training.held(task, Path(sys.argv[5])))
    else:
        ray.cloudpickle.register_pickle_by_value(toy_training)
        with connect(num_cpus=2):
            train(task, WorkersConfig(), progress=False)
