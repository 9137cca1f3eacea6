"""Computes metrics of policies and motions: intervals, paired tests, smoothness, coverage, fit.

Every function is pure, takes plain arrays and names its source. Undefined values are NaN.
"""

from importlib import import_module
from math import log, sqrt
from statistics import NormalDist
from typing import Any, Callable, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A proportion with its confidence interval, each in [0, 1]; of a difference of two, in [-1, 1]."""

    rate: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a binomial proportion; it stays inside [0, 1] and is sensible at 0 and n successes.

    Args:
        successes: how many trials succeeded, 0 .. `trials`.
        trials: number of trials; 0 gives rate NaN and the interval 0 .. 1.
        confidence: two-sided level in (0, 1).

    Raises:
        ValueError: `successes` does not lie in 0 .. `trials`.

    Source: Wilson (1927), JASA 22:209; method 3 of Newcombe (1998), Statistics in Medicine 17:857.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"Successes must be in 0 .. trials = {trials}; got {successes}.")
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    span = _binomial(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(span.low), float(span.high))


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    *,
    num_draws: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of the mean row, without assumptions about the distribution of rows.

    Args:
        values: (N, K), a row for each independent unit (an episode, not a frame: those of one resemble each other).
        statistic: mean rows (..., K) -> (...), e.g. a ratio of two columns.
        rng: random generator of the draws.
        num_draws: how often N rows are drawn with replacement.
        confidence: two-sided level in (0, 1).

    Returns:
        Lower and upper end; both NaN for fewer than two rows. Too narrow for a handful of rows.

    Source: Efron (1979), Annals of Statistics 7:1.
    """
    rows = np.asarray(values, float)
    if len(rows) < 2:
        return float("nan"), float("nan")
    drawn = rng.integers(len(rows), size=(num_draws, len(rows)))
    low, high = np.quantile(statistic(rows[drawn].mean(axis=1)), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def crossed_bootstrap(
    values: ArrayLike, strata: ArrayLike, rng: np.random.Generator, *, num_draws: int = 4000
) -> np.ndarray:
    """Means of a table of seeds x cells over redrawn seeds and, independently, redrawn cells.

    Every seed is evaluated in the same cells, so neither the entries nor the rows are independent of each other: both
    are drawn with replacement, and an entry counts as often as its seed times its cell. `scipy.stats.bootstrap` draws
    one way only. Of the mean's variance a cell's share is right, a seed's is too small by (S - 1) / S, and that of what
    neither explains is counted up to three times, so for few seeds the two errors lean against each other.

    Args:
        values: (..., S, C), what S seeds got in the same C cells; all of the leading tables are drawn alike, so their
            differences are paired.
        strata: (C,) labels; the cells of each are drawn among themselves (a task keeps its number of cells).
        rng: random generator of the draws.
        num_draws: how many.

    Returns:
        (num_draws, ...) means.

    Source: Owen (2007), Annals of Applied Statistics 1:386, "pigeonhole bootstrap".
    """
    table, label_C = np.asarray(values, float), np.asarray(strata)
    num_seeds, num_cells = table.shape[-2:]
    seeds_DS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_draws) / num_seeds
    cells_DC = np.empty((num_draws, num_cells))
    for label in np.unique(label_C):
        cells = np.flatnonzero(label_C == label)
        cells_DC[:, cells] = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), num_draws) / num_cells
    return np.einsum("ds,...sc,dc->d...", seeds_DS, table, cells_DC, optimize=True)


def reached_at(amounts: ArrayLike, scores: ArrayLike, target: float) -> float:
    """The amount at which a learning curve first reaches a score, on straight lines over the logarithm of the amount.

    Args:
        amounts: (N,), rising and above 0, e.g. demonstrations.
        scores: (N,), the curve there; it may dip.
        target: the score to reach.

    Returns:
        The first amount if the curve begins at the score or above, infinity if it never gets there.
    """
    at, curve = np.log(np.asarray(amounts, float)), np.asarray(scores, float)
    above = np.flatnonzero(curve >= target)
    if not len(above):
        return float("inf")
    end = int(above[0])
    if end == 0:
        return float(np.exp(at[0]))
    part = (target - curve[end - 1]) / (curve[end] - curve[end - 1])
    return float(np.exp(at[end - 1] + part * (at[end] - at[end - 1])))


