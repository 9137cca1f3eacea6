"""Windows: what is in them, that they never cross an episode, and that their order can be found again."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_ray import bounds
from tap_ray.dataset import layout
from tap_ray.dataset.inpaint_robot import grow, inpaint_robot
from tap_ray.dataset.lerobot import DatasetInfo, open_dataset, read_episode
from tap_ray.dataset.reach import NEVER, reach_targets, reaching_arms, twice_yaw
from tap_ray.dataset.reach import reach_of as reach_of_robot
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig, epoch_groups, group_batches, num_batches, split_episodes
from tap_ray.errors import ConfigError, DataError
from tap_ray.media.image import decode_jpeg
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, ArmSlots
from tap_ray.types import Shard, Window


@pytest.fixture(scope="module")
def dataset(play_dataset: Path) -> DatasetInfo:
    return open_dataset(play_dataset)


def place(dataset: DatasetInfo, state: np.ndarray) -> tuple[int, int]:
    """Episode and step of a state (each occurs once)."""
    for episode in range(len(dataset)):
        found = np.flatnonzero((read_episode(dataset, episode, [layout.STATE]).state == state).all(1))
        if len(found):
            return episode, int(found[0])
    raise AssertionError("a state that is not in the dataset")


@settings(max_examples=25, deadline=None)
@given(
    horizon=st.integers(1, 15),
    k_max=st.integers(0, 15),
    batch_size=st.integers(1, 40),
    group=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 5),
)
def test_windows_are_those_of_one_episode(
    dataset: DatasetInfo, horizon: int, k_max: int, batch_size: int, group: list[int], seed: int
) -> None:
    config = WindowConfig(horizon=horizon, k_max=k_max, batch_size=batch_size, drop_last=False)
    batches = list(group_batches(dataset, group, config, seed=seed, epoch=0))
    assert len(batches) == num_batches(dataset, group, config)
    seen = set()
    for batch in batches:
        for n in range(len(batch.k)):
            episode, t = place(dataset, batch.state[n])
            columns, length = read_episode(dataset, episode), int(dataset.lengths[episode])
            seen.add((episode, t))
            assert episode in group
            expected = [columns.action[min(t + h, length - 1)] for h in range(horizon)]
            np.testing.assert_array_equal(batch.action[n], expected)
            np.testing.assert_array_equal(batch.action_mask[n], t + np.arange(horizon) < length)
            np.testing.assert_array_equal(batch.rgb[n], decode_jpeg(columns.image_jpeg[t]))
            assert batch.task_index[n] == episode % 3
            if batch.goal_rgb is not None:
                assert 1 <= batch.k[n] <= min(k_max, length - 1 - t)
                np.testing.assert_array_equal(batch.goal_rgb[n], decode_jpeg(columns.image_jpeg[t + int(batch.k[n])]))
    last = 1 if k_max else 0
    assert seen == {(e, t) for e in group for t in range(int(dataset.lengths[e]) - last)}


@settings(max_examples=25, deadline=None)
@given(
    k_max=st.integers(1, 5),
    segment=st.integers(2, 9),
    batch_size=st.integers(1, 40),
    group=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 5),
)
def test_both_images_of_a_pair_lie_in_one_segment(
    dataset: DatasetInfo, k_max: int, segment: int, batch_size: int, group: list[int], seed: int
) -> None:
    config = WindowConfig(k_max=k_max, segment=segment, batch_size=batch_size, drop_last=False)
    batches = list(group_batches(dataset, group, config, seed=seed, epoch=0))
    assert len(batches) == num_batches(dataset, group, config)
    rows = [[place(dataset, state) for state in batch.state] for batch in batches]
    for batch, places in zip(batches, rows, strict=True):
        assert batch.goal_rgb is None
        assert batch.goal_row is not None
        for n, (episode, t) in enumerate(places):
            goal, k = int(batch.goal_row[n]), int(batch.k[n])
            assert places[goal] == (episode, t + k)
            assert k <= k_max
            if k == 0:  # the last of its segment, or of the batch
                assert goal == n
                assert (t + 1) % segment == 0 or t + 2 == dataset.lengths[episode] or n + 1 == len(places)
    every = sorted(place for places in rows for place in places)
    assert every == sorted((e, t) for e in group for t in range(int(dataset.lengths[e]) - 1))
    again = list(group_batches(dataset, group, config, seed=seed, epoch=0, first_batch=1))
    assert all(same(a, b) for a, b in zip(again, batches[1:], strict=True))


def test_k_is_spread_over_its_range(dataset: DatasetInfo) -> None:
    config = WindowConfig(k_max=3, drop_last=False, holdout_every=0)
    k = np.concatenate([b.k for e in range(20) for b in group_batches(dataset, range(10), config, seed=0, epoch=e)])
    share = np.bincount(k, minlength=4)[1:] / len(k)
    # Of the 90 windows, 70 draw from {1, 2, 3}, 10 from {1, 2} and 10 from {1}.
    np.testing.assert_allclose(share, [(70 / 3 + 5 + 10) / 90, (70 / 3 + 5) / 90, 70 / 3 / 90], atol=0.03)


def same(a: Window, b: Window) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize("start", [1, 3, 9, 20])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_resuming_gives_the_same_sequence(dataset: DatasetInfo, start: int, num_workers: int) -> None:
    config = WindowConfig(batch_size=8, group_size=3, k_max=4, holdout_every=5)
    for worker in range(num_workers):
        shard = Shard(worker=worker, num_workers=num_workers)
        whole = list(islice(iterate(dataset, config, seed=1, shard=shard), start + 4))
        resumed = list(islice(iterate(dataset, config, seed=1, shard=replace(shard, start_batch=start)), 4))
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))
    other = next(iterate(dataset, config, seed=2))
    assert not same(other, next(iterate(dataset, config, seed=1)))


def test_workers_of_an_epoch_share_its_episodes(dataset: DatasetInfo) -> None:
    config = WindowConfig(batch_size=1, group_size=2, holdout_every=0, k_max=0)
    per_worker = [
        list(islice(iterate(dataset, config, seed=0, shard=Shard(worker=w, num_workers=2)), 50)) for w in range(2)
    ]
    states = [tuple(batch.state[0]) for batches in per_worker for batch in batches]
    groups = epoch_groups(np.arange(10), seed=0, epoch=0, group_size=2)
    counts = [sum(num_batches(dataset, g, config) for g in groups[w::2]) for w in range(2)]
    first_epoch = states[: counts[0]] + states[50 : 50 + counts[1]]
    assert len(set(first_epoch)) == min(counts[0], 50) + min(counts[1], 50)


def test_groups_are_a_pure_function_and_partition_the_epoch() -> None:
    groups = epoch_groups(np.arange(50), seed=3, epoch=2, group_size=16)
    assert [len(group) for group in groups] == [13, 13, 12, 12]
    assert sorted(np.concatenate(groups)) == list(range(50))
    again = epoch_groups(np.arange(50), seed=3, epoch=2, group_size=16)
    assert all((a == b).all() for a, b in zip(groups, again, strict=True))
    assert (groups[0] != epoch_groups(np.arange(50), seed=3, epoch=3, group_size=16)[0]).any()


def test_split_by_index_and_nested_budgets(dataset: DatasetInfo) -> None:
    train, held_out = split_episodes(dataset, WindowConfig(holdout_every=5))
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2, 3, 5, 6, 7, 8], [4, 9])
    fewer, _ = split_episodes(dataset, WindowConfig(holdout_every=5, num_episodes=6))
    assert fewer.tolist() == [0, 1, 2, 3, 5]
    assert split_episodes(dataset, WindowConfig(holdout_every=0))[1].tolist() == []
    with pytest.raises(DataError, match="has 10 episodes, but 11 are requested"):
        split_episodes(dataset, WindowConfig(num_episodes=11))


ARM = ArmSlots(ee_pos=(0, 1, 2), ee_quat=(3, 4, 5, 6), gripper=0)


def reach_of(tip: np.ndarray, contact: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a gripper that is never turned and never closes."""
    state = np.concatenate([tip, np.tile(np.array([1, 0, 0, 0], np.float32), (len(tip), 1))], axis=1)
    return reach_targets(state, np.ones(len(tip)), contact, ARM, steps)


