"""Manages sessions: one per robot and episode, up to a limit, deleted when idle.

A session that began over a WebSocket ends with it, and when another one begins there. If all sessions are in use, the
one without a step for the longest time is ended.
"""

import asyncio
import copy
import reprlib
import secrets
import time
from typing import Any, Awaitable, Callable

import numpy as np

from tap_ray.models.chunk_buffer import ActionChunkBuffer, PolicyInput
from tap_ray.serving.connections import Connection
from tap_ray.serving.contract import Contract, Step
from tap_ray.serving.request_error import RequestError

ComputeChunk = Callable[[PolicyInput], Awaitable[np.ndarray]]
"""Function from one robot's input to (H, A) float32 actions."""
MAX_SEED = 2**63
SPARED_S = 10.0
"""A session with a step within this time, s, is never ended to make room for another."""


class Session:
    """One episode of one robot."""

    def __init__(self, buffer: ActionChunkBuffer, now: float, owner: Connection | None) -> None:
        self.buffer, self.used_at, self.owner = buffer, now, owner
        self.num_steps = 0
        self.last: np.ndarray | None = None
        self.turn = asyncio.Lock()


class Sessions:
    """All episodes in progress."""

    def __init__(
        self,
        contract: Contract,
        compute_chunk: ComputeChunk,
        *,
        limit: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            contract: the policy's interface.
            look: computes a chunk with the network.
            limit: largest number of sessions at a time.
            idle_s: a session without a step for this time, s, is deleted.
            clock: returns the time, s.
        """
        self._contract, self._compute_chunk, self._limit, self._idle_s, self._clock = (
            contract,
            compute_chunk,
            limit,
            idle_s,
            clock,
        )
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, request: Any, owner: Connection | None = None) -> str:
        """Begin a session for an episode, from {"spec": the robot's interface, "seed": seed of the policy's own noise}.

        With "previous_session": ID the session of the robot's last episode ends, if it has not already. `owner` is the
        client's WebSocket: it has one session at a time.

        Raises:
            RequestError: 422, the spec of another robot or no seed; 503, there are too many sessions.
        """
        if not isinstance(request, dict):
            raise RequestError(
                422, f'A session begins with a JSON object {{"spec": ..., "seed": 0}}; got {reprlib.repr(request)}.'
            )
        self._contract.require_spec(request.get("spec"))
        seed = request.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MAX_SEED:
            raise RequestError(
                422,
                f"seed: expected an integer in 0 .. 2^63 - 1; got {reprlib.repr(seed)}. Use another seed for each "
                "episode.",
            )
        self._forget_idle()
        previous = request.get("previous_session", request.get("ends"))  # its former name
        if isinstance(previous, str) and previous in self._open:
            self._drop(previous)
        if owner is not None:
            self.leave(owner)
        if len(self._open) >= self._limit:
            self._make_room()
        name = secrets.token_urlsafe(12)
        self._open[name] = Session(ActionChunkBuffer(self._contract.chunking, seed), self._clock(), owner)
        if owner is not None:
            owner.held = True
        return name

    def end(self, name: str) -> None:
        """End a session."""
        self._of(name)
        self._drop(name)

    def leave(self, owner: Connection) -> None:
        """End the session of a closed WebSocket."""
        for name in [name for name, session in self._open.items() if session.owner is owner]:
            self._drop(name)

    async def act(self, step: Step) -> tuple[np.ndarray, bool]:
        """Compute the robot's next action, (A,) float32, and whether the episode moved on.

        A repeated step gets the same answer and does not move the episode on.

        Raises:
            RequestError: 404, no such session; 409, not the next step; 500, the policy's action is not finite.
        """
        session = self._of(step.session)
        async with session.turn:
            session.used_at = self._clock()
            if step.number == session.num_steps - 1 and session.last is not None:
                return session.last, False
            if step.number != session.num_steps:
                raise RequestError(
                    409,
                    f"Session {step.session} expects step {session.num_steps}; got step {step.number}. Send every "
                    "step once and in order (only the last one may be repeated), or begin a session for a new episode.",
                )
            buffer = copy.deepcopy(session.buffer)  # a failed inference must not change the episode
            compute_chunk = buffer.observe(step.rgb, step.state, step.action, step.instruction, step.extra_rgb)
            if compute_chunk is not None:
                buffer.set_chunk(await self._compute_chunk(compute_chunk))
            action = buffer.next_action()
            if not np.isfinite(action).all():
                raise RequestError(
                    500, "The policy's action is NaN or infinite: its weights are damaged. Do not move the robot."
                )
            session.buffer, session.last, session.num_steps = buffer, action, session.num_steps + 1
            session.used_at = self._clock()
            return action, True

    def _of(self, name: str) -> Session:
        self._forget_idle()
        if name not in self._open:
            raise RequestError(
                404,
                f"Unknown session {name[:40]!r}: it was ended, its WebSocket closed, it was idle for more than "
                f"{self._idle_s:g} s ({SPARED_S:g} s if all sessions are in use), or the server was restarted. Begin "
                "a new session at the start of an episode.",
            )
        return self._open[name]

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._idle_s
        for name in [name for name, s in self._open.items() if s.used_at < oldest and not s.turn.locked()]:
            self._drop(name)

    def _make_room(self) -> None:
        name, longest = min(self._open.items(), key=lambda item: (item[1].turn.locked(), item[1].used_at))
        if longest.turn.locked() or longest.used_at > self._clock() - SPARED_S:
            raise RequestError(
                503,
                f"All {self._limit} sessions are in use, and each had a step within {SPARED_S:g} s. End one (DELETE "
                "/sessions/ID, or close its WebSocket), or start the server with a larger --sessions.",
            )
        self._drop(name)

    def _drop(self, name: str) -> None:
        owner = self._open.pop(name).owner
        if owner is not None:
            owner.held = False
