"""Who is primary (HA-01), and which of them is the coordinator (HA-02). Pure.

safety: two coordinators would do no harm to a VM (each start claims the owner file's next number, once), but they
would place VMs twice. So a coordinator acts only while its own heartbeat is good, its reads go on, and the newest lease
it read is its own; and the lease of a living holder is never taken.
"""

from dataclasses import dataclass, replace

from ftkvm.core.ha import liveness as living
from ftkvm.core.ha.desk import PAUSE_MS, Desk
from ftkvm.core.ha.guard import Guard
from ftkvm.core.ha.isolation import Isolation
from ftkvm.core.ha.liveness import Liveness
from ftkvm.core.ha.model import ClaimLease, ClaimRoles, HostState, Lease, Result, Role, Roles
from ftkvm.core.ha.windows import Windows

MOST_PRIMARIES = 5
_GIVE_UP_MS = 6000


@dataclass(frozen=True)
class Election:
    """``claimed_ms``: a claim under way. ``acting``: this host coordinates now.

    safety: ``given_up``: the last term whose lease this host asked to be free of. Fit again a moment later, it may read
    that lease as its own still, and must not act on it: another may hold the next one already (simulator, seed 100790).
    """

    claimed_ms: int | None = None
    given_up: int = 0
    roles_ms: int | None = None
    acting: bool = False
    acting_since_ms: int = 0


def primaries(desk: Desk, windows: Windows) -> tuple[str, ...]:
    """The primary hosts: as the datastore says, else the first five that joined."""
    hosts = desk.seen.cluster.hosts
    if windows.roles is None:
        return hosts[:MOST_PRIMARIES]
    named = tuple(host for host in windows.roles.primaries if host in hosts)
    return named or hosts[:MOST_PRIMARIES]


def role(election: Election, desk: Desk, windows: Windows) -> Role:
    if election.acting:
        return Role.COORDINATOR
    return Role.PRIMARY if desk.seen.me in primaries(desk, windows) else Role.SECONDARY


def watches(desk: Desk, windows: Windows) -> bool:
    """Whether this host reads everybody's heartbeats each interval: primaries do, and all while no primary is heard."""
    named = primaries(desk, windows)
    if desk.seen.me in named or (windows.lease is not None and windows.lease.host == desk.seen.me):
        return True
    return living.silence_ms(desk, windows, *named) >= 3 * desk.settings.interval_ms


def look(election: Election, desk: Desk, windows: Windows, liveness: Liveness, guard: Guard, isolation: Isolation) -> (
    Election
):  # fmt: skip
    """Claim a lease nobody holds, give ours up when we cannot coordinate, keep the roles."""
    election = _ends(election, desk)
    lease = windows.lease
    mine = lease is not None and lease.host == desk.seen.me and lease.boot_id == desk.seen.boot_id
    trusted = guard.ok(desk) and windows.fresh(desk.now) and not windows.lease_corrupt
    unfit = isolation.isolated or desk.seen.me in desk.seen.cluster.maintenance or _alone(desk, windows)
    given_up = lease is not None and lease.term <= election.given_up
    acting = mine and trusted and not (unfit or given_up)
    if acting and not election.acting and lease is not None:
        desk.tell("coordinator", f"this host coordinates (term {lease.term})", desk.seen.me, term=lease.term)
        election = replace(election, acting_since_ms=desk.now)
    elif election.acting and not acting:
        why = "its lease is not the newest" if not mine else "it cannot act now"
        desk.tell("coordinator-stopped", f"this host coordinates no more: {why}", desk.seen.me)
    if acting is not election.acting:
        election = replace(election, acting=acting)
    if not trusted or election.claimed_ms is not None:
        return election
    if mine and (unfit or given_up) and lease is not None:
        return _claim(replace(election, given_up=lease.term), desk, Lease(lease.term + 1, None, desk.seen.boot_id))
    if not mine and not unfit and _may_claim(desk, windows) and _free(desk, windows):
        return _claim(election, desk, Lease((lease.term if lease else 0) + 1, desk.seen.me, desk.seen.boot_id))
    return _roles(election, desk, windows, liveness) if acting else election


