"""jobs.saliency on untrained networks and the real simulator, and every message of its."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

import envs
from envs.foreign.adapter import read_adapter
from jobs import saliency as job
from tap_ray import bounds, runs
from tap_ray.dataset.norm_stats import NormStats, SlotNorm
from tap_ray.errors import CheckpointError, ConfigError, SpecError, StorageError
from tap_ray.evaluate.protocol import Protocol
from tap_ray.inspect import filmstrips, saliency_report
from tap_ray.inspect.clips import clip_of, record_clips
from tap_ray.inspect.settings import SaliencyConfig
from tap_ray.job import run_job
from tap_ray.media.image import BAR_PX
from tap_ray.models.build import PolicyBundle, new_policy, save_bundle
from tap_ray.models.language import word_tokenizer
from tap_ray.models.policy import PolicyConfig
from tap_ray.specs import RobotSpec
from tap_ray.types import Cell, EnvConfig, Trajectory
from tests import untrained
from tests.line_world import Forward, line_robots
from tests.slider import write_adapter
from tests.small import VISION

TINY = PolicyConfig(context=("language",), vision=VISION, **untrained.TINY)
GOAL = replace(TINY, context=("goal",))
CARROT = ("put_carrot_on_plate",)


def unit(slots):
    return SlotNorm(names=tuple(s.name for s in slots), offset=(0.0,) * len(slots), scale=(1.0,) * len(slots))


def made(folder: Path, config: PolicyConfig, *, robot: str = "widowx", spec: RobotSpec | None = None) -> Path:
    """A finished run of an untrained policy: Stage 2's with words, else Stage 1's."""
    stage = 2 if "language" in config.context else 1
    spec = spec or envs.spec(EnvConfig(robot=robot))
    tokenizer = word_tokenizer(envs.TASKS[CARROT[0]].sentence) if stage == 2 else None
    config = replace(config, num_actions=len(spec.action), num_state=len(spec.state))
    norm = NormStats(state=unit(spec.state), action=unit(spec.action))
    policy = new_policy(config, seed=0, tokenizer=tokenizer)
    opened = runs.open_run(folder, job="align" if stage == 2 else "pretrain", config={"robot": robot})
    save_bundle(folder / "final", PolicyBundle(network=policy, spec=spec, norm=norm, tokenizer=tokenizer))
    runs.finish(opened)
    return folder


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Run folders of both stages: inverse dynamics, crops, and words."""
    folder = tmp_path_factory.mktemp("runs")
    moves, finds = replace(TINY, context=("goal",)), replace(TINY, context=("crops",))
    return made(folder / "moves", moves), made(folder / "finds", finds), made(folder / "does", TINY)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written beside the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # imageio's reader leaves its pipes to the collector
