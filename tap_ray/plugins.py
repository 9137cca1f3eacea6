"""Finds robots, tasks, explorers, experts, simulators and policies by name: built-in ones, and those of installed
packages (entry points).

A package that provides a robot declares it in its pyproject.toml (docs/how-to/robot.md):

    [project.entry-points."tap_ray.robots"]
    stubby = "my_robot.robot:STUBBY"

Names are known without importing anything; a package is imported when one of its names is used. Every process finds
packages by itself, so the package must be installed on the machines of all workers.
"""

import importlib
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Iterator, Mapping, TypeVar

from tap_ray.errors import ConfigError, nearest

T = TypeVar("T")
REGISTRIES: dict[str, "Registry[Any]"] = {}
"""Kind, e.g. "robot" -> its registry; those whose modules have been imported."""


class Registry(Mapping[str, T], Generic[T]):
    """Name -> object. Built-in names take precedence; the objects of packages are loaded when they are used."""

    def __init__(self, kind: str, built_in: Mapping[str, T], *, expected: type | None = None) -> None:
        """A registry of the entry points of the group `tap_ray.<kind>s`.

        Args:
            kind: singular name of the kind, for messages.
            built_in: name -> built-in object.
            expected: the type of each object; None: any callable.
        """
        self.kind, self.built_in, self._expected = kind, dict(built_in), expected
        REGISTRIES[kind] = self

    @property
    def group(self) -> str:
        """Name of its group of entry points."""
        return f"tap_ray.{'policies' if self.kind == 'policy' else self.kind + 's'}"

    def __getitem__(self, name: str) -> T:
        """The object called `name`.

        Raises:
            ConfigError: there is no such name (the message names the nearest), two packages use it, or its package is
                broken.
        """
        found = self._installed().get(name, ())
        if len(found) + (name in self.built_in) > 1:
            owners = ["tap_ray"] * (name in self.built_in) + [package_of(each) for each in found]
            raise ConfigError(
                f"{' and '.join(owners)} each have the {self.kind} {name!r}. Rename one, or uninstall its package."
            )
        if name in self.built_in:
            return self.built_in[name]
        if not found:
            raise ConfigError(f"Unknown {self.kind} {name!r}. {nearest(name, self)}")
        return self._loaded(found[0])

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._installed()

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from (name for name in self._installed() if name not in self.built_in)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def package(self, name: str) -> str:
        """Name and version of the package that provides `name`; empty for built-in and unknown names."""
        found = () if name in self.built_in else self._installed().get(name, ())
        return package_of(found[0]) if found else ""

    def reference(self, name: str) -> str:
        """ "module:attribute" of a name from an installed package."""
        return self._installed()[name][0].value

    def _installed(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        found: dict[str, tuple[EntryPoint, ...]] = {}
        for point in _entry_points(tuple(sys.path)).select(group=self.group):
            found[point.name] = (*found.get(point.name, ()), point)
        return found

    def _loaded(self, point: EntryPoint) -> T:
        about = f"The {self.kind} {point.name!r} of the package {package_of(point)} ({point.value})"
        try:
            loaded = point.load()
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{about} cannot be loaded: {cause}. Fix that package, or uninstall it.") from error
        if not (isinstance(loaded, self._expected) if self._expected else callable(loaded)):
            want = f"a {self._expected.__name__}" if self._expected else "something that can be called"
            raise ConfigError(f"{about} must be {want}; got {loaded!r}. Fix that package, or uninstall it.")
        return loaded


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that provides an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def listing() -> str:
    """The available names for --help, one line per kind, with the packages that provide them."""
    lines = [
        f"{registry.group.removeprefix('tap_ray.')}: " + ", ".join(_named(registry, name) for name in registry)
        for registry in REGISTRIES.values()
        if len(registry)
    ]
    return "\n\n".join(["Known names, including those of installed packages:", *lines]) if lines else ""


def _named(registry: "Registry[Any]", name: str) -> str:
    package = registry.package(name)
    return f"{name} ({package})" if package else name


def load_reference(reference: str) -> Any:
    """Import the object of a reference "module:name".

    Raises:
        ImportError, AttributeError: there is no such module, or it has no such name.
    """
    module, _, name = reference.rpartition(":")
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=16)
def _entry_points(path: tuple[str, ...]) -> Any:
    """The entry points of all groups, read once, for `select(group=...)` (Python 3.11 and 3.12 differ in the type).

    Args:
        path: the current search path of packages.
    """
    return entry_points()