def _ends(election: Election, desk: Desk) -> Election:
    if any(True for _ in desk.ends(ClaimLease)):
        election = replace(election, claimed_ms=None)
    for _action, ended in desk.ends(ClaimRoles):
        if ended.result is Result.OK and isinstance(ended.value, Roles):
            desk.tell("roles", f"primary hosts: {', '.join(ended.value.primaries)}", primaries=ended.value.primaries)
        election = replace(election, roles_ms=desk.now)
    if election.claimed_ms is not None and desk.now - election.claimed_ms > _GIVE_UP_MS:
        election = replace(election, claimed_ms=None)
    if election.roles_ms is not None and desk.now - election.roles_ms > _GIVE_UP_MS:
        election = replace(election, roles_ms=None)
    return election


def _claim(election: Election, desk: Desk, lease: Lease) -> Election:
    """The end of a claim tells nothing: who holds the lease is what the next read says."""
    desk.ask(ClaimLease(lease))
    return replace(election, claimed_ms=desk.now)


def _alone(desk: Desk, windows: Windows) -> bool:
    """Nobody is heard, yet others write heartbeats: who coordinates must be able to tell them what to start."""
    others = [host for host in desk.seen.cluster.hosts if host != desk.seen.me]
    if living.silence_ms(desk, windows, *others) < desk.settings.isolation_ms:
        return False
    return any(windows.moving(host, desk.now) for host in others)


def _may_claim(desk: Desk, windows: Windows) -> bool:
    """A primary host; any host once every primary's heartbeat stood still for the lease time."""
    if desk.seen.me in primaries(desk, windows):
        return True
    lease_ms = desk.settings.lease_ms
    if desk.now - windows.awake_ms < 2 * lease_ms:
        return False  # a primary that has written nothing yet may only have been started with us
    return all(windows.still_ms(host) >= lease_ms for host in primaries(desk, windows) if host in windows.by_host)


def _free(desk: Desk, windows: Windows) -> bool:
    """Nobody holds the newest lease any more."""
    lease, lease_ms = windows.lease, desk.settings.lease_ms
    if lease is None or lease.host is None:
        return True
    if lease.host == desk.seen.me or lease.host not in desk.seen.cluster.hosts:
        return True  # of an earlier boot of ours, or of a host that was removed
    known_ms = desk.now - windows.lease_since_ms
    window = windows.by_host.get(lease.host)
    if window is None:  # its heartbeat is missing, or was not understood
        return known_ms >= 2 * lease_ms
    if window.heartbeat.boot_id != lease.boot_id:
        return known_ms >= PAUSE_MS  # heartbeats are read before leases: a lease of a newer boot is shown by the next
    return windows.still_ms(lease.host) >= lease_ms


def _roles(election: Election, desk: Desk, windows: Windows, liveness: Liveness) -> Election:
    """Replace primaries that are dead, removed or in maintenance, and fill up, in the order in which hosts joined.

    A dead one stays named while nobody can take its place: it is one again as soon as it is back.
    """
    if windows.roles_corrupt or election.roles_ms is not None:
        return election
    if desk.now - election.acting_since_ms < 3 * desk.settings.interval_ms:
        return election  # beats of the others may not have come yet
    seen, cluster = desk.seen, desk.seen.cluster
    named = windows.roles.primaries if windows.roles is not None else ()
    kept = [host for host in named if host in cluster.hosts and host not in cluster.maintenance]
    fresh = [
        host
        for host in cluster.hosts
        if host not in kept
        and host not in cluster.maintenance
        and (host == seen.me or liveness.state(host) is HostState.LIVE)
    ]
    for broken in [host for host in kept if host != seen.me and living.broken(liveness.state(host))]:
        if len(kept) >= MOST_PRIMARIES and fresh:
            kept.remove(broken)
            kept.append(fresh.pop(0))
    wanted = tuple((kept + fresh)[:MOST_PRIMARIES])
    if not wanted or wanted == named:
        return election
    number = windows.roles.number + 1 if windows.roles is not None else 1
    desk.ask(ClaimRoles(Roles(number, wanted)))
    return replace(election, roles_ms=desk.now)
