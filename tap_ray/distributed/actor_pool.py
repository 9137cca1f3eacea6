"""A supervised pool of Ray actors, each a fleet of robots, for play and evaluation: lost work is done again.

    items -> [ fleet 0 | fleet 1 | ... ] -> results, as they come
                  |
                  '-- died? hung?  faults.py says what was lost:
                        its machine, the network     the item is done again, as often as needed
                        memory (Ray's monitor)       again with fewer fleets; an error if no item completes any more
                        the process, or it hangs     again in parts; a part that kills MAX_ITEM_DEATHS processes
                                                     while it runs alone in them fails with a reason

Items must be pure: done twice, they give the same result. A fleet gets items only when it has reported that it is
ready, so a fleet for which the cluster has no resources blocks no other. An idle fleet is pinged before each item, so
that only deaths after the item has begun count against it.
"""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Hashable, Iterable, Iterator, NamedTuple, Protocol, Sequence

import ray
from ray.exceptions import RayTaskError
from tqdm import tqdm

from tap_ray.distributed import faults, gauges, placement
from tap_ray.distributed.faults import Death, Kind, Timeouts
from tap_ray.errors import TapRayError

MAX_ITEM_DEATHS = 3
"""Number of processes that an item may end while it runs alone in them (on machines that stay alive) before it is given
up."""
MAX_START_DEATHS = 4
"""Number of fleets in a row that may die before one is ready (on machines that stay alive)."""
GRACE_S = 20.0
"""A machine that goes down may end its processes first. Before an item is blamed for the end of its process, the death
of the machine is waited for this long, s."""
MAX_MEMORY_KILLS = 5
"""Number of processes that Ray's memory monitor may end in a row without a completed item in between, not counting the
first of each fleet."""
TICK_S = 0.5
"""Longest wait for a result before time limits and dead fleets are checked again, s."""
REPORT_WAITING_S = 30.0
"""How often a pool without any fleet reports what it waits for, s."""


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """Returned instead of a result: the item ended every process that it ran alone in."""

    reason: str


class SideTask(Protocol):
    """Work that continues beside the pool and is polled between the pool's results."""

    def futures(self) -> Sequence[Any]:
        """Futures that the pool waits for together with its own."""
        ...

    def poll(self) -> Sequence[Hashable]:
        """Do what is due now; returns items that must be done again."""
        ...


class _Call(NamedTuple):
    future: Any
    item: Any = None
    """The item; None for `ready` and for a ping."""
    second_ref: Any = None
    """A reference to the second part of its result."""


@dataclass(kw_only=True)
class _Fleet:
    actor: Any
    calls: deque[_Call]
    """Calls in the order in which they run."""
    since_s: float
    """When the first call began, by the pool's clock."""
    ready: bool = False

    @property
    def items(self) -> int:
        """Number of items that it was given and has not returned."""
        return sum(call.item is not None for call in self.calls)


