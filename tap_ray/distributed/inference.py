"""Computes one copy of a policy for many robots: requests that wait at the same time share a forward pass.

    fleet 0 (torch-free) --inputs--> |       |
    fleet 1 (torch-free) --inputs--> | queue | --one pass--> each fleet's chunks        evaluation: `Inference`
    robot's session      --input---> |       |                                          serving: `serve.Network`

Chunks are a pure function of their inputs, and fleets keep the state of their episodes. So if the process is lost, Ray
restarts it, the fleets send their requests again, and their episodes continue. Requests in one forward pass change each
other's last bits. If a forward pass raises an error, its requests are computed again one by one, so that only the
request that causes the error fails. If the process dies, each fleet sends its lost request again with the demand to
compute it alone, and is told when that begins, so that only a request that ends the process counts its deaths.
"""

import asyncio
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, AsyncIterator, Iterator, Sequence

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from tqdm import tqdm

from tap_ray.distributed import placement
from tap_ray.errors import TapRayError
from tap_ray.evaluate.episodes import MakePolicy
from tap_ray.evaluate.settings import InferenceConfig
from tap_ray.models.chunk_buffer import ChunkedPolicy, ChunkingSpec, ComputeChunks, PolicyInput
from tap_ray.types import EnvConfig, Policy

ANSWER_S = 300.0
"""Longest wait of a fleet for an answer, and for a lost process to be restarted with the policy loaded, s."""
INFERENCE_TIMEOUT_S = 3 * ANSWER_S
"""Lower limit of the time that such a fleet may take for a chunk, so that it is not mistaken for a hanging one, s."""
RETRY_S = 0.2
"""Pause before a request is sent again, s."""
REPORT_S = 30.0
"""How often the driver reports that it waits for the processes to start, s."""
MAX_DEATHS = 3
"""Number of processes that one request may end while it is computed alone."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    inputs: Sequence[PolicyInput]
    answer: "asyncio.Future[np.ndarray]"
    since_s: float


class Batcher:
    """Collects requests into batches, and computes one batch after the other in another thread."""

    def __init__(self, compute: ComputeChunks, *, batch: int, window_s: float, together: bool = True) -> None:
        """
        Args:
            compute: the network.
            batch: largest number of inputs in one pass; a single request may have more.
            window_s: how long the first request of a pass waits for others, s.
            together: False computes each request separately, so that its bits do not depend on other requests.
        """
        self._compute, self._batch, self._window_s, self._together = compute, batch, window_s, together
        self._queue: deque[_Request] = deque()
        self._turn, self._more = asyncio.Lock(), asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        """(N, H, A) chunks for the N inputs of a request, computed together with other requests."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(inputs=inputs, answer=answer, since_s=time.monotonic()))
        self._more.set()
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await answer

    async def alone(self, inputs: Sequence[PolicyInput]) -> AsyncIterator[np.ndarray | None]:
        """Compute a request separately: yields None when its computation begins, then the chunks."""
        async with self._turn:
            yield None
            yield await asyncio.to_thread(self._compute, inputs)

    async def _work(self) -> None:
        while self._queue:
            await self._gather()
            async with self._turn:
                requests = [request for request in self._take() if not request.answer.done()]  # else cancelled
                inputs = [request.inputs for request in requests]
                found = await asyncio.to_thread(self._answers, inputs) if inputs else []
            for request, value in zip(requests, found, strict=True):
                if request.answer.done():
                    continue
                if isinstance(value, Exception):
                    request.answer.set_exception(value)
                else:
                    request.answer.set_result(value)

    async def _gather(self) -> None:
        """Wait until a batch is full, or its first request has waited for the window."""
        until_s = self._queue[0].since_s + self._window_s
        while self._together and sum(len(request.inputs) for request in self._queue) < self._batch:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), left_s)
            except TimeoutError:
                return

    def _take(self) -> list[_Request]:
        taken = [self._queue.popleft()]
        num = len(taken[0].inputs)
        while self._together and self._queue and num + len(self._queue[0].inputs) <= self._batch:
            taken.append(self._queue.popleft())
            num += len(taken[-1].inputs)
        return taken

    def _answers(self, requests: Sequence[Sequence[PolicyInput]]) -> list[np.ndarray | Exception]:
        try:
            found = self._compute([one for inputs in requests for one in inputs])
            return [*np.split(found, np.cumsum([len(inputs) for inputs in requests])[:-1])]
        except Exception as error:  # noqa: BLE001 any error is the answer to the request that causes it
            if len(requests) == 1:
                return [error]
        return [answer for inputs in requests for answer in self._answers([inputs])]


