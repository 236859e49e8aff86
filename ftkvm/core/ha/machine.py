"""The HA machine of one host: ``start`` gives its first state, ``turn`` takes all that is seen to actions. Pure.

Every host beats on the datastore, pets its watchdog and guards its own VMs (``guard``); the primary hosts judge the
others (``liveness``) and elect a coordinator (``election``); the coordinator restarts (``coordinator``). docs/ha.md has
the argument why no VM ever runs twice.
"""

from dataclasses import replace

from ftkvm.core.ha import coordinator, election, guard
from ftkvm.core.ha.liveness import Limits, heard_ms, judge
from ftkvm.core.ha.model import (
    Action,
    ClaimLease,
    ClaimRoles,
    Ended,
    Event,
    Fence,
    Heartbeat,
    HeartbeatsRead,
    HostMode,
    HostState,
    HostView,
    Lease,
    Ping,
    ReadHeartbeats,
    ReadVms,
    Result,
    Role,
    Roles,
    Seen,
    StartVm,
    Status,
    StopVm,
    Turn,
    Vm,
    WriteHeartbeat,
)
from ftkvm.core.ha.state import State
from ftkvm.core.ha.windows import GAP_MS

_LOCAL_READ_MS = 10_000
_SECONDARY_READ_INTERVALS = 5


def start(seen: Seen) -> Turn:
    """The first turn of an agent's life: nothing is known, nothing is lost yet."""
    return turn(State(started_ms=seen.now_ms, last_turn_ms=seen.now_ms, good_write_ms=seen.now_ms), seen)


def turn(state: object, seen: Seen) -> Turn:
    """One turn.

    :raises TypeError: ``state`` is not what an earlier turn gave
    """
    if not isinstance(state, State):
        raise TypeError(f"not a state of this machine: {type(state).__name__}")
    events: list[Event] = []
    now = seen.now_ms
    if now - state.last_turn_ms > GAP_MS:
        events.append(Event("paused", f"this host stood still for {(now - state.last_turn_ms) / 1000:.1f} s", seen.me))
        state = replace(state, windows=state.windows.paused(now))
    state = replace(state, last_turn_ms=now)
    for each in seen.ended:
        state = _ended(state, seen, each, events)
    state = _judge(state, seen, events)
    actions: list[Action] = []
    state = _beat(state, seen, actions)
    state = _read(state, seen, actions)
    for part in (guard.turn, election.turn, coordinator.turn):
        state = part(state, seen, actions, events)
    return Turn(state, tuple(actions), tuple(events), _status(state, seen))


# ------------------------------------------------------------------------------------------------------- what ended


def _ended(state: State, seen: Seen, end: Ended, events: list[Event]) -> State:
    action, ok, now = end.action, end.result is Result.OK, seen.now_ms
    match action:
        case WriteHeartbeat():
            good = state.write_asked_ms if ok and state.write_asked_ms is not None else state.good_write_ms
            return replace(state, write_asked_ms=None, good_write_ms=good, written=state.written or ok)
        case ReadHeartbeats():
            return _have_read(state, seen, end)
        case ReadVms(local=True):
            found = end.value if ok and isinstance(end.value, tuple) else state.own_vms
            return replace(state, local_read_ms=None, own_vms=found, own_vms_ms=now if ok else state.own_vms_ms)
        case ReadVms():
            if not ok or not isinstance(end.value, tuple):
                return replace(state, vms_asked_ms=None)
            vms = tuple(vm for vm in end.value if isinstance(vm, Vm))
            return replace(state, vms=vms, vms_ms=state.vms_asked_ms, vms_arrived_ms=now, vms_asked_ms=None)
        case Ping(hosts=True):
            return replace(state, ping_hosts_ms=None)
        case Ping():
            answered = isinstance(end.value, tuple) and bool(end.value)
            silent = ok and not answered and state.ping_asked_ms is not None
            return replace(state, ping_asked_ms=None, gateway_silent=silent)
        case ClaimLease():
            there = end.value if ok and isinstance(end.value, Lease) else state.lease
            return replace(state, lease_asked_ms=None, lease=there)
        case ClaimRoles():
            now_there = end.value if ok and isinstance(end.value, Roles) else state.roles
            return replace(state, roles_asked_ms=None, roles=now_there)
        case StopVm(uuid=uuid):
            return replace(state, stopping={k: v for k, v in state.stopping.items() if k != uuid})
        case StartVm():
            return coordinator.start_ended(state, seen, action, end, events)
        case Fence(host=host):
            return coordinator.fence_ended(state, seen, host, ok, events)
        case _:
            return state


