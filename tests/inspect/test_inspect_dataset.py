"""jobs.inspect_dataset: each check raises what a dataset was made with, and a clean one raises nothing."""

import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import inspect_dataset
from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.layout import DatasetHeader, data_file
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import DataError
from tap_ray.inspect.dataset import content_checks, frames, report, survey
from tap_ray.inspect.dataset.check import Check
from tap_ray.inspect.settings import InspectConfig
from tap_ray.types import PLAY_TASK
from tests.compare.test_report import CHROMIUM, EVIL, FLAGS, Page
from tests.inspect.flawed import NUM, SPEC, Made, T, clean, draw, short, trajectory, write

Flaw = Callable[[Made], None]


def checked(path: Path) -> dict[str, Check]:
    """Name -> check, of all episodes and all images."""
    dataset = open_dataset(path)
    seen = survey.survey_of(dataset, range(len(dataset)))
    return {check.name: check for check in report.checks(seen, frames.look(dataset, range(len(dataset))))}


def of(tmp_path: Path, flaw: Flaw, raised: str) -> Check:
    """The check that the flaw raises; no other one is raised."""
    found = checked(write(tmp_path / "data", flaw))
    assert {name: check.text for name, check in found.items() if check.kind != "good" and name != raised} == {}
    assert found[raised].kind != "good"
    return found[raised]


def test_a_clean_dataset_raises_nothing(tmp_path):
    found = checked(write(tmp_path / "data"))
    assert {name: check.result for name, check in found.items() if check.kind != "good"} == {}
    assert found["rate"].numbers == {"fps": 5.0, "irregular": 0, "share": 0.0}
    assert found["whole"].numbers == {"episodes": NUM, "damaged": 0}
    # An action is exactly the change that follows it.
    assert [found["consistency"].numbers[f"d{axis}_lag"] for axis in "xyz"] == [0, 0, 0]
    assert found["consistency"].numbers["dx_r2"] == pytest.approx(1, abs=1e-4)
    # 16 of 40 steps closed; closes once and opens once; 14 in contact; held from when the opening stays: 15 .. 27.
    grip = found["gripper"].numbers
    assert (grip["closed_share"], grip["changes_per_episode"], grip["flickers"]) == (0.4, 2.0, 0)
    assert grip["command_opening_correlation"] > 0.9
    assert found["contact"].numbers["share"] == 14 / 40
    assert found["idle"].numbers == {"share": 0.0, "longest_s": 0.0}
    assert found["language"].numbers["instructions"] == {"lift the spoon": 6, "push the cup": 6}
    assert found["images"].numbers["images"] == NUM * T


def test_noise_is_rough(tmp_path):
    """White noise has the roughness 1 (its changes have twice its variance); each sign in turn would have 2."""

    def noise(made: Made) -> None:
        steps = np.random.default_rng(made.index).uniform(-0.012, 0.012, (T, 3)) * [1, 1, 0.5]
        made.state[:, :3] = np.array([0.3, 0, 0.15]) + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)[:-1]])
        made.action[:, :3] = steps
        made.rgb = draw(made.state)

    check = of(tmp_path, noise, "smoothness")
    assert check.numbers["roughness_m"] == pytest.approx(1, abs=0.1)
    assert "the actions in m change from step to step like noise" in check.text


def test_alternating_actions_have_roughness_two():
    assert roughness_of(np.array([1.0, -1.0] * 50)) == pytest.approx(2, rel=0.02)
    assert roughness_of(np.arange(100.0)) == pytest.approx(6 / 100**2, rel=0.02)  # 1 / (2 variance), variance N^2 / 12


def roughness_of(values: np.ndarray) -> float:
    """By the same sums, of one slot."""
    made = clean(0)
    assert made.state.shape == (T, 8)
    changes, spread = (np.diff(values) ** 2).sum(), ((values - values.mean()) ** 2).sum()
    return float(changes / (len(values) - 1) / (2 * spread / len(values)))


def test_a_state_that_jumps(tmp_path):
    """70 cm in one step of 0.2 s are 3.5 m/s: there and back, in one episode."""

    def jump(made: Made) -> None:
        if made.index == 3:
            made.state[20, 0] += 0.7

    found = checked(write(tmp_path / "data", jump))
    check = found["smoothness"]
    assert (check.kind, check.numbers["jumps"], check.episodes) == ("look at this", 2, (3,))
    assert "the state jumps in 2 steps" in check.text


