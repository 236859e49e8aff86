"""What this host makes of each other one (HA-03, HA-25), and whose VMs may be taken over. Pure.

The states and what they need are in :func:`_judge`. A takeover needs more than a verdict: see :func:`gone`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ftkvm.core.ha.desk import Desk
from ftkvm.core.ha.model import Fence, Heartbeat, HostMode, HostState, HostView, Ping, Result
from ftkvm.core.ha.windows import Windows

MARGIN_MS = 1000
"""Between a host's certain end and a takeover: for clocks that do not run at the same rate, and the watchdog's own."""
_PING_BEFORE_MS = 5000
_PING_FRESH_MS = 5000
_NOT_YET = "not heard yet"
_BROKEN = frozenset({HostState.DEAD, HostState.UNSAFE, HostState.HUNG})
_KINDS = {
    HostState.DEAD: "host-failed", HostState.UNSAFE: "host-unsafe", HostState.HUNG: "host-hung",
    HostState.ISOLATED: "host-isolated", HostState.CUT_OFF: "host-cut-off", HostState.NO_STORAGE: "host-no-storage",
    HostState.UNHEARD: "host-unheard",
}  # fmt: skip


@dataclass(frozen=True)
class Liveness:
    """``dead``: host → boot id that is certainly over, though no newer one was seen. ``fenced``: switched off by us."""

    views: Mapping[str, HostView] = field(default_factory=dict)
    dead: Mapping[str, str] = field(default_factory=dict)
    fenced: Mapping[str, str] = field(default_factory=dict)
    ping_ms: int | None = None

    def state(self, host: str) -> HostState | None:
        view = self.views.get(host)
        return view.state if view is not None else None


def silence_ms(desk: Desk, windows: Windows, *hosts: str) -> int:
    """So long nothing was heard of any of these hosts while we could have heard it."""
    latest = windows.awake_ms
    for host in hosts:
        beats = desk.seen.beats.get(host)
        if beats is not None and beats.heard_ms is not None and beats.heard_ms > latest:
            latest = beats.heard_ms
    return desk.now - latest


def look(liveness: Liveness, desk: Desk, windows: Windows) -> Liveness:
    """Judge every other host; ping those that were not heard for long."""
    views: dict[str, HostView] = {}
    dead = {host: boot for host, boot in liveness.dead.items() if _counter_still(windows, host, boot, desk)}
    fenced = {host: boot for host, boot in liveness.fenced.items() if windows.boot_id(host) == boot}
    for fence, ended in desk.ends(Fence):
        boot = windows.boot_id(fence.host)
        if ended.result is Result.OK and boot is not None:
            fenced[fence.host] = boot
            desk.tell("fenced", f"{fence.host} was switched off by its fencing device", fence.host)
        elif ended.result is not Result.OK:
            desk.tell(
                "fence-failed", f"{fence.host} could not be switched off: {ended.code} {ended.detail}", fence.host
            )
    silent = []
    for host in desk.seen.cluster.hosts:
        if host == desk.seen.me:
            continue
        silence = silence_ms(desk, windows, host)
        state, why = _judge(desk, windows, host, silence, host in dead or host in fenced)
        before = liveness.views.get(host)
        if before is not None and before.state is state:
            views[host] = before
        else:
            views[host] = HostView(host, state, why, desk.now)
            _tell(desk, before, views[host])
        boot = windows.boot_id(host)
        if state is HostState.DEAD and boot is not None and host not in fenced:
            dead[host] = boot
        elif silence < 3 * desk.settings.interval_ms:
            dead.pop(host, None)  # safety: a new boot that has written nothing yet, or a watchdog that did not work
        if silence >= desk.settings.failure_ms - _PING_BEFORE_MS:
            silent.append(host)
    ping_ms = liveness.ping_ms
    if silent and desk.due(ping_ms, desk.settings.interval_ms):
        ping_ms = desk.now
        desk.ask(Ping(tuple(silent), hosts=True, asked_ms=desk.now))
    return Liveness(views, dead, fenced, ping_ms)


def _counter_still(windows: Windows, host: str, boot: str, desk: Desk) -> bool:
    """A host once proven dead stays so, until another boot of it is seen, or its counter moves against all proof."""
    window = windows.by_host.get(host)
    if window is None:
        return False
    if window.heartbeat.boot_id == boot and window.moved and window.since_ms == windows.seen_ms:
        desk.tell("host-came-back", f"{host} was proven dead, and its counter moves: its watchdog did not work", host)
        return False
    return window.heartbeat.boot_id == boot


def _judge(desk: Desk, windows: Windows, host: str, silence: int, proven: bool) -> tuple[HostState, str]:
    settings, now = desk.settings, desk.now
    beats = desk.seen.beats.get(host)
    still = windows.still_ms(host)
    seconds = f"no beat for {silence / 1000:.0f} s"
    if silence < 3 * settings.interval_ms:
        if beats is None or beats.heard_ms is None:
            return HostState.UNHEARD, _NOT_YET
        if still >= settings.stop_after_ms:
            return (
                HostState.NO_STORAGE,
                f"it beats, but its heartbeat on the datastore stands since {still / 1000:.0f} s",
            )
        if host in desk.seen.cluster.maintenance or _mode(windows, host) is HostMode.MAINTENANCE:
            return HostState.MAINTENANCE, "in maintenance"
        return HostState.LIVE, "it beats"
    if windows.moving(host, now) and _mode(windows, host) is HostMode.ISOLATED:
        return HostState.ISOLATED, "it says on the datastore that it is isolated"
    if silence < settings.failure_ms:
        return HostState.UNHEARD, seconds
    pinged = beats is not None and beats.ping_answered is not None and now - beats.ping_answered < _PING_FRESH_MS
    if still < settings.lease_ms:
        if not windows.moving(host, now):
            return HostState.UNHEARD, f"{seconds}; its heartbeat on the datastore is not known to stand long enough"
        if pinged:
            return HostState.UNHEARD, f"{seconds}, but it answers pings and its heartbeat on the datastore moves"
        return HostState.CUT_OFF, f"{seconds}, no answer to pings, but its heartbeat on the datastore moves"
    stands = f"{seconds}, its heartbeat on the datastore stands since {still / 1000:.0f} s"
    if proven:
        return HostState.DEAD, stands
    heartbeat = windows.by_host[host].heartbeat
    if pinged:
        # safety: by now the watchdog should have ended it. Who answers all the same may still write.
        armed, bare = "its watchdog should have ended it", "it had no watchdog armed, and no fence has switched it off"
        return HostState.HUNG, f"{stands}, but it answers pings: {armed if heartbeat.watchdog_ms > 0 else bare}"
    return _covered(heartbeat, settings.lease_ms, stands)


def _covered(heartbeat: Heartbeat, lease_ms: int, stands: str) -> tuple[HostState, str]:
    """Whether the lease time covers the time in which the host's own guard ends it."""
    if heartbeat.watchdog_ms <= 0:
        return HostState.UNSAFE, f"{stands}; it had no watchdog armed, so it may still write"
    total = heartbeat.stop_after_ms + heartbeat.watchdog_ms + MARGIN_MS
    if total > lease_ms:
        return HostState.UNSAFE, (
            f"{stands}; its guard takes {heartbeat.stop_after_ms} + {heartbeat.watchdog_ms} + {MARGIN_MS} = {total} ms,"
            f" the lease only {lease_ms} ms"
        )
    return HostState.DEAD, f"{stands}; its watchdog has ended it ({total} of {lease_ms} ms)"


