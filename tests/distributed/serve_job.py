"""`python -m jobs.serve` as a user starts it, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

TIMEOUT_S = 500
"""Bounds a hang only."""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int
    token: str
    run: Path
    lines: list[str]

    def get(self, route: str, token: str | None):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return requests.get(f"http://127.0.0.1:{self.port}/{route}", headers=headers, timeout=TIMEOUT_S)

    def replica(self) -> psutil.Process | None:
        """The process of the network."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.name().startswith("ray::ServeRepli") and "Network" in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        return None


@contextmanager
def started(run: Path, token: Path, *flags: str) -> Iterator[Server]:
    """The job, from its start until it is left."""
    command = [sys.executable, "-m", "jobs.serve", "--policy", str(run), "--host", "0.0.0.0", "--port", "0", *flags]
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TAP_RAY_SERVE_TOKEN")}
    process = subprocess.Popen(
        [*command, "--token-file", str(token), "--sessions", "8"], stdout=subprocess.PIPE, text=True, env=env
    )
    lines: list[str] = []
    assert process.stdout is not None
    timer = threading.Timer(TIMEOUT_S, process.kill)
    timer.start()
    while not lines or not lines[-1].startswith("  curl"):
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended: {lines}"
    timer.cancel()
    port = re.search(r":(\d+)/spec", lines[-1])
    assert port is not None
    try:
        yield Server(process, int(port[1]), token.read_text().strip(), run, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT_S)
