"""One writer at a time, on a local disk and on a (loopback) S3 server; a killed one is not waited for."""

import contextlib
import json
import platform
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tap_ray import locks, storage
from tap_ray.errors import StorageError

HOLDER = """
import sys, time
from tap_ray import locks, storage
held = locks.acquire(storage.to_path(sys.argv[1]))
assert held
print("held", flush=True)
time.sleep(10**6)
"""

SLEEPER = """
import sys, time
from tap_ray import locks, storage
from tap_ray.errors import StorageError
locks.HEARTBEAT_S, locks.LEASE_S = 0.2, 4.0
held = locks.acquire(storage.to_path(sys.argv[1]))
print("held", flush=True)
try:
    while True:
        held.require()
        time.sleep(0.05)
except StorageError as error:
    print(error, flush=True)
    held.close()
"""


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "run" if request.param == "local" else storage.to_path(request.getfixturevalue("bucket"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """Locks as if each look came from another machine, with short leases."""
    monkeypatch.setattr(locks, "is_alive_here", lambda holder: None)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(locks, "LEASE_S", 4.0)
    monkeypatch.setattr(locks, "POLL_S", 0.02)


def test_one_at_a_time(folder: Path):
    held = locks.acquire(folder)
    assert held is not None
    held.require()
    start = time.monotonic()
    assert locks.acquire(folder) is None
    assert locks.acquire(folder, timeout_s=0.5) is None
    assert 0.5 < time.monotonic() - start < locks.LEASE_S
    held.close()
    again = locks.acquire(folder)
    assert again is not None
    again.close()


def test_a_killed_holder_of_this_machine_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "LEASE_S", 10**6)  # who waited for the dead would wait for days
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        assert locks.acquire(folder) is None
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # nobody has asked for its end yet
            time.sleep(0.01)
        held = locks.acquire(folder)
        assert held is not None
        held.close()
    process.wait()
    held = locks.acquire(folder)
    assert held is not None
    held.close()


def test_a_lease_that_is_renewed_is_respected(bucket: str, elsewhere: None, monkeypatch: pytest.MonkeyPatch):
    folder = storage.to_path(bucket)
    held = locks.acquire(folder)
    assert held is not None
    assert locks.acquire(folder, timeout_s=8.0) is None  # twice a lease
    with monkeypatch.context() as patch:
        patch.setattr(locks, "LEASE_S", 0.0)  # as if the machine had slept, and nobody had wanted the lock
        held.require()
    held.close()


def test_a_holder_that_sleeps_loses_its_lease_and_stops(bucket: str, elsewhere: None):
    folder = storage.to_path(bucket)
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, bucket], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        other = locks.acquire(folder)
        assert other is not None
        assert locks.LEASE_S <= time.monotonic() - start < 20 * locks.LEASE_S
        process.send_signal(signal.SIGCONT)
        line = process.stdout.readline()
        assert re.match(r"The lock s3://.*\.lock was lost: .* run the same command again", line)
    assert process.wait() == 0  # its close() leaves the other's alone
    other.require()
    assert locks.acquire(folder) is None
    other.close()


def test_a_lock_that_another_owner_has_taken_is_lost(bucket: str, elsewhere: None):
    folder = storage.to_path(bucket)
    held = locks.acquire(folder)
    assert held is not None
    storage.write(folder.with_name(f"{folder.name}.lock"), b'{"owner": "stranger"}')
    until = time.monotonic() + 300
    with contextlib.suppress(StorageError):
        while time.monotonic() < until:
            held.require()
            time.sleep(0.05)
    with pytest.raises(StorageError, match="was lost"):
        held.require()
    held.close()
    assert (folder.with_name(f"{folder.name}.lock")).read_bytes() == b'{"owner": "stranger"}'


def test_only_one_process_takes_over_an_expired_lock(bucket: str):
    folder = storage.to_path(bucket)
    for _ in range(5):
        dead = {"owner": "dead", "pid": 2**22 - 1, "born": 0.0, "machine": locks.machine_id()}
        storage.write(folder.with_name(f"{folder.name}.lock"), json.dumps(dead).encode())
        with ThreadPoolExecutor(8) as crowd:
            [winner] = [held for held in crowd.map(locks.acquire, [folder] * 8) if held is not None]
        winner.require()
        assert json.loads(folder.with_name(f"{folder.name}.lock").read_bytes())["owner"] != "dead"
        winner.close()


WAITER = """
import sys, time
from pathlib import Path
from tap_ray import locks, storage
with locks.exclusive_lock(storage.to_path(sys.argv[1]), "pretrain-1", on_wait=lambda text: print(text, flush=True)):
    print("has it", flush=True)
    time.sleep(10**6)
"""


@pytest.mark.parametrize("remote", [False, True])
def test_a_waiting_process_takes_over_the_lock_of_a_killed_one(remote: bool, tmp_path: Path, bucket: str):
    command = [sys.executable, "-c", WAITER, f"{bucket}/locks" if remote else str(tmp_path / "locks")]

    def start() -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        return process, process.stdout.readline()

    holder, line = start()
    assert line == "has it\n"
    waiting, line = start()
    try:
        assert line == f"waiting for process {holder.pid} on {platform.node()}, which is working on it\n"
        holder.kill()
        assert waiting.stdout.readline() == "has it\n"
    finally:
        for process in (holder, waiting):
            process.kill()
            process.wait()
            process.stdout.close()
