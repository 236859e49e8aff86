"""The HA machine of one host: ``start(seen)`` gives the first state, ``turn(state, seen)`` each next one. Pure.

Every host runs the same one. Each turn, in this order: what was read of the others, whether this host is isolated, its
own heartbeat, watchdog and VMs, what it makes of the others, who coordinates; and, on the coordinator, what is
restarted. docs/ha.md argues why no VM ever runs twice.
"""

from dataclasses import dataclass, field

from ftkvm.core.ha import election as electing
from ftkvm.core.ha import guard as guarding
from ftkvm.core.ha import isolation as isolating
from ftkvm.core.ha import liveness as living
from ftkvm.core.ha import restart as restarting
from ftkvm.core.ha import windows as watching
from ftkvm.core.ha.desk import Desk
from ftkvm.core.ha.election import Election
from ftkvm.core.ha.guard import Guard
from ftkvm.core.ha.isolation import Isolation
from ftkvm.core.ha.liveness import Liveness
from ftkvm.core.ha.model import Role, Seen, Status, Turn
from ftkvm.core.ha.restart import Restarts
from ftkvm.core.ha.windows import Windows

SECONDARY_READS_EVERY = 5
"""A secondary host reads the others' heartbeats so many times less often than a primary one."""


@dataclass(frozen=True)
class State:
    """All a machine remembers. A new one knows nothing, and so takes nothing over."""

    windows: Windows
    guard: Guard
    isolation: Isolation = field(default_factory=Isolation)
    liveness: Liveness = field(default_factory=Liveness)
    election: Election = field(default_factory=Election)
    restarts: Restarts = field(default_factory=Restarts)
    status: Status | None = None


def start(seen: Seen) -> Turn:
    """The first turn of an agent's life."""
    return turn(State(watching.begin(seen.now_ms), guarding.begin(seen.now_ms)), seen)


def turn(state: object, seen: Seen) -> Turn:
    """One turn: every interval, and at once when an action ended or a host long unheard is heard."""
    assert isinstance(state, State)
    desk = Desk(seen)
    watches = electing.watches(desk, state.windows)
    interval = seen.cluster.settings.interval_ms
    windows = watching.look(state.windows, desk, interval if watches else SECONDARY_READS_EVERY * interval)
    quiet = isolating.quiet_ms(desk, windows)
    isolation = isolating.look(state.isolation, desk, windows, quiet)
    guard = guarding.look(state.guard, desk, isolation.isolated, isolating.alone(desk, quiet))
    guard = isolating.respond(isolation, guard, desk)
    liveness = living.look(state.liveness, desk, windows) if watches else _glance(state, desk, windows)
    election = electing.look(state.election, desk, windows, liveness, guard, isolation)
    restarts = restarting.look(state.restarts, desk, windows, liveness) if election.acting else Restarts()
    status = _status(state.status, desk, windows, guard, isolation, liveness, election, restarts)
    after = State(windows, guard, isolation, liveness, election, restarts, status)
    return Turn(after, tuple(desk.actions), tuple(desk.events), status)


def _glance(state: State, desk: Desk, windows: Windows) -> Liveness:
    """A secondary host judges the others only to show it, whenever it has read."""
    if windows.seen_ms == state.windows.seen_ms and state.liveness.views:
        return state.liveness
    return living.look(state.liveness, desk, windows)


def _status(
    before: Status | None, desk: Desk, windows: Windows, guard: Guard, isolation: Isolation, liveness: Liveness,
    election: Election, restarts: Restarts,
) -> Status:  # fmt: skip
    lease = windows.lease
    role: Role = electing.role(election, desk, windows)
    term, coordinator = (lease.term, lease.host) if lease is not None else (0, None)
    if before is not None and before.hosts and liveness.views and len(before.hosts) == len(liveness.views):
        same = all(view is liveness.views.get(view.host) for view in before.hosts)
        hosts = before.hosts if same else tuple(liveness.views.values())
    else:
        hosts = tuple(liveness.views.values())
    return Status(role, coordinator, term, isolation.isolated, guard.ok(desk), hosts, restarts.waiting)
