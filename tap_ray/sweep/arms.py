"""Handles the arms of a sweep: the variants that are compared. Each is a name for some values that replace the file's.

arms:
  scratch:     {budget: 0}
  next_object: {}                                    # the file as it stands
  cotrain:     {cotrain: true, align: {train: {lr: 1e-3}}}
  mixture:     {data: [data/play:1, data/more:0.3]}  # two datasets of play in each batch
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from tap_ray.config import ONCE_ONE, from_dict
from tap_ray.errors import ConfigError, nearest
from tap_ray.sweep.axes import VERBS

STAGES = ("pretrain", "prior", "align")
"""Sections of a file that an arm may change."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of the sweep's file."""

    pretrain: Any = field(default_factory=dict)
    """Fields of jobs.pretrain, merged over the file's."""
    prior: Any = None
    """Fields of jobs.pretrain_prior, merged over the file's; absent: this arm has no prior."""
    align: Any = field(default_factory=dict)
    """Fields of jobs.align, merged over the file's."""
    budget: int | None = None
    """Budget of play, episodes, instead of the file's; 0: no play at all."""
    data: tuple[str, ...] = field(default=(), metadata=ONCE_ONE)
    """Other datasets of play, as in the file: PATH or PATH:WEIGHT; none: the file's."""
    cotrain: bool = False
    """Whether Stage 2 is trained on the play as well, on the first `budget` episodes."""


def arms_of(values: Any, where: Path | str) -> dict[str, Arm]:
    """The arms of a file by name.

    Raises:
        ConfigError: it is not a mapping of names to keys, a key is unknown (the nearest is named), or an arm contains a
            verb, or is co-trained on no play.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: arms: expected the name of each arm with the values that it changes; got {values!r}."
        )
    found = {}
    for name, changes in values.items():
        place = f"{where}: arms: {name}"
        arm = from_dict(Arm, {} if changes is None else changes, where=place)
        if arm.cotrain and arm.budget == 0:
            raise ConfigError(
                f"{place}: cotrain: true trains on play, and budget: 0 means that there is none. Remove one of them."
            )
        for section in STAGES:
            _require_plain(getattr(arm, section), f"{place}: {section}")
        found[str(name)] = arm
    return found


def chosen(arm: Any, arms: Mapping[str, Arm], where: Path | str) -> Arm:
    """The arm of a trial; without arms one that changes nothing.

    Raises:
        ConfigError: no arm has this name.
    """
    if arm is None and not arms:
        return Arm(prior={})
    if str(arm) not in arms:
        known = nearest(str(arm), arms) if arms else "The file has no `arms`."
        raise ConfigError(f"{where}: arm: no arm is called {arm!r}. {known}")
    return arms[str(arm)]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: nested mappings are merged, values and verbs are replaced."""
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping) and not set(below) & set(VERBS)
        made[key] = merged(below, value) if both and isinstance(below, Mapping) else value
    return made


def _require_plain(values: Any, place: str) -> None:
    """Raise a ConfigError if an arm varies something: two trials of one arm would differ by more than the tables
    show."""
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"{place}: expected keys and values, got {values!r}.")
    for key, value in (values or {}).items():
        if isinstance(value, Mapping):
            if verb := set(value) & set(VERBS):
                raise ConfigError(
                    f"{place}: {key}: an arm holds values, not {sorted(verb)[0]}. Vary it in the section of the file, "
                    "or make one arm for each value."
                )
            _require_plain(value, f"{place}: {key}")
