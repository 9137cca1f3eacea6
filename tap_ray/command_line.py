"""Parses the command line of a job: flags become its config. There are also these options:

--config FILE            flags from YAML or JSON, e.g. the config.json of any run; flags win over it
--preset NAME            the job's config by name, where it has some; flags win over it
--print-config           print the whole config as JSON, which --config takes, and start nothing
--plan                   print memory, FLOPs and steps/s of a training, and start nothing
--plan-gpu-memory GB     plan for a GPU of this memory, GB, instead of what is in this machine
"""

import inspect
import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Generic, Mapping, NamedTuple, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from tap_ray import plugins, storage
from tap_ray.config import load, to_dict
from tap_ray.errors import ConfigError, nearest
from tap_ray.help_texts import set_help

C = TypeVar("C")

FLAGS = ConstructorRegistry()
"""How tyro converts flags to values in our jobs: a Path may also be a URI."""


@dataclass(frozen=True, kw_only=True)
class Preset(Generic[C]):
    """A complete config of a job, with the source of each value."""

    make: Callable[..., C]
    """Makes the config; takes the job's required fields (`demos`, `init`) as keyword arguments."""
    sources: Mapping[str, str]
    """Field, e.g. "train.lr" -> source of its value, for every value that differs from the job's default."""


@dataclass(frozen=True, kw_only=True)
class Offers(Generic[C]):
    """What the command line of a job offers besides its flags."""

    presets: Mapping[str, Preset[C]] = field(default_factory=dict[str, Preset[C]])
    plan: Callable[[C, float | None], str] | None = None
    """Makes the text of --plan from the config and the GPU's memory, GB; None means the memory of this machine's
    GPU."""


class Asked(NamedTuple, Generic[C]):
    """The parsed command line."""

    config: C
    text: Callable[[], str] | None
    """Makes the text to print instead of starting the job; None starts the job."""


def parse(main: Callable[[C], Path], config_type: type[C], argv: list[str], offers: Offers[C]) -> Asked[C]:
    """Parse a command line into a config and the text, if any, to print instead of starting the job.

    Raises:
        ConfigError: a file or a preset cannot be read, or flags exclude each other.
        SystemExit: tyro refuses a flag.
    """
    given, argv = _beside(argv)
    default = _default(config_type, given, offers)
    gpu_gb = _memory(given, offers)
    texts = [plugins.listing(), _extra_help(offers)]
    doc = "\n\n".join(filter(None, [(sys.modules[main.__module__].__doc__ or "").strip(), *texts]))
    fallback = tyro.MISSING_NONPROP if default is None else default
    if {"-h", "--help"} & set(argv):
        set_help(config_type)
    with warnings.catch_warnings():  # a default from a config file may be a UPath where the type says Path
        warnings.filterwarnings("ignore", message=r".*(\bupath\.|protocol=)")
        config = tyro.cli(config_type, prog=_command(), args=argv, description=doc, default=fallback, registry=FLAGS)  # pyright: ignore
    plan = offers.plan
    if "--plan" in given and plan is not None:
        return Asked(config, lambda: plan(config, gpu_gb))
    return Asked(config, (lambda: json.dumps(to_dict(config), indent=2)) if "--print-config" in given else None)


BESIDE = {
    "--config": "a file: --config FILE (YAML or JSON)",
    "--preset": "a name: --preset NAME",
    "--plan-gpu-memory": "GB: --plan-gpu-memory 80",
    "--plan": "",
    "--print-config": "",
}
"""Flags that are not fields of the config -> placeholder of their value; "" for a flag without a value."""


def _beside(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of `BESIDE` that are given, with their values, and all the others."""
    given: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in BESIDE or (equals and not BESIDE[flag]):
            rest.append(word)
            continue
        if BESIDE[flag] and not equals:
            value = next(words, "")
        if BESIDE[flag] and (not value or value.startswith("--")):
            raise ConfigError(f"{flag} needs {BESIDE[flag]}.")
        if flag in given:
            raise ConfigError(f"{flag} is given twice. Keep one of them.")
        given[flag] = value
    return given, rest


def _default(config_type: type[C], given: Mapping[str, str], offers: Offers[C]) -> C | None:
    if "--config" in given and "--preset" in given:
        raise ConfigError(
            "--config and --preset both give the whole config. Keep one of them. --preset NAME --print-config writes "
            "a preset as a file that --config takes."
        )
    if "--config" in given:
        return load(config_type, given["--config"], missing=tyro.MISSING)
    if "--preset" not in given:
        return None
    name = given["--preset"]
    if name not in offers.presets:
        known = nearest(name, offers.presets) if offers.presets else "This job has no presets."
        raise ConfigError(f"Unknown preset {name!r}. {known}")
    make = offers.presets[name].make
    required = [each.name for each in inspect.signature(make).parameters.values() if each.default is each.empty]
    return make(**dict.fromkeys(required, tyro.MISSING))


def _memory(given: Mapping[str, str], offers: Offers[Any]) -> float | None:
    """Memory of the GPU that --plan assumes, GB."""
    if "--plan" in given and offers.plan is None:
        raise ConfigError("--plan is for jobs that train: jobs.pretrain, jobs.align and jobs.pretrain_prior. Omit it.")
    if "--plan" in given and "--print-config" in given:
        raise ConfigError("--plan and --print-config cannot be combined. Keep one of them.")
    if "--plan-gpu-memory" not in given:
        return None
    if "--plan" not in given:
        raise ConfigError("--plan-gpu-memory has no effect without --plan. Omit it, or add --plan.")
    text = given["--plan-gpu-memory"]
    try:
        memory = float(text)
    except ValueError:
        memory = 0.0
    if not 0 < memory < float("inf"):
        raise ConfigError(f"--plan-gpu-memory must be a GPU's memory in GB, more than 0; got {text!r}.")
    return memory


def _extra_help(offers: Offers[Any]) -> str:
    """The --help text of the flags that are not fields of the config."""
    lines = [
        "Besides the flags below: --config FILE (YAML or JSON) sets them, and --print-config prints all of them as "
        "JSON."
    ]
    if offers.presets:
        lines.append(f"--preset NAME sets them as well; the presets are {', '.join(offers.presets)}.")
    if offers.plan:
        lines.append(
            "--plan prints memory, FLOPs and steps/s without training; --plan-gpu-memory GB plans for a GPU of "
            "another machine."
        )
    return "\n".join(lines)


def _command() -> str | None:
    """The command that the user typed before the flags, if it is known."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec else None


@FLAGS.primitive_rule
def _path_or_uri(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path and not str(getattr(info.type, "__module__", "")).startswith("upath."):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URI",
        instance_from_str=lambda words: storage.to_path(words[0]),
        is_instance=lambda value: isinstance(value, Path) or storage.is_remote(value),
        str_from_instance=lambda path: [str(path)],
    )
