"""Loads a user's own policy for evaluation: `module:Class`, any class with `reset` and `act` (types.Policy).

    class Down:                                       # in my_policy.py, in the folder the job is started from
        def reset(self, obs, info, seeds): ...        # a new episode of N robots
        def act(self, obs, info): ...                 # (N, A) in the units of the robot's spec

A function or a class that takes two arguments gets the scene and the number of robots.
"""

import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tap_ray.config import digest
from tap_ray.errors import ConfigError
from tap_ray.plugins import Registry, load_reference
from tap_ray.types import EnvConfig, Policy

POLICIES: Registry[Any] = Registry("policy", {})
"""Policies of installed packages, by name; each is used like a user's own."""


def is_reference(text: str) -> bool:
    """Whether a --policy names a module and something in it."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


@dataclass(frozen=True)
class OwnPolicy:
    """Makes a user's policy in any process."""

    reference: str
    """module:name."""
    folder: str
    """Working directory of the job, where modules are also searched."""

    def __call__(self, scene: EnvConfig, num_robots: int) -> Policy:
        """A new policy for so many robots in a scene."""
        made = self._found()
        wants = [
            p for p in inspect.signature(made).parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL
        ]
        return made(scene, num_robots) if len(wants) == 2 else made()

    @property
    def code(self) -> str:
        """Digest of the module's source."""
        return digest(Path(inspect.getfile(self._found())).read_text())

    def _found(self) -> Any:
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        return load_reference(self.reference)


def installed_policy(name: str) -> OwnPolicy:
    """The policy that a package provides under this name; it is created once to check it.

    Raises:
        ConfigError: the package is broken (the message names it), or the object is not a policy.
    """
    POLICIES[name]
    return own_policy(POLICIES.reference(name))


def own_policy(reference: str) -> OwnPolicy:
    """The policy that --policy names; it is created once to check it.

    Raises:
        ConfigError: there is no such module or name, or the object is not a policy.
    """
    policy = OwnPolicy(reference, os.getcwd())
    name = reference.partition(":")[2]
    try:
        made = policy(EnvConfig(), 1)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--policy {reference}: {error}. Modules are searched in {policy.folder} and on PYTHONPATH."
        ) from None
    except AttributeError as error:
        raise ConfigError(f"--policy {reference}: {error}. Give a class or function of the module.") from None
    except TypeError as error:
        raise ConfigError(
            f"--policy {reference}: {error}. {name} is called without arguments, or with the scene (EnvConfig) and the "
            "number of robots."
        ) from None
    if missing := [each for each in ("reset", "act") if not callable(getattr(made, each, None))]:
        raise ConfigError(
            f"--policy {reference}: a policy needs reset(obs, info, seeds) and act(obs, info); {name} lacks "
            f"{' and '.join(missing)}."
        )
    return policy
