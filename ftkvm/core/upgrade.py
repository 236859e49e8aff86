"""The rolling upgrade of hosts whose VMs have FT on, as steps (HA-24; guide page 37). Pure.

Both copies of a VM shall run on the same version. So FT stays on while hosts are emptied that the pairs can do without;
then each VM is disabled, moved to an upgraded host, and enabled with its second copy on another upgraded one: between
the two it runs unprotected. With four hosts or more that is short, since two upgraded hosts stand ready by then. With
three it lasts for the upgrade of a host, with two for that of both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MOST_TOGETHER = 2
"""Hosts that are emptied at the same time: as many as a pair needs."""


FEWEST = 2
"""Hosts that a pair needs, and so does moving a VM away."""


class Do(StrEnum):
    """What a step does: ENTER, UPGRADE and EXIT to a host, the others to a VM."""

    ENTER = "enter"
    UPGRADE = "upgrade"
    EXIT = "exit"
    DISABLE = "disable"
    MIGRATE = "migrate"
    ENABLE = "enable"


_TEXTS = {
    Do.ENTER: "host {subject}: maintenance, its VMs move away",
    Do.UPGRADE: "host {subject}: upgrade",
    Do.EXIT: "host {subject}: out of maintenance",
    Do.DISABLE: "VM {subject}: FT off for a while (disable)",
    Do.MIGRATE: "VM {subject}: live to {host}",
    Do.ENABLE: "VM {subject}: FT on, second copy on {host}",
}


@dataclass(frozen=True)
class UpgradeStep:
    """``subject``: a host or a VM; ``host``: where to."""

    do: Do
    subject: str
    host: str = ""

    @property
    def text(self) -> str:
        return _TEXTS[self.do].format(subject=self.subject, host=self.host)

    def to_json(self) -> dict[str, str]:
        return {"do": self.do.value, "subject": self.subject, "host": self.host, "text": self.text}

    @classmethod
    def from_json(cls, doc: Mapping[str, str]) -> "UpgradeStep":
        return cls(Do(doc["do"]), doc["subject"], doc["host"])


@dataclass(frozen=True)
class FtVm:
    """A protected VM; ``protect_s``: how long making its second copy took last."""

    name: str
    primary: str
    secondary: str
    protect_s: float


@dataclass(frozen=True)
class Times:
    """Seconds a step is reckoned with. ``upgrade_s``: of one host, with its restart if it needs one."""

    upgrade_s: float
    disable_s: float = 3.0
    migrate_s: float = 10.0
    exit_s: float = 1.0


def order(hosts: Sequence[str], copies: Mapping[str, int], last: str | None, empty: Sequence[str] = ()) -> list[str]:
    """In which order hosts are upgraded: the empty ones, then those with the fewest ``copies`` of VMs with FT on.

    ``last`` (the coordinator's host) comes at the end, so that coordinating moves once.
    """
    return sorted(hosts, key=lambda host: (host not in empty, host == last, copies.get(host, 0), host))


def plan(hosts: Sequence[str], vms: Sequence[FtVm], together: int) -> tuple[UpgradeStep, ...]:
    """The steps, for hosts in the order of their upgrade; ``together``: so many of the first can be empty at a time.

    :raises ValueError: fewer hosts than FEWEST
    """
    if len(hosts) < FEWEST:
        raise ValueError(f"{len(hosts)} hosts: the VMs can go nowhere")
    early = min(together, len(hosts) - FEWEST) if vms else 0
    return tuple(_steps(list(hosts), vms, early))


def _steps(hosts: list[str], vms: Sequence[FtVm], early: int) -> Iterator[UpgradeStep]:
    wave, rest = hosts[:early], hosts[early:]
    yield from _hosts(wave)
    if len(wave) == MOST_TOGETHER:
        yield from _in_turn(vms, wave)
    elif vms and wave:
        yield from _all_off(vms, wave[0])
        yield from _hosts(rest[:1])
        yield from (UpgradeStep(Do.ENABLE, vm.name, rest[0]) for vm in vms)
        rest = rest[1:]
    elif vms:
        first, second = rest
        yield from _all_off(vms, second)
        yield from _hosts([first])
        yield from (UpgradeStep(Do.MIGRATE, vm.name, first) for vm in vms)
        yield from _hosts([second])
        yield from (UpgradeStep(Do.ENABLE, vm.name, second) for vm in vms)
        rest = []
    for host in rest:
        yield from _hosts([host])


def stretch(steps: Sequence[UpgradeStep], first: int) -> int:
    """Up to which index (exclusive) steps from ``first`` on belong together: where no VM is without FT for them.

    What has no room there should not be begun: it would leave a VM without FT in the middle.
    """
    off: set[str] = set()
    for index, step in enumerate(steps):
        if step.do is Do.DISABLE:
            off.add(step.subject)
        elif step.do is Do.ENABLE:
            off.discard(step.subject)
        if index >= first and not off:
            return index + 1
    return len(steps)


def _hosts(hosts: Sequence[str]) -> Iterator[UpgradeStep]:
    for do in (Do.ENTER, Do.UPGRADE, Do.EXIT):
        yield from (UpgradeStep(do, host) for host in hosts)


def _in_turn(vms: Sequence[FtVm], pair: Sequence[str]) -> Iterator[UpgradeStep]:
    """One VM after the other, so that each is unprotected only for its own move; primaries on either host in turn."""
    for number, vm in enumerate(vms):
        here, there = pair[number % 2], pair[1 - number % 2]
        yield UpgradeStep(Do.DISABLE, vm.name)
        yield UpgradeStep(Do.MIGRATE, vm.name, here)
        yield UpgradeStep(Do.ENABLE, vm.name, there)


def _all_off(vms: Sequence[FtVm], to: str) -> Iterator[UpgradeStep]:
    for vm in vms:
        yield UpgradeStep(Do.DISABLE, vm.name)
        if vm.primary != to:
            yield UpgradeStep(Do.MIGRATE, vm.name, to)


def unprotected_s(steps: Sequence[UpgradeStep], vms: Sequence[FtVm], times: Times) -> dict[str, float]:
    """Seconds each VM will run unprotected: while it is disabled, and while a copy that is in the way is made anew."""
    found = dict.fromkeys((vm.name for vm in vms), 0.0)
    known = {vm.name: vm for vm in vms}
    off: set[str] = set()
    for step in steps:
        took = _duration_s(step, known, times)
        if step.do is Do.DISABLE:
            off.add(step.subject)
        for name in off:
            found[name] += took
        if step.do is Do.ENABLE:
            off.discard(step.subject)
            known[step.subject] = replace(known[step.subject], secondary=step.host)
        elif step.do is Do.ENTER:
            for name, vm in known.items():
                if name not in off and step.subject in (vm.primary, vm.secondary):
                    found[name] += vm.protect_s * (2 if step.subject == vm.primary else 1)
                    known[name] = _moved(vm, step.subject)
        elif step.do is Do.MIGRATE:
            known[step.subject] = replace(known[step.subject], primary=step.host)
    return {name: round(seconds, 1) for name, seconds in found.items()}


def _moved(vm: FtVm, away: str) -> FtVm:
    """Its copy has left that host for one that is not told here."""
    return replace(vm, primary="" if vm.primary == away else vm.primary,
                   secondary="" if vm.secondary == away else vm.secondary)  # fmt: skip


def _duration_s(step: UpgradeStep, vms: Mapping[str, FtVm], times: Times) -> float:
    match step.do:
        case Do.ENTER:
            there = sum(step.subject == vm.primary for vm in vms.values())
            return times.exit_s + there * times.migrate_s
        case Do.UPGRADE:
            return times.upgrade_s
        case Do.EXIT:
            return times.exit_s
        case Do.DISABLE:
            return times.disable_s
        case Do.MIGRATE:
            return times.migrate_s
        case Do.ENABLE:
            return vms[step.subject].protect_s
