"""The options of `python -m jobs.serve`, and its access control."""

import ipaddress
import os
import resource
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from tap_ray.config import ClusterConfig
from tap_ray.errors import ConfigError, StorageError
from tap_ray.serving.admission import LOOPBACK
from tap_ray.serving.connections import SPARE

TOKEN_VARIABLE = "TAP_RAY_SERVE_TOKEN"
MIN_TOKEN = 16
"""Smallest number of characters of a token that cannot be guessed."""
MAX_PORT = 65_535
OWN_FILES = 256
"""Number of files that Ray and Python keep open."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ClusterConfig):
    """Settings of jobs.serve: the policy, the address, and the limits."""

    policy: Path
    """Run folder of jobs.align, or models:/tap/VERSION of MLflow's registry."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 serves this machine alone; any other, e.g. 0.0.0.0, needs a token."""
    port: int = 8000
    """TCP port; 0: any that is free."""
    require_token: bool = False
    """Require a token on loopback as well (this machine's other users can reach it)."""
    token_file: Path = Path("~/.tap_ray/serve_token")
    """File of the token, made with mode 600 if there is none. TAP_RAY_SERVE_TOKEN in the environment has precedence,
    and is then required on loopback as well."""
    sessions: int = 64
    """Largest number of episodes in progress at the same time, one per robot."""
    idle_s: float = 600.0
    """A session without a step for this time, s, is deleted."""
    batch: int = 16
    """Largest number of requests in a batch; requests that arrive while the network is busy wait for the next batch."""
    batch_wait_ms: float = 0.0
    """How long a batch waits for more robots, ms; 0: not at all."""
    batch_invariant: bool = True
    """Compute each robot's request separately, so that its actions do not depend on other robots, bit by bit.
    --no-batch-invariant computes a batch at once: it is faster, and results differ from about the 7th digit on."""
    replicas: int = 1
    """Number of copies of the network, each with a process and a CPU core. They are stateless: if one dies it is
    replaced, and episodes continue."""
    gpus_per_replica: float = 0.0
    """GPUs, or a share of one, for each copy; 0: none."""
    deadline_s: float | None = None
    """How long a robot waits for the network at most, s; then its step is refused (504), and the robot should hold
    still and send a new image. None: the duration of a chunk's executed actions (0.4 s for two actions at 5 Hz), after
    which an answer would be for an outdated image."""
    hosts: tuple[str, ...] = ()
    """Names of this server besides localhost, --host and plain addresses, and names of web pages that may use it."""
    tls_cert: Path | None = None
    """PEM file of the certificate (and those above it): with --tls-key the server speaks https and wss only."""
    tls_key: Path | None = None
    """PEM file of the certificate's key, without a password."""


def check(config: ServeConfig) -> None:
    """Raise a ConfigError for invalid settings, before anything starts."""
    lowest = {"sessions": 1, "batch": 1, "replicas": 1, "idle_s": 1, "batch_wait_ms": 0, "deadline_s": 0.01}
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and not low <= value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}; got {value:g}.")
    if not 0 <= config.port <= MAX_PORT:
        raise ConfigError(f"--port must be in 0 .. {MAX_PORT}; got {config.port}.")
    files, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections_of(config) + OWN_FILES
    if files < needed:
        raise ConfigError(
            f"--sessions {config.sessions} needs {needed} open files, but this shell allows {files}. Run `ulimit -n "
            f"{needed}` first, or use a smaller --sessions."
        )


def connections_of(config: ServeConfig) -> int:
    """Largest number of TCP connections at a time."""
    return 2 * config.sessions + SPARE


def names_of(config: ServeConfig) -> frozenset[str] | None:
    """Names of the server that requests may use, in lower case; None: any, because clients on other machines need a
    token."""
    if is_loopback(config.host):
        return LOOPBACK | {name.lower() for name in (config.host, *config.hosts)}
    return frozenset(name.lower() for name in (config.host, *config.hosts)) if config.hosts else None


def tls_of(config: ServeConfig) -> ssl.SSLContext | None:
    """The TLS settings; None without --tls-cert.

    Raises:
        ConfigError: one of the two files is missing or unreadable, or they do not belong together.
    """
    cert, key = config.tls_cert, config.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key must be given together: the certificate and its private key.")
    cert, key = cert.expanduser(), key.expanduser()
    for file in (cert, key):
        if not os.access(file, os.R_OK) or not file.is_file():
            raise ConfigError(f"Cannot read {file}. Name PEM files with --tls-cert and --tls-key.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"{cert} and {key} are not a certificate in PEM and its key without a password. "
            "docs/serving.md has the command that makes a pair."
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def listening(host: str, port: int) -> socket.socket:
    """A TCP socket that is bound to `port`, or to any free port for 0.

    Raises:
        ConfigError: the port is in use, or this machine has no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
        except OSError:
            bound.close()
            raise
        return bound
    except socket.gaierror:
        raise ConfigError(
            f"--host {host}: there is no such address. Use 127.0.0.1 for this machine, or 0.0.0.0 for all of its "
            "networks."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Use another --port (0: any free port) or --host."
        ) from None


def url(config: ServeConfig, port: int, scheme: str) -> str:
    """URL of the server: ws://127.0.0.1:8000, or with TLS wss://..."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}{'s' if config.tls_cert else ''}://{host}:{port}"


def curl_flags(config: ServeConfig, token: tuple[str, str] | None) -> str:
    """Flags that curl needs to reach it; without them it would use a proxy even for this machine."""
    flags = f'-H "Authorization: Bearer {token[1]}" ' if token else ""
    if config.tls_cert:
        flags += f"--cacert {config.tls_cert} "
    return flags + ("--noproxy '*' " if os.environ.get("http_proxy") or os.environ.get("https_proxy") else "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_of(config: ServeConfig) -> tuple[str, str] | None:
    """The token that clients must send, and a shell expression for it; None if every user of this machine may connect.

    Raises:
        ConfigError: the token could be guessed.
        StorageError: the token's file cannot be read or written.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None:
        return _strong(token, TOKEN_VARIABLE), f"${TOKEN_VARIABLE}"
    if is_loopback(config.host) and not config.require_token:
        return None
    file = config.token_file.expanduser()
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(secrets.token_urlsafe(32) + "\n")
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by other users of this machine. Run `chmod 600 {file}`.")
        return _strong(file.read_text().strip(), str(file)), f"$(cat {file})"
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"Cannot read or write the token's file {file}: {error}. Name another --token-file."
        ) from None


def _strong(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"The token in {where} has {len(token)} characters; it must have at least {MIN_TOKEN} printable ones "
            "without spaces. Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token
