"""The jobs with everything on a (loopback) S3 server: killed in between, run again, evaluated at the end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import align, collect_demos, collect_play, evaluate, pretrain
from tap_ray import storage
from tap_ray.dataset.verify import verify
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed.connect import connect
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.models.language import LanguageConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vision import VisionConfig
from tap_ray.play.explorers import ExplorerConfig
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.runs import read_json
from tap_ray.settings import AlignJobConfig, PretrainConfig
from tap_ray.training import checkpoint, session
from tap_ray.training.loop import TrainConfig
from tests.distributed import toy_player
from tests.distributed import toy_training as toy

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Train's own, about its future
]
DRIVER = Path(__file__).parents[1] / "distributed" / "toy_driver.py"
VISION = VisionConfig(widths=(8, 16), stem_width=8)
POLICY = PolicyConfig(
    vision=VISION,
    language=LanguageConfig(width=32),
    map_width=16,
    num_keypoints=8,
    head_width=32,
)
WINDOWS = WindowConfig(holdout_every=4, group_size=4)
SHORT = TrainConfig(steps=4, batch_size=8, checkpoint_every=2, validate_every=2, log_every=1)
PLAY = ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300))


@pytest.mark.long_proof
def test_play_to_evaluation(bucket: str, tmp_path: Path, mlflow_uri: str):
    root = storage.to_path(bucket)
    with connect(num_cpus=2):
        config = PlayJobConfig(episodes=8, max_steps=10, image_size=32, explorers=PLAY, out=root / "play")
        play = collect_play.main(config)
        local = collect_play.main(PlayJobConfig(**{**vars(config), "out": tmp_path / "play"}))
        for folder in ("data", "meta"):
            for file in (local / folder).rglob("*.*"):
                assert storage.read(play / file.relative_to(local)) == file.read_bytes()
        assert (play / "report" / "play.mp4").is_file()
        assert not [rule for rule in verify(play) if rule.problems]
        demos = collect_demos.main(
            DemosJobConfig(tasks=("put_carrot_on_plate",), episodes=4, image_size=32, out=root / "demos")
        )
        moves = pretrain.main(
            PretrainConfig(data=(str(play),), train=SHORT, windows=WINDOWS, policy=POLICY, out=root / "moves")
        )
        tap = align.main(
            AlignJobConfig(demos=demos, init=str(moves), train=SHORT, windows=WINDOWS, policy=POLICY, out=root / "tap")
        )
        evaluated = evaluate.main(
            EvaluateConfig(
                policy=str(tap), tasks=("put_carrot_on_plate",), episodes=2, max_steps=4, image_size=32,
                out=root / "evaluated",
            )
        )  # fmt: skip
    assert read_json(evaluated / "results.json")["policy"] == {"name": "tap", "run": f"{bucket}/tap"}
    assert read_json(tap / "manifest.json")["parents"]["init"]["path"] == f"{bucket}/moves"
    assert [path.name for path in (evaluated / "videos").iterdir()] == ["put_carrot_on_plate.mp4"]
    assert {path.name for path in root.iterdir()} == {"play", "demos", "moves", "tap", "evaluated"}  # no lock is left


@pytest.mark.long_proof
def test_ray_train_goes_on_where_a_killed_process_without_ray_was(bucket: str, tmp_path: Path):
    data, run = storage.to_path(f"{bucket}/play"), storage.to_path(f"{bucket}/run")
    toy_player.robots().write_dataset(data, 24)
    command = [sys.executable, str(DRIVER), str(run), str(data), "40"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([*command, "here", str(tmp_path / "hold")], env=env) as first:
        while checkpoint.latest(run / "checkpoints") is None:
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    assert 0 < session.newest_step(run) < 40
    assert subprocess.run(command, env=env, check=False).returncode == 0
    whole = tmp_path / "whole"
    session.work(toy.toy_task(whole, data, ray=False, steps=40, every=10))
    assert curve(run) == curve(whole)


def curve(run: Path) -> list[tuple[float, float]]:
    lines = session.read_metrics(run / "metrics.jsonl")
    return [(line["step"], line["toy/loss"]) for line in lines if "toy/loss" in line]
