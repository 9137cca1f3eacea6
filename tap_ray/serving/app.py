"""Builds the ASGI app, which connects HTTP and WebSocket to sessions. It imports neither Ray nor torch.

    GET    /health          200 {"ready": true, "sessions": 3}, or 503 with "why": no replica answers. Needs no token
    GET    /spec            the contract, see `Contract.to_json`
    POST   /sessions        {"spec": {...}, "seed": 0} -> {"session": ID}: one for each episode of each robot;
                            "previous_session": ID beside them ends the robot's last one
    DELETE /sessions/ID     the episode is over
    POST   /act             a step -> the action, see wire.py
    WS     /ws              the same in one connection: a text message is POST /sessions, a binary one POST /act.
                            Messages are answered in order; a refusal is a text message with "error" in it.
                            A connection is one robot's: its session ends with it, and with the next one that begins

Each but the first needs "Authorization: Bearer TOKEN" if the server has a token. All requests except the steps of an
episode share a limit of REQUESTS_HZ a second, so that no number of them makes the robots wait.
"""

import asyncio
import json
from typing import Any, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tap_ray.serving import wire
from tap_ray.serving.admission import Admission
from tap_ray.serving.connections import Bucket, Connection
from tap_ray.serving.contract import Contract
from tap_ray.serving.request_error import RequestError
from tap_ray.serving.sessions import Sessions

BINARY = "application/octet-stream"
POLICY_VIOLATION = 1008
"""WebSocket close code of a connection that may not stay."""
SILENCE_S = 10.0
"""How long a WebSocket without a session may be silent, and how long a request's body may take to arrive, s."""
REQUESTS_HZ, REQUESTS_BURST = 25.0, 50
"""Largest rate of requests, per second, that are not steps of an episode, and its burst."""
ROUTES = "GET /health, GET /spec, POST /sessions, DELETE /sessions/ID, POST /act, WebSocket /ws"


