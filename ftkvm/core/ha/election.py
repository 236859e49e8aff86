"""Roles and the coordinator's lease (HA-01). Pure."""

from dataclasses import replace

from ftkvm.core.ha import guard
from ftkvm.core.ha.model import Action, ClaimLease, ClaimRoles, Event, HostState, Lease, Roles, Seen
from ftkvm.core.ha.state import State

PRIMARIES = 5
_LOST = (HostState.DEAD, HostState.UNSAFE, HostState.MAINTENANCE)


def is_mine(lease: Lease | None, seen: Seen) -> bool:
    return lease is not None and lease.host == seen.me and lease.boot_id == seen.boot_id


def eligible(state: State, seen: Seen) -> bool:
    """Whether this host watches the others and may coordinate: a primary host, or one that hears none of them."""
    primaries = state.roles.primaries if state.roles is not None else ()
    if not primaries or seen.me in primaries:
        return True
    oldest = seen.now_ms - seen.cluster.settings.failure_ms
    for host in primaries:
        beats = seen.beats.get(host)
        heard = max(beats.networks.values(), default=state.started_ms) if beats is not None else state.started_ms
        if heard > oldest:
            return False
    return True


def acts(state: State, seen: Seen) -> bool:
    """Whether this host may act as the coordinator now.

    safety: another one takes the lease only after our counter stood still for the lease time, which is longer than
    ``stop_after`` and begins later. Even two coordinators could not start a VM twice: the owner file decides.
    """
    fresh = guard.storage_age_ms(state, seen) < seen.cluster.settings.stop_after_ms
    asked = state.windows.asked_ms
    read = asked is not None and seen.now_ms - asked < seen.cluster.settings.stop_after_ms
    mine = is_mine(state.lease, seen) and state.lease is not None and state.lease.term > state.gave_up_term
    return mine and fresh and read and state.written and state.isolated_ms is None


def turn(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """Take the lease if nobody holds it, give it up if we should not."""
    if not seen.cluster.settings.enabled or not state.has_read or state.lease_asked_ms is not None:
        return state
    lease, resting = state.lease, seen.me in seen.cluster.maintenance
    term = lease.term if lease is not None else 0
    if is_mine(lease, seen):
        if (state.isolated_ms is not None or resting) and state.gave_up_term < term:
            actions.append(ClaimLease(Lease(term + 1, None, seen.boot_id)))
            events.append(Event("lease-given-up", f"{seen.me} no longer coordinates", seen.me))
            return replace(state, lease_asked_ms=seen.now_ms, gave_up_term=term)
        return _roles(state, seen, actions, events) if acts(state, seen) else state
    fresh = guard.storage_age_ms(state, seen) < seen.cluster.settings.stop_after_ms
    if resting or state.isolated_ms is not None or not fresh or not state.written or not eligible(state, seen):
        return state
    if not _is_free(state, seen, lease):
        return state
    actions.append(ClaimLease(Lease(term + 1, seen.me, seen.boot_id)))
    events.append(Event("lease-claimed", f"{seen.me} wants to coordinate (term {term + 1})", seen.me))
    return replace(state, lease_asked_ms=seen.now_ms, stale=True, tries={}, vms=(), vms_ms=None)


def _is_free(state: State, seen: Seen, lease: Lease | None) -> bool:
    """Whether the newest term has ended: given up, its holder left, booted again, or stood still for the lease time."""
    if lease is None or lease.host is None or lease.host not in seen.cluster.hosts:
        return True
    heartbeat = state.windows.heartbeat(lease.host)
    if heartbeat is not None and heartbeat.boot_id != lease.boot_id:
        return True
    return state.windows.still_ms(lease.host) >= seen.cluster.settings.lease_ms


def _roles(state: State, seen: Seen, actions: list[Action], events: list[Event]) -> State:
    """The first five hosts in the order in which they joined; one that is lost is replaced by the next that lives."""
    if state.roles_asked_ms is not None:
        return state
    now = state.roles.primaries if state.roles is not None else ()
    number = state.roles.number if state.roles is not None else 0

    def fit(host: str) -> bool:
        view = state.views.get(host)
        return host == seen.me or (view is not None and view.state not in _LOST)

    def lives(host: str) -> bool:
        view = state.views.get(host)
        return host == seen.me or (view is not None and view.state is HostState.LIVE)

    kept = [host for host in now if host in seen.cluster.hosts and fit(host)]
    more = [host for host in seen.cluster.hosts if host not in kept and lives(host)]
    wished = tuple([*kept, *more][:PRIMARIES]) or (seen.me,)
    if set(wished) == set(now):
        return state
    actions.append(ClaimRoles(Roles(number + 1, wished)))
    events.append(Event("roles", f"primary hosts: {', '.join(wished)}", seen.me))
    return replace(state, roles_asked_ms=seen.now_ms)
