"""``ftkvm history``."""

import time
from urllib.parse import quote

import click

from ftkvm.cli.client import AgentClient
from ftkvm.cli.output import Reporter, output_option
from ftkvm.ports import Json

_COLUMNS = ("WHEN", "EPOCH", "REASON", "WENT ON AT", "AS", "DECIDED MS", "LIVE MS", "SINCE CHECKPOINT MS")


@click.command()
@click.argument("vm")
@output_option
def history(vm: str, output: str) -> None:
    """Show every failover of VM with its times, oldest first.

    Times count from the moment the trouble was noticed; WENT ON AT is the host whose copy won.
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
    keys = ("epoch", "reason", "host", "side", "arbitration_ms", "promote_ms", "since_checkpoint_ms")
    return (when, *(entry.get(key) for key in keys))
