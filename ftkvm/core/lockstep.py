"""The lockstep interval's colour (FT-10, FT-14; guide, *FT view of a virtual machine*). Pure."""

from enum import StrEnum

GREEN_S = 0.5
"""The guide: "usually less than half a second". Here beyond the interval that was asked for, which is a choice."""
YELLOW_S = 2.0


class Colour(StrEnum):
    """How well the second copy keeps up. The primary waits for it, so yellow and red are what the guest feels."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


def colour(interval_s: float | None, asked_ms: int | None) -> Colour | None:
    """None while nothing is measured.

    :param interval_s: from checkpoint to checkpoint, as measured
    :param asked_ms: what the pair was told to keep; None: not known, and taken for nothing
    """
    if interval_s is None:
        return None
    late_s = interval_s - (asked_ms or 0) / 1000
    return Colour.GREEN if late_s <= GREEN_S else Colour.YELLOW if late_s <= YELLOW_S else Colour.RED