@pytest.mark.parametrize("late", [-2, 3])
def test_actions_that_are_shifted(tmp_path, late):
    """The state follows `late` steps after its action; 0 to 2 steps pass, as arms lag."""

    def shift(made: Made) -> None:
        made.action[:, :3] = np.roll(made.action[:, :3], -late, axis=0)

    check = checked(write(tmp_path / "data", shift))["consistency"]
    assert [check.numbers[f"d{axis}_lag"] for axis in "xyz"] == [late] * 3
    assert check.kind == "not fit"
    assert f"dx ({late:+d}), dy ({late:+d}), dz ({late:+d})" in check.text


def test_actions_that_explain_nothing(tmp_path):
    def other(made: Made) -> None:
        rng = np.random.default_rng(100 + made.index)
        smooth = np.cumsum(rng.normal(size=(T, 3)), axis=0)
        made.action[:, :3] = 0.01 * (smooth - smooth.mean(0)) / smooth.std(0)

    check = checked(write(tmp_path / "data", other))["consistency"]
    assert check.kind != "good"
    assert check.numbers["dx_r2"] < 0.1


def test_a_sign_that_is_turned_around(tmp_path):
    def turned(made: Made) -> None:
        made.action[:, 1] *= -1

    check = of(tmp_path, turned, "consistency")
    assert check.kind == "not fit"
    assert "the state moves opposite to dy: a sign is wrong" in check.text


def test_actions_at_their_bounds(tmp_path):
    """Clipped to 4 mm of 9.4 mm at most: the end effector asks for more in over half of the steps."""

    def clip(made: Made) -> None:
        made.action[:, 3] = np.clip(20 * made.action[:, 3], -0.3, 0.3)

    check = of(tmp_path, clip, "saturation")
    # |sin| > 0.3 in 1 - 2 asin(0.3) / pi = 81 % of a whole turn.
    assert check.numbers["drx_share"] == pytest.approx(1 - 2 * math.asin(0.3) / math.pi, abs=0.03)
    assert "drx (8" in check.text
    assert check.numbers["dx_share"] == 0


def test_a_gripper_that_never_closes(tmp_path):
    def stays_open(made: Made) -> None:
        made.action[:, 6], made.state[:, 7] = 1, 1.0 - 0.001 * np.arange(T)

    check = of(tmp_path, stays_open, "gripper")
    assert check.result == "not fit: for grasping: the gripper never closes"


def test_a_gripper_that_is_inverted(tmp_path):
    def inverted(made: Made) -> None:
        made.action[:, 6] *= -1

    check = of(tmp_path, inverted, "gripper")
    assert check.kind == "not fit"
    assert check.numbers["command_opening_correlation"] < -0.9
    assert check.numbers["begins_closed_share"] == 1.0
    assert "does the opposite of the action (-0.9" in check.text


def test_a_gripper_that_flickers(tmp_path):
    """In four episodes steps 20 .. 22 are open, closed, open: 4 more changes, 3 commands of one step."""

    def flicker(made: Made) -> None:
        if made.index < 4:
            made.action[[20, 22], 6] = 1

    check = of(tmp_path, flicker, "gripper")
    assert check.numbers["flickers"] == 4 * 3
    assert check.numbers["changes_per_episode"] == (NUM * 2 + 4 * 4) / NUM
    assert "12 of 40 commands last only one step" in check.text
    assert set(check.episodes) < {0, 1, 2, 3}


def test_waiting(tmp_path):
    """The end effector stands still from step 5 to step 31 everywhere, as does its command: 26 of 40 steps, 5.2 s."""

    def wait(made: Made) -> None:
        made.state[5:32] = made.state[5]
        made.state[:, 4] = 0.02 * np.sin(np.arange(T))
        made.state[32:, :3] += made.state[5, :3] - made.state[32, :3] + 0.01
        made.action[5:31, :6] = 0
        made.action[:, 6], made.state[:, 7] = 1, 1 - 0.0001 * np.arange(T)
        made.action[33:36, 6] = -1
        made.rgb = draw(made.state)

    check = checked(write(tmp_path / "data", wait))["idle"]
    assert check.numbers == {"share": 26 / 40, "longest_s": 5.2}
    assert check.text == "65% of the steps are idle; the longest idle period is 5.2 s"
    assert check.why[check.episodes[0]] == "idle for 5.2 s from 1 s on"


