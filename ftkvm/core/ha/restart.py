"""Restarting VMs (HA-02, HA-06, HA-08): which, in which order, how often. The coordinator's part. Pure.

safety: that no VM runs twice does not rest on what is remembered here. A start names the owner file it saw; the host
that starts claims the next number, which is created once. A coordinator that is wrong, late or double loses that race.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ftkvm.core.ha import liveness as living
from ftkvm.core.ha.desk import PAUSE_MS, Desk
from ftkvm.core.ha.liveness import Liveness
from ftkvm.core.ha.lost import Lost, is_wanted, known_since, lost
from ftkvm.core.ha.model import (
    Ended,
    Fence,
    HostCapacity,
    HostState,
    Priority,
    ReadVms,
    Result,
    StartVm,
    Vm,
    Waiting,
)
from ftkvm.core.ha.placing import Room
from ftkvm.core.ha.windows import Windows

IN_FLIGHT = 8
NEXT_PRIORITY_MS = 500
_SLOT_MS = 30_000
_START_GIVE_UP_MS = 120_000
_PLACED_MS = 3000
_READ_EVERY_MS = 10_000
_READ_SOON_MS = 2000
_READ_GIVE_UP_MS = 12_000
_NO_ROOM_MS = 5000
_FENCE_AGAIN_MS = 60_000
_ORDER = {Priority.HIGH: 0, Priority.MEDIUM: 1, Priority.LOW: 2}
_UNCOUNTED = frozenset({"FTKVM-103", "FTKVM-202", "FTKVM-620", "FTKVM-622"})
"""Owned by somebody else, or the host was not reached or not ready: not the VM's failure."""


def counts(code: str) -> bool:
    """Whether a start that failed with this message is one of the VM's failed attempts."""
    return code not in _UNCOUNTED


@dataclass(frozen=True)
class Try:
    """``attempts``: failures that count. ``fresh_ms``: nothing more until the VM was read again after that."""

    attempts: int = 0
    next_ms: int = 0
    fresh_ms: int = -1
    why: str = ""
    failed_on: tuple[str, ...] = ()
    given_up: bool = False


@dataclass(frozen=True)
class Placed:
    """A start that was asked for; ``ended_ms`` None: under way."""

    action: StartVm
    vm: Vm
    asked_ms: int
    ended_ms: int | None = None


@dataclass(frozen=True)
class Restarts:
    """What the coordinator remembers; a new one begins with nothing and finds all it needs on the datastore.

    The failed attempts too: ``Vm.failed_attempts``. ``known``: see :func:`ftkvm.core.ha.lost.lost`.
    """

    vms: tuple[Vm, ...] = ()
    known: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    asked_ms: int | None = None
    seen_ms: int = 0
    under_way_ms: int | None = None
    last_ask_ms: int | None = None
    lost: tuple[Lost, ...] = ()
    lost_key: object = None
    over: frozenset[tuple[str, str]] = frozenset()  # (host, boot id) that are over for ever
    tries: Mapping[str, Try] = field(default_factory=dict)
    placed: Mapping[str, Placed] = field(default_factory=dict)
    fences: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()


def look(restarts: Restarts, desk: Desk, windows: Windows, liveness: Liveness) -> Restarts:
    """One turn of the acting coordinator."""
    restarts = _ends(restarts, desk)
    restarts = _find_lost(restarts, desk, windows, liveness)
    restarts = _read(restarts, desk, liveness)
    if not desk.settings.enabled:
        return replace(restarts, waiting=())
    restarts = _fence(restarts, desk, liveness)
    return _start(restarts, desk, liveness)


# ----------------------------------------------------------------------------------------------------------- ends


