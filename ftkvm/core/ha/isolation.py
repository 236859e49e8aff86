"""Whether this host is cut off from all others (HA-04), and what its VMs do then (HA-05). Pure."""

from dataclasses import dataclass, replace

from ftkvm.core.ha import guard as guarding
from ftkvm.core.ha import liveness as living
from ftkvm.core.ha.desk import Desk
from ftkvm.core.ha.guard import Guard
from ftkvm.core.ha.model import IsolationResponse, Ping
from ftkvm.core.ha.windows import Windows


@dataclass(frozen=True)
class Isolation:
    """``ping_ms``: when the isolation addresses were pinged last; ``isolated`` since ``since_ms``."""

    isolated: bool = False
    since_ms: int = 0
    ping_ms: int | None = None


ALONE_INTERVALS = 3
"""Beats of everybody missed in a row, long before the isolation time: it may be coming."""


def quiet_ms(desk: Desk, windows: Windows) -> int:
    """For how long nobody has been heard; 0 in a cluster of one."""
    others = _others(desk)
    return living.silence_ms(desk, windows, *others) if others else 0


def alone(desk: Desk, quiet: int) -> bool:
    """Whether nobody has been heard for some beats."""
    return quiet >= ALONE_INTERVALS * desk.settings.interval_ms


def _others(desk: Desk) -> list[str]:
    return [host for host in desk.seen.cluster.hosts if host != desk.seen.me]


def look(isolation: Isolation, desk: Desk, windows: Windows, quiet: int) -> Isolation:
    """Nobody heard for the isolation time, then every isolation address silent: isolated. ``quiet``: quiet_ms now."""
    if quiet < desk.settings.isolation_ms:
        if isolation.isolated:
            desk.tell("isolation-over", "another host is heard", desk.seen.me)
        return Isolation() if isolation.isolated or isolation.ping_ms is not None else isolation
    addresses = desk.settings.isolation_addresses
    if not addresses:
        return _without_addresses(isolation, desk, windows)
    for action, ended in desk.ends(Ping):
        if not action.hosts and action.asked_ms == isolation.ping_ms:
            isolation = _answered(isolation, desk, isinstance(ended.value, tuple) and bool(ended.value), quiet)
    if desk.due(isolation.ping_ms, desk.settings.interval_ms):
        desk.ask(Ping(addresses, asked_ms=desk.now))
        return replace(isolation, ping_ms=desk.now)
    return isolation


def _answered(isolation: Isolation, desk: Desk, answer: bool, quiet: int) -> Isolation:
    if answer:
        if isolation.isolated:
            desk.tell("isolation-over", "an isolation address answers", desk.seen.me)
        return replace(isolation, isolated=False)
    if isolation.isolated:
        return isolation
    why = f"no host heard for {quiet / 1000:.0f} s, and no isolation address answers"
    desk.tell("isolated", why, desk.seen.me, addresses=list(desk.settings.isolation_addresses))
    return replace(isolation, isolated=True, since_ms=desk.now)


def _without_addresses(isolation: Isolation, desk: Desk, windows: Windows) -> Isolation:
    """Nothing to ask but the datastore: others whose counters move are there, so it is us who are cut off."""
    moving = [host for host in _others(desk) if windows.moving(host, desk.now)]
    if isolation.isolated or not moving:
        return isolation
    desk.tell("isolated", f"no host heard, but {', '.join(moving)} write heartbeats", desk.seen.me)
    return replace(isolation, isolated=True, since_ms=desk.now)


def respond(isolation: Isolation, guard: Guard, desk: Desk) -> Guard:
    """End this host's ordinary VMs as each one's isolation response says; those to be left on stay.

    A VM whose settings were not read yet has the default response.
    """
    settings = desk.settings
    if not isolation.isolated or not settings.host_monitoring or not settings.enabled:
        return guard
    known = {vm.uuid: vm.isolation_response for vm in guard.own}
    for vm in guarding.solo(desk):
        response = known.get(vm.uuid, IsolationResponse.SHUTDOWN)
        if response is not IsolationResponse.LEAVE_ON and vm.state != "starting":
            guard = guarding.stop(guard, desk, vm.uuid, response, "isolated")
    return guard
