"""How long to wait between two checkpoints of a pair. Pure: observations in, the next interval out.

What pulls at it:

- A checkpoint stops the guest (``pause_ms``: a fixed part of some 10 ms and the pages dirtied since the last one) and
  fills the FT network (``dirty_bytes``). Longer intervals cost less: pages written twice are sent once.
- Frames that COLO does not compare (ARP, IPv6, VLAN) wait for the checkpoint that covers them, on average half an
  interval; and a compare miss (the two copies sent different packets) waits for a checkpoint that has everything since
  the last one to carry. Shorter intervals answer sooner.

So the guest's standing still is given a *share* of its time: a small one while nobody waits for checkpoints, a larger
one while somebody does. The interval is the shortest that keeps to the share and to the network's limit. If the guest
dirties memory so fast that no interval keeps to them, the longest is right: there the most is written twice.

Why the defaults: below 100 ms the fixed part alone takes a tenth of the guest's time; above 1000 ms nothing is saved
(the fixed part is at 1 %), while a first ARP answer takes a second and the disk buffers of the secondary grow.

Against swinging: observations are smoothed, what somebody waited for is remembered for some seconds, small changes are
not made, and after a change there is time to see its effect. Shortening is quick, lengthening is by half at most.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

DEFAULT_MIN_MS, DEFAULT_MAX_MS = 100, 1000
FLOOR_MS = 20
"""No setting may go below: the checkpoints would follow each other without a pause."""
START_MS = 500
QUIET_SHARE = 0.02
"""Of the guest's time, for pauses, while nobody waits: 12 ms pauses (the median seen) make 600 ms."""
WAITING_SHARE = 0.10
"""While somebody waits: 12 ms pauses make 120 ms."""
REMEMBER_MS = 5000
"""So long after the last waiting frame or miss the larger share stays: a slow ping must not swing the interval."""
SETTLE_MS = 2000
"""Between two changes: at least two checkpoints of the longest interval are seen in it."""
SMOOTHING = 0.3
"""Weight of a new observation."""
WORTH_IT = 0.25
"""A change smaller than this part of the present interval is not made."""
LENGTHEN_AT_MOST = 1.5

Why = Literal["start", "pause", "network", "waiting", "limit"]


@dataclass(frozen=True)
class Limits:
    """Settings of one VM: ``ft.checkpoint_min_ms``, ``ft.checkpoint_max_ms``, and the FT network's share for it.

    :raises ValueError: the limits contradict each other
    """

    min_ms: int = DEFAULT_MIN_MS
    max_ms: int = DEFAULT_MAX_MS
    log_bytes_per_s: int | None = None

    def __post_init__(self) -> None:
        if not FLOOR_MS <= self.min_ms <= self.max_ms:
            raise ValueError(f"checkpoint limits: {FLOOR_MS} <= {self.min_ms} <= {self.max_ms} does not hold")
        if self.log_bytes_per_s is not None and self.log_bytes_per_s <= 0:
            raise ValueError(f"log bandwidth: {self.log_bytes_per_s} bytes per second is not possible")


@dataclass(frozen=True)
class Sample:
    """What was seen since the sample before. ``pause_ms`` and ``dirty_bytes`` are means per checkpoint."""

    now_ms: int
    checkpoints: int
    pause_ms: float
    dirty_bytes: float
    held_frames: int
    misses: int


@dataclass(frozen=True)
class Counters:
    """Running totals since the pair was formed, from the hold proxy's status.

    ``transferred_bytes``: of the checkpoint channel, from its socket's TCP_INFO (``tcpi_bytes_acked``). QEMU's own
    ``query-migrate`` does not help: its ``ram.transferred`` stands still once COLO runs (11.1.3).
    """

    now_ms: int
    checkpoints: int
    pause_total_ms: float
    transferred_bytes: int
    held_frames: int