class PolicyServer:
    """The handlers of all routes."""

    def __init__(
        self, contract: Contract, sessions: Sessions, admission: Admission, trouble: Callable[[], str | None]
    ) -> None:
        self._contract, self._sessions, self._admission, self._trouble = contract, sessions, admission, trouble
        self._turns, self._health_turns = (Bucket(REQUESTS_HZ, REQUESTS_BURST) for _ in range(2))

    async def health(self, request: Request) -> Response:
        """Report whether the network answers."""
        await self._health_turns.take()
        self._admission.check_place(request)
        about: dict[str, Any] = {"ready": True, "sessions": len(self._sessions)}
        if why := self._trouble():
            return JSONResponse(about | {"ready": False, "why": why}, status_code=503)
        return JSONResponse(about)

    async def spec(self, request: Request) -> Response:
        """Return the contract."""
        await self._turns.take()
        self._admission.check(request)
        return JSONResponse(self._contract.to_json())

    async def begin(self, request: Request) -> Response:
        """Begin a session."""
        await self._turns.take()
        self._admission.check(request)
        return JSONResponse(self._begin(await self._body(request), None), status_code=201)

    async def end(self, request: Request) -> Response:
        """End a session."""
        await self._turns.take()
        self._admission.check(request)
        self._sessions.end(request.path_params["session"])
        return Response(status_code=204)

    async def act(self, request: Request) -> Response:
        """Compute one step."""
        try:
            self._admission.check(request)
            answer = await self._act(await self._body(request), _connection(request))
        except RequestError:
            await self._turns.take()
            raise
        return Response(answer, media_type=BINARY)

    async def websocket(self, socket: WebSocket) -> None:
        """Handle sessions and steps over one connection."""
        await socket.accept()
        connection = _connection(socket)
        try:
            self._admission.check(socket)
            while True:
                await self._answer(socket, connection, await _next(socket, connection))
        except RequestError as error:
            await self._turns.take()
            await _close(socket, error)
        except WebSocketDisconnect:
            return
        finally:
            self._sessions.leave(connection)

    async def no_route(self, request: Request, error: Exception) -> Response:
        """Refuse any other route."""
        assert isinstance(error, HTTPException)
        await self._turns.take()
        message = f"There is no route {request.method} {request.url.path[:200]}. The routes are {ROUTES}."
        return JSONResponse({"status": error.status_code, "error": message}, status_code=error.status_code)

    async def _answer(self, socket: WebSocket, connection: Connection, message: Any) -> None:
        body = message.get("bytes") or (message.get("text") or "").encode()
        try:
            self._require_size(len(body))
            if message.get("bytes") is None:
                await self._turns.take()
                await socket.send_text(json.dumps(self._begin(body, connection)))
            else:
                await socket.send_bytes(await self._act(body, connection))
        except RequestError as error:
            await self._turns.take()
            await socket.send_text(json.dumps(error_json(error)))

    def _begin(self, body: bytes, owner: Connection | None) -> dict[str, str]:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f'Expected JSON {{"spec": ..., "seed": 0}}; got something else: {error}.') from None
        return {"session": self._sessions.begin(request, owner)}

    async def _act(self, body: bytes, connection: Connection) -> bytes:
        step = self._contract.step(*wire.unpack(body))
        connection.busy = True
        try:
            action, moved = await self._sessions.act(step)
        finally:
            connection.busy = False
        if moved:
            connection.count()
        else:
            await self._turns.take()
        return wire.pack({"session": step.session, "step": str(step.number)}, {"action": action})

    async def _body(self, request: Request) -> bytes:
        """Read the request's body, up to the longest valid length."""
        declared = request.headers.get("content-length", "")
        if not declared.isdigit():
            raise RequestError(
                411, "Expected a body with Content-Length; got a chunked one. Send it with Content-Length."
            )
        self._require_size(int(declared))
        try:
            async with asyncio.timeout(SILENCE_S):
                return await request.body()
        except TimeoutError:
            raise RequestError(
                408, f"The body was not received within {SILENCE_S:g} s. Send all of it at once."
            ) from None

    def _require_size(self, num_bytes: int) -> None:
        if num_bytes > self._contract.max_bytes:
            size = self._contract.image_size
            raise RequestError(
                413,
                f"Expected at most {self._contract.max_bytes} bytes (one step of one robot with a {size} x {size} "
                f"image); got {num_bytes}. Resize the image first, and send one step in each message.",
            )


async def _next(socket: WebSocket, connection: Connection) -> Any:
    """Wait for the next message; without a session only for a short time."""
    while True:
        try:
            message = await asyncio.wait_for(socket.receive(), SILENCE_S)
        except TimeoutError:
            if connection.held:
                continue
            raise RequestError(
                408,
                f"This WebSocket has no session and received no message for {SILENCE_S:g} s. Connect when an "
                "episode begins.",
            ) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        return message


async def _close(socket: WebSocket, error: RequestError) -> None:
    try:
        await socket.send_text(json.dumps(error_json(error)))
        await socket.close(POLICY_VIOLATION, f"refused ({error.status})")
    except WebSocketDisconnect:
        return


def make_app(
    contract: Contract, sessions: Sessions, admission: Admission, trouble: Callable[[], str | None]
) -> Starlette:
    """Make the app for `TcpServer`. `trouble` returns why the network does not answer, or None."""
    server = PolicyServer(contract, sessions, admission, trouble)
    return Starlette(
        routes=[
            Route("/health", server.health, methods=["GET"]),
            Route("/spec", server.spec, methods=["GET"]),
            Route("/sessions", server.begin, methods=["POST"]),
            Route("/sessions/{session}", server.end, methods=["DELETE"]),
            Route("/act", server.act, methods=["POST"]),
            WebSocketRoute("/ws", server.websocket),
        ],
        exception_handlers={RequestError: _answer_error, HTTPException: server.no_route},
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error_json(error), status_code=error.status, headers=headers)


def _connection(http: HTTPConnection) -> Connection:
    return http.scope["state"]["connection"]


def error_json(error: RequestError) -> dict[str, Any]:
    """An error as the JSON object that a client gets. Invalid UTF-8 that it quotes from the request is escaped."""
    return {"status": error.status, "error": error.message.encode(errors="backslashreplace").decode()}
