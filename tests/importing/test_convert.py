"""From the source's rate and units to ours, by hand."""

from pathlib import Path

import numpy as np
import pytest

from tap_ray.errors import ConfigError, DataError
from tap_ray.importing.convert import ConvertOptions, action_of, episode_of, kept_frames, motion, state_of
from tap_ray.importing.lerobot import LeRobotSource
from tap_ray.importing.mapping import Mapping, Numbers, require_fits, spec_of
from tap_ray.importing.report import ranges
from tap_ray.importing.settings import read_mapping
from tests.importing.make_foreign import frames_of

DATA = Path(__file__).parent / "data"
SO100 = Path("tap_ray/importing/mappings/so100.yaml")


def mapping_of(*action: Numbers, state: tuple[Numbers, ...] = ()) -> Mapping:
    state = state or (Numbers(slots=("q1",), column="s", at=(0,)),)
    return Mapping(robot="r", camera="c", state=state, action=action)


def test_which_frames_are_kept() -> None:
    assert kept_frames(42, 30, 5).tolist() == [0, 6, 12, 18, 24, 30, 36, 42]
    assert kept_frames(47, 30, 5).tolist() == [0, 6, 12, 18, 24, 30, 36, 42]  # the eighth step is not whole
    assert kept_frames(10, 12, 5).tolist() == [0, 2, 5, 7, 10]  # 2.4 frames a step
    assert kept_frames(3, 5, 5).tolist() == [0, 1, 2, 3]
    assert kept_frames(5, 30, 5).tolist() == [0]


def test_changes_of_a_step_are_added_up() -> None:
    mapping = mapping_of(Numbers(slots=("dx",), column="a", at=(1,), unit="mm"))
    numbers = {"a": np.array([[9, 1], [9, 2], [9, 3], [9, 4], [9, 5.0]])}
    np.testing.assert_allclose(action_of(mapping, numbers, np.array([0, 2, 4])), [[0.003], [0.007]])


def test_places_become_changes() -> None:
    mapping = mapping_of(Numbers(slots=("dq1",), column="a", at=(0,), unit="deg", kind="absolute"))
    numbers = {"a": np.array([[0], [90], [180], [180], [90.0]])}
    half = np.pi / 2
    # Steps of two frames: from the first command to that of frame 1, and from there to that of frame 3.
    np.testing.assert_allclose(action_of(mapping, numbers, np.array([0, 2, 4])), [[half], [half]], rtol=1e-6)


def test_turns_are_composed_in_the_base_frame() -> None:
    mapping = mapping_of(
        Numbers(slots=("drx", "dry", "drz"), column="a", at=(0, 1, 2), unit="deg", rotation="euler_xyz")
    )
    numbers = {"a": np.array([[90, 0, 0], [0, 0, 90.0]])}
    # First about x, then about the base's z: together 120 degrees about the diagonal.
    third = 2 * np.pi / 3 / np.sqrt(3)
    np.testing.assert_allclose(action_of(mapping, numbers, np.array([0, 2])), [[third, third, third]], rtol=1e-6)


def test_poses_turn_by_their_difference() -> None:
    mapping = mapping_of(
        Numbers(slots=("drx", "dry", "drz"), column="a", at=(0, 1, 2, 3), rotation="quaternion_xyzw", kind="absolute")
    )
    root = np.sqrt(0.5)
    numbers = {"a": np.array([[0, 0, 0, 1], [0, 0, root, root]])}  # none, then 90 degrees about z
    np.testing.assert_allclose(action_of(mapping, numbers, np.array([0, 2])), [[0, 0, np.pi / 2]], atol=1e-6)


