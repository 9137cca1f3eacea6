"""Checks whether a mapping looks right: reports what is likely wrong, from the numbers of a few episodes.

Each check compares two quantities that must agree: an action and the change of state after it, a unit and the size of
its numbers, a rate and the time stamps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tap_ray.importing.convert import as_like, beyond, columns_of, motion
from tap_ray.importing.mapping import Mapping, Numbers, slots_of
from tap_ray.importing.source import Source
from tap_ray.specs import SIDES, RobotSpec

AGREES = 0.5
"""Correlation above which two series are considered the same quantity."""
FOLLOWS = 5.0
"""Largest ratio, either way, between a commanded change and that of the state: arms lag."""
TURN_RAD = 2.1 * np.pi
"""Largest plausible joint angle of a robot arm, rad."""
REACH_M = 3.0
"""Largest plausible reach of an arm on a table, m."""
CENTERED = 1.0
"""Numbers scatter around zero if their mean is smaller than this fraction of their standard deviation."""
CLIPPED = 0.05
"""Largest acceptable share of actions beyond the range of --like."""
SPEED_M_S, SPEED_RAD_S = 1.5, 8.0
"""Largest plausible speeds of an end effector and of a joint in a demonstration, at the 95th percentile."""
SLOW_M_S = 0.01
"""Smallest plausible speed of an end effector at the 95th percentile, m/s."""


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """The numbers of some episodes in our units, concatenated."""

    state: np.ndarray
    """(N, S) state before each control step."""
    action: np.ndarray
    """(N, A) actions."""
    follows: np.ndarray
    """(N,) bool: the next row is of the same episode."""
    begins: np.ndarray
    """(N,) bool: the first row of an episode."""

    @property
    def moved(self) -> np.ndarray:
        """(N', S): change of the state over each control step that is followed by another."""
        return (np.roll(self.state, -1, axis=0) - self.state)[self.follows]


def read(mapping: Mapping, source: Source, episodes: list[int]) -> Numeric:
    """Read the numbers of these episodes."""
    parts = [motion(mapping, source, episode)[:2] for episode in episodes]
    last = np.concatenate([np.arange(len(state)) == len(state) - 1 for state, _ in parts])
    first = np.concatenate([np.arange(len(state)) == 0 for state, _ in parts])
    state, action = (np.concatenate(each).astype(np.float64) for each in zip(*parts, strict=True))
    return Numeric(state=state, action=action, follows=~last, begins=first)


def findings(mapping: Mapping, source: Source, episodes: list[int], like: RobotSpec | None = None) -> list[str]:
    """A sentence for each thing that looks wrong; empty if nothing does. `like` is the robot of --like, whose ranges
    are used."""
    seen = read(mapping, source, episodes)
    raw = [source.numbers(episode, columns_of(mapping)) for episode in episodes]
    return [
        *_rate(mapping, source, raw),
        *_sizes(mapping, raw),
        *_action_problems(mapping, seen),
        *_called_absolute(mapping, source, episodes),
        *_speeds(mapping, seen),
        *(_clipped(mapping, seen, like) if like else ()),
    ]


def partner(action_slot: str) -> str:
    """The state slot that an action slot changes: dx -> ee_x, dq1 -> q1, gripper -> gripper_opening."""
    side = next((side for side in SIDES if action_slot.startswith(side)), "")
    name = action_slot.removeprefix(side)
    if name == "gripper":
        return f"{side}gripper_opening"
    if name in ("dx", "dy", "dz"):
        return f"{side}ee_{name[1:]}"
    return f"{side}{name.removeprefix('d')}"


def _rate(mapping: Mapping, source: Source, raw: list[dict[str, np.ndarray]]) -> Iterator[str]:
    """Compare the source's frames per second with its time stamps, or without time stamps the mapping's with the
    source's."""
    fps = mapping.fps or source.fps
    steps_s = intervals_s(raw)
    if not len(steps_s) and source.fps and not 0.8 < fps / source.fps < 1.25:
        yield (
            f"fps: the mapping says {fps:g} frames per second, but the dataset itself or its authors say "
            f"{source.fps:g}. Omit 'fps' in the mapping, or correct it."
        )
    if len(steps_s) and not 0.8 < float(np.median(steps_s)) * fps < 1.25:
        yield (
            f"fps: the mapping says {fps:g} frames per second, but the time stamps are {np.median(steps_s):.4g} s "
            f"apart, which is {1 / np.median(steps_s):.4g} Hz. Omit 'fps' in the mapping, or correct it."
        )


def intervals_s(raw: list[dict[str, np.ndarray]]) -> np.ndarray:
    """(N,) intervals between the time stamps of some episodes, s; empty if the source has none."""
    times = [each.get("timestamp") for each in raw[:3]]
    return np.concatenate([np.diff(each) for each in times if each is not None and len(each) > 1] or [np.zeros(0)])


def ee_speed(mapping: Mapping, seen: Numeric) -> np.ndarray:
    """(N',) speed of the first end effector over each control step, m/s; empty if the state has none."""
    names = [slot for group in mapping.state for slot in group.slots]
    at = [names.index(name) for name in names if name.endswith(("ee_x", "ee_y", "ee_z"))][:3]
    return np.linalg.norm(seen.moved[:, at], axis=1) * mapping.control_hz if at else np.zeros(0)


def _sizes(mapping: Mapping, raw: list[dict[str, np.ndarray]]) -> Iterator[str]:
    """Compare units with the size of the source's numbers."""
    for place, group in enumerate((*mapping.state, *mapping.action)):
        is_place = place < len(mapping.state) or group.kind == "absolute"
        values = np.concatenate([each[group.column][:, group.at] for each in raw]) * group.scale
        if group.rotation.startswith("quaternion"):
            if np.abs(np.linalg.norm(values, axis=1) - 1).max() > 0.05:
                yield (
                    f"{_name(group)}: the rotation {group.rotation} needs quaternions of length 1, but these have "
                    "other lengths."
                )
            continue
        most = float(np.abs(values).max())
        if group.gripper:
            low, high = sorted((group.closed, group.open))
            slack = 0.25 * (high - low)
            if values.min() < low - slack or values.max() > high + slack:
                yield (
                    f"{_name(group)}: the mapping says closed {group.closed:g} and open {group.open:g}, but the "
                    f"numbers are in {values.min():.4g} .. {values.max():.4g}. Correct 'closed' and 'open'."
                )
            elif values.max() - values.min() < 0.05 * (high - low):
                yield f"{_name(group)}: the gripper never moves. Check 'at'."
        elif group.unit == "rad" and most > TURN_RAD:
            yield (
                f"{_name(group)}: the mapping says unit rad, but the numbers reach {most:.4g}. They seem to be "
                "degrees (unit: deg)."
            )
        elif group.unit == "deg" and 0 < most < 3.5 and is_place:
            yield (
                f"{_name(group)}: the mapping says unit deg, but no number is above {most:.4g}. They seem to be "
                "radians (unit: rad)."
            )
        elif group.unit == "m" and most > REACH_M:
            yield (
                f"{_name(group)}: the mapping says unit m, but the numbers reach {most:.4g}. They seem to be mm "
                "(unit: mm)."
            )


def _action_problems(mapping: Mapping, seen: Numeric) -> Iterator[str]:
    """Compare each action with the change of the state after it."""
    states = [slot for group in mapping.state for slot in group.slots]
    place = 0
    for group in mapping.action:
        for slot in group.slots:
            action = seen.action[:, place]
            place += 1
            if partner(slot) not in states or group.rotation:
                if group.gripper:
                    yield from _begins_closed(group, action[seen.begins])
                continue
            column = states.index(partner(slot))
            state, moved = seen.state[:, column], seen.moved[:, column]
            if group.gripper:
                yield from _gripper(group, action, state, seen)
            elif group.kind == "delta":
                yield from _delta(group, slot, action, state, moved, seen.follows)
            else:
                yield from _scale(group, slot, action[seen.follows], moved)


def _delta(
    group: Numbers, slot: str, action: np.ndarray, state: np.ndarray, moved: np.ndarray, follows: np.ndarray
) -> Iterator[str]:
    as_place, as_change = _correlation(action, state), _correlation(action[follows], moved)
    if as_place > 0.9 and as_place > as_change:
        yield (
            f"{slot}: the mapping says kind delta, but the numbers correlate with the state itself ({partner(slot)}, "
            f"{as_place:.2f}) more than with its change ({as_change:.2f}). They seem to be absolute poses (kind: "
            "absolute)."
        )
    else:
        yield from _scale(group, slot, action[follows], moved)


def _called_absolute(mapping: Mapping, source: Source, episodes: list[int]) -> Iterator[str]:
    """Find actions that the mapping calls absolute but that are changes: as changes they explain what the state does,
    or, without a state, all numbers of a group scatter around zero, which those of a pose do not."""
    wrongly = [group for group in mapping.action if group.kind == "absolute" and not group.gripper]
    if not wrongly:
        return
    groups = tuple(replace(group, kind="delta") if group in wrongly else group for group in mapping.action)
    seen = read(replace(mapping, action=groups), source, episodes)
    states, slots = (list(slots_of(part)) for part in (mapping.state, mapping.action))
    for group in (group for group in wrongly if not group.rotation):
        known = [slot for slot in group.slots if partner(slot) in states]
        for slot in known:
            action, column = seen.action[:, slots.index(slot)], states.index(partner(slot))
            as_change = _correlation(action[seen.follows], seen.moved[:, column])
            if as_change > AGREES and as_change > (as_place := _correlation(action, seen.state[:, column])):
                yield (
                    f"{slot}: the mapping says kind absolute, but the numbers correlate with the state's change "
                    f"({partner(slot)}, {as_change:.2f}) more than with the state itself ({as_place:.2f}). They seem "
                    "to be changes (kind: delta)."
                )
        group_action = seen.action[:, [slots.index(slot) for slot in group.slots]]
        if (
            not known
            and len(group.slots) > 1
            and (np.abs(group_action.mean(axis=0)) < CENTERED * group_action.std(axis=0)).all()
        ):
            yield (
                f"{_name(group)}: the mapping says kind absolute, but all numbers scatter around zero, which poses do "
                "not. They seem to be changes (kind: delta)."
            )


def _scale(group: Numbers, slot: str, action: np.ndarray, moved: np.ndarray) -> Iterator[str]:
    """Compare the total commanded change with the total change of the state."""
    agreement, size = _correlation(action, moved), float(action @ action)
    if len(action) < 10 or size == 0.0:
        return
    if agreement < -AGREES:
        yield f"{slot}: the state moves opposite to the action (correlation {agreement:.2f}). The sign is wrong."
    if agreement < AGREES:
        return
    ratio = float(action @ moved) / size
    if not 1 / FOLLOWS < ratio < FOLLOWS:
        degrees = " (perhaps degrees instead of radians)" if 40 < max(ratio, 1 / ratio) < 75 else ""
        yield (
            f"{slot}: the state changes by {ratio:.3g} times the action. The unit ({group.unit}) or the scale "
            f"({group.scale:g}) of one of the two is wrong{degrees}."
        )


def _gripper(group: Numbers, action: np.ndarray, state: np.ndarray, seen: Numeric) -> Iterator[str]:
    later = np.roll(state, -1)[seen.follows]
    agreement = _correlation(action[seen.follows], later)
    if agreement < -0.3:
        yield (
            f"{_name(group)}: the gripper does the opposite of the action (correlation {agreement:.2f}). It seems to "
            "be inverted. Exchange 'open' and 'closed'."
        )


def _begins_closed(group: Numbers, first: np.ndarray) -> Iterator[str]:
    closed = float((first < 0).mean())
    if len(first) >= 3 and closed > 0.8:
        yield (
            f"{_name(group)}: {closed:.0%} of the episodes begin with a closed gripper, so it may be inverted. If so, "
            "exchange 'open' and 'closed'; if they really begin closed, add --accept."
        )


def _speeds(mapping: Mapping, seen: Numeric) -> Iterator[str]:
    """Find speeds that are too high for an arm, or too low for a demonstration."""
    place = 0
    speed = ee_speed(mapping, seen)
    if len(speed) and 0 < (usual := float(np.quantile(speed, 0.95))) < SLOW_M_S:
        yield (
            f"the end effector hardly moves (95 % of the time at less than {usual:.2g} m/s). The unit of its position "
            f"or the fps ({fps_said(mapping)}) is wrong."
        )
    for group in mapping.state:
        for slot in group.slots:
            moved = np.abs(seen.moved[:, place]) * mapping.control_hz
            place += 1
            is_length = group.unit in ("m", "cm", "mm")
            if group.rotation or group.unit in ("gripper", "1") or not len(moved):
                continue
            limit, unit = (SPEED_M_S, "m/s") if is_length else (SPEED_RAD_S, "rad/s")
            if (fastest := float(np.quantile(moved, 0.95))) > limit:
                yield (
                    f"{slot}: moves at {fastest:.3g} {unit}, which is too fast for an arm. The unit ({group.unit}) or "
                    f"the fps ({fps_said(mapping)}) is wrong."
                )


def fps_said(mapping: Mapping) -> str:
    """What the mapping says about the rate."""
    return "as in the metadata" if mapping.fps is None else f"{mapping.fps:g}"


def _clipped(mapping: Mapping, seen: Numeric, like: RobotSpec) -> Iterator[str]:
    """Find actions beyond the ranges of the robot of --like."""
    _, action = as_like(mapping, like, seen.state, seen.action)
    outside = beyond(like, action).mean(axis=0)
    for slot, share, column in zip(like.action, outside, action.T, strict=True):
        if share > CLIPPED:
            most = float(column[np.argmax(np.abs(column))])
            yield (
                f"{slot.name}: {share:.0%} of the actions are outside the range of --like ({slot.low:g} .. "
                f"{slot.high:g} {slot.unit}; the largest is {most:.4g}) and would be clipped. Check that robot, "
                "control_hz, unit and scale are the same."
            )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 3 or one.std() < 1e-9 or other.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _name(group: Numbers) -> str:
    return ", ".join(group.slots)
