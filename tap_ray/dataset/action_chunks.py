"""Makes batches of action chunks, without images, from the play of several robots; their order follows from a seed
alone.

    dataset 0 (widowx)  -> its state and action columns, normalized, laid out as specs.UNIFIED_* -+
    dataset 1 (iiwa)    -> ...                                                                    +-> batch b
    ...                                                                                           -+

A batch takes a fixed number of windows from each dataset, by its weight. Every dataset goes through its own windows
in its own random order, again and again; batch number b follows from (seed, b) alone, so a run resumes anywhere.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Sequence

import numpy as np
from tyro.conf import Suppress

from tap_ray.dataset import layout
from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.reader import DatasetInfo, as_dataset, footer, open_dataset, read_episodes, stats_of
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import ConfigError, DataError
from tap_ray.rng import generator
from tap_ray.specs import UNIFIED_ACTION, UNIFIED_STATE, RobotSpec, unified_indices
from tap_ray.types import ActionChunkBatch


@dataclass(frozen=True, kw_only=True)
class ActionChunkConfig:
    """Settings of the chunks and their batches."""

    horizon: Suppress[int] = 15
    """Number of steps of a chunk (H)."""
    batch_size: Suppress[int] = 256
    """Number of chunks in a batch (N)."""
    num_episodes: int = 0
    """Use only the first N episodes of each dataset, so that smaller budgets are parts of larger ones; 0 uses all."""
    holdout_every: int = 19
    """Every N-th episode of each dataset is held out; 0 holds out none."""

    def episodes(self, dataset: DatasetInfo) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and of the held-out episodes."""
        return split_episodes(dataset, WindowConfig(num_episodes=self.num_episodes, holdout_every=self.holdout_every))


@dataclass(frozen=True, kw_only=True)
class ActionChunks:
    """The states and actions of one dataset in memory: 232 bytes a step."""

    spec: RobotSpec
    norm: NormStats
    """Statistics of its training episodes."""
    action_FA: np.ndarray
    """(F, A) float32, normalized, in the unified layout, all episodes concatenated."""
    state_FS: np.ndarray
    first_W: np.ndarray
    """(W,) first frame of every window that lies within its episode."""
    dim_mask_A: np.ndarray
    """(A,) bool, the robot's own action dims."""


def load(
    data: DatasetInfo | Path, config: ActionChunkConfig, *, held_out: bool = False, norm: NormStats | None = None
) -> ActionChunks:
    """Read a dataset's states and actions, and nothing else.

    Args:
        data: the dataset.
        config: settings of the chunks.
        held_out: read the held-out episodes instead of the training ones.
        norm: statistics to normalize with; None: those of its training episodes.

    Raises:
        DataError: there is no such dataset, or no episode is as long as a window.
        SpecError: the robot does not fit the unified layout.
    """
    dataset = as_dataset(data)
    train, out = config.episodes(dataset)
    norm = norm or norm_stats(stats_of(dataset, train), dataset.spec)
    columns = [layout.STATE, layout.ACTION]
    episodes = list(read_episodes(dataset, out if held_out else train, columns))
    lengths = np.array([len(episode) for episode in episodes], np.int64)
    if not (lengths >= config.horizon).any():
        raise DataError(
            f"{dataset.path}: none of its {len(lengths)} {'held-out' if held_out else 'training'} episodes has "
            f"{config.horizon} steps, the length of a window. Collect more or longer episodes, or lower "
            "--windows.horizon."
        )
    begin = np.concatenate([[0], lengths.cumsum()[:-1]])
    num = np.maximum(lengths - config.horizon + 1, 0)
    first = [start + np.arange(windows) for start, windows in zip(begin, num, strict=True)]
    action_dims = unified_indices(dataset.spec.action, UNIFIED_ACTION)
    state_dims = unified_indices(dataset.spec.state, UNIFIED_STATE)
    action = np.concatenate([episode.action for episode in episodes])
    state = np.concatenate([episode.state for episode in episodes])
    dim_mask_A = np.zeros(len(UNIFIED_ACTION), bool)
    dim_mask_A[list(action_dims)] = True
    return ActionChunks(
        spec=dataset.spec,
        norm=norm,
        action_FA=_spread(norm.action.normalize(action), action_dims, len(UNIFIED_ACTION)),
        state_FS=_spread(norm.state.normalize(state), state_dims, len(UNIFIED_STATE)),
        first_W=np.concatenate(first),
        dim_mask_A=dim_mask_A,
    )