def test_reach_by_hand() -> None:
    tip = np.zeros((6, 3), np.float32)
    tip[:, 0] = [0, 1, 2, 4, 8, 16]
    contact = np.array([False, False, True, True, False, True])
    reach, ahead = reach_of(tip, contact, 2)
    np.testing.assert_array_equal(reach[:, 0], [2, 3, 6, 12, 0, 0])
    np.testing.assert_array_equal(ahead[:, 0], [2, 2, 2, 2, NEVER, NEVER])
    # One bout from 2 to 5, as the gap of one step is joined: 0 and 1 lead there, and while it lasts none is next.
    np.testing.assert_array_equal(reach[:, 3], [2, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ahead[:, 3], [2, 1, NEVER, NEVER, NEVER, NEVER])
    # It runs to the end: the release is never seen.
    np.testing.assert_array_equal(reach[:, 6:9], 0)
    np.testing.assert_array_equal(ahead[:, 6], NEVER)
    np.testing.assert_array_equal(ahead[:, :3], ahead[:, :1].repeat(3, 1))


def test_the_way_to_the_release_by_hand() -> None:
    tip = np.zeros((10, 3), np.float32)
    tip[:, 1] = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12]
    contact = np.isin(np.arange(10), [1, 4, 8])  # 1 and 4 are one bout (two steps between), 4 and 8 are not (three)
    reach, ahead = reach_of(tip, contact, 1)
    np.testing.assert_array_equal(reach[:, 7], [4, 3, 2, 1, 0, 5, 4, 2, 0, 0])
    np.testing.assert_array_equal(ahead[:, 7], [4, 3, 2, 1, 0, 3, 2, 1, 0, NEVER])
    np.testing.assert_array_equal(ahead[:, 4], [1, NEVER, NEVER, NEVER, NEVER, 3, 2, 1, NEVER, NEVER])


