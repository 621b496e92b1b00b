"""Who may talk to the server: pages that it sent itself, and elsewhere than on this machine only with the token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tide.images.identity import digest

#: Names of this machine, in an address.
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
#: How the cookie's name begins; each server has one of its own, since browsers send a cookie to every port of a host.
COOKIE = "tide-token-"
#: Bytes of a request's body at most.
MOST_BYTES = 4 * 2**20

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware that refuses requests under other host names (DNS rebinding), from other origins, without the
    token where one is asked for, and with a body that is too long. It adds the headers that keep the page to itself.

    ``hosts``: names under which the server may be addressed beside the local ones. ``token``: None for a server that
    only this machine reaches. With one, every address in numbers is allowed, too: behind a router or in a container a
    machine does not know its own, and a page that rebinds a name is asked for under that name.
    """

    def __init__(self, app: Any, hosts: frozenset[str] = frozenset(), token: str | None = None) -> None:
        self.app, self.hosts, self.token = app, LOCAL | hosts, token
        self.cookie = COOKIE + digest(token or "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over a web socket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        given = self._given(scope)

        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = list(_HEADERS)
                if given:
                    cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    extra.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, sending)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _host(headers.get("host", ""))
        if host not in self.hosts and (self.token is None or not _is_number(host)):
            return 421, "this server is not known under that name; open the address that tide browse printed"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return 403, "the request comes from another page; open the address that tide browse printed"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] not in ("GET", "HEAD") and kind != "application/json":
            return 415, "send JSON"
        try:
            length = int(headers.get("content-length", 0))
        except ValueError:
            length = MOST_BYTES + 1
        if length > MOST_BYTES or "transfer-encoding" in headers:
            return 413, f"a request has at most {MOST_BYTES} bytes"
        if self.token is not None and not self._given(scope) and not self._known(headers):
            return 401, "the token is missing; open the address that tide browse printed, with its token"
        return None

    def _given(self, scope: Scope) -> bool:
        """Whether the address holds the token."""
        said = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return self.token is not None and hmac.compare_digest(said.encode(), self.token.encode())

    def _known(self, headers: dict[str, str]) -> bool:
        assert self.token is not None
        # Not SimpleCookie: it gives up at a cookie of another server of this machine that it finds malformed.
        pairs = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        return any(
            name == self.cookie and hmac.compare_digest(value.encode(), self.token.encode()) for name, _, value in pairs
        )


def _host(text: str) -> str:
    """The name or address of a Host header, without its port; "" for what is none."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
