"""Serves the API over HTTPS in a thread of its own; only clients with a certificate of our authority get in."""

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Mapping

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ftkvm.adapters.trust import Trust
from ftkvm.api.guard import RATES, SSL_OBJECT, App, Guard, Hosts, Receive, Scope, Send
from ftkvm.catalogue import FtkvmError
from ftkvm.core.trust import Role

log = logging.getLogger(__name__)
_START_TIMEOUT_S = 15.0


class _Protocol(H11Protocol):
    """uvicorn's, with the connection's TLS object in each request's scope: ASGI has no place for certificates."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner, ssl_object = self.app, transport.get_extra_info("ssl_object")

        async def with_certificate(scope: Scope, receive: Receive, send: Send) -> None:
            await inner({**scope, SSL_OBJECT: ssl_object}, receive, send)

        self.app = with_certificate


class ApiServer:
    """One listening socket, one thread; :meth:`start` returns when it listens."""

    def __init__(
        self,
        app: App,
        trust: Trust,
        port: int,
        hosts: Hosts,
        address: str = "0.0.0.0",
        rates: Mapping[Role, tuple[float, float]] = RATES,
    ) -> None:
        files = trust.files
        config = uvicorn.Config(
            Guard(app, trust, hosts, rates),
            host=address,
            port=port,
            http=_Protocol,
            ws="none",
            proxy_headers=False,
            interface="asgi3",
            ssl_certfile=str(files.certificate),
            ssl_keyfile=str(files.key),
            ssl_ca_certs=str(files.authority),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
            log_config=None,
            access_log=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
            limit_concurrency=300,
        )
        config.load()
        config.ssl = trust.server_context()  # takes renewed certificates while it serves
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="api", daemon=True)

    def start(self) -> None:
        """Listen.

        :raises FtkvmError: FTKVM-900, the port is taken or the certificates are no good
        """
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise FtkvmError("FTKVM-900", detail=f"the API cannot listen on port {self._server.config.port}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Finish what is under way, briefly, and close."""
        self._server.should_exit = True
        self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        """Whether the API's thread still runs."""
        return self._thread.is_alive()
