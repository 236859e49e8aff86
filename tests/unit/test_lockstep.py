"""The colours of the lockstep interval, at their edges."""

import pytest

from ftkvm.core.lockstep import Colour, colour


@pytest.mark.parametrize(
    ("interval_s", "asked_ms", "shown"),
    [
        (None, 500, None),
        (0.5, None, Colour.GREEN),
        (1.0, 500, Colour.GREEN),
        (1.001, 500, Colour.YELLOW),
        (2.5, 500, Colour.YELLOW),
        (2.501, 500, Colour.RED),
        (1.4, 1000, Colour.GREEN),  # a quiet guest's pair was asked to keep a second
    ],
)
def test_colours(interval_s: float | None, asked_ms: int | None, shown: Colour | None) -> None:
    assert colour(interval_s, asked_ms) is shown
