"""Help texts of flags: the docstrings of a config's fields, as paragraphs.

tyro 1.0 would keep each line break that a docstring has in the source, wherever that is in the user's terminal.
"""

import re
import typing
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

from docstring_parser import parse_from_object


def set_help(config_type: type) -> None:
    """Give the fields of a config, and of the configs in it, the help text that tyro prints."""
    texts: dict[str, str] = {}
    for cls in reversed(config_type.__mro__[:-1]):
        texts |= {each.arg_name: each.description or "" for each in parse_from_object(cls).params}
    hints = typing.get_type_hints(config_type)
    for field in fields(config_type):
        if field.name in texts:
            field.metadata = MappingProxyType({**field.metadata, "help": paragraphs(texts[field.name])})
        for inner in _configs(hints[field.name]):
            set_help(inner)


def paragraphs(docstring: str) -> str:
    """The text with single line breaks turned into spaces; empty lines stay."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", docstring.strip()))


def _configs(hint: Any) -> list[type]:
    """Dataclasses in a type, e.g. `Places` in `Places | None`."""
    found = [inner for part in typing.get_args(hint) for inner in _configs(part)]
    return [hint, *found] if isinstance(hint, type) and is_dataclass(hint) else found
