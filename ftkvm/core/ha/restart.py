"""Which VMs are started again, where, in which order (HA-02, HA-07, HA-08). Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ftkvm.core.ha.model import HaSettings, HostCapacity, OwnerWhy, Priority, StartVm, Vm, Waiting

IN_FLIGHT_MOST = 8
NEXT_PRIORITY_MS = 500
SETTLED_MS = 60_000
_RANK = {Priority.HIGH: 0, Priority.MEDIUM: 1, Priority.LOW: 2}


@dataclass(frozen=True)
class Try:
    """What was tried with one VM. ``asked_ms``: when the start under way was asked for, None when none is."""

    attempts: int = 0
    next_ms: int = 0
    asked_ms: int | None = None
    action: StartVm | None = None
    done_owner: int = -1  # the owner number a start that ended was based on: older news is not acted upon
    why: str = ""
    ended_ms: int = 0


def wanted(vm: Vm) -> bool:
    """Whether HA has to do with it: it shall run, and its priority allows it."""
    return vm.power and vm.priority is not Priority.DISABLED


def free(vm: Vm, gone: Callable[[str, str], bool]) -> bool:
    """Whether nobody runs the VM, as ``gone(host, boot_id)`` tells of owners.

    An FT VM is free when both hosts of its newest epoch are gone; until then its pair looks after itself.
    """
    if vm.ft is not None:
        hosts = {vm.ft.winner} if vm.ft.winner is not None else {vm.ft.primary, vm.ft.secondary}
        return all(gone(host, "") for host in hosts if host is not None) and (
            vm.owner.host is None or vm.owner.host in hosts or gone(vm.owner.host, vm.owner.boot_id)
        )
    if vm.owner.host is None:
        return vm.owner.why in (OwnerWhy.RELEASED, OwnerWhy.EVACUATED)
    return gone(vm.owner.host, vm.owner.boot_id)


def ended(before: Try, ok: bool, counts: bool, settings: HaSettings, now_ms: int, why: str) -> Try:
    """A start came to its end; only failures that say something about the VM or the host count."""
    done = before.action.owner if before.action is not None else before.done_owner
    attempts = before.attempts + (1 if counts and not ok else 0)
    back_off = min(settings.retry_most_ms, settings.retry_first_ms << max(0, attempts - 1))
    after = replace(before, attempts=attempts, asked_ms=None, action=None, why=why, ended_ms=now_ms)
    if ok:
        return replace(after, next_ms=now_ms, done_owner=done)
    return replace(after, next_ms=now_ms + (back_off if counts else settings.retry_first_ms))


@dataclass(frozen=True)
class Plan:
    """What a look at the VMs came to."""

    starts: tuple[StartVm, ...]
    tries: Mapping[str, Try]
    waiting: tuple[Waiting, ...]


def plan(
    vms: Iterable[Vm],
    tries: Mapping[str, Try],
    hosts: Mapping[str, HostCapacity],
    failover_host: str | None,
    settings: HaSettings,
    now_ms: int,
) -> Plan:
    """Starts for VMs that are free and wanted.

    :param hosts: that could take a VM now, with what they have left
    """
    left = dict(hosts)
    new = dict(tries)
    starts: list[StartVm] = []
    waiting: list[Waiting] = []
    flying = [each for each in tries.values() if each.asked_ms is not None]
    for each in flying:
        if each.action is not None:
            _take(left, each.action.host, 0, 0)
    young = [each for each in flying if each.asked_ms is not None and now_ms - each.asked_ms < NEXT_PRIORITY_MS]
    ranks = {vm.uuid: _RANK[vm.priority] for vm in vms}
    bar = min((ranks[each.action.uuid] for each in young if each.action and each.action.uuid in ranks), default=3)
    for vm in sorted(vms, key=lambda each: (_RANK[each.priority], each.name)):
        tried = new.get(vm.uuid, Try())
        if tried.asked_ms is not None or vm.owner.number <= tried.done_owner:
            continue
        if ranks[vm.uuid] > bar:
            waiting.append(Waiting(vm.uuid, vm.name, tried.attempts, now_ms, "VMs of higher priority are first"))
            continue
        if tried.attempts >= settings.max_attempts:
            why = f"given up after {tried.attempts} attempts: {tried.why}"
            waiting.append(Waiting(vm.uuid, vm.name, tried.attempts, 0, why))
            continue
        host = _place(vm, left, failover_host) if now_ms >= tried.next_ms else None
        if host is None or len(flying) + len(starts) >= IN_FLIGHT_MOST:
            why = (
                tried.why if now_ms < tried.next_ms else _why_nowhere(vm, left) if host is None else "others are first"
            )
            waiting.append(Waiting(vm.uuid, vm.name, tried.attempts, max(now_ms, tried.next_ms), why))
            continue
        _take(left, host, vm.memory_mb, vm.cpu_mhz)
        cold = vm.ft if vm.ft is not None and vm.ft.winner is None else None
        start = StartVm(
            vm.uuid, vm.name, host, vm.owner.number, tried.attempts + 1,
            cold.epoch if cold else None, cold.primary if cold else None,
        )  # fmt: skip
        starts.append(start)
        bar = min(bar, ranks[vm.uuid])
        new[vm.uuid] = replace(tried, asked_ms=now_ms, action=start)
    return Plan(tuple(starts), new, tuple(waiting))


def _place(vm: Vm, left: Mapping[str, HostCapacity], failover_host: str | None) -> str | None:
    """The host with the most left; the failover host first: that is what it is kept for (HA-11)."""
    fitting = [name for name, capacity in left.items() if _fits(vm, capacity)]
    if failover_host in fitting:
        return failover_host
    return min(fitting, key=lambda name: (-left[name].memory_mb, -left[name].cpu_mhz, name), default=None)


def _fits(vm: Vm, capacity: HostCapacity) -> bool:
    enough = capacity.memory_mb >= vm.memory_mb and capacity.cpu_mhz >= vm.cpu_mhz
    return capacity.compatible and enough and vm.bridges <= capacity.bridges | frozenset()


def _why_nowhere(vm: Vm, left: Mapping[str, HostCapacity]) -> str:
    if not left:
        return "no host can take VMs now"
    most = max(left.values(), key=lambda each: each.memory_mb)
    if not any(vm.bridges <= each.bridges for each in left.values()):
        return f"no host has the bridges {', '.join(sorted(vm.bridges))}"
    return (
        f"no host has {vm.memory_mb} MB and {vm.cpu_mhz} MHz unreserved (most: {most.memory_mb} MB, {most.cpu_mhz} MHz)"
    )


def _take(left: dict[str, HostCapacity], host: str, memory_mb: int, cpu_mhz: int) -> None:
    there = left.get(host)
    if there is not None:
        left[host] = replace(there, memory_mb=there.memory_mb - memory_mb, cpu_mhz=there.cpu_mhz - cpu_mhz)
