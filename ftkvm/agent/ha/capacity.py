"""What this host has free and unreserved for VMs (HA-07), as it tells the others with its beats."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ftkvm.adapters.hardware import Hardware
from ftkvm.core.ha.capacity import HOST_MEMORY_MB
from ftkvm.core.ha.model import HostCapacity


@dataclass(frozen=True)
class Needs:
    """What is reserved for one VM that runs here."""

    cpu_mhz: int
    memory_mb: int


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
