"""Finds the axes of a sweep: the keys of its file that have a verb (grid, choice, ...) instead of a value."""

import math
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

from tap_ray.errors import ConfigError, nearest
from tap_ray.rng import generator

VERBS = ("grid", "choice", "uniform", "loguniform")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting that is varied."""

    name: str
    """Its path in the file, e.g. "align.train.lr"."""
    verb: str
    values: tuple[Any, ...]
    """The options, or the two ends of a range."""


def axes_of(cls: type, values: Mapping[str, Any], prefix: str, where: Path | str) -> Iterator[Axis]:
    """Find the axes in a section along its config's fields; unknown keys are refused later by `from_dict`."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if not isinstance(value, Mapping) or key not in known:
            continue
        if is_dataclass(hints[key]) and not set(value) & set(VERBS):
            yield from axes_of(typing.cast(type, hints[key]), value, name, where)
        elif verb := verb_of(value, name, where):
            yield Axis(name=name, verb=verb[0], values=verb[1])


def verb_of(value: Any, name: str, where: Path | str) -> tuple[str, tuple[Any, ...]] | None:
    """("grid", values) if a value is one of the four verbs; None if it is a plain value.

    Raises:
        ConfigError: the verb is unknown, there are no options, or the range is invalid.
    """
    if not isinstance(value, Mapping):
        return None
    place = f"{where}: {name}"
    if len(value) != 1 or (verb := str(next(iter(value)))) not in VERBS:
        raise ConfigError(
            f"{place}: expected a value or one verb, got {dict(value)!r}. " + nearest(str(next(iter(value), "")), VERBS)
        )
    options = value[verb]
    if not isinstance(options, list) or not options:
        raise ConfigError(f"{place}: {verb} needs a list of at least one value, got {options!r}.")
    if verb in ("uniform", "loguniform"):
        ends = [_number(option, f"{place}: {verb}") for option in options]
        if len(ends) != 2 or ends[0] >= ends[1] or (verb == "loguniform" and ends[0] <= 0):
            raise ConfigError(
                f"{place}: {verb} needs two bounds, the lower one first"
                + (" and above 0" if verb == "loguniform" else "")
                + f"; got {options!r}."
            )
        options = ends
    if len({repr(option) for option in options}) < len(options):
        raise ConfigError(f"{place}: {verb} has a value twice: {options!r}.")
    return verb, tuple(options)


def _number(value: Any, place: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{place}: expected numbers, got {value!r}.") from None


def draw(axis: Axis, seed: int, number: int) -> Any:
    """The value of an axis in draw `number`: a pure function of its arguments."""
    rng = generator(seed, "sweep", axis.name, number)
    if axis.verb == "choice":
        return axis.values[int(rng.integers(len(axis.values)))]
    low, high = axis.values
    if axis.verb == "uniform":
        return float(rng.uniform(low, high))
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
