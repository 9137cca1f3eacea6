"""Defines a check of a dataset: a number, a threshold with its reason, and a result in words.

good            the check found no problem
look at this    a person should look at it before a long training
not fit         for the use that it names
not known       the dataset lacks the data
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["good", "look at this", "not fit", "not known"]
MANY = 0.05
"""Share of episodes or steps above which something counts as frequent: one in twenty."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    kind: Kind
    text: str
    """The result in a sentence."""
    numbers: Mapping[str, Any]
    """The numbers as JSON values."""
    threshold: str
    """The threshold of "look at this", with its reason."""
    episodes: tuple[int, ...] = ()
    """Episodes to look at, the worst first."""
    why: Mapping[int, str] = field(default_factory=dict)
    """Episode -> what is special about it."""
    at: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Episode -> first frame to show of it, and one after the last; without it all of it is shown."""

    @property
    def result(self) -> str:
        """The result in words."""
        return self.text if self.kind == "good" else f"{self.kind}: {self.text}"


def counted(number: int, one: str, several: str) -> str:
    """A count in words, e.g. "1 episode is", "2 episodes are"."""
    return f"{number} {one if number == 1 else several}"


def most(episodes: Sequence[Any], count: Callable[[Any], int], num: int = 3) -> tuple[int, ...]:
    """Indices of the episodes with the greatest counts above 0."""
    return tuple(each.index for each in sorted(episodes, key=lambda each: -count(each))[:num] if count(each) > 0)