class Inference:
    """The process that computes the policy of several fleets (a Ray actor)."""

    def __init__(self, make_policy: Sequence[Any], scene: EnvConfig, config: InferenceConfig) -> None:
        """`make_policy` contains a reference to a `MakePolicy`; Ray warns if the reference itself is an argument."""
        self._make_policy, self._scene, self._policy = make_policy[0], scene, None
        self._loading = threading.Lock()
        window_s = config.window_ms / 1e3
        self._batcher = Batcher(self._compute, batch=config.batch, window_s=window_s, together=window_s > 0)

    async def ready(self) -> ChunkingSpec:
        """Load the policy; returns the sizes of its chunks."""
        return (await asyncio.to_thread(self._load)).chunking

    async def chunks(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        """See `Batcher.__call__`."""
        return await self._batcher(inputs)

    async def chunks_alone(self, inputs: Sequence[PolicyInput]) -> AsyncIterator[np.ndarray | None]:
        """See `Batcher.alone`."""
        await asyncio.to_thread(self._load)
        async for each in self._batcher.alone(inputs):
            yield each

    def _compute(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        return self._load().chunks(inputs)

    def _load(self) -> Any:
        """The policy, loaded on first use, because `ready` is not called again after a restart."""
        with self._loading:
            if self._policy is None:
                make_policy: Any = ray.get(self._make_policy)
                self._policy = make_policy(self._scene, 1)
        return self._policy


@dataclass(frozen=True, kw_only=True)
class SharedPolicy:
    """Makes a fleet's policy, which another process computes; it pickles and does not need torch."""

    actor: Any
    """An `Inference`."""
    chunking: ChunkingSpec

    def __call__(self, scene: EnvConfig, num_robots: int) -> Policy:
        """The policy of a fleet."""
        return ChunkedPolicy(self.chunking, self.chunks)

    def chunks(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        """(N, H, A) chunks for a fleet's inputs.

        Raises:
            TapRayError: the process was lost and not restarted in time, or the policy refuses the inputs.
            RuntimeError: these inputs ended MAX_DEATHS processes.
        """
        try:
            answer: Any = ray.get(self.actor.chunks.remote(inputs), timeout=ANSWER_S)
            return answer
        except RayTaskError as error:
            raise _cause(error) from None
        except GetTimeoutError:
            ray.kill(self.actor, no_restart=False)
        except RayActorError:
            pass
        return self._after_a_loss(inputs)

    def _after_a_loss(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        deaths, since_s, reason = 0, time.monotonic(), ""
        while time.monotonic() - since_s < ANSWER_S:
            begun = False
            try:
                stream = self.actor.chunks_alone.options(num_returns="streaming").remote(inputs)
                while True:
                    if not ray.wait([stream], timeout=ANSWER_S)[0]:
                        ray.kill(self.actor, no_restart=False)
                    answer: Any = ray.get(next(stream))
                    if answer is not None:
                        return answer
                    begun, since_s = True, time.monotonic()
            except RayTaskError as error:
                raise _cause(error) from None
            except RayActorError as error:
                deaths, reason = deaths + begun, " ".join(str(error).split())
                if deaths == MAX_DEATHS:
                    raise RuntimeError(f"it ended the policy's process {deaths} times: {reason}") from None
                time.sleep(RETRY_S)
        raise TapRayError(
            f"The process that computes the policy was lost, and was not back after {ANSWER_S:g} s: {reason} All "
            "results so far are kept, and the same command resumes from there."
        )


@contextmanager
def policies(make_policy: MakePolicy, scene: EnvConfig, config: InferenceConfig) -> Iterator[list[MakePolicy]]:
    """Start the processes that compute a policy, and yield a `MakePolicy` for the fleets of each; without such
    processes yield `make_policy` itself.

    Args:
        make_policy: makes a `models.inference.PolicyRunner`, if there are such processes; must pickle.
        scene: any scene of the evaluation.
        config: number and resources of the processes; they end with the `with` block.

    Raises:
        ConfigError: no machine has the GPUs or the labels.
        TapRayError: the policy cannot be loaded.
    """
    if not config.actors:
        yield [make_policy]
        return
    labels = placement.selector(config.node_labels, flag="--inference.node-labels")
    placement.require_gpus(config.gpus, flag="--inference.gpus", places=config.actors, labels=labels)
    # No CPU: those that fleets leave idle while they wait for it would otherwise be reserved twice.
    needs = placement.Needs(cpus=0, gpus=config.gpus, labels=labels)
    start = ray.remote(**needs.options(), max_restarts=-1)(Inference).remote
    made = [ray.put(make_policy)]
    actors: list[Any] = [start(made, scene, config) for _ in range(config.actors)]
    try:
        found = zip(actors, _await_ready(actors, needs), strict=True)
        yield [SharedPolicy(actor=actor, chunking=chunking) for actor, chunking in found]
    finally:
        for actor in actors:
            ray.kill(actor)


def _await_ready(actors: Sequence[Any], needs: placement.Needs) -> list[ChunkingSpec]:
    pending = [actor.ready.remote() for actor in actors]
    while len(ready := ray.wait(pending, num_returns=len(pending), timeout=REPORT_S)[0]) < len(pending):
        if not needs.fit():
            tqdm.write(needs.waiting(len(pending) - len(ready)))
    try:
        return ray.get(pending)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        reason = " ".join(str(error).split())
        raise TapRayError(f"The process that computes the policy died while it loaded it: {reason}") from None


def _cause(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, Exception) else error