def test_the_yaw_of_a_grasp_by_hand() -> None:
    yaw = np.deg2rad([0, 15, 30, 45, 60, 60, 90, 90])
    state = np.zeros((8, 7), np.float32)
    state[:, 3], state[:, 6] = np.cos(yaw / 2), np.sin(yaw / 2)
    contact = np.isin(np.arange(8), [3, 7])  # two bouts: three steps between
    gripper = np.array([1, 1, -1, -1, 1, 1, 1, 1])  # closes before the first; the second is a push with open fingers
    reach, ahead = reach_targets(state, gripper, contact, ARM, 1)
    # The y axis of a gripper turned by a stands at a + 90 degrees; twice that at the touch (45): 270.
    np.testing.assert_allclose(reach[:3, 9:11], [[0, -1]] * 3, atol=1e-6)
    # From 0, 15 and 30 degrees it is 45, 30 and 15 to go: twice that is 90, 60 and 30.
    np.testing.assert_allclose(reach[:3, 11], [0, 0.5, 3**0.5 / 2], atol=1e-6)
    np.testing.assert_allclose(reach[:3, 12], [1, 3**0.5 / 2, 0.5], atol=1e-6)
    np.testing.assert_array_equal(ahead[:3, 9:], [[3] * 4, [2] * 4, [1] * 4])
    assert (ahead[3:, 9:] == NEVER).all()  # it lasts; then a push
    assert not reach[3:, 9:].any()
    np.testing.assert_array_equal(ahead[3:, 3], [NEVER, 3, 2, 1, NEVER])  # whose contact point is told


def test_a_yaw_is_the_same_after_half_a_turn() -> None:
    a = np.deg2rad(20) / 2
    turned = np.array([[np.cos(a), 0, 0, np.sin(a)], [np.cos(a + np.pi / 2), 0, 0, np.sin(a + np.pi / 2)]])
    once, half = twice_yaw(turned)
    assert once == pytest.approx(half)
    assert abs(once) == pytest.approx(1)


def test_reach_behind_the_goal_does_not_count(dataset: DatasetInfo) -> None:
    config = WindowConfig(k_max=3, reach_steps=2, batch_size=8)
    window = next(group_batches(dataset, [3], config, seed=0, epoch=0))
    assert window.reach_mask is not None
    np.testing.assert_array_equal(window.reach_mask[:, 0], window.k >= 2)
    assert not next(group_batches(dataset, [3], replace(config, k_max=1), seed=0, epoch=0)).reach_mask[:, 0].any()  # type: ignore[index]


def test_reach_is_zero_and_masked_without_contact() -> None:
    reach, ahead = reach_of(np.ones((4, 3), np.float32), np.zeros(4, bool), 7)
    assert (ahead == NEVER).all()
    assert not reach.any()


def test_hide_robot_takes_the_nearest_clear_frame() -> None:
    rgb = np.zeros((5, 1, 2, 3), np.uint8)
    rgb[:, 0, 0] = np.array([10, 20, 30, 40, 50])[:, None]
    rgb[:, 0, 1] = 7
    mask = np.zeros((5, 1, 2), bool)
    mask[[1, 2, 3], 0, 0] = True
    mask[:, 0, 1] = True  # never seen without the robot
    before = rgb.copy()
    inpainted = inpaint_robot(rgb, mask)
    assert inpainted[:, 0, 0, 0].tolist() == [10, 10, 10, 50, 50]  # frame 2: both are two away, the earlier one
    assert (inpainted[:, 0, 1] == 128).all()
    np.testing.assert_array_equal(rgb, before)


