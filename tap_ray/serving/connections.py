"""Limits on connections: their number, which one is closed first if there are too many, and the rate of requests.

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
"""Processor time, s, that the bytes of a connection may take to be read without one step between: a step takes less
than a millisecond, pings and one-byte fragments without end take any amount."""
STEP_S = 0.01
"""What a step's bytes may take, s: a session's connection that needs more shares with those that have none."""
READING_SHARE, READING_AHEAD_S = 0.05, 0.1
"""Share of a processor for the bytes of all that hold no session, and for how much of it in advance, s (5 ms)."""
SPARE = 64
"""Connections beside two for each session: those that have not begun."""


class Bucket:
    """At most `rate_hz` turns a second in the long run, and `burst` at once. Those that wait come in order."""

    def __init__(self, rate_hz: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._each_s, self._ahead_s, self._clock = 1 / rate_hz, burst / rate_hz, clock
        self._next = -float("inf")

    def wait_s(self, turns: float = 1.0) -> float:
        """Take a turn, or several, or a part of one; how long it is until then, s."""
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
        """`abort` closes it at once; `reading` is what all share, in seconds of a processor."""
        self.abort, self._reading, self._clock = abort, reading, clock
        self.used_at = clock()
        self.held = False
        """Whether a session hangs on it."""
        self.busy = False
        """Whether the network works for it."""
        self._spent_s = 0.0

    def count(self) -> None:
        """A step was answered."""
        self.used_at, self._spent_s = self._clock(), 0.0

    def spend(self, spent_s: float) -> float:
        """Its bytes took `spent_s` of a processor to be read; for how long to read none of it, s."""
        self._spent_s += spent_s
        if self._spent_s > READING_S:
            self.abort()
        return 0.0 if self.held and self._spent_s < STEP_S else self._reading.wait_s(spent_s)


class Connections:
    """All of them."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: how many at a time."""
        self._limit, self._clock = limit, clock
        self._all: set[Connection] = set()
        self._reading = Bucket(READING_SHARE, READING_AHEAD_S * READING_SHARE, clock)

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, abort: Callable[[], object]) -> Connection:
        """A new one; where there are too many, the one that has done nothing for longest goes."""
        if len(self._all) >= self._limit:
            idle = [one for one in self._all if not one.held and not one.busy]
            if idle:
                self._close(min(idle, key=lambda one: one.used_at))
        connection = Connection(abort, self._reading, self._clock)
        self._all.add(connection)
        return connection

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self._all.discard(connection)

    def sweep(self) -> None:
        """Close those that are quiet."""
        oldest = self._clock() - QUIET_S
        for one in [one for one in self._all if one.used_at < oldest and not one.held and not one.busy]:
            self._close(one)

    def close(self) -> None:
        """Close all."""
        for one in list(self._all):
            self._close(one)

    def _close(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.abort()