def _ends(restarts: Restarts, desk: Desk) -> Restarts:
    for action, ended in desk.ends(ReadVms):
        if action.local:
            continue
        if action.asked_ms == restarts.under_way_ms:
            restarts = replace(restarts, under_way_ms=None)
        newer = restarts.asked_ms is None or action.asked_ms > restarts.asked_ms
        if newer and ended.result is Result.OK and isinstance(ended.value, tuple):
            known = known_since(restarts.known, ended.value, desk.now)
            restarts = replace(restarts, vms=ended.value, known=known, asked_ms=action.asked_ms, seen_ms=desk.now)
            restarts = _take_up(restarts, desk)
    for start, ended in desk.ends(StartVm):
        placed = restarts.placed.get(start.uuid)
        if placed is not None and placed.action == start and placed.ended_ms is None:
            restarts = _start_ended(restarts, desk, placed, ended)
    keep = {}
    for uuid, placed in restarts.placed.items():
        if placed.ended_ms is None and desk.now - placed.asked_ms > _START_GIVE_UP_MS:
            restarts = _start_ended(restarts, desk, placed, Ended(placed.action, Result.UNKNOWN, detail="no answer"))
        elif placed.ended_ms is None or desk.now - placed.ended_ms <= _PLACED_MS:
            keep[uuid] = restarts.placed[uuid]
    return restarts if len(keep) == len(restarts.placed) else replace(restarts, placed=keep)


def _take_up(restarts: Restarts, desk: Desk) -> Restarts:
    """Go on with the count of attempts that another coordinator asked for, or whose end this one did not hear."""
    taken = {}
    for vm in restarts.vms:
        before = restarts.tries.get(vm.uuid, Try())
        if vm.failed_attempts > before.attempts and is_wanted(vm):
            after = replace(before, attempts=vm.failed_attempts)
            if after.attempts >= desk.settings.max_attempts:
                after = replace(after, given_up=True, why=f"given up after {after.attempts} attempts")
            taken[vm.uuid] = after
    return replace(restarts, tries={**restarts.tries, **taken}) if taken else restarts


def _start_ended(restarts: Restarts, desk: Desk, placed: Placed, ended: Ended) -> Restarts:
    """Whatever came of it, the VM is read again before anything else is done about it."""
    start, settings = placed.action, desk.settings
    before = restarts.tries.get(start.uuid, Try())
    said = " ".join(filter(None, (ended.code, ended.detail)))
    after = replace(before, fresh_ms=desk.now)
    if ended.result is Result.OK:
        desk.tell("vm-restarted", f"{start.name} was restarted on {start.host}", start.host, start.uuid)
    elif ended.result is Result.UNKNOWN:
        after = replace(after, why=f"it is not known whether its start on {start.host} worked: {said}")
        desk.tell("restart-unknown", f"{start.name}: {after.why}", start.host, start.uuid, code=ended.code)
    elif not counts(ended.code):
        pause = 0 if ended.code == "FTKVM-103" else settings.retry_first_ms
        after = replace(after, next_ms=desk.now + pause, why=said, failed_on=(*before.failed_on, start.host)[-3:])
    else:
        after = _failed(after, desk, start, said)
    gone = {**restarts.placed, start.uuid: replace(placed, ended_ms=desk.now)}
    if ended.result is not Result.OK:
        del gone[start.uuid]
    return replace(restarts, tries={**restarts.tries, start.uuid: after}, placed=gone)


def _failed(before: Try, desk: Desk, start: StartVm, said: str) -> Try:
    """A failed attempt: try again after a pause that doubles, elsewhere if possible, so many times."""
    settings = desk.settings
    attempts = max(before.attempts, start.attempt)  # its host noted it before it answered: read and counted already?
    pause = min(settings.retry_most_ms, settings.retry_first_ms * 2 ** (attempts - 1))
    after = replace(before, attempts=attempts, next_ms=desk.now + pause, why=said,
                    failed_on=(*before.failed_on, start.host)[-3:])  # fmt: skip
    desk.tell("restart-failed", f"{start.name}: attempt {attempts} on {start.host} failed: {said}", start.host,
              start.uuid, attempt=attempts)  # fmt: skip
    if attempts < settings.max_attempts:
        return after
    desk.tell("restart-given-up", f"{start.name}: {attempts} attempts failed; start it by hand", "", start.uuid)
    return replace(after, given_up=True, why=f"given up after {attempts} attempts: {said}")


# ------------------------------------------------------------------------------------------------- what is lost


