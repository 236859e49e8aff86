"""The watchdogs of the lab's hosts, seen from the process that runs beside each host (:mod:`ftkvm.lab.devices`).

A container's is kept by that process itself: the host pets a socket. A VM's is its own i6300esb, which QEMU goes on
emulating while the VM's CPUs stand still, and which says on a monitor that it has fired.
"""

import contextlib
import logging
import socket
import time
from pathlib import Path
from typing import Protocol

from ftkvm.lab.monitor import Qmp

log = logging.getLogger(__name__)


class Countdown:
    """Counts down. Pure but for the clock handed in (seconds)."""

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.timeout_ms = 0

    def said(self, text: str, now_s: float) -> None:
        """Take in one datagram; what is not understood is not a pet."""
        words = text.split()
        if words == ["disarm"]:
            self.due_s, self.timeout_ms = None, 0
        elif len(words) == 2 and words[0] == "pet" and words[1].isdigit():
            self.timeout_ms = int(words[1])
            self.due_s = now_s + self.timeout_ms / 1000

    def stand_still(self, now_s: float) -> None:
        """Its machine is stopped, and it with it: the countdown begins anew."""
        if self.due_s is not None:
            self.due_s = now_s + self.timeout_ms / 1000

    def expired(self, now_s: float) -> bool:
        return self.due_s is not None and now_s >= self.due_s


class HostWatchdog(Protocol):
    """What the process beside a host asks of its watchdog."""

    @property
    def armed_ms(self) -> int:
        """The time it has been armed with, as far as this process knows; 0: not armed, or not known here."""
        ...

    def source(self) -> socket.socket | Qmp | None:
        """What to wait for, if there is something by now."""
        ...

    def hear(self) -> None:
        """Take in what the source has."""
        ...

    def fired(self, now_s: float, suspended: bool) -> bool:
        """Whether it has just fired; true once."""
        ...


class PettedSocket:
    """A container's: datagrams ``pet <timeout_ms>`` and ``disarm`` to a socket that is its ``/dev/watchdog``."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._countdown = Countdown()

    @property
    def armed_ms(self) -> int:
        return self._countdown.timeout_ms if self._countdown.due_s is not None else 0

    def source(self) -> socket.socket:
        return self._socket

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(100):
                self._countdown.said(data.decode(errors="replace"), time.monotonic())

    def fired(self, now_s: float, suspended: bool) -> bool:
        if suspended:
            self._countdown.stand_still(now_s)
        elif self._countdown.expired(now_s):
            log.warning("not petted for %d ms", self._countdown.timeout_ms)
            self._countdown.due_s = None
            return True
        return False


class EmulatedDevice:
    """A VM's own: QEMU tells of it on a monitor that nobody else uses, and does nothing about it.

    QEMU's own actions would wait for the CPUs to stop, which they cannot do while they are held.
    """

    armed_ms = 0  # only the device knows; see VmHost.watchdog_state

    def __init__(self, monitor: Path) -> None:
        self._path = monitor
        self._monitor: Qmp | None = None
        self._fired = False

    def source(self) -> Qmp | None:
        if self._monitor is None and self._path.exists():
            with contextlib.suppress(OSError):  # not listening yet; TimeoutError is one
                self._monitor = Qmp(self._path)
                self.hear()  # what came with its first answer
        return self._monitor

    def hear(self) -> None:
        if (monitor := self._monitor) is None:
            return
        try:
            monitor.hear()
        except OSError:  # the QEMU has ended
            monitor.close()
            self._monitor = None
        self._fired = self._fired or any(event["event"] == "WATCHDOG" for event in monitor.events)
        monitor.events.clear()

    def fired(self, now_s: float, suspended: bool) -> bool:
        """A stopped QEMU says nothing, so there is nothing to suspend."""
        fired, self._fired = self._fired, False
        return fired
