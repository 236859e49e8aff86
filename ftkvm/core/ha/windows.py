"""Since when the other hosts' counters stand still, as this host's own good reads show it. Pure.

safety: all of HA's takeovers rest on this module. A window begins at the *end* of the first read that showed a counter
and reaches to the *begin* of the last read that still showed it: in between, that host completed no heartbeat write.
So whatever it wrote last had begun before the window did. Both ends are on this host's monotonic clock; no other
clock is asked. A gap in our own reads, or in our own turns, begins all windows anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ftkvm.core.ha.desk import PAUSE_MS, Desk
from ftkvm.core.ha.model import Heartbeat, HeartbeatsRead, Lease, ReadHeartbeats, Result, Roles

_GIVE_UP_MS = 6000
"""A read whose end has not come by then is asked again."""


@dataclass(frozen=True)
class Window:
    """``since_ms``: when this counter was first seen. ``moved``: an earlier counter of it was seen as well."""

    heartbeat: Heartbeat
    since_ms: int
    moved: bool = False


@dataclass(frozen=True)
class Windows:
    """``asked_ms``, ``seen_ms``: begin and end of the last good read. ``awake_ms``: since when our turns go on without
    a pause; what we did not hear before that, we could not have heard."""

    awake_ms: int
    turn_ms: int
    by_host: Mapping[str, Window] = field(default_factory=dict)
    asked_ms: int | None = None
    seen_ms: int | None = None
    under_way_ms: int | None = None
    last_ask_ms: int | None = None
    lease: Lease | None = None
    lease_since_ms: int = 0
    roles: Roles | None = None
    corrupt: tuple[str, ...] = ()

    def still_ms(self, host: str) -> int:
        """So long a host's counter is known to stand still; 0 if nothing is known."""
        window = self.by_host.get(host)
        return max(0, self.asked_ms - window.since_ms) if window is not None and self.asked_ms is not None else 0

    def moving(self, host: str, now: int) -> bool:
        """Its counter was seen to move within the last few seconds."""
        window = self.by_host.get(host)
        return window is not None and window.moved and now - window.since_ms <= 2 * PAUSE_MS

    def boot_id(self, host: str) -> str | None:
        window = self.by_host.get(host)
        return window.heartbeat.boot_id if window is not None else None

    def fresh(self, now: int) -> bool:
        """Whether our reads go on."""
        return self.seen_ms is not None and now - self.seen_ms <= PAUSE_MS

    @property
    def lease_corrupt(self) -> bool:
        return any(path.startswith("leases/") for path in self.corrupt)

    @property
    def roles_corrupt(self) -> bool:
        return any(path.startswith("roles/") for path in self.corrupt)


def begin(now: int) -> Windows:
    return Windows(now, now)


def look(windows: Windows, desk: Desk, every_ms: int) -> Windows:
    """Take in what was read, notice a pause of our own, read again every ``every_ms``."""
    now = desk.now
    if now - windows.turn_ms > PAUSE_MS:
        desk.tell("paused", f"this host took no turn for {(now - windows.turn_ms) / 1000:.1f} s", desk.seen.me)
        windows = replace(windows, awake_ms=now)
    under_way, last_ask = windows.under_way_ms, windows.last_ask_ms
    for action, ended in desk.ends(ReadHeartbeats):
        if action.asked_ms == under_way:
            under_way = None
        if ended.result is Result.OK and isinstance(ended.value, HeartbeatsRead):
            windows = _read(windows, desk, action.asked_ms, ended.value)
    if under_way is not None and now - under_way > _GIVE_UP_MS:
        under_way = None
    if under_way is None and desk.due(last_ask, every_ms):
        under_way = last_ask = now
        desk.ask(ReadHeartbeats(now))
    return replace(windows, turn_ms=now, under_way_ms=under_way, last_ask_ms=last_ask)


def _read(windows: Windows, desk: Desk, asked_ms: int, read: HeartbeatsRead) -> Windows:
    now = desk.now
    if windows.asked_ms is not None and asked_ms <= windows.asked_ms:
        return windows  # an older one came in late
    anew = windows.seen_ms is None or now - windows.seen_ms > PAUSE_MS or asked_ms < windows.awake_ms
    found = {}
    for host, heartbeat in read.heartbeats.items():
        before = windows.by_host.get(host)
        same = before is not None and _counter(before.heartbeat) == _counter(heartbeat)
        if same and before is not None and not anew:
            found[host] = before if before.heartbeat == heartbeat else replace(before, heartbeat=heartbeat)
        else:
            found[host] = Window(heartbeat, now, before is not None and not same)
    for path in read.corrupt:
        if path not in windows.corrupt:
            desk.tell("corrupt-file", f"{path} is not understood; it is left alone", path=path)
    before_lease, lease = windows.lease, read.lease
    since = windows.lease_since_ms if lease == before_lease else now
    return replace(
        windows, by_host=found, asked_ms=asked_ms, seen_ms=now, lease=lease, lease_since_ms=since, roles=read.roles,
        corrupt=read.corrupt,
    )  # fmt: skip


def _counter(heartbeat: Heartbeat) -> tuple[str, int]:
    return heartbeat.boot_id, heartbeat.counter