def _find_lost(restarts: Restarts, desk: Desk, windows: Windows, liveness: Liveness) -> Restarts:
    """The VMs that are wanted and run nowhere, or perhaps nowhere. Looked through only when something has changed."""
    states = {host: view.state for host, view in liveness.views.items()}
    boots = {host: window.heartbeat.boot_id for host, window in windows.by_host.items()}
    said = tuple(
        (host, beats.solo_vms, beats.heard_ms, windows.asked_ms)
        for host, beats in desk.seen.beats.items()
        if states.get(host) is HostState.NO_STORAGE
    )
    # A boot counts as over only by a heartbeat read after the VMs: one more look when that has come.
    after = windows.asked_ms is not None and windows.asked_ms >= restarts.seen_ms
    key = (restarts.asked_ms, states, boots, said, dict(liveness.dead), dict(liveness.fenced), after,
           desk.seen.boot_id, desk.settings.host_monitoring, living.removed_boots(desk, windows))  # fmt: skip
    timed = any(each.after_ms is not None for each in restarts.lost)
    if key == restarts.lost_key and not timed:
        return restarts
    runners = {runner for vm in restarts.vms for runner in vm.runners}
    over = (restarts.over & runners) | living.boots_over(windows, runners, restarts.seen_ms)
    since = {each.vm.uuid: each.since_ms for each in restarts.lost}
    found = lost(restarts.vms, desk, windows, liveness, over, since, restarts.known)
    return replace(restarts, lost=found, lost_key=key, over=over, tries=_live_tries(restarts, desk, windows, liveness))


def _live_tries(restarts: Restarts, desk: Desk, windows: Windows, liveness: Liveness) -> Mapping[str, Try]:
    """What was tried counts until the VM runs on a living host, or is not wanted any more."""
    if not restarts.tries or restarts.asked_ms is None:
        return restarts.tries
    vms = {vm.uuid: vm for vm in restarts.vms}
    return {
        uuid: each for uuid, each in restarts.tries.items()
        if uuid in restarts.placed or each.fresh_ms >= restarts.asked_ms
        or not _settled(vms.get(uuid), desk, windows, liveness)
    }  # fmt: skip


def _settled(vm: Vm | None, desk: Desk, windows: Windows, liveness: Liveness) -> bool:
    if vm is None or not is_wanted(vm):
        return True
    host = vm.owner.host
    if host is None or windows.boot_id(host) != vm.owner.boot_id:
        return False
    return host == desk.seen.me or liveness.state(host) in (HostState.LIVE, HostState.MAINTENANCE)


def _read(restarts: Restarts, desk: Desk, liveness: Liveness) -> Restarts:
    """Read the VMs: soon while a host may be lost or anything waits, else now and then."""
    if restarts.under_way_ms is not None and desk.now - restarts.under_way_ms < _READ_GIVE_UP_MS:
        return restarts
    asked = restarts.asked_ms if restarts.asked_ms is not None else -1
    stale = any(each.fresh_ms >= asked for each in restarts.tries.values())
    lately_ms = desk.now - 4 * desk.settings.failure_ms
    troubled = any(
        view.state not in (HostState.LIVE, HostState.MAINTENANCE) and view.since_ms > lately_ms
        for view in liveness.views.values()
    )
    ready = any(each.proof for each in restarts.lost)
    every = _READ_SOON_MS if troubled or ready else _READ_EVERY_MS
    soon = stale and desk.due(restarts.last_ask_ms, desk.settings.interval_ms)
    soon = soon or desk.seen.changed_since(restarts.last_ask_ms)
    if not soon and not desk.due(restarts.last_ask_ms, every):
        return restarts
    desk.ask(ReadVms(asked_ms=desk.now))
    return replace(restarts, under_way_ms=desk.now, last_ask_ms=desk.now)


def _fence(restarts: Restarts, desk: Desk, liveness: Liveness) -> Restarts:
    """Switch hosts off that may still write, where that can be done, and where it brings a VM back."""
    if not desk.settings.host_monitoring:
        return restarts
    hosts = {host for each in restarts.lost if not each.proof for host in each.hosts}
    for host in sorted(hosts & desk.seen.cluster.fenceable):
        if liveness.state(host) not in (HostState.UNSAFE, HostState.HUNG):
            continue
        asked = restarts.fences.get(host)
        if asked is None or desk.now - asked >= _FENCE_AGAIN_MS:
            desk.tell("fencing", f"{host} is switched off: {liveness.views[host].why}", host)
            desk.ask(Fence(host))
            restarts = replace(restarts, fences={**restarts.fences, host: desk.now})
    return restarts


# -------------------------------------------------------------------------------------------------------- starts


