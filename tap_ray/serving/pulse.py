"""Whether the network answers: the robots' own looks tell, and a look of ours where none of theirs came lately."""

import asyncio
import time

import numpy as np

from tap_ray.models.memory import Look
from tap_ray.serving.refusal import LATE, Refusal
from tap_ray.serving.sessions import Looks

BEAT_S = 2.0
"""How long the network may go unasked, s."""
RETRY_S = 0.2
"""Between two tries while it does not answer, s."""


class Pulse:
    """Stands between the sessions and the network."""

    def __init__(self, look: Looks, probe: Look) -> None:
        """
        Args:
            look: asks the network.
            probe: our own look, see `Contract.probe`.
        """
        self._look, self._probe = look, probe
        self._answered_at = -float("inf")
        self.trouble: str | None = "the network has not answered yet"
        """Why the last look failed; None: it did not."""

    async def look(self, one: Look) -> np.ndarray:
        """As the network answers."""
        try:
            chunk_HA = await self._look(one)
        except Refusal as refusal:
            if one is self._probe or refusal.status == LATE:  # what else fails may be the robot's own
                self.trouble = refusal.message
            raise
        self.trouble, self._answered_at = None, time.monotonic()
        return chunk_HA

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            if self.trouble or time.monotonic() - self._answered_at > BEAT_S:
                try:
                    await self.look(self._probe)
                except Refusal:
                    await asyncio.sleep(RETRY_S)
                    continue
            await asyncio.sleep(BEAT_S)
