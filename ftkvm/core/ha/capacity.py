"""What hosts have for VMs, what VMs ask for, and the arithmetic of slots (HA-09; guide, "slot size calculation"). Pure.

MHz and MB throughout. A *load* is one QEMU: an ordinary VM, or one copy of an FT pair; each counts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import combinations
from math import ceil, comb
from typing import Any

from ftkvm.core.ha.model import Priority
from ftkvm.core.ha.settings import failover_host, in_force

OVERHEAD_MB = 64
"""What a QEMU needs beyond its guest's memory."""
HOST_MEMORY_MB = 512
"""Left to the host itself; what remains is for VMs."""
_MOST_CHOICES = 500
"""Choices of lost hosts that are tried one by one when VMs of several slots make the bound undecided."""


@dataclass(frozen=True)
class HostRoom:
    """What a host has for VMs altogether. ``why_not`` empty: it is connected, not in maintenance, without HA error."""

    name: str
    cpu_mhz: int
    memory_mb: int
    why_not: str = ""
    bridges: frozenset[str] = frozenset()

    @property
    def good(self) -> bool:
        """Only these are reckoned with."""
        return not self.why_not


@dataclass(frozen=True)
class Load:
    """A powered-on VM, or one copy of a pair (``role`` primary, secondary). ``host`` None: not known, or yet to choose.

    Reservations: 0 for none given. With FT on the memory reservation is the VM's memory size (FT-11).
    """

    uuid: str
    name: str
    host: str | None
    cpu_mhz: int = 0
    memory_mb: int = 0
    overhead_mb: int = 0
    role: str = "solo"
    priority: Priority = Priority.MEDIUM
    bridges: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The VM's name, with the role of a copy that is not the VM's main one."""
        return f"{self.name} (secondary)" if self.role == "secondary" else self.name


@dataclass(frozen=True)
class Rules:
    """The settings of admission, as they are in force."""

    ha: bool = True
    control: bool = True
    policy: str = "host-failures"
    host_failures: int = 1
    percent: int = 25
    failover_host: str | None = None
    slot_cpu_cap: int = 0
    slot_memory_cap: int = 0
    vm_cpu_min: int = 256
    vm_memory_min: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """From the cluster's settings."""
        now = in_force(settings)
        numbers = ("ha.host_failures", "ha.reserved_percent", "das.slotCpuInMHz", "das.slotMemInMB", "das.vmCpuMinMHz",
                   "das.vmMemoryMinMB")  # fmt: skip
        failures, percent, cpu_cap, memory_cap, cpu_min, memory_min = (int(now[name]) for name in numbers)
        policy = str(now["ha.admission_policy"])
        return cls(bool(now["ha.enabled"]), bool(now["ha.admission_control"]), policy, failures, percent,
                   failover_host(settings), cpu_cap, memory_cap, cpu_min, memory_min)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """CPU and memory together."""

    cpu_mhz: int
    memory_mb: int

    def __str__(self) -> str:
        return f"{self.cpu_mhz} MHz, {self.memory_mb} MB"


def demand(load: Load, rules: Rules) -> Size:
    """What is reckoned for a load: its reservation or the minimum of the settings, and QEMU's overhead."""
    return Size(load.cpu_mhz or rules.vm_cpu_min, (load.memory_mb or rules.vm_memory_min) + load.overhead_mb)


@dataclass(frozen=True)
class SlotSize:
    """``cpu_by``, ``memory_by``: the loads that set it; ``*_max``: what it would be without the cap."""

    size: Size
    cpu_by: tuple[str, ...]
    memory_by: tuple[str, ...]
    cpu_max: int
    memory_max: int

    def __str__(self) -> str:
        cpu = _part(self.size.cpu_mhz, self.cpu_max, "MHz", self.cpu_by)
        return f"{cpu}, {_part(self.size.memory_mb, self.memory_max, 'MB', self.memory_by)}"


def _part(value: int, largest: int, unit: str, names: Sequence[str]) -> str:
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    said = f"set by {few}" if few else "no VM is on"
    return f"{value} {unit} ({said}{f', cap instead of {largest}' if value != largest else ''})"