def _start(restarts: Restarts, desk: Desk, liveness: Liveness) -> Restarts:
    if not restarts.lost:
        return restarts if not restarts.waiting else replace(restarts, waiting=())
    room = _room(restarts, desk, liveness)
    placed, tries = dict(restarts.placed), dict(restarts.tries)
    waiting: list[Waiting] = []
    flying = sum(1 for each in placed.values() if each.ended_ms is None and desk.now - each.asked_ms < _SLOT_MS)
    blocked_by: int | None = None  # the priority that must be issued, and ended or old enough, before lower ones
    for start in placed.values():
        if start.ended_ms is None and desk.now - start.asked_ms < NEXT_PRIORITY_MS:
            rank = _ORDER[start.vm.priority]
            blocked_by = rank if blocked_by is None else min(blocked_by, rank)
    for each in sorted(restarts.lost, key=lambda one: (_ORDER[one.vm.priority], one.vm.name, one.vm.uuid)):
        vm, rank = each.vm, _ORDER[each.vm.priority]
        if vm.uuid in placed and placed[vm.uuid].ended_ms is None:
            continue
        attempt = tries.get(vm.uuid, Try())
        why = _not_now(each, attempt, desk, restarts)
        if why is None and (flying >= IN_FLIGHT or (blocked_by is not None and blocked_by < rank)):
            why = "others are started first"
            blocked_by = rank if blocked_by is None else min(blocked_by, rank)
        if why is None:
            host = room.place(vm, attempt.failed_on)
            if host is not None:
                placed[vm.uuid] = Placed(_issue(desk, each, host, attempt), vm, desk.now)
                room.give(host, vm.cpu_mhz, vm.memory_mb)
                flying += 1
                blocked_by = rank if blocked_by is None else min(blocked_by, rank)
                continue
            why = f"no host has room: {room.why_nowhere(vm)}"
            if not attempt.why.startswith("no host has room"):
                desk.tell("restart-waits", f"{vm.name}: {why}", "", vm.uuid)
            attempt = replace(attempt, next_ms=desk.now + _NO_ROOM_MS, why=why)
            tries[vm.uuid] = attempt
        waiting.append(Waiting(vm.uuid, vm.name, attempt.attempts, max(desk.now, attempt.next_ms), why))
    return replace(restarts, placed=placed, tries=tries, waiting=tuple(waiting))


def _not_now(each: Lost, attempt: Try, desk: Desk, restarts: Restarts) -> str | None:
    """Why the VM is not to be started at this turn."""
    if not each.proof:
        return each.why_not
    if attempt.given_up:
        return attempt.why
    if attempt.fresh_ms >= (restarts.asked_ms if restarts.asked_ms is not None else -1):
        return attempt.why or "it is looked at again"
    return attempt.why or "it waits for its next attempt" if desk.now < attempt.next_ms else None


def _issue(desk: Desk, each: Lost, host: str, attempt: Try) -> StartVm:
    vm = each.vm
    cold_epoch = cold_winner = None
    epoch = vm.open_epoch
    if epoch is not None and epoch.winner is None:
        cold_epoch, cold_winner = epoch.epoch, epoch.primary
    action = StartVm(vm.uuid, vm.name, host, vm.owner.number, attempt.attempts + 1, cold_epoch, cold_winner)
    desk.ask(action)
    desk.tell("restart", f"{vm.name} is restarted on {host}: {each.proof}", host, vm.uuid, priority=str(vm.priority),
              attempt=attempt.attempts + 1)  # fmt: skip
    return action


def _room(restarts: Restarts, desk: Desk, liveness: Liveness) -> Room:
    """Hosts that beat, read and write, and are not in maintenance; this one too."""
    capacities: dict[str, HostCapacity] = {}
    cluster = desk.seen.cluster
    for host in cluster.hosts:
        if host in cluster.maintenance:
            continue
        if host == desk.seen.me:
            own = desk.seen.capacity
            if own is not None:
                capacities[host] = own
        elif liveness.state(host) is HostState.LIVE:
            beats = desk.seen.beats.get(host)
            if beats is not None and beats.capacity is not None and _heard_lately(desk, host):
                capacities[host] = beats.capacity
    room = Room(capacities, cluster.failover_host)
    for placed in restarts.placed.values():
        if placed.action.host in capacities:
            room.give(placed.action.host, placed.vm.cpu_mhz, placed.vm.memory_mb)
    return room


def _heard_lately(desk: Desk, host: str) -> bool:
    beats = desk.seen.beats[host]
    return desk.now - max(beats.networks.values()) <= PAUSE_MS
