"""What an imported dataset does not know is not told as a zero, and what needs it refuses by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tap_ray.dataset import layout
from tap_ray.dataset.crop_files import missing_blocks
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.reader import DatasetInfo, read_episode
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.verify import verify
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import ConfigError, DataError
from tap_ray.importing.checks import findings
from tap_ray.importing.mapping import require_like
from tap_ray.importing.rlds import RldsSource
from tap_ray.importing.settings import ImportConfig, spec_like
from tap_ray.inspect.probes import read_frames
from tap_ray.play import report
from tests.importing.made import imported, mapping_of
from tests.importing.make_rlds import with_frame_of_rlds, write_rlds

MAPPING = """
robot: arm
camera: observation/image
fps: 5
image_size: 24
state:
  - {slots: [ee_x, ee_y, ee_z], column: observation/state, at: [0, 1, 2], unit: m}
  - {slots: [ee_qw, ee_qx, ee_qy, ee_qz], column: observation/state, at: [3, 4, 5, 6], rotation: quaternion_wxyz}
action:
  - {slots: [dx, dy, dz], column: action, at: [0, 1, 2], unit: m}
  - {slots: [gripper], column: action, at: [3], unit: gripper}
"""


def steps_of(episode: int, number: int = 11) -> dict:
    """The end effector goes 1 cm ahead at each step."""
    state = np.zeros((number, 7), np.float32)
    state[:, 0], state[:, 3] = 0.2 + 0.01 * np.arange(number), 1
    action = np.zeros((number, 4), np.float32)
    action[:, 0], action[:, 3] = 0.01, 1
    images = np.full((number, 24, 24, 3), 40 + 20 * episode, np.uint8)
    return with_frame_of_rlds({"observation/image": images, "observation/state": state, "action": action})


@pytest.fixture
def source(tmp_path: Path) -> RldsSource:
    return RldsSource(write_rlds(tmp_path / "toy", [steps_of(episode) for episode in range(4)]))


@pytest.fixture
def dataset(source: RldsSource, tmp_path: Path) -> DatasetInfo:
    return imported(source, mapping_of(MAPPING), tmp_path / "data")


def test_unknown_contact_has_no_column_and_no_number(dataset: DatasetInfo) -> None:
    assert not [rule for rule in verify(dataset.path) if rule.problems]
    assert layout.CONTACT not in dataset.info["features"]
    assert layout.OBJECT_POSE not in dataset.info["features"]
    episode = read_episode(dataset, 0)
    assert (len(episode), episode.contact.shape, episode.object_pose.shape) == (10, (0,), (10, 0, 7))
    assert episode.meta == {"attempt": 0, "explorer": "imported", "embodiment": "arm"}
    assert json.loads((dataset.path / layout.HEADER).read_text())["contact"] is False


def test_the_header_of_a_dataset_with_contact_stays_as_it_was(dataset: DatasetInfo) -> None:
    header_json = replace(dataset.header, contact=True).to_json()
    assert "contact" not in header_json
    assert layout.DatasetHeader.from_json(header_json).contact
    assert not layout.DatasetHeader.from_json(dataset.header.to_json()).contact


def test_what_needs_contact_refuses(dataset: DatasetInfo) -> None:
    with pytest.raises(DataError, match=r"has no finger contact .*--objective\.inverse-dynamics 1"):
        missing_blocks(dataset, CROPS)
    with pytest.raises(DataError, match="has no privileged object poses"):
        read_frames(dataset, num_episodes=0, every=1)


def test_reach_knows_the_displacement_alone(dataset: DatasetInfo) -> None:
    config = WindowConfig(batch_size=8, horizon=1, k_max=0, reach_steps=3, holdout_every=0)
    window = next(iter(iterate(dataset, config, seed=0)))
    assert window.reach is not None
    assert window.reach_mask is not None
    mask = window.reach_mask.astype(bool)
    assert not mask[:, 3:].any()  # no touch, no release, no yaw
    assert mask[:, :3].any()
    np.testing.assert_allclose(window.reach[mask[:, 0], 0], 0.03, atol=1e-6)


def test_the_report_on_play_says_so(dataset: DatasetInfo, tmp_path: Path) -> None:
    text = report.write(dataset.path, tmp_path / "report").read_text()
    [row] = json.loads((tmp_path / "report/play.json").read_text())
    assert (row["contact_rate"], row["episodes_moving"], row["objects_moved"]) == (None, None, None)
    assert row["steps"] == 40
    assert "nan" not in text


def test_another_robots_slots_and_ranges(source: RldsSource, dataset: DatasetInfo, tmp_path: Path) -> None:
    spec = dataset.spec
    slots = {slot.name: slot for slot in spec.action}
    narrow = replace(spec, action=(slots["gripper"], replace(slots["dx"], low=-0.004, high=0.004)))
    like = replace(narrow, state=spec.state[:3])
    mapping = mapping_of(MAPPING)
    require_like(mapping, like)
    [_, finding] = findings(mapping, source, [0, 1], like)  # the other one: the gripper never moves
    assert finding.startswith(
        "dx: 100% of the actions are outside the range of --like (-0.004 .. 0.004 m; the largest is "
    )
    again = imported(source, mapping, tmp_path / "like", like)
    episode = read_episode(again, 0)
    assert episode.meta["num_clipped"] == 10
    np.testing.assert_allclose(episode.action, [[1, 0.004]] * 10)
    assert episode.state.shape == (10, 3)
    config = ImportConfig(source=Path(), mapping=Path(), out=Path(), like=again.path)
    assert spec_like(config) == like
    with pytest.raises(DataError, match=r"expected a dataset of tap_ray \(with meta/tap_ray\.json\) or a run"):
        spec_like(replace(config, like=tmp_path))


def test_a_mapping_that_does_not_make_the_robot(dataset: DatasetInfo) -> None:
    other = replace(dataset.spec, robot="widowx", control_hz=10.0)
    more = replace(other, state=(*other.state, replace(other.state[0], name="waist", unit="rad")))
    with pytest.raises(ConfigError) as error:
        require_like(mapping_of(MAPPING.replace("dz", "dry")), more)
    message = str(error.value)
    assert "robot: 'arm' in the mapping, 'widowx' there" in message
    assert "control_hz: 5.0 in the mapping, 10.0 there" in message
    assert "state: the mapping has no slot waist (rad)" in message
    assert "action: the mapping has no slot dz (m)" in message
    assert "omit --like" in message


def test_origin_and_tool_of_the_source(source: RldsSource, tmp_path: Path) -> None:
    root = float(np.sqrt(0.5))
    turned = MAPPING + f"\norigin_m: [0.2, 0.1, 0]\ntool_quat: [{root}, 0, {root}, 0]\n"
    state = read_episode(imported(source, mapping_of(turned), tmp_path / "data"), 0).state
    np.testing.assert_allclose(state[1, :3], [0.01, -0.1, 0], atol=1e-6)
    np.testing.assert_allclose(
        state[1, 3:], [root, 0, -root, 0], atol=1e-6
    )  # the source's axes are turned by +90 degrees