def test_grippers_and_quaternions_in_our_signs() -> None:
    state = (
        Numbers(slots=("gripper_opening",), column="s", at=(0,), unit="gripper", closed=0.8, open=0.0),
        Numbers(slots=("ee_qw", "ee_qx", "ee_qy", "ee_qz"), column="s", at=(1, 2, 3, 4), rotation="quaternion_xyzw"),
    )
    mapping = mapping_of(
        Numbers(slots=("gripper",), column="s", at=(0,), unit="gripper", closed=0.8, open=0.0), state=state
    )
    numbers = {"s": np.array([[0.8, 0, 0, 0, -1], [0.4, 0, 0, 0, -1], [0.0, 0, 0, 0, -1]])}
    frames = np.array([0, 1, 2, 3])
    np.testing.assert_allclose(action_of(mapping, numbers, frames), [[-1], [0], [1]], atol=1e-6)
    np.testing.assert_allclose(state_of(mapping, numbers, frames)[:, 0], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(state_of(mapping, numbers, frames)[0, 1:], [1, 0, 0, 0], atol=1e-6)  # real part >= 0


def test_an_episode_of_a_real_arm() -> None:
    source, mapping = LeRobotSource(DATA / "v30_video"), read_mapping(SO100)
    require_fits(mapping, source)
    episode = episode_of(mapping, source, 1, index=0, options=ConvertOptions(quality=90))
    frames = frames_of(1)  # 54, so nine steps of six
    assert (len(episode), episode.task, len(episode.image_jpeg)) == (9, "open the drawer", 9)
    target = np.radians([frame["action"][0] for frame in frames])
    state = np.radians([frame["observation.state"][0] for frame in frames])
    np.testing.assert_allclose(episode.state[:, 0], state[::6], rtol=1e-5)
    np.testing.assert_allclose(episode.action[1, 0], target[11] - target[5], rtol=1e-4)
    assert episode.action[:, 5].tolist() == pytest.approx([0.9] * 5 + [-0.9] * 4)  # it closes after frame 30
    spec = spec_of(mapping, ranges(mapping, source, [0, 1, 2]))
    assert (spec.robot, spec.control_hz, spec.action_mode) == ("so100", 5.0, "delta_target_joints")
    assert [slot.unit for slot in spec.state] == ["rad"] * 5 + ["1"]
    low, high = spec.action_low_A[0], spec.action_high_A[0]
    assert low <= episode.action[:, 0].min() < episode.action[:, 0].max() <= high


def test_what_a_mapping_cannot_mean(tmp_path: Path) -> None:
    source, text = LeRobotSource(DATA / "v30_video"), SO100.read_text()

    def refused(before: str, after: str) -> str:
        (tmp_path / "m.yaml").write_text(text.replace(before, after, 1))
        with pytest.raises(ConfigError) as error:
            require_fits(read_mapping(tmp_path / "m.yaml"), source)
        return str(error.value)

    assert "no camera 'x.front'; it has observation.images.front." in refused("observation.images", "x")
    assert "no column 'obs.state'. Did you mean 'observation.state'?" in refused("observation.state", "obs.state")
    assert "has 6 numbers" in refused("at: [5]", "at: [6]")
    assert "need 5 positions in 'at'; got [0, 1, 2, 3]" in refused("[0, 1, 2, 3, 4]", "[0, 1, 2, 3]")
    assert "'open' and 'closed' must differ; both are 100" in refused("closed: 0", "closed: 100")
    assert "control_hz must be in 0 .. 30" in refused("control_hz: 5", "control_hz: 50")
    assert "must name each slot once" in refused("[q1, q2", "[q1, q1")


def test_an_episode_that_is_too_short_or_not_finite_is_named() -> None:
    source = LeRobotSource(DATA / "v30_video")
    mapping = read_mapping(SO100)
    slow = Mapping(**{**vars(mapping), "control_hz": 0.5})
    with pytest.raises(
        DataError, match=r"Episode 0 .* 42 frames, which is less than one control step at 0\.5 Hz.*--omit 0"
    ):
        motion(slow, source, 0)


def test_a_video_has_neither_states_nor_actions() -> None:
    """42 frames at 30 Hz are 7 control steps at 5 Hz, counted by their time stamps."""
    video = Mapping(robot="so100", camera="observation.images.front", control_hz=5)
    state, action, frames = motion(video, LeRobotSource(DATA / "v30_video"), 0)
    assert (state.shape, action.shape) == ((7, 0), (7, 0))
    assert frames.tolist() == [0, 6, 12, 18, 24, 30, 36, 42]
