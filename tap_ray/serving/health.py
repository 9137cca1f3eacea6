"""Checks readiness: whether the policy answers, known from the robots' requests or, without recent ones, from a
probe."""

import asyncio
import time

import numpy as np

from tap_ray.models.chunk_buffer import PolicyInput
from tap_ray.serving.request_error import LATE, RequestError
from tap_ray.serving.sessions import ComputeChunk

HEARTBEAT_S = 2.0
"""Longest time without a request to the network, s; then a probe is sent."""
RETRY_S = 0.2
"""Time between two probes while the network does not answer, s."""


class HealthMonitor:
    """Sends the sessions' requests to the network, and remembers whether it answers."""

    def __init__(self, compute_chunk: ComputeChunk, probe: PolicyInput) -> None:
        """
        Args:
            compute_chunk: computes a chunk of actions with the network.
            probe: the input of our own requests, see `Contract.probe`.
        """
        self._compute_chunk, self._probe = compute_chunk, probe
        self._answered_at = -float("inf")
        self.trouble: str | None = "the network has not answered yet"
        """Why the last request failed; None if it succeeded."""

    async def compute_chunk(self, one: PolicyInput) -> np.ndarray:
        """The network's chunk of actions (H, A); raises RequestError as it does."""
        try:
            chunk_HA = await self._compute_chunk(one)
        except RequestError as error:
            if one is self._probe or error.status == LATE:  # other errors may be caused by the robot's input
                self.trouble = error.message
            raise
        self.trouble, self._answered_at = None, time.monotonic()
        return chunk_HA

    async def run(self) -> None:
        """Send the probe whenever there is no recent answer, until cancelled."""
        while True:
            if self.trouble or time.monotonic() - self._answered_at > HEARTBEAT_S:
                try:
                    await self.compute_chunk(self._probe)
                except RequestError:
                    await asyncio.sleep(RETRY_S)
                    continue
            await asyncio.sleep(HEARTBEAT_S)
