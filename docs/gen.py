"""Writes docs/states.md and docs/settings.md from the tables in ftkvm.core. `--check` fails if one is stale."""

import sys
from pathlib import Path

from ftkvm.core import ft_settings
from ftkvm.core.ha.setting import Setting
from ftkvm.core.ha.settings import SETTINGS, VM_SETTINGS
from ftkvm.core.reasons import MEANINGS, NOBODY_GOES_LIVE
from ftkvm.core.states import STATES

DOCS = Path(__file__).parent


def states() -> str:
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


def settings() -> str:
    """The whole document."""
    ft = [f"| `{each.name}` | {each.default} | {_cell(each.allowed)} | {each.applies} | {_cell(each.meaning)} |"
          for each in ft_settings.SETTINGS.values()]  # fmt: skip
    head = ["| setting | default | allowed | applies | meaning |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(
        [
            "# Settings",
            "",
            "Generated from `ftkvm/core/ha/settings.py` and `ftkvm/core/ft_settings.py` by `docs/gen.py`: edit those.",
            "",
            "## Of the cluster",
            "",
            "`ftkvm cluster show`, `ftkvm cluster set KEY=VALUE…`. The guide's names are taken in any case of letters;",
            "`das.failedetectiontime` and `das.failedetectioninterval`, as the guide prints them, too;",
            "`das.isolationaddress` is `das.isolationaddress1`.",
            "",
            *head,
            *(_row(each) for each in SETTINGS.values()),
            "",
            "## Of a VM: HA",
            "",
            "`ftkvm vm show NAME`, `ftkvm vm set NAME KEY=VALUE…`. One that the cluster has too is the cluster's unless",
            "the VM has its own; the defaults below are the cluster's.",
            "",
            *head,
            *(_row(each) for each in VM_SETTINGS.values()),
            "",
            "## Of a VM: FT",
            "",
            *head,
            *ft,
            "",
        ]
    )


def _row(each: Setting) -> str:
    default = f"{each.show(each.default)} {each.unit}".strip() if each.default != "" else "none"
    allowed = f"{each.allowed} {each.unit}".strip()
    return f"| `{each.name}` | {default} | {_cell(allowed)} | {each.applies} | {_cell(each.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for target, text in ((DOCS / "states.md", states()), (DOCS / "settings.md", settings())):
        if "--check" not in sys.argv:
            target.write_text(text)
        elif target.read_text() != text:
            sys.exit(f"{target} is stale: run python3 docs/gen.py")
