"""Makes batches of training windows (o_t, o_{t+k}, a_{t:t+H}) from a dataset, in an order that follows from a seed.

An epoch's episodes are shuffled and cut into groups. A group's episodes are decoded once, its windows are shuffled and
gathered into batches. How many batches a group gives follows from the episodes' lengths alone; `schedule.py` says which
worker gets which groups.

    episode   0 . . t . . . t+k . . . . T-1          entry t: image and state *before* action t
                    |        |
                  rgb     goal_rgb                   both inside the episode
                    a a a a                          action chunk of H steps; past T-1 the last is repeated, mask False
                    |- - - - - ->                    reach: end-effector displacement over the next steps, and to the
                                                     next contact and the next release
                    [ ] [ ]                          crops: the object touched next, the place where it is released
            p p p p |                                history: the steps before t; before 0 the first is repeated, masked
"""

from dataclasses import dataclass
from typing import Any, Iterator, Sequence

import numpy as np
from tyro.conf import Suppress

from tap_ray.dataset import layout
from tap_ray.dataset.crop_files import cut_masked, read_crops
from tap_ray.dataset.crops import CROPS, Crops
from tap_ray.dataset.reach import NEVER, reach_of
from tap_ray.dataset.reader import DatasetInfo, read_episodes
from tap_ray.errors import ConfigError, DataError
from tap_ray.media.image import decode_episodes
from tap_ray.rng import generator
from tap_ray.specs import RobotSpec
from tap_ray.types import Episode, Window


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Settings of the training windows and their batches."""

    horizon: int = 4
    """Number of actions in a chunk (H). If not given, it is the chunk of a motion prior, or k_max for inverse dynamics
    alone."""
    k_max: int = 1
    """Goal images are k ~ U{1 .. k_max} steps ahead (fewer near the end of an episode); 1 as in the paper, 0: no goal
    image (alignment)."""
    segment: int = 1
    """Number of consecutive steps that are drawn together. From 2 on, both images of a pair are in one segment, so each
    frame is encoded only once; with 16, inverse dynamics trains on twice as many pairs per second. A batch then mixes
    fewer episodes: with 128 windows nothing was gained (docs/results/log.md). 1 draws each step independently."""
    reach_steps: int = 7
    """Number of steps of the end effector's displacement that is a target; 0: no such targets."""
    chunk_states: Suppress[bool] = False
    """Whether each action of the chunk comes with the state before it (for a motion prior)."""
    history: Suppress[int] = 0
    """Number of steps before t in a window (P); 0: none."""
    batch_size: Suppress[int] = 64
    """Number of windows in a batch (N)."""
    group_size: int = 128
    """Number of episodes that are decoded and shuffled together; more of them mix better but need more memory (27 kB
    per frame at 96 px, 210 MB for 128 episodes of 60 frames). With few, the network overfits to the scenes of each
    group in turn: Stage 1 stopped improving with 32. Live play mixes at most 16."""
    num_episodes: int = 0
    """Use only the first `num_episodes` episodes, so that smaller budgets are parts of larger ones; 0 uses all."""
    holdout_every: int = 19
    """Every N-th episode by index is held out from training; 0 holds out none. A prime, so that datasets whose
    tasks or explorers take turns hold out some of each."""
    crops: Suppress[bool] = False
    """Whether windows contain crops of the object that is touched next and of the place where it is released. Needs a
    dataset with masks whose crops have been cut (jobs.cut_crops)."""
    drop_last: Suppress[bool] = True
    """Whether the last, smaller batch of a group is dropped. False keeps it (for evaluation)."""

    def __post_init__(self) -> None:
        if self.holdout_every == 1:
            raise ConfigError("--windows.holdout-every 1 holds out every episode. Use 0 (none), or at least 2.")


