"""Evaluates your own policy, any class with `reset` and `act`, on the same cells as every other policy.

python examples/own_policy.py CELLS_OF_EACH_TASK
"""

import sys

import numpy as np

import envs
from tap_ray.evaluate.protocol import Protocol, cells, policy_seed
from tap_ray.metrics import wilson
from tap_ray.rollout import rollout


class Down:
    """Lowers the open gripper, closes it after 20 steps, and lifts it again."""

    def reset(self, obs, info, seeds):
        self.step = 0

    def act(self, obs, info):
        """(N, 7): motion of the end effector in m and rad, base frame; gripper +1 open, -1 closed."""
        self.step += 1
        action = np.zeros((len(obs["rgb"]), 7), np.float32)
        action[:, 2] = -0.01 if self.step < 20 else 0.01
        action[:, 6] = 1.0 if self.step < 20 else -1.0
        return action


protocol = Protocol(tasks=("put_carrot_on_plate", "put_spoon_on_cloth"), env_version=envs.VERSION, seed=0,
                    episodes=int(sys.argv[1]))  # fmt: skip
for task in protocol.tasks:
    task_cells = [cell for cell in cells(protocol) if cell.task == task]
    num = len(task_cells)
    robots = envs.make_vector(protocol.env_config(task, "standard"), num)
    seeds = [policy_seed(protocol.seed, cell) for cell in task_cells]
    episodes = rollout(robots, Down(), env_seeds=[cell.seed for cell in task_cells], policy_seeds=seeds).trajectories
    partial, entire = (sum(bool(getattr(one, name).any()) for one in episodes) for name in ("partial", "entire"))
    print(f"{task}: partial {partial}/{num}, 95 % {wilson(partial, num)}; entire {entire}/{num}")
