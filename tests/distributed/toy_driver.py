"""A driver to be killed: trains the toy task under a local Ray of its own, or on the cluster of RAY_ADDRESS."""

import sys

import ray.cloudpickle
import toy_training

from tap_ray import storage
from tap_ray.distributed.connect import connect
from tap_ray.distributed.settings import WorkersConfig
from tap_ray.distributed.train import train

if __name__ == "__main__":
    run, data, steps = storage.at(sys.argv[1]), storage.at(sys.argv[2]), int(sys.argv[3])
    ray.cloudpickle.register_pickle_by_value(toy_training)
    with connect(num_cpus=2):
        task = toy_training.toy_task(run, data, ray=True, steps=steps, every=10, pause_s=0.03)
        train(task, WorkersConfig(), progress=False)
