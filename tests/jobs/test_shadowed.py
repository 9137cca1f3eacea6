"""Another project's package `envs` beside ours."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def start(cwd: Path, first: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{first}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-m", "jobs.evaluate", "--help"]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_a_foreign_envs_is_refused_by_its_place(tmp_path: Path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("def make(*_): return 'another robot'\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for cwd, first in ((tmp_path, elsewhere), (elsewhere, tmp_path)):
        refused = start(cwd, first)
        assert refused.returncode == 2
        [line] = refused.stderr.splitlines()
        assert f"at {REPOSITORY / 'envs'}, but `import envs` finds {tmp_path / 'envs'}." in line
    imported = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(tmp_path), str(REPOSITORY)]}; import jobs"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert imported.returncode == 1
    assert f"ImportError: The jobs need the package envs of tap_ray at {REPOSITORY / 'envs'}, but" in imported.stderr
    # The cure that it names.
    assert start(elsewhere, REPOSITORY).returncode == 0
