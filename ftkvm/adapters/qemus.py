"""The QEMU processes of this host, by the kernel's word: libvirtd may hang or be away, and must not be needed here."""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(?:^|,)guest=([^,]*)")
_STATE = re.compile(rb"<domstatus state='([a-z]+)'")
_COMM_START = b"(qemu-system"
_HEAD_BYTES = 1024
_STAT_BYTES = 4096
"""More than any /proc/PID/stat has: 52 numbers and a name of 15 characters."""
_DEAD = (b"Z", b"X")


@dataclass(frozen=True)
class Qemu:
    """One QEMU; ``started`` (clock ticks since the boot) tells it from a later process with the same number."""

    pid: int
    started: int
    uuid: str
    name: str


class Qemus:
    """Looks at /proc; what a process was started with is read once, for reading it can hang when its memory does."""

    def __init__(self, proc: Path = Path("/proc"), status: Path = Path("/run/libvirt/qemu")) -> None:
        self._proc = proc
        self._status = status
        self._known: dict[tuple[int, int], Qemu | None] = {}

    def look(self) -> dict[str, Qemu]:
        """All QEMUs with a UUID, by it."""
        found: dict[str, Qemu] = {}
        seen: dict[tuple[int, int], Qemu | None] = {}
        for entry in os.listdir(self._proc):  # noqa: PTH208  (each second: names are enough)
            if not entry.isdecimal():
                continue
            identity = self._identity(int(entry))
            if identity is None:
                continue
            try:
                qemu = self._known[identity] if identity in self._known else self._read(*identity)
            except OSError:
                continue
            seen[identity] = qemu
            if qemu is not None:
                found[qemu.uuid] = qemu
        self._known = seen
        return found

    def _identity(self, pid: int) -> tuple[int, int] | None:
        """(pid, start) of a process that is a QEMU and not dead.

        safety: a process whose first thread is a zombie is dead only when no other thread is left. One that hangs in
        the storage survives SIGKILL, and its write may still come through.
        """
        try:
            stat = _stat(f"{self._proc}/{pid}/stat")
            if not stat.startswith(_COMM_START, stat.index(b"(")):
                return None
            rest = stat[stat.rindex(b")") + 2 :].split()  # the name may hold anything
            if rest[0] in _DEAD and len(list((self._proc / str(pid) / "task").iterdir())) < 2:
                return None
            return pid, int(rest[19])
        except (OSError, ValueError, IndexError):
            return None

    def _read(self, pid: int, started: int) -> Qemu | None:
        """What it was started with; None: it runs no VM (libvirt asks some what they can do).

        safety: a process has its new name some time before its words can be read. Then it is read again at the next
        look; remembered as none, the QEMU of a VM would never be seen.

        :raises OSError: not known yet, or gone
        """
        words = (self._proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if words == [""]:
            raise ProcessLookupError(f"process {pid} has no words yet")
        if "-uuid" not in words or "-name" not in words:
            return None
        uuid = words[words.index("-uuid") + 1]
        name = _NAME.search(words[words.index("-name") + 1])
        return Qemu(pid, started, uuid, name.group(1) if name else uuid)

    def paused(self, qemu: Qemu) -> bool:
        """Whether libvirt last noted it as paused (a copy being made, a migration coming in)."""
        try:
            with (self._status / f"{qemu.name}.xml").open("rb") as file:
                match = _STATE.search(file.read(_HEAD_BYTES))
        except OSError:
            return False
        return match is not None and match.group(1) == b"paused"

    def alive(self, qemu: Qemu) -> bool:
        """Whether this very process, or a thread of it, is there."""
        return self._identity(qemu.pid) == (qemu.pid, qemu.started)

    def kill(self, qemu: Qemu, timeout_s: float) -> bool:
        """SIGKILL it; whether it is gone within ``timeout_s``. One that hangs in the storage is not."""
        try:
            descriptor = os.pidfd_open(qemu.pid)
        except ProcessLookupError:
            return not self.alive(qemu)
        try:
            if self.alive(qemu):  # looked at after the descriptor was opened: it is this process and no later one
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)
        return self.gone_within(qemu, timeout_s)

    def gone_within(self, qemu: Qemu, timeout_s: float) -> bool:
        """Wait until it is gone, at most so long."""
        deadline = time.monotonic() + timeout_s
        while self.alive(qemu):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


class LastQemu:
    """The process that one VM's QEMU was when it was last noted."""

    def __init__(self, uuid: str, qemus: Qemus | None = None) -> None:
        self._uuid = uuid
        self._qemus = qemus or Qemus()
        self._last: Qemu | None = None

    def note(self) -> None:
        """Note which process it is now."""
        self._last = self._qemus.look().get(self._uuid)

    def gone(self) -> bool:
        """Whether not one thread of it is left; False if none was ever noted.

        safety: a QEMU's command line is empty as soon as its first thread is dead. To look for that is not enough:
        another one may hang in the storage still, and its write come through much later.
        """
        return self._last is not None and not self._qemus.alive(self._last)


def _stat(path: str) -> bytes:
    """A short file of the kernel's, with three system calls: a host has a thousand processes, and all are looked at
    in each turn of HA. (``Path.read_text`` takes eight, and three times as long.)"""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _STAT_BYTES)
    finally:
        os.close(descriptor)
