"""The watchdog that ends this host when nobody puts it off any more. Standard library only: used before all else.

A character device is a Linux watchdog (``/dev/watchdog``, of hardware or softdog). A unix datagram socket is one that
somebody keeps for this host from outside: ``pet <timeout_ms>\\n`` arms it or puts it off, ``disarm\\n`` ends it.
"""

import array
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)
_WDIOC_KEEPALIVE = 0x80045705
_WDIOC_SETTIMEOUT = 0xC0045706


class Watchdog(Protocol):
    """Armed by its first :meth:`pet`; an armed one ends the host ``timeout_ms`` after the last."""

    def pet(self) -> bool:
        """Arm it, or put it off; False if that did not work. Never waits."""
        ...

    def disarm(self) -> bool:
        """Stop it; False if that did not work, and it goes on."""
        ...

    def ask(self, timeout_ms: int) -> None:
        """Take this time from the next pet on, if the device can."""
        ...

    @property
    def timeout_ms(self) -> int:
        """In force: a device may take another time than it was asked for. 0: there is none."""
        ...


class NoWatchdog:
    """No device is configured, or there is none."""

    timeout_ms = 0

    def ask(self, timeout_ms: int) -> None:
        return

    def pet(self) -> bool:
        return False

    def disarm(self) -> bool:
        return True


class LinuxWatchdog:
    """``/dev/watchdog``; opened with the first pet, for opening starts it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._wanted_ms = 0
        self._asked_ms = 0
        self._timeout_ms = 0

    @property
    def timeout_ms(self) -> int:
        return self._timeout_ms

    def ask(self, timeout_ms: int) -> None:
        self._wanted_ms = timeout_ms

    def pet(self) -> bool:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
                self._asked_ms = 0
            if self._asked_ms != self._wanted_ms:
                self._set_timeout(self._descriptor)
            fcntl.ioctl(self._descriptor, _WDIOC_KEEPALIVE, array.array("i", [0]), True)
        except OSError as error:
            log.error("watchdog %s: %s", self._path, error)
            if self._asked_ms == 0:  # opening it started it, with a time that nobody asked for
                self.disarm()
            return False
        return True

    def _set_timeout(self, descriptor: int) -> None:
        seconds = array.array("i", [max(1, self._wanted_ms // 1000)])
        fcntl.ioctl(descriptor, _WDIOC_SETTIMEOUT, seconds, True)  # it answers with what it took
        self._asked_ms, self._timeout_ms = self._wanted_ms, seconds[0] * 1000

    def disarm(self) -> bool:
        """The magic close. A driver with *nowayout* goes on all the same, and then the host ends: it says so."""
        if self._descriptor is None:
            return True
        try:
            os.write(self._descriptor, b"V")
        except OSError as error:
            log.error("watchdog %s cannot be disarmed: %s", self._path, error)
            return False
        os.close(self._descriptor)
        self._descriptor = None
        return True


class SocketWatchdog:
    """A watchdog behind a unix datagram socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.timeout_ms = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ask(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms

    def pet(self) -> bool:
        return self._send(f"pet {self.timeout_ms}\n".encode())

    def disarm(self) -> bool:
        return self._send(b"disarm\n")

    def _send(self, line: bytes) -> bool:
        try:
            self._socket.sendto(line, str(self._path))
        except OSError as error:
            log.error("watchdog %s: %s", self._path, error)
            return False
        return True


def find_watchdog(path: str) -> Watchdog:
    """The watchdog at ``path``; nothing is armed by this. An empty path, or nothing there: none."""
    if not path:
        return NoWatchdog()
    with contextlib.suppress(OSError):
        mode = Path(path).stat().st_mode
        if stat.S_ISCHR(mode):
            return LinuxWatchdog(Path(path))
        if stat.S_ISSOCK(mode):
            return SocketWatchdog(Path(path))
        log.error("watchdog %s is neither a device nor a socket", path)
        return NoWatchdog()
    log.error("watchdog %s: %s", path, os.strerror(errno.ENOENT))
    return NoWatchdog()
