"""When this process did not run: frozen, starved, or its host was. What it did not see then is nobody's silence."""

import threading
import time
from collections.abc import Callable

_TICK_S = 0.5
STALL_MS = 3000


class Stalls:
    """Notes the end of each time that :meth:`tick` was not called for ``STALL_MS``; a thread of its own calls it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._ticked_ms = now_ms()
        self._ended_ms: int | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="stalls", daemon=True).start()

    def tick(self) -> None:
        """Look at the clock."""
        before, self._ticked_ms = self._ticked_ms, self._now_ms()
        if self._ticked_ms - before > STALL_MS:
            self._ended_ms = self._ticked_ms

    def since(self, moment_ms: int) -> bool:
        """Whether this process stood still at any time since ``moment_ms``; still standing until just now counts."""
        self.tick()
        return self._ended_ms is not None and self._ended_ms > moment_ms

    def _run(self) -> None:
        while True:
            self.tick()
            time.sleep(_TICK_S)
