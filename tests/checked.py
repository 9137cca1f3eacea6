"""The type checker of the tests: the dtypes and shapes of arrays, and nothing else.

What a configuration may hold is tested where it is refused, with the message that a user reads.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which raises for an array that its jaxtyping annotation does not allow."""
    hints = function.__annotations__.items()
    function.__annotations__ = {name: hint for name, hint in hints if "jaxtyping" in f"{type(hint)} {hint!r}"}
    return beartype(function)
