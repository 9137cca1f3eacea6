"""Two cameras through everything, without Ray: play, demonstrations, Stage 1, Stage 2, evaluation, serving, export."""

import dataclasses
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import envs
from envs.kinematics.reachable import sample_poses
from jobs import probe, saliency
from tap_ray.align import demos as stage_2
from tap_ray.dataset.crop_files import cut_block, missing_blocks
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.layout import image_columns
from tap_ray.dataset.reader import DatasetInfo, open_dataset, read_episode
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.statistics import image_stats
from tap_ray.dataset.verify import verify
from tap_ray.dataset.windows import WindowConfig, group_batches
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.record import header_of
from tap_ray.errors import ConfigError, DataError, SpecError
from tap_ray.evaluate import trained
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.exporting.export import MAPPING, export
from tap_ray.exporting.settings import ExportConfig
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.mapping import require_fits
from tap_ray.importing.settings import open_source, read_mapping
from tap_ray.inspect import probes
from tap_ray.inspect.dataset import frames
from tap_ray.inspect.dataset.content_checks import images
from tap_ray.inspect.features import policy_features
from tap_ray.inspect.settings import ProbeConfig, SaliencyConfig
from tap_ray.media.image import BAR_PX, decode_frames, decode_jpeg, encode_jpeg
from tap_ray.models.build import new_policy
from tap_ray.models.inference import load_policy
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.play.collect import CollectPlan, collect
from tap_ray.play.demos import DemoFleet, DemoPlan
from tap_ray.pretrain import from_play as stage_1
from tap_ray.runs import finish, open_run, read_json
from tap_ray.serving.client import RemotePolicy
from tap_ray.training.batches import AugmentConfig, augment
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.types import EnvConfig, Episode
from tests.serving.served import serving
from tests.small import SMALL
from tests.tiny_vlm import tiny_vlm

BOTH = ("main", "wrist")
SCENE = EnvConfig(image_size=48, cameras=BOTH, robot_mask=True)
SPEC = envs.spec(SCENE)
POLICY = dataclasses.replace(SMALL, num_state=1, num_context=16)
TRAIN = TrainConfig(steps=2, batch_size=16)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    """4 episodes of 40 steps, their crops cut."""
    plan = CollectPlan(env=dataclasses.replace(SCENE, max_steps=40), explorer="contact")
    episodes = collect(plan, envs.make_ee_control, sample_poses, arms=SPEC.arms, num_episodes=4)
    dataset = written(tmp_path_factory.mktemp("data") / "play", plan, episodes)
    for block in missing_blocks(dataset, CROPS):
        cut_block(dataset, CROPS, block)
    return dataset


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    plan = DemoPlan(tasks=("push_pumpkin_left",), env=SCENE, success_hold_steps=2)
    fleet = DemoFleet(plan, envs.make_ee_control, envs.make_expert)
    kept = [outcome.episode for number in range(5) for outcome in fleet.run([number]) if outcome.episode]
    fleet.robots.close()
    episodes = [dataclasses.replace(episode, index=index) for index, episode in enumerate(kept)]
    return written(tmp_path_factory.mktemp("data") / "demos", plan, episodes)


