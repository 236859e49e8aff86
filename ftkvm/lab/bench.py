"""``make bench``: what protection costs, as ratios to the same work unprotected, measured in one run on one guest.

Two cores that emulate are noisy: every figure is the median of several rounds, with its spread, and the rounds of all
states follow each other: unprotected, protected, protected in plain (ft.encryption off), unprotected again. Live
migration is timed encrypted and in plain, in turn.
"""

import fcntl
import json
import os
import platform
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import lab, names, netns
from ftkvm.lab.client import ECHO, LEDGER, SINK, SOURCE, text_of, wait_for_guest
from ftkvm.lab.guest import domain
from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage

VM = "bench1"
REPORT = Path("build/bench.json")
ROUNDS = 5
STREAM_S = 3.0
ECHOES = 200
RECORDS = 100
STATES = "unprotected", "protected", "protected_in_plain"
_SIOCOUTQ = 0x5411
"""Bytes of a TCP socket that the peer has not acknowledged yet (tcp(7))."""


@dataclass(frozen=True)
class Measure:
    """One kind of work: its unit, whether more is better, and how one round of it is done."""

    name: str
    unit: str
    more_is_better: bool
    once: Callable[[str], float]


def round_trip_ms(address: str) -> float:
    """Median time of a 64 byte echo on an open connection."""
    with netns.connect(names.CLIENT_NS, address, ECHO, 20) as sock:
        times = []
        for _ in range(ECHOES):
            started = time.monotonic()
            sock.sendall(b"x" * 63 + b"\n")
            received = 0
            while received < 64:
                received += len(sock.recv(64))
            times.append(1000 * (time.monotonic() - started))
        return median(times)


def connect_ms(address: str) -> float:
    """Median time until a connection is open."""
    times = []
    for _ in range(10):
        started = time.monotonic()
        netns.connect(names.CLIENT_NS, address, ECHO, 20).close()
        times.append(1000 * (time.monotonic() - started))
        time.sleep(0.1)
    return median(times)


def from_guest_mb_s(address: str) -> float:
    """Megabytes a second the guest sends."""
    with netns.connect(names.CLIENT_NS, address, SOURCE, 20) as sock:
        started, count = time.monotonic(), 0
        while time.monotonic() - started < STREAM_S:
            count += len(sock.recv(1 << 18))
        return count / 1e6 / (time.monotonic() - started)


def into_guest_mb_s(address: str) -> float:
    """Megabytes a second the guest acknowledges."""
    with netns.connect(names.CLIENT_NS, address, SINK, 20) as sock:
        started, count, block = time.monotonic(), 0, b"x" * (1 << 16)
        while time.monotonic() - started < STREAM_S:
            count += sock.send(block)
        return (count - _unacknowledged(sock)) / 1e6 / (time.monotonic() - started)


def _unacknowledged(sock: socket.socket) -> int:
    answer = fcntl.ioctl(sock, _SIOCOUTQ, struct.pack("I", 0))
    return int(struct.unpack("I", answer)[0])


def records_s(address: str) -> float:
    """Records a second that the guest writes, fsyncs and acknowledges, one after the other."""
    with netns.connect(names.CLIENT_NS, address, LEDGER, 20) as sock, sock.makefile("rb") as lines:
        started = time.monotonic()
        for number in range(1, RECORDS + 1):
            sock.sendall(b"REC %d %s\n" % (number, text_of(number).encode()))
            if lines.readline().strip() != b"ACK %d" % number:
                raise FtkvmError("FTKVM-727", vm=VM, timeout_s="20", detail="the ledger refused a record")
        return RECORDS / (time.monotonic() - started)


MEASURES = (
    Measure("round trip", "ms", False, round_trip_ms),
    Measure("connect", "ms", False, connect_ms),
    Measure("from the guest", "MB/s", True, from_guest_mb_s),
    Measure("into the guest", "MB/s", True, into_guest_mb_s),
    Measure("records (write, fsync)", "1/s", True, records_s),
)


def measure(address: str, say: Callable[[str], None]) -> dict[str, list[float]]:
    """All measures, ``ROUNDS`` times each."""
    seen: dict[str, list[float]] = {each.name: [] for each in MEASURES}
    for number in range(ROUNDS):
        for each in MEASURES:
            seen[each.name].append(round(each.once(address), 3))
        say(f"  round {number + 1}: " + ", ".join(f"{m.name} {seen[m.name][-1]:g} {m.unit}" for m in MEASURES))
    return seen


