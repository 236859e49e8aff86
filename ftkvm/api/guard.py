"""In front of every request: whose certificate it came with, what that role may do, how much and how often."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import anyio.to_thread

from ftkvm.adapters.trust import Trust
from ftkvm.catalogue import FtkvmError
from ftkvm.core.bucket import Bucket
from ftkvm.core.trust import Identity, Role, require_may

log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
_BODY_TIMEOUT_S = 10.0
RATES = dict.fromkeys(Role, (200.0, 400.0)) | {Role.HOST: (500.0, 1000.0)}
"""Requests a second, and at once, of one certificate."""
_MAX_BUCKETS = 1000
STATUS = {"FTKVM-322": 403, "FTKVM-323": 403, "FTKVM-324": 403, "FTKVM-325": 403, "FTKVM-326": 413, "FTKVM-327": 429,
          "FTKVM-328": 408}  # fmt: skip
SSL_OBJECT = "ftkvm.ssl_object"
"""Where in a request's scope the server leaves the connection's TLS object."""


class Hosts:
    """Which names are hosts of the cluster.

    :param known: tells at once, by what is known
    :param require: raises FtkvmError when a name is none; it may wait for the storage
    """

    def __init__(self, known: Callable[[str], bool], require: Callable[[str], None]) -> None:
        self._known, self._require = known, require

    async def require(self, name: str) -> None:
        """:raises FtkvmError: FTKVM-324"""
        if not self._known(name):
            await anyio.to_thread.run_sync(self._require, name)


class Guard:
    """ASGI: refuses, says why and logs it, or passes the request on with ``scope["state"]["identity"]``."""

    def __init__(self, app: App, trust: Trust, hosts: Hosts, rates: Mapping[Role, tuple[float, float]]) -> None:
        self._app, self._trust, self._hosts, self._rates = app, trust, hosts, rates
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            identity = self._trust.peer(scope.get(SSL_OBJECT))
            self._require_rate(identity)
            if identity.role is Role.HOST:
                await self._hosts.require(identity.name)
            require_may(identity, scope["method"], scope["path"])
            body = await _read(receive, scope["headers"], identity.name)
        except FtkvmError as error:
            await _refuse(scope, send, error)
            return
        scope.setdefault("state", {})["identity"] = identity
        await self._app(scope, _replay(body, receive), send)

    def _require_rate(self, identity: Identity) -> None:
        now = time.monotonic()
        bucket = self._buckets.get(identity.serial)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets.clear()
            per_s, burst = self._rates[identity.role]
            bucket = Bucket(burst, now, per_s, burst)
        taken = bucket.take(now)
        if taken is None:
            raise FtkvmError("FTKVM-327", who=identity.name, per_s=int(bucket.per_s))
        self._buckets[identity.serial] = taken


async def _read(receive: Receive, headers: list[tuple[bytes, bytes]], who: str) -> bytes:
    """The whole body, within bounds.

    :raises FtkvmError: FTKVM-326 more than the bound announced or sent, FTKVM-328 it does not come to its end
    """
    announced = max((value for name, value in headers if name == b"content-length"), default=b"0", key=len)
    too_large = FtkvmError("FTKVM-326", who=who, most=MAX_BODY_BYTES)
    if len(announced) > 9 or int(announced) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    with anyio.move_on_after(_BODY_TIMEOUT_S):
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)
    raise FtkvmError("FTKVM-328", who=who, seconds=_BODY_TIMEOUT_S)


def _replay(body: bytes, receive: Receive) -> Receive:
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _refuse(scope: Scope, send: Send, error: FtkvmError) -> None:
    client = (scope.get("client") or ("?",))[0]
    log.warning("refused %s %s from %s: %s", scope["method"], scope["path"][:200], client, error)
    content = json.dumps({"error": error.to_json()}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": STATUS.get(error.code, 403), "headers": headers})
    await send({"type": "http.response.body", "body": content})
