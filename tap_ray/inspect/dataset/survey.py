"""Reads a dataset's numbers in one pass and keeps a few statistics of each episode, and sums, but no frames.

`frames.py` reads images; `motion_checks.py` and `content_checks.py` compare the numbers with thresholds.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tap_ray import metrics
from tap_ray.dataset.layout import ACTION, CONTACT, STATE
from tap_ray.dataset.reader import DatasetInfo, read_columns
from tap_ray.errors import DataError
from tap_ray.importing.checks import SPEED_M_S, SPEED_RAD_S, partner
from tap_ray.play.report import LEAF_M
from tap_ray.specs import RobotSpec, Slot

LAGS = range(-4, 9)
"""Steps by which a state may lag behind the action that explains it."""
STILL = {"m": 0.005, "rad": 0.02, "1": 0.05}
"""Unit -> speed in units per second below which a slot is at rest; sensor noise and creep are slower."""
JUMP = {"m": SPEED_M_S, "rad": SPEED_RAD_S}
"""Unit -> speed in units per second that no research arm exceeds."""
MOVES = {"m": 0.01, "rad": 0.05}
"""Unit -> change of a slot in one control step beyond which an image of 96 px must change."""
POINTS = 16
"""Number of points of an episode's path that are compared with those of others."""
AT_BOUND = 1e-3
"""An action is at its bound if it is closer to it than this share of its range."""
HELD_OPEN = 0.1
"""A gripper holds something if it is commanded to close and its opening stays this much above the smallest of the
dataset."""


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """Counts for the gripper of one arm in one episode."""

    closed: int
    """Steps with the command to close."""
    changes: int
    """Steps with another command than the step before."""
    flickers: int
    """Commands that lasted one step between two others."""
    begins_closed: bool
    holds: int | None
    """Steps in which it holds something; None if the state has no opening."""


@dataclass(frozen=True, kw_only=True)
class EpisodeStats:
    """The statistics that are kept about one episode."""

    index: int
    steps: int
    instruction: str
    speed: float
    """Mean speed of the end effector, m/s; rad/s of all joints together if no end effector is known."""
    sparc: float
    """Smoothness (SPARC) of the first arm's end effector; NaN without one."""
    jumps: int
    """Steps in which a slot of the state changes faster than an arm can."""
    idle: int
    """Steps in which nothing moves and the action commands no motion."""
    longest_idle: tuple[int, int]
    """First step and number of steps of the longest idle period."""
    contact: int
    """Steps in which a finger touches an object, according to the dataset; 0 if contact is unknown
    (`contact_known`)."""
    grippers: tuple[Gripper, ...]
    irregular: int
    """Number of intervals between time stamps that differ from the nominal one by more than 10 %."""
    digest: bytes
    """Digest of its states and actions, equal for equal episodes."""
    outline: np.ndarray
    """(POINTS * D,) float32: its states at evenly spaced times, in standard deviations of the dataset."""


@dataclass(kw_only=True)
class LagSums:
    """Sums from which the correlation of each action with what its state does `lag` steps later follows."""

    slots: tuple[str, ...]
    sums: np.ndarray
    """(L, P, 6): n, x, y, xx, yy, xy; x the action, y the change of its state."""

    def r_squared(self) -> np.ndarray:
        """(L, P) in 0 .. 1: share of the variance of the state's change that the action at that lag explains; NaN where
        nothing moves."""
        n, x, y, xx, yy, xy = np.moveaxis(self.sums, -1, 0)
        n = np.maximum(n, 1)
        covariance, var_x, var_y = xy / n - x * y / n**2, xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        moves = (var_x > 1e-14) & (var_y > 1e-14)
        return np.where(moves, covariance**2 / np.where(moves, var_x * var_y, 1.0), np.nan)

    def signs(self) -> np.ndarray:
        """(L, P): sign of the correlation."""
        n, x, y, _, _, xy = np.moveaxis(self.sums, -1, 0)
        return np.sign(xy - x * y / np.maximum(n, 1))


@dataclass(kw_only=True)
class Survey:
    """A dataset's statistics by episode, and sums."""

    dataset: DatasetInfo
    episodes: list[EpisodeStats] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    """Episode -> why it cannot be read."""
    voxels: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """Voxel with sides of LEAF_M -> number of steps in which an end effector was there."""
    at_bound: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(A,) steps at one of the bounds."""
    squares: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))
    """(2, A): sums of the squared changes from step to step, and of the squared distances from the mean."""
    lags: LagSums
    opening_follows: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    """(G, 6): sums as in `LagSums` of each gripper's command and its opening a step later."""

    @property
    def spec(self) -> RobotSpec:
        return self.dataset.spec

    @property
    def steps(self) -> int:
        """Number of steps of all episodes that could be read."""
        return sum(each.steps for each in self.episodes)

    def share(self, name: str) -> float:
        """A count of `EpisodeStats` as a share of all steps."""
        return sum(getattr(each, name) for each in self.episodes) / max(self.steps, 1)


