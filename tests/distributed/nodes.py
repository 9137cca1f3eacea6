"""Several Ray nodes on this machine, a raylet each, that tests and bench/node_kills.py kill as a power cut would."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.cluster_utils import Cluster

STORE_BYTES = 150 * 10**6
TIMEOUT_S = 500.0
"""Bounds a hang only: nothing that tests wait for takes so long, however busy the machine."""
QUICK = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 1000}
"""Ray asks a node every 3 s; our tests have no 15 s for each death."""


class Nodes:
    """A cluster: a head without CPUs, where the driver lives, and the nodes that are added to it."""

    def __init__(self) -> None:
        ensure_token_if_auth_enabled()
        head = {"num_cpus": 0, "include_dashboard": False, "dashboard_host": "127.0.0.1"}
        head |= {"memory": STORE_BYTES, "object_store_memory": STORE_BYTES, "_system_config": QUICK}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.live: list[Any] = []

    def add(self, role: str, cpus: int = 2) -> Any:
        """A node with the label role=ROLE."""
        # Ray would set a signal handler, which only the main thread may; without it a raylet ends with its GCS.
        self._cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
        node = self._cluster.add_node(num_cpus=cpus, labels={"role": role}, object_store_memory=STORE_BYTES)
        node.role = role
        self.live.append(node)
        return node

    def strike(self, node: Any) -> None:
        """SIGKILL the raylet and every process of its node."""
        end(node)
        self.live.remove(node)
        self._cluster.worker_nodes.remove(node)

    def kill(self, node: Any) -> None:
        """`strike`, and wait until Ray says that the node is gone."""
        self.strike(node)
        wait_for(lambda: all(each["NodeID"] != node.node_id or not each["Alive"] for each in ray.nodes()))

    def stop(self) -> None:
        """End every process, the head's last."""
        for node in [*self.live, self._cluster.head_node]:
            end(node)  # a polite end takes seconds each
        self._cluster.worker_nodes.clear()
        self._cluster.shutdown()


def processes(node: Any) -> list[psutil.Process]:
    """The raylet, the workers below it, and on a head the GCS."""
    found = []
    for started in node.all_processes.values():
        for info in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def end(node: Any) -> None:
    """SIGKILL every process of a node, and collect the exit statuses of those that this process has started."""
    for process in processes(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for started in node.all_processes.values():
        for info in started:
            info.process.wait()


def workers(node: Any, name: str) -> list[psutil.Process]:
    """Processes of a node that Ray has named after what they run, e.g. "ray::Fleet"."""
    found = []
    for process in processes(node):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition()`."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread during a `with` block, and raise at its end what the thread raised."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(action)
        yield
        future.result()


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster for the length of a `with` block."""
    made = Nodes()
    try:
        yield made
    finally:
        made.stop()
