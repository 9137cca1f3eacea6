"""`ray job submit` as the README has it: a head with token authentication, jobs that land on it, strangers refused."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.verify import verify
from tests.s3 import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
TIMEOUT_S = 400
"""Bounds a hang only."""
EPISODES = 200
"""Far more than the 50 that fit in one file."""
SMALL = ("--max-steps", "10", "--image-size", "16", "--explorers.safe-poses.num-samples", "300")


@dataclass(frozen=True)
class Head:
    """A running `ray start --head`."""

    dashboard: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    def job(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...` of a user at the repository's root, who has the token (unless `env` says otherwise)."""
        return subprocess.run(
            [RAY, "job", *args],
            cwd=REPOSITORY,
            env={**self.env, "RAY_ADDRESS": self.dashboard, **env},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def fleets(self) -> list[psutil.Process]:
        """Processes that play."""
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.name().startswith("ray::Fleet")
        ]

    def submit(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Submit a job and follow its log to its end."""
        return self.job("submit", "--working-dir", ".", "--", "python", "-m", *command, **env)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Head]:
    """A head node of two CPUs, with a token of its own."""
    folder = tmp_path_factory.mktemp("head")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    env = {
        **{name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("metrics-export-port", "ray-client-server-port", "runtime-env-agent-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))  # other Rays of this machine hold the usual ones
    with tempfile.TemporaryDirectory(prefix="ray") as temp, (folder / "log").open("w") as log:  # short: Unix sockets
        command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", temp]
        command += ["--dashboard-host", "127.0.0.1", "--object-store-memory", str(2 * 10**8)]
        command += [f"--{name}={port}" for name, port in ports.items()]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        running = Head(f"http://127.0.0.1:{ports['dashboard-port']}", env, process)
        try:
            wait_for(running, folder / "log")
            yield running
        finally:
            for its in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    its.kill()  # a polite end takes Ray half a minute
            process.wait(60)


def wait_for(head: Head, log: Path) -> None:
    """Until the head takes jobs: its agent, which starts them, is ready some seconds after it answers."""
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    job = urllib.request.Request(f"{head.dashboard}/api/jobs/", b'{"entrypoint": "true"}', headers)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(job, timeout=TIMEOUT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                pytest.fail(f"no head within {TIMEOUT_S} s: {error}\n{log.read_text()}")
        time.sleep(1)


@pytest.mark.long_proof
def test_a_stopped_job_submitted_again_completes_its_data_set(head: Head, tmp_path: Path):
    """And its log ends with the path. Its fleets are frozen until it has been stopped: it must not end before."""
    out = tmp_path / "play"
    command = ("jobs.collect_play", "--episodes", str(EPISODES), *SMALL, "--out")
    job = ("--submission-id", "stopped", "--working-dir", ".", "--", "python", "-m", *command, str(out))
    begun = head.job("submit", "--no-wait", *job)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    deadline = time.monotonic() + TIMEOUT_S
    while not list(out.glob("data/*/*.parquet")):
        assert time.monotonic() < deadline, head.job("logs", "stopped").stdout
        time.sleep(0.02)
    frozen = head.fleets()
    for fleet in frozen:
        fleet.suspend()
    stopped = head.job("stop", "stopped")
    for fleet in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            fleet.resume()
    assert stopped.returncode == 0
    assert "was stopped" in head.job("status", "stopped").stdout
    again = head.submit(*command, str(out))
    assert again.returncode == 0, again.stdout + again.stderr
    printed = [line for line in again.stdout.splitlines() if line and " -- " not in line]  # Ray's own lines have it
    assert printed[-1] == str(out)
    assert "object stores were full" not in again.stdout
    assert json.loads((out / "manifest.json").read_text())["spilled_bytes"] == 0
    assert not [rule for rule in verify(out) if rule.problems]
    assert len(open_dataset(out)) == EPISODES


def test_a_users_mistake_is_the_jobs_failure_in_one_line(head: Head, tmp_path: Path):
    completed = head.submit("jobs.collect_play", "--robot", "widowy", "--out", str(tmp_path / "play"))
    assert completed.returncode != 0
    assert "Did you mean 'widowx'?" in completed.stdout
    assert "Traceback" not in completed.stdout


def test_a_wrong_token_is_refused(head: Head):
    completed = head.submit("jobs.collect_play", "--episodes", "1", RAY_AUTH_TOKEN="0" * 64)
    assert completed.returncode != 0
    assert "Invalid authentication token" in completed.stdout + completed.stderr
