"""What is to be seen of HA from outside: which host has a QEMU of which VM at any time, who acknowledged what.

Looked for in this machine's process list, so also on hosts that are frozen, and whatever the cluster believes.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ftkvm.lab.client import ECHO, LEDGER, LedgerClient, ask, text_of
from ftkvm.lab.host import Host

EVERY_S = 0.3
RECORD_EVERY_S = 0.5
_SPAN = 100
_AHEAD, _FLOOD = 10, 40


@dataclass(frozen=True)
class Sighting:
    """A VM's QEMU on a host, from when to when it was seen (wall clock, seconds)."""

    host: str
    first: float
    last: float


def note(seen: list[Sighting], host: str, at: float, gone_after_s: float) -> None:
    """Add a look that found a QEMU; one that was not seen for a while is another one."""
    for index, known in enumerate(seen):
        if known.host == host and at - known.last < gone_after_s:
            seen[index] = Sighting(host, known.first, at)
            return
    seen.append(Sighting(host, at, at))


class Census(threading.Thread):
    """Counts the QEMUs of some VMs on some hosts, again and again."""

    def __init__(self, hosts: Sequence[str], vms: Sequence[str]) -> None:
        super().__init__(name="census", daemon=True)
        self._hosts = [Host(name) for name in hosts]
        self._vms = tuple(vms)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._seen: dict[str, list[Sighting]] = {vm: [] for vm in vms}
        self._doubles: dict[str, tuple[float, float]] = {}
        self.longest_s = 0.0
        """The longest time between two looks."""

    def run(self) -> None:
        looked = time.monotonic()
        while not self._ending.wait(EVERY_S):
            self._look()
            now = time.monotonic()
            self.longest_s, looked = max(self.longest_s, now - looked), now

    def _look(self) -> None:
        """safety: what is seen on two hosts is looked at once more, for the first look may be older than the second."""
        found = {host.name: qemus(host) for host in self._hosts}
        at = time.time()
        for vm in self._vms:
            where = [host for host, names in found.items() if vm in names]
            if len(where) > 1:
                where = [host.name for host in self._hosts if host.name in where and vm in qemus(host)]
            with self._lock:
                if len(where) > 1:
                    what = f"{vm} has a QEMU on {' and '.join(where)}"
                    self._doubles[what] = (self._doubles.get(what, (at, at))[0], at)
                for host in where:
                    note(self._seen[vm], host, at, 2.0 + self.longest_s)

    def sightings(self, vm: str, since: float = 0.0) -> list[Sighting]:
        """Where a VM's QEMU was seen, in the order it was first seen there."""
        with self._lock:
            return [each for each in self._seen[vm] if each.last >= since]

    def doubles(self) -> list[str]:
        """Looks that found a VM on two hosts; forgotten once told."""
        with self._lock:
            found, self._doubles = self._doubles, {}
        return [f"{what} from {first:.1f} to {last:.1f}" for what, (first, last) in found.items()]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self.join(5)


def qemus(host: Host) -> set[str]:
    """The names of VMs that have a QEMU on a host, also one that is stopped or blocked."""
    found = set()
    for pid in host.cgroup.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"qemu" in words[0] and b"-name" in words:
                name = words[words.index(b"-name") + 1].decode(errors="replace")
                found.add(name.removeprefix("guest=").partition(",")[0])
    return found


def answers(address: str) -> bool:
    """Whether a guest's echo answers now."""
    try:
        return ask(address, ECHO, "are you there", 1) == "are you there"
    except OSError:
        return False


def on_disk(address: str, number: int) -> bool:
    """Whether a guest finds a record on its disk. Raises OSError."""
    return not ask(address, LEDGER, f"READ {number}", 30).startswith("NONE")


class Records:
    """A client of one VM that writes numbered records for as long as it lives; another follows when it was lost."""

    def __init__(self, address: str, first: int = 1) -> None:
        self._address = address
        self._client: LedgerClient | None = None
        self._next = first
        self.acknowledged: list[int] = []

    def begin(self) -> None:
        """A new connection, with numbers that none before has used. Raises OSError: the guest does not answer."""
        self.end()
        client = LedgerClient(self._address, first=self._next, every_s=RECORD_EVERY_S)
        client.start()
        self._client = client

    def flood(self) -> list[int]:
        """Send records to a guest that stands still, without waiting for its answers; their numbers."""
        if self._client is None:
            return []
        first = (self._client.acknowledged or [self._next])[-1] + _AHEAD
        numbers = list(range(first, first + _FLOOD))
        self._client.sock.sendall(b"".join(b"REC %d %s\n" % (n, text_of(n).encode()) for n in numbers))
        return numbers

    def end(self) -> list[int]:
        """Close the connection; the numbers that were acknowledged on it."""
        client, self._client = self._client, None
        if client is None:
            return []
        client.close()
        told = list(client.acknowledged)
        self.acknowledged += told
        self._next = max(self._next, (told[-1] if told else self._next) + _SPAN)
        return told
