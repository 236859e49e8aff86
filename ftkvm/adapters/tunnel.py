"""A door between two hosts' libvirtds for live migration: bytes over mutual TLS, from a unix socket to one there.

libvirt's own remote access would need its certificates and ports set up on every host. Its documented alternative is a
unix socket that somebody else connects (libvirt.org/migration.html, "Migration over UNIX sockets"): that is the agent,
with the certificates the cluster has anyway. The VM's memory goes through here as well, inside libvirt's conversation,
unless the cluster's setting migration.encryption is off.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ftkvm.adapters.pki import TlsFiles
from ftkvm.adapters.trust import Trust
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role

log = logging.getLogger(__name__)
_CHUNK = 64 * 1024
_CONNECT_TIMEOUT_S = 3.0
_START_TIMEOUT_S = 10.0
_LIMIT = 16
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")


class TunnelServer:
    """Lets the cluster's other hosts reach ``target``; everybody else is refused.

    :param allowed: whether a name (the certificate's) is a host of the cluster
    """

    def __init__(
        self, trust: Trust, address: str, port: int, allowed: Callable[[str], bool], target: Path = LIBVIRT_SOCKET
    ) -> None:
        self._trust, self._context = trust, trust.server_context()
        self._address, self._port, self._allowed, self._target = address, port, allowed, target
        self._open = 0
        self._loop = _Loop("tunnel")

    def start(self) -> None:
        """Listen.

        :raises OSError: the port is taken
        """
        self._loop.run(asyncio.start_server(self._serve, self._address, self._port, ssl=self._context))

    def stop(self) -> None:
        """Close all; a migration under way is given up by libvirt, and the VM goes on where it was."""
        self._loop.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = "a client"
        try:
            identity = self._trust.peer(writer.get_extra_info("ssl_object"))
            name = identity.name
            if self._open >= _LIMIT or identity.role is not Role.HOST or not self._allowed(name):
                log.warning("tunnel: refused %s", name)
                return
            self._open += 1
            try:
                there = await asyncio.wait_for(asyncio.open_unix_connection(str(self._target)), _CONNECT_TIMEOUT_S)
                await _join((reader, writer), there)
            finally:
                self._open -= 1
        except FtkvmError as error:
            log.warning("tunnel: refused %s", error)
        except OSError as error:
            log.info("tunnel of %s: %s", name, error or type(error).__name__)
        finally:
            await _close(writer)


class Tunnel:
    """A unix socket here whose connections come out at another host's libvirtd; a context manager.

    :raises FtkvmError: FTKVM-202, that host cannot be reached
    """

    def __init__(self, host: HostEntry, files: TlsFiles, path: Path) -> None:
        self._host, self._context, self.path = host, files.client_context(), path
        self._loop = _Loop(f"tunnel-{host.name}")

    def __enter__(self) -> "Tunnel":
        try:
            _reader, writer = self._loop.run(self._connect())  # a refusal is better told now than by libvirt
            self._loop.run(_close(writer))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._loop.run(asyncio.start_unix_server(self._serve, str(self.path)))
        except OSError as error:
            self._loop.stop()
            raise FtkvmError("FTKVM-202", host=self._host.name, detail=f"{error or type(error).__name__}") from error
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.stop()
        self.path.unlink(missing_ok=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._host
        opening = asyncio.open_connection(
            host.migration, host.tunnel_port, ssl=self._context, server_hostname=host.name
        )
        return await asyncio.wait_for(opening, _CONNECT_TIMEOUT_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _join((reader, writer), await self._connect())
        except OSError as error:
            log.warning("tunnel to %s: %s", self._host.name, error or type(error).__name__)
        finally:
            await _close(writer)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: Stream, other: Stream) -> None:
    """Carry bytes both ways until either side ends."""
    ways = [asyncio.ensure_future(_carry(one[0], other[1])), asyncio.ensure_future(_carry(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await _close(other[1])


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), 1.0)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        result = asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_TIMEOUT_S)
        if isinstance(result, asyncio.Server):
            self._servers.append(result)
        return result

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(3.0)

    def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.05, self._loop.stop)  # the cancelled ones close what they hold
