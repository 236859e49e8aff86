"""A QEMU monitor with time-outs and out-of-band commands, for callers that run in threads.

qemu.qmp (QEMU's own library) speaks the protocol on one asyncio loop in a background thread; this module adds what
the engine needs around it: every call is bounded, and a call whose answer did not come has an *unknown* outcome.

    MonitorError
    ├── CommandFailed     QEMU answered with an error; the command had no effect
    ├── MonitorTimeout    no answer in time; the outcome is unknown: query, then go on
    └── MonitorGone       the connection ended; the outcome of what was under way is unknown
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

T = TypeVar("T")
Event = dict[str, Any]
log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 5.0


class MonitorError(Exception):
    """Something about a QEMU monitor; see the tree above."""


class CommandFailed(MonitorError):
    """QEMU refused a command."""


class MonitorTimeout(MonitorError):
    """QEMU did not answer in time: what became of the command is unknown."""


class MonitorGone(MonitorError):
    """The monitor's connection is closed: QEMU ended, or was killed."""


class _Loop:
    """One asyncio loop in a daemon thread, shared by all monitors of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.SelectorEventLoop()  # uvicorn makes uvloop the default, which hides the socket
                # that file descriptors are passed over
                threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True).start()
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.get())
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            future.cancel()
            raise MonitorTimeout(f"no answer within {timeout_s:g} s") from None


_loop = _Loop()


class Monitor:
    """One QMP connection; thread-safe. Events go to ``on_event`` on the monitor's thread: hand them on, never block."""

    def __init__(
        self, path: str, on_event: Callable[[Event], None] | None = None, on_closed: Callable[[], None] | None = None
    ) -> None:
        self.path = path
        self._on_event = on_event
        self._on_closed = on_closed
        self._client = QMPClient(path)
        self._tasks: list[asyncio.Task[None]] = []
        self.closed = False

    @classmethod
    def connect(
        cls,
        path: str,
        on_event: Callable[[Event], None] | None = None,
        on_closed: Callable[[], None] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> "Monitor":
        """Connect to the unix socket ``path`` and enable out-of-band commands.

        :raises MonitorTimeout: QEMU did not greet in time (it hangs, or another client holds this monitor)
        :raises MonitorGone: nobody listens there
        """
        monitor = cls(path, on_event, on_closed)
        try:
            _loop.run(monitor._connect(), timeout_s)
        except (QMPError, OSError, EOFError) as error:
            raise MonitorGone(f"{path}: {error}") from error
        return monitor

    async def _connect(self) -> None:
        await self._client.connect(self.path)
        listener = EventListener()
        self._client.register_listener(listener)
        self._tasks = [asyncio.create_task(self._pump(listener)), asyncio.create_task(self._watch())]

    async def _pump(self, listener: EventListener) -> None:
        async for event in listener:
            if self._on_event is not None:
                try:
                    self._on_event(dict(event))
                except Exception:
                    log.exception("event handler of %s", self.path)

    async def _watch(self) -> None:
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()
        self.closed = True
        try:
            await self._client.disconnect()
        except Exception as error:
            log.debug("%s: disconnect: %s", self.path, error)
        if self._on_closed is not None:
            self._on_closed()

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        oob: bool = False,
    ) -> Any:
        """Run one command; returns what QEMU returned.

        :raises CommandFailed: QEMU refused it
        :raises MonitorTimeout, MonitorGone: the outcome is unknown
        """
        if self.closed:
            raise MonitorGone(f"{self.path}: closed")
        try:
            return _loop.run(self._client.execute(command, arguments, oob=oob), timeout_s)
        except ExecuteError as error:
            raise CommandFailed(f"{command}: {error}") from error
        except MonitorTimeout as error:
            raise MonitorTimeout(f"{command}: {error}") from None
        except (ExecInterruptedError, QMPError, OSError, EOFError, asyncio.CancelledError) as error:
            raise MonitorGone(f"{command}: {error or 'connection closed'}") from error

    def getfd(self, fd: int, name: str) -> None:
        """Hand a file descriptor to QEMU under ``name`` (it keeps its own copy; the caller closes its own)."""
        self.execute_with_fd("getfd", {"fdname": name}, fd)

    def execute_with_fd(self, command: str, arguments: dict[str, Any], fd: int) -> Any:
        """Send ``fd`` (SCM_RIGHTS), then the command that takes it, with nothing in between."""
        duplicate = os.dup(fd)

        async def send() -> Any:
            self._client.send_fd_scm(duplicate)
            return await self._client.execute(command, arguments)

        try:
            return _loop.run(send(), DEFAULT_TIMEOUT_S)
        except ExecuteError as error:
            raise CommandFailed(f"{command}: {error}") from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise MonitorGone(f"{command}: {error}") from error
        finally:
            os.close(duplicate)

    def close(self) -> None:
        """Hang up; QEMU goes on."""
        if self.closed:
            return
        try:
            _loop.run(self._client.disconnect(), 2.0)
        except (MonitorTimeout, QMPError, OSError, EOFError) as error:
            log.debug("%s: close: %s", self.path, error)
        self.closed = True