class McNemar(NamedTuple):
    """Outcome of a paired test of two policies on the same cells."""

    num_pairs: int
    only_first: int
    """Cells where the first succeeded and the second did not."""
    only_second: int
    """Cells where the second succeeded and the first did not."""
    p_value: float
    """Two-sided, exact. Small: the policies differ."""


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test: are the discordant pairs split like a fair coin?

    Args:
        first: (N,) bool, success of the first policy in each cell.
        second: (N,) bool, success of the second policy in the same cells, same order.

    Returns:
        The counts and p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2); p = 1 without discordant pairs.

    Raises:
        ValueError: the two differ in length.

    Source: McNemar (1947), Psychometrika 12:153; exact form as in Fagerland et al. (2013), BMC Med Res Meth 13:91.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"A paired test needs two lists of the same length; got {a.shape} and {b.shape}.")
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_first + only_second
    p_value = float(_binomial(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(len(a), only_first, only_second, p_value)


def _binomial(successes: int, trials: int) -> Any:
    """SciPy's two-sided test against a fair coin."""
    stats: Any = import_module("scipy.stats")  # takes 0.3 s, which no robot's process should wait for
    return stats.binomtest(successes, trials)


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """Difference of the success rates of two paired lists, first minus second, with an interval.

    Args:
        first: (N,) bool, successes.
        second: (N,) bool, successes in the same cells, same order.
        confidence: two-sided level in (0, 1).

    Returns:
        rate of `first` - rate of `second`, and bounds, each in [-1, 1]. The bounds are Wald's about a point that one
        more pair of either discordant kind moves towards 0, so they are sensible without discordant pairs as well.

    Raises:
        ValueError: the two differ in length.

    Source: Bonett & Price (2012), J Educ Behav Stat 37:479; recommended by Fagerland et al. (2014), Stat Med 33:2850.
    """
    num, only_first, only_second, _ = mcnemar(first, second)
    fell, rose = (only_first + 1) / (num + 2), (only_second + 1) / (num + 2)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt((fell + rose - (fell - rose) ** 2) / (num + 2))
    rate = (only_first - only_second) / num if num else float("nan")
    return Interval(rate, max(-1.0, fell - rose - half), min(1.0, fell - rose + half))


def speed(position: ArrayLike, hz: float) -> np.ndarray:
    """(T-1,) speeds in m/s of a path (T, D) in m sampled at `hz`."""
    return np.linalg.norm(np.diff(np.asarray(position, float), axis=0), axis=1) * hz


def sparc(speed_T: ArrayLike, hz: float, *, padlevel: int = 4, max_hz: float = 10.0, amplitude: float = 0.05) -> float:
    """Spectral arc length of a speed profile: 0 at best, more negative = less smooth; blind to scale and duration.

    Args:
        speed_T: (T,) speeds, any unit.
        hz: sampling rate of the profile. Bands above hz / 2 do not exist, so `max_hz` is clipped to it: at a
            control rate of 5 Hz the value describes movement below 2.5 Hz and is not comparable with other rates.
        padlevel: zero padding, powers of two beyond the next one.
        max_hz: upper end of the band, Hz (fc of the source).
        amplitude: the band ends where the normalized spectrum last reaches this.

    Returns:
        The (negative) arc length; NaN for fewer than two samples or no movement at all.

    Source: Balasubramanian, Melendez-Calderon, Burdet (2012), IEEE TBME 59:2126; Balasubramanian et al. (2015),
    J NeuroEng Rehab 12:112, whose defaults these are.
    """
    profile = np.asarray(speed_T, float)
    if len(profile) < 2 or not profile.any():
        return float("nan")
    num_fft = 2 ** (int(np.ceil(np.log2(len(profile)))) + padlevel)
    frequency = np.fft.rfftfreq(num_fft, 1 / hz)
    spectrum = np.abs(np.fft.rfft(profile, num_fft))
    spectrum /= spectrum.max()
    inside = frequency <= max_hz
    frequency, spectrum = frequency[inside], spectrum[inside]
    strong = np.flatnonzero(spectrum >= amplitude)
    band = slice(strong[0], strong[-1] + 1)
    frequency, spectrum = frequency[band], spectrum[band]
    if len(frequency) < 2:
        return 0.0
    width = frequency[-1] - frequency[0]
    return float(-np.hypot(np.diff(frequency) / width, np.diff(spectrum)).sum())


def log_dimensionless_jerk(position: ArrayLike, hz: float) -> float:
    """-ln of the dimensionless squared jerk of a path; a minimum-jerk reach gives -ln 204.8 = -5.32, the best.

        -ln( duration^3 / peak_speed^2  *  integral |jerk|^2 dt )

    Args:
        position: (T, D) m, T >= 4.
        hz: sampling rate. Jerk is the third difference, so coarse sampling hides fast shaking.

    Returns:
        More negative = less smooth. It also falls with every stop and start in the path, so compare only episodes of
        one length. NaN for fewer than four samples, no movement, or constant acceleration (no jerk at all).

    Source: Hogan & Sternad (2009), J Motor Behavior 41:529; log form of Balasubramanian et al. (2012).
    """
    path = np.asarray(position, float)
    if len(path) < 4:
        return float("nan")
    peak = speed(path, hz).max()
    jerk = np.diff(path, n=3, axis=0) * hz**3
    duration = (len(path) - 1) / hz
    squared = float((jerk**2).sum()) / hz
    # Third differences of a straight line are rounding errors of the positions, not jerk.
    floor = 64 * np.finfo(float).eps * np.abs(path).max() * hz**3
    if peak == 0 or np.abs(jerk).max() <= floor:
        return float("nan")
    return -log(duration**3 / peak**2 * squared)


class Coverage(NamedTuple):
    """How much of the workspace was visited, and how evenly."""

    num_voxels: int
    entropy_bits: float
    """Entropy of the distribution of visits over voxels, bits; log2(num_voxels) if all were visited equally often."""


def coverage(position: ArrayLike, leaf_m: float = 0.05) -> Coverage:
    """Voxels visited by a set of positions, and the entropy of the visits.

    Args:
        position: (T, 3) m; order does not matter, episodes may be concatenated.
        leaf_m: side of a voxel, m. 5 cm is the leaf of the paper's safe-pose library.

    Source: Shannon (1948); the voxel grid as in arXiv 2607.02466, Algorithm 1, step 1.
    """
    points = np.asarray(position, float)
    if len(points) == 0:
        return Coverage(0, 0.0)
    _, counts = np.unique(np.floor(points / leaf_m), axis=0, return_counts=True)
    return Coverage(len(counts), entropy_bits(counts))


def entropy_bits(counts: ArrayLike) -> float:
    """Entropy of a distribution in bits, from how often each value came, (N,) above 0. Source: Shannon (1948)."""
    share = np.asarray(counts, float) / np.sum(counts)
    return float(abs(-(share * np.log2(share)).sum()))


def contact_rate(contact: ArrayLike) -> float:
    """Share of steps in [0, 1] with a finger on an object; NaN for none. `contact` is (T,) bool."""
    touched = np.asarray(contact, bool)
    return float(touched.mean()) if touched.size else float("nan")


def r_squared(predicted: ArrayLike, target: ArrayLike, *, min_std: float = 1e-6) -> np.ndarray:
    """Coefficient of determination of every column: 1 - sum of squared errors / sum of squares about the mean.

    Args:
        predicted: (N, A), physical units.
        target: (N, A), same units.
        min_std: a target column whose standard deviation does not exceed this counts as constant.

    Returns:
        (A,) float64 in (-inf, 1]. **A constant column gives NaN**: nothing varies there, so nothing can be explained;
        leave it out of a mean (`np.nanmean`) and say which columns remain.

    Raises:
        ValueError: the shapes differ or are not (N, A) with N >= 1.
    """
    guess, truth = np.asarray(predicted, float), np.asarray(target, float)
    if guess.shape != truth.shape or truth.ndim != 2 or len(truth) == 0:
        raise ValueError(f"R^2 needs two arrays of shape (N, A), N >= 1; got {guess.shape} and {truth.shape}.")
    total = ((truth - truth.mean(0)) ** 2).sum(0)
    moves = truth.std(0) > min_std
    ratio = ((truth - guess) ** 2).sum(0) / np.where(moves, total, 1.0)
    return np.where(moves, 1.0 - ratio, np.nan)


def gripper_accuracy(predicted: ArrayLike, target: ArrayLike) -> float:
    """Share of steps whose gripper command has the right sign (+1 open, -1 closed; 0 counts as open); NaN for none.

    Args:
        predicted: commands in [-1, 1], any shape.
        target: the right ones, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    guess, truth = np.asarray(predicted, float), np.asarray(target, float)
    if guess.shape != truth.shape:
        raise ValueError(f"Gripper accuracy needs two arrays of one shape; got {guess.shape} and {truth.shape}.")
    return float(((guess >= 0) == (truth >= 0)).mean()) if truth.size else float("nan")
