"""What every host does for its own VMs: the watchdog, the datastore's loss, isolation, a QEMU that died. Pure."""

from dataclasses import replace

from ftkvm.core.ha.model import (
    Action,
    Event,
    IsolationResponse,
    LocalVm,
    OwnerWhy,
    PetWatchdog,
    Ping,
    Seen,
    StopVm,
)
from ftkvm.core.ha.state import State

MISSING_MS = 5_000
QUIET_MS = 30_000
"""After the agent's start: a start that an earlier life of it began may still bring its QEMU."""


def storage_age_ms(state: State, seen: Seen) -> int:
    """How long ago the last good write of our heartbeat was begun."""
    return seen.now_ms - state.good_write_ms


def turn(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """Pet, guard, answer an isolation, release what died."""
    mine = [vm for vm in seen.local if vm.role == "solo"]
    lost = storage_age_ms(state, seen) >= seen.cluster.settings.stop_after_ms
    # safety: petted although the datastore is lost only when there is nothing here that could write to it.
    if seen.watchdog_ms and (not lost or not mine):
        actions.append(PetWatchdog())
    if lost != state.storage_lost:
        words = "lost: this host's VMs are switched off" if lost else "back"
        events.append(Event("datastore-lost" if lost else "datastore-back", f"the datastore is {words}", seen.me))
        state = replace(state, storage_lost=lost)
    if lost:
        state = _switch_off(state, mine, actions)
    state = _isolation(state, seen, mine, actions, events)
    return _missing(state, seen, actions, events)


def _switch_off(state: State, mine: list[LocalVm], actions: list[Action]) -> State:
    """safety: others may take these VMs over once our heartbeat stood still for the lease time; they end before."""
    stopping = dict(state.stopping)
    for vm in mine:
        if stopping.get(vm.uuid) != "datastore":
            stopping[vm.uuid] = "datastore"
            actions.append(StopVm(vm.uuid, True, 0, OwnerWhy.RELEASED, "the datastore is lost"))
    return replace(state, stopping=stopping)


def _isolation(state: State, seen: Seen, mine: list[LocalVm], actions: list[Action], events: list[Event]) -> State:
    """HA-04, HA-05: nobody heard for the isolation time and no isolation address answers."""
    settings = seen.cluster.settings
    alone = len(seen.cluster.hosts) > 1 and seen.now_ms - state.heard_ms >= settings.isolation_ms
    if not alone or not settings.enabled:
        if state.isolated_ms is not None:
            events.append(Event("isolation-over", f"{seen.me} hears the others again", seen.me))
        return replace(state, isolated_ms=None, gateway_silent=False)
    # safety: without an address to ask, "we are cut off" and "all others died" look alike; then nothing is stopped.
    if state.isolated_ms is None and settings.isolation_addresses:
        if state.gateway_silent:
            events.append(Event("isolated", "it hears nobody, and no isolation address answers", seen.me))
            state = replace(state, isolated_ms=seen.now_ms)
        elif state.ping_asked_ms is None:
            actions.append(Ping(settings.isolation_addresses))
            state = replace(state, ping_asked_ms=seen.now_ms)
    if state.isolated_ms is None or not settings.host_monitoring:
        return state
    return _respond(state, seen, mine, actions, events)


def _respond(state: State, seen: Seen, mine: list[LocalVm], actions: list[Action], events: list[Event]) -> State:
    stopping = dict(state.stopping)
    known = {vm.uuid: vm for vm in state.own_vms}
    for local in mine:
        vm = known.get(local.uuid)
        response = vm.isolation_response if vm is not None else IsolationResponse.SHUTDOWN
        if local.uuid in stopping or response is IsolationResponse.LEAVE_ON or local.state == "starting":
            continue
        off = response is IsolationResponse.POWER_OFF
        timeout_ms = 0 if off else seen.cluster.settings.shutdown_timeout_ms
        stopping[local.uuid] = "isolation"
        actions.append(StopVm(local.uuid, off, timeout_ms, OwnerWhy.RELEASED, f"isolation response: {response}"))
        name = vm.name if vm is not None else local.uuid
        events.append(Event("isolation-response", f"{name}: {response}, its host is isolated", seen.me, name))
    return replace(state, stopping=stopping)


def _missing(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """A VM that is ours, shall run and has no QEMU for a while is released, so that it is started again."""
    if seen.now_ms - state.started_ms < QUIET_MS or not (state.own_vms or state.missing):
        return state
    there = {vm.uuid for vm in seen.local} | set(state.stopping)
    missing = {}
    for vm in state.own_vms:
        ours = vm.owner.host == seen.me and vm.owner.boot_id == seen.boot_id
        if ours and vm.power and vm.ft is None and vm.uuid not in there:
            missing[vm.uuid] = state.missing.get(vm.uuid, seen.now_ms)
    stopping = dict(state.stopping)
    for uuid, since in list(missing.items()):
        # the reading that says that it is ours must be younger than the first look that found no QEMU
        if seen.now_ms - since >= MISSING_MS and state.own_asked_ms > since and state.local_read_ms is None:
            stopping[uuid] = "died"
            actions.append(StopVm(uuid, True, 0, OwnerWhy.RELEASED, "its QEMU died"))
            events.append(Event("qemu-died", f"the QEMU of {uuid} is gone; it is released", seen.me, uuid))
            del missing[uuid]
    return replace(state, missing=missing, stopping=stopping)