def _spread(values_FX: np.ndarray, dims: tuple[int, ...], num: int) -> np.ndarray:
    """Copy columns to their dims in the unified layout; other dims are zero."""
    spread = np.zeros((len(values_FX), num), np.float32)
    spread[:, list(dims)] = values_FX
    return spread


def counts(weights: Sequence[float], batch_size: int) -> list[int]:
    """How many windows of a batch come from each dataset: proportional to the weights, largest remainders first.

    Raises:
        ConfigError: a weight is not positive, or a dataset would have no window in a batch.
    """
    share = np.asarray(weights, float)
    if not len(share) or not (np.isfinite(share) & (share > 0)).all() or not np.isfinite(share.sum()):
        raise ConfigError(f"Each weight must be finite and above 0, and so must their sum; got {list(weights)}.")
    exact = share / share.sum() * batch_size
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: batch_size - whole.sum()]] += 1
    if (whole == 0).any():
        raise ConfigError(
            f"With the weights {list(weights)} and {batch_size} windows in a batch, the dataset of weight "
            f"{weights[int(np.argmin(whole))]} gets no window at all. Raise its weight, or --batch-size (of --play: "
            "--align.play-batch)."
        )
    return whole.tolist()


def batch(
    sets: Sequence[ActionChunks], weights: Sequence[float], config: ActionChunkConfig, *, seed: int, number: int
) -> ActionChunkBatch:
    """Batch `number` of the endless sequence."""
    parts = [
        gather_chunks(chunks, shuffled_windows(chunks, seed, source, number * count, count), config.horizon, source)
        for source, (chunks, count) in enumerate(zip(sets, counts(weights, config.batch_size), strict=True))
    ]
    return ActionChunkBatch(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    )


def held_out_batches(
    chunks: ActionChunks, config: ActionChunkConfig, *, source: int, seed: int, num: int
) -> list[ActionChunkBatch]:
    """Batches of the same `num` (or fewer) held-out windows at every call."""
    order = generator(seed, "motions", "held_out", source).permutation(chunks.first_W)[:num]
    size = config.batch_size
    return [gather_chunks(chunks, order[i : i + size], config.horizon, source) for i in range(0, len(order), size)]


def shuffled_windows(chunks: ActionChunks, seed: int, source: int, start: int, count: int) -> np.ndarray:
    """Windows `start` .. `start + count` of a dataset's endless sequence of shuffled epochs."""
    drawn: list[np.ndarray] = []
    while count:
        epoch, at = divmod(start, len(chunks.first_W))
        part = chunks.first_W[_order(seed, source, epoch, len(chunks.first_W))[at : at + count]]
        drawn.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(drawn)


@lru_cache(maxsize=16)
def _order(seed: int, source: int, epoch: int, num: int) -> np.ndarray:
    return generator(seed, "motions", source, "epoch", epoch).permutation(num)


def gather_chunks(chunks: ActionChunks, first_N: np.ndarray, horizon: int, source: int) -> ActionChunkBatch:
    """A batch of the chunks that begin at these frames of a dataset."""
    step_NH = first_N[:, None] + np.arange(horizon)
    num = len(first_N)
    return ActionChunkBatch(
        action=chunks.action_FA[step_NH],
        state=chunks.state_FS[step_NH],
        step_mask=np.ones((num, horizon), bool),
        dim_mask=np.repeat(chunks.dim_mask_A[None], num, axis=0),
        source=np.full(num, source),
    )


def bytes_read(path: Path) -> tuple[int, int]:
    """(bytes of the columns that `load` reads, bytes of all columns) of a dataset on disk."""
    dataset = open_dataset(path)
    read_bytes = total = 0
    for number in range(int(np.max(dataset.episodes["file"])) + 1):
        about = footer(dataset, number)
        for group in range(about.num_row_groups):
            for column in range(about.num_columns):
                chunk = about.row_group(group).column(column)
                total += chunk.total_compressed_size
                if chunk.path_in_schema.split(".list")[0] in (layout.STATE, layout.ACTION):
                    read_bytes += chunk.total_compressed_size
    return read_bytes, total