def _mode(windows: Windows, host: str) -> HostMode | None:
    window = windows.by_host.get(host)
    return window.heartbeat.mode if window is not None else None


def _tell(desk: Desk, before: HostView | None, view: HostView) -> None:
    kind = _KINDS.get(view.state)
    if before is None and view.state is HostState.UNHEARD:
        return
    if kind is not None:
        desk.tell(kind, f"{view.host}: {view.why}", view.host, state=str(view.state))
    elif before is not None and before.state in _KINDS and before.why != _NOT_YET:
        desk.tell("host-back", f"{view.host}: {view.why}", view.host)


def boots_over(windows: Windows, runners: Iterable[tuple[str, str]], known_ms: int) -> frozenset[tuple[str, str]]:
    """Those of the (host, boot id) that run something, as was known at ``known_ms``, whose host was booted again since.

    safety: an agent claims owner files, and makes copies of pairs, only after its boot's first heartbeat was written.
    So a heartbeat that was read after the owner file or the pair's record and names another boot is of a later one.
    """
    if windows.asked_ms is None or windows.asked_ms < known_ms:
        return frozenset()
    return frozenset((host, boot) for host, boot in runners if windows.boot_id(host) not in (None, boot))


def gone(
    liveness: Liveness, desk: Desk, windows: Windows, host: str, boot_id: str, over: frozenset[tuple[str, str]]
) -> str | None:
    """Why nothing that this boot of the host ran can write any more; None: it can, or nothing proves that it cannot.

    ``boot_id`` "": whichever. ``over``: see :func:`boots_over`.

    safety: an operator's word counts for the one boot it was said of: who has not read yet that the host was added
    again takes nothing from its next one. And it counts for nothing while that host writes heartbeats.
    """
    if (host, boot_id) in over:
        return f"{host} was booted again"
    if boot_id and removed_boots(desk, windows).get(host) == boot_id:
        return f"{host} was removed from the cluster as dead"
    there = windows.boot_id(host)
    if there is None or boot_id not in (there, ""):
        return None
    if liveness.fenced.get(host) == there:
        return f"{host} was switched off by its fencing device"
    if liveness.dead.get(host) == there:
        return liveness.views[host].why if host in liveness.views else f"{host} is dead"
    return None


def removed_boots(desk: Desk, windows: Windows) -> dict[str, str]:
    """The hosts that were removed as dead, and are as still as that; with the boot that is over."""
    still = 3 * desk.settings.interval_ms
    return {
        host: boot for host, boot in desk.seen.cluster.removed.items()
        if host not in windows.by_host or windows.still_ms(host) >= still
    }  # fmt: skip


def stopped_by_itself(
    liveness: Liveness, desk: Desk, windows: Windows, host: str, boot_id: str, known_ms: int
) -> str | None:
    """Why an ordinary VM has ended whose owner file, known since ``known_ms``, names this boot: the host is without the
    datastore, and says, now, that it has ended its ordinary VMs.

    safety: the word and the silence must both be younger than what we know of the owner. A host whose datastore is back
    may have started the VM, or won a pair's epoch, a moment ago, and what it said before that says nothing of it
    (simulator, pairs, seed 700091). It starts a VM only after a heartbeat, which a reading begun later shows; and one
    that it runs or starts is in each beat from before its owner file was written. A beat on its way for a whole
    interval is not believed in.
    """
    if liveness.state(host) is not HostState.NO_STORAGE or windows.boot_id(host) != boot_id:
        return None
    beats = desk.seen.beats.get(host)
    if beats is None or beats.solo_vms != 0 or windows.still_ms(host) < desk.settings.lease_ms:
        return None
    if (beats.heard_ms or 0) < known_ms + desk.settings.interval_ms or (windows.asked_ms or 0) < known_ms:
        return None
    return f"{host} lost the datastore and says that it has ended its VMs"


def broken(state: HostState | None) -> bool:
    """Not coming back by itself, as far as can be told."""
    return state in _BROKEN
