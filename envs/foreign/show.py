"""Prints what an environment returns, to write its adapter: `python -m envs.foreign.show
gymnasium_robotics:FetchPush-v4`."""

import sys
from argparse import ArgumentParser
from typing import Any, Iterator, Mapping

import numpy as np

from envs.foreign.adapter import Adapter, Numbers, read_adapter
from envs.foreign.env import foreign_env
from tap_ray.errors import TapRayError, exit_status


def columns(values: Any, name: str = "") -> Iterator[str]:
    """A line for each column of an observation or info."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from columns(value, f"{name}.{key}" if name else str(key))
    else:
        array = np.asarray(values)
        shown = np.array2string(array.reshape(-1)[:8], precision=3, suppress_small=True) if array.size <= 64 else "..."
        yield f"  {name or '(itself)'}  {array.dtype} {array.shape}  {shown}"


def show(where: str) -> str:
    """Text: observation, action, info and, for an adapter, what it does not define."""
    lines: list[str] = []
    try:
        adapter = read_adapter(where)
        lines += ["not defined by the adapter:", *(f"  {line}" for line in adapter.missing)]
    except TapRayError:
        nothing = Numbers(slots=("dx",))
        adapter = Adapter(env=where, robot="unknown", action=(nothing,), state=(nothing,))
    env = foreign_env(adapter)
    seen, info = env.reset(seed=0)
    space: Any = env.action_space
    _, _, _, _, later = env.step(np.zeros(space.shape, space.dtype))
    env.close()
    return "\n".join([f"action: {space}", "observation:", *columns(seen), "info:", *columns({**info, **later}), *lines])


def main() -> int:
    """Run the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m envs.foreign.show",
        description="Print the action, the observation and the info of an environment, to write its adapter.",
    )
    parser.add_argument(
        "env", help="Gymnasium id (module:Id-v0 imports the module first), or a YAML file of an adapter"
    )
    flags = parser.parse_args()
    return exit_status(lambda: print(show(flags.env)))


if __name__ == "__main__":
    sys.exit(main())
