"""Keeps the rest of a robot's chunk, its last steps and its noise; without torch, for servers and fleets."""

from collections import deque
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from tap_ray.types import Info, Observation


@dataclass(frozen=True, kw_only=True)
class ChunkingSpec:
    """Sizes of an action chunk, of its history and of its noise."""

    chunk: int
    """Actions predicted at once (H)."""
    n_action_steps: int
    """Actions of a chunk that are executed before the next chunk is predicted."""
    history: int
    """Past steps (P) that the policy reads; 0: none."""
    num_actions: int
    """Slots of an action (A)."""
    num_states: int
    """State slots (S) of a past step."""
    noise: bool
    """Whether each chunk starts from noise of the robot's own."""


@dataclass(frozen=True, kw_only=True)
class PolicyInput:
    """The policy's input for one action chunk of one robot."""

    rgb: UInt8[np.ndarray, "Y X 3"]
    state: Float32[np.ndarray, "S"]
    instruction: str
    noise: Float32[np.ndarray, "H A"] | None
    """Noise that the flow starts from; None if the policy uses none."""
    extra_rgb: UInt8[np.ndarray, "V Y X 3"] | None = None
    """Images of the other cameras; None where there is one."""
    past: Mapping[str, np.ndarray] | None
    """"past_state" (P, S), "past_action" (P, A), "past_mask" (P,) as in `types.Window`; None without a history."""


class ActionChunkBuffer:
    """The remaining actions of a chunk, the last P steps, and the noise of one robot in one episode."""

    def __init__(self, chunking: ChunkingSpec, seed: int | None) -> None:
        """`seed` is the random seed of the robot's noise; with None the noise is zero."""
        self._spec = chunking
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._chunk_HA = np.empty((0, chunking.num_actions), np.float32)
        self._used = chunking.n_action_steps
        self._state_S: np.ndarray | None = None
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=chunking.history)

    def observe(
        self,
        rgb: np.ndarray,
        state: np.ndarray,
        action: np.ndarray | None,
        instruction: str,
        extra_rgb: np.ndarray | None = None,
    ) -> PolicyInput | None:
        """Add one step.

        Args:
            rgb: (Y, X, 3) uint8.
            state: (S,).
            action: (A,) the action before, as executed; read only with a history, and not at the first step.
            instruction: the episode's instruction.
            extra_rgb: (V, Y, X, 3) uint8, the other cameras.

        Returns:
            The input for the next chunk (pass that chunk to `set_chunk`); None while the current chunk has actions
                left.
        """
        if self._spec.history and self._state_S is not None:
            self._past.append((self._state_S, np.array(action, np.float32)))
        self._state_S = np.array(state, np.float32)
        if self._used < self._spec.n_action_steps:
            return None
        return PolicyInput(
            rgb=rgb,
            extra_rgb=extra_rgb,
            state=self._state_S,
            instruction=instruction,
            noise=self._noise(),
            past=self.past(),
        )

    def set_chunk(self, chunk_HA: np.ndarray) -> None:
        """Begin a chunk."""
        self._chunk_HA, self._used = chunk_HA, 0

    def next_action(self) -> np.ndarray:
        """(A,) the next action of the chunk."""
        self._used += 1
        return self._chunk_HA[self._used - 1]

    def past(self) -> dict[str, np.ndarray] | None:
        """The last P steps, in the format of the training windows."""
        size = self._spec
        if not size.history:
            return None
        missing = size.history - len(self._past)
        state = np.zeros((size.history, size.num_states), np.float32)
        action = np.zeros((size.history, size.num_actions), np.float32)
        for step, (past_state, past_action) in enumerate(self._past, start=missing):
            state[step], action[step] = past_state, past_action
        return {"past_state": state, "past_action": action, "past_mask": np.arange(size.history) >= missing}

    def _noise(self) -> np.ndarray | None:
        shape = (self._spec.chunk, self._spec.num_actions)
        if not self._spec.noise:
            return None
        return np.zeros(shape, np.float32) if self._rng is None else self._rng.standard_normal(shape, np.float32)


ComputeChunks = Callable[[Sequence[PolicyInput]], np.ndarray]
"""N robots' inputs -> (N, H, A) float32 actions; a pure function."""


class ChunkedPolicy:
    """A `types.Policy`: carries out the first steps of each robot's chunk, then has the next one computed."""

    def __init__(self, chunking: ChunkingSpec, chunks: ComputeChunks) -> None:
        self.chunking, self._chunks = chunking, chunks
        self.buffers: list[ActionChunkBuffer] = []

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Forget the last episode. Only a flow head draws noise: each robot its own, from its seed."""
        self.buffers = [ActionChunkBuffer(self.chunking, seed) for seed in seeds]

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) float32 actions."""
        num = len(obs["rgb"])
        if len(self.buffers) != num:
            self.buffers = [ActionChunkBuffer(self.chunking, None) for _ in range(num)]
        executed = info.get("action", [None] * num)
        extra = obs.get("extra_rgb", [None] * num)
        seen = zip(self.buffers, obs["rgb"], obs["state"], executed, info["instruction"], extra, strict=True)
        inputs = [
            (buffer, buffer.observe(rgb, state, act, str(words), more)) for buffer, rgb, state, act, words, more in seen
        ]
        due = [(buffer, one) for buffer, one in inputs if one is not None]
        if due:
            for (buffer, _), chunk in zip(due, self._chunks([one for _, one in due]), strict=True):
                buffer.set_chunk(chunk)
        return np.stack([buffer.next_action() for buffer in self.buffers])