def _have_read(state: State, seen: Seen, end: Ended) -> State:
    asked, read = state.read_asked_ms, end.value
    state = replace(state, read_asked_ms=None)
    if end.result is not Result.OK or not isinstance(read, HeartbeatsRead) or asked is None:
        return state
    windows = state.windows.read(read.heartbeats, asked, seen.now_ms)
    return replace(state, windows=windows, lease=read.lease, roles=read.roles, corrupt=read.corrupt, has_read=True)


# -------------------------------------------------------------------------------------------- what is always done


def _beat(state: State, seen: Seen, actions: list[Action]) -> State:
    """The heartbeat: one under way at most, asked for every interval."""
    settings = seen.cluster.settings
    due = state.wrote_ms is None or seen.now_ms - state.wrote_ms >= settings.interval_ms * 9 // 10
    if state.write_asked_ms is not None or not due:
        return state
    mode = HostMode.LIVE
    if state.isolated_ms is not None:
        mode = HostMode.ISOLATED
    elif seen.me in seen.cluster.maintenance:
        mode = HostMode.MAINTENANCE
    beat = Heartbeat(seen.me, seen.boot_id, state.counter + 1, mode, seen.watchdog_ms, settings.stop_after_ms)
    actions.append(WriteHeartbeat(beat))
    return replace(state, counter=state.counter + 1, write_asked_ms=seen.now_ms, wrote_ms=seen.now_ms)


def _read(state: State, seen: Seen, actions: list[Action]) -> State:
    """Others' heartbeats: every interval where they matter, else now and then; oftener when somebody is unheard."""
    now, interval = seen.now_ms, seen.cluster.settings.interval_ms
    matters = election.eligible(state, seen) or election.is_mine(state.lease, seen)
    every = interval * 9 // 10 if matters else _SECONDARY_READ_INTERVALS * interval
    if matters and any(view.state not in (HostState.LIVE, HostState.MAINTENANCE) for view in state.views.values()):
        every = interval // 4
    if state.read_asked_ms is None and (state.windows.arrived_ms is None or now - state.windows.arrived_ms >= every):
        actions.append(ReadHeartbeats())
        state = replace(state, read_asked_ms=now)
    if state.local_read_ms is None and (state.own_vms_ms is None or now - state.own_vms_ms >= _LOCAL_READ_MS):
        actions.append(ReadVms(local=True))
        state = replace(state, local_read_ms=now, own_asked_ms=now)
    return state


def _judge(state: State, seen: Seen, events: list[Event]) -> State:
    """What we make of the others; primary hosts only, the rest have no use for it."""
    settings, now = seen.cluster.settings, seen.now_ms
    others = [host for host in seen.cluster.hosts if host != seen.me]
    last = max((heard_ms(seen.beats.get(host), state.started_ms) for host in others), default=now)
    state = replace(state, heard_ms=last)
    if not election.eligible(state, seen):
        return replace(state, views={}) if state.views else state
    limits = Limits(settings.interval_ms, settings.failure_ms, settings.lease_ms)
    views = {}
    for host in others:
        heartbeat = state.windows.heartbeat(host)
        fenced = heartbeat is not None and state.fenced.get(host) == heartbeat.boot_id
        found, why = judge(host, now, state.started_ms, seen.beats.get(host), state.windows, limits, fenced)
        if found is HostState.LIVE and host in seen.cluster.maintenance:
            found, why = HostState.MAINTENANCE, "in maintenance"
        before = state.views.get(host)
        if before is not None and before.state is found:
            views[host] = before if found is HostState.LIVE else replace(before, why=why)
            continue
        views[host] = HostView(host, found, why, now)
        if before is not None:
            events.append(Event(f"host-{found}", f"{host} is {found}: {why}", host))
    return replace(state, views=views)


def _status(state: State, seen: Seen) -> Status:
    mine = election.is_mine(state.lease, seen)
    primaries = state.roles.primaries if state.roles is not None else ()
    role = Role.COORDINATOR if mine else Role.PRIMARY if seen.me in primaries else Role.SECONDARY
    return Status(
        role,
        state.lease.host if state.lease is not None else None,
        state.lease.term if state.lease is not None else 0,
        state.isolated_ms is not None,
        guard.storage_age_ms(state, seen) < seen.cluster.settings.stop_after_ms,
        tuple(state.views.values()),
        state.waiting,
    )
