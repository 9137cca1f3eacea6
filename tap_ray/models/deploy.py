"""A trained policy that acts: batched over N robots, deterministic, in the units of its robot's spec."""

import time
from collections import deque
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import Trained, load_trained
from tap_ray.models.language import encode
from tap_ray.specs import RobotSpec
from tap_ray.types import Info, Observation


class Deployed:
    """A `types.Policy`: predicts a chunk, carries out its first steps, looks again. With a history it remembers."""

    def __init__(
        self, trained: Trained, *, execute: int | None = None, remember: bool = True, device: str = "cpu"
    ) -> None:
        """
        Args:
            trained: with an instruction as context.
            execute: actions of a chunk carried out before it looks again; None: as its config says.
            remember: False leaves the history out of a policy that has one.
            device: where to compute.

        Raises:
            ConfigError: `execute` does not fit the chunk, or the policy follows goal images.
        """
        config = trained.policy.config
        self.execute = config.execute if execute is None else execute
        if not 1 <= self.execute <= config.chunk:
            raise ConfigError(f"execute must be 1 .. {config.chunk} (the policy's chunk); got {self.execute}.")
        if trained.tokenizer is None:
            raise ConfigError(
                "This policy follows goal images (Stage 1). Align it with demonstrations before using it."
            )
        self._trained, self._device = trained, torch.device(device)
        self._policy = trained.policy.eval().to(self._device)
        self._gripper = np.array([slot.name.endswith("gripper") for slot in trained.spec.action])
        self._chunk_NHA = np.empty((0, 0, 0), np.float32)
        self._used = 0
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=config.history if remember else 0)
        self._state_NS = np.empty((0, 0), np.float32)
        self._draw: list[np.random.Generator] = []

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Forget the last episode. Only a flow head draws noise: each robot its own, from its seed."""
        self._used = self.execute
        self._past.clear()
        self._state_NS = np.empty((0, 0), np.float32)
        self._draw = [np.random.default_rng(seed) for seed in seeds]

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) float32 actions; the gripper is exactly +1 or -1. The robot clips, and counts what it had to clip."""
        if self._past.maxlen and len(self._state_NS):
            self._past.append((self._state_NS, np.array(info["action"], np.float32)))
        self._state_NS = np.array(obs["state"], np.float32)
        if self._used >= self.execute or len(self._chunk_NHA) != len(obs["rgb"]):
            self._chunk_NHA = self.chunk(obs["rgb"], obs["state"], [str(s) for s in info["instruction"]])
            self._used = 0
        self._used += 1
        return self._chunk_NHA[:, self._used - 1]

    @torch.inference_mode()
    def chunk(self, rgb: np.ndarray, state: np.ndarray, instruction: Sequence[str]) -> np.ndarray:
        """(N, H, A) float32 actions for (N, Y, X, 3) uint8 images, (N, S) states and N sentences, here and now."""
        config = self._policy.config
        size = config.image_size
        if rgb.shape[1:] != (size, size, 3):
            raise ConfigError(f"This policy was trained on {size} x {size} images, these are {rgb.shape[1:]}.")
        assert self._trained.tokenizer is not None
        sentences, row = np.unique(np.asarray(instruction), return_inverse=True)
        tokens = encode(self._trained.tokenizer, sentences.tolist(), self._policy.config.num_context)
        batch = {
            "rgb": torch.from_numpy(np.ascontiguousarray(rgb)),
            "state": torch.from_numpy(np.asarray(state, np.float32)),
            "tokens": tokens,
            "sentence": torch.from_numpy(row),
        }
        if config.head == "flow":
            shape = (config.chunk, config.num_actions)
            noise = [rng.standard_normal(shape, np.float32) for rng in self._draw] or np.zeros((len(rgb), *shape))
            batch["noise"] = torch.from_numpy(np.asarray(noise, np.float32))
        if self._past.maxlen:
            batch |= self._history(len(rgb))
        out = self._policy({name: value.to(self._device) for name, value in batch.items()})
        action = self._policy.action_scale.inverse(out["action"]).cpu().numpy()
        action[..., self._gripper] = np.where(action[..., self._gripper] >= 0, 1.0, -1.0)
        return action

    def latency_ms(self, repeats: int = 30) -> float:
        """Median time of one look of one robot, ms; with a history, over a whole one."""
        config, spec = self._policy.config, self._trained.spec
        rgb = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
        state = np.zeros((1, len(spec.state)), np.float32)
        self.reset({}, {}, [0])
        self._past.extend([(state, np.zeros((1, len(spec.action)), np.float32))] * (self._past.maxlen or 0))
        took = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.chunk(rgb, state, ["put the spoon on the cloth"])
            took.append(1e3 * (time.perf_counter() - start))
        self._past.clear()
        return float(np.median(took))

    def _history(self, num: int) -> dict[str, torch.Tensor]:
        """The last P steps, as the windows of training have them."""
        config = self._policy.config
        missing = config.history - len(self._past)
        state = np.zeros((num, config.history, config.num_motion_states), np.float32)
        action = np.zeros((num, config.history, config.num_actions), np.float32)
        for step, (past_state, past_action) in enumerate(self._past, start=missing):
            state[:, step], action[:, step] = past_state, past_action
        there = np.repeat(np.arange(config.history)[None] >= missing, num, axis=0)
        arrays = {"past_state": state, "past_action": action, "past_mask": there}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_policy(run: Path, *, execute: int | None = None, device: str = "cpu") -> tuple[Deployed, RobotSpec]:
    """The policy of a finished training run, ready to act, and the interface it was trained for.

    Raises:
        CheckpointError: missing, cut off, or of another version.
        ConfigError: see `Deployed`.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run} does not exist. Give the folder that jobs.align printed as its last line.")
    trained = load_trained(run / "final")
    return Deployed(trained, execute=execute, device=device), trained.spec
