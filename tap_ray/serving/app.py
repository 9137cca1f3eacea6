"""The ASGI app: HTTP and WebSocket to sessions. Knows neither Ray nor torch.

    GET    /health          {"ready": true, "sessions": 3}; needs no token
    GET    /spec            the contract, see `Contract.to_json`
    POST   /sessions        {"spec": {...}, "seed": 0} -> {"session": ID}: one for each episode of each robot;
                            "ends": ID beside them ends the robot's last one
    DELETE /sessions/ID     the episode is over
    POST   /act             a step -> the action, see wire.py
    WS     /ws              the same in one connection: a text message is POST /sessions, a binary one POST /act.
                            Messages are answered in order; a refusal is a text message with "error" in it

Each but the first wants "Authorization: Bearer TOKEN" where the server has a token.
"""

import hashlib
import hmac
import json
from typing import Any, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tap_ray.serving import wire
from tap_ray.serving.contract import Contract
from tap_ray.serving.refusal import Refusal
from tap_ray.serving.sessions import Sessions

BINARY = "application/octet-stream"
POLICY_VIOLATION = 1008
"""WebSocket close code of a connection without the token."""
ROUTES = "GET /health, GET /spec, POST /sessions, DELETE /sessions/ID, POST /act, WebSocket /ws"

Handler = Callable[[Request], Awaitable[Response]]


def digest(token: str) -> str:
    """What the server keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Gate:
    """Every route's handler."""

    def __init__(self, contract: Contract, sessions: Sessions, token_digest: str | None) -> None:
        self._contract, self._sessions, self._token_digest = contract, sessions, token_digest

    async def health(self, request: Request) -> Response:
        """Whether it answers at all."""
        return JSONResponse({"ready": True, "sessions": len(self._sessions)})

    async def spec(self, request: Request) -> Response:
        """The contract."""
        self._require_token(request)
        return JSONResponse(self._contract.to_json())

    async def begin(self, request: Request) -> Response:
        """A new session."""
        self._require_token(request)
        return JSONResponse(self._begin(await self._body(request)), status_code=201)

    async def end(self, request: Request) -> Response:
        """Forget a session."""
        self._require_token(request)
        self._sessions.end(request.path_params["session"])
        return Response(status_code=204)

    async def act(self, request: Request) -> Response:
        """One step."""
        self._require_token(request)
        return Response(await self._act(await self._body(request)), media_type=BINARY)

    async def websocket(self, socket: WebSocket) -> None:
        """Sessions and steps over one connection."""
        await socket.accept()
        try:
            self._require_token(socket)
        except Refusal as refusal:
            await socket.send_text(json.dumps(_told(refusal)))
            await socket.close(POLICY_VIOLATION, "token")
            return
        try:
            while True:
                await self._answer(socket, await socket.receive())
        except WebSocketDisconnect:
            return

    async def _answer(self, socket: WebSocket, message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        body = message.get("bytes") or (message.get("text") or "").encode()
        try:
            self._require_size(len(body))
            if message.get("bytes") is None:
                await socket.send_text(json.dumps(self._begin(body)))
            else:
                await socket.send_bytes(await self._act(body))
        except Refusal as refusal:
            await socket.send_text(json.dumps(_told(refusal)))

    def _begin(self, body: bytes) -> dict[str, str]:
        try:
            asked = json.loads(body)
        except ValueError as error:
            raise Refusal(400, f'Expected JSON {{"spec": ..., "seed": 0}}, got something else: {error}.') from None
        return {"session": self._sessions.begin(asked)}

    async def _act(self, body: bytes) -> bytes:
        step = self._contract.step(*wire.unpack(body))
        action = await self._sessions.act(step)
        return wire.pack({"session": step.session, "step": str(step.number)}, {"action": action})

    async def _body(self, request: Request) -> bytes:
        """The request's body, read no further than the longest that can be right."""
        declared = request.headers.get("content-length", "")
        self._require_size(int(declared) if declared.isdigit() else 0)
        body = bytearray()
        async for part in request.stream():
            body += part
            self._require_size(len(body))
        return bytes(body)

    def _require_size(self, num_bytes: int) -> None:
        if num_bytes > self._contract.max_bytes:
            size = self._contract.image_size
            raise Refusal(
                413,
                f"{num_bytes} bytes came, {self._contract.max_bytes} at most: one step with a {size} x {size} image. "
                "Resize the image first; one message is one step of one robot.",
            )

    def _require_token(self, connection: HTTPConnection) -> None:
        if self._token_digest is None:
            return
        kind, _, token = connection.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(digest(token), self._token_digest):
            came = "another one came" if token else "none came"
            raise Refusal(
                401,
                f'This server wants a token, {came}. Send the header "Authorization: Bearer TOKEN" with the token of '
                "the file that jobs.serve named when it started (or of its TAP_RAY_SERVE_TOKEN).",
            )


def make_app(contract: Contract, sessions: Sessions, token_digest: str | None) -> Starlette:
    """The app; `token_digest` is `digest(token)`, None lets everybody in."""
    gate = Gate(contract, sessions, token_digest)
    return Starlette(
        routes=[
            Route("/health", gate.health, methods=["GET"]),
            Route("/spec", gate.spec, methods=["GET"]),
            Route("/sessions", gate.begin, methods=["POST"]),
            Route("/sessions/{session}", gate.end, methods=["DELETE"]),
            Route("/act", gate.act, methods=["POST"]),
            WebSocketRoute("/ws", gate.websocket),
        ],
        exception_handlers={Refusal: _refuse, HTTPException: _no_route},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(_told(error), status_code=error.status, headers=headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"Nothing answers {request.method} {request.url.path}. There are {ROUTES}."
    return JSONResponse({"status": error.status_code, "error": message}, status_code=error.status_code)


def _told(refusal: Refusal) -> dict[str, Any]:
    return {"status": refusal.status, "error": refusal.message}
