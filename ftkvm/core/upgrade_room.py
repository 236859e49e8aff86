"""Whether every step of a rolling upgrade has room: the steps are gone through with the copies each host then holds.

Pure. Memory only, in MB: what a host has for VMs, and what each copy takes there, QEMU's overhead with it. Each host's
other reasons against a VM (its bridges, versions, processors) are asked by the step itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ftkvm.core.ha.capacity import OVERHEAD_MB
from ftkvm.core.placement import MEMORY_FACTOR
from ftkvm.core.upgrade import Do, UpgradeStep


@dataclass(frozen=True)
class VmAt:
    """A VM that runs, and the host of its second copy if it has one."""

    name: str
    memory_mb: int
    host: str
    secondary: str | None = None


@dataclass(frozen=True)
class HostAt:
    """``memory_mb``: for VMs, altogether; ``resting``: it is in maintenance; ``why_not``: why else it takes no VM."""

    name: str
    memory_mb: int
    resting: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Short:
    """A step (its number in the list) that has no room for a VM, and the sum on each host that was thought of."""

    number: int
    step: UpgradeStep
    vm: str
    reasons: str

    def __str__(self) -> str:
        return f"{self.step.text}: VM {self.vm}: {self.reasons}"


def shortages(steps: Sequence[UpgradeStep], hosts: Iterable[HostAt], vms: Iterable[VmAt]) -> list[Short]:
    """What will not fit. A VM that does not is thought of as moved all the same, so that one lack is told once."""
    room = _Room({host.name: host for host in hosts}, {vm.name: vm for vm in vms})
    found = []
    for number, step in enumerate(steps, 1):
        found += [Short(number, step, vm, why) for vm, why in room.go(step)]
    return found


class _Room:
    """The copies as they are between two steps."""

    def __init__(self, hosts: dict[str, HostAt], vms: dict[str, VmAt]) -> None:
        self._hosts, self._vms = hosts, vms

    def go(self, step: UpgradeStep) -> list[tuple[str, str]]:
        """Take a step; returns the VMs that have no room for it, with the sums."""
        if step.do in (Do.ENTER, Do.EXIT):
            host = self._hosts.get(step.subject)
            if host is None:
                return []
            self._hosts[host.name] = replace(host, resting=step.do is Do.ENTER)
            return self._empty(host.name) if step.do is Do.ENTER else []
        vm = self._vms.get(step.subject)
        if vm is None:  # it does not run
            return []
        if step.do is Do.DISABLE:
            self._vms[vm.name] = replace(vm, secondary=None)
        elif step.do is Do.MIGRATE and vm.host != step.host:
            return self._place(vm, [step.host], second=False)
        elif step.do is Do.ENABLE and vm.secondary is None:
            return self._place(vm, [step.host], second=True)
        return []

    def _empty(self, host: str) -> list[tuple[str, str]]:
        """All copies on a host leave as maintenance lets them: a pair goes on with its other copy."""
        found = []
        for vm in sorted(self._vms.values(), key=lambda each: each.name):
            if host not in (vm.host, vm.secondary):
                continue
            others = [name for name in self._hosts if name not in (vm.host, vm.secondary)]
            if vm.secondary is None:
                found += self._place(vm, others, second=False)
                continue
            main = vm.secondary if vm.host == host else vm.host
            self._vms[vm.name] = replace(vm, host=main, secondary=None)
            found += self._place(self._vms[vm.name], others, second=True)
        return found

    def _place(self, vm: VmAt, hosts: Sequence[str], *, second: bool) -> list[tuple[str, str]]:
        """Put a copy on the host with most left of those that may be chosen."""
        needs = _needs_mb(vm, second=second)
        why = {name: reason for name in hosts if (reason := self._why_not(name, needs))}
        fitting = [name for name in hosts if name not in why]
        best = min(
            fitting or hosts, key=lambda name: (self._hosts[name].resting, -self._left_mb(name), name), default=None
        )
        self._vms[vm.name] = replace(vm, **({"secondary": best} if second else {"host": best or vm.host}))
        if fitting:
            return []
        return [(vm.name, "; ".join(f"{name}: {reason}" for name, reason in why.items()) or "there is no other host")]

    def _why_not(self, name: str, needs_mb: int) -> str:
        host, left_mb = self._hosts[name], self._left_mb(name)
        if host.resting:
            return "in maintenance then"
        if host.why_not:
            return host.why_not
        return f"{left_mb} of {host.memory_mb} MB are left, {needs_mb} are needed" if left_mb < needs_mb else ""

    def _left_mb(self, name: str) -> int:
        here = [_needs_mb(vm, second=False) for vm in self._vms.values() if vm.host == name]
        here += [_needs_mb(vm, second=True) for vm in self._vms.values() if vm.secondary == name]
        return self._hosts[name].memory_mb - sum(here)


def _needs_mb(vm: VmAt, *, second: bool) -> int:
    return vm.memory_mb * (MEMORY_FACTOR if second else 1) + OVERHEAD_MB


def capacity_mb(memory_mb: int, free_now_mb: int | None, vms: Iterable[VmAt], host: str) -> int:
    """What a host has for VMs: what is left of its memory beside the system, or less if others use it too.

    :param free_now_mb: what its kernel calls available while the VMs' copies of now run there; None: not known
    """
    if free_now_mb is None:
        return memory_mb
    here = sum(_needs_mb(vm, second=False) for vm in vms if vm.host == host)
    return min(memory_mb, free_now_mb + here + sum(_needs_mb(vm, second=True) for vm in vms if vm.secondary == host))
