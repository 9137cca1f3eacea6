"""What installed packages bring: examples/my_robot, installed into a folder of its own, and broken packages."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Iterable

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.kinematics.reachable import sample_poses
from envs.kinematics.solver import DOWN, kinematics
from envs.scene.scenarios import Scenario
from tap_ray.align import demos as stage_2
from tap_ray.dataset.crop_files import cut_block, missing_blocks
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import ConfigError
from tap_ray.evaluate import trained
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.own import POLICIES, installed_policy
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.play.collect import CollectPlan, collect
from tap_ray.play.demos import DemoFleet, DemoPlan
from tap_ray.play.explorers import EXPLORERS, ExplorerConfig, MixedConfig
from tap_ray.plugins import listing
from tap_ray.pretrain import from_play as stage_1
from tap_ray.rollout import rollout
from tap_ray.runs import finish, open_run
from tap_ray.specs import RobotSpec
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.types import ELSEWHERE, FIRST_OBJECT, GRIPPER, EnvConfig, Episode
from tests.small import SMALL

ROOT = Path(__file__).parents[1]
STUBBY = EnvConfig(robot="stubby", task="knock_over_bottle", image_size=32, max_steps=40)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples/my_robot was installed into, by pip and without the network."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(ROOT / "examples" / "my_robot", folder / "source")
    target = folder / "packages"
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    completed = subprocess.run([sys.executable, "-m", "pip", "install", *flags, source], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return target


@pytest.fixture
def my_robot(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)


def test_what_is_not_installed_is_not_there() -> None:
    assert "stubby" not in envs.ROBOTS
    with pytest.raises(ConfigError, match="Unknown robot 'stubby'"):
        envs.make(EnvConfig(robot="stubby"))


def test_it_is_listed_with_its_package(my_robot: None) -> None:
    output = listing()
    for there in ("stubby (my-robot 0.1.0)", "knock_over_bottle (my-robot 0.1.0)", "circles (my-robot 0.1.0)"):
        assert there in output
    assert "robots: widowx, panda, xarm6, iiwa, widowx_pair, stubby (my-robot 0.1.0)" in output
    assert "hover (my-robot 0.1.0)" in output


def test_suites_do_not_grow_with_what_is_installed(my_robot: None) -> None:
    assert "knock_over_bottle" in envs.tasks_of("pybullet")
    assert len(envs.suite_tasks("pybullet")) == 5
    assert envs.version_of("pybullet", "widowx", ("put_carrot_on_plate",)) == "3"
    assert envs.version_of("pybullet", "stubby", ("knock_over_bottle",)) == "3+my-robot-0.1.0"


def test_its_joints_turn_about_any_axis(my_robot: None) -> None:
    """All joints at zero: the arm points up from 0.14 m, then 0.42 m forward, as its URDF says."""
    arm = kinematics(envs.ROBOTS["stubby"].arm[0])
    position_m, matrix = arm.forward(np.zeros(6))
    np.testing.assert_allclose(position_m, [0.13 + 0.13 + 0.06 + 0.10, 0, 0.09 + 0.05 + 0.27], atol=1e-9)
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-9)
    turned_m, _ = arm.forward(np.array([np.pi / 2, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(turned_m, [0, 0.42, 0.41], atol=1e-9)
    target_m = np.array([0.3, 0.1, 0.05])
    joints = arm.inverse(target_m, DOWN, None)
    assert joints is not None
    np.testing.assert_allclose(arm.forward(joints)[0], target_m, atol=1e-4)


def test_its_expert_knocks_the_bottle_over_and_its_policy_does_not(my_robot: None) -> None:
    robots = envs.make_ee_control(STUBBY, 4)
    succeeded = {}
    for name, policy in (("expert", envs.make_expert(STUBBY, 4)), ("hover", installed_policy("hover")(STUBBY, 4))):
        runs = rollout(robots, policy, env_seeds=range(4), policy_seeds=range(4)).trajectories
        succeeded[name] = [bool(run.entire.any()) for run in runs]
    robots.close()
    assert succeeded == {"expert": [True] * 4, "hover": [False] * 4}


def test_its_simulator_is_one_of_ours(my_robot: None) -> None:
    """The expert pushes there as it does in PyBullet; the scene follows from the seed, the version from the package."""
    scene = EnvConfig(sim="flatland", task="push_pumpkin_left", image_size=32, robot_mask=True, segmentation=True)
    assert "maniskill_gpu, flatland (my-robot 0.1.0)" in listing()
    assert envs.version_of("flatland") == "1+my-robot-0.1.0"
    assert envs.sims_of("tabletop") == ("pybullet",)
    assert envs.sims_of("tabletop", "flatland") == ("pybullet", "flatland")
    assert envs.suite_tasks("flatland") == ("push_pumpkin_left",)
    check_env(envs.make(scene), skip_render_check=True)
    robots = envs.make_ee_control(scene, 4)
    runs = rollout(robots, envs.make_expert(scene, 4), env_seeds=range(4), policy_seeds=range(4)).trajectories
    robots.close()
    assert [bool(run.entire.any()) for run in runs] == [True] * 4
    assert all(run.contact.any() for run in runs)
    assert set(np.unique(runs[0].segmentation)) == {ELSEWHERE, GRIPPER, FIRST_OBJECT}  # type: ignore[arg-type]
    for wrong, text in (
        (
            replace(scene, task="put_carrot_on_plate"),
            "sim 'flatland' has no task 'put_carrot_on_plate'; it has push_pump",
        ),
        (replace(scene, robot="iiwa"), "sim 'flatland' has no robot 'iiwa'"),
        (replace(scene, scenario="background"), "flatland has no scenario: leave it out"),
        (replace(scene, sim="flatlant"), "Unknown simulator 'flatlant'. Did you mean 'flatland'?"),
    ):
        with pytest.raises(ConfigError, match=re.escape(text)):
            envs.make(wrong)


def test_robots_play_in_its_simulator(my_robot: None) -> None:
    plan = CollectPlan(env=EnvConfig(sim="flatland", image_size=32, max_steps=40), explorer="contact")
    arms = envs.spec(plan.env).arms
    episodes = [*collect(plan, envs.make_ee_control, sample_poses, arms=arms, num_episodes=2, num_robots=2)]
    assert all(episode.contact.any() for episode in episodes)
    moved_m = [np.ptp(episode.object_pose[:, :, :2], axis=0).max() for episode in episodes]
    assert min(moved_m) > 0.01


def test_a_policy_is_trained_and_evaluated_in_its_simulator(my_robot: None, tmp_path: Path) -> None:
    """Both stages and the evaluation, without Ray."""
    scene = EnvConfig(sim="flatland", robot="stubby", task="push_pumpkin_left", image_size=48, robot_mask=True)
    spec, task = envs.spec(scene), (scene.task,)
    plan = CollectPlan(env=replace(scene, max_steps=60), explorer="contact")
    played = collect(plan, envs.make_ee_control, sample_poses, arms=spec.arms, num_episodes=4)
    play = write(tmp_path / "play", spec, plan.to_json(), played)
    for block in missing_blocks(play, CROPS):
        cut_block(play, CROPS, block)
    shown = DemoPlan(tasks=task, env=scene, success_hold_steps=2)
    fleet = DemoFleet(shown, envs.make_ee_control, envs.make_expert)
    made = [outcome.episode for number in range(4) for outcome in fleet.run([number])]
    demos = write(tmp_path / "demos", spec, shown.to_json(), [episode for episode in made if episode])
    assert len(demos) == 4

    objective = stage_1.ObjectiveConfig()
    windows = objective.windows(WindowConfig(batch_size=8, holdout_every=4, horizon=2))
    first = stage_1.from_dataset(play, windows, policy=SMALL, config=objective, seed=0)
    fit(first.model.network, iterate(play, windows, seed=0), first.objective, TrainConfig(steps=2, batch_size=8))
    assert first.validate()["play/val_loss"] > 0
    first.save(tmp_path / "moves")
    align, policy = stage_2.AlignConfig(), replace(SMALL, num_context=16)
    windows = stage_2.resolve_windows(windows, align.weights)
    start = stage_2.StartFrom(init=tmp_path / "moves")
    second, _ = stage_2.from_dataset(demos, windows, policy=policy, config=align, start=start, seed=0)
    fit(second.model.network, iterate(demos, windows, seed=0), second.objective, TrainConfig(steps=2, batch_size=8))
    opened = open_run(tmp_path / "tap", job="align", config={})
    second.save(tmp_path / "tap")
    finish(opened)

    sizes = {"image_size": 48, "max_steps": 5, "episodes": 2, "robot": "stubby"}
    protocol = Protocol(tasks=task, sim="flatland", env_version=envs.version_of("flatland", "stubby", task), **sizes)
    load = partial(trained.load, str(tmp_path / "tap"))
    robots = EpisodeRunner(protocol, envs.make_vector, load, lambda scene: failure_inputs_of(envs.spec(scene)))
    assert [result.error for result in robots.run(cells(protocol)).results] == ["", ""]
    robots.close()


def write(path: Path, spec: RobotSpec, plan: dict, episodes: Iterable[Episode]) -> DatasetInfo:
    sizes = {"image_size": (48, 48), "num_objects": envs.NUM_SLOTS, "episodes_per_file": 4, "robot_mask": True}
    with DatasetWriter(path, DatasetHeader(spec=spec, plan=plan, **sizes)) as writer:
        for index, episode in enumerate(episodes):
            writer.append(replace(episode, index=index))
    return open_dataset(path)


def test_a_simulator_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brings(tmp_path, "hollow", "simulators", "hollow = hollow_code:HOLLOW", "HOLLOW = object()")
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.sims_of("tabletop") == ("pybullet",), "nobody asked for it"
    with pytest.raises(
        ConfigError, match=r"The simulator 'hollow' of the package hollow 2.0 .* must be a Simulator; got"
    ):
        envs.make(EnvConfig(sim="hollow"))


def test_its_scenario_changes_what_is_seen_and_not_the_scene(my_robot: None) -> None:
    assert envs.version_of("pybullet", "widowx", (), ("standard", "workbench")) == "3+my-robot-0.1.0"
    assert "workbench" not in envs.SCENARIOS.built_in
    seen, poses = {}, {}
    for name in ("standard", "workbench"):
        env = envs.make(EnvConfig(task="put_carrot_on_plate", scenario=name, image_size=64))
        obs, info = env.reset(seed=3)
        seen[name], poses[name] = obs["rgb"].astype(float), info["object_pose"]
        env.close()
    np.testing.assert_allclose(poses["workbench"], poses["standard"], atol=2e-3)
    bottom = {name: image[40:].reshape(-1, 3).mean(0) for name, image in seen.items()}  # the table
    assert bottom["workbench"][0] - bottom["workbench"][2] > 25, "brown"
    assert (np.abs(seen["workbench"] - seen["standard"]).max(-1) > 20).mean() > 0.5


def test_a_scenario_that_cannot_be_drawn() -> None:
    cloth = envs.SCENARIOS["background"].cloths[0]
    with pytest.raises(ConfigError, match="has 2 sets of distractors, 1 cloths and 0 camera offsets"):
        Scenario(name="odd", distractors=(("mug",), ("can",)), cloths=(cloth,))
    with pytest.raises(ConfigError, match=r"Scenario 'odd': unknown distractor 'mugg'\. Did you mean 'mug'\?"):
        Scenario(name="odd", distractors=(("mugg",),))


def test_its_explorer_plays_and_its_version_is_kept(my_robot: None) -> None:
    plan = CollectPlan(env=EnvConfig(robot="stubby", image_size=32, max_steps=30), explorer="circles")
    assert plan.to_json()["explorer_package"] == "my-robot 0.1.0"
    [episode] = collect(
        plan, envs.make_ee_control, sample_poses, arms=envs.spec(plan.env).arms, num_episodes=1, num_robots=1
    )
    assert episode.meta["explorer"] == "circles"
    tool_T3 = episode.state[10:, list(envs.spec(plan.env).arms[0].ee_pos)]
    spread_m = np.ptp(tool_T3, axis=0)
    assert 0.07 < spread_m[0] < 0.12  # a circle of 5 cm radius, flat
    assert 0.07 < spread_m[1] < 0.12
    assert spread_m[2] < 0.02


def test_its_explorer_plays_in_a_mixture(my_robot: None) -> None:
    mixed = MixedConfig(waypoint=0.5, contact=0, curious=0, others=("circles:0.5",))
    plan = CollectPlan(
        env=EnvConfig(robot="stubby", image_size=32, max_steps=10),
        explorer="mixed",
        explorers=ExplorerConfig(mixed=mixed),
    )
    assert plan.to_json()["explorer_package"] == "my-robot 0.1.0"
    arms = envs.spec(plan.env).arms
    episodes = [*collect(plan, envs.make_ee_control, sample_poses, arms=arms, num_episodes=6, num_robots=2)]
    assert {str(episode.meta["explorer"]) for episode in episodes} == {"circles", "waypoint"}


def test_a_mixture_with_an_explorer_that_is_not_installed() -> None:
    with pytest.raises(ConfigError, match=r"Unknown explorer 'circels'\. .*uniform, visual, waypoint"):
        CollectPlan(explorer="mixed", explorers=ExplorerConfig(mixed=MixedConfig(others=("circels:0.5",))))
    assert "others" not in CollectPlan(explorer="mixed").to_json()["explorers"]["mixed"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long_proof  # evaluate/test_own.py has a user's own code in Ray's workers
@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("collect_play --explorer circles", "2 episodes, 80 frames"),
        ("collect_demos --tasks knock_over_bottle", "2 episodes"),
        ("evaluate --policy hover --tasks knock_over_bottle", "hover"),
    ],
)
def test_the_jobs_know_it_in_rays_workers_too(
    job: str, expected: str, installed: Path, tmp_path: Path, mlflow_uri: str
):
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    common = f"--robot stubby --image-size 32 --max-steps 40 --fleets 1 --episodes 2 --out {tmp_path}/out"
    command = [sys.executable, "-m", *f"jobs.{job} {common}".split()]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings)
    assert completed.returncode == 0, completed.stderr
    assert expected in completed.stdout


def brings(folder: Path, package: str, kind: str, line: str, code: str = "") -> None:
    """Install a package of one module by hand."""
    about = folder / f"{package}-2.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n")
    (about / "entry_points.txt").write_text(f"[tap_ray.{kind}]\n{line}\n")
    (folder / f"{package}_code.py").write_text(code)


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        (
            "arm = broken_code:ARM",
            "import a_module_that_is_missing",
            "The robot 'arm' of the package broken 2.0 (broken_code:ARM) cannot be loaded: ModuleNotFoundError: "
            "No module named 'a_module_that_is_missing'. Fix that package, or uninstall it.",
        ),
        ("arm = broken_code:ARM", "", "broken_code:ARM) cannot be loaded: AttributeError"),
        (
            "arm = broken_code:ARM",
            "ARM = 3",
            "of the package broken 2.0 (broken_code:ARM) must be a RobotModel; got 3.",
        ),
    ],
)
def test_a_broken_package_is_named(
    line: str, code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brings(tmp_path, "broken", "robots", line, code)
    monkeypatch.delitem(sys.modules, "broken_code", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "arm (broken 2.0)" in listing()
    envs.make(EnvConfig(render=False)).close()  # what does not ask for it still works
    with pytest.raises(ConfigError) as error:
        envs.make(EnvConfig(robot="arm"))
    assert text in str(error.value)
    monkeypatch.delitem(sys.modules, "broken_code", raising=False)


def test_two_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brings(tmp_path, "copy", "explorers", "contact = copy_code:play")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"tap_ray and copy 2.0 each have the explorer 'contact'. Rename one"):
        EXPLORERS["contact"]


def test_what_is_no_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brings(tmp_path, "mute", "policies", "mute = mute_code:Mute", "class Mute: ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert POLICIES.package("mute") == "mute 2.0"
    with pytest.raises(ConfigError, match="Mute lacks reset and act"):
        installed_policy("mute")
