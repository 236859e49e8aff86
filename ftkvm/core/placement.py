"""Where a new secondary goes (FT-05, FT-07). Pure: the hosts' facts in, a choice or each host's refusal out."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ftkvm.core.checks.cpu import alike
from ftkvm.core.checks.domain import bridges, memory_mb
from ftkvm.core.facts import DatastoreState


class Refusal(StrEnum):
    """Why a host cannot take the secondary. One word each; the catalogue and the docs explain them."""

    PRIMARY_HOST = "primary-host"
    EXCLUDED = "excluded"
    NOT_ALIVE = "not-alive"
    MAINTENANCE = "maintenance"
    DATASTORE = "datastore"
    QEMU_VERSION = "qemu-version"
    LIBVIRT_VERSION = "libvirt-version"
    CPU = "cpu"
    NETWORK = "network"
    FT_NETWORK = "ft-network"
    MEMORY = "memory"
    DISK_ROOM = "disk-room"


@dataclass(frozen=True)
class Room:
    """What is free in a directory; directories of one file system (`device`) have it together."""

    device: int
    free_bytes: int


@dataclass(frozen=True)
class HostFacts:
    """What is known of one host. `cpu`: a fingerprint of vendor, family, model, stepping and extensions.

    `cpu_group`: the operator's group within which this processor may be paired with others (see `checks/cpu.py`).
    `ft_reached`: not that it is unreachable on the FT network from the primary's host. `room`: by directory, None where
    there is no such directory; None altogether: not known, and the host itself refuses when it is asked.
    """

    name: str
    alive: bool
    datastore: DatastoreState
    qemu_version: str
    libvirt_version: str
    cpu: str
    free_memory_mb: int
    ft_vms: int = 0
    maintenance: bool = False
    bridges: frozenset[str] = frozenset()
    cpu_group: str = ""
    ft_reached: bool = True
    room: Mapping[str, Room | None] | None = None


@dataclass(frozen=True)
class VmNeeds:
    """What the VM asks of its secondary's host. `copies`: bytes of whole images by directory, if it gets its own."""

    name: str
    primary_host: str
    memory_mb: int
    bridges: frozenset[str] = frozenset()
    copies: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, primary_host: str, xml: str) -> "VmNeeds":
        """What a VM of this definition asks for, whoever asks: running or stored, as libvirt writes it.

        :raises xml.etree.ElementTree.ParseError: not XML
        """
        domain = ET.fromstring(xml)
        return cls(name, primary_host, memory_mb(domain), bridges(domain))


@dataclass(frozen=True)
class Choice:
    """`host` is None when none fits; `refusals` says why, per host, also for those that lost only by preference: ()."""

    host: str | None
    refusals: dict[str, tuple[Refusal, ...]] = field(default_factory=dict)


#: The secondary keeps a second copy of the guest's memory for the checkpoint being loaded.
MEMORY_FACTOR = 2


def lacking(room: Mapping[str, Room | None], copies: Mapping[str, int]) -> list[str]:
    """What is missing for whole copies (bytes by directory), with the sums; empty if they fit."""
    found = [f"there is no directory {directory}" for directory in sorted(copies) if room.get(directory) is None]
    there = {directory: known for directory in sorted(copies) if (known := room.get(directory)) is not None}
    for device in dict.fromkeys(known.device for known in there.values()):
        names = [directory for directory, known in there.items() if known.device == device]
        free, wanted = there[names[0]].free_bytes, sum(copies[name] for name in names)
        if free < wanted:
            found.append(f"{', '.join(names)}: {free >> 20} MiB free, whole copies may need {-(-wanted >> 20)} MiB")
    return found


Check = Callable[[HostFacts, HostFacts, VmNeeds], bool]
CHECKS: tuple[tuple[Refusal, Check], ...] = (
    (Refusal.PRIMARY_HOST, lambda host, primary, vm: host.name != vm.primary_host),
    (Refusal.NOT_ALIVE, lambda host, primary, vm: host.alive),
    (Refusal.MAINTENANCE, lambda host, primary, vm: not host.maintenance),
    (Refusal.DATASTORE, lambda host, primary, vm: host.datastore is DatastoreState.OK),
    (Refusal.QEMU_VERSION, lambda host, primary, vm: host.qemu_version == primary.qemu_version),
    (Refusal.LIBVIRT_VERSION, lambda host, primary, vm: host.libvirt_version == primary.libvirt_version),
    (Refusal.CPU, lambda host, primary, vm: alike(host.cpu, primary.cpu, host.cpu_group, primary.cpu_group)),
    (Refusal.NETWORK, lambda host, primary, vm: vm.bridges <= host.bridges),
    (Refusal.FT_NETWORK, lambda host, primary, vm: host.ft_reached),
    (Refusal.MEMORY, lambda host, primary, vm: host.free_memory_mb >= MEMORY_FACTOR * vm.memory_mb),
    (Refusal.DISK_ROOM, lambda host, primary, vm: host.room is None or not lacking(host.room, vm.copies)),
)


def choose_secondary(hosts: Iterable[HostFacts], vm: VmNeeds, exclude: Collection[str] = ()) -> Choice:
    """The best host for the secondary of `vm`: fewest refusals is not enough, there must be none.

    Among the fitting ones: most free memory, then fewest FT VMs, then the name (so that all agents choose alike).
    `exclude`: hosts that just failed at it, or that the user ruled out. Facts of the primary's host must be among
    `hosts`; without them nothing can be compared and every host is refused.
    """
    known = {host.name: host for host in hosts}
    primary = known.get(vm.primary_host)
    refusals = {name: _refusals(host, primary, vm, exclude) for name, host in sorted(known.items())}
    fitting = [known[name] for name, why in refusals.items() if not why]
    best = min(fitting, key=lambda host: (-host.free_memory_mb, host.ft_vms, host.name), default=None)
    return Choice(best.name if best else None, refusals)


def _refusals(host: HostFacts, primary: HostFacts | None, vm: VmNeeds, exclude: Collection[str]) -> tuple[Refusal, ...]:
    if host.name != vm.primary_host and host.name in exclude:
        return (Refusal.EXCLUDED,)
    if host.name == vm.primary_host:
        return (Refusal.PRIMARY_HOST,)
    if not host.alive:
        return (Refusal.NOT_ALIVE,)  # what else it is said to be is old
    if primary is None:
        return (Refusal.QEMU_VERSION, Refusal.LIBVIRT_VERSION, Refusal.CPU)
    return why_not(host, primary, vm)


def why_not(host: HostFacts, primary: HostFacts, vm: VmNeeds) -> tuple[Refusal, ...]:
    """What forbids `host` the secondary of a VM that runs on `primary`; empty if nothing does."""
    return tuple(refusal for refusal, fits in CHECKS if not fits(host, primary, vm))
