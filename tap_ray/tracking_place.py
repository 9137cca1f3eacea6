"""Finds where MLflow stores runs, checks that its server answers, and says what to do if it does not. Does not import
MLflow."""

import contextlib
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Iterator

from tap_ray.errors import StorageError

PROBE_S = 5.0
"""How long a server may take to answer before the job is refused, s."""


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow in the body (a server that is gone, a locked database) into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # artifact stores raise the exceptions of their libraries
        raise StorageError(f"MLflow at {uri} refused the request: {_first_line(error)}.{_hint(uri, error)}") from error


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite file in the working directory (absolute, so it survives a chdir)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(Path("mlflow.db").resolve())


def _sqlite_uri(file: Path) -> str:
    """The URI of a database file.

    Raises:
        StorageError: SQLAlchemy would read the path differently ("?" begins a query, from 2.1 on %3F is a "?"), or
            MLflow would create a folder with the quoted name beside it.
    """
    uri = f"sqlite:///{file}"
    if {"?", "%"} & set(str(file)) and _sqlite_file(uri) != file:
        raise StorageError(
            f"MLflow cannot store its database in {file.parent}, because ? and %.. have another meaning in the "
            "address of a database. Work in a folder with another name, or set MLFLOW_TRACKING_URI."
        )
    return uri


def _sqlite_file(uri: str) -> Path:
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def require_reachable(uri: str) -> None:
    """Check that a server's port answers, or that a SQLite file can be written. Takes at most `PROBE_S`.

    Servers behind a proxy are left to MLflow's client.

    Raises:
        StorageError: the message names the address, and says how to start a server there or how to do without.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = parts.hostname or ""
            through = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(f"{host}:{port}")
            if not through:
                socket.create_connection((host, port), timeout=PROBE_S).close()
        except (OSError, ValueError) as error:
            raise StorageError(unreachable(uri, error)) from None
    elif uri.startswith("sqlite:///"):
        folder = _sqlite_file(uri).parent
        if not os.access(folder, os.W_OK):
            raise StorageError(unreachable(uri, f"the folder {folder} is missing or cannot be written"))


def is_local(uri: str) -> bool:
    """Whether only this machine can reach it: a database file or a folder."""
    return urllib.parse.urlsplit(uri).scheme in ("", "file", "sqlite")


def unreachable(uri: str, error: Any) -> str:
    """The message that MLflow cannot be reached, with what to do."""
    return f"MLflow tracking at {uri} cannot be reached: {_first_line(error)}.{_hint(uri, error)}"


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")


def _hint(uri: str, error: Any) -> str:
    """What to do, if that is known."""
    text, is_default = str(error), not os.environ.get("MLFLOW_TRACKING_URI")
    without = "" if is_default else " Or `unset MLFLOW_TRACKING_URI` to track into ./mlflow.db."
    if "database schema" in text or "Can't locate revision" in text:
        away = f"move {_sqlite_file(uri)} away" if uri.startswith("sqlite:///") else "name another database"
        return f" It was written by another version of MLflow. Run `mlflow db upgrade {uri}` after a backup, or {away}."
    if "database is locked" in text:
        return " Another program uses it. Run the same command again: it resumes from here."
    if uri.startswith("sqlite:///"):
        return without
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return without
    if "CERTIFICATE_VERIFY" in text:
        return " Set MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE to its certificate." + without
    if any(code in text for code in ("401", "403", "Unauthorized", "Permission denied")):
        return " Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN." + without
    if isinstance(error, OSError | ValueError) or "Max retries exceeded" in text or "error code 50" in text:
        port = re.search(r":(\d+)$", parts.netloc)
        start = f" Start a server there (mlflow server --host 127.0.0.1 --port {port[1] if port else 5000})."
        return start + without
    return without
