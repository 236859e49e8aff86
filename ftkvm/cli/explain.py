"""``ftkvm explain``: what a code means."""

import click

from ftkvm.catalogue import CATALOGUE, FtkvmError
from ftkvm.cli.output import Reporter, output_option
from ftkvm.guide import rows_of


@click.command()
@click.argument("code", required=False)
@output_option
def explain(code: str | None, output: str) -> None:
    """Explain the message CODE (FTKVM-102, or 102); without it, list all."""
    reporter = Reporter(output)
    if code is None:
        entries = [CATALOGUE[key] for key in sorted(CATALOGUE)]
        if reporter.json:
            reporter.document([vars(entry) for entry in entries])
            return
        reporter.table(("CODE", "MESSAGE"), [(entry.code, entry.text) for entry in entries], "")
        return
    known = code.upper() if code.upper().startswith("FTKVM-") else f"FTKVM-{code}"
    if known not in CATALOGUE:
        raise FtkvmError("FTKVM-903", wanted=code)
    entry = CATALOGUE[known]
    lines = [f"{entry.code} {entry.text}", f"  Cause: {entry.cause}", f"  Remedy: {entry.remedy}",
             f"  Exit status: {entry.exit_status}"]  # fmt: skip
    guide = [f"table {row.table} row {row.number}: {row.says}" for row in rows_of(known)]
    lines += [f"  Guide: {each}" for each in guide]
    reporter.result({**vars(entry), "guide": guide}, "\n".join(lines))
