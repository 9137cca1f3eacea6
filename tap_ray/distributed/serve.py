"""Serves a policy: TCP server and sessions run in the job's own process, the networks on Ray Serve.

    robots --HTTP, WebSocket--> TcpServer -> Sessions (chunks, history, noise) --inputs--> Network x replicas
                                                             in one pass or row by row (inference.Batcher)

A replica (Network) keeps no state between two requests, so every replica gives the same bits, and one that dies only
delays its robots until it is replaced. Ray Serve's own HTTP proxy stays off, because it does not limit connections that
have not sent a request yet.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from tap_ray import storage
from tap_ray.distributed import placement
from tap_ray.distributed.connect import silent_stderr, temp_folder
from tap_ray.distributed.inference import Batcher
from tap_ray.distributed.placement import require_gpus
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.models.chunk_buffer import PolicyInput
from tap_ray.serving.admission import Admission
from tap_ray.serving.app import make_app
from tap_ray.serving.connections import Connections
from tap_ray.serving.contract import Contract
from tap_ray.serving.health import HealthMonitor
from tap_ray.serving.request_error import LATE, RequestError
from tap_ray.serving.sessions import Sessions
from tap_ray.serving.settings import ServeConfig, connections_of
from tap_ray.serving.tcp_server import TcpServer, in_background

APP = "tap_ray"
START_S = 120.0
"""How long the first answer may take, s."""
HEALTH_S = 1.0
"""How often Serve checks whether a replica is alive, s; a dead one may go unnoticed for this long."""
RETRY_S = 0.2
"""Pause between two attempts to reach the replica, s."""


class Network:
    """One copy of the policy's network (a Serve replica)."""

    def __init__(self, run: str, contract: Contract, config: ServeConfig) -> None:
        from tap_ray.models.inference import load_policy

        self._policy, _ = load_policy(storage.to_path(run), device="cuda" if config.gpus_per_replica else "cpu")
        self._chunks = Batcher(
            self._policy.chunks,
            batch=config.batch,
            window_s=config.batch_wait_ms / 1e3,
            together=not config.batch_invariant,
        )
        self._policy.chunks([contract.probe()])  # the first inference takes longer than a robot can wait

    async def __call__(self, compute_chunk: PolicyInput) -> np.ndarray:
        """Compute the chunk (H, A) of one robot's request, in a batch with those of others.

        Raises:
            RequestError: 422, its instruction is longer than the policy reads; the other requests continue.
        """
        try:
            self._policy.require_read(compute_chunk.instruction)
        except ConfigError as error:
            raise RequestError(422, f'metadata "instruction": {error}') from None
        return (await self._chunks([compute_chunk]))[0]


async def _ask(network: DeploymentHandle, compute_chunk: PolicyInput, deadline_s: float) -> np.ndarray:
    """Send one request to any live network; the network is a pure function, so asking again is safe."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            return await asyncio.wait_for(network.remote(compute_chunk), max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise RequestError(
                LATE,
                f"The network did not answer within {deadline_s:g} s (it is being replaced, or there are too many "
                "requests). Hold the robot still, and send this step again with a new observation.",
            ) from None
        except RayTaskError as error:  # an error of the network itself would recur
            if isinstance(error.cause, RequestError):
                raise RequestError(error.cause.status, error.cause.message) from None
            reason = " ".join(str(error.cause).split())
            raise RequestError(
                500, f"The network failed: {reason}. Do not move the robot. Ray's logs have details."
            ) from None
        except RayActorError:
            await asyncio.sleep(min(RETRY_S, max(0.0, end - time.monotonic())))


def _application(run: str, contract: Contract, config: ServeConfig) -> serve.Application:
    network = serve.deployment(
        Network,
        num_replicas=config.replicas,
        max_ongoing_requests=4 * config.batch,
        ray_actor_options={"num_cpus": 1, "num_gpus": config.gpus_per_replica},
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=2.0,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
    )
    return network.bind(run, contract, config)


@contextlib.contextmanager
def serving(
    run: str,
    contract: Contract,
    config: ServeConfig,
    *,
    listening: socket.socket,
    tls: ssl.SSLContext | None,
    admission: Admission,
) -> Iterator[None]:
    """Serve a policy for a `with` block and stop Ray Serve at its end. Ray must be connected.

    Args:
        run: absolute path of the training run, readable on every machine.
        contract: the policy's interface.
        config: the validated options.
        listening: bound socket; it is closed at the end.
        tls: TLS settings; None serves plain text.
        admission: who may connect.

    Raises:
        ConfigError: Ray Serve already runs on this cluster, or no machine has the GPUs.
        TapRayError: Ray Serve or the policy does not start.
    """
    require_gpus(config.gpus_per_replica, flag="--gpus-per-replica")
    _require_room(config)
    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    if any(actor["namespace"] == "serve" for actor in named):
        raise ConfigError(
            "Ray Serve already runs on this cluster, and this job would stop it when it ends. Stop it (`serve "
            "shutdown`), or omit --ray-address and RAY_ADDRESS to serve from a local Ray."
        )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
        try:
            network = serve.run(_application(run, contract, config), name=APP, route_prefix=None)
        except RuntimeError as error:
            raise TapRayError(f"The policy could not be served: {_cause(error)}") from None
        deadline_s = config.deadline_s or contract.chunk_s

        async def compute_chunk(one: PolicyInput) -> np.ndarray:
            return await _ask(network, one, deadline_s)

        health = HealthMonitor(compute_chunk, contract.probe())
        sessions = Sessions(contract, health.compute_chunk, limit=config.sessions, idle_s=config.idle_s)
        app = make_app(contract, sessions, admission, lambda: health.trouble)
        server = TcpServer(app, listening, Connections(connections_of(config)), tls)
        with in_background(server.serve, health.run):
            _await_answer(health)
            yield
    finally:
        listening.close()
        with silent_stderr():
            serve.shutdown()


def _require_room(config: ServeConfig) -> None:
    """Raise a ConfigError if Serve would wait forever for resources for its replicas."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if config.replicas > cpus:
        raise ConfigError(f"--replicas {config.replicas}: the Ray cluster has {cpus} CPUs, and each replica needs one.")
    if each := config.gpus_per_replica:
        room = sum(int(gpus / each + 1e-6) for gpus in placement.of_nodes("GPU", {}))
        if config.replicas > room:
            raise ConfigError(
                f"--replicas {config.replicas} --gpus-per-replica {each:g}: the GPUs of the Ray cluster have room for "
                f"{room}. Request fewer replicas, or a smaller fraction of a GPU for each."
            )


def _cause(error: RuntimeError) -> str:
    """The cause in Serve's message, which ends with the status of each deployment."""
    statuses = serve.status().applications
    found = [d.message for app in statuses.values() for d in app.deployments.values() if d.message]
    return " ".join((found or [str(error)])[0].split())[-600:]


def _await_answer(health: HealthMonitor) -> None:
    end = time.monotonic() + START_S
    while health.trouble:
        if time.monotonic() > end:
            raise TapRayError(
                f"No answer after {START_S:g} s: {health.trouble} Ray's logs: {temp_folder()}/ray/session_latest/logs."
            )
        time.sleep(RETRY_S)