def begin(dataset: DatasetInfo) -> Survey:
    """An empty survey."""
    spec, states = dataset.spec, [slot.name for slot in dataset.spec.state]
    moving = [slot.name for n, slot in enumerate(spec.action) if n not in spec.grippers]
    pairs = [name for name in moving if partner(name) in states]
    num = len(spec.action)
    return Survey(
        dataset=dataset,
        at_bound=np.zeros(num, np.int64),
        squares=np.zeros((2, num)),
        lags=LagSums(slots=tuple(pairs), sums=np.zeros((len(LAGS), len(pairs), 6))),
        opening_follows=np.zeros((len(spec.grippers), 6)),
    )


def add(survey: Survey, index: int) -> None:
    """Read an episode's numbers and add them to the survey."""
    try:
        names = [STATE, ACTION, "timestamp", *([CONTACT] if survey.dataset.header.contact else [])]
        columns = read_columns(survey.dataset, index, names)
    except DataError as error:
        survey.damaged[index] = str(error)
        return
    nothing = np.zeros((len(columns["timestamp"]), 0))
    state, action = (columns.get(name, nothing).astype(np.float64) for name in (STATE, ACTION))
    state, action = state.reshape(len(nothing), -1), action.reshape(len(nothing), -1)
    _sum_up(survey, state, action)
    survey.episodes.append(_episode_stats(survey, index, state, action, columns))


def survey_of(dataset: DatasetInfo, indices: Iterable[int]) -> Survey:
    """The survey of these episodes."""
    survey = begin(dataset)
    for index in indices:
        add(survey, index)
    return survey


def _episode_stats(
    survey: Survey, index: int, state: np.ndarray, action: np.ndarray, columns: dict[str, Any]
) -> EpisodeStats:
    spec, hz = survey.spec, survey.spec.control_hz
    ee_pos_m = [state[:, arm.ee_pos] for arm in spec.arms if arm.ee_pos]
    idle = idle_steps(spec, state, action)
    steps_s = np.diff(columns["timestamp"].astype(np.float64).reshape(-1))
    per_s = np.abs(np.diff(state, axis=0)) * hz
    limits = np.array([JUMP.get(slot.unit, np.inf) for slot in spec.state])
    text = str(survey.dataset.episodes["instruction"].iloc[index])
    return EpisodeStats(
        index=index,
        steps=len(action),
        instruction=text,
        speed=_speed(spec, state, ee_pos_m),
        sparc=metrics.sparc(metrics.speed(ee_pos_m[0], hz), hz) if ee_pos_m else float("nan"),
        jumps=int((per_s > limits).any(axis=1).sum()),
        idle=int(idle.sum()),
        longest_idle=longest_run(idle),
        contact=int((columns[CONTACT].reshape(-1) > 0.5).sum()) if CONTACT in columns else 0,
        grippers=tuple(_gripper(survey, arm, state, action) for arm in spec.arms if arm.gripper is not None),
        irregular=int((np.abs(steps_s * hz - 1) > 0.1).sum()),
        digest=_digest(index, state, action),
        outline=_outline(survey.dataset, state, action),
    )


def _digest(index: int, state: np.ndarray, action: np.ndarray) -> bytes:
    """A digest that is equal for equal numbers; without numbers it is unique to each episode."""
    data = state.tobytes() + b"|" + action.tobytes() if state.size + action.size else str(index).encode()
    return hashlib.blake2b(data, digest_size=16).digest()


def _sum_up(survey: Survey, state: np.ndarray, action: np.ndarray) -> None:
    spec = survey.spec
    for arm in spec.arms:
        if arm.ee_pos:
            cells, counts = np.unique(np.floor(state[:, arm.ee_pos] / LEAF_M), axis=0, return_counts=True)
            survey.voxels.update({tuple(map(int, c)): int(n) for c, n in zip(cells, counts, strict=True)})
    low, high = (np.array([getattr(slot, end) for slot in spec.action]) for end in ("low", "high"))
    near = AT_BOUND * (high - low)
    survey.at_bound += ((action <= low + near) | (action >= high - near)).sum(axis=0)
    mean = stat(survey.dataset, ACTION, "mean")
    survey.squares += np.stack([(np.diff(action, axis=0) ** 2).sum(axis=0), ((action - mean) ** 2).sum(axis=0)])
    names = {slot.name: n for n, slot in enumerate(spec.state)}
    moved = np.diff(state, axis=0)
    for column, name in enumerate(survey.lags.slots):
        x, y = action[:-1, _place(spec.action, name)], moved[:, names[partner(name)]]
        for row, lag in enumerate(LAGS):
            survey.lags.sums[row, column] += product_sums(*_shifted(x, y, lag))
    for number, arm in enumerate(arm for arm in spec.arms if arm.gripper is not None):
        if arm.opening is not None:
            survey.opening_follows[number] += product_sums(action[:-1, arm.gripper], state[1:, arm.opening])


