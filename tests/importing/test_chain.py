"""Foreign data to a policy by commands: import, inspect, Stage 1 on it as play, Stage 2 as demonstrations, evaluation.

Long: about six minutes a format on two cores. LEROBOT_PYTHON is a Python with lerobot 0.4.4, LEROBOT21_PYTHON one with
0.3.3 (a command, with PYTHONPATH where it needs one: "env PYTHONPATH=... python3").
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs import collect_demos
from tap_ray import runs
from tap_ray.dataset.layout import ACTION, IMAGE, STATE
from tap_ray.dataset.reader import open_dataset, read_episode
from tap_ray.exporting.mapping import mapping_yaml
from tap_ray.media.image import decode_jpeg
from tap_ray.play.settings import DemosJobConfig
from tests.importing.make_rlds import with_frame_of_rlds, write_rlds
from tests.importing.toy_arm import write_public

pytestmark = [
    pytest.mark.long_proof,
    pytest.mark.cluster,
    pytest.mark.timeout(3000),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
REPOSITORY = Path(__file__).parents[2]
SMALL = {"steps": 20, "batch-size": 16, "log-every": 10, "validate-every": 20, "checkpoint-every": 20}
TINY = [word for name, value in SMALL.items() for word in (f"--{name}", value)] + ["--windows.holdout-every", 3]
AS_PLAY = ["--objective.next-object", "0", "--objective.inverse-dynamics", "1"]
LEROBOT = {"v30": ("LEROBOT_PYTHON", "0.4.4"), "v21": ("LEROBOT21_PYTHON", "0.3.3")}


def job(where: Path, name: str, *arguments: object, status: int = 0) -> str:
    """What a job prints."""
    variables = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{where}/mlflow.db", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
    completed = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=1200)
    assert completed.returncode == status, completed.stdout[-3000:] + completed.stderr[-3000:]
    return completed.stdout + completed.stderr


def inspected(where: Path, data: Path) -> str:
    """What the inspection prints, with a result for each check; its page is there."""
    output = job(where, "inspect_dataset", "--data", data)
    checks = {check["name"] for check in runs.read_json(data / "inspection" / "report.json")["checks"]}
    assert {"whole", "rate", "smoothness", "consistency", "coverage", "contact", "gripper", "language"} <= checks
    assert (data / "inspection" / "index.html").exists()
    return output


@pytest.fixture(scope="module")
def our_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 demonstrations of our WidowX: what is written in the formats of others, and --like of the import."""
    out = tmp_path_factory.mktemp("ours") / "demos"
    return collect_demos.main(
        DemosJobConfig(tasks=("push_pumpkin_left", "put_carrot_on_plate"), episodes=12, fleets=2, out=out)
    )


def as_lerobot(demos: Path, kind: str, out: Path) -> Path:
    """The demonstrations as lerobot's own writer writes them, with video."""
    variable, version = LEROBOT[kind]
    if not (command := os.environ.get(variable)):
        pytest.skip(f"needs lerobot {version}: {variable}=a Python that has it")
    dataset = open_dataset(demos)
    given = {"fps": np.array(5)}
    for role in ("state", "action"):
        given[f"{role}_names"] = np.array([slot.name for slot in getattr(dataset.spec, role)])
    for index in range(len(dataset)):
        episode = read_episode(dataset, index)
        given[f"rgb_{index}"] = np.stack([decode_jpeg(data) for data in episode.image_jpeg])
        given |= {f"state_{index}": episode.state, f"action_{index}": episode.action}
        given[f"task_{index}"] = np.array(episode.task)
    np.savez(out.with_suffix(".npz"), **given)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = [*shlex.split(command), "tests/importing/rewrite.py", str(out.with_suffix(".npz")), str(out), "video"]
    subprocess.run(script, cwd=REPOSITORY, env=variables, check=True, timeout=600, capture_output=True)
    return out


def as_rlds(demos: Path, out: Path) -> Path:
    """The demonstrations by TFDS's schema."""
    dataset = open_dataset(demos)
    episodes = []
    for index in range(len(dataset)):
        episode = read_episode(dataset, index)
        images = np.stack([decode_jpeg(data) for data in episode.image_jpeg])
        columns = {IMAGE: images, STATE: episode.state, ACTION: episode.action}
        episodes.append(with_frame_of_rlds(columns | {"language_instruction": [episode.task] * len(episode)}))
    return write_rlds(out, episodes)


