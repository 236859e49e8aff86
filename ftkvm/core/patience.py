"""How often a secondary is given up because its guest is mute. Pure."""

from collections.abc import Sequence

PATIENCE_S, PATIENCE_MAX_S = 60.0, 3600.0
FORGOTTEN_S = 6 * 3600.0


def patience_ms(given_up: Sequence[float], now: float) -> int:
    """For how long from now no other secondary is given up for being mute; 0: the next may be at once.

    A mute copy cannot be told with certainty from one that is only far too slow, and the one that replaces it may be no
    better. Each change costs some seconds of protection, so the first is made at once, the second not within a minute,
    each further one not within twice the time before, up to an hour. Six hours without one are a new beginning.

    :param given_up: when each was given up (monotonic seconds, oldest first)
    """
    recent = [at for at in given_up if now - at < FORGOTTEN_S]
    if not recent:
        return 0
    wait_s = min(PATIENCE_MAX_S, PATIENCE_S * 2.0 ** (len(recent) - 1))
    return max(0, round(1000 * (recent[-1] + wait_s - now)))


class Backoff:
    """Waits after failures in a row: 1 s after the first, then twice as long each time, up to a minute."""

    FIRST_S, MAX_S = 1.0, 60.0

    def __init__(self) -> None:
        self._failures = 0
        self._due_at = 0.0

    def failed(self, now: float) -> None:
        """``now``: monotonic seconds."""
        self._due_at = now + min(self.MAX_S, self.FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures += 1

    def due(self, now: float) -> bool:
        return now >= self._due_at
