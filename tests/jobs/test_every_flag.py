"""Every flag of every job: given another value on the command line, it is in the saved config.json.

That a stage then uses it, or refuses it by name, is `test_flags_have_effect.py`'s.
"""

import dataclasses
import json
import sys
import typing
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Iterator

import pytest
import tyro

from tap_ray import bounds, runs
from tap_ray.config import to_dict
from tap_ray.errors import ConfigError
from tap_ray.job import run_job
from tests.job_configs import CONFIGS

FITTING: dict[str, Any] = {
    "glimpse_px": 16,
    "num_heads": 2,
    "width": 128,
    "log_every": 10,
    "validate_every": 30,
    "checkpoint_every": 30,
    "steps": 60,
    "others": ("one:0.5", "two:0.25"),
}
"""Other values of fields that must fit each other."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One leaf of a config."""

    way: tuple[str, ...]
    """Names of fields from the job's config down to it."""
    words: tuple[str, ...]
    """On the command line."""
    value: Any
    """The same value in JSON."""
    positional: bool = False


def flags_of(config: Any, way: tuple[str, ...] = (), prefix: str = "") -> Iterator[Flag]:
    """Each flag of a config, with another value than it has there."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        flag, value = bounds.flag_of(prefix, field, hints[field.name]), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags_of(value, (*way, field.name), flag)
            continue
        hint, marks = hints[field.name], getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Suppress in marks:
            continue  # not a flag: it follows from others, see `test_what_follows_from_other_flags_is_no_flag`
        other = another(config, field.name, typing.get_args(hint)[0] if marks else hint)
        assert other != value, f"{flag}: another value is {value!r} again"
        values = tuple(map(str, other if isinstance(other, tuple) else (other,)))
        if isinstance(other, bool):
            *before, last = flag.split(".")
            flag, values = flag if other else ".".join([*before, f"no-{last}"]), ()
        positional = any(mark is tyro.conf.Positional for mark in marks)
        words = values if positional else (f"--{flag}", *values)
        yield Flag((*way, field.name), words, list(other) if isinstance(other, tuple) else other, positional)


def another(config: Any, name: str, hint: Any) -> Any:
    """Another legal value of a field of this type."""
    if name in FITTING:
        return FITTING[name]
    value, inner = getattr(config, name), [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) is tuple and inner[-1] is not Ellipsis:
        return tuple(number(config, name, one) for one in value)
    if typing.get_origin(hint) is tuple:
        some = {str: ("one", "two"), Path: ("one", "two"), int: (2, 3), float: (0.5,)}
        choices = typing.get_args(inner[0]) or some[inner[0]]
        return next(given for given in (tuple(choices), tuple(choices[:1])) if given != value)
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in inner if choice != value)
    if isinstance(value, bool):
        return not value
    kind = inner[0] if inner else hint
    return number(config, name, kind(0) if value is None else value) if kind in (int, float) else f"another-{name}"


def number(config: Any, name: str, value: float) -> float:
    """Another number in a field's range."""
    for other in (value / 2, 0.25) if isinstance(value, float) and value else (value + 1, value - 1, value + 0.25):
        with suppress(ConfigError):
            bounds.check_own(dataclasses.make_dataclass(type(config).__name__, [name])(other), "test")
            return other
    raise AssertionError(f"no other value for {name} = {value!r}")


def save(job: str, config: Any, folder: Path) -> Path:
    """config.json, as a job writes it."""
    return runs.open_run(folder, job=job, config=to_dict(config), job_config=config).path / "config.json"


def command(config_type: type, *words: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config that a job's main is given for these words; SystemExit where it is refused."""
    seen = []

    def main(config: Any) -> Path:
        seen.append(config)
        return Path()

    monkeypatch.setattr(sys, "argv", ["job", *words])
    run_job(main, config_type)
    return seen[0]


@pytest.mark.parametrize("job", CONFIGS)
def test_every_flag_is_in_the_saved_config_which_is_taken_back(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    cls, flags = type(CONFIGS[job]), list(flags_of(CONFIGS[job]))
    words = [word for flag in sorted(flags, key=lambda flag: not flag.positional) for word in flag.words]
    config = command(cls, *words, monkeypatch=monkeypatch)
    saved = json.loads(save(job, config, tmp_path / "run").read_text())
    assert {flag.way: reduce(getitem, flag.way, saved) for flag in flags} == {flag.way: flag.value for flag in flags}
    assert command(cls, "--config", "run/config.json", monkeypatch=monkeypatch) == config


@pytest.mark.parametrize(
    "words", ["--policy.chunk 3", "--policy.context crops", "--windows.batch-size 3", "--windows.crops"]
)
def test_what_follows_from_other_flags_is_no_flag(words: str, monkeypatch: pytest.MonkeyPatch, capsys):
    needed = ["--demos", "d", "--init", "scratch"]
    with pytest.raises(SystemExit):
        command(type(CONFIGS["align"]), *needed, *words.split(), monkeypatch=monkeypatch)
    assert f"Unrecognized options: {words.split()[0]}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(type(CONFIGS["align"]), "--help", monkeypatch=monkeypatch)
    assert f"{words.split()[0]} " not in capsys.readouterr().out
