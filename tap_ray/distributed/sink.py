"""Defines what the driver knows about a finished attempt, and where its episode is written."""

import pickle
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Protocol, Sequence

from tap_ray.dataset.writer import DatasetWriter
from tap_ray.play.novelty import VisitCounts

Block = tuple[tuple[int, ...], ...]
"""A block: batches of attempts."""
Progress = Callable[[], Mapping[str, Any]]
"""The progress that a dataset stores about the attempts so far."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an episode is."""

    block: Block
    """The attempts that were run together."""
    episodes: Any
    """Its pickled episodes, or a reference to them."""
    position: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the driver knows about a finished attempt."""

    attempt: int
    kept: bool = False
    reason: str = ""
    """Why it was not kept."""
    steps: int = 0
    contact_steps: int = 0
    """Number of steps in which a finger touches an object."""
    task: str = ""
    visits: VisitCounts = field(default_factory=dict)
    """What it adds to the novelty memory."""
    num_bytes: int = 0
    """Size of its pickled episode, bytes."""
    source: Source | None = field(default=None, repr=False, compare=False)

    def same_as(self, other: "Played") -> bool:
        """Whether two runs of one attempt gave the same result, as far as these fields tell."""
        return replace(self, reason="", num_bytes=0) == replace(other, reason="", num_bytes=0)


class Sink(Protocol):
    """Receives episodes in order and writes them. An ActorPool polls it (`actor_pool.SideTask`)."""

    @property
    def by_reference(self) -> bool:
        """Whether fleets keep the episodes in their node's object store."""
        ...

    @property
    def num_episodes(self) -> int:
        """Number of episodes of the dataset, including those that wait here."""
        ...

    @property
    def backlog(self) -> int:
        """Number of episodes that are next in order but not written yet."""
        ...

    @property
    def full(self) -> bool:
        """Whether fleets should wait before they begin further blocks."""
        ...

    @property
    def oldest(self) -> int | None:
        """First attempt that may have to be run again."""
        ...

    def futures(self) -> Sequence[Any]:
        """Futures of what is being written."""
        ...

    def poll(self) -> Sequence[Block]:
        """Do what is due; returns blocks that must be run again."""
        ...

    def arrived(self, played: Played) -> None:
        """Register an episode that may have to wait for its turn."""
        ...

    def wants_again(self, attempt: int) -> bool:
        """Whether this attempt's episode was lost."""
        ...

    def restore(self, played: Played) -> None:
        """Accept the episode of an attempt that was run again."""
        ...

    def add(self, played: Played, progress: Progress) -> None:
        """Write the next episode."""
        ...

    def finish(self, progress: Progress) -> Sequence[Block]:
        """Commit everything; returns blocks that must be run again first, after which it must be called again."""
        ...

    def commit_partial(self, progress: Progress | None) -> None:
        """Commit what can be committed now; with None full files only. Raises nothing."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class InDriver:
    """A sink in which the driver itself writes."""

    by_reference = full = False
    oldest: int | None = None
    backlog = 0

    def __init__(self, writer: DatasetWriter) -> None:
        self._writer = writer

    @property
    def num_episodes(self) -> int:
        return self._writer.appended

    def futures(self) -> list[Any]:
        return []

    def poll(self) -> list[Block]:
        return []

    def arrived(self, played: Played) -> None: ...

    def wants_again(self, attempt: int) -> bool:
        return False

    def restore(self, played: Played) -> None: ...

    def add(self, played: Played, progress: Progress) -> None:
        assert played.source is not None
        episode = pickle.loads(played.source.episodes[played.source.position])
        self._writer.append(replace(episode, index=self._writer.appended), progress())

    def finish(self, progress: Progress) -> list[Block]:
        self._writer.commit()
        return []

    def commit_partial(self, progress: Progress | None) -> None: ...  # the writer commits what it has when it is closed

    def close(self) -> None: ...
