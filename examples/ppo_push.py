"""Trains PPO, in one file, on the push task from states: `python examples/ppo_push.py [SECONDS [SEED]]`.

It prints a line after the first update and then every few updates: the mean dense reward per step, how far the pumpkin
was pushed (m, of 0.1) and the share of episodes that succeed. Nothing of tap_ray's own training is used: only the
Gymnasium id.
"""

import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Normal

import envs  # noqa: F401  registers the ids

ROBOTS, STEPS, EPOCHS, PARTS = 8, 60, 6, 6
GAMMA, LAMBDA, CLIP, ENTROPY = 0.97, 0.95, 0.2, 0.001


def make_robots() -> gym.vector.VectorEnv:
    """Make robots whose observation is one vector of states and object poses, with actions in -1 .. 1 and no camera."""
    return gym.make_vec(
        "tap_ray/PushPumpkinLeft-v0",
        ROBOTS,
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[
            lambda env: gym.wrappers.FilterObservation(env, ["state", "object_pose"]),
            gym.wrappers.FlattenObservation,
            lambda env: gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)),
        ],
        render=False,
        reward="dense",
        objects=True,
        max_steps=STEPS,
    )


class Agent(nn.Module):
    """The policy and the value function."""

    def __init__(self, num_obs: int, num_actions: int) -> None:
        super().__init__()
        self.actor, self.critic = layers(num_obs, num_actions, 0.01), layers(num_obs, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((num_actions,), -0.5))

    def forward(self, obs: Tensor) -> tuple[Normal, Tensor]:
        return Normal(self.actor(obs), self.log_std.exp()), self.critic(obs).squeeze(-1)


def layers(num_in: int, num_out: int, gain: float) -> nn.Sequential:
    last = nn.Linear(64, num_out)
    nn.init.orthogonal_(last.weight, gain)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_in, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), last)


def play(robots: gym.vector.VectorEnv, agent: Agent, obs: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray, Any]:
    """Run one whole episode of each robot: observations, actions and rewards (T, N, ...), and the next initial
    observation."""
    rows: list[list[Tensor]] = []
    infos: Any = {}
    for _ in range(STEPS):
        seen = torch.as_tensor(obs, dtype=torch.float32)
        with torch.no_grad():
            choice, value = agent(seen)
        action = choice.sample()
        obs, reward, _, _, infos = robots.step(action.clamp(-1, 1).numpy())
        paid = torch.as_tensor(reward, dtype=torch.float32)
        rows.append([seen, action, choice.log_prob(action).sum(-1), value, paid])
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return dict(zip(("obs", "action", "log_prob", "value", "reward"), columns, strict=True)), obs, infos


def advantages(batch: dict[str, Tensor], last_value: Tensor) -> Tensor:
    """(T, N) generalized advantage estimates. The time limit does not end the task, so the value after it counts."""
    ahead, found = torch.zeros_like(last_value), []
    for step in reversed(range(STEPS)):
        error = batch["reward"][step] + GAMMA * last_value - batch["value"][step]
        ahead = error + GAMMA * LAMBDA * ahead
        last_value = batch["value"][step]
        found.append(ahead)
    return torch.stack(found[::-1])


def improve(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], advantage: Tensor) -> None:
    """Optimize the clipped objective for several epochs."""
    flat = {key: value.flatten(0, 1) for key, value in (batch | {"advantage": advantage}).items()}
    flat["returns"] = flat["advantage"] + flat["value"]
    flat["advantage"] = (flat["advantage"] - flat["advantage"].mean()) / (flat["advantage"].std() + 1e-8)
    for _ in range(EPOCHS):
        for rows in torch.randperm(ROBOTS * STEPS).chunk(PARTS):
            part = {key: value[rows] for key, value in flat.items()}
            choice, value = agent(part["obs"])
            ratio = (choice.log_prob(part["action"]).sum(-1) - part["log_prob"]).exp()
            gain = torch.min(ratio * part["advantage"], ratio.clamp(1 - CLIP, 1 + CLIP) * part["advantage"]).mean()
            loss = 0.5 * (value - part["returns"]).pow(2).mean() - gain - ENTROPY * choice.entropy().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main(seconds: int = 300, seed: int = 0) -> None:
    """Train for a given time, s."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    robots = make_robots()
    space: Any = robots.single_observation_space
    agent = Agent(space.shape[0], robots.single_action_space.shape[0])  # pyright: ignore[reportOptionalSubscript]
    optimizer = torch.optim.Adam(agent.parameters(), 5e-4)
    obs, _ = robots.reset(seed=seed)
    start, next_line, steps = time.monotonic(), 0.0, 0
    row: list[list[float]] = []
    while (now := time.monotonic() - start) < seconds:
        batch, obs, infos = play(robots, agent, obs)
        steps += ROBOTS * STEPS
        final = infos["final_info"]
        pushed = np.array(final["object_pose"])[:, 0, 1] - batch["obs"][0, :, 1].numpy()
        row.append([float(batch["reward"].mean()), float(pushed.mean()), float(np.mean(final["entire_once"]))])
        with torch.no_grad():
            behind = torch.stack([torch.as_tensor(each) for each in infos["final_obs"]]).float()
            advantage = advantages(batch, agent(behind)[1])
        improve(agent, optimizer, batch, advantage)
        if now >= next_line:
            reward, push_m, success = np.mean(row, axis=0)
            print(f"{now:5.0f} s {steps:7d} steps  reward {reward:.3f}  pushed {push_m:+.3f} m  success {success:.2f}")
            next_line, row = now + seconds / 20, []
    robots.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