def test_both_stages_look_at_the_expert(
    stages: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = SaliencyConfig(policy=stages, tasks=CARROT, episodes=2, max_steps=6, every=2, out=tmp_path / "look")
    assert job.main(config) == tmp_path / "look"
    shown = capsys.readouterr().out
    assert "95 % bootstrap over 2 episodes, 10 frames" in shown  # 6 frames each, the last is a goal only
    assert "share of the map on the gripper, does, image - moves, image:" in shown
    report = runs.read_json(tmp_path / "look" / "saliency.json")
    assert report["stage"] == {"moves": 1, "finds": 1, "does": 2}
    assert list(report["all"]) == [
        "moves, image",
        "moves, image, fresh weights",
        "image, at best of 4 x 4 cells",
        "moves, goal",
        "moves, goal, fresh weights",
        "goal, at best of 4 x 4 cells",
        "finds, image",
        "finds, image, fresh weights",
        "does, image",
        "does, image, fresh weights",
    ]
    for name, regions in report["all"].items():
        parts = [regions[name] for name in ("gripper", "objects", "arm", "elsewhere")]
        assert sum(part["pixels"] for part in parts) == pytest.approx(1)
        if "at best" not in name:  # there each region has a map of its own
            assert sum(part["mass"] for part in parts) == pytest.approx(1, abs=1e-4)
    strip = iio.imread(tmp_path / "look" / "strips" / "put_carrot_on_plate-000.png")
    # Steps 0 2 4 of 32 px six times as large; the camera and four maps, each below a bar, one bar for the sentence.
    assert strip.shape == (6 * BAR_PX + 5 * 192, 3 * 192, 3)
    video = iio.imread(tmp_path / "look" / "videos" / "put_carrot_on_plate-001.mp4", plugin="FFMPEG")
    assert video.shape[0] == 5
    before = (tmp_path / "look" / "saliency.json").stat().st_mtime_ns
    job.main(config)  # finished: nothing is done again, the table is shown
    assert "does, image" in capsys.readouterr().out
    assert (tmp_path / "look" / "saliency.json").stat().st_mtime_ns == before


def test_a_stage_2_policy_drives_itself(
    stages: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(envs, "make_expert", lambda *_: pytest.fail("nobody asked for the expert"))
    job.main(SaliencyConfig(policy=stages[2:], tasks=CARROT, episodes=1, max_steps=4, out=tmp_path / "own"))
    assert runs.read_json(tmp_path / "own" / "saliency.json")["frames"] == 3


def test_a_simulator_without_segmentation_is_refused():
    protocol = Protocol(tasks=("line",), env_version="1", episodes=1, max_steps=4, image_size=8)
    shown = record_clips(protocol, lambda scene, num: line_robots(num, scene), lambda *_: Forward(), ahead=1)
    with pytest.raises(ConfigError, match=re.escape("sim 'pybullet' has no segmentation")):
        next(shown)


def test_a_film_is_cut_after_the_task():
    cell = Cell(task="line", scenario="standard", initial_state=0, seed=0)
    entire = np.arange(9) >= 3
    trajectory = Trajectory(
        rgb=np.zeros((9, 8, 8, 3), np.uint8),
        state=np.zeros((9, 2), np.float32),
        action=np.zeros((9, 7), np.float32),
        contact=entire,
        object_pose=np.zeros((9, 1, 7), np.float32),
        robot_mask=np.zeros((9, 8, 8), np.uint8),
        partial=entire,
        entire=entire,
        object_name=("",),
        instruction="go",
        num_clipped=0,
        segmentation=np.zeros((9, 8, 8), np.uint8),
    )
    # The action at step 3 completes it: frames 0 .. 3, and two more that are their goals.
    clip = clip_of(cell, trajectory, sim="pybullet", ahead=2)
    assert (len(clip.state), len(clip.rgb), len(clip.segmentation)) == (4, 6, 6)
    assert clip.crops["crop_mask"].tolist() == [[False, False]] * 4, "nothing was moved"
    never = clip_of(cell, replace(trajectory, entire=entire & False), sim="pybullet", ahead=2)
    assert (len(never.state), len(never.rgb)) == (7, 9)


def test_an_environment_of_others_tells_where_the_robot_is_at_most(tmp_path: Path):
    """The slider's mask is the upper half of its images: half of the pixels are the robot's, no gripper is known."""
    env = write_adapter(tmp_path)
    spec = read_adapter(env).spec
    words, moves = made(tmp_path / "words", TINY, spec=spec), made(tmp_path / "moves", GOAL, spec=spec)
    config = SaliencyConfig(policy=(words, moves), env=env, episodes=1, max_steps=4, out=tmp_path / "look")
    job.main(config)
    report = runs.read_json(tmp_path / "look" / "saliency.json")
    seen = report["all"]["words, image"]
    assert seen["arm"]["pixels"] == seen["elsewhere"]["pixels"] == 0.5
    assert seen["arm"]["mass"] + seen["elsewhere"]["mass"] == pytest.approx(1, abs=1e-4)
    assert seen["gripper"]["mass"] is seen["objects"]["pixels"] is None
    assert [episode["task"] for episode in report["episodes"]] == ["slide"]
    finds = made(tmp_path / "finds", replace(TINY, context=("crops",)), spec=spec)
    silent = write_adapter(tmp_path, contact="", robot_mask="")
    with pytest.raises(ConfigError, match=r"finds looks for what crops show, .*robot_mask, contact\)"):
        job.main(SaliencyConfig(policy=(finds,), env=silent))
    with pytest.raises(ConfigError, match="has only the task 'slide'; got --tasks put_carrot"):
        job.main(SaliencyConfig(policy=(words,), env=env, tasks=CARROT))
    job.main(replace(config, env=silent, policy=(words,), out=tmp_path / "images"))
    blind = runs.read_json(tmp_path / "images" / "saliency.json")["all"]["words, image"]
    assert all(numbers["mass"] is None for numbers in blind.values())
    assert (tmp_path / "images" / "strips" / "slide-000.png").exists()


def test_an_overlay_by_hand():
    rgb = np.full((1, 1, 2, 3), 100, np.uint8)
    seen = filmstrips.overlay(rgb, np.array([[[0.0, 5.0]]]))
    assert seen[0, 0, 0].tolist() == [100, 100, 100]  # nothing there: the frame as it is
    red, green, blue = seen[0, 0, 1].tolist()
    assert red > green
    assert red > blue
    np.testing.assert_array_equal(filmstrips.overlay(rgb, np.zeros((1, 1, 2))), rgb)


def test_a_strip_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Cannot write .*strip\.png: .*name another folder with --out"):
        filmstrips.write_strip(
            tmp_path / "file" / "strip.png", {"a": np.zeros((1, 8, 8, 3), np.uint8)}, title="", every=1
        )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"goal_offset": 0}, "--goal-offset must be at least 1; got 0."),
        ({"every": 0}, "--every must be at least 1; got 0."),
        ({"max_steps": 3, "goal_offset": 3}, "max_steps must be more than goal_offset, 3; got 3."),
    ],
)
def test_numbers_that_cannot_be(values: dict[str, int], text: str):
    with pytest.raises(ConfigError, match=re.escape(text)):
        bounds.check(SaliencyConfig(policy=(Path("x"),), **values))  # type: ignore[arg-type]


