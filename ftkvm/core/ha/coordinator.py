"""What the coordinator does: finds VMs that nobody runs any more, has them started, fences what is in the way. Pure."""

from dataclasses import replace

from ftkvm.core.ha import election, restart
from ftkvm.core.ha.model import (
    Action,
    Ended,
    Event,
    Fence,
    HostCapacity,
    HostState,
    Ping,
    ReadVms,
    Result,
    Seen,
    StartVm,
)
from ftkvm.core.ha.state import State

READ_VMS_MS = 10_000
READ_SOON_MS = 2_000
FENCE_AGAIN_MS = 30_000
NOT_COUNTED = ("FTKVM-103", "FTKVM-202", "FTKVM-501")
"""Starts that failed and say nothing against the VM or its place: somebody else has it, or nobody was there."""
_UNHEARD = (HostState.UNHEARD, HostState.CUT_OFF, HostState.ISOLATED, HostState.HUNG)


def turn(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """Ping the unheard; then, if this host coordinates: fence, read the VMs, start those that are free."""
    state = _ping(state, seen, actions)
    settings = seen.cluster.settings
    if not election.acts(state, seen) or not settings.enabled:
        return replace(state, waiting=()) if state.waiting else state
    gone = frozenset(host for host in seen.cluster.hosts if host != seen.me and _is_gone(state, seen, host, ""))
    if gone != state.gone_before:
        state = replace(state, gone_before=gone, stale=True)
    if not settings.host_monitoring:
        return _read_vms(state, seen, actions)
    state = _fence(state, seen, actions, events)
    state = _read_vms(state, seen, actions)
    return _start(state, seen, actions, events) if state.vms_ms is not None else state


def _is_gone(state: State, seen: Seen, host: str, boot_id: str) -> bool:
    """Whether nothing that this host ran under this boot id can write any more ('' stands for its newest).

    safety: a host that was taken out of the cluster counts as gone by the operator's word (`host remove --dead`).
    """
    if host not in seen.cluster.hosts:
        return True
    heartbeat = state.windows.heartbeat(host)
    if heartbeat is None:
        return False
    if boot_id and heartbeat.boot_id != boot_id:
        # safety: a heartbeat older than the owner file would make a host that has just booted look like a dead one
        return state.windows.asked_ms is not None and state.windows.asked_ms > state.vms_arrived_ms
    if host == seen.me:
        return False
    view = state.views.get(host)
    if view is None:
        return False
    if view.state is HostState.NO_STORAGE:
        beats = seen.beats.get(host)
        return beats is not None and beats.solo_vms == 0
    return view.state is HostState.DEAD


def _ping(state: State, seen: Seen, actions: list[Action]) -> State:
    """Hosts that are not heard are asked by ping: their kernel may be alive."""
    silent = tuple(host for host, view in state.views.items() if view.state in (*_UNHEARD, HostState.UNSAFE))
    if not silent or state.ping_hosts_ms is not None:
        return state
    actions.append(Ping(silent, hosts=True))
    return replace(state, ping_hosts_ms=seen.now_ms)


def _fence(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """Switch off hosts of which nothing else proves that they write no more."""
    fencing = dict(state.fencing)
    for host, view in state.views.items():
        again = seen.now_ms - state.fence_failed.get(host, -FENCE_AGAIN_MS) >= FENCE_AGAIN_MS
        wrong = view.state in (HostState.UNSAFE, HostState.HUNG)
        if wrong and host in seen.cluster.fenceable and host not in fencing and again:
            if state.windows.heartbeat(host) is None:
                continue  # it never ran anything
            fencing[host] = seen.now_ms
            actions.append(Fence(host))
            events.append(Event("fencing", f"{host} is switched off: {view.why}", host))
    return replace(state, fencing=fencing)


def fence_ended(state: State, seen: Seen, host: str, ok: bool, events: list[Event]) -> State:
    """A fence device has answered."""
    fencing = {name: since for name, since in state.fencing.items() if name != host}
    heartbeat = state.windows.heartbeat(host)
    if not ok or heartbeat is None:
        events.append(Event("fencing-failed", f"the fence device of {host} did not switch it off", host))
        return replace(state, fencing=fencing, fence_failed={**state.fence_failed, host: seen.now_ms})
    events.append(Event("fenced", f"{host} is off, by its fence device", host))
    return replace(state, fencing=fencing, fenced={**state.fenced, host: heartbeat.boot_id}, stale=True)


def _read_vms(state: State, seen: Seen, actions: list[Action]) -> State:
    """Read the VMs again when something happened, soon when somebody is unheard or VMs wait, else now and then."""
    if state.vms_asked_ms is not None:
        return state
    uneasy = state.waiting or any(view.state is not HostState.LIVE for view in state.views.values())
    every = READ_SOON_MS if uneasy else READ_VMS_MS
    if not state.stale and state.vms_ms is not None and seen.now_ms - state.vms_ms < every:
        return state
    actions.append(ReadVms())
    return replace(state, vms_asked_ms=seen.now_ms, stale=False)


def _start(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """Start what is free and wanted."""
    free = [vm for vm in state.vms if restart.wanted(vm) and restart.free(vm, lambda h, b: _is_gone(state, seen, h, b))]
    tries = state.tries
    if tries:
        settled = seen.now_ms - restart.SETTLED_MS
        waiting = {vm.uuid for vm in free}
        tries = {
            uuid: each for uuid, each in tries.items()
            if each.asked_ms is not None or uuid in waiting or each.ended_ms > settled
        }  # fmt: skip
    if not free:
        return replace(state, waiting=(), tries=tries)
    cluster = seen.cluster
    plan = restart.plan(free, tries, _capacities(state, seen), cluster.failover_host, cluster.settings, seen.now_ms)
    for each in plan.starts:
        actions.append(each)
        events.append(Event("restart", f"{each.name} is started on {each.host} (attempt {each.attempt})", each.host,
                            each.name, {"attempt": each.attempt, "owner": each.owner}))  # fmt: skip
    return replace(state, tries=plan.tries, waiting=plan.waiting)


def _capacities(state: State, seen: Seen) -> dict[str, HostCapacity]:
    """Hosts that can take a VM now: heard, well, not in maintenance; this one included."""
    found = {}
    for host in seen.cluster.hosts:
        view = state.views.get(host)
        lives = host == seen.me or (view is not None and view.state is HostState.LIVE)
        beats = seen.beats.get(host)
        capacity = beats.capacity if beats is not None else None
        if lives and capacity is not None and capacity.compatible and host not in seen.cluster.maintenance:
            found[host] = capacity
    return found


def start_ended(state: State, seen: Seen, action: StartVm, end: Ended, events: list[Event]) -> State:
    """A start has ended, one way or the other; the VMs are read before the next conclusion.

    safety: an unknown outcome is never taken for a failure. The owner file tells: a start that did take effect has
    moved it on, and another attempt with the old number is refused by it.
    """
    before = state.tries.get(action.uuid)
    if before is None or before.action != action:
        return replace(state, stale=True)
    ok, counts = end.result is Result.OK, end.result is Result.FAILED and end.code not in NOT_COUNTED
    why = "" if ok else f"on {action.host}: {end.detail or end.code or end.result}"
    after = restart.ended(before, ok, counts, seen.cluster.settings, seen.now_ms, why)
    kind = {Result.OK: "restarted", Result.FAILED: "restart-failed"}.get(end.result, "restart-unknown")
    text = f"{action.name} runs on {action.host}" if ok else f"{action.name} was not started {why}"
    events.append(Event(kind, text, action.host, action.name, {"attempts": after.attempts}))
    return replace(state, tries={**state.tries, action.uuid: after}, stale=True)
