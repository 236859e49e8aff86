"""VM monitoring (HA-17): when is a guest taken to hang, and may it be reset?

A guest hangs when its agent has not answered for the failure interval *and* neither its disks nor its NICs moved for
the I/O interval. Only what was really watched counts as silence: time in which nothing could be known (libvirt away,
the VM paused, our own agent stopped) is taken out. Pure: one call of :func:`judge` per VM and look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ftkvm.core.ha.settings import Monitoring

RING_FRAMES = 1024
"""The longest receive queue of a virtio NIC. So many frames go in with nobody to take them out; more prove life."""


class Beat(StrEnum):
    """What came of asking the guest's agent."""

    ANSWERED = "answered"
    SILENT = "silent"  # asked, no answer in time; or the guest has closed its side
    NO_CHANNEL = "no-channel"  # the domain has no guest agent channel at all
    UNKNOWN = "unknown"  # could not ask: libvirt is away, or the domain stood still just then


class State(StrEnum):
    """What the monitoring makes of a VM."""

    OFF = "off"
    WELL = "well"
    NO_AGENT = "no-agent"
    SETTLING = "settling"
    NOT_JUDGED = "not-judged"
    SILENT = "silent"
    HANGS = "hangs"
    LEFT_ALONE = "left-alone"


MEANINGS: dict[State, str] = {
    State.OFF: "VM monitoring is off for this VM.",
    State.WELL: "The guest agent answers, or its silence is shorter than the failure interval.",
    State.NO_AGENT: "Not monitored: no guest agent has answered since the VM's start.",
    State.SETTLING: "Started or reset less than the minimum uptime ago: not judged yet.",
    State.NOT_JUDGED: "Not judged now: paused, another operation (migration, FT on or off), or our agent stood still.",
    State.SILENT: "The agent is silent for the failure interval, but disk or network moved within the I/O interval.",
    State.HANGS: "Silent and without I/O: it is reset now, or as soon as that can be recorded and done.",
    State.LEFT_ALONE: "Hangs, and was reset as often as is allowed within the window: it is left alone.",
}


@dataclass(frozen=True)
class Io:
    """Counters since QEMU's start: requests of all disks, frames of all NICs."""

    disk_requests: int
    sent: int
    received: int


@dataclass(frozen=True)
class Look:
    """What was seen of a VM at ``now_ms`` (monotonic; ``wall_ms`` since the epoch).

    ``life`` names the QEMU process, which began at ``born_ms``. ``answered_before``: an earlier agent process has heard
    this life. ``obstacle``: why it must not be judged now, or nothing.
    """

    now_ms: int
    wall_ms: int
    life: str
    born_ms: int
    beat: Beat
    io: Io | None
    obstacle: str = ""
    answered_before: bool = False


@dataclass(frozen=True)
class Watched:
    """What is known of a VM between two looks. Hand it to the next :func:`judge` unseen."""

    life: str
    up_since_ms: int
    looked_ms: int
    answered: bool
    heard_ms: int  # silence counts from here
    io_ms: int  # quiet counts from here
    io: Io | None
    received_base: int


@dataclass(frozen=True)
class Judgement:
    """``state`` with what it rests on; ``reset``: reset it now. ``resets``: how many count in the window."""

    state: State
    why: str
    silent_ms: int = 0
    quiet_ms: int | None = None  # None: not known
    resets: int = 0
    reset: bool = False


def judge(
    before: Watched | None, look: Look, settings: Monitoring, resets_at_ms: Sequence[int]
) -> tuple[Watched, Judgement]:
    """One look at one VM. ``resets_at_ms``: when it was reset, in wall time, in any order."""
    if before is None or before.life != look.life:
        before = _first(look)
    if not settings.enabled:
        return _restarted(before, look), Judgement(State.OFF, "VM monitoring is off for this VM")
    count = resets_in_window(resets_at_ms, look.wall_ms, 1000 * settings.window_s)
    if look.obstacle:
        return _restarted(before, look), Judgement(State.NOT_JUDGED, look.obstacle, resets=count)
    now = _noted(before, look)
    silent, quiet = look.now_ms - now.heard_ms, look.now_ms - now.io_ms
    found = replace(_weigh(now, look, settings, silent, quiet, count), silent_ms=silent, resets=count)
    return now, replace(found, quiet_ms=quiet if now.io is not None else None)


