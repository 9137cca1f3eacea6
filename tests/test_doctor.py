"""The doctor looks at the real machine; what is missing is then made missing for real (environment, files, PATH)."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tap_ray import doctor


def test_this_machine_runs_the_default_job(monkeypatch, capsys):
    """However long a probe takes beside other tests, and however little memory and disk they leave."""
    monkeypatch.setattr(doctor, "PROBES", [replace(probe, timeout_s=400.0) for probe in doctor.PROBES])
    for name in ("MIN_DISK_GB", "MIN_MEMORY_GB"):
        monkeypatch.setattr(doctor, name, 0.0)
    status, output = doctor.main([]), capsys.readouterr().out
    assert status == 0, output
    assert output.splitlines()[-1] == "The default job can run."
    names = ["Python", "torch", "Ray", "Ray starts", "PyBullet", "MLflow", "ffmpeg", "disk", "Vulkan", "large pages"]
    for name in (*names, "EGL"):
        assert f"  {name} " in output


def test_an_absent_server_is_a_missing_row_and_exit_status_1(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(doctor, "PROBES", [p for p in doctor.PROBES if p.name in ("Python", "MLflow")])
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("missing   MLflow")
    assert "http://127.0.0.1:9 cannot be reached" in lines[1]
    assert "unset MLFLOW_TRACKING_URI" in lines[2]
    assert lines[-1] == "The default job cannot run without: MLflow."


def test_arguments_are_refused(capsys):
    assert doctor.main(["--fix"]) == 2
    assert "takes no arguments; got --fix" in capsys.readouterr().err


def probe(run, **more) -> doctor.Probe:
    return doctor.Probe(name="thing", run=run, fix="buy a new one", **more)


def test_the_table_by_hand():
    def broken() -> str:
        raise RuntimeError("bent")

    rows = doctor.examine([probe(lambda: "shiny"), probe(broken), probe(broken, required=False)])
    assert [(row.ok, row.required) for row in rows] == [(True, True), (False, True), (False, False)]
    assert doctor.table(rows) == (
        "ok        thing  shiny\n"
        "missing   thing  bent\n"
        "                 -> buy a new one\n"
        "optional  thing  bent\n"
        "                 -> buy a new one"
    )


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled: everyone who can reach"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "names /nowhere/token, which does not exist"),
    ],
)
def test_ray_without_authentication(monkeypatch, environment, text):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=text):
        doctor.ray_auth()


@pytest.mark.parametrize(
    ("environment", "detail"),
    [
        ({"RAY_TMPDIR": "/" + "x" * 90}, "Set a shorter one, e.g. RAY_TMPDIR=/tmp"),
        ({"RAY_TMPDIR": "/proc"}, "RAY_TMPDIR=/proc cannot be written (No such file or directory)"),
        ({"HOME": "/proc", "RAY_AUTH_MODE": "token"}, "/proc"),
    ],
)
def test_what_keeps_ray_from_starting_is_named(monkeypatch, environment, detail):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (row,) = doctor.examine([p for p in doctor.PROBES if p.name == "Ray starts"])
    assert not row.ok
    assert detail in row.detail


def test_a_token_that_others_can_read(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.ray_auth().startswith("on; Ray makes a token")
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    with pytest.raises(RuntimeError, match="can be read by other users"):
        doctor.ray_auth()
    token.chmod(0o600)
    assert doctor.ray_auth() == f"token in {token}"


def test_large_pages_that_linux_does_not_give(tmp_path):
    setting = tmp_path / "enabled"
    with pytest.raises(RuntimeError, match=f"^{setting}: missing; training on a CPU takes up to twice as long$"):
        doctor.large_pages(setting)
    setting.write_text("always madvise [never]\n")
    with pytest.raises(RuntimeError, match=f"^{setting}: never; training"):
        doctor.large_pages(setting)
    setting.write_text("always [madvise] never\n")
    assert doctor.large_pages(setting).startswith("madvise; glibc 2.")


def test_too_little_of_something():
    with pytest.raises(RuntimeError, match=r"0\.3 GB available; 3 are needed"):
        doctor.require_amount(0.3, 3, "GB available")


@pytest.mark.parametrize(
    ("script", "timeout_s", "detail"),
    [
        ("kill -SEGV $$", 300, "crashed (signal 11)"),
        ("exit 3", 300, "exit status 3"),
        ("exec sleep 1000", 0.5, "no answer within 0.5 s"),
    ],
)
def test_a_crash_in_a_probe_is_a_row(monkeypatch, tmp_path, script, timeout_s, detail):
    """A driver that kills its process, or never answers: the doctor survives and says so."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/bash\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    assert doctor.run_in_own_process(probe(doctor.pybullet, isolated=True, timeout_s=timeout_s)) == (False, detail)


def test_no_foreign_library_enters_this_process():
    code = "import sys, tap_ray.doctor; sys.exit(any(m in sys.modules for m in ('ray', 'mlflow', 'torch', 'pybullet')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_mesas_that_maniskill_cannot_draw_with():
    """Debian bookworm has 22.3, its backports 25.0; other makers' drivers are not known to fail."""
    assert doctor.too_old("Mesa 22.3.6 (LLVM 15.0.6)")
    assert doctor.too_old("Mesa 24.2.8")
    assert not doctor.too_old("Mesa 24.3.0-devel")
    assert not doctor.too_old("Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)")
    assert not doctor.too_old("550.54.15")
