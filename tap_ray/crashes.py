"""Keeps a crash to what causes it, and tells it from a simulator or a policy that never works."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Sequence, TypeVar

from tap_ray.errors import TapRayError

MAX_FIRST_CRASHES = 8
"""Number of episodes that crash alone, before a process has finished any, until what they share is taken for the
cause. That a batch crashes proves nothing, because one robot is enough for it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class CrashGuard:
    """Runs the batches of one process."""

    restart: Callable[[], None]
    """Called after a crash: ends the simulators; the next batch starts new ones."""
    cure: str
    """What the user can do if no episode at all can be finished; the end of the message."""
    works: bool = False
    """Whether a batch has been finished."""
    crashes: int = 0
    """Number of episodes that have crashed alone."""

    def run(
        self,
        batch: Callable[[Sequence[Item]], Result],
        items: Sequence[Item],
        crashed: Callable[[Item, Exception], Result],
    ) -> list[Result]:
        """Run a batch; if it crashes, run its items one by one, so that only those that crash alone are lost.

        A user's mistake (TapRayError) is raised at once, because it would affect every item. Numbers that are not
        finite come from a simulator, an explorer or a policy that diverged and count as a crash.

        Args:
            batch: runs some items together.
            items: what to run.
            crashed: the result of an item that crashes alone.

        Returns:
            The batch's result, or one for each item.

        Raises:
            TapRayError: nothing has been finished in this process, and MAX_FIRST_CRASHES items have crashed alone.
        """
        try:
            result = batch(items)
            self.works = True
            return [result]
        except TapRayError:
            raise
        except Exception as error:
            with suppress(Exception):  # a crashed simulator may not even close
                self.restart()
            if len(items) == 1:
                self.crashes += 1
                if self.crashes >= MAX_FIRST_CRASHES and not self.works:
                    raise TapRayError(
                        f"All of the first {self.crashes} episodes crashed, also alone; the last one with "
                        f"{type(error).__name__}: {error}. {self.cure}"
                    ) from error
                return [crashed(items[0], error)]
        return [result for item in items for result in self.run(batch, [item], crashed)]
