"""A training run as the evaluated policy: an untrained network, saved and loaded by the project's own functions."""

import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import envs
from jobs import evaluate
from tap_ray import runs
from tap_ray.errors import CheckpointError, ConfigError, SpecError
from tap_ray.evaluate import trained
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.settings import EvaluateConfig, InferenceConfig
from tap_ray.inspect.features import policy_features
from tap_ray.inspect.probes import ProbeData
from tap_ray.types import EnvConfig
from tests.untrained import SPEC, untrained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a small policy for 32 px."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "align")


def test_only_images_of_the_same_size_fit(run):
    trained.require_fit(run, spec=SPEC, image_size=32)
    with pytest.raises(ConfigError, match=r"was trained on images of 32 px; got 96 px\. Use --image-size 32"):
        trained.require_fit(run, spec=SPEC, image_size=96)


def test_other_conventions(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text((run / "manifest.json").read_text())
    (other / "final").mkdir()
    values = SPEC.to_json() | {"control_hz": 10.0, "gripper": "0 open, 1 closed"}
    runs.write_json(other / "final" / "spec.json", values)
    runs.write_json(other / "final" / "policy.json", {"image_size": 32})
    with pytest.raises(SpecError) as caught:
        trained.require_fit(other, spec=SPEC, image_size=32)
    assert f"control_hz: robot 'widowx' has 5.0, policy {other} has 10.0" in str(caught.value)
    assert f"gripper: robot 'widowx' has '+1 open, -1 closed', policy {other} has '0 open, 1 closed'" in str(
        caught.value
    )


def test_no_policy(run, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--policy 'exprt' is neither a run folder nor a built-in policy. Did you mean 'expert'"
    ):
        trained.require_fit("exprt", spec=SPEC, image_size=32)
    with pytest.raises(CheckpointError, match="is neither a run folder nor a dataset of this project"):
        trained.require_fit(tmp_path, spec=SPEC, image_size=32)
    (tmp_path / "manifest.json").write_text((run / "manifest.json").read_text())
    with pytest.raises(CheckpointError, match=re.escape("final/spec.json is missing")):
        trained.require_fit(tmp_path, spec=SPEC, image_size=32)


def test_a_run_that_has_not_finished(tmp_path):
    runs.open_run(tmp_path / "half", job="align", config={"steps": 9})
    with pytest.raises(CheckpointError, match=r"half has not finished. Run its command again"):
        trained.require_fit(tmp_path / "half", spec=SPEC, image_size=32)
    runs.finish(runs.open_run(tmp_path / "first", job="pretrain", config={}))
    with pytest.raises(CheckpointError, match="first is a run of 'pretrain'; a run of 'align' is needed here"):
        trained.require_fit(tmp_path / "first", spec=SPEC, image_size=32)


def test_a_network_is_evaluated_in_batches(run):
    protocol = Protocol(tasks=("put_carrot_on_plate",), env_version="1", episodes=3, image_size=32, max_steps=5)
    robots = EpisodeRunner(
        protocol,
        envs.make_vector,
        lambda scene, num: trained.load(str(run), scene, num),
        lambda scene: failure_inputs_of(envs.spec(scene)),
    )
    together = robots.run(cells(protocol)).results
    alone = [robots.run([cell]).results[0] for cell in cells(protocol)]
    robots.close()
    assert [r.error for r in together] == [""] * 3
    assert [r.entire_once for r in together] == [r.entire_once for r in alone]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to measure on")
def test_no_time_is_measured_for_the_gpu_of_another_machine(run):
    assert trained.latency(str(run), device="cuda") == {}
    assert trained.latency(str(run))["policy"] > 0


def test_a_policy_that_is_no_network_is_not_shared():
    config = EvaluateConfig(policy="expert", inference=InferenceConfig(actors=2))
    with pytest.raises(
        ConfigError, match=r"^--inference.actors 2 is for trained policies, and --policy expert is none"
    ):
        evaluate.main(config)


def test_features_are_what_the_head_gets(run):
    rng = np.random.default_rng(0)
    data = ProbeData(
        rgb=rng.integers(0, 255, (70, 32, 32, 3), np.uint8),
        next_rgb=rng.integers(0, 255, (70, 32, 32, 3), np.uint8),
        state=np.zeros((70, len(SPEC.state)), np.float32),
        sentence=["put carrot on plate"] * 69 + ["serve the carrot on the plate"],
        episode=np.arange(70),
        target={},
    )
    features = policy_features(run, data)
    assert features.shape == (70, 32), "the read-out's width"
    assert np.isfinite(features).all()
    # Seed 0 again gives the very weights of the run; a frame's features do not depend on its batch.
    np.testing.assert_allclose(policy_features(run, data, fresh=True), features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long_proof
def test_from_the_shell(run, tmp_path):
    def job(verb, *flags):
        command = [sys.executable, "-m", f"jobs.{verb}", *map(str, flags)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)

    cells_of = ("--tasks", "put_carrot_on_plate", "--episodes", "2", "--max-steps", "8", "--image-size", "32")
    for policy, out in (("random", "r"), (run, "a")):
        completed = job("evaluate", "--policy", policy, *cells_of, "--out", out)
        assert completed.returncode == 0, completed.stderr
        assert completed.stdout.splitlines()[-1] == out
        assert (tmp_path / out / "videos" / "put_carrot_on_plate.mp4").exists()
    manifest = runs.require_done(tmp_path / "a", job="evaluate")
    assert manifest["parents"]["policy"]["hash"] == runs.hash_of(run)
    before = (tmp_path / "a" / "episodes.parquet").stat().st_mtime_ns
    again = job("evaluate", "--policy", run, *cells_of, "--out", "a", "--fleets", "1")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a" / "episodes.parquet").stat().st_mtime_ns == before
    compared = job("compare", "r", "a", "--out", "c")
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.splitlines()[-1] == "c"
    assert "McNemar" in compared.stdout
    assert (tmp_path / "c" / "compare.html").stat().st_size > 10_000


def test_a_policy_carries_its_weights_to_where_its_folder_is_not(run, tmp_path):
    """Pickled here, loaded from a copy whose folder is gone by then."""
    gone = tmp_path / "gone"
    shutil.copytree(run, gone)
    sent = pickle.dumps(trained.carried(str(gone)))
    shutil.rmtree(gone)
    scene = EnvConfig(image_size=32)
    arrived, here = pickle.loads(sent)(scene, 1), trained.load(str(run), scene, 1)
    weights = [dict(policy.bundle.network.state_dict()) for policy in (arrived, here)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
