"""Trains Stage 1 and Stage 2 in one process, without Ray, with the same objectives, windows and loop as the jobs.

python examples/train_without_ray.py PLAY DEMOS RUN STEPS

PLAY is a folder of jobs.collect_play whose crops jobs.cut_crops has cut, DEMOS one of jobs.collect_demos.
"""

import sys
from pathlib import Path

import torch

from tap_ray.align import demos as stage_2
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.pretrain import from_play as stage_1
from tap_ray.training.loop import Hooks, TrainConfig, fit

torch.set_num_threads(1)
play, demos = (open_dataset(Path(folder)) for folder in sys.argv[1:3])
run, train = Path(sys.argv[3]), TrainConfig(steps=int(sys.argv[4]), batch_size=32, log_every=10)


def learn(stage, dataset, windows):
    log = Hooks(log=lambda metrics, step: print(step, {name: round(value, 3) for name, value in metrics.items()}))
    fit(stage.model.network, iterate(dataset, windows, seed=0), stage.objective, train, hooks=log)
    print(stage.validate())


objective = stage_1.ObjectiveConfig()
windows = objective.windows(WindowConfig(batch_size=32, holdout_every=5))
stage = stage_1.from_dataset(play, windows, policy=PolicyConfig(), config=objective, seed=0)
learn(stage, play, windows)
stage.save(run / "moves")

config = stage_2.AlignConfig()
windows = stage_2.resolve_windows(WindowConfig(batch_size=32, holdout_every=5), config.weights)
stage, loaded = stage_2.from_dataset(
    demos, windows, policy=PolicyConfig(), config=config, start=stage_2.StartFrom(init=run / "moves"), seed=0
)
print(loaded)
learn(stage, demos, windows)
print(stage.save(run / "tap"))
