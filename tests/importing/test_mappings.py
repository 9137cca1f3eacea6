"""The shipped mappings on toys of the datasets that they are for; and what is said of each wrong one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from tap_ray.errors import ConfigError
from tap_ray.importing import report
from tap_ray.importing.checks import findings
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.mapping import require_fits
from tap_ray.importing.settings import SHIPPED, open_source, read_mapping
from tap_ray.importing.source import Source
from tests.importing.made import mapping_of
from tests.importing.make_rlds import write_rlds
from tests.importing.toy_arm import TASKS, bridge, motion, turns, write_libero_hdf5, write_public

DATA = Path(__file__).parent / "data"
KINDS = ("bridge", "droid", "libero", "libero_hdf5")
FPS = {"bridge": 5, "droid": 15, "libero": 20, "libero_hdf5": 20}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("public")
    found = {name: open_source(write_public(name, folder)) for name in KINDS[:3]}
    return found | {"libero_hdf5": open_source(write_libero_hdf5(folder / "hdf5"))}


@pytest.mark.parametrize("name", KINDS)
def test_a_public_dataset_becomes_ours(name: str, sources: dict[str, Source]) -> None:
    source, mapping = sources[name], read_mapping(Path(name))
    require_fits(mapping, source)
    assert findings(mapping, source, [0, 1, 2]) == []
    episode = episode_of(mapping, source, 1, index=0, options=ConvertOptions(quality=95))
    made, step = motion(1, FPS[name], 8 if name == "bridge" else 6), FPS[name] // 5
    frames = np.arange(len(episode)) * step
    names = [slot for group in mapping.state for slot in group.slots]
    at = names.index("ee_x")
    np.testing.assert_allclose(episode.state[:, at : at + 3], made.position[frames], atol=1e-5)
    had = Rotation.from_quat(episode.state[:, at + 3 : at + 7], scalar_first=True)
    assert float((had * made.rotation[frames].inv()).magnitude().max()) < 1e-4
    np.testing.assert_allclose(episode.state[:, names.index("gripper_opening")], made.open[frames], atol=1e-6)
    # An absolute target of frame 0 has nothing before it: what it changes begins with the second step.
    begin = 1 if name == "droid" else 0
    moved = made.position[frames + step] - made.position[frames]
    np.testing.assert_allclose(episode.action[begin:, :3], moved[begin:], atol=1e-5)
    turned = made.rotation[frames + step] * made.rotation[frames].inv()
    np.testing.assert_allclose(episode.action[begin:, 3:6], turned.as_rotvec()[begin:], atol=2e-4)
    np.testing.assert_allclose(episode.action[:, 6], 2 * made.open[frames + step] - 1, atol=1e-6)
    assert (episode.task, turns(made.rotation).magnitude().max() > 0) == (TASKS[1], True)
    corner = source.images(1, mapping.camera, [7])[0]
    corner = corner[::-1, ::-1] if mapping.image_turn_deg else corner
    np.testing.assert_allclose(corner[2:14, 2:22].reshape(-1, 3).mean(axis=0), [60, 7, 0], atol=3)


def test_libero_as_lerobot_reads_the_same_numbers_under_other_names() -> None:
    one, other = (yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in ("libero", "libero_lerobot"))
    renamed = {"observation/state": "state", "action": "actions", "observation/image": "image"}
    for group in (*one["state"], *one["action"]):
        group["column"] = renamed[group["column"]]
    one["camera"] = renamed[one["camera"]]
    del one["fps"]  # its metadata say it
    assert one == other


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_mapping_is_known_by_name(file: Path) -> None:
    assert read_mapping(Path(file.stem)) == read_mapping(file)
    assert file.read_text().startswith("# ")
    assert read_mapping(Path("examples/mappings") / file.name) == read_mapping(file)  # where they lay before


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(
        ConfigError, match=r"There is no file brigde, and tap_ray includes no mapping.*Did you mean 'bridge'\?"
    ):
        read_mapping(Path("brigde"))


def swapped(values: dict[str, Any]) -> None:
    gripper = values["action"][-1]
    gripper.update(open=gripper["closed"], closed=gripper["open"])


def degrees(values: dict[str, Any]) -> None:
    """The source's radians are called degrees."""
    for group in values["state"]:
        if group.get("unit") == "rad":
            group["unit"] = "deg"


def as_delta(values: dict[str, Any]) -> None:
    """The end effector's own position is taken for its change."""
    position = next(group for group in values["state"] if "ee_x" in group["slots"])
    values["action"][0].update(column=position["column"], at=position["at"], scale=1.0, kind="delta")


def wrong_fps(values: dict[str, Any]) -> None:
    values["fps"] = 50


