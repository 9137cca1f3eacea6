"""Controls access: checks the token, and refuses requests that foreign web pages make.

A browser on this machine can reach a server on loopback on behalf of any web page. It sends the page's server (Origin)
and the name by which it reaches this server (Host; a page can make a name of its own point here). Robots send no
Origin, and use an address or a name of this machine.
"""

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from tap_ray.serving.request_error import RequestError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def digest(token: str) -> str:
    """The digest of a token, which the server stores instead of the token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Admission:
    """Checks each request."""

    def __init__(self, token_digest: str | None, names: frozenset[str] | None) -> None:
        """
        Args:
            token_digest: `digest(token)`; None admits every client.
            names: names of the server, see `settings.names_of`; None: any.
        """
        self._token_digest, self._names = token_digest, names

    def check_place(self, connection: HTTPConnection) -> None:
        """Raise a RequestError (403) for a foreign Host or Origin."""
        sent = connection.headers.get("host", "")
        host = _name(f"//{sent}")
        if not host or not (self._names is None or host in self._names or _is_address(host)):
            raise RequestError(
                403,
                f"This server does not accept the host name {sent[:200]!r} (header Host). Use its address, or start "
                "jobs.serve with --hosts NAME for each of its names.",
            )
        origin = connection.headers.get("origin")
        if origin is not None and (_name(origin) or "/") not in {host, *(self._names or ())}:
            raise RequestError(
                403,
                f"This server does not accept requests from web pages of {origin[:200]!r} (header Origin). Robots "
                "send no Origin; if the page is yours, start jobs.serve with --hosts NAME, the host name of the page.",
            )

    def check(self, connection: HTTPConnection) -> None:
        """Raise a RequestError: 403 as in `check_place`; 401 without the token."""
        self.check_place(connection)
        if self._token_digest is None:
            return
        kind, _, token = connection.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(digest(token), self._token_digest):
            came = "another one" if token else "none"
            raise RequestError(
                401,
                f'This server needs a token; got {came}. Send the header "Authorization: Bearer TOKEN" with the token '
                "of the file that jobs.serve named when it started (or of its TAP_RAY_SERVE_TOKEN).",
            )


def _name(url: str) -> str:
    """The host of a URL in lower case; "" if there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is an IP address, which cannot be made to point elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