def _weigh(now: Watched, look: Look, settings: Monitoring, silent: int, quiet: int, count: int) -> Judgement:
    if not now.answered:
        missing = "the domain has no guest agent channel" if look.beat is Beat.NO_CHANNEL else "no guest agent answers"
        return Judgement(State.NO_AGENT, missing)
    uptime = look.now_ms - now.up_since_ms
    if uptime < 1000 * settings.min_uptime_s:
        return Judgement(State.SETTLING, f"up for {_s(uptime)}, monitored after {_s(1000 * settings.min_uptime_s)}")
    if silent < 1000 * settings.failure_interval_s:
        return Judgement(State.WELL, "the guest agent answers" if look.beat is Beat.ANSWERED else "no answer just now")
    said = f"no answer of the guest agent for {_s(silent)}"
    if settings.iostats_interval_s:  # 0: I/O is not looked at
        if now.io is None:
            return Judgement(State.SILENT, f"{said}; its I/O is not known, so it is left alone")
        if quiet < 1000 * settings.iostats_interval_s:
            return Judgement(State.SILENT, f"{said}, but disk or network I/O {_s(quiet)} ago")
        said += f" and no I/O for {_s(quiet)}"
    if count >= settings.max_resets:
        return Judgement(State.LEFT_ALONE, f"{said}; left alone after {count} resets in {_s(1000 * settings.window_s)}")
    return Judgement(State.HANGS, said, reset=True)


def resets_in_window(resets_at_ms: Sequence[int], wall_ms: int, window_ms: int) -> int:
    """How many resets count now. One from the future (a clock was put back) counts too."""
    return sum(1 for at in resets_at_ms if wall_ms - at < window_ms)


def after_reset(watched: Watched, now_ms: int) -> Watched:
    """It was reset (by us, by the guest, by anybody): uptime, silence and quiet begin anew."""
    return replace(watched, up_since_ms=now_ms, heard_ms=now_ms, io_ms=now_ms)


def _first(look: Look) -> Watched:
    received = look.io.received if look.io else 0
    return Watched(
        look.life, look.born_ms, look.now_ms, look.answered_before, look.now_ms, look.now_ms, look.io, received
    )


def _restarted(before: Watched, look: Look) -> Watched:
    """Silence begins anew: what was not watched is no silence."""
    received = look.io.received if look.io else before.received_base
    return replace(
        before, looked_ms=look.now_ms, heard_ms=look.now_ms, io_ms=look.now_ms, io=look.io, received_base=received
    )


def _noted(before: Watched, look: Look) -> Watched:
    unwatched_ms = look.now_ms - before.looked_ms
    now = replace(before, looked_ms=look.now_ms)
    if look.beat is Beat.ANSWERED:
        now = replace(now, answered=True, heard_ms=look.now_ms)
    elif look.beat is Beat.UNKNOWN:
        now = replace(now, heard_ms=before.heard_ms + unwatched_ms)
    if look.io is None:
        return replace(now, io_ms=before.io_ms + unwatched_ms)
    if before.io is None or _moved(before.io, look.io, before.received_base):
        return replace(now, io=look.io, io_ms=look.now_ms, received_base=look.io.received)
    return replace(now, io=look.io)


def _moved(before: Io, now: Io, received_base: int) -> bool:
    """Whether the guest did something.

    Frames for everybody fill the receive queue of a dead guest as well; only more than it holds were taken out of it.
    """
    did = (before.disk_requests, before.sent) != (now.disk_requests, now.sent)
    return did or now.received - received_base > RING_FRAMES or now.received < received_base


def _s(ms: int) -> str:
    """Milliseconds for people."""
    seconds = ms / 1000
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