@pytest.fixture(scope="module")
def run(play: DatasetInfo, demos: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of both stages."""
    folder = tmp_path_factory.mktemp("runs")
    objective = stage_1.ObjectiveConfig(inverse_dynamics=0.5)
    windows = objective.windows(WindowConfig(batch_size=16, holdout_every=4, horizon=2))
    stage = stage_1.from_dataset(play, windows, policy=POLICY, config=objective, seed=0)
    fit(stage.model.network, iterate(play, windows, seed=0), stage.objective, TRAIN)
    assert np.isfinite(list(stage.validate().values())).all()
    stage.save(folder / "moves")
    config = stage_2.AlignConfig()
    windows = stage_2.resolve_windows(WindowConfig(batch_size=16, holdout_every=4, horizon=2), config.weights)
    start = stage_2.StartFrom(init=folder / "moves")
    stage, loaded = stage_2.from_dataset(demos, windows, policy=POLICY, config=config, start=start, seed=0)
    assert "loaded: vision, join, keypoints, cameras" in str(loaded)
    fit(stage.model.network, iterate(demos, windows, seed=0), stage.objective, TRAIN)
    opened_run = open_run(folder / "tap", job="align", config={})
    stage.save(folder / "tap")
    finish(opened_run)
    return folder / "tap"


def written(path: Path, plan: Any, episodes: Any) -> DatasetInfo:
    with DatasetWriter(path, header_of(plan, SPEC, num_objects=envs.NUM_SLOTS)) as writer:
        for episode in episodes:
            writer.append(episode)
    return open_dataset(path)


def test_columns_of_a_dataset(play: DatasetInfo) -> None:
    """A column a camera, whose images, sizes and statistics keep every rule of the format."""
    assert image_columns(play.spec) == ("observation.images.main", "observation.images.wrist")
    assert list(play.info["features"])[:3] == [*image_columns(play.spec), "observation.images.robot_mask"]
    assert [rule for rule in verify(play.path) if rule.problems] == []
    episode = read_episode(play, 0)
    [wrist] = episode.extra_jpeg
    assert decode_jpeg(wrist[0]).shape == (48, 48, 3)
    mean = play.stats["observation.images.wrist"]["mean"].ravel()
    every = np.concatenate([decode_frames(read_episode(play, index).extra_jpeg[0]) for index in range(len(play))])
    np.testing.assert_allclose(mean, every.mean(axis=(0, 1, 2)) / 255, atol=0.01)  # of the frames before JPEG


def test_a_second_camera_changes_neither_images_nor_motion(play: DatasetInfo) -> None:
    """A second camera changes neither the first one's images nor the motion."""
    plan = CollectPlan(env=dataclasses.replace(SCENE, max_steps=40, cameras=("main",)), explorer="contact")
    [alone] = collect(plan, envs.make_ee_control, sample_poses, arms=SPEC.arms, num_episodes=1)
    both = read_episode(play, 0)
    assert list(both.image_jpeg) == list(alone.image_jpeg)
    np.testing.assert_array_equal(both.action, alone.action)
    assert "cameras" not in plan.to_json()["env"]


def test_the_gripper_is_always_seen_by_its_own_camera(play: DatasetInfo) -> None:
    """The fingers stand still in the wrist's image and the table does not: its upper half changes least."""
    wrist = decode_frames(read_episode(play, 0).extra_jpeg[0]).astype(float)
    above, below = wrist[:, :6].std(axis=0).mean(), wrist[:, 24:].std(axis=0).mean()
    assert above < 0.5 * below


def test_windows_pair_both_cameras(play: DatasetInfo) -> None:
    config = WindowConfig(batch_size=8, k_max=3)
    window = next(group_batches(play, [1], config, seed=0, epoch=0))
    episode = read_episode(play, 1)
    main, wrist = (decode_frames(files) for files in (episode.image_jpeg, *episode.extra_jpeg))
    assert window.extra_rgb is not None
    assert window.goal_extra_rgb is not None
    for row in range(8):
        [now] = np.flatnonzero((main == window.rgb[row]).all(axis=(1, 2, 3)))[:1]
        np.testing.assert_array_equal(window.extra_rgb[row, 0], wrist[now])
        np.testing.assert_array_equal(window.goal_extra_rgb[row, 0], wrist[now + window.k[row]])


def test_each_camera_is_shifted_by_itself_and_both_frames_of_a_pair_alike() -> None:
    ramp = torch.arange(20, dtype=torch.uint8)[None, None, :, None].expand(64, 20, 20, 3)
    batch = {"rgb": ramp, "goal_rgb": ramp, "extra_rgb": ramp[:, None], "goal_extra_rgb": ramp[:, None]}
    out = augment(batch, AugmentConfig(shift_px=4), seed=0, step=0, rank=0)
    torch.testing.assert_close(out["extra_rgb"], out["goal_extra_rgb"])
    moved = [out[name].reshape(64, 20, 20, 3)[:, 10, 10, 0].int() - 10 for name in ("rgb", "extra_rgb")]
    assert (moved[0] != moved[1]).float().mean() > 0.7
    assert set(moved[1].tolist()) == set(range(-4, 5))
    alone = augment({"rgb": ramp}, AugmentConfig(shift_px=4), seed=0, step=0, rank=0)
    torch.testing.assert_close(alone["rgb"], out["rgb"])


@pytest.mark.parametrize("towers", ["own", "shared"])
def test_the_policy_reads_both_under_the_same_context(towers: Any) -> None:
    config = dataclasses.replace(
        SMALL, context=("crops", "goal"), num_cameras=3, camera_towers=towers, vision=SMALL.vision
    )
    policy = new_policy(config, seed=0).eval()
    rgb = torch.randint(0, 255, (4, 48, 48, 3), dtype=torch.uint8)
    extra = torch.randint(0, 255, (4, 2, 48, 48, 3), dtype=torch.uint8)
    crops = {name: torch.randint(0, 255, (4, 12, 12, 3), dtype=torch.uint8) for name in ("object_crop", "place_crop")}
    batch = {"rgb": rgb, "goal_rgb": rgb.flip(0), "extra_rgb": extra, "goal_extra_rgb": extra.flip(0), **crops}
    batch["crop_mask"] = torch.ones(4, 2, dtype=torch.bool)
    seen = policy(batch)
    for name, other in (("extra_rgb", 255 - extra), ("object_crop", 255 - crops["object_crop"])):
        assert not torch.allclose(policy({**batch, name: other})["action"], seen["action"], atol=1e-5), name
    points: list[torch.Tensor] = []
    policy.cameras.register_forward_hook(lambda _, inputs, out: points.append(out))
    policy({**batch, "object_crop": 255 - crops["object_crop"]})
    policy(batch)
    changed, original = (out[:4] for out in points)
    assert changed.shape == (4, 2 * 3 * SMALL.num_keypoints)
    assert not torch.allclose(changed, original, atol=1e-5), "the context reaches the other cameras' key points"
    goal = policy({**batch, "goal_extra_rgb": extra})["inverse_action"]
    assert not torch.allclose(goal, seen["inverse_action"], atol=1e-5)
    has_own = any(name.startswith("cameras.vision.") for name in policy.state_dict())
    assert has_own == (towers == "own")


def test_one_camera_leaves_no_trace(tmp_path: Path) -> None:
    assert not [name for name in new_policy(SMALL_GOAL, seed=0).state_dict() if name.startswith("cameras")]
    assert "cameras" not in envs.spec(EnvConfig()).to_json()
    with pytest.raises(ConfigError, match=r"policy\.camera_towers has no effect with one camera"):
        new_policy(dataclasses.replace(SMALL_GOAL, camera_towers="shared"), seed=0)


SMALL_GOAL = dataclasses.replace(SMALL, context=("goal",))


def test_a_policy_is_evaluated_on_what_it_was_trained_on(run: Path) -> None:
    protocol = Protocol(
        tasks=("push_pumpkin_left",), env_version="1", episodes=2, image_size=48, max_steps=3, cameras=BOTH
    )
    trained.require_fit(run, spec=SPEC, image_size=48)
    robots = EpisodeRunner(
        protocol,
        envs.make_vector,
        lambda scene, num: trained.load(str(run), scene, num),
        lambda scene: failure_inputs_of(envs.spec(scene)),
    )
    assert [result.error for result in robots.run(cells(protocol)).results] == ["", ""]
    robots.close()
    with pytest.raises(SpecError, match=r"cameras: robot 'widowx' has \[main\], policy .* has \[main, wrist\]"):
        trained.require_fit(run, spec=envs.spec(EnvConfig()), image_size=48)
    one = dataclasses.replace(protocol, cameras=("main",))
    assert one.hash != protocol.hash
    assert "cameras" not in one.to_json()
    with pytest.raises(ConfigError, match="This policy needs images of the cameras main, wrist; got images of other"):
        load_policy(run)[0].chunk(np.zeros((1, 48, 48, 3), np.uint8), np.zeros((1, len(SPEC.state))), ["push it"])


def test_the_features_of_each_camera(run: Path, play: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the key points of one camera say does not depend on the other's image."""
    monkeypatch.setattr(probes, "HOLDOUT_EVERY", 2)  # there are four episodes
    data = probes.read_frames(play, num_episodes=0, every=8)
    assert data.rgb.shape == data.next_rgb.shape == (len(data.episode), 2, 48, 48, 3)
    main, wrist = (policy_features(run, data, camera=camera) for camera in BOTH)
    assert main.shape == wrist.shape == (len(data.episode), 3 * SMALL.num_keypoints)
    dark = dataclasses.replace(data, rgb=data.rgb * np.array([1, 0], np.uint8)[:, None, None, None])
    np.testing.assert_array_equal(policy_features(run, dark, camera="main"), main)
    assert np.abs(policy_features(run, dark, camera="wrist") - wrist).max() > 0.01
    assert {"gripper"} <= set(probes.probe(policy_features(run, data), data))
    with pytest.raises(ConfigError, match="tap reads the cameras main, wrist, and the dataset has main"):
        policy_features(run, dataclasses.replace(data, cameras=("main",)))
    with pytest.raises(ConfigError, match="tap is of a robot with 14 numbers of state, and the dataset's has 15"):
        policy_features(run, dataclasses.replace(data, state=np.zeros((len(data.state), 15), np.float32)))  # a Panda's


def test_probes_of_an_image_text_model(
    play: DatasetInfo, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no key points, so there are no rows of single cameras; its fresh weights are not those of the hub."""
    monkeypatch.setattr(probes, "HOLDOUT_EVERY", 2)
    policy = PolicyConfig(
        head_width=32, num_context=16, vlm=VlmConfig(pretrained=tiny_vlm("smolvlm", tmp_path / "vlm"))
    )
    objective = stage_1.ObjectiveConfig(next_object=0, inverse_dynamics=1)
    windows = objective.windows(WindowConfig(batch_size=16, holdout_every=4))
    opened_run = open_run(tmp_path / "moves", job="pretrain", config={})
    stage_1.from_dataset(play, windows, policy=policy, config=objective, seed=0).save(opened_run.path)
    finish(opened_run)
    config = ProbeConfig(policy=opened_run.path, data=play.path, every=8, out=tmp_path / "probe")
    scores = read_json(probe.main(config) / "probe.json")
    assert list(scores) == ["trained", "fresh weights"]
    assert scores["trained"]["gripper"]["num_test"] == scores["fresh weights"]["gripper"]["num_test"] == 10
    assert scores["trained"]["gripper"] != scores["fresh weights"]["gripper"]


def test_a_saliency_map_for_each_camera(run: Path, tmp_path: Path, mlflow_uri: str) -> None:
    config = SaliencyConfig(policy=(run,), tasks=("push_pumpkin_left",), episodes=1, max_steps=3, out=tmp_path / "look")
    saliency.main(config)
    assert list(read_json(tmp_path / "look" / "saliency.json")["all"]) == [
        "tap, image",
        "tap, image, fresh weights",
        "image, at best of 6 x 6 cells",
    ], "only of the first camera it is known whose pixel is whose"
    strip = iio.imread(tmp_path / "look" / "strips" / "push_pumpkin_left-000.png")
    assert strip.shape == (5 * BAR_PX + 4 * 192, 192, 3), "two cameras and two maps of one step, each below a bar"


def test_a_served_policy_takes_both(run: Path) -> None:
    """The answer over the wire is the policy's own for these two images."""
    policy = load_policy(run)[0]
    rng = np.random.default_rng(0)
    rgb, wrist = rng.integers(0, 255, (2, 48, 48, 3), np.uint8)
    state, still = np.zeros(len(SPEC.state), np.float32), np.zeros(len(SPEC.action), np.float32)
    with serving(policy, spec=SPEC, image_size=48) as served:
        assert list(served.get("spec").json())[3:5] == ["rgb", "rgb_wrist"]
        remote = RemotePolicy(served.socket, SPEC.to_json())
        remote.reset(0)
        with pytest.raises(RuntimeError, match=r"rgb_wrist: expected U8 \[48, 48, 3\]; got nothing. Resize"):
            remote.act(rgb, state, still, "push it")
        action = remote.act(rgb, state, still, "push it", rgb_wrist=wrist)
    want = policy.chunk(rgb[None], state[None], ["push it"], wrist[None, None])[0, 0]
    np.testing.assert_allclose(action, want, atol=1e-6)


def test_there_and_back(demos: DatasetInfo, tmp_path: Path) -> None:
    """Exported as LeRobot v3.0 with a video for each camera, the mapping beside it brings both back."""
    out = export(ExportConfig(data=demos.path, out=tmp_path / "export", threads=1))
    assert len(list(out.glob("videos/*/chunk-000/file-000.mp4"))) == 2
    mapping, source = read_mapping(out / MAPPING), open_source(out)
    require_fits(mapping, source)
    assert list(mapping.camera_of) == list(BOTH)
    episode = episode_of(mapping, source, 0, index=0, options=ConvertOptions(quality=95))
    back, original = (
        decode_frames(episode.extra_jpeg[0]).astype(float),
        decode_frames(read_episode(demos, 0).extra_jpeg[0]),
    )
    assert np.abs(back - original[: len(back)]).mean() < 3
    with pytest.raises(ConfigError, match="needs either 'camera'"):
        dataclasses.replace(mapping, camera="observation.images.main")


def test_each_camera_is_looked_at(demos: DatasetInfo, tmp_path: Path) -> None:
    """A wrist camera that was covered is found, and the other one is not blamed for it."""
    black = encode_jpeg(np.zeros((48, 48, 3), np.uint8))
    with DatasetWriter(tmp_path / "covered", demos.header) as writer:
        for index in range(2):
            episode = read_episode(demos, index)
            covered = dataclasses.replace(episode, **stats_of(episode), extra_jpeg=[[black] * len(episode)])
            writer.append(covered)
    dataset = open_dataset(tmp_path / "covered")
    looked = frames.look(dataset, range(2))
    assert images(looked).kind == "good"
    assert images(looked.others["wrist"], camera="wrist").kind == "not fit"
    assert frames.strip(dataset, 0).shape == (96, 8 * 48, 3)


def stats_of(episode: Episode) -> dict[str, Any]:
    both = [image_stats(decode_frames(files)) for files in (episode.image_jpeg, *episode.extra_jpeg)]
    return {"image_stats": both[0], "extra_stats": both[1:]}


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (("wrist",), "has the cameras main, wrist, and main must be the first one; got wrist"),
        (("main", "side"), "has the cameras main, wrist, and main must be the first one; got main, side"),
        (("main", "main"), "cameras must name at least one camera, each once"),
        ((), "and main must be the first one; got none"),
    ],
)
def test_which_cameras_a_robot_has(cameras: tuple[str, ...], message: str) -> None:
    with pytest.raises((ConfigError, SpecError), match=message):
        envs.check(EnvConfig(cameras=cameras))


def test_an_episode_must_have_what_the_header_says(play: DatasetInfo, tmp_path: Path) -> None:
    episode = dataclasses.replace(read_episode(play, 0), extra_jpeg=[])
    with DatasetWriter(tmp_path / "d", play.header) as writer, pytest.raises(DataError, match="extra_jpeg has length"):
        writer.append(dataclasses.replace(episode, index=0))
