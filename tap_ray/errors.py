"""Defines the errors that users can meet: one base class with few subclasses. All pickle, so workers can send them to
the driver."""

import re
import sys
from difflib import get_close_matches
from typing import Any, Callable, Iterable

USER = re.compile(r"(?<=://)[^\s/@'\"]*(?:@[^\s/@'\"]*)*@")
SECRET = re.compile(r"(?i)([?&](?:password|passwd|pwd|token|secret|access_key)=)[^&\s'\"]+")


def without_credentials(text: str) -> str:
    """Remove `user:password@` and passwords in queries from the URIs of a text; applied to everything that is
    printed."""
    return SECRET.sub(r"\1***", USER.sub("", text))


class TapRayError(ValueError):
    """Root of every error that a user can cause and fix. A job ends with its message and exit status 2.

    Credentials are removed from its message.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(without_credentials(each) if isinstance(each, str) else each for each in args))


class ConfigError(TapRayError):
    """A flag, YAML key or combination of values that cannot work."""


class SpecError(TapRayError):
    """Two sides of an interface disagree on order, unit, frame, range or rate."""


class DataError(TapRayError):
    """A dataset that is missing, truncated, of another version, or that breaks a rule of its format."""


class CheckpointError(TapRayError):
    """A checkpoint or run folder that is missing, incomplete, or made by something that does not fit."""


class StorageError(TapRayError):
    """The disk or the object store refused: full, read-only, or gone."""


def exit_status(work: Callable[[], object]) -> int:
    """Do the work of a small command: 0, or 2 after an error that its user can fix, which is printed in one line."""
    try:
        work()
    except (TapRayError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def nearest(name: str, known: Iterable[str]) -> str:
    """List the options, and the nearest one if there is any; ends every "unknown X" message."""
    options = sorted(known)
    match = get_close_matches(name, options, n=1, cutoff=0.4)
    hint = f"Did you mean {match[0]!r}? " if match else ""
    return f"{hint}Known: {', '.join(options)}."
