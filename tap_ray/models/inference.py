"""Inference of a trained policy: batched over N robots, deterministic, in the units of its robot's spec."""

import time
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import PolicyBundle, load_bundle
from tap_ray.models.chunk_buffer import ActionChunkBuffer, ChunkedPolicy, ChunkingSpec, PolicyInput
from tap_ray.models.language import encode
from tap_ray.models.precision import acting_bf16, autocast
from tap_ray.specs import RobotSpec
from tap_ray.types import Info, Observation


class PolicyRunner:
    """A `types.Policy` that predicts a chunk, executes its first steps, and predicts the next."""

    def __init__(
        self, bundle: PolicyBundle, *, n_action_steps: int | None = None, remember: bool = True, device: str = "cpu"
    ) -> None:
        """
        Args:
            bundle: a policy with an instruction as context.
            n_action_steps: actions of a chunk that are executed before the next is predicted; None: as its config says.
            remember: False runs a policy with a history without it.
            device: torch device.

        Raises:
            ConfigError: `n_action_steps` does not fit the chunk, or the policy is Stage 1's.
        """
        config = bundle.network.config
        self.n_action_steps = config.n_action_steps if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= config.chunk:
            raise ConfigError(
                f"n_action_steps must be 1 .. {config.chunk} (the policy's chunk); got {self.n_action_steps}."
            )
        if bundle.tokenizer is None:
            raise ConfigError(
                "This is a Stage 1 policy, which follows crops or goal images instead of instructions. Align it with "
                "demonstrations (jobs.align) before using it."
            )
        self.bundle, self._device = bundle, torch.device(device)
        self._policy = bundle.network.eval().to(self._device)
        self._gripper = list(bundle.spec.grippers)
        self.chunking = ChunkingSpec(
            chunk=config.chunk,
            n_action_steps=self.n_action_steps,
            history=config.history if remember else 0,
            num_actions=config.num_actions,
            num_states=config.num_motion_states,
            noise=config.head == "flow",
        )
        self._acting = ChunkedPolicy(self.chunking, self.chunks)

    @property
    def buffers(self) -> list[ActionChunkBuffer]:
        """Each robot's."""
        return self._acting.buffers

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """See `ChunkedPolicy.reset`."""
        self._acting.reset(obs, info, seeds)

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) float32 actions; the gripper is exactly +1 or -1. The environment clips them, and counts clipped
        actions."""
        return self._acting.act(obs, info)

    def chunk(
        self, rgb: np.ndarray, state: np.ndarray, instruction: Sequence[str], extra_rgb: np.ndarray | None = None
    ) -> np.ndarray:
        """(N, H, A) float32 actions for (N, Y, X, 3) uint8 images, (N, S) states and N sentences, without a past; with
        several cameras also the others' (N, V, Y, X, 3) images."""
        seen = zip(rgb, state, instruction, [None] * len(rgb) if extra_rgb is None else extra_rgb, strict=True)
        inputs = [
            ActionChunkBuffer(self.chunking, None).observe(image, slots, None, words, more)
            for image, slots, words, more in seen
        ]
        return self.chunks([one for one in inputs if one is not None])

    def require_read(self, instruction: str) -> None:
        """Raise ConfigError if an instruction is longer than the policy reads."""
        assert self.bundle.tokenizer is not None
        encode(self.bundle.tokenizer, [instruction], self._policy.config.num_context)

    @torch.inference_mode()
    def chunks(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        """(N, H, A) float32 actions, physical units, for N robots' inputs. Pure: the same inputs give the same bits.

        Raises:
            ConfigError: the images have another size, or an instruction is longer than the policy reads.
        """
        size = self._policy.config.image_size
        rgb = np.stack([one.rgb for one in inputs])
        if rgb.shape[1:] != (size, size, 3):
            raise ConfigError(f"This policy was trained on {size} x {size} images; got {rgb.shape[1:]}.")
        cameras = self.bundle.spec.cameras
        if any((0 if one.extra_rgb is None else len(one.extra_rgb)) != len(cameras) - 1 for one in inputs):
            raise ConfigError(
                f"This policy needs images of the cameras {', '.join(cameras)}; got images of other cameras."
            )
        assert self.bundle.tokenizer is not None
        sentences, row = np.unique([one.instruction for one in inputs], return_inverse=True)
        batch = {"rgb": rgb, "state": np.stack([one.state for one in inputs]).astype(np.float32), "sentence": row}
        if len(cameras) > 1:
            batch["extra_rgb"] = np.stack([one.extra_rgb for one in inputs])  # pyright: ignore[reportCallIssue, reportArgumentType]
        if self.chunking.noise:
            batch["noise"] = np.stack([one.noise for one in inputs])  # pyright: ignore[reportCallIssue, reportArgumentType]
        if self.chunking.history:
            pasts = [one.past or {} for one in inputs]
            batch |= {name: np.stack([past[name] for past in pasts]) for name in pasts[0]}
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        tensors["tokens"] = encode(self.bundle.tokenizer, sentences.tolist(), self._policy.config.num_context)
        kept = self._policy.on_cpu
        with autocast(acting_bf16(self._policy, self._device), self._device):
            out = self._policy(
                {name: value if name in kept else value.to(self._device) for name, value in tensors.items()}
            )
        action = self._policy.action_scale.unnormalize(out["action"]).cpu().numpy()
        action[..., self._gripper] = np.where(action[..., self._gripper] >= 0, 1.0, -1.0)
        return action

    def latency_ms(self, repeats: int = 30) -> float:
        """Median time to compute one chunk of one robot, ms; with a full history if it reads one."""
        config, spec = self._policy.config, self.bundle.spec
        rgb = np.zeros((config.image_size, config.image_size, 3), np.uint8)
        state, action = np.zeros(len(spec.state), np.float32), np.zeros(len(spec.action), np.float32)
        buffer, one = ActionChunkBuffer(self.chunking, 0), None
        extra = np.repeat(rgb[None], len(spec.cameras) - 1, axis=0) if len(spec.cameras) > 1 else None
        for _ in range(self.chunking.history + 1):
            one = buffer.observe(rgb, state, action, "put the spoon on the cloth", extra)
        assert one is not None
        took = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.chunks([one])
            took.append(1e3 * (time.perf_counter() - start))
        return float(np.median(took))


def load_policy(run: Path, *, n_action_steps: int | None = None, device: str = "cpu") -> tuple[PolicyRunner, RobotSpec]:
    """The policy of a finished training run, ready to act, and the interface it was trained for.

    Raises:
        CheckpointError: the run is missing, truncated, or of another version.
        ConfigError: see `PolicyRunner`.
    """
    if not run.is_dir():
        raise CheckpointError(
            f"{run} does not exist. Give the run folder of jobs.align (the last line that it prints)."
        )
    bundle = load_bundle(run / "final")
    return PolicyRunner(bundle, n_action_steps=n_action_steps, device=device), bundle.spec
