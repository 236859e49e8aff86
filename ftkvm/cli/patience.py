"""How long the command line waits for hosts, where those are slow: over a thin line, or emulated (the lab's)."""

import os

from ftkvm.catalogue import FtkvmError

VARIABLE = "FTKVM_PATIENCE"
"""A number in the environment, by which every such time is multiplied; 1 if it is not set."""
_MOST = 1000.0


def stretched(seconds: float) -> float:
    """A time limit of the command line's own, as this environment wants it. What hosts wait for each other is theirs.

    :raises FtkvmError: FTKVM-605, the variable is no number from 1 to 1000
    """
    said = os.environ.get(VARIABLE, "1")
    try:
        factor = float(said)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= _MOST:
        raise FtkvmError("FTKVM-605", option=VARIABLE, detail=f"{said!r} is no number from 1 to {_MOST:g}")
    return seconds * factor
