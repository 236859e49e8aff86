"""How long another host's heartbeat counter has stood still, on our own clock and by our own good reads. Pure.

safety: a takeover rests on this. A window begins when *the answer* that showed a new value had arrived, and reaches to
when the last good read *was asked*: whatever the datastore took for either, the time between is never overestimated.
Reads that failed, came too late or left a gap, and a pause of our own process, begin all windows anew: in that time the
counter may have moved without our seeing it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ftkvm.core.ha.model import Heartbeat

GAP_MS = 3_000


@dataclass(frozen=True)
class Window:
    """One host's newest heartbeat, and since when it has been that."""

    heartbeat: Heartbeat
    since_ms: int


@dataclass(frozen=True)
class Windows:
    """All hosts'. ``asked_ms``, ``arrived_ms``: of the last good read; None before the first."""

    by_host: Mapping[str, Window]
    asked_ms: int | None = None
    arrived_ms: int | None = None

    def read(self, heartbeats: Mapping[str, Heartbeat], asked_ms: int, now_ms: int) -> "Windows":
        """Take in a good read."""
        anew = self.arrived_ms is None or asked_ms - self.arrived_ms > GAP_MS
        found = {}
        for host, heartbeat in heartbeats.items():
            before = self.by_host.get(host)
            same = before is not None and not anew and _same(before.heartbeat, heartbeat)
            found[host] = before if same and before is not None else Window(heartbeat, now_ms)
        return Windows(found, asked_ms, now_ms)

    def paused(self, now_ms: int) -> "Windows":
        """We stood still ourselves: nothing is known of that time."""
        return Windows({host: Window(each.heartbeat, now_ms) for host, each in self.by_host.items()}, None, None)

    def still_ms(self, host: str) -> int:
        """How long the host's counter has been seen not to move; 0 if nothing is known of it."""
        window = self.by_host.get(host)
        if window is None or self.asked_ms is None:
            return 0
        return max(0, self.asked_ms - window.since_ms)

    def heartbeat(self, host: str) -> Heartbeat | None:
        window = self.by_host.get(host)
        return window.heartbeat if window is not None else None


def _same(one: Heartbeat, other: Heartbeat) -> bool:
    return one.counter == other.counter and one.boot_id == other.boot_id
