"""What one robot keeps between the steps of an episode, without torch: a server keeps it apart from the network."""

from collections import deque
from dataclasses import dataclass
from typing import Mapping

import numpy as np
from jaxtyping import Float32, UInt8


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Sizes of what a robot keeps."""

    chunk: int
    """Actions predicted at once (H)."""
    n_action_steps: int
    """Actions of a chunk that are carried out before the policy looks again."""
    history: int
    """Past steps (P) that are remembered; 0 none."""
    num_actions: int
    """Slots of an action (A)."""
    num_states: int
    """State slots (S) of a past step."""
    noise: bool
    """Whether each chunk starts from noise of the robot's own."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """All that one chunk of one robot follows from."""

    rgb: UInt8[np.ndarray, "Y X 3"]
    state: Float32[np.ndarray, "S"]
    instruction: str
    noise: Float32[np.ndarray, "H A"] | None
    """None where the policy draws none."""
    past: Mapping[str, np.ndarray] | None
    """"past_state" (P, S), "past_action" (P, A), "past_mask" (P,) as in `types.Window`; None without a history."""


class Memory:
    """The rest of a chunk, the last P steps, and the noise of one robot in one episode."""

    def __init__(self, recall: Recall, seed: int | None) -> None:
        """`seed` is that of the robot's own noise; None stands for noise that is zero."""
        self._recall = recall
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._chunk_HA = np.empty((0, recall.num_actions), np.float32)
        self._used = recall.n_action_steps
        self._state_S: np.ndarray | None = None
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=recall.history)

    def see(self, rgb: np.ndarray, state: np.ndarray, action: np.ndarray | None, instruction: str) -> Look | None:
        """Take in one step.

        Args:
            rgb: (Y, X, 3) uint8.
            state: (S,).
            action: (A,) the action before, as executed; read only with a history, and not at the first step.
            instruction: of the episode.

        Returns:
            What a new chunk is to follow from (give it to `keep`); None while the last one lasts.
        """
        if self._recall.history and self._state_S is not None:
            self._past.append((self._state_S, np.array(action, np.float32)))
        self._state_S = np.array(state, np.float32)
        if self._used < self._recall.n_action_steps:
            return None
        return Look(rgb=rgb, state=self._state_S, instruction=instruction, noise=self._noise(), past=self.past())

    def keep(self, chunk_HA: np.ndarray) -> None:
        """Begin a chunk."""
        self._chunk_HA, self._used = chunk_HA, 0

    def act(self) -> np.ndarray:
        """(A,) the next action of the chunk."""
        self._used += 1
        return self._chunk_HA[self._used - 1]

    def past(self) -> dict[str, np.ndarray] | None:
        """The last P steps, as the windows of training have them."""
        size = self._recall
        if not size.history:
            return None
        missing = size.history - len(self._past)
        state = np.zeros((size.history, size.num_states), np.float32)
        action = np.zeros((size.history, size.num_actions), np.float32)
        for step, (past_state, past_action) in enumerate(self._past, start=missing):
            state[step], action[step] = past_state, past_action
        return {"past_state": state, "past_action": action, "past_mask": np.arange(size.history) >= missing}

    def _noise(self) -> np.ndarray | None:
        shape = (self._recall.chunk, self._recall.num_actions)
        if not self._recall.noise:
            return None
        return np.zeros(shape, np.float32) if self._rng is None else self._rng.standard_normal(shape, np.float32)
