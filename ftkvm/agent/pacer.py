"""Chooses the checkpoint interval of a running pair, once a second, from what the pair shows of itself.

Reads (hold proxy's counters, bytes on QEMU's sockets) and sets; core.checkpoint_interval decides.
"""

import logging
import threading
import time
from typing import TYPE_CHECKING

from ..adapters.qmp import MonitorError
from ..adapters.sockets import sent_bytes
from ..core import checkpoint_interval as pace
from ..core.ft_settings import effective
from ..core.pair import QemuState
from ..engine import primary
from ..hold import status as hold_status
from . import holds

if TYPE_CHECKING:
    from .pair_worker import PairWorker

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Pacer:
    """One thread per pair; idle unless this host is the primary of a pair in lockstep."""

    def __init__(self, worker: "PairWorker") -> None:
        self._worker = worker
        self._stop = threading.Event()
        self._epoch = -1
        self._state: pace.IntervalState | None = None
        self._before: pace.Counters | None = None
        self.log_bandwidth_mbit_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"pacer-{worker.name}", daemon=True)

    @property
    def interval_ms(self) -> int | None:
        """The interval in force, None while nothing is paced."""
        return self._state.interval_ms if self._state else None

    @property
    def why(self) -> str | None:
        """What the interval is governed by (core.checkpoint_interval.Why)."""
        return self._state.why if self._state else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                if self._paced():
                    self._step()
                else:
                    self._forget()
            except (MonitorError, OSError, ValueError) as error:
                log.debug("%s: not paced: %s", self._worker.name, error)
                self._forget()
            except Exception:
                log.exception("%s: pacer", self._worker.name)
                self._forget()

    def _paced(self) -> bool:
        seen = self._worker.observation
        return (
            seen is not None
            and seen.qemu is QemuState.PRIMARY
            and seen.colo_exit_age_ms is None
            and not self._worker.operation_lock.locked()
        )

    def _forget(self) -> None:
        self._state = self._before = self.log_bandwidth_mbit_s = None
        self._epoch = -1

    def _step(self) -> None:
        limits = self._limits()
        now = self._counters()
        epoch = self._worker.spec.epoch if self._worker.spec else 0
        if self._state is None or self._before is None or epoch != self._epoch:
            self._epoch = epoch
            self._state = pace.start(now.now_ms, limits)
            self._set(self._state.interval_ms)
        else:
            seconds = max(0.001, (now.now_ms - self._before.now_ms) / 1000)
            sent = now.transferred_bytes - self._before.transferred_bytes
            self.log_bandwidth_mbit_s = round(max(0, sent) * 8 / 1e6 / seconds, 2)
            sample = pace.sample_between(self._before, now, self._state.interval_ms)
            following = pace.decide(self._state, sample, limits)
            if following.interval_ms != self._state.interval_ms:
                self._set(following.interval_ms)
            self._state = following
        self._before = now

    def _limits(self) -> pace.Limits:
        settings = effective(self._worker.poller.snapshot().ft_settings)
        low = int(settings["ft.checkpoint_min_ms"])
        return pace.Limits(low, max(low, int(settings["ft.checkpoint_max_ms"])))

    def _counters(self) -> pace.Counters:
        status = hold_status.fetch(holds.status_path(self._worker.ctx, self._worker.uuid))
        self._worker.note_silence(status)
        spec, pid = self._worker.spec, self._worker.vm.pid()
        peer = spec.peer.ft_address if spec is not None and spec.peer is not None else ""
        return pace.Counters(
            now_ms=int(time.monotonic() * 1000),
            checkpoints=status.checkpoints,
            pause_total_ms=status.pause_total_ms,
            transferred_bytes=sent_bytes(pid or 0, peer),
            held_frames=status.held_frames,
        )

    def _set(self, interval_ms: int) -> None:
        """A longer one is told before it holds, a shorter one after: the secondary never takes it for too short."""
        figures = self._worker.figures
        figures.interval_ms = max(figures.interval_ms, interval_ms)
        self._worker.poke("interval")
        primary.set_checkpoint_interval(self._worker.vm.monitor(), interval_ms)
        figures.interval_ms = interval_ms
        self._worker.poke("interval")
        log.info("%s: checkpoint interval %d ms (%s)", self._worker.name, interval_ms, self.why or "start")
