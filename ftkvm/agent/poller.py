"""What the datastore says of one VM, read by a thread of its own so that a hung datastore stops nobody else."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..catalogue import FtkvmError
from ..core.pair import Winner, WinnerState, WinnerUnknown
from .context import AgentContext
from .records import OperationDoc, PairDoc, PairStore

log = logging.getLogger(__name__)

PERIOD_S = 1.0


@dataclass(frozen=True)
class Records:
    """One reading. ``known`` is False until the datastore has answered once since the agent's start."""

    pair: PairDoc | None = None
    winner: WinnerState = WinnerUnknown()  # noqa: RUF009 - frozen, no state
    operation: OperationDoc | None = None
    ft_enabled: bool = False
    known: bool = False
    last_failover: dict[str, Any] | None = None
    ft_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def operation_running(self) -> str | None:
        return self.operation.kind if self.operation else None


class RecordPoller:
    """Reads every second and when asked; keeps the last reading while the datastore is silent."""

    def __init__(self, store: PairStore, ctx: AgentContext, on_change: Callable[[], None]) -> None:
        self._store = store
        self._ctx = ctx
        self._on_change = on_change
        self._records = Records()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._done = threading.Condition()
        self._reads = 0
        self._thread = threading.Thread(target=self._run, name=f"records-{store.uuid[:8]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def snapshot(self) -> Records:
        """The last reading; never blocks."""
        return self._records

    def wake(self) -> None:
        """Read soon; never waits."""
        self._wake.set()

    def refresh(self, timeout_s: float = 2.0) -> bool:
        """Read now and wait for it; False when the datastore did not answer in time."""
        with self._done:
            wanted = self._reads + 2  # one that began before this call may have missed what the caller just wrote
            self._wake.set()
            return self._done.wait_for(lambda: self._reads >= wanted or self._wake_again(), timeout_s)

    def _wake_again(self) -> bool:
        self._wake.set()
        return False

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except FtkvmError as error:
                log.warning("records of %s: %s", self._store.uuid, error)
            except Exception:
                log.exception("records of %s", self._store.uuid)
            with self._done:
                self._reads += 1
                self._done.notify_all()
            self._wake.wait(PERIOD_S)
            self._wake.clear()

    def _read(self) -> None:
        before = self._records
        pair = self._store.latest()
        winner: WinnerState = WinnerUnknown()
        if pair is not None:
            same = before.pair is not None and before.pair.epoch == pair.epoch
            decided = same and isinstance(before.winner, Winner)  # a winner file never changes
            winner = before.winner if decided else self._store.winner(pair.epoch)
        ft = (self._store.vm() or {}).get("ft", {})
        records = Records(
            pair,
            winner,
            self._store.operation(),
            bool(ft.get("enabled")),
            True,
            self._store.last_failover(),
            dict(ft.get("settings", {})),
        )
        self._records = records
        if records != before:
            self._on_change()
