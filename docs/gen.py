"""Writes docs/states.md from the tables in ftkvm.core. `python3 docs/gen.py`; `--check` fails if the file is stale."""

import sys
from pathlib import Path

from ftkvm.core.reasons import MEANINGS, NOBODY_GOES_LIVE
from ftkvm.core.states import STATES

TARGET = Path(__file__).with_name("states.md")


def text() -> str:
    """The whole document."""
    states = [f"| {row.shown_as} | {row.meaning} | {row.next} |" for row in STATES]
    reasons = [f"| `{reason}` | {meaning} |" for reason, meaning in MEANINGS.items()]
    return "\n".join(
        [
            "# States and reasons",
            "",
            "Generated from `ftkvm/core/states.py` and `ftkvm/core/reasons.py` by `docs/gen.py`: edit those.",
            "",
            "## What `ftkvm status` shows of a VM",
            "",
            "| shown | means | what happens next |",
            "| --- | --- | --- |",
            *states,
            "",
            "## Reasons",
            "",
            "The words that decisions, winner files, the history and the log carry. After "
            + " and ".join(f"`{reason}`" for reason in sorted(NOBODY_GOES_LIVE))
            + " in a winner file no copy of that epoch may run, whichever host the file names.",
            "",
            "| reason | means |",
            "| --- | --- |",
            *reasons,
            "",
        ]
    )


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == text() else f"{TARGET} is stale: run python3 docs/gen.py")
    TARGET.write_text(text())