def sample_between(before: Counters, after: Counters, interval_ms: int) -> Sample:
    """What happened between two readings, at ``interval_ms``.

    QEMU does not count compare misses where anybody could read it; each makes a checkpoint of its own, so those beyond
    what the interval alone makes are misses. One is taken for the sample's edges (seen: one in three samples).
    """
    checkpoints = after.checkpoints - before.checkpoints
    held = after.held_frames - before.held_frames
    if checkpoints <= 0 or held < 0 or after.transferred_bytes < before.transferred_bytes:
        return Sample(after.now_ms, 0, 0.0, 0.0, max(0, held) if checkpoints == 0 else 0, 0)
    pause_ms = max(0.0, after.pause_total_ms - before.pause_total_ms)
    by_clock = math.ceil((after.now_ms - before.now_ms - pause_ms) / interval_ms)
    return Sample(
        now_ms=after.now_ms,
        checkpoints=checkpoints,
        pause_ms=pause_ms / checkpoints,
        dirty_bytes=(after.transferred_bytes - before.transferred_bytes) / checkpoints,
        held_frames=held,
        misses=max(0, checkpoints - by_clock - 1),
    )


@dataclass(frozen=True)
class IntervalState:
    """The interval in force, why it is that, and what the next decision remembers."""

    interval_ms: int
    why: Why
    changed_ms: int
    pause_ms: float | None = None
    dirty_bytes: float | None = None
    waited_ms: int | None = None
    """When a frame was held or a miss seen last."""


def start(now_ms: int, limits: Limits) -> IntervalState:
    """The interval a pair begins with."""
    return IntervalState(_clamp(START_MS, limits), "start", now_ms)


def decide(state: IntervalState, sample: Sample, limits: Limits) -> IntervalState:
    """The state after one sample (about one a second); ``interval_ms`` is to be set if it differs."""
    state = _observe(state, sample)
    if state.pause_ms is None:
        return state
    wanted, why = _wanted(state, sample.now_ms, limits)
    present = _clamp(state.interval_ms, limits)
    if present != state.interval_ms:  # the operator narrowed the limits: those hold at once
        return replace(state, interval_ms=present, why="limit", changed_ms=sample.now_ms)
    if sample.now_ms - state.changed_ms < SETTLE_MS or abs(wanted - present) < WORTH_IT * present:
        return replace(state, why=why)
    following = min(wanted, round(present * LENGTHEN_AT_MOST))
    return replace(state, interval_ms=following, why=why, changed_ms=sample.now_ms)


def _observe(state: IntervalState, sample: Sample) -> IntervalState:
    if sample.held_frames or sample.misses:
        state = replace(state, waited_ms=sample.now_ms)
    if not sample.checkpoints:
        return state
    return replace(
        state,
        pause_ms=_smooth(state.pause_ms, sample.pause_ms),
        dirty_bytes=_smooth(state.dirty_bytes, sample.dirty_bytes),
    )


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTHING * (now - before)


def _wanted(state: IntervalState, now_ms: int, limits: Limits) -> tuple[int, Why]:
    """The shortest interval that keeps to the share and to the network's limit, and what decided it."""
    waiting = state.waited_ms is not None and now_ms - state.waited_ms < REMEMBER_MS
    by_pause = (state.pause_ms or 0.0) / (WAITING_SHARE if waiting else QUIET_SHARE)
    by_network = 0.0
    if limits.log_bytes_per_s is not None:
        by_network = 1000 * (state.dirty_bytes or 0.0) / limits.log_bytes_per_s
    wanted = round(max(by_pause, by_network))
    clamped = _clamp(wanted, limits)
    if clamped != wanted:
        return clamped, "limit"
    if by_network > by_pause:
        return clamped, "network"
    return clamped, "waiting" if waiting else "pause"


def _clamp(interval_ms: int, limits: Limits) -> int:
    return min(max(interval_ms, limits.min_ms), limits.max_ms)
