"""What this host has altogether, by its kernel: processors and memory."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MHZ = re.compile(r"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)
_MEMORY = re.compile(r"^MemTotal:\s*(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Hardware:
    """All processors together, and the memory."""

    cpu_mhz: int
    memory_mb: int


def hardware(proc: Path = Path("/proc"), cpus: Path = Path("/sys/devices/system/cpu")) -> Hardware:
    """A processor's highest frequency is taken where the kernel tells it, for what it runs at now says little.

    :raises OSError, ValueError: the kernel does not tell
    """
    now = [float(text) for text in _MHZ.findall((proc / "cpuinfo").read_text())]
    most = [int(path.read_text()) / 1000 for path in cpus.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")]
    memory = _MEMORY.search((proc / "meminfo").read_text())
    if memory is None or not now:
        raise ValueError(f"{proc} tells no processors or no memory")
    return Hardware(int(max(most) * len(now) if most else sum(now)), int(memory.group(1)) // 1024)


def bridges(configured: Iterable[str], net: Path = Path("/sys/class/net")) -> frozenset[str]:
    """Those of the VM bridges that are there."""
    return frozenset(name for name in configured if (net / name / "bridge").is_dir())


def machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """What systemd and libvirt tell this machine from others by; empty if it has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
