"""An S3-compatible server on loopback (moto's), as a process of its own, and the environment that leads to it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
        asked = Request(f"{self.endpoint}/moto-api/reset-auth", data=b"0" if yes else b"inf", method="POST")
        asked.add_header("Content-Type", "text/plain")
        urlopen(asked).close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server for the length of the body."""
    server = Server(f"http://127.0.0.1:{free_port()}")
    port = server.endpoint.rpartition(":")[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", port],
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
