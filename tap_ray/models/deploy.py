"""A trained policy that acts: batched over N robots, deterministic, in the units of its robot's spec."""

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
    """A `types.Policy`: predicts a chunk, carries out its first steps, looks again."""

    def __init__(self, trained: Trained, *, execute: int | None = None, device: str = "cpu") -> None:
        """
        Args:
            trained: with an instruction as context.
            execute: actions of a chunk carried out before it looks again; None: as its config says.
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

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Forget the chunks of the last episode. The seeds are not used: nothing here is random."""
        self._used = self.execute

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) float32 actions; the gripper is exactly +1 or -1. The robot clips, and counts what it had to clip."""
        if self._used >= self.execute or len(self._chunk_NHA) != len(obs["rgb"]):
            self._chunk_NHA = self.chunk(obs["rgb"], obs["state"], [str(s) for s in info["instruction"]])
            self._used = 0
        self._used += 1
        return self._chunk_NHA[:, self._used - 1]

    @torch.inference_mode()
    def chunk(self, rgb: np.ndarray, state: np.ndarray, instruction: Sequence[str]) -> np.ndarray:
        """(N, H, A) float32 actions for (N, Y, X, 3) uint8 images, (N, S) states and N sentences."""
        size = self._policy.config.image_size
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
        out = self._policy({name: value.to(self._device) for name, value in batch.items()})
        action = self._policy.action_scale.inverse(out["action"]).cpu().numpy()
        action[..., self._gripper] = np.where(action[..., self._gripper] >= 0, 1.0, -1.0)
        return action


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
