"""Every number here was worked out by hand or taken from the literature named beside it."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import spherical_jn

from tap_ray import metrics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # z^2 / (n + z^2) = 3.84146 / 27.84146
        (0, 24, 0.0, 0.1380),
        (24, 24, 0.8620, 1.0),
        # 65.5 % of 200
        (131, 200, 0.587, 0.717),
    ],
)
def test_wilson_matches_the_literature(successes, trials, low, high):
    interval = metrics.wilson(successes, trials)
    assert interval.rate == successes / trials
    digits = 1e-3 if trials == 200 else 6e-5
    assert interval.low == pytest.approx(low, abs=digits)
    assert interval.high == pytest.approx(high, abs=digits)


def test_wilson_without_trials_knows_nothing():
    rate, low, high = metrics.wilson(0, 0)
    assert math.isnan(rate)
    assert (low, high) == (0.0, 1.0)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match=r"0 \.\. trials = 3; got 4"):
        metrics.wilson(4, 3)


def test_mcnemar_by_hand():
    # 9 cells only the first solved, 1 only the second, 5 both, 5 neither: 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024.
    first = [True] * 9 + [False] + [True] * 5 + [False] * 5
    second = [False] * 9 + [True] + [True] * 5 + [False] * 5
    assert metrics.mcnemar(first, second) == (20, 9, 1, pytest.approx(22 / 1024))
    assert metrics.mcnemar(second, first) == (20, 1, 9, pytest.approx(22 / 1024))


def test_mcnemar_of_equals_and_of_a_tie_is_one():
    assert metrics.mcnemar([True, False], [True, False]).p_value == 1.0
    assert metrics.mcnemar([True, False], [False, True]).p_value == 1.0  # 2 * 3/4, capped


def test_mcnemar_counts_thousands_exactly():
    first = np.ones(3000, bool)
    assert metrics.mcnemar(first, ~first).p_value == 0.0 or metrics.mcnemar(first, ~first).p_value < 1e-300


def test_mcnemar_refuses_unpaired_lists():
    with pytest.raises(ValueError, match=r"same length; got \(2,\) and \(3,\)"):
        metrics.mcnemar([True, False], [True, False, True])


def minimum_jerk(duration_s: float, hz: float, amplitude_m: float = 0.3) -> np.ndarray:
    """(T, 3) m, Flash & Hogan (1985): x = A (10 t^3 - 15 t^4 + 6 t^5) along a slanted line."""
    tau = np.linspace(0, 1, round(duration_s * hz) + 1)
    reach = amplitude_m * (10 * tau**3 - 15 * tau**4 + 6 * tau**5)
    return reach[:, None] * np.array([[0.6, 0.0, 0.8]])


def sparc_of_minimum_jerk() -> float:
    """Its speed is 30 (1/4 - u^2)^2, whose normalized spectrum is 15 j2(w) / w^2 with w = pi f T (Poisson's integral).

    The first side lobe stays below 0.05, so the band ends in the main lobe; the arc length is then a plain integral.
    """
    height = lambda w: 15 * spherical_jn(2, w) / w**2  # noqa: E731
    slope = lambda w: -15 * spherical_jn(3, w) / w**2  # noqa: E731  d/dw (j2 / w^2) = -j3 / w^2
    end = float(brentq(lambda w: height(w) - 0.05, 3.0, 5.7))  # type: ignore[arg-type]
    return -quad(lambda w: math.hypot(1 / end, slope(w)), 1e-9, end)[0]


@pytest.mark.parametrize(("duration_s", "amplitude_m"), [(1.0, 0.3), (1.0, 3.0), (2.5, 0.3)])
def test_sparc_of_a_minimum_jerk_reach(duration_s, amplitude_m):
    reference = sparc_of_minimum_jerk()
    assert reference == pytest.approx(-1.4, abs=0.03)
    speed = metrics.speed(minimum_jerk(duration_s, 100, amplitude_m), 100)
    # A finer grid only: the source's default padding leaves the band's end on a coarse grid.
    assert metrics.sparc(speed, 100, padlevel=9) == pytest.approx(reference, abs=2e-3)
    assert metrics.sparc(speed, 100) == pytest.approx(reference, abs=0.04)


def test_sparc_falls_with_each_further_reach_and_survives_5_hz():
    one = metrics.speed(minimum_jerk(2.0, 5), 5)
    stop = np.zeros(3)
    values = [metrics.sparc(np.concatenate([one] + [stop, one] * extra), 5) for extra in range(4)]
    assert values[0] == pytest.approx(sparc_of_minimum_jerk(), abs=0.1)
    assert values == sorted(values, reverse=True)


def test_sparc_without_movement_is_undefined():
    assert math.isnan(metrics.sparc(np.zeros(20), 5))
    assert math.isnan(metrics.sparc([0.1], 5))


@pytest.mark.parametrize(("duration_s", "amplitude_m"), [(1.0, 0.3), (4.0, 0.02)])
def test_log_dimensionless_jerk_of_a_minimum_jerk_reach(duration_s, amplitude_m):
    hz = 4000 / duration_s  # the coarser, the more of the two ends is lost
    # integral of jerk^2 = 720 A^2 / T^5, peak speed = 15/8 A / T: 720 / (15/8)^2 = 204.8 whatever A and T are.
    value = metrics.log_dimensionless_jerk(minimum_jerk(duration_s, hz, amplitude_m), hz)
    assert value == pytest.approx(-math.log(204.8), abs=5e-3)


def test_log_dimensionless_jerk_of_a_sine():
    # x = sin(w t) over one period: w^6 pi / w, peak w, T = 2 pi / w: (2 pi)^3 pi = 779.3 whatever w is.
    t = np.linspace(0, 1, 2001)
    path = np.sin(2 * np.pi * t)[:, None]
    assert metrics.log_dimensionless_jerk(path, 2000) == pytest.approx(-math.log((2 * np.pi) ** 3 * np.pi), abs=0.01)


def test_shaking_lowers_the_jerk_score():
    path = minimum_jerk(4.0, 5)
    shaken = path + 0.01 * (-1.0) ** np.arange(len(path))[:, None]
    assert metrics.log_dimensionless_jerk(shaken, 5) < metrics.log_dimensionless_jerk(path, 5) - 2


def test_log_dimensionless_jerk_is_undefined_without_jerk():
    assert math.isnan(metrics.log_dimensionless_jerk(np.zeros((10, 3)), 5))
    assert math.isnan(metrics.log_dimensionless_jerk(np.linspace(0, 1, 50)[:, None], 5))
    assert math.isnan(metrics.log_dimensionless_jerk(np.zeros((3, 3)), 5))


def test_coverage_by_hand():
    # Voxels of 5 cm: two visits in one, one in each of two others; entropy 1/2 * 1 + 2 * 1/4 * 2 = 1.5 bits.
    points = [[0.01, 0.01, 0.01], [0.04, 0.04, 0.04], [0.06, 0.01, 0.01], [-0.01, 0.01, 0.01]]
    assert metrics.coverage(points) == (3, 1.5)
    assert metrics.coverage(points, leaf_m=1.0) == (2, pytest.approx(0.811278, abs=1e-6))


def test_coverage_of_a_robot_that_stands_still_or_of_nothing():
    assert metrics.coverage(np.full((9, 3), 0.2)) == (1, 0.0)
    assert metrics.coverage(np.empty((0, 3))) == (0, 0.0)


def test_contact_rate():
    assert metrics.contact_rate([True, False, False, False]) == 0.25
    assert math.isnan(metrics.contact_rate([]))


def test_r_squared_by_hand():
    target = np.array([[1.0, 0.0, 5.0], [2.0, 1.0, 5.0], [3.0, 2.0, 5.0]])
    # Column 0 exact; column 1 off by 1 everywhere: 1 - 3 / 2; column 2 constant.
    predicted = np.array([[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0]])
    value = metrics.r_squared(predicted, target)
    assert value[0] == 1.0
    assert value[1] == -0.5
    assert math.isnan(value[2])
    assert metrics.r_squared(target.mean(0, keepdims=True).repeat(3, 0), target)[0] == 0.0


def test_r_squared_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(N, A\), N >= 1; got \(3, 2\) and \(3, 7\)"):
        metrics.r_squared(np.zeros((3, 2)), np.zeros((3, 7)))


def test_gripper_accuracy():
    assert metrics.gripper_accuracy([0.3, -0.2, 0.9, -1.0], [1, 1, 1, -1]) == 0.75
    assert math.isnan(metrics.gripper_accuracy([], []))
    with pytest.raises(ValueError, match=r"got \(1,\) and \(2,\)"):
        metrics.gripper_accuracy([1.0], [1.0, 1.0])


def test_paired_difference_by_hand():
    first, second = [True] * 5 + [False] * 3, [True] * 3 + [False] * 5
    # Two of eight only in the first: (2+1)/10 - (0+1)/10 +- 1.96 sqrt((0.3 + 0.1 - 0.2^2)/10)
    assert metrics.paired_difference(first, second) == pytest.approx((0.25, 0.2 - 0.37189, 0.2 + 0.37189), abs=1e-4)
    turned = metrics.paired_difference(second, first)
    assert turned == pytest.approx((-0.25, -0.57189, 0.17189), abs=1e-4)
    # None differs: 0 +- 1.96 sqrt(0.2/10)
    assert metrics.paired_difference(first, first) == pytest.approx((0.0, -0.27718, 0.27718), abs=1e-4)
    assert metrics.paired_difference([True], [False]).high == 1.0
    with pytest.raises(ValueError, match="same length"):
        metrics.paired_difference(first, [True])


def test_paired_difference_covers_what_is_true():
    """Success 0.8 and, independently, 0.6 in 40 cells: 95 of 100 intervals hold 0.2, within the error of 2000."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = metrics.paired_difference(rng.random(40) < 0.8, rng.random(40) < 0.6)
        held += found.low <= 0.2 <= found.high
    assert 0.94 < held / 2000 < 0.975


def test_bootstrap():
    coin = np.repeat([0.0, 1.0], 50)[:, None]
    low, high = metrics.bootstrap(coin, lambda rows: rows[..., 0], np.random.default_rng(0))
    # Means of 100 tosses: 1/2 with a standard deviation of 1/20.
    assert (low, high) == pytest.approx((0.5 - 1.96 / 20, 0.5 + 1.96 / 20), abs=0.011)
    same = metrics.bootstrap(
        [[2.0, 4.0]] * 3, lambda rows: rows[..., 0] / rows[..., 1], np.random.default_rng(0), num_draws=10
    )
    assert same == (0.5, 0.5)
    assert np.isnan(metrics.bootstrap([[1.0]], lambda rows: rows[..., 0], np.random.default_rng(0))).all()


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_crossed_bootstrap_of_one_seed_varies_as_a_binomial():
    """30 of 100 cells: a standard error of sqrt(0.3 x 0.7 / 100) = 0.0458."""
    draws = metrics.crossed_bootstrap([[1.0] * 30 + [0.0] * 70], [0] * 100, rng())
    assert draws.mean() == pytest.approx(0.3, abs=0.003)
    assert draws.std() == pytest.approx(0.0458, rel=0.05)


def test_crossed_bootstrap_draws_seeds_as_well():
    """One seed solves all, one none: both of one kind in a quarter of the draws each."""
    draws = metrics.crossed_bootstrap([[1.0] * 5, [0.0] * 5], [0] * 5, rng())
    values, counts = np.unique(draws.round(9), return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / len(draws) == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_crossed_bootstrap_keeps_each_stratum_as_large_as_it_is():
    """One task always, the other never solved: whatever is drawn, the mean is a half."""
    draws = metrics.crossed_bootstrap([[1.0] * 6 + [0.0] * 6], ["a"] * 6 + ["b"] * 6, rng())
    assert draws == pytest.approx(np.full(4000, 0.5))


def test_crossed_bootstrap_draws_all_tables_alike():
    table = rng().random((3, 8))
    draws = metrics.crossed_bootstrap(np.stack([table, table + 0.25]), [0] * 8, rng(), num_draws=50)
    assert draws.shape == (50, 2)
    assert draws[:, 1] - draws[:, 0] == pytest.approx(np.full(50, 0.25))


def test_crossed_intervals_hold_the_truth_as_often_as_they_say():
    """400 experiments of 2 seeds in 80 cells, seeds and cells alike but for luck: never below 95 % but by luck."""
    source, held = rng(), 0
    for _ in range(400):
        draws = metrics.crossed_bootstrap(source.random((2, 80)) < 0.4, [0] * 80, source, num_draws=400)
        low, high = np.quantile(draws, [0.025, 0.975])
        held += low <= 0.4 <= high
    assert held / 400 >= 0.93


@pytest.mark.parametrize(
    ("scores", "target", "amount"),
    [
        ((0.2, 0.4, 0.6, 0.7), 0.5, 14.142),  # half-way from 10 to 20 by their logarithm
        ((0.2, 0.4, 0.6, 0.7), 0.4, 10),
        ((0.2, 0.4, 0.6, 0.7), 0.1, 5),
        ((0.2, 0.4, 0.6, 0.7), 0.8, float("inf")),
        ((0.4, 0.3, 0.5, 0.5), 0.45, 16.818),  # after the dip: 10 x 2^0.75
    ],
)
def test_where_a_curve_reaches_a_score(scores: tuple[float, ...], target: float, amount: float):
    assert metrics.reached_at([5, 10, 20, 50], scores, target) == pytest.approx(amount, abs=1e-3)
