"""Keeps a crash to what causes it."""

from contextlib import suppress
from typing import Callable, Sequence, TypeVar

from tap_ray.errors import TapRayError

MAX_FIRST_CRASHES = 8
"""Number of episodes that crash alone, before any has been finished, until what they share is taken for the cause. That
a batch crashes proves nothing, because one robot is enough for it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolated(
    batch: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    crashed: Callable[[Item, Exception], Result],
    *,
    restart: Callable[[], None],
) -> list[Result]:
    """Run a batch; if it crashes, run its items one by one, so that only those that crash alone are lost.

    A user's mistake (TapRayError) is raised at once, because it would affect every item. Numbers that are not finite
    come from a simulator, an explorer or a policy that diverged and count as a crash.

    Args:
        batch: runs some items together.
        items: what to run.
        crashed: the result of an item that crashes alone.
        restart: called after each crash: ends the simulators; the next batch starts new ones.

    Returns:
        The batch's result, or one for each item.
    """
    try:
        return [batch(items)]
    except TapRayError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a simulator raises is a result with a reason
        with suppress(Exception):  # a crashed simulator may not even close
            restart()
        if len(items) == 1:
            return [crashed(items[0], error)]
    return [result for item in items for result in isolated(batch, [item], crashed, restart=restart)]


def never_works(crashes: int, last: str, cure: str) -> TapRayError:
    """The error if all of the first episodes crashed.

    Args:
        crashes: their number.
        last: what the last one raised.
        cure: what the user can do.
    """
    return TapRayError(f"All of the first {crashes} episodes crashed, each also alone; the last one: {last}. {cure}")
