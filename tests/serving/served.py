"""A server as jobs.serve has it, in this process: the TCP server, the HTTP routes, and a network without Ray."""

import asyncio
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import requests

from tap_ray.models.inference import PolicyRunner
from tap_ray.serving import wire
from tap_ray.serving.admission import LOOPBACK, Admission, digest
from tap_ray.serving.app import make_app
from tap_ray.serving.connections import SPARE, Connections
from tap_ray.serving.contract import Contract
from tap_ray.serving.health import HealthMonitor
from tap_ray.serving.request_error import LATE, RequestError
from tap_ray.serving.sessions import Sessions
from tap_ray.serving.settings import listening
from tap_ray.serving.tcp_server import TcpServer, in_background
from tap_ray.specs import RobotSpec
from tests.untrained import SPEC

RGB = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
STATE = np.linspace(-1, 1, len(SPEC.state), dtype=np.float32)
ACTION = np.zeros(len(SPEC.action), np.float32)
GOOD = {"rgb": RGB, "state": STATE, "action": ACTION}
BEGIN = {"spec": SPEC.to_json(), "seed": 5}
SENTENCE = "put the carrot on the plate"
TIMEOUT_S = 300
"""Bounds a hang only."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Served:
    """A server in this process."""

    def __init__(
        self, policy: PolicyRunner, port: int, tls: bool, sessions: Sessions, connections: Connections
    ) -> None:
        self.policy, self.port = policy, port
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        self.socket = self.url.replace("http", "ws") + "/ws"
        self.sessions, self.connections = sessions, connections
        self.clock = Clock()
        """Of the sessions."""
        self.dead = threading.Event()
        """Set: the network does not answer."""

    def begin(self, **changes):
        return requests.post(f"{self.url}/sessions", json=BEGIN | changes, timeout=TIMEOUT_S)

    def act(self, session, step=0, instruction=SENTENCE, **arrays):
        return requests.post(f"{self.url}/act", data=message(session, step, instruction, **arrays), timeout=TIMEOUT_S)

    def get(self, route, **headers):
        return requests.get(f"{self.url}/{route}", headers=headers, timeout=TIMEOUT_S)


def message(session, step=0, instruction=SENTENCE, **arrays) -> bytes:
    """A step."""
    about = {"session": session, "step": str(step), "instruction": instruction}
    return wire.pack(about, {name: a for name, a in (GOOD | arrays).items() if a is not None})


@contextmanager
def serving(
    policy: PolicyRunner,
    token: str | None = None,
    *,
    limit: int = 3,
    tls: ssl.SSLContext | None = None,
    names: frozenset[str] | None = LOOPBACK,
    image_size: int = 32,
    spec: RobotSpec = SPEC,
) -> Iterator[Served]:
    contract = Contract(policy="tap", policy_hash="0", spec=spec, image_size=image_size, chunking=policy.chunking)

    async def compute_chunk(one):
        if served.dead.is_set():
            raise RequestError(LATE, "The network did not answer within 0.4 s.")
        return (await asyncio.to_thread(policy.chunks, [one]))[0]

    server_socket = listening("127.0.0.1", 0)
    health = HealthMonitor(compute_chunk, contract.probe())
    sessions = Sessions(contract, health.compute_chunk, limit=limit, idle_s=60.0, clock=lambda: served.clock())
    connections = Connections(2 * limit + SPARE)
    app = make_app(contract, sessions, Admission(digest(token) if token else None, names), lambda: health.trouble)
    served = Served(policy, server_socket.getsockname()[1], tls is not None, sessions, connections)
    with in_background(TcpServer(app, server_socket, connections, tls).serve, health.run):
        while health.trouble:
            time.sleep(0.01)
        yield served
