"""What this host is made of, as the checks look at it: /proc/cpuinfo, sysfs, psutil, and the tiny guest."""

import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from ftkvm.adapters import kvm_probe
from ftkvm.adapters.kvm_probe import Probe
from ftkvm.core import clock as clocks
from ftkvm.core import mount as mounts
from ftkvm.core.checks.cpu import GROUPS, Cpu, Group, group_of, parse, read_groups
from ftkvm.core.clock import Clock
from ftkvm.core.mount import Mount

GROUPS_FILE = Path("/etc/ftkvm/processors.toml")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def own_cpu(proc: Path = Path("/proc")) -> Cpu:
    """The first processor. :raises OSError: /proc does not tell"""
    return parse((proc / "cpuinfo").read_text())


def groups(file: Path = GROUPS_FILE) -> tuple[Group, ...]:
    """The known groups and the operator's. :raises ValueError: the operator's file is not understood"""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return GROUPS
    return read_groups(text)


def mixed_group(cpu: Cpu) -> str:
    """The group within which this host's processor may be paired with others; empty: with its equals only."""
    try:
        found = group_of(cpu, groups())
    except (OSError, ValueError):  # `ftkvm check host` tells
        return ""
    return found.name if found is not None and found.mixed else ""


KVM_WAIT_S = 3.0
"""A host on which KVM works is known after half a second; where it is broken, mostly after 2.5 s."""


def look(addresses: Mapping[str, str], datastore: Path, kvm: Probe) -> dict[str, Any]:
    """The host's own part of :class:`ftkvm.core.checks.host.HostView`, as JSON. ``addresses``: by network.

    :raises ValueError: the operator's groups file is not understood
    """
    cpu = own_cpu()
    group, mount = group_of(cpu, groups()), own_mount(datastore)
    return {
        "cpu": {**asdict(cpu), "flags": sorted(cpu.flags)},
        "cpu_group": group.name if group else "",
        "kvm": asdict(kvm_probe.signs(cpu.flags, kvm, KVM_WAIT_S)),
        "mhz": own_mhz(),
        "governor": _text(_FREQUENCY / "scaling_governor"),
        "links": links(addresses),
        "mount": asdict(mount) if mount is not None else None,
        "clock": asdict(own_clock()),
    }


def own_mount(path: Path, proc: Path = Path("/proc")) -> Mount | None:
    """The mount that ``path`` lies on; None if the kernel does not tell.

    ``path`` itself, which may hang, is not touched.
    """
    found = mounts.parse(_text(proc / "mounts"), str(path))
    lent = found is not None and mounts.delegations(_text(proc / "self/mountstats"), found.path)
    return replace(found, delegations=lent) if found is not None else None


def own_clock(timeout_s: float = 3.0) -> Clock:
    """As systemd tells it; nothing is known if it does not in time."""
    try:
        done = subprocess.run(["sh", "-c", clocks.COMMAND], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Clock()
    return clocks.parse(done.stdout)


def links(addresses: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The NIC that has each address, with its speed (0: not known) and MTU."""
    stats = psutil.net_if_stats()
    found = {}
    for nic, entries in psutil.net_if_addrs().items():
        for kind, address in addresses.items():
            if any(entry.address == address for entry in entries) and nic in stats:
                found[kind] = {"nic": nic, "mbit_s": _speed(stats[nic].speed), "mtu": stats[nic].mtu}
    return found


def _speed(mbit_s: int) -> int:
    return mbit_s if 0 < mbit_s < 65535 else 0  # 65535: the kernel's word for "not known"


def own_mhz() -> int:
    """The processor's highest clock, or its present one; 0 if neither is known."""
    text = _text(_FREQUENCY / "cpuinfo_max_freq")
    if text.isdigit():
        return int(text) // 1000
    now = psutil.cpu_freq()
    return int(now.current) if now is not None else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
