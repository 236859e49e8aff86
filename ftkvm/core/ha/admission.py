"""Admission control (HA-09 … HA-14): does a start, a move or a higher reservation leave the room that is kept? Pure.

The figures are those of the guide's chapter 2. What is refused is refused with the sum that shows why.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ftkvm.core.ha.capacity import HostRoom, Load, Rules, Size, Slots, demand, reckon, unreserved


@dataclass(frozen=True)
class Share:
    """One resource of the policy "percentage" : what the good hosts have, and what the loads ask for."""

    total: int
    required: int

    @property
    def free_percent(self) -> int:
        """The current failover capacity, rounded down; negative when more is asked for than there is."""
        return 100 * (self.total - self.required) // self.total if self.total else 0

    def keeps(self, percent: int) -> bool:
        """Whether ``percent`` of it is free; exact, not rounded."""
        return self.total > 0 and 100 * (self.total - self.required) >= percent * self.total

    def words(self, unit: str) -> str:
        return f"({self.total} {unit} - {self.required} {unit}) / {self.total} {unit} = {self.free_percent} %"


@dataclass(frozen=True)
class Percentage:
    """The policy "percentage of cluster resources reserved" (HA-10)."""

    cpu: Share
    memory: Share
    configured: int

    @property
    def holds(self) -> bool:
        return self.cpu.keeps(self.configured) and self.memory.keeps(self.configured)

    @property
    def available(self) -> tuple[int, int]:
        """Percent of CPU and of memory in which further VMs may be started."""
        return max(0, self.cpu.free_percent - self.configured), max(0, self.memory.free_percent - self.configured)

    def __str__(self) -> str:
        return f"CPU {self.cpu.words('MHz')} free, memory {self.memory.words('MB')} free; kept: {self.configured} %"


def percentage(hosts: Iterable[HostRoom], loads: Sequence[Load], rules: Rules) -> Percentage:
    """Sums over the good hosts and over all loads."""
    good = [host for host in hosts if host.good]
    sizes = [demand(load, rules) for load in loads]
    return Percentage(
        Share(sum(host.cpu_mhz for host in good), sum(size.cpu_mhz for size in sizes)),
        Share(sum(host.memory_mb for host in good), sum(size.memory_mb for size in sizes)),
        rules.percent,
    )


class Colour(StrEnum):
    """Of the failover host (HA-11)."""

    GREEN = "green"  # good, and no VM on it
    YELLOW = "yellow"  # good, but VMs run on it
    RED = "red"  # not connected, in maintenance, HA error, or not in the cluster


@dataclass(frozen=True)
class FailoverHost:
    """The failover host, as it is now."""

    name: str | None
    colour: Colour
    why: str
    vms: tuple[str, ...] = ()


def failover(hosts: Iterable[HostRoom], loads: Iterable[Load], rules: Rules) -> FailoverHost:
    """The colour of the failover host, and why."""
    name = rules.failover_host
    known = {host.name: host for host in hosts}
    if name is None:
        return FailoverHost(None, Colour.RED, "no failover host is named")
    if name not in known:
        return FailoverHost(name, Colour.RED, f"{name} is not in the cluster")
    on_it = tuple(load.label for load in loads if load.host == name)
    if not known[name].good:
        return FailoverHost(name, Colour.RED, f"{name}: {known[name].why_not}", on_it)
    if on_it:
        return FailoverHost(name, Colour.YELLOW, f"{', '.join(on_it)} run{'s' if len(on_it) == 1 else ''} on it", on_it)
    return FailoverHost(name, Colour.GREEN, "it is ready and runs no VM")


class Refused(StrEnum):
    """Why something is refused; the agent gives each its message."""

    HOST_FAILURES = "host-failures"
    PERCENTAGE = "percentage"
    FAILOVER_HOST = "failover-host"
    HOST_FULL = "host-full"


@dataclass(frozen=True)
class Verdict:
    """``refused`` None: it may go on. ``sum``: the figures, in words, in either case."""

    refused: Refused | None
    sum: str
    host: str = ""


def holds(hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules) -> Verdict:
    """Whether the room that the policy keeps is there, and the sum."""
    if rules.policy == "percentage":
        share = percentage(hosts, loads, rules)
        return Verdict(None if share.holds else Refused.PERCENTAGE, str(share))
    if rules.policy == "failover-host":
        spare = failover(hosts, loads, rules)
        return Verdict(None if spare.colour is not Colour.RED else Refused.FAILOVER_HOST, spare.why, spare.name or "")
    slots = reckon(hosts, loads, rules)
    return Verdict(None if slots.capacity >= slots.configured else Refused.HOST_FAILURES, slots_sum(slots))


def slots_sum(slots: Slots) -> str:
    """Steps 1 to 4 of the guide in one line."""
    each = ", ".join(f"{name} {count}" for name, count in sorted(slots.per_host.items())) or "no good host"
    lost = slots.largest(min(slots.capacity + 1, slots.good_hosts))
    left = slots.without_largest(len(lost))
    after = f"without {', '.join(lost)}: {left} slots for {slots.used}" if lost else "no slots"
    whole = " (enough together, but a VM of several slots would fit on no host)" if slots.fragmented else ""
    result = f"so {slots.capacity} host failures are tolerated, {slots.configured} are to be"
    return f"slot {slots.slot}; slots: {each}; used {slots.used}; {after}{whole}; {result}"


def admit(hosts: Sequence[HostRoom], before: Sequence[Load], after: Sequence[Load], rules: Rules) -> Verdict:
    """Whether the loads may become those of ``after``: a VM more (start, a running VM taken into the cluster), one
    elsewhere (migration), one with another reservation. The changed ones are found by comparing.

    What takes nothing from the room that is kept is never refused, even when that room is short already.
    """
    changed = [load for load in after if load not in before]
    for load in changed:
        there = next((old for old in before if (old.uuid, old.host) == (load.uuid, load.host)), None)
        if there is not None and load.cpu_mhz <= there.cpu_mhz and load.memory_mb <= there.memory_mb:
            continue
        refused = (refused_there if there is None else _host_full)(hosts, after, load, rules)
        if refused is not None:
            return refused
    if not rules.ha or not rules.control:
        return Verdict(None, "admission control is off" if rules.ha else "HA is off")
    verdict = holds(hosts, after, rules)
    if verdict.refused is None or rules.policy == "failover-host":  # a red one is told by the cluster's validity
        return Verdict(None, verdict.sum)
    if not _takes(hosts, before, after, rules):
        return Verdict(None, verdict.sum)
    return verdict


def _takes(hosts: Sequence[HostRoom], before: Sequence[Load], after: Sequence[Load], rules: Rules) -> bool:
    """Whether the change makes the room smaller."""
    if rules.policy == "percentage":
        was, now = percentage(hosts, before, rules), percentage(hosts, after, rules)
        return now.cpu.required > was.cpu.required or now.memory.required > was.memory.required
    slots_was, slots_now = reckon(hosts, before, rules), reckon(hosts, after, rules)
    return (
        slots_now.capacity < slots_was.capacity
        or slots_now.total - slots_now.used < slots_was.total - slots_was.used
        or len(after) > len(before)
    )


def refused_there(hosts: Iterable[HostRoom], after: Sequence[Load], load: Load, rules: Rules) -> Verdict | None:
    """Why ``load``, one of ``after``, cannot be on the host it names, whatever the policy makes of the sums."""
    return _onto_failover_host(load, rules) or _host_full(hosts, after, load, rules)


def _onto_failover_host(load: Load, rules: Rules) -> Verdict | None:
    spare = rules.failover_host
    if rules.policy != "failover-host" or not rules.ha or not rules.control or spare is None or load.host != spare:
        return None
    return Verdict(Refused.FAILOVER_HOST, f"{spare} is the failover host and is kept empty", spare)


def _host_full(hosts: Iterable[HostRoom], after: Sequence[Load], load: Load, rules: Rules) -> Verdict | None:
    """A reservation is a promise of its host; it must have that much unreserved. Also without admission control."""
    host = next((host for host in hosts if host.name == load.host), None)
    if host is None or not (load.cpu_mhz or load.memory_mb):
        return None
    others = [other for other in after if other is not load]
    left, wants = unreserved(host, others, rules), _reserved(load)
    if wants.cpu_mhz <= left.cpu_mhz and wants.memory_mb <= left.memory_mb:
        return None
    return Verdict(
        Refused.HOST_FULL, f"{host.name} has {left} unreserved, {load.label} has {wants} reserved", host.name
    )


def _reserved(load: Load) -> Size:
    return Size(load.cpu_mhz, load.memory_mb + load.overhead_mb if load.memory_mb else 0)


class State(StrEnum):
    """Validity of the cluster (HA-14)."""

    VALID = "valid"
    OVERCOMMITTED = "overcommitted"  # yellow
    INVALID = "invalid"  # red


@dataclass(frozen=True)
class Validity:
    state: State
    reasons: tuple[str, ...]


def validity(hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules) -> Validity:
    """Red: the room that admission control promises is not there. Yellow: a host, the cluster or the failover host
    carries more than it should. Never red with admission control off (guide, "enabling admission control")."""
    if not rules.ha:
        return Validity(State.VALID, ("HA is off: nothing is restarted",))
    red = []
    if rules.control:
        verdict = holds(hosts, loads, rules)
        red = [verdict.sum] if verdict.refused is not None else []
    yellow = _overcommitted(hosts, loads, rules)
    if rules.control and rules.policy == "failover-host":
        spare = failover(hosts, loads, rules)
        if spare.colour is Colour.YELLOW:
            yellow.append(f"failover host {spare.name}: {spare.why}")
    state = State.INVALID if red else State.OVERCOMMITTED if yellow else State.VALID
    return Validity(state, (*red, *yellow))


def _overcommitted(hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules) -> list[str]:
    found = []
    for host in hosts:
        left = unreserved(host, loads, replace(rules, vm_cpu_min=0, vm_memory_min=0))
        if host.good and (left.cpu_mhz < 0 or left.memory_mb < 0):
            found.append(f"{host.name}: more is reserved than it has ({left} left)")
    share = percentage(hosts, loads, rules)
    if share.cpu.required > share.cpu.total or share.memory.required > share.memory.total:
        asked = f"CPU {share.cpu.required} of {share.cpu.total} MHz, memory {share.memory.required} of"
        found.append(f"the VMs ask for more than the good hosts have: {asked} {share.memory.total} MB")
    return found
