"""Checks a dataset's numbers: rate, smoothness, consistency of actions and states, grippers, idle time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tap_ray.inspect.dataset.check import MANY, Check, Kind, most
from tap_ray.inspect.dataset.frames import Frames
from tap_ray.inspect.dataset.survey import LAGS, STILL, Survey, correlation

NOISE = 0.9
"""Largest roughness of actions, which is 1 for white noise (von Neumann 1941); our mixed play has up to 0.86
(rotations)."""
IDLE = 0.2
"""Largest share of idle steps."""
LONG_IDLE_S = 5.0
EXPLAINS = 0.1
"""R^2 below which actions do not explain what the robot does."""
LATE = 2
"""Steps by which a state may lag behind its action: arms lag, and 2 steps are 0.4 s at 5 Hz."""
INVERTED = -0.3
"""Correlation of the gripper's command and its opening a step later below which the sign is considered inverted, as in
the dry run of an import."""


def whole(survey: Survey, frames: Frames) -> Check:
    """Check whether every episode can be read."""
    damaged = {**frames.damaged, **survey.damaged}
    num = len(survey.episodes) + len(survey.damaged)
    kind: Kind = "not fit" if damaged else "good"
    first = next(iter(damaged.values()), "")
    text = (
        f"{len(damaged)} of {num} episodes cannot be read; the first: {first}"
        if damaged
        else "every episode can be read"
    )
    return Check(
        name="whole",
        kind=kind,
        text=f"for training: {text}" if damaged else "every episode can be read",
        numbers={"episodes": num, "damaged": len(damaged)},
        threshold="any episode that is damaged or contains NaN: a training ends there",
        why=damaged,
    )


def rate(survey: Survey) -> Check:
    """Check whether the time stamps match the rate."""
    irregular = sum(each.irregular for each in survey.episodes)
    intervals = max(1, survey.steps - len(survey.episodes))
    worst = most(survey.episodes, lambda each: each.irregular)
    hz = survey.spec.control_hz
    text = f"time stamps keep {hz:g} Hz"
    if irregular:
        text = (
            f"{irregular} of {intervals} intervals between time stamps are not {1 / hz:.3g} s: frames are missing or "
            "late"
        )
    return Check(
        name="rate",
        kind="look at this" if irregular else "good",
        text=text,
        numbers={"fps": hz, "irregular": irregular, "share": irregular / intervals},
        threshold="an interval that is off by more than a tenth: action chunks assume steps of equal length",
        episodes=worst,
        why=dict.fromkeys(worst, "irregular time stamps"),
    )


def smoothness(survey: Survey) -> Check:
    """Check whether actions are smooth or as rough as noise, and whether the state jumps."""
    rough = roughness(survey)
    jumps = sum(each.jumps for each in survey.episodes)
    sparc = [each.sparc for each in survey.episodes if np.isfinite(each.sparc)]
    noisy = [unit for unit, value in rough.items() if value >= NOISE]
    worst = most(survey.episodes, lambda each: each.jumps)
    findings = [f"the actions in {unit} change from step to step like noise ({rough[unit]:.2f})" for unit in noisy]
    if jumps:
        findings.append(f"the state jumps in {jumps} steps, faster than an arm can move")
    text = "; ".join(findings) or "actions follow each other: roughness " + ", ".join(
        f"{value:.2f} ({unit})" for unit, value in rough.items()
    )
    return Check(
        name="smoothness",
        kind="look at this" if findings else "good",
        text=text,
        numbers={
            **{f"roughness_{unit}": value for unit, value in rough.items()},
            "jumps": jumps,
            "sparc_median": float(np.median(sparc)) if sparc else None,
        },
        threshold=f"roughness {NOISE:g} (0: constant, 1: white noise; von Neumann 1941): noise cannot be predicted; a "
        "jump is more than 3 m/s or 8 rad/s, faster than research arms",
        episodes=worst,
        why=dict.fromkeys(worst, "its state jumps"),
    )


def roughness(survey: Survey) -> dict[str, float]:
    """Unit -> mean squared change of an action divided by twice its variance, without grippers."""
    found = {}
    changes, spread = survey.squares
    pairs = max(1, survey.steps - len(survey.episodes))
    for unit in dict.fromkeys(slot.unit for slot in survey.spec.action):
        columns = [n for n, slot in enumerate(survey.spec.action) if slot.unit == unit and "gripper" not in slot.name]
        if columns and spread[columns].sum() > 1e-12 * survey.steps:
            found[unit] = float(changes[columns].sum() / pairs / (2 * spread[columns].sum() / survey.steps))
    return found


def consistency(survey: Survey) -> Check:
    """Check whether the actions explain how the state changes, and at which lag."""
    table = survey.lags.r_squared()
    best: dict[str, tuple[float, int]] = {}
    for column, name in enumerate(survey.lags.slots):
        if np.isfinite(table[:, column]).any():
            row = int(np.nanargmax(table[:, column]))
            best[name] = float(table[row, column]), LAGS[row]
    threshold = (
        f"R² {EXPLAINS:g}; lag 0 to {LATE} steps: below that R² the actions do not describe the motion; at another "
        "lag, columns are shifted relative to each other"
    )
    numbers = {
        f"{name}_{what}": value for name, pair in best.items() for what, value in zip(("r2", "lag"), pair, strict=True)
    }
    if not best:
        text = "the dataset has no action together with the state that it changes (dx and ee_x, dq1 and q1)"
        return Check(name="consistency", kind="not known", text=text, numbers={}, threshold=threshold)
    weak = [f"{name} ({value:.2f})" for name, (value, _) in best.items() if value < EXPLAINS]
    shifted = [
        f"{name} ({lag:+d})" for name, (value, lag) in best.items() if value >= EXPLAINS and not 0 <= lag <= LATE
    ]
    signs = survey.lags.signs()
    against = [
        name
        for column, name in enumerate(survey.lags.slots)
        if name in best and best[name][0] >= 0.25 and signs[LAGS.index(best[name][1]), column] < 0
    ]
    findings = []
    if weak:
        findings.append(f"{', '.join(weak)} does not explain the change of its state")
    if shifted:
        findings.append(
            f"the state follows the action after this many steps, so the columns are shifted: {', '.join(shifted)}"
        )
    if against:
        findings.append(f"the state moves opposite to {', '.join(against)}: a sign is wrong")
    wrong = bool(weak) and len(weak) == len(best)
    least = min(value for value, _ in best.values())
    lag = _range([lag for _, lag in best.values()])
    good = f"actions explain the state's changes: R² is at least {least:.2f}, at a lag of {lag}"
    text = "; ".join(findings) or good
    return Check(
        name="consistency",
        kind="not fit" if wrong or against or shifted else "look at this" if findings else "good",
        text=f"for learning actions: {text}" if wrong or against or shifted else text,
        numbers=numbers,
        threshold=threshold,
    )


def saturation(survey: Survey) -> Check:
    """Check whether actions are clipped at the ends of their range."""
    shares = {
        # The smallest and the largest value that occur do not count.
        slot.name: float(max(0, survey.at_bound[n] - 2) / survey.steps)
        for n, slot in enumerate(survey.spec.action)
        if "gripper" not in slot.name
    }
    cut = {name: share for name, share in shares.items() if share > MANY}
    clipped = 0
    if "num_clipped" in survey.dataset.episodes:
        clipped = int(survey.dataset.episodes["num_clipped"].to_numpy().sum())
    text = f"at most {max(shares.values(), default=0.0):.1%} of the steps of an action are at a limit of its range"
    if cut:
        named = ", ".join(f"{name} ({share:.0%})" for name, share in cut.items())
        text = f"actions are at the limits of their range: {named} of the steps; larger ones were clipped"
    return Check(
        name="saturation",
        kind="look at this" if cut else "good",
        text=text,
        numbers={**{f"{name}_share": share for name, share in shares.items()}, "clipped_when_recorded": clipped},
        threshold=f"{MANY:.0%} of the steps: clipped actions cannot be learned",
    )


def gripper(survey: Survey) -> Check:
    """Check whether the gripper closes, flickers, begins closed, or is inverted."""
    threshold = (
        f"never closes or never opens; {MANY * 2:.0%} of the commands last one step; correlation of command and "
        f"opening {INVERTED:g}; 80% of the episodes begin closed"
    )
    number_of = len(survey.spec.grippers)
    if not number_of:
        return Check(
            name="gripper", kind="not known", text="the actions have no gripper", numbers={}, threshold=threshold
        )
    numbers: dict[str, Any] = {}
    bad: list[str] = []
    findings: list[str] = []
    good: list[str] = []
    flickering: tuple[int, ...] = ()
    for number, arm in enumerate(arm for arm in survey.spec.arms if arm.gripper is not None):
        grippers = [each.grippers[number] for each in survey.episodes]
        closed = sum(each.closed for each in grippers) / max(survey.steps, 1)
        changes, flickers = sum(each.changes for each in grippers), sum(each.flickers for each in grippers)
        begins = float(np.mean([each.begins_closed for each in grippers]))
        follows = correlation(survey.opening_follows[number]) if arm.opening is not None else float("nan")
        numbers |= {
            f"{arm.side}closed_share": closed,
            f"{arm.side}changes_per_episode": changes / len(grippers),
            f"{arm.side}flickers": flickers,
            f"{arm.side}begins_closed_share": begins,
            f"{arm.side}command_opening_correlation": _plain(follows),
        }
        name = f"the {arm.side.rstrip('_')} gripper".replace("the  ", "the ")
        if follows < INVERTED:
            bad.append(f"{name} does the opposite of the action ({follows:.2f}): inverted")
        elif closed == 0 or closed == 1:
            bad.append(f"{name} never {'closes' if closed == 0 else 'opens'}")
        elif begins > 0.8 and len(grippers) >= 3:
            findings.append(f"{begins:.0%} of the episodes begin with a closed {name.removeprefix('the ')}: inverted?")
        if flickers >= 3 and flickers > 2 * MANY * changes:
            findings.append(f"{name} flickers: {flickers} of {changes} commands last only one step")
            flickering += most(survey.episodes, lambda each, n=number: each.grippers[n].flickers)
        good.append(
            f"{name} is closed in {closed:.0%} of the steps and changes {changes / len(grippers):.1f} times an episode"
        )
    text = "; ".join([*bad, *findings] or good)
    return Check(
        name="gripper",
        kind="not fit" if bad else "look at this" if findings else "good",
        text=f"for grasping: {text}" if bad else text,
        numbers=numbers,
        threshold=threshold,
        episodes=tuple(dict.fromkeys(flickering)),
        why=dict.fromkeys(flickering, "its gripper flickers"),
    )


def idle(survey: Survey) -> Check:
    """Check how much of the time is idle."""
    share, hz = survey.share("idle"), survey.spec.control_hz
    longest = max(each.longest_idle[1] for each in survey.episodes) / hz
    worst = tuple(
        each.index
        for each in sorted(survey.episodes, key=lambda each: -each.longest_idle[1])[:3]
        if each.longest_idle[1] / hz > LONG_IDLE_S or (share > IDLE and each.idle)
    )
    findings = []
    if share > IDLE:
        findings.append(f"{share:.0%} of the steps are idle")
    if longest > LONG_IDLE_S:
        findings.append(f"the longest idle period is {longest:.3g} s")
    still = ", ".join(f"{value:g} {unit}/s" for unit, value in STILL.items() if unit != "1")
    return Check(
        name="idle",
        kind="look at this" if findings else "good",
        text="; ".join(findings) or f"{share:.0%} of the steps are idle, at most {longest:.3g} s without a break",
        numbers={"share": share, "longest_s": longest},
        threshold=f"{IDLE:.0%} of the steps, or {LONG_IDLE_S:g} s without a break, slower than {still} while no motion "
        "is commanded: behavior cloning learns to wait (for this reason OpenVLA omits no-ops of LIBERO)",
        episodes=worst,
        why={
            each.index: f"idle for {each.longest_idle[1] / hz:.3g} s from {each.longest_idle[0] / hz:.3g} s on"
            for each in survey.episodes
            if each.index in worst
        },
        at={
            each.index: (max(each.longest_idle[0] - 2, 0), sum(each.longest_idle) + 2)
            for each in survey.episodes
            if each.index in worst
        },
    )


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} steps" if min(values) == max(values) else f"{min(values)} to {max(values)} steps"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