@pytest.mark.parametrize("kind", ["v30", "v21", "rlds"])
def test_foreign_data_become_a_policy_that_is_evaluated(kind: str, our_demos: Path, tmp_path: Path) -> None:
    source = as_rlds(our_demos, tmp_path / kind) if kind == "rlds" else as_lerobot(our_demos, kind, tmp_path / kind)
    values = yaml.safe_load(mapping_yaml(open_dataset(our_demos)))
    values |= {"fps": 5} if kind == "rlds" else {"camera": "observation.images.front"}
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(yaml.safe_dump(values))
    data, play, policy = (tmp_path / name for name in ("data", "play", "policy"))
    output = job(
        tmp_path,
        "import_dataset",
        "--source",
        source,
        "--mapping",
        mapping,
        "--like",
        our_demos,
        "--out",
        data,
        "--fleets",
        2,
    )
    assert "contact" not in output
    assert "24 episodes, " in inspected(tmp_path, data)
    # Stage 1 on a mixture: a third of each batch is of our own set, whose robot --like has given the imported one.
    output = job(tmp_path, "pretrain", "--data", f"{data}:2", our_demos, *AS_PLAY, "--out", play, *TINY)
    assert "play/inverse_mse" in output
    assert [*runs.read_json(play / "manifest.json")["parents"]] == ["data_0", "data_1"]
    output = job(tmp_path, "align", "--demos", data, "--init", play, "--out", policy, *TINY)
    assert "Stage 1 weights loaded: vision" in output
    output = job(
        tmp_path, "evaluate", "--policy", policy, "--episodes", 1, "--tasks", "push_pumpkin_left", "--fleets", 1,
        "--out", tmp_path / "evaluated",
    )  # fmt: skip
    assert "Avg-All" in output
    # What needs contact refuses by name.
    output = job(tmp_path, "pretrain", "--data", data, "--out", tmp_path / "no", *TINY, status=2)
    assert "has no finger contact (imported datasets have none)" in output


def test_a_set_like_bridge_becomes_a_policy_of_its_own_robot(our_demos: Path, tmp_path: Path) -> None:
    source = write_public("bridge", tmp_path / "public", 12)
    play, demos, first, policy = (tmp_path / name for name in ("play", "demos", "first", "policy"))
    job(tmp_path, "import_dataset", "--source", source, "--mapping", "bridge", "--out", play, "--fleets", 1)
    job(
        tmp_path, "import_dataset", "--source", source, "--mapping", "bridge", "--like", play, "--out", demos,
        "--omit", 0, "--fleets", 1,
    )  # fmt: skip
    assert "of robot widowx_bridge" in inspected(tmp_path, play)
    job(tmp_path, "pretrain", "--data", play, *AS_PLAY, "--out", first, *TINY)
    job(tmp_path, "align", "--demos", demos, "--init", first, "--out", policy, *TINY)
    output = job(tmp_path, "evaluate", "--policy", policy, "--episodes", 1, "--out", tmp_path / "evaluated", status=2)
    assert "do not match" in output
    assert "'widowx_bridge'" in output
    # A mixture with weights of the imported set and of our own: two robots, so of their motion only.
    both = ("--data", f"{play}:2", f"{our_demos}:1")
    output = job(tmp_path, "pretrain", *both, *AS_PLAY, "--out", tmp_path / "no", *TINY, status=2)
    assert f"robot: dataset {our_demos} has 'widowx', dataset {play} has 'widowx_bridge'" in output
    output = job(tmp_path, "pretrain_prior", *both, "--out", tmp_path / "prior", *TINY, "--prior.chunk", 4)
    assert "There is no video of widowx_bridge, because none of the installed simulators has this robot." in output
    assert (tmp_path / "prior/videos/interpolation-widowx.mp4").exists()


def record_pick_cube(folder: Path) -> Path:
    """Six episodes of ManiSkill's own recorder: a slow wave of the end effector, the gripper closing half-way."""
    gym = pytest.importorskip("gymnasium")
    pytest.importorskip("mani_skill.envs", reason="ManiSkill runs on Linux only")
    from mani_skill.utils.wrappers.record import RecordEpisode

    steps, size = 64, {"width": 96, "height": 96}
    env: Any = gym.make(
        "PickCube-v1", obs_mode="rgb", control_mode="pd_ee_target_delta_pos", sim_backend="physx_cpu",
        render_backend="cpu", sensor_configs=size, max_episode_steps=steps,
    )  # fmt: skip
    env = RecordEpisode(env, str(folder), save_video=False, trajectory_name="t", source_type="", source_desc="")
    for episode in range(6):
        env.reset(seed=episode)
        for step in range(steps):
            wave = 0.11 * np.sin(2 * np.pi * step / 40 + np.arange(3) + episode)
            env.step(np.append(wave, 1 if step < steps // 2 else -1).astype(np.float32))
    env.close()
    return folder / "t.h5"


@pytest.mark.filterwarnings("ignore")
def test_maniskills_own_recording_becomes_a_policy_that_is_evaluated_there(tmp_path: Path) -> None:
    source, adapter = record_pick_cube(tmp_path / "recorded"), "envs/foreign/adapters/maniskill_pick_cube.yaml"
    like, data, play, policy = (tmp_path / name for name in ("like", "data", "play", "policy"))
    there = ("--env", adapter, "--fleets", 1, "--max-steps", 20)
    job(tmp_path, "collect_play", *there, "--explorer", "waypoint", "--episodes", 2, "--out", like)
    mapping = REPOSITORY / "tests/importing/data/maniskill_pick_cube.yaml"
    job(tmp_path, "import_dataset", "--source", source, "--mapping", mapping, "--like", like, "--out", data)
    assert "6 episodes, " in inspected(tmp_path, data)
    job(tmp_path, "pretrain", "--data", data, *AS_PLAY, "--out", play, *TINY)
    job(tmp_path, "align", "--demos", data, "--init", play, "--out", policy, *TINY)
    output = job(tmp_path, "evaluate", "--policy", policy, "--episodes", 1, *there, "--out", tmp_path / "evaluated")
    assert "pick_cube" in output