def slot_size(loads: Sequence[Load], rules: Rules) -> SlotSize:
    """The largest CPU and the largest memory demand of all loads, each bounded by its cap."""
    sizes = [demand(load, rules) for load in loads]
    cpu = max((size.cpu_mhz for size in sizes), default=rules.vm_cpu_min)
    memory = max((size.memory_mb for size in sizes), default=rules.vm_memory_min)
    return SlotSize(
        Size(min(cpu, rules.slot_cpu_cap or cpu), min(memory, rules.slot_memory_cap or memory)),
        tuple(load.label for load, size in zip(loads, sizes, strict=True) if size.cpu_mhz == cpu),
        tuple(load.label for load, size in zip(loads, sizes, strict=True) if size.memory_mb == memory),
        cpu,
        memory,
    )


def slots_of_host(host: HostRoom, slot: Size) -> int:
    """How many slots a host has room for; none if it is not good. A slot of 0 MB asks for no memory."""
    if not host.good:
        return 0
    by_cpu = host.cpu_mhz // slot.cpu_mhz
    return min(by_cpu, host.memory_mb // slot.memory_mb) if slot.memory_mb else by_cpu


def slots_of_load(load: Load, slot: Size, rules: Rules) -> int:
    """How many slots a load takes: one, or more if a cap made slots smaller than it."""
    wants = demand(load, rules)
    by_memory = ceil(wants.memory_mb / slot.memory_mb) if slot.memory_mb else 1
    return max(1, ceil(wants.cpu_mhz / slot.cpu_mhz), by_memory)


@dataclass(frozen=True)
class Slots:
    """The advanced runtime info (HA-13). ``capacity``: hosts that may fail. ``fragmented``: the sums alone allow more,
    but VMs of several slots would not fit on single hosts."""

    slot: SlotSize
    per_host: Mapping[str, int]
    per_load: Sequence[int]
    configured: int
    capacity: int
    by_sums: int
    powered_on: int
    hosts: int
    good_hosts: int

    @property
    def total(self) -> int:
        """Slots of all good hosts."""
        return sum(self.per_host.values())

    @property
    def used(self) -> int:
        """Slots given to the loads; more than their number when a cap is set."""
        return sum(self.per_load)

    @property
    def fragmented(self) -> bool:
        return self.by_sums > self.capacity

    def without_largest(self, number: int) -> int:
        """Slots that are left when the ``number`` largest hosts fail."""
        return sum(sorted(self.per_host.values(), reverse=True)[number:])

    def largest(self, number: int) -> list[str]:
        """The ``number`` hosts with most slots."""
        return sorted(self.per_host, key=lambda name: (-self.per_host[name], name))[:number]

    @property
    def available(self) -> int:
        """Slots in which further VMs may be started, what is kept for failures taken off."""
        return max(0, self.without_largest(self.configured) - self.used)


def reckon(hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules) -> Slots:
    """All figures of the policy "host failures the cluster tolerates"."""
    slot = slot_size(loads, rules)
    per_host = {host.name: slots_of_host(host, slot.size) for host in hosts if host.good}
    per_load = [slots_of_load(load, slot.size, rules) for load in loads]
    by_sums = _capacity_by_sums(per_host, sum(per_load))
    placed = [(load.host, slots) for load, slots in zip(loads, per_load, strict=True)]
    tried = partial(Restarts, hosts, loads, rules)
    capacity = next((k for k in range(by_sums, 0, -1) if _survives(per_host, placed, k, tried)), 0)
    return Slots(
        slot, per_host, per_load, rules.host_failures, capacity, by_sums, len(loads), len(hosts), len(per_host)
    )


def _capacity_by_sums(per_host: Mapping[str, int], used: int) -> int:
    """The guide's arithmetic: the largest hosts fail, one after the other; one host must always be left."""
    sizes = sorted(per_host.values(), reverse=True)
    return max((k for k in range(len(sizes)) if sum(sizes[k:]) >= used), default=0)


def _survives(
    per_host: Mapping[str, int], placed: Iterable[tuple[str | None, int]], lost: int, tried: "Callable[[], Restarts]"
) -> bool:
    """Whether the loads of any ``lost`` hosts fit, whole, into what the other hosts have free where they are now.

    Sums are enough while every load takes one slot. Larger ones may waste up to (largest - 1) slots on each host: what
    is free beyond that always does, in whichever order they are placed; below it, each choice of hosts is tried, in
    slots and as HA would place them. Too many choices: it is not promised.
    """
    used: dict[str | None, int] = {}
    sizes: dict[str | None, list[int]] = {}
    for host, slots in placed:
        at = host if host in per_host else None  # its host is not good: it has to be placed in any case
        used[at] = used.get(at, 0) + slots
        sizes.setdefault(at, []).append(slots)
    free = {name: max(0, slots - used.get(name, 0)) for name, slots in per_host.items()}
    weight = sorted((free[name] + used.get(name, 0) for name in per_host), reverse=True)
    spare = sum(weight) - sum(weight[:lost]) - sum(used.values())
    # free slots of the others, less the slots of what was lost, for the worst choice of hosts
    largest = max((size for each in sizes.values() for size in each), default=1)
    waste = (len(per_host) - lost) * (largest - 1)
    if spare < 0 or spare >= waste:
        return spare >= 0
    if comb(len(per_host), lost) > _MOST_CHOICES:
        return False
    restarts = tried()
    return all(
        _fits([free[name] for name in per_host if name not in gone],
              [size for name in (None, *gone) for size in sizes.get(name, ())])
        and restarts.all_placed(gone)
        for gone in combinations(per_host, lost)
    )  # fmt: skip


def _fits(free: list[int], loads: Iterable[int]) -> bool:
    """First fit, largest load first: what it places can be placed."""
    left = sorted(free, reverse=True)
    for load in sorted(loads, reverse=True):
        for index, room in enumerate(left):
            if room >= load:
                left[index] -= load
                break
        else:
            return False
    return True


class Restarts:
    """Which loads HA would place after a loss, by the rules of ``placing.Room``: in order of priority and name, each on
    the failover host, else on the host with most unreserved memory of those that can take it.

    A way in which all fit is no promise if HA takes another one: a small VM of high priority may take the only host
    that could hold a large one.
    """

    def __init__(self, hosts: Iterable[HostRoom], loads: Sequence[Load], rules: Rules) -> None:
        plain = replace(rules, vm_cpu_min=0)  # the minimum is for reckoning slots; a restart needs what is reserved
        self._first = rules.failover_host
        self._sizes = [(load, demand(load, plain)) for load in sorted(loads, key=_restart_order)]
        self._free = {host.name: Size(host.cpu_mhz, host.memory_mb) for host in hosts if host.good}
        for load, size in self._sizes:
            free = self._free.get(load.host or "")
            if free is not None and load.host is not None:
                self._free[load.host] = Size(free.cpu_mhz - size.cpu_mhz, free.memory_mb - size.memory_mb)

    def all_placed(self, lost: Collection[str]) -> bool:
        """Whether every load of the hosts ``lost``, and of those that are not good, finds a host."""
        ranked = [
            (name != self._first, -max(0, free.memory_mb), -max(0, free.cpu_mhz), name)
            for name, free in self._free.items() if name not in lost
        ]  # fmt: skip
        heapify(ranked)
        for load, wants in self._sizes:
            if (load.host in lost or load.host not in self._free) and not _place(ranked, wants):
                return False
        return True


def _place(ranked: list[tuple[bool, int, int, str]], wants: Size) -> bool:
    """Take ``wants`` from the first host of the heap that has it; figures are negative: more comes first."""
    passed = []
    while ranked:
        later, memory, cpu, name = heappop(ranked)
        if -memory >= wants.memory_mb and -cpu >= wants.cpu_mhz:
            passed.append((later, memory + wants.memory_mb, cpu + wants.cpu_mhz, name))
            break
        passed.append((later, memory, cpu, name))
    else:
        return False
    for each in passed:
        heappush(ranked, each)
    return True


_ORDER = {Priority.HIGH: 0, Priority.MEDIUM: 1, Priority.LOW: 2}


def _restart_order(load: Load) -> tuple[int, str, str]:
    """What HA does not restart comes last: an operator may."""
    return _ORDER.get(load.priority, len(_ORDER)), load.name, load.uuid


def unreserved(host: HostRoom, loads: Iterable[Load], rules: Rules) -> Size:
    """What a host has left for further VMs; less than nothing when it carries more than it has."""
    here = [demand(load, rules) for load in loads if load.host == host.name]
    return Size(
        host.cpu_mhz - sum(size.cpu_mhz for size in here), host.memory_mb - sum(size.memory_mb for size in here)
    )
