"""Converts frozen dataclasses to and from plain values, YAML and JSON.

A config is a frozen keyword-only dataclass beside the code that it configures. The same object comes from flags
(tyro), from a file or from a test. An unknown key is an error that names the nearest match.
"""

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, Collection, Iterable, Mapping, TypeVar

import yaml

from tap_ray import bounds, storage
from tap_ray.errors import ConfigError, nearest

C = TypeVar("C")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where a job runs."""

    ray_address: str | None = None
    """Ray cluster to join, "host:6379" or "auto"; without it RAY_ADDRESS, else a local Ray that stops with the job."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodesConfig(ClusterConfig):
    """Where a job runs that starts its own processes on the cluster."""

    node_labels: tuple[str, ...] = ()
    """Run only on cluster nodes with these Ray labels, e.g. role=play; if none is given, on any node."""


RENAMED = {
    "ahead": "goal_offset",
    "decoders": "num_data_workers",
    "exact": "batch_invariant",
    "execute": "n_action_steps",
    "linger_steps": "success_hold_steps",
    "reduction": "reduction_factor",
    "samples": "num_samples",
    "take": "load",
    "transferred_lr": "pretrained_lr_scale",
    "trials_at_once": "max_concurrent_trials",
    "workers": "num_workers",
}
"""Former names of fields, found in older files -> current names. They apply to classes without a field of the former
name."""
RENAMED_ANYWHERE = {key: name for key, name in RENAMED.items() if key not in ("samples", "workers")}
"""Former names that mean the same at any depth of nested values."""
FORMER = {now: before for before, now in RENAMED_ANYWHERE.items()}

ONCE_ONE = {"once_one": True}
"""Field metadata: in older files this list was a single value or null."""

