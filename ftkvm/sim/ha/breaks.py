"""Deliberate breaks of the HA machine: wrappers around it that see or do something wrong. Each must be caught."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ftkvm.core.ha import model as m
from ftkvm.core.ha.desk import PAUSE_MS
from ftkvm.core.ha.machine import State
from ftkvm.sim.ha.agent import Machine
from ftkvm.sim.ha.faults import Fault
from ftkvm.sim.ha.world import Shape, step


@dataclass(frozen=True)
class Break:
    """A broken machine, and the history that shows it. ``cas``: whether owner files are created once only."""

    machine: Machine
    script: list[Fault]
    shape: Shape
    says: str
    cas: bool = True


def _reads(change: Callable[[m.Seen, m.HeartbeatsRead], m.HeartbeatsRead]) -> Machine:
    """Every reading of the datastore is doctored before the machine gets it."""

    def broken(state: object | None, seen: m.Seen) -> m.Turn:
        ended = tuple(
            replace(each, value=change(seen, each.value)) if isinstance(each.value, m.HeartbeatsRead) else each
            for each in seen.ended
        )
        return step(state, replace(seen, ended=ended))

    return broken


def _does(change: Callable[[m.Seen, m.Action], tuple[m.Action, ...]]) -> Machine:
    """Every action is doctored before it is done."""

    def broken(state: object | None, seen: m.Seen) -> m.Turn:
        turn = step(state, seen)
        return replace(turn, actions=tuple(new for action in turn.actions for new in change(seen, action)))

    return broken


def _beats(change: Callable[[m.Heartbeat], m.Heartbeat]) -> Machine:
    return _reads(
        lambda _seen, read: replace(read, heartbeats={name: change(each) for name, each in read.heartbeats.items()})
    )


def _short_lease(state: object | None, seen: m.Seen) -> m.Turn:
    settings = replace(seen.cluster.settings, lease_ms=3_000, failure_ms=3_000)
    covered = _beats(lambda each: replace(each, watchdog_ms=1, stop_after_ms=1))
    return covered(state, replace(seen, cluster=replace(seen.cluster, settings=settings)))


def _no_guard(seen: m.Seen, action: m.Action) -> tuple[m.Action, ...]:
    if isinstance(action, m.StopVm) and "datastore" in action.reason:
        return ()
    return (action, m.PetWatchdog()) if isinstance(action, m.ReadHeartbeats | m.Ping) else (action,)


def _guard_off(state: object | None, seen: m.Seen) -> m.Turn:
    turn = _does(_no_guard)(state, seen)
    return replace(turn, actions=(*turn.actions, m.PetWatchdog()))


def _everybodys_lease(seen: m.Seen, read: m.HeartbeatsRead) -> m.HeartbeatsRead:
    term = read.lease.term if read.lease is not None else 1
    return replace(read, lease=m.Lease(term, seen.me, seen.boot_id))


def _elsewhere(action: m.StartVm) -> m.StartVm:
    return replace(action, host="h1" if action.host != "h1" else "h3")


def _once_more(state: object | None, seen: m.Seen) -> m.Turn:
    """What was started is started again elsewhere, by what was known before; owner files alone stand against it."""
    turn = step(state, seen)
    done = [each.action for each in seen.ended if each.result is m.Result.OK and isinstance(each.action, m.StartVm)]
    return replace(turn, actions=(*turn.actions, *map(_elsewhere, done)))


def _two_at_once(seen: m.Seen, action: m.Action) -> tuple[m.Action, ...]:
    """Owner files still let only one of them go on."""
    if not isinstance(action, m.StartVm):
        return (action,)
    return action, _elsewhere(action)


def _retry_unknown(state: object | None, seen: m.Seen) -> m.Turn:
    """A start of which nothing was heard is taken for one that owns the VM and failed; nobody is asked."""
    turn = step(state, seen)
    unknown = [each.action for each in seen.ended if each.result is m.Result.UNKNOWN]
    again = [
        replace(action, host=seen.me, owner=action.owner + 1) for action in unknown if isinstance(action, m.StartVm)
    ]
    return replace(turn, actions=(*turn.actions, *again))


def _unnoticed_pause(state: object | None, seen: m.Seen) -> m.Turn:
    """A pause of its own counts as time in which it watched the others' heartbeats.

    And in which its own was written: else the guard keeps it from acting on what it believes.
    """
    if isinstance(state, State) and seen.now_ms - state.windows.turn_ms > PAUSE_MS:
        now = seen.now_ms
        windows = replace(state.windows, turn_ms=now, asked_ms=now, seen_ms=now, under_way_ms=None)
        state = replace(state, windows=windows, guard=replace(state.guard, good_ms=now))
    return step(state, seen)


CRASH = [Fault(25_000, "crash", "h2", 60_000)]
DARK = [Fault(25_000, "cut", "h2", 60_000), Fault(25_100, "freeze", "h2", 60_000)]
FROZEN_IN_START = [*CRASH, Fault(41_900, "freeze", "h3", 45_000)]
PAUSED = [Fault(25_000, "freeze", "h1", 22_000)]
NO_DATASTORE = [Fault(25_000, "cut", "h2", 60_000), Fault(25_100, "hang-storage", "h2", 60_000)]
MUTE = [Fault(25_000, "mute", "h2", 60_000)]
PLAIN = Shape(3, 6)
NO_DOGS = Shape(3, 6, watchdogs=False)
ONE_DOG = Shape(3, 6, watchdogs=("h2",))
PAUSED_DOGS = Shape(3, 6, watchdogs=("h2", "h3"))
NO_ADDRESS = Shape(3, 6, settings=m.HaSettings(isolation_addresses=()))

BREAKS: dict[str, Break] = {
    "watchdog not required": Break(
        _beats(lambda each: replace(each, watchdog_ms=5_000)), DARK, NO_DOGS, "while it runs on|owner file says"
    ),
    "lease time too short": Break(_short_lease, DARK, PLAIN, "while it runs on|owner file says"),
    "guard off": Break(_guard_off, NO_DATASTORE, PLAIN, "while it runs on|owner file says"),
    "counters not looked at": Break(
        _beats(lambda each: replace(each, counter=0) if each.host == "h2" else each),
        MUTE,
        NO_ADDRESS,
        "while it runs on|owner file says",
    ),
    "no lease check": Break(_reads(_everybodys_lease), CRASH, PLAIN, "acts .* the lease is"),
    "owner files overwritten": Break(_once_more, CRASH, PLAIN, "while it runs on|owner file says", cas=False),
    "two starts in flight for one VM": Break(_does(_two_at_once), CRASH, PLAIN, "two starts of .* at once"),
    "UNKNOWN retried blindly (no query first)": Break(
        _retry_unknown, FROZEN_IN_START, ONE_DOG, "while it runs on|owner file says"
    ),
    "window not restarted after a pause": Break(
        _unnoticed_pause, PAUSED, PAUSED_DOGS, "while it runs on|owner file says|acts .* the lease is"
    ),
    "nothing is restarted": Break(
        _does(lambda _seen, action: () if isinstance(action, m.StartVm) else (action,)),
        CRASH,
        PLAIN,
        "do not run",
    ),
    "nobody wants to coordinate": Break(
        _does(lambda _seen, action: () if isinstance(action, m.ClaimLease) else (action,)),
        CRASH,
        PLAIN,
        "nobody coordinates",
    ),
}