MISTAKES: dict[Callable[[dict[str, Any]], None], str] = {
    swapped: "the gripper does the opposite of the action",
    degrees: "They seem to be radians (unit: rad)",
    as_delta: "They seem to be absolute poses (kind: absolute)",
    wrong_fps: "fps: the mapping says 50 frames per second",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
@pytest.mark.parametrize("name", KINDS)
def test_each_mistake_is_caught_in_each_format(
    name: str, mistake: Callable[[dict[str, Any]], None], sources: dict[str, Source]
) -> None:
    values = copy.deepcopy(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()))
    mistake(values)
    found = findings(mapping_of(values), sources[name], [0, 1, 2])
    assert any(MISTAKES[mistake] in each for each in found), found


@pytest.mark.parametrize("name", ["bridge", "libero", "libero_hdf5"])
@pytest.mark.parametrize("with_position", [True, False], ids=["with the tool's position", "without a state that tells"])
def test_changes_that_are_called_absolute(name: str, with_position: bool, sources: dict[str, Source]) -> None:
    """RLDS and HDF5; DROID's are absolute, and nothing is said of them."""
    values = copy.deepcopy(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()))
    values["action"][0]["kind"] = "absolute"
    if not with_position:
        values["state"] = [group for group in values["state"] if "ee_x" not in group["slots"]]
    found = [each for each in findings(mapping_of(values), sources[name], [0, 1, 2]) if "(kind: delta)" in each]
    assert found
    assert all(("correlate with the state's change" in each) == with_position for each in found), found


@pytest.mark.parametrize("kind", ["droid", "droid without a state that tells", "so100 without one"])
def test_absolute_actions_are_not_called_deltas(kind: str, sources: dict[str, Source]) -> None:
    name = kind.split()[0]
    values = copy.deepcopy(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()))
    if "without" in kind:
        values["state"] = [group for group in values["state"] if "gripper_opening" in group["slots"]]
    source = sources.get(name) or open_source(DATA / "v30_image")
    assert not [each for each in findings(mapping_of(values), source, [0, 1, 2]) if "(kind: delta)" in each]


LEROBOT_MISTAKES = {
    "gripper": (lambda v: v["action"][1].update(open=0, closed=100), "the gripper does the opposite of the action"),
    "degrees": (lambda v: v["action"][0].update(unit="rad"), "They seem to be degrees (unit: deg)"),
    "delta": (lambda v: v["action"][0].update(kind="delta"), "They seem to be absolute poses (kind: absolute)"),
    "fps": (
        lambda v: v.update(fps=10),
        "the mapping says 10 frames per second, but the time stamps are 0.03333 s apart",
    ),
}


@pytest.mark.parametrize("mistake", LEROBOT_MISTAKES)
@pytest.mark.parametrize("kind", ["v21_video", "v30_image", "v30_video"])
def test_each_mistake_is_caught_in_lerobots_versions(kind: str, mistake: str) -> None:
    values = yaml.safe_load((SHIPPED / "so100.yaml").read_text())
    change, says = LEROBOT_MISTAKES[mistake]
    change(values)
    found = findings(mapping_of(values), open_source(DATA / kind), [0, 1, 2])
    assert any(says in each for each in found), found


def test_numbers_in_degrees_that_are_called_radians(tmp_path: Path) -> None:
    episodes = [bridge(episode) for episode in range(3)]
    for steps in episodes:
        steps["observation/state"][:, 3:6] = np.degrees(steps["observation/state"][:, 3:6])
    source = open_source(write_rlds(tmp_path / "bridge_dataset", episodes))
    [finding] = findings(read_mapping(Path("bridge")), source, [0, 1, 2])
    assert "They seem to be degrees (unit: deg)" in finding


def test_a_rate_that_nothing_but_the_mapping_tells(tmp_path: Path) -> None:
    source = open_source(write_rlds(tmp_path / "my_arm", [bridge(episode) for episode in range(3)]))
    right = read_mapping(Path("bridge"))
    text = report.describe(right, source, [0, 1, 2])
    assert "frames per second: 5 (taken from the mapping alone: without time stamps they cannot be checked" in text
    assert "so the end effector moves at 0.1" in text
    assert findings(right, source, [0, 1, 2]) == []
    values = yaml.safe_load((SHIPPED / "bridge.yaml").read_text())
    [finding] = findings(mapping_of(values | {"fps": 0.25, "control_hz": 0.25}), source, [0, 1, 2])
    assert "the end effector hardly moves (95 % of the time at less than 0.00" in finding
    found = findings(mapping_of(values | {"fps": 150, "control_hz": 150}), source, [0, 1, 2])
    assert any("ee_x: moves at" in each and "the fps (150) is wrong" in each for each in found)