def test_runs_that_cannot_look(stages: tuple[Path, Path, Path], tmp_path: Path):
    moves, _, does = stages

    def of(*paths: Path, **more: str):
        return saliency_report.load_policies(SaliencyConfig(policy=paths, **more))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="--policy must name at least one run folder"):
        of()
    with pytest.raises(CheckpointError, match=r"nowhere does not exist\. Give a run folder or a dataset"):
        of(tmp_path / "nowhere")
    runs.open_run(tmp_path / "half", job="align", config={})
    with pytest.raises(CheckpointError, match="half has not finished"):
        of(tmp_path / "half")
    runs.finish(runs.open_run(tmp_path / "evaluated", job="evaluate", config={}))
    with pytest.raises(CheckpointError, match="evaluated is a run of 'evaluate'; a run of 'align' is needed here"):
        of(tmp_path / "evaluated")
    runs.finish(runs.open_run(tmp_path / "prior", job="pretrain", config={}))
    with pytest.raises(CheckpointError, match="contains no policy"):
        of(tmp_path / "prior")
    with pytest.raises(ConfigError, match="must have different names; got does, does"):
        of(does, does)
    with pytest.raises(ConfigError, match=re.escape("Only a single policy of Stage 2 (jobs.align) can move the robot")):
        of(moves, driver="policy")
    with pytest.raises(ConfigError, match=re.escape("Only a single policy of Stage 2 (jobs.align) can move the robot")):
        of(moves, does, driver="policy")
    small = made(tmp_path / "small", replace(TINY, image_size=16))
    with pytest.raises(ConfigError, match="images of the same size and the same robot; got does 32 px, small 16 px"):
        of(does, small)


def test_policies_of_two_robots(stages: tuple[Path, Path, Path], tmp_path: Path):
    other = made(tmp_path / "joints", TINY, robot="iiwa")
    with pytest.raises(SpecError, match="policy joints"):
        job.main(SaliencyConfig(policy=(stages[2], other), tasks=CARROT))


def test_a_mistake_ends_with_one_line(
    stages: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["look", "--policy", str(stages[2]), "--tasks", "put_carrot_on_plat"])
    with pytest.raises(SystemExit) as ended:
        run_job(job.main, SaliencyConfig)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: Unknown task 'put_carrot_on_plat'. Did you mean")
