"""What stops a Ray from starting or being joined is reported in one message, before anything starts."""

import os
import platform
import re
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.utils import check_version_info

from tap_ray.distributed import connect, placement
from tap_ray.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_its_owners_alone_from_the_beginning(home: Path):
    old = os.umask(0)
    try:
        connect.make_token()
    finally:
        os.umask(old)
    token = home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    before = token.read_text()
    connect.make_token()
    assert token.read_text() == before
    assert os.listdir(token.parent) == ["auth_token"]


def test_of_two_first_jobs_one_makes_the_token(home: Path, monkeypatch: pytest.MonkeyPatch):
    """The other is between its look and its own token then, and its Ray would be refused."""
    token, made = home / ".ray" / "auth_token", iter(["a" * 64, "b" * 64])

    def new(_: int) -> str:
        value = next(made)
        if value.startswith("a"):
            connect.make_token()
            assert token.read_text() == "b" * 64
        return value

    monkeypatch.setattr(connect.secrets, "token_hex", new)
    monkeypatch.setattr(connect.os, "getpid", iter((1, 2)).__next__)
    connect.make_token()
    assert token.read_text() == "b" * 64
    assert os.listdir(token.parent) == ["auth_token"]


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "f" * 64), ("RAY_AUTH_MODE", "disabled")])
def test_no_token_is_made_where_the_environment_has_one_or_wants_none(
    home: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    connect.make_token()
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/proc/nohome")
    message = r"^Ray cannot store its token in /proc/nohome/\.ray/auth_token: .*\. Set HOME to .* or RAY_AUTH_TOKEN to"
    with pytest.raises(ConfigError, match=message), connect.connect():
        pass


def test_a_temporary_folder_that_is_too_long_for_sockets(home: Path, monkeypatch: pytest.MonkeyPatch):
    """107 bytes less the 66 and more of Ray's own part leave some 40."""
    folder = home / ("a" * 107)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    message = rf"^TMPDIR={folder} is too long for Ray's sockets: their paths have \d+ bytes, and at most 107"
    with pytest.raises(ConfigError, match=message), connect.connect():
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    connect.require_short_sockets()
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    if os.getuid():  # root may, until it tries
        with pytest.raises(ConfigError, match=r"^RAY_TMPDIR=/proc cannot be written"):
            connect.require_short_sockets()


def test_an_address_of_ray_client_is_refused(home: Path):
    message = r'^ray://head:10001 is an address of Ray Client, which jobs cannot use\. .* "HOST:6379"'
    with pytest.raises(ConfigError, match=message), connect.connect("ray://head:10001"):
        pass


def test_other_versions_are_both_named():
    """Ray's own words for it."""
    cluster = {"ray_version": "2.40.0", "python_version": "3.12.1"}
    with pytest.raises(RuntimeError) as refused:
        check_version_info(cluster, "node")
    assert connect.join_error("head:6379", refused.value) == (
        "The Ray cluster at head:6379 has Ray: 2.40.0, Python: 3.12.1; this process has "
        f"Ray: {ray.__version__}, Python: {platform.python_version()}. Use the same versions on both."
    )


def test_a_statistic_that_nobody_answers_is_zero():
    assert not ray.is_initialized()
    assert placement.spilled_bytes() == 0


def gcs_mb() -> float:
    """Memory of this process's GCS."""
    return sum(each.memory_info().rss for each in psutil.Process().children() if each.name() == "gcs_server") / 1e6


@pytest.mark.cluster
@pytest.mark.long_proof
def test_the_gcs_does_not_grow_with_every_task_that_ends(monkeypatch: pytest.MonkeyPatch):
    """By Ray's own limit it grows by 3.8 kB a task, up to 100,000 tasks."""
    monkeypatch.setattr(connect, "MAX_KEPT_TASKS", 2_000)

    @ray.remote(num_cpus=0.01)
    def empty(number: int) -> int:
        return number

    memory = []
    with connect.connect(num_cpus=1):
        for _ in range(3):
            for _ in range(20):
                ray.get([empty.remote(number) for number in range(400)])
            memory.append(gcs_mb())
    assert memory[0] > 0
    assert memory[-1] - memory[0] < 15  # of 61 MB that 16,000 tasks would add
