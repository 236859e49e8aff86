"""Writes docs/states.md, settings.md and messages.md from the tables in ftkvm, and notes new codes in docs/codes.txt.

`--check` fails if one is stale. A code's meaning, once noted, is never overwritten here: tests/unit/test_catalogue.py
fails if the catalogue says something else.
"""

import sys
from pathlib import Path

from ftkvm.catalogue import CATALOGUE
from ftkvm.core import ft_settings
from ftkvm.core.ha.setting import Setting
from ftkvm.core.ha.settings import SETTINGS, VM_SETTINGS
from ftkvm.core.reasons import MEANINGS, NOBODY_GOES_LIVE
from ftkvm.core.states import STATES
from ftkvm.guide import A1, P34, ROWS, T31, rows_of

DOCS = Path(__file__).parent
CODES = DOCS / "codes.txt"


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


def messages() -> str:
    """The whole document."""
    titles = {
        A1: "Table A-1: error messages of FT",
        T31: "Table 3-1: what FT does not go with",
        P34: "Page 34: looked at before FT is turned on",
    }
    lines = [
        "# Messages",
        "",
        "Generated from `ftkvm/catalogue.py` and `ftkvm/guide.py` by `docs/gen.py`: edit those.",
        "`ftkvm explain CODE` shows one. First the guide's tables (vSphere 4.0 U1), each row with our code, how it is",
        "provoked and the test that does it; then every message.",
    ]
    for table, title in titles.items():
        lines += ["", f"## {title}", "", "| row | the guide | our code | provoked by | test |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for row in (each for each in ROWS if each.table == table):
            if row.cannot:
                lines.append(f"| {row.number} | {_cell(row.says)} | none | cannot happen: {_cell(row.cannot)} | - |")
                continue
            codes = " ".join(f"[{code[6:]}](#{code.lower()})" for code in row.codes)
            tests = " ".join(f"`{test}`" for test in row.tests)
            lines.append(f"| {row.number} | {_cell(row.says)} | {codes} | {_cell(row.provoked)} | {tests} |")
    lines += ["", "## Every message", "", "Words in braces are filled in. Exit statuses: README."]
    for code in sorted(CATALOGUE):
        entry = CATALOGUE[code]
        lines += ["", f"### {code}", "", _plain(entry.text), "", f"- Cause: {_plain(entry.cause)}"]
        lines += [f"- Remedy: {_plain(entry.remedy)}", f"- Exit status: {entry.exit_status}"]
        rows = ", ".join(f"{row.table} row {row.number}" for row in rows_of(code))
        lines += [f"- Guide: {rows}"] if rows else []
    return "\n".join([*lines, ""])


def codes() -> str:
    """Code and meaning of every message ever: what is noted stays, new codes are added."""
    noted = dict(line.split("\t", 1) for line in CODES.read_text().splitlines()) if CODES.exists() else {}
    for code, entry in CATALOGUE.items():
        noted.setdefault(code, " ".join(entry.text.split()))
    return "".join(f"{code}\t{meaning}\n" for code, meaning in sorted(noted.items()))


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<").replace("_", "\\_") if "`" not in text else " ".join(text.split())


def _row(each: Setting) -> str:
    default = f"{each.show(each.default)} {each.unit}".strip() if each.default != "" else "none"
    allowed = f"{each.allowed} {each.unit}".strip()
    return f"| `{each.name}` | {default} | {_cell(allowed)} | {each.applies} | {_cell(each.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    made = {"states.md": states(), "settings.md": settings(), "messages.md": messages(), "codes.txt": codes()}
    for name, text in made.items():
        target = DOCS / name
        if "--check" not in sys.argv:
            target.write_text(text)
        elif target.read_text() != text:
            sys.exit(f"{target} is stale: run python3 docs/gen.py")
