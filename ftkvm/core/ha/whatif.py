"""What happens if hosts are lost (HA-26): which VM restarts where, which fits nowhere and why, what each policy makes
of it. Pure; the cluster as it is now in, answers for people out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ftkvm.core.ha import admission
from ftkvm.core.ha.capacity import HostRoom, Load, Rules, Size, Slots, demand, reckon, unreserved
from ftkvm.core.ha.model import Priority

POLICIES = ("host-failures", "percentage", "failover-host")
_ORDER = (Priority.HIGH, Priority.MEDIUM, Priority.LOW)


@dataclass(frozen=True)
class Outcome:
    """What becomes of one VM. ``what``: restarted, takes over, new secondary, not restarted; ``host`` None: nowhere,
    and ``why`` says so for each host (or, under "", for all)."""

    vm: str
    lost_with: str
    priority: Priority
    what: str
    host: str | None
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyView:
    """One policy: does it hold now, and when the hosts are gone; does it promise that this loss can be borne."""

    policy: str
    in_force: bool
    holds: bool
    sum: str
    promised: bool
    why: str
    holds_after: bool
    sum_after: str
    room: str


@dataclass(frozen=True)
class WhatIf:
    """``slots``: as they are now; they name the VMs that set the slot."""

    lost: tuple[str, ...]
    slots: Slots
    outcomes: tuple[Outcome, ...]
    policies: tuple[PolicyView, ...]

    @property
    def stranded(self) -> tuple[Outcome, ...]:
        """VMs that would not run any more although HA should restart them."""
        return tuple(each for each in self.outcomes if each.what == "restarted" and each.host is None)


def what_if(hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules, lost: Collection[str]) -> WhatIf:
    """The loss of ``lost`` all at once."""
    left = [host for host in hosts if host.name not in lost]
    outcomes, after = _restart(left, loads, rules, lost)
    views = tuple(_policy(hosts, loads, left, after, replace(rules, policy=policy), rules.policy, lost)
                  for policy in POLICIES)  # fmt: skip
    return WhatIf(tuple(lost), reckon(hosts, loads, rules), tuple(outcomes), views)


def _restart(
    left: Sequence[HostRoom], loads: Sequence[Load], rules: Rules, lost: Collection[str]
) -> tuple[list[Outcome], list[Load]]:
    outcomes: list[Outcome] = []
    running: list[Load] = []
    todo: list[tuple[Load, str]] = []
    secondaries: list[tuple[Load, str]] = []
    for copies in _by_vm(loads):
        gone = [load for load in copies if load.host in lost]
        alive = [load for load in copies if load.host not in lost]
        if not gone:
            running += copies
        elif not alive:
            todo.append((_main(copies), ", ".join(sorted({str(load.host) for load in gone}))))
            secondaries += [(load, str(load.host)) for load in copies if load.role == "secondary"]
        else:  # one copy of a pair is left
            survivor, dead = alive[0], gone[0]
            if dead.role == "primary":
                outcomes.append(Outcome(dead.name, str(dead.host), dead.priority, "takes over", survivor.host))
            second = survivor if survivor.role == "secondary" else dead
            running.append(replace(_main(copies), host=survivor.host, role="primary"))
            secondaries.append((second, str(dead.host)))
    for priority in _ORDER:
        for load, lost_with in sorted(todo, key=lambda each: each[0].name):
            if load.priority is priority:
                outcomes.append(_place(load, lost_with, "restarted", left, running, rules))
    for load, lost_with in todo:
        if load.priority is Priority.DISABLED:
            why = {"": "its restart priority is disabled"}
            outcomes.append(Outcome(load.name, lost_with, load.priority, "not restarted", None, why))
    for load, lost_with in secondaries:
        if any(other.uuid == load.uuid for other in running):
            outcomes.append(_place(load, lost_with, "new secondary", left, running, rules))
    return outcomes, running


def _by_vm(loads: Sequence[Load]) -> list[list[Load]]:
    found: dict[str, list[Load]] = {}
    for load in loads:
        found.setdefault(load.uuid, []).append(load)
    return list(found.values())


def _main(copies: Sequence[Load]) -> Load:
    return next((load for load in copies if load.role != "secondary"), copies[0])


def _place(
    load: Load, lost_with: str, what: str, left: Sequence[HostRoom], running: list[Load], rules: Rules
) -> Outcome:
    """The failover host first, then the host with most unreserved; what was placed before counts."""
    plain = replace(rules, vm_cpu_min=0)  # the minimum is for reckoning slots; a restart needs what is reserved
    why = {host.name: _why_not(host, load, running, plain) for host in left}
    fitting = [host for host in left if not why[host.name]]

    def rank(host: HostRoom) -> tuple[bool, int, int, str]:
        free = unreserved(host, running, plain)
        return host.name != rules.failover_host, -free.memory_mb, -free.cpu_mhz, host.name

    best = min(fitting, key=rank, default=None)
    if best is None:
        return Outcome(load.name, lost_with, load.priority, what, None, why or {"": "no host is left"})
    running.append(replace(load, host=best.name))
    return Outcome(load.name, lost_with, load.priority, what, best.name)


def _why_not(host: HostRoom, load: Load, running: Sequence[Load], rules: Rules) -> str:
    """Empty if it fits."""
    if not host.good:
        return host.why_not
    if any(other.uuid == load.uuid and other.host == host.name for other in running):
        return "the other copy runs there"
    missing = load.bridges - host.bridges
    if missing:
        return f"it lacks the bridge {', '.join(sorted(missing))}"
    return _short(demand(load, rules), unreserved(host, running, rules))


def _short(wants: Size, left: Size) -> str:
    lacks = [
        f"{want} {unit} wanted, {have} unreserved"
        for want, have, unit in ((wants.cpu_mhz, left.cpu_mhz, "MHz"), (wants.memory_mb, left.memory_mb, "MB"))
        if want > have
    ]
    return "; ".join(lacks)


def _policy(
    hosts: Sequence[HostRoom], loads: Sequence[Load], left: Sequence[HostRoom], after: Sequence[Load], rules: Rules,
    in_force: str, lost: Collection[str],
) -> PolicyView:  # fmt: skip
    now, then = admission.holds(hosts, loads, rules), admission.holds(left, after, rules)
    promised, why, room = _promise(hosts, loads, rules, lost)
    return PolicyView(rules.policy, rules.policy == in_force, now.refused is None, now.sum, promised, why,
                      then.refused is None, then.sum, room)  # fmt: skip


def _promise(
    hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules, lost: Collection[str]
) -> tuple[bool, str, str]:
    """Whether the policy alone says that the loss can be borne; why; and what it lets one start still."""
    if rules.policy == "percentage":
        share = admission.percentage(hosts, loads, rules)
        gone = [host for host in hosts if host.good and host.name in lost]
        cpu, memory = sum(host.cpu_mhz for host in gone), sum(host.memory_mb for host in gone)
        parts = [(part, size) for part, size in ((share.cpu, cpu), (share.memory, memory)) if part.total]
        percents = [100 * size / part.total for part, size in parts]
        words = f"{max(percents, default=0.0):.0f} % of the cluster is lost, {rules.percent} % is kept; whether a VM "
        room = "{} % of CPU, {} % of memory".format(*share.available)
        return share.holds and max(percents, default=0.0) <= rules.percent, words + "fits whole is not looked at", room
    if rules.policy == "failover-host":
        return _failover_promise(hosts, loads, rules, lost)
    slots = reckon(hosts, loads, rules)
    number = sum(1 for name in slots.per_host if name in lost)
    words = f"{number} of {slots.good_hosts} good hosts lost, {slots.capacity} tolerated"
    return number <= slots.capacity, words, f"{slots.available} slots"


def _failover_promise(
    hosts: Sequence[HostRoom], loads: Sequence[Load], rules: Rules, lost: Collection[str]
) -> tuple[bool, str, str]:
    spare = admission.failover(hosts, loads, rules)
    host = next((host for host in hosts if host.name == spare.name), None)
    if host is None or spare.colour is admission.Colour.RED or host.name in lost:
        why = spare.why if spare.colour is admission.Colour.RED else f"the failover host {spare.name} itself is lost"
        return False, why, "all hosts but the failover host"
    plain = replace(rules, vm_cpu_min=0)
    sizes = [demand(load, plain) for load in loads if load.host in lost and load.priority is not Priority.DISABLED]
    wants = Size(sum(size.cpu_mhz for size in sizes), sum(size.memory_mb for size in sizes))
    left = unreserved(host, loads, plain)
    short = _short(wants, left)
    fits = f"{host.name} has {left} unreserved, {wants} are lost"
    return not short, fits if not short else f"{host.name}: {short}", "all hosts but the failover host"
