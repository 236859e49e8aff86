"""Simulated time: a queue of events, and nothing that is not decided by the seed."""

import heapq
from collections.abc import Callable
from random import Random

Event = Callable[[], None]


class Clock:
    """Milliseconds since the start. Events of one moment run in the order in which they were scheduled."""

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.rng = Random(seed)
        self._queue: list[tuple[int, int, Event]] = []
        self._count = 0

    def at(self, time_ms: int, event: Event) -> None:
        """Run `event` at `time_ms`, or at once if that is past."""
        self._count += 1
        heapq.heappush(self._queue, (max(time_ms, self.now), self._count, event))

    def after(self, low_ms: int, high_ms: int, event: Event) -> None:
        """Run `event` after a delay drawn from [low_ms, high_ms]."""
        self.at(self.now + self.rng.randint(low_ms, high_ms), event)

    def run_until(self, time_ms: int) -> None:
        """Run all events up to and including `time_ms`."""
        while self._queue and self._queue[0][0] <= time_ms:
            self.now, _, event = heapq.heappop(self._queue)
            event()
        self.now = time_ms