def _shifted(x: np.ndarray, y: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """x of each step and y `lag` steps later, for the steps that have both."""
    num = len(x) - abs(lag)
    if num <= 0:
        return x[:0], y[:0]
    return (x[:num], y[lag:]) if lag >= 0 else (x[-lag:], y[:num])


def product_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(6,) float64 of two (N,) arrays: N and the sums of x, y, x^2, y^2 and x y, which add up over episodes."""
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y], np.float64)


def correlation(sums: np.ndarray) -> float:
    """Correlation of x and y from their sums (6,); NaN if one does not vary."""
    pair = LagSums(slots=("",), sums=sums.reshape(1, 1, 6))
    return float(np.sqrt(pair.r_squared()[0, 0]) * pair.signs()[0, 0])


def idle_steps(spec: RobotSpec, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(T - 1,) bool: from this step to the next nothing moves, and the action asks for nothing.

    Quaternions are ignored: the orientation is at rest when the position is.
    """
    hz = spec.control_hz
    if not spec.state and not spec.action:
        return np.zeros(len(state) - 1, bool)
    watched = [n for n, slot in enumerate(spec.state) if slot.unit in ("m", "rad") or "opening" in slot.name]
    slow = np.array([STILL.get(spec.state[n].unit, STILL["1"]) for n in watched])
    still = np.all(np.abs(np.diff(state[:, watched], axis=0)) * hz < slow, axis=1)
    for n, slot in enumerate(spec.action):
        if n in spec.grippers:
            commanded = np.sign(np.diff(action[:, n], prepend=action[:1, n])) != 0
        else:
            commanded = np.abs(action[:, n]) * hz >= STILL.get(slot.unit, STILL["1"])
        still &= ~commanded[:-1]
    return still


def moving_steps(spec: RobotSpec, state: np.ndarray) -> np.ndarray:
    """(T - 1,) bool: from this step to the next the robot moves so far that its image must change."""
    least = np.array([MOVES.get(slot.unit, np.inf) for slot in spec.state])
    return np.any(np.abs(np.diff(state, axis=0)) > least, axis=1)


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    if not len(edges):
        return 0, 0
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest] - begins[longest])


def _gripper(survey: Survey, arm: Any, state: np.ndarray, action: np.ndarray) -> Gripper:
    closed = action[:, arm.gripper] < 0
    changed = np.flatnonzero(np.diff(closed.astype(np.int8))) + 1
    holds = None
    if arm.opening is not None:
        least = float(stat(survey.dataset, STATE, "min")[arm.opening])
        commanded = np.concatenate([[False], closed[:-1]]) & closed
        still = np.abs(np.diff(state[:, arm.opening], prepend=np.inf)) < 0.02
        holds = int((commanded & still & (state[:, arm.opening] > least + HELD_OPEN)).sum())
    return Gripper(
        closed=int(closed.sum()),
        changes=len(changed),
        flickers=int((np.diff(changed) == 1).sum()),
        begins_closed=bool(closed[0]),
        holds=holds,
    )


def _speed(spec: RobotSpec, state: np.ndarray, ee_pos_m: list[np.ndarray]) -> float:
    if len(state) < 2:
        return 0.0
    joints = [n for n, slot in enumerate(spec.state) if slot.unit == "rad"]
    parts = ee_pos_m or [state[:, joints]]
    return float(sum(metrics.speed(part, spec.control_hz).mean() for part in parts))


def _outline(dataset: DatasetInfo, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """An episode's path: its states, or, if no state ever changes, the sums of its actions."""
    std = stat(dataset, STATE, "std")
    moves = std > 1e-6
    rows = state[:, moves] / std[moves]
    if not moves.any():
        scale = stat(dataset, ACTION, "std")
        rows = np.cumsum(action / np.where(scale > 1e-6, scale, 1.0), axis=0)
    if not rows.shape[1]:
        return np.zeros(0, np.float32)
    at = np.linspace(0, len(rows) - 1, POINTS)
    return np.stack([np.interp(at, np.arange(len(rows)), column) for column in rows.T]).astype(np.float32).ravel()


def stat(dataset: DatasetInfo, feature: str, key: str) -> np.ndarray:
    """A statistic (D,) of the dataset; empty if it has no such feature."""
    return np.asarray(dataset.stats.get(feature, {}).get(key, ())).reshape(-1)


def _place(slots: tuple[Slot, ...], name: str) -> int:
    return next(n for n, slot in enumerate(slots) if slot.name == name)
