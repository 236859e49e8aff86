"""What one host makes of another: from beats, pings and the heartbeat on the datastore. Pure."""

from dataclasses import dataclass

from ftkvm.core.ha.model import Beats, Heartbeat, HostMode, HostState
from ftkvm.core.ha.windows import Windows

UNHEARD_INTERVALS = 3
PING_SILENT_MS = 3_000
MARGIN_MS = 1_000


@dataclass(frozen=True)
class Limits:
    """The times that decide, in milliseconds."""

    interval_ms: int
    failure_ms: int
    lease_ms: int


def covered(heartbeat: Heartbeat, lease_ms: int) -> bool:
    """Whether a watchdog has surely ended a host whose counter stood still for the lease time."""
    by_watchdog = heartbeat.watchdog_ms + heartbeat.stop_after_ms + MARGIN_MS
    return heartbeat.watchdog_ms > 0 and by_watchdog <= lease_ms


def heard_ms(beats: Beats | None, started_ms: int) -> int:
    """When the last beat came; before the first one, our own start counts."""
    return max(beats.networks.values(), default=started_ms) if beats is not None else started_ms


def judge(
    host: str, now_ms: int, started_ms: int, beats: Beats | None, windows: Windows, limits: Limits, fenced: bool
) -> tuple[HostState, str]:
    """The host's state, and why.

    safety: only DEAD allows a takeover (and NO_STORAGE, of a host that says that it runs nothing). It needs three
    things: no beats for the failure time, a counter that stood still for the lease time, and a proof that nothing there
    writes any more: a watchdog that had to fire within that time and after which no ping was answered, or the power
    switch. Without the third the host is UNSAFE, and its VMs are not started elsewhere by themselves.
    """
    silent_ms = now_ms - heard_ms(beats, started_ms)
    still_ms = windows.still_ms(host)
    heartbeat = windows.heartbeat(host)
    stands = still_ms >= limits.lease_ms
    if silent_ms < UNHEARD_INTERVALS * limits.interval_ms:
        return _heard(heartbeat, still_ms, stands)
    words = f"no beat for {silent_ms / 1000:.0f} s"
    if silent_ms < limits.failure_ms:
        return HostState.UNHEARD, words
    if heartbeat is None:
        return HostState.UNSAFE, f"{words}, and it has never written a heartbeat"
    if fenced:
        return HostState.DEAD, f"{words}; switched off by its fence device"
    if not stands:
        moving = f"{words}, its heartbeat on the datastore "
        if still_ms <= UNHEARD_INTERVALS * limits.interval_ms:
            if heartbeat.mode is HostMode.ISOLATED:
                return HostState.ISOLATED, moving + "says that it is isolated"
            return HostState.CUT_OFF, moving + "moves"
        return HostState.UNHEARD, moving + f"stands still for {still_ms / 1000:.0f} s"
    words += f", heartbeat still for {still_ms / 1000:.0f} s"
    answered = beats.ping_answered if beats is not None else None
    if answered is not None and now_ms - answered < PING_SILENT_MS:
        return HostState.HUNG, f"{words}; its kernel answers pings"
    if not covered(heartbeat, limits.lease_ms):
        return HostState.UNSAFE, f"{words}; no watchdog and no fence device prove that it does not write"
    return HostState.DEAD, f"{words}; its watchdog ended it {heartbeat.watchdog_ms / 1000:.0f} s after its last petting"


def _heard(heartbeat: Heartbeat | None, still_ms: int, stands: bool) -> tuple[HostState, str]:
    if stands:
        return HostState.NO_STORAGE, f"it beats, its heartbeat on the datastore is still for {still_ms / 1000:.0f} s"
    if heartbeat is not None and heartbeat.mode is HostMode.MAINTENANCE:
        return HostState.MAINTENANCE, "in maintenance"
    return HostState.LIVE, "it beats"
