"""Batches of training windows (o_t, o_{t+k}, a_{t:t+H}) from a data set, in an order that is a pure function of a seed.

An epoch's episodes are shuffled and cut into groups. A group's episodes are decoded once, its windows are shuffled and
gathered into batches. How many batches a group gives follows from the episodes' lengths alone, so a position in the
endless sequence is found again without decoding what comes before it.

    episode   0 . . t . . . t+k . . . . T-1          entry t: image and state *before* action t
                    |        |
                  rgb     goal_rgb                   both inside the episode
                    a a a a                          action chunk of H steps; past T-1 the last is repeated, mask False
                    |- - - - - ->                    reach: tip displacement over the next steps, vector to next contact
            p p p p |                                history: the steps before t; before 0 the first is repeated, masked
"""

from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from tap_ray.dataset import layout
from tap_ray.dataset.encode import decode_jpeg, decode_mask
from tap_ray.dataset.hide_robot import hide_robot
from tap_ray.dataset.reader import DatasetInfo, read_episode
from tap_ray.errors import ConfigError, DataError
from tap_ray.rng import generator
from tap_ray.specs import RobotSpec
from tap_ray.types import Episode, Window

TIP_SLOTS = ("ee_x", "ee_y", "ee_z")
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which windows, and how many at a time."""

    horizon: int = 4
    """H, actions in a chunk, steps."""
    k_max: int = 1
    """Goal images lie k ~ U{1 .. k_max} steps ahead (fewer near the end of an episode); 1 as in the paper, 0 leaves
    the goal out (alignment)."""
    reach_steps: int = 7
    """How far ahead the tip's displacement is a target, steps; 0 leaves the reach targets out."""
    chunk_states: bool = False
    """Whether each action of the chunk comes with the state before it (for a motion prior)."""
    history: int = 0
    """P, steps before t that a window carries; 0 none."""
    batch_size: int = 64
    """N, windows in a batch."""
    group_size: int = 16
    """Episodes decoded together and mixed; more mix better and need more memory (27 kB a frame at 96 px)."""
    num_episodes: int = 0
    """Use only the first so many episodes, so that budgets are nested; 0 uses all."""
    holdout_every: int = 19
    """Every so-many-th episode by index is held out from training; 0 holds out none. A prime, so that data sets whose
    tasks or explorers take turns hold out some of each."""
    goal_without_robot: bool = False
    """Goals in which only the objects are as they will be, the robot (and its shadow) as it is now: it gives the action
    away (SPIKE.md). Needs a data set with masks."""
    mask_grow_px: int = 2
    """Grow the robot's mask by this before painting, px: hides the JPEG's halo. 0 leaves it."""
    drop_last: bool = True
    """Drop a group's last, smaller batch. False keeps it (for evaluation)."""

    def __post_init__(self) -> None:
        lowest = {"horizon": 1, "k_max": 0, "reach_steps": 0, "batch_size": 1, "group_size": 1, "holdout_every": 0}
        for name, low in {**lowest, "num_episodes": 0, "history": 0, "mask_grow_px": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"windows.{name} must be at least {low}, not {getattr(self, name)}.")
        if self.holdout_every == 1:
            raise ConfigError("windows.holdout_every = 1 holds out every episode; use 0 (none) or at least 2.")


