"""Runs the TCP server in front of the app: uvicorn's protocols behind our own accept loop.

uvicorn waits forever for a request's head, for a body and for an idle WebSocket, and accepts as many connections as
there are file descriptors; each of these can stop every robot. Here connections are counted from their first byte on
(`Connections`), and accepted at a rate that leaves the robots enough CPU time.
"""

import _thread
import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from tap_ray.serving.connections import QUIET_S, Bucket, Connection, Connections

ACCEPTS_HZ, ACCEPTS_BURST = 40.0, 100
"""Largest rate of new connections, per second, and its burst: a robot needs one per episode."""
PIECE_BYTES = 512
"""Bytes that are read from a connection before the others have their turn."""
BACKLOG = 128
"""Number of connections that the system queues until they are accepted."""
HEAD_BYTES = 16_384
"""Longest head of a request, bytes."""
MESSAGE_BYTES = 4 * 2**20
"""Longest WebSocket message that is read at all, bytes; a message that is only too long for the policy gets an
explanation."""
PING_S = 10.0
"""How often a WebSocket is pinged, and how long it may take to answer, s: a robot without power is disconnected after
twice that."""
SWEEP_S = 1.0
"""How often connections that are over their time limits are closed, s: the limits are several seconds."""
RETRY_S = 0.1
"""Pause if this process has no file descriptor left for a connection, s."""


class _PausableTransport:
    """A transport whose reading both uvicorn and we can pause; it continues when neither does."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._uvicorn_paused = self._we_paused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self._uvicorn_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._uvicorn_paused = False
        self._resume_if_allowed()

    def hold(self, wait_s: float, then: Callable[[], None]) -> None:
        """Pause reading for a while."""
        self._we_paused = True
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(wait_s, self._release, then)

    def _release(self, then: Callable[[], None]) -> None:
        self._we_paused = False
        then()
        self._resume_if_allowed()

    def _resume_if_allowed(self) -> None:
        if not (self._uvicorn_paused or self._we_paused):
            self._transport.resume_reading()


class _Counted(asyncio.Protocol):
    """Wraps uvicorn's protocols: reports their activity to their `Connection`, and passes data on in small pieces."""

    app_state: dict[str, Any]
    transport: Any
    _rest = memoryview(b"")

    def connection_made(self, transport: Any) -> None:
        self.app_state["connection"].abort = transport.abort
        if not isinstance(transport, _PausableTransport):
            transport = _PausableTransport(transport)
        super().connection_made(transport)  # pyright: ignore

    def data_received(self, data: bytes) -> None:
        if self._rest:  # it waits
            self._rest = memoryview(bytes(self._rest) + data)
            return
        self._rest = memoryview(data)
        self._read()

    def _read(self) -> None:
        connection: Connection = self.app_state["connection"]
        while self._rest and not self.transport.is_closing():
            piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:]
            before = time.thread_time()
            super().data_received(bytes(piece))
            if wait_s := connection.spend(time.thread_time() - before):
                self.transport.hold(wait_s, self._read)
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state["left"]()
        super().connection_lost(exc)


class _Http(_Counted, H11Protocol): ...


class _WebSocket(_Counted, WebSocketsSansIOProtocol): ...


class TcpServer:
    """Accepts connections on one listening socket, within limits, and serves the app on them."""

    def __init__(self, app: ASGIApp, listening: socket.socket, connections: Connections, tls: ssl.SSLContext | None):
        """
        Args:
            app: the ASGI app; it finds its `Connection` in scope["state"]["connection"].
            listening: bound socket; it is closed at the end.
            connections: the limits.
            tls: TLS settings; None serves plain text.
        """
        self._listening, self._connections, self._tls = listening, connections, tls
        self._accepts = Bucket(ACCEPTS_HZ, ACCEPTS_BURST)
        self._state = ServerState()
        self._config = Config(
            app,
            http=_Http,
            ws=_WebSocket,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            ws_max_size=MESSAGE_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            ws_per_message_deflate=False,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        self._config.load()
        # Invalid requests of clients must not fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    async def serve(self) -> None:
        """Serve until cancelled."""
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        sweep = asyncio.create_task(self._sweep())
        try:
            while True:
                await self._accepts.take()
                await self._accept()
        finally:
            sweep.cancel()
            self._listening.close()
            self._connections.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = await loop.sock_accept(self._listening)
        except OSError:  # the client has gone, or there are no file descriptors left
            await asyncio.sleep(RETRY_S)
            return
        accepted.setblocking(False)
        connection = self._connections.enter(lambda: task.cancel())
        task = loop.create_task(self._handle(accepted, connection))
        await asyncio.sleep(0)  # start it, so that it can be cancelled

    async def _handle(self, accepted: socket.socket, connection: Connection) -> None:
        left = lambda: self._connections.leave(connection)  # noqa: E731
        state = {"connection": connection, "left": left}
        timeouts = {"ssl_handshake_timeout": QUIET_S} if self._tls else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Http(self._config, self._state, state), accepted, ssl=self._tls, **timeouts
            )
        except (OSError, asyncio.CancelledError):
            left()
            accepted.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._connections.sweep()


@contextlib.contextmanager
def in_background(*works: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run coroutines that end only when cancelled in their own thread, for the duration of a `with` block."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    task = loop.create_task(_together(works))
    thread = threading.Thread(target=_run, args=(runner, task), name="serving")
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # it ended by itself with an error
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _together(works: tuple[Callable[[], Coroutine[Any, Any, None]], ...]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work())


def _run(runner: asyncio.Runner, task: asyncio.Task[None]) -> None:
    with runner, contextlib.suppress(asyncio.CancelledError):
        try:
            runner.get_loop().run_until_complete(task)
        except Exception:  # an error of the server: do not wait for it
            _thread.interrupt_main()
            raise