def test_grow_by_one() -> None:
    mask = np.zeros((1, 5, 5), bool)
    mask[0, 2, 4] = True
    grown = np.argwhere(grow(mask, 1)[0]).tolist()
    assert grown == [[1, 3], [1, 4], [2, 3], [2, 4], [3, 3], [3, 4]]
    assert not mask[0, 2, 3]


def test_too_little_data_for_a_batch(dataset: DatasetInfo) -> None:
    with pytest.raises(ConfigError, match=r"worker 0 of 1 a single batch of 1000 windows. Lower the batch size"):
        next(iterate(dataset, WindowConfig(batch_size=1000), seed=0))


def test_two_arms_have_targets_each(made: SimpleNamespace) -> None:
    """Both touch in step 2, as far as the dataset knows; only the right one closes its fingers for it."""
    spec = replace(
        made.spec,
        action=tuple(replace(slot, name=side + slot.name) for side in ("left_", "right_") for slot in EE_DELTA_ACTION),
        state=tuple(replace(slot, name=side + slot.name) for side in ("left_", "right_") for slot in EE_POSE_STATE),
    )
    state, action = np.zeros((5, 14), np.float32), np.ones((5, 14), np.float32)
    state[:, [3, 10]] = 1.0  # both grippers point straight on
    state[:, 0], state[:, 8] = 0.01 * np.arange(5), -0.02 * np.arange(5)  # the left one goes ahead, the right one aside
    action[2:, 13] = -1.0
    reach, ahead = reach_of_robot(state, action, np.arange(5) == 2, spec, 1)
    assert reach.shape == ahead.shape == (5, 26)
    left, right = reach[0, :13], reach[0, 13:]
    assert left.tolist() == pytest.approx([0.01, 0, 0, 0.02, 0, 0, 0.02, 0, 0, 0, 0, 0, 0])
    assert right.tolist() == pytest.approx([0, -0.02, 0, 0, -0.04, 0, 0, -0.04, 0, -1, 0, 1, 0], abs=1e-6)
    assert (ahead[0, 9:13] == NEVER).all(), "the left one grasps nothing"
    assert ahead[0, 22:].tolist() == [2] * 4


def test_a_robot_without_a_tip(made: SimpleNamespace) -> None:
    spec = replace(made.spec, state=made.spec.state[1:])
    with pytest.raises(DataError, match=r"has no ee_x but ee_y, .*Stage 1: --objective.reach 0\. Stage 2: omit"):
        reaching_arms(spec)
    assert ObjectiveConfig(reach=0).windows(WindowConfig()).reach_steps == 0
    with pytest.raises(ConfigError, match="A reach loss needs reach targets"):  # so the windows alone are no cure
        ObjectiveConfig().windows(WindowConfig(reach_steps=0))


@pytest.mark.parametrize(("field", "value"), [("horizon", 0), ("k_max", -1), ("batch_size", 0), ("num_episodes", -1)])
def test_impossible_configs(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} must be at least"):
        bounds.check(WindowConfig(**{field: value}))
    with pytest.raises(ConfigError, match="holds out every episode"):
        WindowConfig(holdout_every=1)


def test_without_reach_and_goal(dataset: DatasetInfo) -> None:
    batch = next(iterate(dataset, WindowConfig(k_max=0, reach_steps=0, batch_size=4), seed=0))
    assert batch.goal_rgb is None
    assert batch.reach is None
    assert batch.reach_mask is None
    assert batch.k.tolist() == [0, 0, 0, 0]


def test_history_and_states_of_the_chunk(dataset: DatasetInfo) -> None:
    config = WindowConfig(
        horizon=3, k_max=0, reach_steps=0, batch_size=200, drop_last=False, chunk_states=True, history=4
    )
    [window] = group_batches(dataset, [0, 1], config, seed=0, epoch=0)
    assert window.past_mask is not None
    assert window.past_state is not None
    assert window.past_action is not None
    assert window.chunk_state is not None
    for row in range(len(window.state)):
        episode, step = place(dataset, window.state[row])
        episode_data = read_episode(dataset, episode, [layout.STATE, layout.ACTION])
        past, ahead = np.arange(step - 4, step), np.minimum(np.arange(step, step + 3), len(episode_data) - 1)
        np.testing.assert_array_equal(window.past_mask[row], past >= 0)
        np.testing.assert_array_equal(window.past_state[row][past >= 0], episode_data.state[past[past >= 0]])
        np.testing.assert_array_equal(window.past_action[row][past >= 0], episode_data.action[past[past >= 0]])
        np.testing.assert_array_equal(window.chunk_state[row], episode_data.state[ahead])