@dataclass(kw_only=True)
class ActorPool:
    """The fleets and their current calls. `map_unordered` may be called once; then the fleets are gone."""

    start: Callable[[], Any]
    """Starts an actor with methods `ready()` and `run(item, ...)`; if that returns two values, `map_unordered`
    yields the first and a reference to the second, which stays where it was made."""
    num_fleets: int
    split: Callable[[Any], Sequence[Hashable]]
    """Splits an item that ended a process into parts that are done alone; empty if it cannot be split."""
    needs: placement.Needs
    """Cluster resources that a fleet reserves."""
    ahead: int = 0
    """Number of items that a fleet is given ahead of the one it works on, while many are left."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        self._fleets: list[_Fleet] = []
        self._size = self.num_fleets  # fewer while memory is short
        self._queue: deque[Any] = deque()
        self._retries: list[Any] = []
        self._deaths: dict[Any, list[Death]] = {None: []}  # None: the death of a fleet that was not ready
        self._suspects: list[tuple[float, Any]] = []
        self._durations_s: deque[float] = deque(maxlen=200)
        self._memory_kills = self._done_since_kill = 0
        self._clock_s, self._ticked_s = 0.0, time.monotonic()
        self._spawn_after_s = self._reported_s = 0.0

    def map_unordered(
        self,
        items: Iterable[Hashable],
        *,
        may_begin: Callable[[Any], bool] = lambda item: True,
        extra: Callable[[Any], tuple[Any, ...]] = lambda item: (),
        side_task: SideTask | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each item, or its parts, with its result or a GivenUp, in the order of completion.

        Args:
            items: the work, in the order in which it is begun.
            may_begin: whether an item can be done yet; asked again after each result.
            extra: computes further arguments of `run` for an item.
            side_task: other work that is polled in between.

        Raises:
            TapRayError: a fleet raised it, fleets die before they are ready, or there is too little memory.
        """
        self._queue.extend(items)
        self._may_begin, self._extra = may_begin, extra
        try:
            while self._queue or self._retries or self._suspects or self._working():
                self._retries += side_task.poll() if side_task else []
                self._spawn()
                self._submit()
                for fleet in self._wait_for_answers(side_task.futures() if side_task else []):
                    yield from self._take_result(fleet)
                yield from self._check_deadlines()
        finally:
            for fleet in self._fleets:
                ray.kill(fleet.actor)

    def _spawn(self) -> None:
        left = len(self._queue) + len(self._retries) + len(self._suspects)
        while len(self._fleets) < min(self._size, left + self._working()) and self._clock_s >= self._spawn_after_s:
            actor = self.start()
            call = _Call(actor.ready.remote())
            self._fleets.append(_Fleet(actor=actor, calls=deque([call]), since_s=self._clock_s))

    def _working(self) -> int:
        """The fleets that have an item."""
        return sum(fleet.items > 0 for fleet in self._fleets)

    def _submit(self) -> None:
        """Give items to idle fleets, and then ahead of time while there are enough for all fleets."""
        for depth in range(1 + self.ahead):
            for fleet in self._fleets:
                if not fleet.ready or fleet.items != depth or (depth and len(self._queue) < self.num_fleets):
                    continue
                item = self._next_item()
                if item is None:
                    return
                if not fleet.calls:
                    fleet.since_s = self._clock_s
                    fleet.calls.append(_Call(fleet.actor.__ray_ready__.remote()))
                given = fleet.actor.run.remote(item, *self._extra(item))
                future, there = given if isinstance(given, list) else (given, None)
                fleet.calls.append(_Call(future, item, there))

    def _next_item(self) -> Any:
        for place, item in enumerate(self._retries):
            if self._may_begin(item):
                return self._retries.pop(place)
        return self._queue.popleft() if self._queue and self._may_begin(self._queue[0]) else None

    def _wait_for_answers(self, others: Sequence[Any]) -> list[_Fleet]:
        """The fleets whose first call ended within a tick and before the first of `others`."""
        waiting = {fleet.calls[0].future: fleet for fleet in self._fleets if fleet.calls}
        futures, ended = [*waiting, *others], []
        if futures:
            ended, _ = ray.wait(futures, num_returns=1, timeout=TICK_S)
            if ended:  # all finished calls, so that the cost of a turn, which grows with the fleets, is shared
                ended, _ = ray.wait(futures, num_returns=len(futures), timeout=0)
        else:
            time.sleep(TICK_S)
        # A driver that was stopped for a while (Ctrl-Z, a closed lid) has no reason to suspect its fleets.
        now = time.monotonic()
        self._clock_s += min(now - self._ticked_s, 10 * TICK_S)
        self._ticked_s = now
        return [waiting[future] for future in ended if future in waiting]

    def _take_result(self, fleet: _Fleet) -> Iterator[tuple[Any, Any]]:
        """The result of a call that has ended, if it has one."""
        future, item, there = fleet.calls[0]
        try:
            result = ray.get(future)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, TapRayError) else error) from None
        except faults.LOST as error:
            self._on_actor_death(fleet, faults.death_of(fleet.actor, error))
            return
        fleet.calls.popleft()
        duration_s, fleet.since_s = self._clock_s - fleet.since_s, self._clock_s
        if item is None:
            if not fleet.ready:
                self._deaths[None].clear()
            fleet.ready = True
            return
        self._durations_s.append(duration_s)
        self._memory_kills = 0
        self._done_since_kill += 1
        if self._done_since_kill > len(self._fleets):  # there are resources again
            self._size, self._done_since_kill = min(self.num_fleets, self._size + 1), 0
        yield item, result if there is None else (result, there)

    def _on_actor_death(self, fleet: _Fleet, death: Death) -> None:
        """Handle the loss of a fleet: queue its items again, and record the cause."""
        self._fleets.remove(fleet)
        gauges.count("tap_processes_lost", kind=death.kind.value)
        ray.kill(fleet.actor)  # it may only be unreachable
        running, *queued = [call.item for call in fleet.calls]
        self._retries += queued
        if death.kind.own_fault:
            if running is not None or not fleet.ready:  # otherwise it died while idle
                self._count_death(running, death)
            return
        self._retries += [running] if running is not None else []
        if death.kind is Kind.MEMORY:
            self._shrink(death)

    def _count_death(self, item: Any, death: Death) -> None:
        parts = self.split(item) if item is not None else []
        if parts:
            self._retries += parts
            return
        deaths = self._deaths.setdefault(item, [])
        deaths.append(death)
        if len(deaths) < (MAX_START_DEATHS if item is None else MAX_ITEM_DEATHS):
            self._retries += [item] if item is not None else []
        else:
            on_this_node = death.node == ray.get_runtime_context().get_node_id()
            self._suspects.append((self._clock_s + (0.0 if on_this_node else GRACE_S), item))

    def _check_deadlines(self) -> Iterator[tuple[Any, Any]]:
        """Handle deadlines: overdue fleets, and suspects whose machine is still alive."""
        limit_s = self._limit_s()
        for fleet in [fleet for fleet in self._fleets if fleet.calls]:
            late = self._clock_s - fleet.since_s > (limit_s if fleet.ready else self.timeouts.first_s)
            if late and not fleet.ready and not faults.placed(fleet.actor):
                fleet.since_s = self._clock_s  # it has not been placed so far
            elif late:
                self._on_actor_death(fleet, faults.hang_of(fleet.actor, self._clock_s - fleet.since_s))
        due = [item for until_s, item in self._suspects if until_s <= self._clock_s]
        self._suspects = [(until_s, item) for until_s, item in self._suspects if until_s > self._clock_s]
        for item in dict.fromkeys(due):
            yield from self._retry_or_give_up(item)
        self._report_waiting()

    def _limit_s(self) -> float:
        if not self._durations_s:
            return self.timeouts.first_s
        return max(self.timeouts.least_s, self.timeouts.factor * statistics.median(self._durations_s))

    def _retry_or_give_up(self, item: Any) -> Iterator[tuple[Any, Any]]:
        """Give an item up, unless the death of a machine explains the deaths of its processes."""
        deaths = [death for death in self._deaths[item] if faults.node_alive(death.node)]
        self._deaths[item] = deaths
        if item is None:
            if len(deaths) >= MAX_START_DEATHS:
                raise TapRayError(
                    f"{len(deaths)} fleets in a row died while they started (out of memory?): {deaths[-1].reason}"
                )
        elif len(deaths) < MAX_ITEM_DEATHS:
            self._retries.append(item)
        else:
            did = "hung" if deaths[-1].kind is Kind.HANG else "died"
            yield item, GivenUp(reason=f"its process {did} {len(deaths)} times: {deaths[-1].reason}")

    def _shrink(self, death: Death) -> None:
        """Continue with fewer fleets after a pause, or raise an error if no item completes any more."""
        self._memory_kills += 1
        self._done_since_kill = 0
        self._size = max(1, len(self._fleets))
        self._spawn_after_s = self._clock_s + min(30.0, self.timeouts.memory_s * 2 ** min(self._memory_kills - 1, 10))
        if self._memory_kills >= self.num_fleets + MAX_MEMORY_KILLS:
            raise TapRayError(
                f"Out of memory: Ray's memory monitor has ended {self._memory_kills} processes in a row, and no work "
                "was completed in between. Use fewer --fleets or fewer --robots-per-fleet, end other programs on the "
                "machine, or use a machine with more memory. All completed work is kept, and the same command resumes "
                f"from there. Ray reports: {death.reason[:300]}"
            )

    def _report_waiting(self) -> None:
        """Report what the pool waits for, every REPORT_WAITING_S while the cluster has resources for no fleet at
        all."""
        if self._clock_s - self._reported_s < REPORT_WAITING_S:
            return
        self._reported_s = self._clock_s
        if any(fleet.ready or faults.placed(fleet.actor) for fleet in self._fleets):
            return
        if self._fleets and not self.needs.fit():  # else their processes are starting
            tqdm.write(self.needs.waiting(len(self._fleets)))
