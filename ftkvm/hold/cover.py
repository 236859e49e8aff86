"""Which held frames a checkpoint covers. Pure: every time is an argument.

A COLO checkpoint on the primary: the vCPUs are stopped, QEMU sends the event STOP, the state goes to the secondary,
the secondary reports that it has *loaded* it, the vCPUs run again, QEMU sends RESUME. So at RESUME the secondary is in
the state the primary had at STOP, and that state includes having sent every frame that was sent before STOP: such a
frame may be seen by the world, whichever copy goes on from here. A frame sent later may not, until the next RESUME.

Three things could make a frame look older than it is, or a RESUME look like a checkpoint when it is none:

1. *Arrival is not sending.* A frame is stamped after it was read, which is after the guest sent it. A frame stamped
   before STOP was sent before STOP. One that was sent before and read after waits one checkpoint more.
2. *Clocks.* QEMU stamps STOP with the wall clock, which can be stepped. Frames are therefore stamped with the monotonic
   clock, and STOP's time is carried over with the *larger* of the two offsets (wall minus monotonic) seen before STOP
   was sent and after it was read: one of them is the one QEMU used, the larger gives the earlier time, and an earlier
   time covers fewer frames. A step costs one checkpoint of waiting. STOP can also not have been later than we read it.
3. *A STOP that is no checkpoint*: an operator's suspend, a disk error. ``query-status`` is sent at each STOP; when it
   tells a run state that no checkpoint has (``paused``, ``io-error`` …), the next RESUME covers nothing. And at
   COLO_EXIT a STOP that was seen is forgotten.

safety: the answer to 3 may come after RESUME and say ``running``; then the pause was as short as a checkpoint's and is
taken for one. A foreign suspend and resume within the time QEMU's main loop needs to answer one command would have to
meet uncompared traffic and a loss of the primary before the next checkpoint. (52 of 52 checkpoints seen said ``colo``.)
"""

from collections import deque
from dataclasses import dataclass

FOREIGN_STOPS = frozenset(
    {"paused", "io-error", "internal-error", "watchdog", "guest-panicked", "shutdown", "debug", "suspended"}
)
"""Run states that ``query-status`` shows after a STOP that is not a checkpoint's."""


@dataclass(slots=True)
class Held:
    """One run of frames that wait; ``frames`` of them in ``data``."""

    at_us: int
    frames: int
    data: bytes


class Cover:
    """The checkpoint rule over the events of one QEMU. All times are microseconds."""

    def __init__(self) -> None:
        self._offsets: tuple[int, int] | None = None
        self._stop_us: int | None = None
        self._stop_wall_us = 0
        self._count_of_stop = 0
        self.checkpoints = 0
        self.last_pause_us = self.pause_total_us = 0
        self.exited = False

    def clocks(self, wall_us: int, mono_us: int) -> None:
        """Note the two clocks, read at the same moment: at each event, and once before the first."""
        offset = wall_us - mono_us
        self._offsets = (offset if self._offsets is None else self._offsets[1], offset)

    def stop(self, stamp_us: int, wall_us: int, mono_us: int) -> int:
        """STOP, stamped by QEMU at ``stamp_us``, was read now. Returns a number for ``foreign``."""
        self.clocks(wall_us, mono_us)
        assert self._offsets is not None
        self._stop_us = min(stamp_us - max(self._offsets), mono_us)
        self._stop_wall_us = stamp_us
        self._count_of_stop += 1
        return self._count_of_stop

    def stopped_us(self, number: int) -> int | None:
        """The time of the STOP of that number; None: it is over, another came since, or it is no checkpoint's."""
        return self._stop_us if number == self._count_of_stop and not self.exited else None

    @property
    def stops(self) -> int:
        """The number of the last STOP."""
        return self._count_of_stop

    def foreign(self, number: int, status: str) -> None:
        """QEMU's run state after the STOP of that number: one that no checkpoint has makes it cover nothing."""
        if number == self._count_of_stop and status in FOREIGN_STOPS:
            self._stop_us = None

    def resume(self, stamp_us: int, wall_us: int, mono_us: int) -> int | None:
        """RESUME was read: frames stamped before the returned monotonic time are covered; None: it covers nothing."""
        self.clocks(wall_us, mono_us)
        covered, self._stop_us = self._stop_us, None
        if self.exited:
            return None
        if covered is not None:
            self.checkpoints += 1
            self.last_pause_us = max(0, stamp_us - self._stop_wall_us)
            self.pause_total_us += self.last_pause_us
        return covered

    def exit(self) -> None:
        """COLO_EXIT: a checkpoint under way is void, and none will follow."""
        self._stop_us = None
        self.exited = True


class HoldQueue:
    """Frames that wait, oldest first, up to ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._queue: deque[Held] = deque()
        self.bytes = 0
        self.frames = 0

    def add(self, at_us: int, frames: int, data: bytes) -> bool:
        """Keep a run of frames; False if there is no room (then none of it is kept)."""
        if self.bytes + len(data) > self._limit_bytes:
            return False
        self._queue.append(Held(at_us, frames, data))
        self.bytes += len(data)
        self.frames += frames
        return True

    def release(self, covered_us: int) -> list[Held]:
        """Take out what was stamped strictly before ``covered_us``."""
        released = []
        while self._queue and self._queue[0].at_us < covered_us:
            held = self._queue.popleft()
            self.bytes -= len(held.data)
            self.frames -= held.frames
            released.append(held)
        return released

    def drop_all(self) -> int:
        """Forget everything; returns how many frames that were."""
        frames = self.frames
        self._queue.clear()
        self.bytes = self.frames = 0
        return frames

    def oldest_age_us(self, now_us: int) -> int:
        return now_us - self._queue[0].at_us if self._queue else 0
