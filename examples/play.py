"""Plays in ten lines: three robots seek contact with the objects on their tables, for one episode each.

python examples/play.py PLAY.mp4
"""

import sys

import imageio.v3 as imageio
import numpy as np

import envs
from tap_ray.play.explorers import ExplorerConfig, make_explorer
from tap_ray.rollout import PerRobot, rollout
from tap_ray.types import EnvConfig

robots, arm = envs.make_vector(EnvConfig(), 3), envs.spec(EnvConfig()).arms[0]
nothing = {"library_M7": np.zeros((0, 7)), "visits": {}}
explorers = [make_explorer("contact", ExplorerConfig(), arm=arm, **nothing) for _ in range(3)]
played = rollout(robots, PerRobot(explorers), env_seeds=[0, 1, 2], policy_seeds=[0, 1, 2])
for one in played.trajectories:
    print(f"{' '.join(one.object_name)}: touching for {100 * one.contact.mean():.0f} % of {len(one.action)} steps")
imageio.imwrite(sys.argv[1], np.concatenate([one.rgb for one in played.trajectories], axis=2), fps=5)