def split_episodes(dataset: DatasetInfo, config: WindowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Episode indices (E,) int64: (training, held out). Every `holdout_every`-th is held out: 18, 37, ... for 19.

    Raises:
        DataError: more episodes are requested than there are.
    """
    if config.num_episodes > len(dataset):
        raise DataError(
            f"{dataset.path} has {len(dataset)} episodes, but {config.num_episodes} are requested. Collect more (run "
            "the same command with a larger --episodes), or request fewer."
        )
    index = np.arange(config.num_episodes or len(dataset))
    held_out = index % config.holdout_every == config.holdout_every - 1 if config.holdout_every else index < 0
    return index[~held_out], index[held_out]


def epoch_groups(episodes: np.ndarray, *, seed: int, epoch: int, group_size: int) -> list[np.ndarray]:
    """Shuffle the episodes of an epoch, (E,) indices, and cut them into groups of nearly equal size, at most
    `group_size` episodes."""
    order = generator(seed, "windows", "epoch", epoch).permutation(episodes)
    return np.array_split(order, max(1, -(-len(order) // group_size)))


def num_windows(lengths: np.ndarray, config: WindowConfig) -> int:
    """Number of windows of episodes with these (E,) numbers of steps: one per step, without the last one if a goal is
    needed."""
    return int(np.maximum(lengths - (1 if config.k_max else 0), 0).sum())


def num_batches(dataset: DatasetInfo, group: Sequence[int] | np.ndarray, config: WindowConfig) -> int:
    """Number of batches of `group_batches`, without decoding anything."""
    windows = num_windows(dataset.lengths[np.asarray(group, np.int64)], config)
    return windows // config.batch_size if config.drop_last else -(-windows // config.batch_size)


def group_batches(
    dataset: DatasetInfo,
    group: Sequence[int] | np.ndarray,
    config: WindowConfig,
    *,
    seed: int,
    epoch: int,
    first_batch: int = 0,
) -> Iterator[Window]:
    """The shuffled batches of one group; a pure function of its arguments.

    Args:
        dataset: from `open_dataset`.
        group: episode indices, from `epoch_groups`.
        config: settings of the windows.
        seed: seed of the run.
        epoch: epoch of the group.
        first_batch: number of batches at the beginning to skip.

    Raises:
        DataError: the dataset is damaged, or lacks data that the config needs (crops, tool position).
    """
    total = num_batches(dataset, group, config)
    if first_batch >= total:
        return
    frames = _load_group(dataset, group, config)
    rng = generator(seed, "windows", "epoch", epoch, "group", int(group[0]))
    yield from _shuffled(frames, config, rng, range(first_batch, total))


def episode_batches(
    episodes: Sequence[Episode],
    config: WindowConfig,
    *,
    spec: RobotSpec,
    rng: np.random.Generator,
    first_batch: int = 0,
) -> Iterator[Window]:
    """`group_batches` for episodes in memory (live play); a pure function of its arguments.

    Args:
        episodes: as they come from the robots; their `task_index` is 0.
        config: settings of the windows.
        spec: interface of the robot.
        rng: random generator of the group.
        first_batch: number of batches at the beginning to skip.

    Raises:
        DataError: crops are needed and the episodes have no masks.
    """
    if config.crops and any(episode.mask_png is None for episode in episodes):
        raise DataError(
            "Live play has no robot masks, but windows.crops needs them. Collect with robot masks (--robot-mask)."
        )
    total = num_windows(np.array([len(episode) for episode in episodes]), config) // config.batch_size
    frames = _frames(episodes, np.zeros(len(episodes), np.int64), spec, config)
    yield from _shuffled(frames, config, rng, range(first_batch, total))


def _shuffled(frames: "_Frames", config: WindowConfig, rng: np.random.Generator, batches: range) -> Iterator[Window]:
    """The requested batches of a group's shuffled windows."""
    start_W: np.ndarray = np.flatnonzero(frames.end - np.arange(len(frames.end)) > (1 if config.k_max else 0))
    if config.segment > 1:
        first_S = np.flatnonzero((start_W - frames.begin[start_W]) % config.segment == 0)
        segments: list[np.ndarray] = np.split(start_W, first_S[1:])
        start_W = np.concatenate([segments[int(number)] for number in rng.permutation(len(segments))])
        k_W = _inside_segments(start_W, config, rng.random(len(start_W)))
    else:
        start_W, k_W = rng.permutation(start_W), np.zeros_like(start_W)
        if config.k_max:
            k_W = rng.integers(1, np.minimum(config.k_max, frames.end[start_W] - 1 - start_W) + 1)
    for batch in batches:
        part = slice(batch * config.batch_size, (batch + 1) * config.batch_size)
        yield _gather(frames, start_W[part], k_W[part], config)


def _inside_segments(start_W: np.ndarray, config: WindowConfig, uniform_W: np.ndarray) -> np.ndarray:
    """(W,) steps to a later frame of the same segment and batch, k ~ U{1 .. k_max}; 0 for the last of either."""
    row_W = np.arange(len(start_W))
    last_W = np.append(np.diff(start_W) != 1, True)
    last_W[config.batch_size - 1 :: config.batch_size] = True
    end_W = np.flatnonzero(last_W)[np.cumsum(last_W) - last_W]
    room_W = np.minimum(config.k_max, end_W - row_W)
    return np.where(room_W > 0, 1 + (uniform_W * room_W).astype(np.int64), 0)


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """The F frames of a group, concatenated."""

    rgb: np.ndarray
    """(F, Y, X, 3) uint8."""
    extra_rgb: np.ndarray | None
    """(F, V, Y, X, 3) uint8 images of the other cameras."""
    state: np.ndarray
    action: np.ndarray
    task_index: np.ndarray
    reach: np.ndarray
    """(F, R) float32."""
    reach_ahead: np.ndarray
    """(F, R) int64, number of steps until each target; NEVER if the episode ends before."""
    end: np.ndarray
    """(F,) index after the last frame of this frame's episode."""
    begin: np.ndarray
    """(F,) index of the first frame of this frame's episode."""
    crops: "_GroupCrops | None"


@dataclass(frozen=True, kw_only=True)
class _GroupCrops:
    """The crops of all episodes of a group."""

    rgb: np.ndarray
    """(B + 1, 2, C, C, 3) uint8: object and place of each bout, then zeros."""
    known: np.ndarray
    """(B + 1, 2) bool."""
    px: np.ndarray
    """(B + 1, 2, 2) float32: row and column of object and place."""
    touch: np.ndarray
    """(B + 1,) int64, the frame of the first touch."""
    bout: np.ndarray
    """(F,) int64, index of a frame's bout in these arrays; -1 (the zeros) if it has none."""


def _load_group(dataset: DatasetInfo, group: Sequence[int] | np.ndarray, config: WindowConfig) -> _Frames:
    crops = read_crops(dataset, group, CROPS) if config.crops else None
    images = layout.image_columns(dataset.spec)
    columns = [*images, layout.STATE, layout.ACTION, *([layout.CONTACT] if dataset.header.contact else [])]
    episodes = list(read_episodes(dataset, group, columns))
    task_E = np.array([dataset.tasks.index(episode.task) for episode in episodes], np.int64)
    return _frames(episodes, task_E, dataset.spec, config, crops)


def _frames(
    episodes: Sequence[Episode],
    task_E: np.ndarray,
    spec: RobotSpec,
    config: WindowConfig,
    crops: Sequence[Crops] | None = None,
) -> _Frames:
    """Decode episodes and concatenate their frames; missing crops are cut."""
    length_E = np.array([len(episode) for episode in episodes])
    first_E = length_E.cumsum() - length_E
    rgb = decode_episodes([episode.image_jpeg for episode in episodes])
    others = [decode_episodes(files) for files in zip(*(episode.extra_jpeg for episode in episodes), strict=True)]
    if config.crops and crops is None:
        episode_rgb = [rgb[first : first + length] for first, length in zip(first_E, length_E, strict=True)]
        crops = [cut_masked(r, e.mask_png or (), e.contact, CROPS) for r, e in zip(episode_rgb, episodes, strict=True)]
    reach = [reach_of(e.state, e.action, e.contact, spec, config.reach_steps) for e in episodes]
    return _Frames(
        rgb=rgb,
        extra_rgb=np.stack(others, axis=1) if others else None,
        state=np.concatenate([episode.state for episode in episodes]),
        action=np.concatenate([episode.action for episode in episodes]),
        task_index=task_E.repeat(length_E),
        reach=np.concatenate([target for target, _ in reach]),
        reach_ahead=np.concatenate([ahead for _, ahead in reach]),
        end=np.repeat(first_E + length_E, length_E),
        begin=np.repeat(first_E, length_E),
        crops=None if crops is None else _end_to_end(crops, first_E),
    )


def _end_to_end(crops: Sequence[Crops], frame_E: np.ndarray) -> _GroupCrops:
    rgb = np.stack([np.concatenate([c.object_rgb for c in crops]), np.concatenate([c.place_rgb for c in crops])], 1)
    known = np.concatenate([np.stack([np.ones(len(c), bool), c.has_place], axis=1) for c in crops])
    px = np.concatenate([np.stack([c.object_px, c.place_px], axis=1) for c in crops]).astype(np.float32)
    touch = np.concatenate([c.touch_B + first for c, first in zip(crops, frame_E, strict=True)])
    first_E = np.cumsum([0, *(len(c) for c in crops)])
    bouts = [np.where(c.bout_T < 0, -1, c.bout_T + first) for c, first in zip(crops, first_E, strict=False)]
    return _GroupCrops(
        rgb=np.concatenate([rgb, np.zeros_like(rgb, shape=(1, *rgb.shape[1:]))]),
        known=np.concatenate([known, np.zeros((1, 2), bool)]),
        px=np.concatenate([px, np.zeros((1, 2, 2), np.float32)]),
        touch=np.append(touch, 0),
        bout=np.concatenate(bouts),
    )


def _gather(frames: _Frames, start_N: np.ndarray, k_N: np.ndarray, config: WindowConfig) -> Window:
    step_NH = start_N[:, None] + np.arange(config.horizon)
    end_N1, begin_N1 = frames.end[start_N][:, None], frames.begin[start_N][:, None]
    inside_NH = np.minimum(step_NH, end_N1 - 1)
    past_NP = start_N[:, None] + np.arange(-config.history, 0)
    seen_NP = np.maximum(past_NP, begin_N1)
    return Window(
        rgb=frames.rgb[start_N],
        goal_rgb=frames.rgb[start_N + k_N] if config.k_max and config.segment == 1 else None,
        goal_row=np.arange(len(k_N)) + k_N if config.k_max and config.segment > 1 else None,
        k=k_N,
        state=frames.state[start_N],
        action=frames.action[inside_NH],
        action_mask=step_NH < end_N1,
        reach=frames.reach[start_N] if config.reach_steps else None,
        reach_mask=_known(frames.reach_ahead[start_N], k_N, config) if config.reach_steps else None,
        task_index=frames.task_index[start_N],
        chunk_state=frames.state[inside_NH] if config.chunk_states else None,
        past_action=frames.action[seen_NP] if config.history else None,
        past_state=frames.state[seen_NP] if config.history else None,
        past_mask=past_NP >= begin_N1 if config.history else None,
        **_extra_at(frames.extra_rgb, start_N, start_N + k_N, config),
        **_crops_at(frames.crops, start_N),
    )


def _extra_at(
    extra_rgb: np.ndarray | None, now_N: np.ndarray, goal_N: np.ndarray, config: WindowConfig
) -> dict[str, Any]:
    if extra_rgb is None:
        return {}
    goal = {"goal_extra_rgb": extra_rgb[goal_N]} if config.k_max and config.segment == 1 else {}
    return {"extra_rgb": extra_rgb[now_N], **goal}


def _crops_at(crops: _GroupCrops | None, start_N: np.ndarray) -> dict[str, Any]:
    if crops is None:
        return {}
    bout_N = crops.bout[start_N]
    rgb, known = crops.rgb[bout_N], crops.known[bout_N]
    rests = np.stack([start_N < crops.touch[bout_N], np.ones(len(start_N), bool)], axis=1)
    images = {"object_crop": rgb[:, 0].copy(), "place_crop": rgb[:, 1].copy(), "crop_mask": known}
    return images | {"crop_px": crops.px[bout_N], "crop_px_mask": known & rests}


def _known(ahead_NR: np.ndarray, k_N: np.ndarray, config: WindowConfig) -> np.ndarray:
    """(N, R) bool: targets that exist and, if only a goal image shows the future, lie before it."""
    goal_only = config.k_max > 0 and not config.crops
    return ahead_NR <= (k_N[:, None] if goal_only else NEVER - 1)
