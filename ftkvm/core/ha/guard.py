"""This host's own side: its heartbeat, its watchdog, and the end of its VMs when the datastore is lost. Pure.

safety: what others take over rests on this: ``stop_after_ms`` after the *begin* of the last good heartbeat write this
host puts its watchdog off no more and switches its ordinary VMs off. It holds whatever HA is set to, for the others
may be told later than we are that HA is on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ftkvm.core.ha.desk import Desk
from ftkvm.core.ha.model import (
    Heartbeat,
    HostMode,
    IsolationResponse,
    LocalVm,
    OwnerWhy,
    PetWatchdog,
    ReadVms,
    Result,
    StopVm,
    Vm,
    WriteHeartbeat,
)

DIED_AFTER_MS = 5000
"""A VM of ours without a QEMU for so long has died, and is released."""
_GIVE_UP_MS = 6000
_LOOK_EVERY_MS = 30_000
_LOOK_ALONE_EVERY_MS = 3000
"""While nobody is heard: a VM's isolation response may have been changed a moment ago, and is to be its newest."""
_AGAIN_MS = 2000
_STOP_SLACK_MS = 60_000
NEW_HERE_MS = 2000
"""A VM that has just become an ordinary one here is not ended for so long while no heartbeat is young enough.

safety: that is a copy of a pair that has won its epoch a moment ago, which takes an answer of the datastore: where all
hosts had lost it, the next heartbeat is on its way, and without this the survivor of a pair was ended by HA (seen). The
watchdog is not petted meanwhile and so still ends the host within the lease time; without one nobody takes over.
"""


@dataclass(frozen=True)
class Guard:
    """``good_ms``: when the last good heartbeat write began; ``good_stop_ms``: the time it promised.

    ``stops``: StopVm under way, by UUID and kind. ``own``: VMs this host owns as last read. ``missing``: those of them
    without a QEMU here, since when. ``released``: when the last release of a VM that had died ended, whatever came of
    it.
    """

    since_ms: int
    counter: int = 0
    mode: HostMode = HostMode.LIVE
    good_ms: int | None = None
    good_stop_ms: int = 0
    under_way: tuple[int, int] | None = None  # counter, when asked
    last_write_ms: int | None = None
    stops: Mapping[tuple[str, bool], int] = field(default_factory=dict)
    own: tuple[Vm, ...] = ()
    own_asked_ms: int | None = None
    own_under_way_ms: int | None = None
    own_last_ms: int | None = None
    missing: Mapping[str, int] = field(default_factory=dict)
    released: Mapping[str, int] = field(default_factory=dict)
    strangers: frozenset[str] = frozenset()
    lost: bool = False
    solo_since: Mapping[str, int] = field(default_factory=dict)

    def ok(self, desk: Desk) -> bool:
        """Whether this host's last good heartbeat is young enough to run VMs, and to act for others."""
        if self.good_ms is None:
            return False
        return desk.now - self.good_ms < min(self.good_stop_ms, desk.settings.stop_after_ms)


def begin(now: int) -> Guard:
    return Guard(now)


def look(guard: Guard, desk: Desk, isolated: bool, alone: bool) -> Guard:
    """Take in ends, write the heartbeat, pet the watchdog, end VMs that must not go on."""
    guard = _written(guard, desk)
    guard = _write(guard, desk, isolated)
    since = {vm.uuid: guard.solo_since.get(vm.uuid, desk.now) for vm in solo(desk)}
    guard = replace(guard, solo_since=since) if since != guard.solo_since else guard
    if guard.stops:
        guard = replace(guard, stops=_stops(guard, desk))
        guard = replace(guard, released=_released(guard, desk))
    if guard.ok(desk):
        desk.ask(PetWatchdog())
        if guard.lost:
            desk.tell("datastore-back", "heartbeats are written again", desk.seen.me)
            guard = replace(guard, lost=False)
        return _look_after_own(guard, desk, alone)
    return _end_all(guard, desk)