SHOWN = 100
"""Largest number of characters of a value that a message shows."""


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config dataclass (paths as strings, tuples as lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type[C], values: Mapping[str, Any], *, where: str = "config", missing: Any = None) -> C:
    """Build a config dataclass from plain values, nested ones included.

    Args:
        cls: a frozen dataclass.
        values: values of its fields; missing fields keep their defaults.
        where: name of the source in error messages, e.g. "sweep.yaml".
        missing: placeholder for required fields without a value, if something else will fill them; None raises an error
            for them.

    Raises:
        ConfigError: a key is unknown (named with its nearest match), a value has the wrong type or is refused by the
            class, or there is no value at all.
    """
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  what a user's file holds
        raise ConfigError(f"{where}: expected keys and values for {cls.__name__}, got {values!r}.")
    hints = typing.get_type_hints(cls)
    names = {f.name: f.metadata for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    filled = {}
    for key, value in values.items():
        key = key if key in names else RENAMED.get(key, key)
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}. {nearest(str(key), names)}")
        if "once_one" in names[key] and not isinstance(value, (list, tuple)):
            value = [] if value is None else [value]
        filled[key] = _coerce(hints[key], value, f"{where}: {key}")
    absent = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in filled]  # type: ignore[arg-type]
    if absent and missing is None:
        raise ConfigError(f"{where}: {cls.__name__} needs a value for {', '.join(absent)}.")
    try:
        made = cls(**filled, **dict.fromkeys(absent, missing))
    except ConfigError as error:  # of its __post_init__
        raise ConfigError(f"{where}: {error}") from None
    bounds.check_own(made, where)
    return made


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def load(cls: type[C], path: Path | str, *, missing: Any = None) -> C:
    """Read a config dataclass from a YAML or JSON file; `missing` as in `from_dict`.

    Raises:
        ConfigError: the file cannot be read or parsed, or holds an unknown key.
    """
    path = storage.to_path(path)
    try:
        text = storage.read(path).decode("utf-8-sig")
        values = _json(text) if path.suffix == ".json" else yaml.load(text, YamlLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"Cannot read the config file {path}: {error.strerror or 'No such file'}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: {error}. Write it as YAML or JSON.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except _Twice as error:
        raise ConfigError(f"{path} has the key {error.args[0]!r} twice. Keep one of them.") from None
    return from_dict(cls, {} if values is None else _present(values), where=str(path), missing=missing)


def _present(values: Any) -> Any:
    """Convert the config.json of an older run, whose keys differ from those of the job's config; others are returned
    unchanged.

    Keys with "_" held the runtime settings: "_where" those of `workers`, "_spelt" paths as they were typed, others a
    field each. An evaluation's settings were those of its "protocol".
    """
    if not isinstance(values, Mapping):
        return values
    given = typing.cast(Mapping[str, Any], values)
    runtime = {key[1:]: value for key, value in given.items() if key.startswith("_")}
    if not runtime:
        return given
    found = {key: value for key, value in given.items() if not key.startswith("_")}
    protocol = dict(found.pop("protocol", {}))
    for key in ("hash", "env_version", "success"):  # they follow from the other settings
        protocol.pop(key, None)
    if "scenarios" in protocol:
        protocol["scenario"] = protocol.pop("scenarios")
    workers = {"workers": runtime.pop("where")} if "where" in runtime else {}
    return {**found, **protocol, **runtime.pop("spelt", {}), **workers, **runtime}


class _Twice(Exception):
    """A key that appears twice in one mapping."""


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


class YamlLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice in one mapping, which YAML forbids and PyYAML accepts."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: Any = super().compose_mapping_node(anchor)
        _once(
            (key.value, None)
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
        )
        return node


def digest(values: Any) -> str:
    """A hash of plain values, 16 hex digits; it does not depend on the order of keys."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def absent(config: Any, values: Mapping[str, Any], prefix: str = "") -> str:
    """The fields of a config that are missing from plain values, with their default values, e.g. "execute = 2"."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in values:
            found.append(f"{prefix}{field.name} = {_short(value)}")
        elif dataclasses.is_dataclass(value):
            found.append(absent(value, values[field.name], f"{prefix}{field.name}."))
    return ", ".join(each for each in found if each)


def require_used(chosen: Any, used: Any, *, of: str, follows: Mapping[str, str]) -> None:
    """Raise a ConfigError if a value that the user chose would have no effect: no flag is silently overwritten.

    Args:
        chosen: the config as the user gave it.
        used: the config, of the same class, that the job uses.
        of: name of the config in flags and files, e.g. "policy".
        follows: field -> what decides its value instead.
    """
    usual = type(chosen)()
    for field in dataclasses.fields(chosen):
        name, value, now = f"{of}.{field.name}", getattr(chosen, field.name), getattr(used, field.name)
        if value in (now, getattr(usual, field.name)):
            continue
        if dataclasses.is_dataclass(value) and type(value) is type(now):
            require_used(value, now, of=name, follows=follows)
            continue
        flag = f"--{name.replace('_', '-')}"
        why = follows.get(name, "the data, the stage and the other flags")
        raise ConfigError(
            f"{flag} {_short(value)} has no effect: the value is determined by {why}, and is {_short(now)}. Omit it."
        )


def without_unused(config: Any, later: Collection[str]) -> dict[str, Any]:
    """The plain values of a config, without those fields of `later` that have their default."""
    usual = to_dict(config.__class__())
    return {key: value for key, value in to_dict(config).items() if key not in later or value != usual[key]}


def keys_renamed(values: Any, names: Mapping[str, str]) -> Any:
    """Plain values in which the keys of every mapping, nested ones included, are renamed."""
    if isinstance(values, Mapping):
        pairs = typing.cast(Mapping[str, Any], values).items()
        return {names.get(key, key): keys_renamed(value, names) for key, value in pairs}
    return (
        [keys_renamed(each, names) for each in typing.cast(list[Any], values)] if isinstance(values, list) else values
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each key whose value differs, e.g. "model.width: 64 before, 128 now"."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(*typing.cast(tuple[Mapping[str, Any], ...], (a, b)), prefix=f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} before, {_short(b)} now")
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Turn a plain value into what a field's type asks for: nested dataclasses, tuples, paths, numbers."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        (option,) = (h for h in typing.get_args(hint) if h is not type(None))  # a field's type is T or T | None
        return None if value is None else _coerce(option, value, where)
    if origin is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            raise ConfigError(f"{where}: {value!r} is not one of {list(options)}.")
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}.")
        items, hints = list(typing.cast(typing.Sequence[Any], value)), typing.get_args(hint)
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(items)
        if len(items) != len(hints):
            raise ConfigError(f"{where}: expected a list of {len(hints)} values, got {len(items)}: {items!r}.")
        return tuple(_coerce(inner, item, where) for inner, item in zip(hints, items, strict=True))
    if hint is Path and (isinstance(value, (str, Path)) or storage.is_remote(value)):
        return storage.to_path(value)
    if hint is float:
        return _float(value, where)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}.")
    return value


def _float(value: Any, where: str) -> float:
    """Convert to a number; YAML reads 1e-4 (no dot) as a string, which is accepted too."""
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise ConfigError(f"{where}: expected float, got {value!r}.")