def run(stage: Stage, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole bench on bare hosts; the figures."""
    stage.create_cluster(say)
    guest = domain.create(VM, Host(stage.hosts[0]), "1G", 256, 1, stage.datastore)
    stage.ftkvm("vm", "register", VM, "--host", stage.hosts[0])
    stage.ftkvm("vm", "start", VM, "--host", stage.hosts[0])
    wait_for_guest(guest.address)
    say("unprotected")
    before = measure(guest.address, say)
    stage.ftkvm("enable", VM)
    stage.wait_protected(VM, 60)
    time.sleep(5)  # the checkpoint interval settles
    say("protected")
    protected = measure(guest.address, say)
    pair = stage.pair(VM)
    stage.ftkvm("cluster", "set", "ft.encryption=off")
    stage.ftkvm("test", "restart-secondary", VM)
    stage.wait_protected(VM, 60)
    time.sleep(5)
    say("protected, its channels in plain")
    in_plain = measure(guest.address, say)
    stage.ftkvm("turn-off", VM)
    say("unprotected again")
    after = measure(guest.address, say)
    shown = ("checkpoint_ms", "checkpoint_interval_ms", "checkpoint_interval_why", "log_bandwidth_mbit_s")
    return {
        "machine": machine(),
        "pair_at_the_end": {key: pair.get(key) for key in shown},
        "measures": {each.name: compare(each, before[each.name] + after[each.name], protected[each.name],
                                        in_plain[each.name]) for each in MEASURES},
        "migration_s": migrations(stage, say),
    }  # fmt: skip


def migrations(stage: Stage, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Seconds that `ftkvm vm migrate` takes, encrypted and in plain in turn."""
    took: dict[str, list[float]] = {"on": [], "off": []}
    for _round in range(ROUNDS):
        for encryption, times in took.items():
            stage.ftkvm("cluster", "set", f"migration.encryption={encryption}")
            home = stage.vm_status(VM)["host"]
            started = time.monotonic()
            stage.ftkvm("vm", "migrate", VM, "--to", next(name for name in stage.hosts if name != home))
            times.append(round(time.monotonic() - started, 2))
    say(f"migration, encrypted and in plain: {took}")
    return {name: spread(took[word]) for name, word in (("encrypted", "on"), ("plain", "off"))}


def spread(times: list[float]) -> dict[str, float]:
    return {"median": median(times), "min": min(times), "max": max(times)}


def compare(each: Measure, alone: list[float], protected: list[float], in_plain: list[float]) -> dict[str, Any]:
    """Medians, spreads, and the ratios protected : unprotected, encrypted and not."""
    return {
        "unit": each.unit,
        "more_is_better": each.more_is_better,
        "unprotected": spread(alone),
        "protected": spread(protected),
        "protected_in_plain": spread(in_plain),
        "ratio": round(median(protected) / median(alone), 3),
        "ratio_in_plain": round(median(in_plain) / median(alone), 3),
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(), "kvm": domain.kvm_state()}


def show(figures: dict[str, Any]) -> None:
    """The table on the terminal."""
    columns = "WORK", "UNPROTECTED", "PROTECTED", "RATIO", "IN PLAIN", "RATIO"
    table = Table(*columns, title=f"{figures['machine']}")
    for name, each in figures["measures"].items():
        alone, protected, in_plain = (_cell(each[state], each["unit"]) for state in STATES)
        table.add_row(name, alone, protected, f"{each['ratio']:g}", in_plain, f"{each['ratio_in_plain']:g}")
    for name, took in figures["migration_s"].items():
        table.add_row(f"live migration, {name}", _cell(took, "s"))
    Console().print(table)


def _cell(side: dict[str, float], unit: str) -> str:
    return f"{side['median']:g} ({side['min']:g}–{side['max']:g}) {unit}"  # noqa: RUF001


def main() -> int:
    """A lab from nothing, the measures, the report."""

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        lab.down(say)
        lab.up(2, None, say)
        figures = run(Stage(tuple(names.host_names(2))), say)
    except FtkvmError as error:
        print(f"{error}\n  cause:  {error.cause}\n  remedy: {error.remedy}", file=sys.stderr)
        return error.message.exit_status
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    show(figures)
    print(f"Figures: {REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
