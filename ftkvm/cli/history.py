"""``ftkvm history``."""

import time
from urllib.parse import quote

import click

from ftkvm.cli.client import AgentClient
from ftkvm.cli.output import Reporter, output_option
from ftkvm.ports import Json

_COLUMNS = ("WHEN", "EPOCH", "REASON", "WENT ON AT", "AS", "NOTICED MS", "DECIDED MS", "LIVE MS", "GAP MS",
            "SINCE CHECKPOINT MS")  # fmt: skip


@click.command()
@click.argument("vm")
@output_option
def history(vm: str, output: str) -> None:
    """Show every failover of VM with its times, oldest first.

    NOTICED is the time from the last sign of the other copy until the trouble was noticed, at most; DECIDED and LIVE
    count from then; GAP is NOTICED and LIVE together. WENT ON AT is the host whose copy won.
    """
    reporter = Reporter(output)
    document = AgentClient().call("GET", f"/v1/vms/{quote(vm)}/ft/history")
    if reporter.json:
        reporter.document(document)
        return
    reporter.table(_COLUMNS, [row(entry) for entry in document["failovers"]], "No failover is recorded.")
    for problem in document["unreadable"]:
        click.echo(f"Not understood: {problem}", err=True)


def row(entry: Json) -> tuple[object, ...]:
    """One failover as the cells of a line."""
    at = entry.get("at")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(at))) if isinstance(at, int | float) else None
    times = ("detection_ms", "arbitration_ms", "promote_ms", "gap_ms", "since_checkpoint_ms")
    keys = ("epoch", "reason", "host", "side", *times)
    return (when, *(entry.get(key) for key in keys))
