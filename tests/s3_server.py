"""moto's S3 server, with a guarantee of S3 that moto lacks: of simultaneous conditional writes, one succeeds.

moto compares If-Match and If-None-Match with the object and writes it a moment later, and another thread may write in
between (in 4 of 150 rounds of 8 writers on a busy machine; with this server in none).
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class ConditionalWritesInTurn:
    """A WSGI application that handles one conditional write after another."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "HTTP_IF_MATCH" not in environ and "HTTP_IF_NONE_MATCH" not in environ:
            return self._app(environ, start_response)
        with self._lock:
            return list(self._app(environ, start_response))


if __name__ == "__main__":
    app = ConditionalWritesInTurn(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=MotoRequestHandler)
