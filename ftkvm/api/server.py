"""Serves the API over HTTPS in a thread of its own; only clients with a certificate of our authority get in."""

import logging
import ssl
import threading
import time

import uvicorn
from fastapi import FastAPI

from ftkvm.adapters.pki import TlsFiles
from ftkvm.catalogue import FtkvmError

log = logging.getLogger(__name__)
_START_TIMEOUT_S = 15.0


class ApiServer:
    """One listening socket, one thread; :meth:`start` returns when it listens."""

    def __init__(self, app: FastAPI, files: TlsFiles, port: int, address: str = "0.0.0.0") -> None:
        config = uvicorn.Config(
            app,
            host=address,
            port=port,
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
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
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