def test_one_place(tmp_path):
    """The end effector swings by less than a centimeter in the middle of a voxel, and a number never changes."""

    def small(made: Made) -> None:
        made.state[:, :3] = np.array([0.325, 0.025, 0.125]) + 0.1 * (made.state[:, :3] - made.state[:, :3].mean(0))
        made.action[:, :3] *= 0.1
        made.state[:, 4] = 0

    check = checked(write(tmp_path / "data", small))["coverage"]
    assert check.kind == "look at this"
    assert check.numbers == {"constant_slots": ["ee_qx"], "voxels": 1, "entropy_bits": 0.0, "largest_share": 1.0}
    assert check.text == "ee_qx never changes; 100% of the steps are in one voxel of 5 cm"


def test_contact_that_never_is_and_contact_that_nobody_knows(tmp_path):
    def untouched(made: Made) -> None:
        made.contact[:] = False

    check = of(tmp_path, untouched, "contact")
    assert check.result.startswith("not fit: for Stage 1's next object: a finger is on an object in 0% of the steps")
    imported = checked(write(tmp_path / "imported", untouched, kind="import"))["contact"]
    assert imported.kind == "not known"
    assert imported.numbers["share"] is None
    # Told to close in 12 .. 27, and the opening stays at 0.4, by 0.1 or more above the least there is: it holds.
    assert imported.numbers["held_share"] == 0


def test_an_opening_that_stays_is_a_grasp(tmp_path):
    """Episode 0 closes to 0.1, the others to 0.4 around something: there the opening stays in steps 15 .. 27."""

    def one_empty(made: Made) -> None:
        if made.index == 0:
            made.state[14:28, 7] = 0.1

    found = checked(write(tmp_path / "data", one_empty, kind="import"))["contact"]
    assert found.numbers["held_share"] == pytest.approx((NUM - 1) * 13 / (NUM * T))
    assert "according to its opening, the gripper holds something in 30% of the steps" in found.text


def test_copies_and_near_copies(tmp_path):
    """Episode 4 is episode 2 again; 7 is 6 with a tenth of a millimeter of noise."""

    def copy(made: Made) -> None:
        if made.index == 4:
            vars(made).update(vars(clean(2)), index=4)
        if made.index == 7:
            vars(made).update(vars(clean(6)), index=7)
            made.state[:, :3] += np.random.default_rng(0).normal(0, 1e-4, (T, 3))

    check = of(tmp_path, copy, "duplicates")
    assert (check.numbers["copies"], check.numbers["near_pairs"]) == (1, 1)
    assert check.numbers["pairs"] == [[2, 4], [6, 7]]
    assert check.episodes == (2, 4, 6, 7)
    assert check.numbers["compared"] == NUM - 1  # a copy is not compared again


def test_black_empty_and_frozen_images(tmp_path):
    """Episode 1: 3 black; 2: 2 of one color; 5: images 10 .. 19 are the one at 9, and the robot moves meanwhile."""

    def drop(made: Made) -> None:
        if made.index == 1:
            made.rgb[4:7] = 0
        if made.index == 2:
            made.rgb[8:10] = (90, 90, 90)
        if made.index == 5:
            made.state[:, 0] = 0.3 + 0.02 * (np.arange(T) % 2)
            made.rgb = draw(made.state)
            made.rgb[10:20] = made.rgb[9]

    check = checked(write(tmp_path / "data", drop))["images"]
    assert check.kind == "look at this"
    assert (check.numbers["black"], check.numbers["flat"]) == (3, 2)
    assert check.numbers["frozen"] >= 10
    assert check.episodes == (5, 1, 2)
    assert check.at == {1: (2, 9), 2: (6, 12), 5: (8, 22)}  # two images around
    assert "3 are black, 2 have a single color" in check.text


def test_mostly_black_is_not_fit(tmp_path):
    def dark(made: Made) -> None:
        made.rgb[:] = 3

    check = checked(write(tmp_path / "data", dark))["images"]
    assert check.result == f"not fit: for learning from images: of {NUM * T} images {NUM * T} are black"


def test_instructions(tmp_path):
    def sloppy(made: Made) -> None:
        if made.index in (0, 2):
            made.task = "Lift the spoon."
        if made.index == 5:
            made.task = PLAY_TASK

    check = of(tmp_path, sloppy, "language")
    assert check.numbers["instructions"] == {
        "push the cup": 5,
        "lift the spoon": 4,
        "Lift the spoon.": 2,
        PLAY_TASK: 1,
    }
    assert check.numbers["several_spellings"] == [["Lift the spoon.", "lift the spoon"]]
    assert check.numbers["without"] == 1
    assert "1 instruction is spelled in several ways: 'Lift the spoon.' / 'lift the spoon'" in check.text
    assert check.episodes == (5,)


