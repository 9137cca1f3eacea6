"""Against a real SQLite store and a real `mlflow server` on loopback; nothing is faked."""

import contextlib
import json
import math
import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tap_ray import tracking
from tap_ray.errors import StorageError
from tests.s3 import free_port


class Server:
    """A real `mlflow server` in its own process group and folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.log = open(folder / "server.log", "ab")  # noqa: SIM115  closed by stop()
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def wait(self) -> None:
        until = time.monotonic() + 400
        while self.process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=60).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"mlflow server did not start, see {self.log.name}")

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        self.log.close()


@pytest.fixture
def local(fresh, empty_mlflow):
    """A working directory with an empty default store."""
    shutil.copy(empty_mlflow, fresh / "mlflow.db")
    return fresh


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty working directory, and nothing said about tracking."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_mlflow):
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_mlflow, folder / "server.db")
    running = Server(folder, free_port())
    running.wait()
    yield running
    running.stop()


def stored(run: tracking.Run):
    return tracking.mlflow_client(run.uri).get_run(run.run_id)


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, tap_ray.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_default_store_is_a_file_here_and_artifacts_lie_beside_it(fresh):
    report = fresh / "report.txt"
    report.write_text("42")
    params = {"seed": 3, "model": {"width": 64, "layers": [1, 2]}, "out": None}
    with tracking.start("align", fresh / "runs" / "align-1", params) as run:
        run.log({"align/loss": 0.5, "align/r2@dx": 1.0}, step=1)
        run.log({"align/loss": 0.25}, step=2)
        run.artifact(report)
    found = stored(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "align-1"
    assert found.data.params == {"seed": "3", "model.width": "64", "model.layers": "[1, 2]", "out": "None"}
    assert found.data.metrics == {"align/loss": 0.25, "align/r2_dx": 1.0}
    assert [m.value for m in tracking.mlflow_client(run.uri).get_metric_history(run.run_id, "align/loss")] == [
        0.5,
        0.25,
    ]
    assert (fresh / "mlflow.db").exists()
    assert [p.read_text() for p in (fresh / "mlartifacts").rglob("report.txt")] == ["42"]
    assert sorted(p.name for p in fresh.iterdir()) == ["mlartifacts", "mlflow.db", "report.txt"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("robot on fire"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(0), "KILLED")],
)
def test_how_a_run_ends(local, error, status):
    with pytest.raises(type(error)), tracking.start("pretrain", local / "runs" / "p", {}) as run:
        raise error
    assert stored(run).info.status == status


def test_two_jobs_that_start_at_once_make_one_database(tmp_path):
    code = "from tap_ray import tracking\nwith tracking.start('align', 'a', {}) as run: run.log({'m': 1.0}, step=0)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    jobs = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [job.wait(timeout=400) for job in jobs] == [0, 0]


def test_parents_are_tags_and_a_single_one_nests(local):
    data = tracking.start("collect_play", local / "play", {})
    init = tracking.start("pretrain", local / "pretrain", {}, {"data": data.run_id})
    align = tracking.start("align", local / "align", {}, {"data": data.run_id, "init": init.run_id, "demos": None})
    assert stored(init).data.tags["mlflow.parentRunId"] == data.run_id
    tags = stored(align).data.tags
    assert tags["tap_ray.parent.init"] == init.run_id
    assert tags["tap_ray.parent.data"] == data.run_id
    assert "mlflow.parentRunId" not in tags
    assert "tap_ray.parent.demos" not in tags


def test_a_parent_on_another_server_is_only_a_tag(local):
    tags = stored(tracking.start("evaluate", local / "e", {}, {"policy": "f" * 32})).data.tags
    assert tags["tap_ray.parent.policy"] == "f" * 32
    assert "mlflow.parentRunId" not in tags


def test_a_resumed_job_goes_on_in_its_run(local):
    first = tracking.start("align", local / "a", {"seed": 1})
    first.log({"loss": 2.0}, step=1)
    first.finish("KILLED")
    again = tracking.start("align", local / "a", {"seed": 1}, run_id=first.run_id)
    assert again.run_id == first.run_id
    assert stored(again).info.status == "RUNNING"
    lost = tracking.start("align", local / "a", {"seed": 1}, run_id="0" * 32)
    assert lost.run_id != first.run_id


def test_run_id_of_a_folder(tmp_path):
    assert tracking.run_id_of(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"mlflow_run_id": "abc"}')
    assert tracking.run_id_of(tmp_path) == "abc"


def test_flatten_keeps_mlflows_limits():
    flat = tracking.flatten({"a": {"b$": "x" * 9000}, "k" * 300: 1, "none": {}})
    assert list(flat) == ["a.b_", "k" * 250]
    assert len(flat["a.b_"]) == 6000
    assert flat["a.b_"].endswith("...")


def test_more_params_and_metrics_than_a_batch_holds(local):
    run = tracking.start("sweep", local / "s", {f"p{i}": i for i in range(250)})
    run.log({f"m{i}": i for i in range(2500)}, step=0)
    run.finish()
    assert len(stored(run).data.params) == 250
    assert len(stored(run).data.metrics) == 2500


def test_an_absent_server_is_told_within_seconds(local, monkeypatch):
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    begin = time.monotonic()
    with pytest.raises(StorageError) as caught:
        tracking.start("align", local / "a", {})
    assert time.monotonic() - begin < 60  # MLflow itself would try again for minutes
    text = str(caught.value)
    assert uri in text
    assert "Connection refused" in text
    assert f"mlflow server --host 127.0.0.1 --port {uri.rsplit(':')[-1]}" in text
    assert "unset MLFLOW_TRACKING_URI" in text


def test_a_silent_server_is_told_too(local, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        uri = f"http://me:s3cret@127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(
            StorageError, match=r"^MLflow tracking at http://127.* cannot be reached: .*timed out"
        ) as error:
            tracking.client_of(uri)
        assert "s3cret" not in str(error.value)


def test_a_password_in_the_address_is_used_and_not_shown(fresh, server, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("://", "://me:s3cret@"))
    with tracking.start("align", fresh / "a", {}) as run:
        run.log({"loss": 1.0}, step=0)
    assert stored(run).data.metrics == {"loss": 1.0}
    lost = tracking.Run(uri=run.uri, run_id="0" * 32)
    lost.log({"loss": 1.0}, step=0)
    [record] = [r.getMessage() for r in caplog.records if r.name == "tap_ray.tracking"]
    assert record.startswith(f"MLflow at {server.uri} did not accept metrics; the job continues without it: ")
    assert "s3cret" not in record


def test_a_server_behind_a_proxy_is_left_to_mlflow(local, monkeypatch):
    """The proxy is away: MLflow's client says so, and we knock nowhere."""
    for name in ("http_proxy", "no_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9" if name == "http_proxy" else "")
    tracking.require_reachable("http://mlflow.invalid:5000")
    monkeypatch.setenv("no_proxy", "mlflow.invalid")
    with pytest.raises(StorageError, match=r"^MLflow tracking at http://mlflow\.invalid:5000 cannot be reached: "):
        tracking.require_reachable("http://mlflow.invalid:5000")