def split_episodes(dataset: DatasetInfo, config: WindowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Episode indices (training, held out). Every `holdout_every`-th is held out: 18, 37, ... for 19.

    Raises:
        DataError: more episodes are asked for than there are.
    """
    if config.num_episodes > len(dataset):
        raise DataError(
            f"{dataset.path} has {len(dataset)} episodes, {config.num_episodes} are asked for. Collect more (the same "
            "command with more --episodes makes it longer), or ask for fewer."
        )
    index = np.arange(config.num_episodes or len(dataset))
    held_out = index % config.holdout_every == config.holdout_every - 1 if config.holdout_every else index < 0
    return index[~held_out], index[held_out]


def epoch_groups(episodes: np.ndarray, *, seed: int, epoch: int, group_size: int) -> list[np.ndarray]:
    """Shuffle the episodes of an epoch and cut them into groups of nearly equal size, at most `group_size`."""
    order = generator(seed, "windows", "epoch", epoch).permutation(episodes)
    return np.array_split(order, max(1, -(-len(order) // group_size)))


def num_windows(lengths: np.ndarray, config: WindowConfig) -> int:
    """How many windows episodes of these lengths have: one a step, less the last step if a goal is needed."""
    return int(np.maximum(lengths - (1 if config.k_max else 0), 0).sum())


def num_batches(dataset: DatasetInfo, group: Sequence[int] | np.ndarray, config: WindowConfig) -> int:
    """How many batches `group_batches` gives, without decoding anything."""
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
        config: which windows.
        seed: of the run.
        epoch: of the group.
        first_batch: how many batches at the beginning to leave out.

    Raises:
        DataError: the data set is damaged, or lacks what the config needs (masks, tip position).
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
    """`group_batches` of episodes that no disk has seen (live play); a pure function of its arguments.

    Args:
        episodes: as they come from the robots; their `task_index` is 0.
        config: which windows.
        spec: of the robot.
        rng: of the group.
        first_batch: how many batches at the beginning to leave out.
    """
    total = num_windows(np.array([len(episode) for episode in episodes]), config) // config.batch_size
    columns = [
        {
            layout.IMAGE: episode.image_jpeg,
            layout.MASK: episode.mask_png,
            layout.STATE: episode.state,
            layout.ACTION: episode.action,
            layout.CONTACT: episode.contact.astype(np.float32),
            "task_index": np.zeros(len(episode), np.int64),
        }
        for episode in episodes
    ]
    image_size = decode_jpeg(episodes[0].image_jpeg[0]).shape[:2]
    yield from _shuffled(_frames(columns, image_size, spec, config), config, rng, range(first_batch, total))


def _shuffled(frames: "_Frames", config: WindowConfig, rng: np.random.Generator, batches: range) -> Iterator[Window]:
    """These batches of a group's shuffled windows."""
    start_W = np.flatnonzero(frames.end - np.arange(len(frames.end)) > (1 if config.k_max else 0))
    start_W = rng.permutation(start_W)
    k_W = np.zeros_like(start_W)
    if config.k_max:
        k_W = rng.integers(1, np.minimum(config.k_max, frames.end[start_W] - 1 - start_W) + 1)
    for batch in batches:
        part = slice(batch * config.batch_size, (batch + 1) * config.batch_size)
        yield _gather(frames, start_W[part], k_W[part], config)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is decoded together: a group, or the rest of one."""

    epoch: int
    group: tuple[int, ...]
    """Episode indices."""
    first_batch: int
    """Batches at its beginning that were trained on before the run was resumed."""


def schedule(
    dataset: DatasetInfo, config: WindowConfig, *, seed: int, start_batch: int, worker: int, num_workers: int
) -> Iterator[Piece]:
    """The endless groups of one worker, from the one on that holds its batch `start_batch`; nothing is decoded."""
    episodes, _ = split_episodes(dataset, config)
    group_size = min(config.group_size, max(1, len(episodes) // num_workers))
    epoch = 0
    while True:
        groups = epoch_groups(episodes, seed=seed, epoch=epoch, group_size=group_size)[worker::num_workers]
        counts = [num_batches(dataset, group, config) for group in groups]
        if sum(counts) == 0:
            raise ConfigError(
                f"{dataset.path}: {len(episodes)} training episodes in groups of {group_size} give worker {worker} of "
                f"{num_workers} not one batch of {config.batch_size} windows. Lower the batch size, use fewer workers "
                "or collect more episodes."
            )
        for group, count in zip(groups, counts, strict=True):
            if start_batch < count:
                yield Piece(epoch=epoch, group=tuple(int(index) for index in group), first_batch=start_batch)
            start_batch = max(0, start_batch - count)
        epoch += 1


def iterate(
    dataset: DatasetInfo,
    config: WindowConfig,
    *,
    seed: int,
    start_batch: int = 0,
    worker: int = 0,
    num_workers: int = 1,
) -> Iterator[Window]:
    """Endless training batches of one worker; the workers' batches of an epoch are disjoint.

    Args:
        dataset: from `open_dataset`.
        config: which windows.
        seed: of the run; each epoch is shuffled anew.
        start_batch: how many batches this worker has had already: the sequence goes on from there, and whole groups
            before it are not even decoded.
        worker: 0 .. num_workers - 1.
        num_workers: how many share an epoch.

    Raises:
        ConfigError: the data set is too small to give this worker a batch.
        DataError: see `group_batches`.
    """
    place = {"seed": seed, "start_batch": start_batch, "worker": worker, "num_workers": num_workers}
    for piece in schedule(dataset, config, **place):
        yield from group_batches(
            dataset, piece.group, config, seed=seed, epoch=piece.epoch, first_batch=piece.first_batch
        )


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """The F frames of a group, end to end."""

    rgb: np.ndarray
    """(F, Y, X, 3) uint8."""
    hidden_rgb: np.ndarray | None
    """Likewise with the robot painted out; None unless goals are to be without it."""
    state: np.ndarray
    action: np.ndarray
    task_index: np.ndarray
    reach: np.ndarray
    """(F, 6) float32."""
    reach_ahead: np.ndarray
    """(F, 6) int64, steps until the robot is there; NEVER where the episode ends before."""
    end: np.ndarray
    """(F,) index just behind the last frame of this frame's episode."""
    begin: np.ndarray
    """(F,) index of its first frame."""


def _load_group(dataset: DatasetInfo, group: Sequence[int] | np.ndarray, config: WindowConfig) -> _Frames:
    hide = config.goal_without_robot and config.k_max > 0
    if hide and not dataset.header.robot_mask:
        raise DataError(
            f"{dataset.path} has no robot masks, which windows.goal_without_robot needs. Collect with robot masks, or "
            "switch it off."
        )
    columns = [layout.IMAGE, layout.STATE, layout.ACTION, layout.CONTACT, "task_index", *([layout.MASK] * hide)]
    episodes = [read_episode(dataset, int(index), columns) for index in group]
    return _frames(episodes, dataset.header.image_size, dataset.spec, config)


def _frames(
    episodes: Sequence[Mapping[str, Any]], image_size: tuple[int, ...], spec: RobotSpec, config: WindowConfig
) -> _Frames:
    """Decode episodes and lay their frames end to end."""
    hide = config.goal_without_robot and config.k_max > 0
    length_E = np.array([len(episode[layout.ACTION]) for episode in episodes])
    image_y, image_x = image_size
    rgb = np.empty((length_E.sum(), image_y, image_x, 3), np.uint8)
    hidden_rgb = np.empty_like(rgb) if hide else None
    first = 0
    for episode, length in zip(episodes, length_E, strict=True):
        own = slice(first, first + length)
        for frame, data in zip(range(first, first + length), episode[layout.IMAGE], strict=True):
            rgb[frame] = decode_jpeg(data)
        if hidden_rgb is not None:
            mask = np.stack([decode_mask(data) for data in episode[layout.MASK]])
            hidden_rgb[own] = hide_robot(rgb[own], mask, grow_px=config.mask_grow_px)
        first += length
    tip = tip_columns(spec) if config.reach_steps else []
    reach = [reach_targets(e[layout.STATE][:, tip], e[layout.CONTACT] > 0.5, config.reach_steps) for e in episodes]
    return _Frames(
        rgb=rgb,
        hidden_rgb=hidden_rgb,
        state=np.concatenate([episode[layout.STATE] for episode in episodes]),
        action=np.concatenate([episode[layout.ACTION] for episode in episodes]),
        task_index=np.concatenate([episode["task_index"] for episode in episodes]),
        reach=np.concatenate([target for target, _ in reach]),
        reach_ahead=np.concatenate([ahead for _, ahead in reach]),
        end=np.repeat(length_E.cumsum(), length_E),
        begin=np.repeat(length_E.cumsum() - length_E, length_E),
    )


def _gather(frames: _Frames, start_N: np.ndarray, k_N: np.ndarray, config: WindowConfig) -> Window:
    step_NH = start_N[:, None] + np.arange(config.horizon)
    end_N1, begin_N1 = frames.end[start_N][:, None], frames.begin[start_N][:, None]
    inside_NH = np.minimum(step_NH, end_N1 - 1)
    past_NP = start_N[:, None] + np.arange(-config.history, 0)
    seen_NP = np.maximum(past_NP, begin_N1)
    return Window(
        rgb=frames.rgb[start_N],
        goal_rgb=_goals(frames, start_N, k_N) if config.k_max else None,
        k=k_N,
        state=frames.state[start_N],
        action=frames.action[inside_NH],
        action_mask=step_NH < end_N1,
        reach=frames.reach[start_N] if config.reach_steps else None,
        reach_mask=_before_goal(frames.reach_ahead[start_N], k_N, config) if config.reach_steps else None,
        task_index=frames.task_index[start_N],
        chunk_state=frames.state[inside_NH] if config.chunk_states else None,
        past_action=frames.action[seen_NP] if config.history else None,
        past_state=frames.state[seen_NP] if config.history else None,
        past_mask=past_NP >= begin_N1 if config.history else None,
    )


def _goals(frames: _Frames, start_N: np.ndarray, k_N: np.ndarray) -> np.ndarray:
    """(N, Y, X, 3) uint8 goal images."""
    if frames.hidden_rgb is None:
        return frames.rgb[start_N + k_N]
    change = frames.hidden_rgb[start_N + k_N].astype(np.int16) - frames.hidden_rgb[start_N]
    return np.clip(frames.rgb[start_N] + change, 0, 255).astype(np.uint8)


def _before_goal(ahead_NR: np.ndarray, k_N: np.ndarray, config: WindowConfig) -> np.ndarray:
    """(N, R) bool: targets that exist, and that the goal image can tell of."""
    return ahead_NR <= (k_N[:, None] if config.k_max else NEVER - 1)


def tip_columns(spec: RobotSpec) -> list[int]:
    """Places of the tip's x, y, z in the state.

    Raises:
        DataError: the robot does not report them.
    """
    names = [slot.name for slot in spec.state]
    if missing := [name for name in TIP_SLOTS if name not in names]:
        raise DataError(
            f"Reach targets need the state slots {', '.join(TIP_SLOTS)}; {spec.robot} has no {', '.join(missing)} but "
            f"{', '.join(names)}. Set windows.reach_steps to 0 to do without."
        )
    return [names.index(name) for name in TIP_SLOTS]


def reach_targets(tip_T3: np.ndarray, contact_T: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the robot's own tip will go: self-supervised targets in the robot's base frame (SPIKE.md).

    Args:
        tip_T3: tip position, m.
        contact_T: a finger touches an object.
        steps: how far ahead the displacement is taken.

    Returns:
        (T, 6) float32, m: displacement over the next `steps`, then the vector to where the tip is when a contact next
        *begins* (strictly later than t); and (T, 6) int64, how many steps ahead that is: NEVER (and zeros before) where
        the episode ends first.
    """
    num_steps = len(tip_T3)
    now = np.arange(num_steps)
    begins = np.flatnonzero(contact_T & ~np.concatenate([[False], contact_T[:-1]]))
    next_contact = np.append(begins, num_steps)[np.searchsorted(begins, now, side="right")]
    targets = np.stack([now + steps, next_contact], axis=1)
    known = targets < num_steps
    vector_T23 = tip_T3[np.minimum(targets, num_steps - 1)] - tip_T3[:, None] if steps else np.zeros((num_steps, 2, 3))
    reach = np.where(known[:, :, None], vector_T23, 0).astype(np.float32).reshape(num_steps, 6)
    return reach, np.where(known, targets - now[:, None], NEVER).repeat(3, axis=1)