def _stops(guard: Guard, desk: Desk) -> dict[tuple[str, bool], int]:
    """The stops still under way, and those that ended a moment ago: not again at once, should the VM still be here."""
    stops = dict(guard.stops)
    for action, _ended in desk.ends(StopVm):
        if (action.uuid, action.power_off) in stops:
            stops[action.uuid, action.power_off] = desk.now + _AGAIN_MS
    return {key: until for key, until in stops.items() if desk.now < until}


def _released(guard: Guard, desk: Desk) -> dict[str, int]:
    done = {action.uuid: desk.now for action, ended in desk.ends(StopVm)
            if action.owner is not None and ended.result is Result.OK}  # fmt: skip
    return {**{uuid: at for uuid, at in guard.released.items() if uuid in guard.missing}, **done}


# ---------------------------------------------------------------------------------------------------- heartbeat


def _written(guard: Guard, desk: Desk) -> Guard:
    for action, ended in desk.ends(WriteHeartbeat):
        if guard.under_way is not None and action.heartbeat.counter == guard.under_way[0]:
            if ended.result is Result.OK:
                stop_ms = action.heartbeat.stop_after_ms
                guard = replace(guard, good_ms=guard.under_way[1], good_stop_ms=stop_ms)
            guard = replace(guard, under_way=None)
    if guard.under_way is not None and desk.now - guard.under_way[1] > _GIVE_UP_MS:
        guard = replace(guard, under_way=None)
    return guard


def _write(guard: Guard, desk: Desk, isolated: bool) -> Guard:
    mode = HostMode.ISOLATED if isolated else HostMode.LIVE
    if desk.seen.me in desk.seen.cluster.maintenance:
        mode = HostMode.MAINTENANCE
    due = mode is not guard.mode or desk.due(guard.last_write_ms, desk.settings.interval_ms)
    if guard.under_way is not None or not due:
        return guard
    counter = max(guard.counter + 1, desk.now)  # also after a restart of the agent it only ever grows within a boot
    seen, settings = desk.seen, desk.settings
    desk.ask(WriteHeartbeat(Heartbeat(seen.me, seen.boot_id, counter, mode, seen.watchdog_ms, settings.stop_after_ms)))
    return replace(guard, counter=counter, mode=mode, under_way=(counter, desk.now), last_write_ms=desk.now)


# ------------------------------------------------------------------------------------------- datastore is lost


def solo(desk: Desk) -> list[LocalVm]:
    """Ordinary VMs that have, or are about to have, a QEMU here."""
    return [vm for vm in desk.seen.local if vm.role == "solo"]


def _end_all(guard: Guard, desk: Desk) -> Guard:
    since = guard.since_ms if guard.good_ms is None else guard.good_ms
    if desk.now - since < desk.settings.stop_after_ms and guard.good_ms is None:
        return guard  # just started: nothing was written yet; the watchdog is left to itself
    if not guard.lost:
        seconds = (desk.now - since) / 1000
        desk.tell("datastore-lost", f"no heartbeat could be written for {seconds:.0f} s; ordinary VMs are switched off",
                  desk.seen.me)  # fmt: skip
        guard = replace(guard, lost=True)
    for vm in solo(desk):
        new = desk.now - guard.solo_since.get(vm.uuid, desk.now) < NEW_HERE_MS
        if vm.state != "starting" and not new:  # nothing to end yet; if it comes to run, it is ended then
            guard = stop(guard, desk, vm.uuid, IsolationResponse.POWER_OFF, "datastore-lost")
    return guard


