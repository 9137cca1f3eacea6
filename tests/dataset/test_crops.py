"""Crops of hand-made play: what is in them, their files, and windows that carry them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tap_ray.config import digest
from tap_ray.dataset import crop_files
from tap_ray.dataset.crop_files import BLOCK_EPISODES, RULES, cut_block, folder, missing_blocks, read_crops
from tap_ray.dataset.crops import CROPS, CropConfig, Crops, contact_bouts, crop, cut
from tap_ray.dataset.lerobot import DatasetInfo, main
from tap_ray.dataset.windows import WindowConfig, episode_batches, group_batches
from tap_ray.errors import ConfigError, DataError
from tap_ray.rng import generator
from tests.carried_square import BLUE, FROM, RED, ROBOT, SIDE, SPEC, STEPS, TABLE, TO, carried, paint, played, write

SMALL = CropConfig(size_px=8)


def test_carried_from_one_place_to_another() -> None:
    rgb, mask, contact = carried()
    crops = cut(rgb, mask, contact, SMALL)
    assert (crops.touch_B.tolist(), crops.end_B.tolist(), crops.has_place.tolist()) == ([3], [7], [True])
    assert crops.bout_T.tolist() == [0] * 8 + [-1] * 4
    thing = np.full((8, 8, 3), TABLE, np.uint8)  # rows and columns 18 .. 25 and 10 .. 17 of the image
    thing[2:, 2:] = RED
    np.testing.assert_array_equal(crops.object_rgb[0], thing)
    np.testing.assert_array_equal(crops.place_rgb[0], np.full((8, 8, 3), BLUE, np.uint8))  # the plate, still empty
    assert crops.object_px.tolist() == [[FROM[0] + 2, FROM[1] + 2]]
    assert crops.place_px.tolist() == [[TO[0] + 2, TO[1] + 2]]


def test_only_so_many_frames_lead_to_a_touch() -> None:
    crops = cut(*carried(touch=5, end=6), dataclasses.replace(SMALL, lead_steps=2))
    assert crops.bout_T.tolist() == [-1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1, -1]
    assert crops.begin_B.tolist() == [3]


def test_a_short_push_of_one_connected_change() -> None:
    """A red square goes 4 to the right: columns 20 .. 23 are left, 26 .. 29 are new, what is between looks the same."""
    rgb = np.full((6, SIDE, SIDE, 3), TABLE, np.uint8)
    mask = np.zeros((6, SIDE, SIDE), bool)
    for t in range(6):
        paint(rgb[t], (30, 20 if t < 3 else 24), 6, RED)
        mask[t, 30:36, 16 + t : 18 + t] = t in (2, 3)
        rgb[t][mask[t]] = ROBOT
    crops = cut(rgb, mask, np.isin(np.arange(6), [2, 3]), SMALL)
    before = rgb[0]
    np.testing.assert_array_equal(crops.object_rgb[0], before[28:36, 17:25])  # center of columns 20 .. 23: 21
    np.testing.assert_array_equal(crops.place_rgb[0], before[28:36, 23:31])  # of columns 26 .. 29: 27


def test_two_things_move_and_each_touch_has_its_own() -> None:
    """While red is carried, blue falls over far away: nothing near the gripper, so it is neither thing nor place."""
    rgb, mask, contact = carried(plate=False)
    for t in range(STEPS):
        paint(rgb[t], (50, 4 if t < 5 else 20), 8, BLUE)
    crops = cut(rgb, mask, contact, SMALL)
    assert (crops.object_rgb[0, 2:, 2:] == RED).all()
    assert (crops.place_rgb[0] == TABLE).all()


def test_still_in_the_gripper_when_the_episode_ends() -> None:
    crops = cut(*carried(touch=6, end=STEPS - 1), SMALL)
    assert crops.has_place.tolist() == [False]
    assert not crops.place_rgb.any()
    assert (crops.object_rgb[0, 2:, 2:] == RED).all()
    assert crops.bout_T.tolist() == [0] * STEPS


def test_frames_of_a_touch_from_the_first_frame_on_do_not_lead_to_the_next() -> None:
    rgb, mask, contact = carried(touch=6, end=8)
    crops = cut(rgb, mask, contact | (np.arange(STEPS) < 2), SMALL)
    assert crops.bout_T.tolist() == [-1] * 2 + [0] * 7 + [-1] * 3
    without = cut(rgb, mask, contact, SMALL)
    assert without.bout_T.tolist() == [0] * 9 + [-1] * 3
    assert same(dataclasses.replace(crops, bout_T=without.bout_T), without)


def test_touches_that_tell_nothing() -> None:
    rgb, mask, contact = carried()
    still = np.broadcast_to(rgb[:1], rgb.shape)
    for crops in (
        cut(still, np.zeros_like(mask), contact, SMALL),  # nothing moved
        cut(*carried(touch=0), SMALL),  # there is no image before
        cut(rgb, mask, np.zeros(STEPS, bool), SMALL),
        cut(rgb, mask, contact, dataclasses.replace(SMALL, min_blob_px=37)),  # the square has 36 pixels
    ):
        assert len(crops) == 0
        assert crops.object_rgb.shape == (0, 8, 8, 3)
        assert crops.object_px.shape == crops.place_px.shape == (0, 2)
        assert (crops.bout_T == -1).all()


def test_short_gaps_are_joined() -> None:
    contact = np.array([1, 0, 0, 1, 0, 0, 0, 1, 1, 0], bool)
    assert contact_bouts(contact, 2).tolist() == [[0, 3], [7, 8]]
    assert contact_bouts(contact, 1).tolist() == [[0, 0], [3, 3], [7, 8]]
    assert contact_bouts(contact, 3).tolist() == [[0, 8]]
    assert contact_bouts(np.zeros(4, bool), 2).shape == (0, 2)


def test_a_crop_at_the_edge_repeats_it() -> None:
    rgb = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    assert crop(rgb, (0, 3), 4)[:, :, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]


def test_a_crop_of_a_larger_image_shows_the_same_part_of_the_scene() -> None:
    """288 px, three times 96 px: a crop of 8 px is the mean of each 3 x 3 pixels of a square of 24 px."""
    rgb, mask, contact = carried()
    rgb, mask = (np.pad(x, ((0, 0), (0, 32), (0, 32), *[(0, 0)] * (x.ndim - 3)), "edge") for x in (rgb, mask))
    rgb, mask = (x.repeat(3, axis=1).repeat(3, axis=2) for x in (rgb, mask))
    crops = cut(rgb, mask, contact, dataclasses.replace(SMALL, max_distance_px=30))
    for found, (y, x) in ((crops.object_rgb[0], crops.object_px[0]), (crops.place_rgb[0], crops.place_px[0])):
        square = rgb[0, y - 12 : y + 12, x - 12 : x + 12]
        np.testing.assert_allclose(found, square.reshape(8, 3, 8, 3, 3).mean(axis=(1, 3)), atol=1)
    assert crops.object_px.tolist() == [[3 * FROM[0] + 8, 3 * FROM[1] + 8]]


def test_impossible_sizes() -> None:
    with pytest.raises(ConfigError, match=r"crops.size_px must be even; got 7\."):
        CropConfig(size_px=7)
    with pytest.raises(ConfigError, match=r"crops.min_blob_px must be at least 1; got 0\."):
        CropConfig(min_blob_px=0)


def cut_missing(dataset: DatasetInfo) -> list[tuple[int, int]]:
    missing = missing_blocks(dataset, CROPS)
    for block in missing:
        cut_block(dataset, CROPS, block)
    return missing


def same(one: Crops, other: Crops) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Crops))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_files, "BLOCK_EPISODES", 4)


@pytest.mark.usefixtures("small_blocks")
def test_files_hold_what_was_cut_and_a_longer_data_set_adds_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write(tmp_path / "play", 6)
    assert cut_missing(dataset) == [(0, 3), (4, 5)]
    assert cut_missing(dataset) == []
    first = read_crops(dataset, [5, 2], CROPS)
    assert [crops.touch_B.tolist() for crops in first] == [[3], [4]]
    assert [crops.bout_T.tolist() for crops in first] == [[0] * 8 + [-1] * 4] * 2
    assert [crops.object_rgb.shape for crops in first] == [(1, 24, 24, 3)] * 2

    longer = write(tmp_path / "play", 8)
    with pytest.raises(DataError, match=r"episodes-000004-000007.parquet is missing: the crops of episode 5 have not"):
        read_crops(longer, [5], CROPS)
    assert cut_missing(longer) == [(4, 7)]
    again = read_crops(longer, [5, 2, 7], CROPS)
    assert same(again[0], first[0])
    assert same(again[1], first[1])
    assert len(again[2]) == 0
    names = sorted(file.name for file in folder(longer, CROPS).iterdir())
    assert names == [f"episodes-{a:06d}-{b:06d}.parquet" for a, b in ((0, 3), (4, 5), (4, 7))]
    assert main(["verify", str(longer.path)]) == 0
    assert "0 broken" in capsys.readouterr().out


def test_another_config_or_data_set_has_other_crops(tmp_path: Path) -> None:
    dataset = write(tmp_path / "play", 1)
    names = {folder(dataset, config).name for config in (CROPS, SMALL, dataclasses.replace(CROPS, lead_steps=31))}
    other = dataclasses.replace(dataset, header=dataclasses.replace(dataset.header, plan={"made": False}))
    names.add(folder(other, CROPS).name)
    assert len(names) == 4
    assert all(len(name) == 8 for name in names)


def test_crops_that_showed_less_of_a_larger_image_are_cut_again(tmp_path: Path) -> None:
    small = write(tmp_path / "play", 1)
    large = dataclasses.replace(small, header=dataclasses.replace(small.header, image_size=(192, 192)))
    for dataset, same_folder in ((small, True), (large, False)):
        before = {"rules": RULES, "data": dataset.header.to_json()["hash"], **dataclasses.asdict(CROPS)}
        assert (folder(dataset, CROPS).name == digest(before)[:8]) == same_folder


def test_a_damaged_file_is_cut_again(tmp_path: Path) -> None:
    dataset = write(tmp_path / "play", 2)
    cut_missing(dataset)
    [file] = folder(dataset, CROPS).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"truncated or damaged \(.*jobs.cut_crops --data .*play` cuts what is missing"):
        read_crops(dataset, [0], CROPS)
    assert cut_missing(dataset) == [(0, 1)]
    assert file.read_bytes() == whole


def test_without_masks_there_are_no_crops(tmp_path: Path) -> None:
    dataset = write(tmp_path / "play", 1, mask=False)
    with pytest.raises(
        DataError,
        match="has no robot masks, so changes of the scene cannot be distinguished from the robot's own motion",
    ):
        missing_blocks(dataset, CROPS)
    config = WindowConfig(crops=True, batch_size=2)
    with pytest.raises(DataError, match="has no robot masks"):
        next(group_batches(dataset, [0], config, seed=0, epoch=0))
    with pytest.raises(DataError, match=r"Live play has no robot masks, but windows\.crops needs them"):
        next(episode_batches([played(0, mask=False)], config, spec=SPEC, rng=generator(0, "live")))


def test_windows_of_the_disk_and_of_live_play_carry_the_same_crops(tmp_path: Path) -> None:
    dataset = write(tmp_path / "play", 8)
    assert BLOCK_EPISODES > 8
    group = [3, 7, 4]
    config = WindowConfig(crops=True, k_max=0, batch_size=STEPS, holdout_every=0)
    with pytest.raises(DataError, match=r"the crops of episode 3 have not been cut. `python -m jobs.cut_crops --data"):
        next(group_batches(dataset, group, config, seed=0, epoch=0))
    cut_missing(dataset)
    disk = list(group_batches(dataset, group, config, seed=0, epoch=0))
    rng = generator(0, "windows", "epoch", 0, "group", 3)
    live = list(episode_batches([played(index) for index in group], config, spec=SPEC, rng=rng))
    assert len(disk) == len(live) == 3  # every frame is a window, with a crop or without
    states = np.concatenate([window.state for window in disk])
    mask = np.concatenate([window.crop_mask for window in disk])  # type: ignore[arg-type]
    things = np.concatenate([window.object_crop for window in disk])  # type: ignore[arg-type]
    for one, other in zip(disk, live, strict=True):
        for name in ("state", "object_crop", "place_crop", "crop_mask", "crop_px", "crop_px_mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    episode, step = np.floor(states[:, 0] + 0.001).astype(int), np.round(states[:, 0] % 1 * 100).astype(int)
    np.testing.assert_array_equal(mask[:, 0], (episode != 7) & (step <= 7))  # they let go at step 7
    np.testing.assert_array_equal(mask[:, 1], mask[:, 0])
    assert not things[~mask[:, 0]].any()
    at = np.concatenate([window.crop_px for window in disk])  # type: ignore[arg-type]
    there = np.concatenate([window.crop_px_mask for window in disk])  # type: ignore[arg-type]
    np.testing.assert_array_equal(there[:, 0], mask[:, 0] & (step < 2 + episode % 4), "it rests until it is touched")
    np.testing.assert_array_equal(there[:, 1], mask[:, 1])
    assert (at[mask[:, 0]] == [[FROM[0] + 2, FROM[1] + 2], [TO[0] + 2, TO[1] + 2]]).all()
    middle = things[mask[:, 0]][:, 12, 12].astype(int)
    assert (np.abs(middle - RED) < 30).all()  # a JPEG's red


def test_crops_need_no_goal_to_tell_of_the_targets(tmp_path: Path) -> None:
    """Where a goal image is all there is, targets behind it are masked; a crop tells of the whole way."""
    dataset = write(tmp_path / "play", 1)
    cut_missing(dataset)
    config = WindowConfig(k_max=1, reach_steps=3, batch_size=STEPS - 1, holdout_every=0)
    [goal_only] = group_batches(dataset, [0], config, seed=0, epoch=0)
    [crops] = group_batches(dataset, [0], dataclasses.replace(config, crops=True), seed=0, epoch=0)
    step = np.round(crops.state[:, 0] * 100)
    assert goal_only.reach_mask is not None
    assert crops.reach_mask is not None
    assert not goal_only.reach_mask[:, 0].any()
    np.testing.assert_array_equal(crops.reach_mask[:, 0], step + 3 < STEPS)
    np.testing.assert_array_equal(crops.reach_mask[:, 3], step < 2)
    np.testing.assert_array_equal(crops.reach_mask[:, 6], step <= 7)
