"""What the driver knows of a finished attempt, and where it passes its episode."""

import pickle
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Protocol, Sequence

from tap_ray.dataset.writer import DatasetWriter
from tap_ray.play.novelty import VisitCounts

Block = tuple[tuple[int, ...], ...]
"""Batches of attempts."""
Progress = Callable[[], Mapping[str, Any]]
"""What a dataset remembers of the attempts so far."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an episode is."""

    block: Block
    """What was played in one go."""
    episodes: Any
    """Its pickled episodes, or a reference to them."""
    position: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the driver needs to know of an attempt."""

    attempt: int
    kept: bool = False
    reason: str = ""
    """Why it was not kept."""
    steps: int = 0
    contact_steps: int = 0
    """With a finger on an object."""
    task: str = ""
    visits: VisitCounts = field(default_factory=dict)
    """What it adds to the novelty memory."""
    num_bytes: int = 0
    """Of its pickled episode."""
    source: Source | None = field(default=None, repr=False, compare=False)

    def same_as(self, other: "Played") -> bool:
        """Whether two plays of one attempt gave the same, as far as this tells."""
        return replace(self, reason="", num_bytes=0) == replace(other, reason="", num_bytes=0)


class Sink(Protocol):
    """Where played episodes go, in order. An ActorPool polls it (`actor_pool.SideTask`)."""

    @property
    def by_reference(self) -> bool:
        """Whether fleets leave the episodes where they were played."""
        ...

    @property
    def num_episodes(self) -> int:
        """Of the dataset, with those that wait here."""
        ...

    @property
    def backlog(self) -> int:
        """Episodes whose turn has come, and that are not written."""
        ...

    @property
    def full(self) -> bool:
        """Whether fleets should wait."""
        ...

    @property
    def oldest(self) -> int | None:
        """First attempt that may have to be played again."""
        ...

    def futures(self) -> Sequence[Any]:
        """Futures of what is being written."""
        ...

    def poll(self) -> Sequence[Block]:
        """Do what is due; returns blocks that must be played again."""
        ...

    def arrived(self, played: Played) -> None:
        """Count what has been played, and may have to wait for its turn."""
        ...

    def wants_again(self, attempt: int) -> bool:
        """Whether this attempt's episode was lost."""
        ...

    def restore(self, played: Played) -> None:
        """Take what was played again."""
        ...

    def add(self, played: Played, progress: Progress) -> None:
        """Write the next episode."""
        ...

    def finish(self, progress: Progress) -> Sequence[Block]:
        """Commit everything; returns blocks that must be played again first: then call it anew."""
        ...

    def salvage(self, progress: Progress | None) -> None:
        """Commit what can be committed now; None: full files only. Raises nothing."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class InDriver:
    """The driver writes."""

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

    def salvage(self, progress: Progress | None) -> None: ...  # the writer commits what it has when it is closed

    def close(self) -> None: ...
