"""Who may do what over HTTP, and what browsers are told not to do.

With a token everything but the health checks needs it, as ``Authorization: Bearer`` or as the password of Basic, which is
how a browser asks for it. Without one, what changes anything is answered to this machine alone. Either way a page of
another site cannot make a browser do it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset(("/-/healthy", "/-/ready"))
_SAFE_METHODS = frozenset(("GET", "HEAD"))
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Nothing to others; with "no-referrer" a form of ours would not say either that it is ours.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware in front of every route.

    :param app: what answers
    :param token: the token that holds now, None for none; asked at every request, so that a reload can change it
    """

    def __init__(self, app: ASGIApp, token: Callable[[], str | None]) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        token = self._token()
        if token is not None and scope["path"] not in OPEN_PATHS and not _carries(headers, token):
            challenge = {"www-authenticate": 'Basic realm="asyncdicom", charset="UTF-8"'}
            return _refused(401, "the token is missing or wrong", scope, "send it: Authorization: Bearer ...", challenge)
        if scope["method"] in _SAFE_METHODS:
            return None
        if not _same_origin(headers):
            return _refused(
                403, "another site may not ask for this", scope, "ask from a page of this service, or without Origin"
            )
        if token is None and not (_is_local(scope) and _is_local_name(headers.get("host", ""))):
            what = "without web.token_file this is answered to this machine alone"
            return _refused(403, what, scope, "give the service a token, and send it: Authorization: Bearer ...")
        return None


def _refused(status: int, what: str, scope: Scope, remedy: str, headers: dict[str, str] | None = None) -> Response:
    # The shape of every problem: see asyncdicom.web.problems, which needs more than a guard should.
    return JSONResponse({"error": what, "where": scope["path"], "remedy": remedy}, status, headers)


def _carries(headers: Headers, token: str) -> bool:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    # In a time that does not depend on how much of it is right.
    return hmac.compare_digest(value.encode(), token.encode())


def _same_origin(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and _is_loopback(client[0])


def _is_local_name(host: str) -> bool:
    # A foreign name that resolves to this machine is how a page of another site reaches a local service.
    name = urlsplit(f"//{host}").hostname or ""
    return name == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
