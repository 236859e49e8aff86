"""What this host has free and unreserved for VMs (HA-07), as it tells the others with its beats."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ftkvm.core.ha.model import HostCapacity

_MHZ = re.compile(r"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)
_MEMORY = re.compile(r"^MemTotal:\s*(\d+) kB", re.MULTILINE)
HOST_MEMORY_MB = 512
"""Left to the host itself."""


@dataclass(frozen=True)
class Needs:
    """What is reserved for one VM that runs here."""

    cpu_mhz: int
    memory_mb: int


@dataclass(frozen=True)
class Hardware:
    """The host's processors, all together, and its memory."""

    cpu_mhz: int
    memory_mb: int


def hardware(proc: Path = Path("/proc")) -> Hardware:
    """By the kernel; a maximum frequency is taken where the kernel tells it, for what runs now says little."""
    current = [float(text) for text in _MHZ.findall((proc / "cpuinfo").read_text())]
    most = 0.0
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        try:
            most = max(most, int(path.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    memory = _MEMORY.search((proc / "meminfo").read_text())
    assert memory is not None
    return Hardware(int(most * len(current) if most else sum(current)), int(memory.group(1)) // 1024)


def bridges(configured: Iterable[str], net: Path = Path("/sys/class/net")) -> frozenset[str]:
    """The VM bridges that are there."""
    return frozenset(name for name in configured if (net / name / "bridge").is_dir())


def capacity(
    own: Hardware, running: Iterable[str], needs: Callable[[str], Needs | None], there: frozenset[str], why_not: str
) -> HostCapacity:
    """What is left of ``own`` when the VMs that run here have theirs; ``why_not`` empty: it can take VMs."""
    known = [each for each in map(needs, running) if each is not None]
    return HostCapacity(
        max(0, own.cpu_mhz - sum(each.cpu_mhz for each in known)),
        max(0, own.memory_mb - HOST_MEMORY_MB - sum(each.memory_mb for each in known)),
        there,
        compatible=not why_not,
        why_not=why_not,
    )
