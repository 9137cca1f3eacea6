"""Who is connected: how many at most, which goes first when there are too many, and how fast they may ask.

One rule for whatever keeps a connection without using it (half a request, a slow body, an idle socket, a TLS handshake
that does not go on): it lives QUIET_S from its last step that counted. A WebSocket that holds a session stays for as
long as the session does.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

QUIET_S = 15.0
"""How long a connection may stay without a step, s."""
READING_S = 0.2
"""Processor time, s, that the bytes of a connection may take to be read without one step between: a step takes less
than a millisecond, pings and one-byte fragments without end take any amount."""
SPARE = 64
"""Connections beside two for each session: those that have not begun."""


class Bucket:
    """At most `rate_hz` turns a second in the long run, and `burst` at once. Those that wait come in order."""

    def __init__(self, rate_hz: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._each_s, self._ahead_s, self._clock = 1 / rate_hz, burst / rate_hz, clock
        self._next = -float("inf")

    async def take(self) -> None:
        """Wait for a turn."""
        now = self._clock()
        self._next = max(self._next, now - self._ahead_s) + self._each_s
        if self._next > now:
            await asyncio.sleep(self._next - now)


class Connection:
    """One TCP connection."""

    def __init__(self, abort: Callable[[], object], clock: Callable[[], float]) -> None:
        """`abort` closes it at once."""
        self.abort, self._clock = abort, clock
        self.used_at = clock()
        self.held = False
        """Whether a session hangs on it."""
        self.busy = False
        """Whether the network works for it."""
        self._spent_s = 0.0

    def count(self) -> None:
        """A step was answered."""
        self.used_at, self._spent_s = self._clock(), 0.0

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of its bytes."""
        before = time.thread_time()
        yield
        self._spent_s += time.thread_time() - before
        if self._spent_s > READING_S:
            self.abort()


class Connections:
    """All of them."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: how many at a time."""
        self._limit, self._clock = limit, clock
        self._all: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, abort: Callable[[], object]) -> Connection:
        """A new one; where there are too many, the one that has done nothing for longest goes."""
        if len(self._all) >= self._limit:
            idle = [one for one in self._all if not one.held and not one.busy]
            if idle:
                self._close(min(idle, key=lambda one: one.used_at))
        connection = Connection(abort, self._clock)
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