def test_artifacts_that_cannot_be_stored_are_told_once_and_end_nothing(local, monkeypatch, caplog):
    """Their bucket has no credentials here: botocore raises its own kind of error."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(local))  # ~/.aws
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    tracking.mlflow_client(tracking.tracking_uri()).create_experiment("elsewhere", artifact_location="s3://no-such/art")
    (local / "a.txt").write_text("a")
    with tracking.start("align", local / "a", {}) as run:
        run.artifact(local / "a.txt")
        run.log({"loss": 1.0}, step=0)
        run.artifact(local / "a.txt")
    assert stored(run).info.status == "FINISHED"
    messages = [r.getMessage() for r in caplog.records if r.name == "tap_ray.tracking"]
    assert len(messages) == 1
    assert "did not accept artifacts; the job continues without it: Unable to locate credentials" in messages[0]


def test_a_deleted_experiment_is_to_be_restored(local):
    run = tracking.start("align", local / "a", {})
    id = stored(run).info.experiment_id
    tracking.mlflow_client(run.uri).delete_experiment(id)
    with pytest.raises(StorageError) as error:
        tracking.start("align", local / "b", {})
    assert str(error.value) == (
        f"The MLflow experiment 'tap_ray' was deleted. Restore it (mlflow experiments restore -x {id}), or set "
        "MLFLOW_EXPERIMENT_NAME to another one."
    )


def test_a_database_of_another_mlflow_is_to_be_upgraded(local):
    with contextlib.closing(sqlite3.connect(local / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    tracking.mlflow_client.cache_clear()
    with pytest.raises(StorageError) as error:
        tracking.start("align", local / "a", {})
    text = str(error.value)
    assert "Detected out-of-date database schema" in text
    assert f"`mlflow db upgrade sqlite:///{local}/mlflow.db` after a backup, or move {local}/mlflow.db away." in text
    assert "Start a server" not in text
    assert "unset" not in text


@pytest.mark.parametrize("name", ["50% #1", "b & c=ü"])
def test_the_database_lies_in_the_working_directory_whatever_its_name(empty_mlflow, name, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    shutil.copy(empty_mlflow, tmp_path / name / "mlflow.db")
    monkeypatch.chdir(tmp_path / name)
    with tracking.start("align", "a", {}) as run:
        run.log({"loss": 1.0}, step=0)
    assert stored(run).data.metrics == {"loss": 1.0}
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["q?x", "a%20b"])
def test_a_working_directory_that_no_databases_address_can_name_is_refused(name, tmp_path, monkeypatch):
    """SQLite would make the file "q", or look into the folder "a b"."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    folder = re.escape(str(tmp_path / name))
    message = rf"^MLflow cannot store its database in {folder}, because .* or set MLFLOW_TRACKING_URI\."
    with pytest.raises(StorageError, match=message):
        tracking.start("align", "a", {})
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_database_that_cannot_be_written(local, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    with pytest.raises(StorageError, match=r"the folder /nowhere/at is missing or cannot be written"):
        tracking.start("align", local / "a", {})
    (local / "bad.db").write_text("this is no database, whatever it is called" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{local}/bad.db")
    with pytest.raises(StorageError, match=r"bad\.db cannot be reached"):
        tracking.start("align", local / "a", {})


def test_a_missing_artifact_is_an_error(local):
    with pytest.raises(FileNotFoundError, match=r"no\.png does not exist"):
        tracking.start("align", local / "a", {}).artifact(local / "no.png")


def test_a_real_server(fresh, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    (fresh / "table.md").write_text("| a |")
    parent = tracking.start("pretrain", fresh / "p", {"seed": 0})
    with tracking.start("align", fresh / "a", {"lr": 1e-3}, {"init": parent.run_id}) as run:
        for step in range(30):
            run.log({"align/loss": 1 / (1 + step)}, step=step)
        run.artifact(fresh / "table.md")
    found = stored(run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.001"}
    assert len(tracking.mlflow_client(run.uri).get_metric_history(run.run_id, "align/loss")) == 30
    assert [a.path for a in tracking.mlflow_client(run.uri).list_artifacts(run.run_id)] == ["table.md"]
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert not (fresh / "mlflow.db").exists()
    assert not (fresh / "mlartifacts").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1400,1600", "--virtual-time-budget=20000"),
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install -y chromium")
def test_mlflows_comparison_page_shows_two_runs(local, server, monkeypatch):
    """A browser opens MLflow's own page on two runs and finds names, parameters and metrics in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    runs = []
    for name, rate in (("align-scratch", 1e-3), ("align-tap", 3e-4)):
        with tracking.start("align", local / name, {"learning_rate": rate}) as run:
            for step in range(0, 200, 4):
                run.log({"align/loss": math.exp(-step * rate * 20)}, step=step)
        runs.append(run.run_id)
    experiment = stored(run).info.experiment_id
    query = urllib.parse.urlencode({"runs": json.dumps(runs), "experiments": json.dumps([experiment])})
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={local}/profile", "--dump-dom"]
    page = subprocess.run(
        [*command, f"{server.uri}/#/compare-runs?{query}"], capture_output=True, text=True, timeout=400
    ).stdout
    assert "Comparing 2 Runs" in page
    for text in ("align-scratch", "align-tap", "learning_rate", "0.001", "0.0003", "align/loss"):
        assert text in page


def test_a_pickled_run_handle_can_log(local, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = tracking.start("pretrain", local / "p", {})
    pickle.loads(pickle.dumps(run)).log({"idm/loss": 0.125}, step=7)
    assert stored(run).data.metrics == {"idm/loss": 0.125}


@pytest.mark.slow
@pytest.mark.long_proof
def test_a_server_that_dies_and_returns_loses_no_point(local, tmp_path_factory, monkeypatch, caplog):
    """The points logged while it is away arrive when it is back; nothing raises; it is reported once."""
    folder, port = tmp_path_factory.mktemp("mortal"), free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    first = Server(folder, port)
    try:
        first.wait()
        run = tracking.start("align", local / "a", {})
        run.log({"loss": 3.0}, step=0)
    finally:
        first.stop()
    run.log({"loss": 2.0}, step=1)
    run.log({"loss": 1.0}, step=2)
    assert [r.message[:40] for r in caplog.records if r.name == "tap_ray.tracking"] == [
        f"MLflow at http://127.0.0.1:{port} did not accept"[:40]
    ]
    second = Server(folder, port)
    try:
        second.wait()
        run.finish()
        history = tracking.mlflow_client(run.uri).get_metric_history(run.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
        assert stored(run).info.status == "FINISHED"
    finally:
        second.stop()