def test_play_needs_no_instructions(tmp_path):
    def play(made: Made) -> None:
        made.task = PLAY_TASK

    found = checked(write(tmp_path / "data", play))["language"]
    assert found.kind == "good"
    assert "demonstrations (Stage 2) need instructions" in found.text


def test_episodes_that_stand_out(tmp_path):
    """1 has 10 of 40 steps; 3 moves five times as far; 8 begins in front of white."""

    def odd(made: Made) -> None:
        if made.index == 1:
            short(made, 10)
        if made.index == 3:
            made.state[:, :2] = made.state[:, :2].mean(0) + 5 * (made.state[:, :2] - made.state[:, :2].mean(0))
            made.action[:, :2] *= 5
        if made.index == 8:
            made.rgb[:] = np.maximum(made.rgb, 200)

    check = checked(write(tmp_path / "data", odd))["episodes that stand out"]
    assert set(check.episodes) == {1, 3, 8}
    assert check.why[1] == "2 s long, 0.25 times the usual length"
    paths = [clean(n).state[:, :3] * ([5, 5, 1] if n == 3 else 1) for n in range(NUM)]
    paths[1] = paths[1][:10]
    speeds = [np.linalg.norm(np.diff(path, axis=0), axis=1).mean() for path in paths]
    assert check.why[3] == f"moves {speeds[3] / np.median(speeds):.2g} times as fast as usual"
    assert re.fullmatch(r"its first image differs from the others \(by \d+ of 255\)", check.why[8])


def test_modified_z_score_of_iglewicz_and_hoaglin():
    """Median 3, deviations 2 1 0 1 97, their median 1: 0.6745 * 97 = 65.4. All equal: 0."""
    assert content_checks.modified_z(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(
        [1.349, 0.6745, 0, 0.6745, 65.4265]
    )
    assert content_checks.modified_z(np.array([2.0, 2, 2])).tolist() == [0, 0, 0]
    # More than half are equal: of the mean deviation, 10 / 5: 10 / (2 * 1.2533).
    assert content_checks.modified_z(np.array([0.0, 0, 0, 0, 10]))[4] == pytest.approx(10 / (2 * 1.2533))


def test_time_stamps_that_skip(tmp_path):
    """In file 1 (episodes 5 .. 9) two intervals of an episode are twice as long."""
    path = write(tmp_path / "data")
    file = path / data_file(1)
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.read_row_group(n) for n in range(parquet.num_row_groups)]
        schema = parquet.schema_arrow
    times = groups[1]["timestamp"].to_numpy().copy()
    times[10:] += 0.2
    times[30:] += 0.2
    at = schema.names.index("timestamp")
    groups[1] = groups[1].set_column(at, schema.field(at), pa.array(times, pa.float32()))
    with pq.ParquetWriter(file, schema) as writer:
        for group in groups:
            writer.write_table(group)
    check = checked(path)["rate"]
    assert (check.kind, check.numbers["irregular"], check.episodes) == ("look at this", 2, (6,))
    assert check.text == f"2 of {NUM * (T - 1)} intervals between time stamps are not 0.2 s: frames are missing or late"


def test_a_damaged_file_is_said_and_the_rest_is_read(tmp_path):
    path = write(tmp_path / "data")
    (path / data_file(1)).write_bytes(b"no parquet")
    found = checked(path)
    assert found["whole"].kind == "not fit"
    assert found["whole"].numbers == {"episodes": NUM, "damaged": 5}
    assert found["whole"].text.startswith("for training: 5 of 12 episodes cannot be read; the first: ")


def test_every_episode_damaged(tmp_path):
    path = write(tmp_path / "data", num=3)
    (path / data_file(0)).write_bytes(b"no parquet")
    inspect_dataset.main(InspectConfig(data=path))
    assert json.loads((path / "inspection/report.json").read_text())["results"] == {"not fit": 1}


def test_the_sample_is_spread_and_said(tmp_path, capsys):
    path = write(tmp_path / "data")
    page = inspect_dataset.main(InspectConfig(data=path, out=tmp_path / "out", episodes=4, images=80))
    output = capsys.readouterr().out
    assert "The numbers of 4 episodes were read, evenly spread. 80 images of 2 episodes were checked." in output
    assert "These results are advice: they do not change the exit status, which is 0." in output
    assert page == tmp_path / "out/index.html"
    assert not (path / "inspection").exists()


