"""How soon a new secondary is made after the ones before were given up. Pure."""

from collections.abc import Sequence

PATIENCE_S, PATIENCE_MAX_S = 30.0, 600.0
FORGOTTEN_S = 3600.0


def patience_s(divergences: Sequence[float], now: float) -> float:
    """How long to wait with a new copy after the last ones were given up because their guests were mute.

    The first is replaced at once. Copies that fail one after the other cost the clients more than they protect: 30 s
    after the second, doubled each time up to ten minutes. An hour without is a new beginning.

    :param divergences: when each was given up (monotonic seconds, oldest first)
    """
    recent = [at for at in divergences if now - at < FORGOTTEN_S]
    if len(recent) < 2:
        return 0.0
    wait_s = min(PATIENCE_MAX_S, PATIENCE_S * 2.0 ** (len(recent) - 2))
    return max(0.0, recent[-1] + wait_s - now)