def stop(guard: Guard, desk: Desk, uuid: str, how: IsolationResponse, reason: str, owner: int | None = None) -> Guard:
    """End a VM here and release it, unless that is under way; with ``owner`` only release it.

    safety: what is concluded from a reading ("its QEMU died") holds for the owner number of that reading. A start that
    came to this host meanwhile took the next one, and is neither ended nor released (simulator, seed 44).
    """
    power_off = how is IsolationResponse.POWER_OFF
    if (uuid, power_off) in guard.stops or (uuid, True) in guard.stops:
        return guard
    timeout_ms = 0 if power_off else desk.settings.shutdown_timeout_ms
    desk.ask(StopVm(uuid, power_off, timeout_ms, OwnerWhy.RELEASED, reason, owner))
    desk.tell("vm-stopped-here", f"{'switched off' if power_off else 'shut down'}: {reason}", desk.seen.me, uuid)
    return replace(guard, stops={**guard.stops, (uuid, power_off): desk.now + timeout_ms + _STOP_SLACK_MS})


# --------------------------------------------------------------------------------------------- VMs that died here


def _look_after_own(guard: Guard, desk: Desk, alone: bool) -> Guard:
    """Know our VMs, and release those whose QEMU is gone although they are wanted."""
    asked = guard.own_asked_ms
    for action, ended in desk.ends(ReadVms):
        if not action.local:
            continue
        if action.asked_ms == guard.own_under_way_ms:
            guard = replace(guard, own_under_way_ms=None)
        if ended.result is Result.OK and isinstance(ended.value, tuple):
            asked = action.asked_ms
            guard = replace(guard, own=ended.value, own_asked_ms=asked)
    here = {vm.uuid for vm in desk.seen.local}
    missing = {vm.uuid: guard.missing.get(vm.uuid, desk.now) for vm in guard.own if vm.uuid not in here}
    if missing != guard.missing:
        guard = replace(guard, missing=missing)
    for vm in guard.own:
        gone_ms = missing.get(vm.uuid)
        if gone_ms is None or asked is None or asked < gone_ms + DIED_AFTER_MS or not _died(vm, desk):
            continue
        # What came of a release is what a reading begun after it says: a start may have been on its way, and failed.
        if (vm.uuid, True) not in guard.stops and asked > guard.released.get(vm.uuid, -1):
            desk.tell("qemu-died", f"{vm.name} has no QEMU here any more; it is released", desk.seen.me, vm.uuid)
            guard = stop(guard, desk, vm.uuid, IsolationResponse.POWER_OFF, "qemu-died", vm.owner.number)
    return _read_own(guard, desk, frozenset(here), _LOOK_ALONE_EVERY_MS if alone else _LOOK_EVERY_MS)


def _died(vm: Vm, desk: Desk) -> bool:
    """Ours, of this boot, wanted; a pair's copy only if it is the one that goes on alone."""
    mine = vm.owner.host == desk.seen.me and vm.owner.boot_id == desk.seen.boot_id
    epoch = vm.open_epoch
    return vm.power and mine and (epoch is None or epoch.winner == desk.seen.me)


def _read_own(guard: Guard, desk: Desk, here: frozenset[str], every_ms: int) -> Guard:
    """Every half minute, or few seconds; sooner when a VM is new here, or missing for long enough to be believed.

    At once when this host is told that one was changed: its isolation response may be needed in a moment.
    """
    asked = guard.own_asked_ms
    strange = here - {vm.uuid for vm in guard.own}
    overdue = any(
        desk.now >= since + DIED_AFTER_MS and (asked is None or asked < since + DIED_AFTER_MS)
        for since in guard.missing.values()
    )
    under_way = guard.own_under_way_ms
    if under_way is not None and desk.now - under_way < 2 * _GIVE_UP_MS:
        return guard
    if desk.seen.changed_since(guard.own_last_ms):
        every_ms = 0
    soon = (overdue or strange != guard.strangers) and desk.due(guard.own_last_ms, desk.settings.interval_ms)
    if soon or desk.due(guard.own_last_ms, every_ms):
        desk.ask(ReadVms(local=True, asked_ms=desk.now))
        return replace(guard, own_under_way_ms=desk.now, own_last_ms=desk.now, strangers=strange)
    return guard
