"""Clients that mean no good, one function a kind: each attacks once, as fast as it can, and is called again and again.

python -m tests.serving.hostile PORT CLIENTS    # on loopback, until its standard input is closed
"""

import contextlib
import functools
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

WAIT_S = 30.0
"""How long a client waits for an answer, or keeps what it holds, s."""


@functools.cache
def begin(port: int) -> str:
    """What begins a session there."""
    with tcp(port) as asking:
        asking.sendall(b"GET /spec HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: asking.recv(65536), b""))
    return json.dumps({"spec": json.loads(answer.partition(b"\r\n\r\n")[2])["spec"], "seed": 1})


def tcp(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def ws(port: int, **options) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/ws", proxy=None, open_timeout=WAIT_S, **options)


def post(route: str, length: int, body: bytes, *headers: str) -> bytes:
    lines = [f"POST /{route} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def until_closed(open_socket: socket.socket, end: threading.Event) -> None:
    """Hold on to a connection for as long as the server lets us."""
    open_socket.settimeout(0.5)
    while not end.is_set():
        try:
            if not open_socket.recv(4096):
                return
        except TimeoutError:
            continue


def half_a_head(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        held.sendall(b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        until_closed(held, end)


def dripping_head(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        held.sendall(b"GET /spec HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        while not end.wait(0.05):
            held.sendall(b"a")


def half_a_body(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        held.sendall(post("act", 3000, b"12345678"))
        until_closed(held, end)


def no_bytes(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        until_closed(held, end)


def idle_websocket(port: int, end: threading.Event) -> None:
    with ws(port) as held, contextlib.suppress(TimeoutError):
        while not end.is_set():
            held.recv(timeout=0.5)


def sleeping_session(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        held.send(begin(port))
        held.recv(timeout=WAIT_S)
        end.wait(5)


def reconnecting_robot(port: int, end: threading.Event) -> None:
    held = ws(port).__enter__()
    held.send(begin(port))
    held.recv(timeout=WAIT_S)
    held.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    held.socket.close()  # without a word
    with contextlib.suppress(WebSocketException):
        held.close()


def sessions_without_end(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        while not end.is_set():
            held.send(begin(port))
            held.recv(timeout=WAIT_S)


def brackets(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        while not end.is_set():
            held.send("[" * 19_000)
            assert json.loads(held.recv(timeout=WAIT_S))["status"] == 400


def garbage(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        while not end.is_set():
            held.send(b"\xff" * 1000)
            assert json.loads(held.recv(timeout=WAIT_S))["status"] == 400


def huge_message(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        while not end.is_set():
            held.send(bytes(3 * 2**20))
            assert json.loads(held.recv(timeout=WAIT_S))["status"] in (408, 413)


def fragments(port: int, end: threading.Event) -> None:
    with ws(port) as held:
        held.send(b"a" for _ in iter(end.is_set, True))


def pings(port: int, end: threading.Event) -> None:
    frame = b"\x89\x80\0\0\0\0" * 1000
    with ws(port) as held:
        while not end.is_set():
            held.socket.sendall(frame)


def foreign_page(port: int, end: threading.Event) -> None:
    with ws(port, origin="http://evil.example") as held:
        assert json.loads(held.recv(timeout=WAIT_S))["status"] == 403


def many_requests(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        while not end.is_set():
            held.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 10)
            if not held.recv(65536):
                return


def never_reads(port: int, end: threading.Event) -> None:
    with tcp(port) as held:
        while not end.is_set():
            held.sendall(b"GET /spec HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)


KINDS: tuple[Callable[[int, threading.Event], None], ...] = (
    half_a_head,
    dripping_head,
    half_a_body,
    no_bytes,
    idle_websocket,
    sleeping_session,
    reconnecting_robot,
    sessions_without_end,
    brackets,
    garbage,
    huge_message,
    fragments,
    pings,
    foreign_page,
    many_requests,
    never_reads,
)


@contextlib.contextmanager
def attacked(port: int, clients: int, *kinds: str) -> Iterator[dict[str, int]]:
    """`clients` of some kinds (none named: all) in a process of their own, for the length of a `with` block; after
    it, how often each attacked.

    When the block begins each has attacked at least once."""
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.serving.hostile", str(port), str(clients), *kinds]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    attacks: dict[str, int] = {}
    try:
        assert process.stdout.readline() == "attacking\n"
        yield attacks
    finally:
        attacks |= json.loads(process.communicate()[0])


def main(port: int, clients: int, names: list[str]) -> None:
    begin(port)
    kinds = [kind for kind in KINDS if kind.__name__ in names or not names]
    end, begun = threading.Event(), threading.Barrier(clients + 1)
    done = {kind.__name__: 0 for kind in kinds}

    def attack(kind: Callable[[int, threading.Event], None]) -> None:
        begun.wait()
        while not end.is_set():
            done[kind.__name__] += 1
            with contextlib.suppress(OSError, WebSocketException, TimeoutError, EOFError):
                kind(port, end)

    threads = [threading.Thread(target=attack, args=(kinds[i % len(kinds)],), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    begun.wait()
    while not all(done[kind.__name__] for kind in kinds[:clients]):
        time.sleep(0.01)
    print("attacking", flush=True)
    sys.stdin.read()
    end.set()
    for thread in threads:
        thread.join(1)
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
