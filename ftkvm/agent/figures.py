"""Figures of a pair, from QEMU's events: checkpoint times, intervals, and the times of a failover."""

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

WINDOW = 100
RECENT = 10
DEFAULT_INTERVAL_MS = 500


@dataclass
class CheckpointFigures:
    """Each checkpoint is a STOP and a RESUME event (docs/system/qemu-colo.rst); the last ``WINDOW`` are kept."""

    last_resume: float = 0.0  # monotonic seconds
    interval_ms: int = 0
    count: int = 0
    pauses_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    periods_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _stop_at: float = 0.0

    def note(self, event: str, timestamp: dict[str, Any]) -> None:
        """Take one event with QEMU's own time stamp."""
        at = float(timestamp.get("seconds", 0)) + float(timestamp.get("microseconds", 0)) / 1e6
        if event == "STOP":
            if self._stop_at:
                self.periods_ms.append((at - self._stop_at) * 1000)
            self._stop_at = at
        elif event == "RESUME":
            # Also one without a STOP: a secondary's first, with which it begins to run. Counted from its preparation
            # instead, a copy that took longer than `checkpoint_timeout_ms` to make would try to win as soon as it ran.
            self.last_resume = time.monotonic()
            if self._stop_at:
                self.pauses_ms.append((at - self._stop_at) * 1000)
                self.count += 1

    def interval_in_force_ms(self, told_ms: int | None) -> int:
        """The interval in force: the primary's own, or what it told; else a guess, the longest seen lately.

        The guess is not below what a pair begins with: checkpoints that somebody asked for come sooner.
        """
        seen = max(list(self.periods_ms)[-RECENT:], default=0.0)
        return self.interval_ms or told_ms or max(DEFAULT_INTERVAL_MS, int(seen))

    def summary(self) -> dict[str, float | int | None]:
        """Medians for ``status``: the pause in ms; of the last few only, the lockstep interval: it tells of now."""
        recent = list(self.periods_ms)[-RECENT:]
        return {
            "checkpoints": self.count,
            "checkpoint_ms": round(median(self.pauses_ms), 1) if self.pauses_ms else None,
            "lockstep_interval_s": round(median(recent) / 1000, 3) if recent else None,
        }


@dataclass
class FailoverFigures:
    """The times of one failover, in ms since its detection; ``detection_ms``: what passed before it, at most."""

    epoch: int
    reason: str
    last_checkpoint: float
    detection_ms: int | None = None
    detail: str | None = None
    detected_at: float = field(default_factory=time.monotonic)
    detected_wall: float = field(default_factory=time.time)
    arbitrated_ms: float | None = None
    live_ms: float | None = None
    side: str | None = None

    def arbitrated(self) -> None:
        if self.arbitrated_ms is None:
            self.arbitrated_ms = self._since()

    def live(self, side: str) -> None:
        if self.live_ms is None:
            self.live_ms = self._since()
            self.side = side

    def _since(self) -> float:
        return round((time.monotonic() - self.detected_at) * 1000, 1)

    @property
    def gap_ms(self) -> float | None:
        """From the last sign of the other copy until this one ran alone: what clients see, beside resending."""
        if self.detection_ms is None or self.live_ms is None:
            return None
        return round(self.detection_ms + self.live_ms, 1)

    def to_json(self, host: str, uuid: str) -> dict[str, Any]:
        return {
            "uuid": uuid,
            "epoch": self.epoch,
            "reason": self.reason,
            "detail": self.detail,
            "host": host,
            "side": self.side,
            "at": self.detected_wall,
            "detection_ms": self.detection_ms,
            "arbitration_ms": self.arbitrated_ms,
            "promote_ms": self.live_ms,
            "gap_ms": self.gap_ms,
            "since_checkpoint_ms": round((self.detected_at - self.last_checkpoint) * 1000, 1)
            if self.last_checkpoint
            else None,
        }


def failover_times(record: dict[str, Any], killed_at: float, ahead_s: float) -> dict[str, Any]:
    """The parts of a failover in ms, on this host's clock. ``record``: the winner's, whose clock is ``ahead_s`` ahead.

    ``measured_gap_ms`` is from the kill to the moment the other copy runs: what a client notices beside its own
    retransmission. All None if the winner wrote no record.
    """
    if not record:
        return {"measured_gap_ms": None, "detection_ms": None, "arbitration_ms": None, "promote_ms": None}
    detection_ms = max(0.0, (float(record["at"]) - ahead_s - killed_at) * 1000)
    live_ms = record.get("promote_ms")
    return {
        "measured_gap_ms": round(detection_ms + float(live_ms), 1) if live_ms is not None else None,
        "detection_ms": round(detection_ms, 1),
        "arbitration_ms": record.get("arbitration_ms"),
        "promote_ms": live_ms,
    }
