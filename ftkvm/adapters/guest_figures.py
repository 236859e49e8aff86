"""Figures of a guest as its host has them: I/O counters out of libvirt's statistics, and since when its QEMU runs."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkvm.core.ha.vm_monitor import Io


@dataclass(frozen=True)
class Life:
    """One QEMU process: its name, and when it began, in milliseconds of CLOCK_MONOTONIC."""

    name: str
    born_ms: int


def counters(row: Mapping[str, Any]) -> Io | None:
    """The counters in one row of libvirt's statistics; None if its disks are there without figures (QEMU is busy)."""
    disks = [f"block.{number}." for number in range(int(row.get("block.count", 0)))]
    known = [disk for disk in disks if f"{disk}rd.reqs" in row]
    if ("block.count" not in row) or (disks and not known):
        return None
    nics = [f"net.{number}." for number in range(int(row.get("net.count", 0)))]
    return Io(
        sum(int(row[f"{disk}rd.reqs"]) + int(row.get(f"{disk}wr.reqs", 0)) for disk in known),
        sum(int(row.get(f"{nic}tx.pkts", 0)) for nic in nics),
        sum(int(row.get(f"{nic}rx.pkts", 0)) for nic in nics),
    )


def life(name: str, pids: Path = Path("/run/libvirt/qemu"), proc: Path = Path("/proc")) -> Life | None:
    """The QEMU process of a domain, or None if there is none now."""
    try:
        pid = int((pids / f"{name}.pid").read_text())
        began = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    return Life(f"{pid}-{began}", int((time.monotonic() - age_s) * 1000))


def starved_ms(pid: int, proc: Path = Path("/proc")) -> int:
    """How long in all a process's most starved thread was ready to run and got no processor; 0 if it is gone."""
    waited_ns = [0]
    for file in (proc / str(pid) / "task").glob("*/schedstat"):
        try:
            waited_ns.append(int(file.read_text().split()[1]))
        except (OSError, ValueError, IndexError):  # the thread has just ended
            continue
    return max(waited_ns) // 1_000_000
