"""Who may ask: the Host and Origin headers against pages of others in a browser here, the key against everybody else."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from glmrun.server.refusal import refusal
from quant.errors import UserError

_LOCAL = ("localhost", "127.0.0.1", "::1")
_V1_TOO_MUCH = re.compile(r"^(/v1)+(?=/(v1|api)/)")
_V1_MISSING = re.compile(r"^(?=/(chat|completions|messages|models|responses)(/|$))")
_OPEN = ("/health", "/v1/health", "/")  # the page asks for the key itself


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    return host in _LOCAL or host.endswith(".localhost")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    key       what clients have to send; None: nothing
    origins   pages of other servers that may ask from a browser
    hosts     names under which the server may be addressed; None: any
    """

    key: str | None = None
    origins: Sequence[str] = ()
    hosts: Sequence[str] | None = _LOCAL

    def refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason why a request is not heard, or None."""
        host = hostname(headers.get("host", "localhost"))  # HTTP/1.0 may leave it out; browsers, of which we are afraid, do not
        if self.hosts is not None and not (is_local(host) or host in self.hosts):
            return 403, f"the Host header names {host[:80]!r}; expected localhost, or a name that the server was started to allow"
        origin = headers.get("origin")
        if origin is not None and not self._is_welcome(origin, headers.get("host", "")):
            return 403, f"a page of {origin[:80]!r} asks; pages of other servers may if the server was started to allow them"
        if self.key is not None and path not in _OPEN and not self._has_key(headers):
            return 401, "the key is missing or wrong; send it as Authorization: Bearer KEY"
        return None

    def _is_welcome(self, origin: str, host: str) -> bool:
        """Pages of this server, pages that were allowed, and programs that are no pages: editors send their own scheme."""
        parts = urlsplit(origin)
        own = parts.scheme in ("http", "https") and parts.netloc == host
        return own or "*" in self.origins or origin in self.origins or (parts.scheme not in ("", "http", "https", "file"))

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", headers.get("api-key", ""))
        assert self.key is not None
        digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, self.key))
        return hmac.compare_digest(*digests)  # of equal lengths, so that the time says nothing


def hostname(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def meant(path: str) -> str:
    """A path without what base URLs have too much or too little: slashes, /v1."""
    path = re.sub("/{2,}", "/", path).rstrip("/") or "/"
    return _V1_MISSING.sub("/v1", _V1_TOO_MUCH.sub("", path))


class Guard:
    """Lets through what Access allows."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": meant(scope["path"])}
        refused = self._access.refusal(scope["path"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, send)
        else:
            status, reason = refused
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            await JSONResponse(refusal(scope["path"], status, UserError(reason, "usage")), status, headers)(scope, receive, send)
