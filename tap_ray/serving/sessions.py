"""Episodes in progress: one session a robot and episode, as many as asked for, forgotten when idle."""

import asyncio
import copy
import secrets
import time
from typing import Any, Awaitable, Callable

import numpy as np

from tap_ray.models.memory import Look, Memory
from tap_ray.serving.contract import Contract, Step
from tap_ray.serving.refusal import Refusal

Looks = Callable[[Look], Awaitable[np.ndarray]]
"""One robot's look -> (H, A) float32 actions."""
MAX_SEED = 2**63


class Session:
    """One episode of one robot."""

    def __init__(self, memory: Memory, now: float) -> None:
        self.memory, self.used_at = memory, now
        self.num_steps = 0
        self.last: np.ndarray | None = None
        self.turn = asyncio.Lock()


class Sessions:
    """All episodes in progress."""

    def __init__(
        self,
        contract: Contract,
        look: Looks,
        *,
        limit: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            contract: of the policy.
            look: asks the network.
            limit: sessions at a time.
            idle_s: a session that was not used for so long, s, makes room for another.
            clock: seconds.
        """
        self._contract, self._look, self._limit, self._idle_s, self._clock = contract, look, limit, idle_s, clock
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, asked: Any) -> str:
        """A new episode's session, from {"spec": what the robot emits, "seed": of the policy's own noise}.

        With "ends": ID the session of the robot's last episode ends, if it has not already.

        Raises:
            Refusal: 422, another robot's spec or no seed; 503, as many sessions as there may be.
        """
        if not isinstance(asked, dict):
            raise Refusal(422, f'A session begins with a JSON object {{"spec": ..., "seed": 0}}, got {asked!r}.')
        self._contract.require_spec(asked.get("spec"))
        seed = asked.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MAX_SEED:
            raise Refusal(422, f"seed: expected an integer in 0 .. 2^63 - 1, got {seed!r}. Another one each episode.")
        self._forget_idle()
        self._open.pop(str(asked.get("ends")), None)
        if len(self._open) >= self._limit:
            raise Refusal(
                503,
                f"All {self._limit} sessions are in use. End one (DELETE /sessions/ID), wait until one has been idle "
                f"for {self._idle_s:g} s, or start the server with more --sessions.",
            )
        name = secrets.token_urlsafe(12)
        self._open[name] = Session(Memory(self._contract.recall, seed), self._clock())
        return name

    def end(self, name: str) -> None:
        """Forget an episode."""
        self._of(name)
        del self._open[name]

    async def act(self, step: Step) -> np.ndarray:
        """(A,) float32, the robot's next action. A step asked for again gets the same answer, and moves nothing on.

        Raises:
            Refusal: 404, no such session; 409, not the step that comes next; 500, the policy's action is not finite.
        """
        session = self._of(step.session)
        async with session.turn:
            session.used_at = self._clock()
            if step.number == session.num_steps - 1 and session.last is not None:
                return session.last
            if step.number != session.num_steps:
                raise Refusal(
                    409,
                    f"Session {step.session} is at step {session.num_steps}, step {step.number} came. Send every step "
                    "once and in order (the last one may be repeated), or begin a session for a new episode.",
                )
            memory = copy.deepcopy(session.memory)  # a look that fails must leave the episode as it was
            look = memory.see(step.rgb, step.state, step.action, step.instruction)
            if look is not None:
                memory.keep(await self._look(look))
            action = memory.act()
            if not np.isfinite(action).all():
                raise Refusal(500, "The policy's action is NaN or infinite: its weights are broken. Do not move.")
            session.memory, session.last, session.num_steps = memory, action, session.num_steps + 1
            session.used_at = self._clock()
            return action

    def _of(self, name: str) -> Session:
        self._forget_idle()
        if name not in self._open:
            raise Refusal(
                404,
                f"Unknown session {name!r}: it was ended, idle for more than {self._idle_s:g} s, or the server has "
                "been restarted since. Begin another (POST /sessions) at the start of an episode.",
            )
        return self._open[name]

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._idle_s
        for name in [name for name, s in self._open.items() if s.used_at < oldest and not s.turn.locked()]:
            del self._open[name]
