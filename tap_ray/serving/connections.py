"""Limits connections: their number, which one is closed first if there are too many, and the rate of requests.

One rule applies to every connection that is open without being used (half a request, a slow body, an idle socket, a TLS
handshake that does not continue): it is closed QUIET_S after its last step that counted. A WebSocket with a session
stays open as long as the session.
"""

import asyncio
import time
from collections.abc import Callable

QUIET_S = 15.0
"""How long a connection may stay without a step, s."""
READING_S = 0.2
"""CPU time, s, for reading from a connection between two steps: a step takes less than a millisecond, but endless pings
and one-byte fragments can take any amount."""
STEP_S = 0.01
"""CPU time for reading one step, s; a session's connection that needs more shares the limit of those without a
session."""
READING_SHARE, READING_AHEAD_S = 0.05, 0.1
"""Share of a CPU for reading from all connections without a session, and how much of it may be used in advance, s (5
ms)."""
SPARE = 64
"""Number of connections beyond two per session, for clients that have not begun a session."""


class Bucket:
    """A token bucket: on average at most `rate_hz` turns per second, and `burst` at once. Waiting clients are served in
    order."""

    def __init__(self, rate_hz: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._each_s, self._ahead_s, self._clock = 1 / rate_hz, burst / rate_hz, clock
        self._next = -float("inf")

    def wait_s(self, turns: float = 1.0) -> float:
        """Take a turn, several, or a fraction of one; returns the time until then, s."""
        now = self._clock()
        self._next = max(self._next, now - self._ahead_s) + turns * self._each_s
        return max(0.0, self._next - now)

    async def take(self) -> None:
        """Wait for a turn."""
        if wait_s := self.wait_s():
            await asyncio.sleep(wait_s)


class Connection:
    """One TCP connection."""

    def __init__(self, abort: Callable[[], object], reading: Bucket, clock: Callable[[], float]) -> None:
        """`abort` closes it at once; `reading` is the shared limit of CPU time, s."""
        self.abort, self._reading, self._clock = abort, reading, clock
        self.used_at = clock()
        self.held = False
        """Whether it has a session."""
        self.busy = False
        """Whether the network is computing for it."""
        self._spent_s = 0.0

    def count(self) -> None:
        """Record an answered step."""
        self.used_at, self._spent_s = self._clock(), 0.0

    def spend(self, spent_s: float) -> float:
        """Record that reading took `spent_s` of CPU time; returns for how long to pause reading, s."""
        self._spent_s += spent_s
        if self._spent_s > READING_S:
            self.abort()
        return 0.0 if self.held and self._spent_s < STEP_S else self._reading.wait_s(spent_s)


class Connections:
    """All open connections."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` is the largest number of open connections."""
        self._limit, self._clock = limit, clock
        self._all: set[Connection] = set()
        self._reading = Bucket(READING_SHARE, READING_AHEAD_S * READING_SHARE, clock)

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, abort: Callable[[], object]) -> Connection:
        """Add a connection; if there are too many, close the one that has been idle for longest."""
        if len(self._all) >= self._limit:
            idle = [one for one in self._all if not one.held and not one.busy]
            if idle:
                self._close(min(idle, key=lambda one: one.used_at))
        connection = Connection(abort, self._reading, self._clock)
        self._all.add(connection)
        return connection

    def leave(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._all.discard(connection)

    def sweep(self) -> None:
        """Close idle connections."""
        oldest = self._clock() - QUIET_S
        for one in [one for one in self._all if one.used_at < oldest and not one.held and not one.busy]:
            self._close(one)

    def close(self) -> None:
        """Close all connections."""
        for one in list(self._all):
            self._close(one)

    def _close(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.abort()
