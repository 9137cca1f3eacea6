"""An S3-compatible server on loopback (moto's), as a process of its own, and the environment that leads to it."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

START_S = 300


@dataclass(frozen=True)
class Server:
    """A running server with one bucket."""

    endpoint: str
    bucket: str = "lab-bucket"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        """What a user sets."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "robot",
            "AWS_SECRET_ACCESS_KEY": "play",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def check_credentials(self, yes: bool) -> None:
        """Whether the server refuses strangers from now on."""
        request = Request(f"{self.endpoint}/moto-api/reset-auth", data=b"0" if yes else b"inf", method="POST")
        request.add_header("Content-Type", "text/plain")
        urlopen(request).close()


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, below those that Linux gives to who asks for any (from 32768 on): they are still
    free when their server has started."""
    found: set[int] = set()
    while len(found) < number:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.add(port)
    return [*found]


def free_port() -> int:
    return free_ports(1)[0]


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server for the length of the body."""
    server = Server(f"http://127.0.0.1:{free_port()}")
    port = server.endpoint.rpartition(":")[2]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("s3_server.py")), port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **server.env},
    )
    try:
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                urlopen(Request(f"{server.endpoint}/{server.bucket}", method="PUT"), timeout=START_S).close()
                break
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < until, f"no answer within {START_S} s"
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


class Noted(NamedTuple):
    """What went over the wire."""

    method: str
    path: str
    """With the query."""
    sent: int
    """Bytes of the body."""
    got: int
    """Bytes of the answer's body."""


class Wire:
    """A way to a server that notes each request, and takes its time."""

    def __init__(self, server: Server, delay_s: float = 0.0) -> None:
        self.requests: list[Noted] = []
        self.most = 0
        """Requests that were on their way at the same time."""
        now, lock = 0, threading.Lock()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _pass_on(self) -> None:
                nonlocal now
                with lock:
                    now += 1
                    wire.most = max(wire.most, now)
                time.sleep(delay_s)
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    raise AssertionError("bodies have a length")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                back = HTTPConnection("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
                headers = {k: v for k, v in self.headers.items() if k not in ("Expect", "Connection")}
                back.request(self.command, self.path, body, headers)
                answer = back.getresponse()
                content = answer.read()
                back.close()
                with lock:
                    now -= 1
                wire.requests.append(Noted(self.command, self.path, len(body), len(content)))
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name not in ("Connection", "Transfer-Encoding", "Content-Length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def took(self, method: str, path: str = "") -> list[Noted]:
        """Requests of this kind so far, whose path without the query contains this."""
        return [each for each in self.requests if each.method == method and path in each.path.partition("?")[0]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