def test_which_episodes_are_looked_at():
    lengths = np.full(10, 40)
    assert frames.chosen(lengths, 0) == list(range(10))
    assert frames.chosen(lengths, 120) == [0, 4, 9]
    assert frames.chosen(lengths, 1) == [0]
    assert frames.chosen(lengths, 10_000) == list(range(10))


def test_the_correlation_of_sums():
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 4, 6, 7.5])
    assert survey.correlation(survey.product_sums(x, -y)) == pytest.approx(-np.corrcoef(x, y)[0, 1])
    assert math.isnan(survey.correlation(survey.product_sums(x, np.ones(4))))


def test_the_longest_run():
    assert survey.longest_run(np.array([1, 0, 1, 1, 0, 1], bool)) == (2, 2)
    assert survey.longest_run(np.zeros(3, bool)) == (0, 0)


def test_no_dataset_is_a_users_mistake(tmp_path):
    with pytest.raises(DataError, match="There is no dataset at"):
        inspect_dataset.main(InspectConfig(data=tmp_path / "none"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Of a dataset with an evil sentence, a black image and an episode that is too short."""

    def flaw(made: Made) -> None:
        if made.index == 1:
            made.rgb[4:7], made.task = 0, EVIL
        if made.index == 4:
            short(made, 8)

    path = write(tmp_path_factory.mktemp("page") / "data", flaw)
    return inspect_dataset.main(InspectConfig(data=path))


def test_the_page_is_whole_and_fetches_nothing(page):
    text = page.read_text()
    found = Page(text)
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert found.tags.count("section") == 13 + 1  # checks, and where it comes from
    assert found.tags.count("h1") == found.tags.count("main") == 1
    assert 'lang="en"' in text
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == found.tags.count("img") >= 3
    assert "Episode 1: black, empty or frozen images" in text
    assert "Episode 4: 1.6 s long, 0.2 times the usual length" in text


def test_the_numbers_are_in_json(page):
    read = json.loads((page.parent / "report.json").read_text())
    assert [check["name"] for check in read["checks"]][:3] == ["whole", "rate", "smoothness"]
    images = next(check for check in read["checks"] if check["name"] == "images")
    assert (images["kind"], images["numbers"]["black"], images["episodes"]) == ("look at this", 3, [1])
    assert sum(read["results"].values()) == 13


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install -y chromium")
def test_a_browser_draws_it(page, tmp_path):
    shot = tmp_path / "page.png"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}/profile", "--window-size=500,1500"]
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=400, check=True)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert np.median(pixels) > 220
    assert (pixels < 160).mean() > 0.01


def test_two_arms_each_with_its_gripper(tmp_path):
    """The left arm is episode n's, the right one that of n + 1, whose gripper does the opposite of its action."""

    def both(slots):
        return tuple(replace(slot, name=f"{side}{slot.name}") for side in ("left_", "right_") for slot in slots)

    spec = replace(SPEC, state=both(SPEC.state), action=both(SPEC.action))
    header = DatasetHeader(spec=spec, plan={"kind": "made"}, image_size=(32, 64), num_objects=1)
    with DatasetWriter(tmp_path / "data", header) as writer:
        for index in range(NUM):
            made, other = clean(index), clean(index + 1)
            other.action[:, 6] *= -1
            made.rgb = np.concatenate([made.rgb, other.rgb], axis=2)
            made.state = np.concatenate([made.state, other.state], axis=1)
            made.action = np.concatenate([made.action, other.action], axis=1)
            writer.append(encode_episode(trajectory(made), index=index, task=made.task, meta={"explorer": "made"}))
    found = checked(tmp_path / "data")
    assert {name for name, check in found.items() if check.kind != "good"} == {"gripper"}
    assert found["gripper"].text.startswith("for grasping: the right gripper does the opposite of the action (-0.9")
    assert found["gripper"].numbers["left_closed_share"] == 0.4
    assert found["consistency"].numbers["right_dx_lag"] == 0
    inspect_dataset.main(InspectConfig(data=tmp_path / "data"))


def test_play_is_shown_by_explorer(tmp_path):
    """As in the report of a collection: a row for each explorer."""

    def play(made: Made) -> None:
        made.task = PLAY_TASK

    page = inspect_dataset.main(InspectConfig(data=write(tmp_path / "data", play)))
    assert 'id="explorers"' in page.read_text()
    assert "<td>made</td><td>12</td><td>480</td>" in page.read_text()
