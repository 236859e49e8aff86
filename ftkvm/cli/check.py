"""``ftkvm check``: what would refuse a VM, a host or the cluster."""

from urllib.parse import quote

import click

from ftkvm.cli.client import AgentClient
from ftkvm.cli.output import Reporter, output_option
from ftkvm.ports import Json

_TIMEOUT_S = 30.0
_EPILOG = "Exit status: 0 compliant (there may be warnings), 1 not compliant; others as everywhere."


@click.group(epilog=_EPILOG)
def check() -> None:
    """Look whether a VM, a host or the cluster is as it must be; nothing is changed."""


@check.command(name="vm", epilog=_EPILOG)
@click.argument("name")
@click.option("--for-ft", is_flag=True, help="Also what fault tolerance asks.")
@output_option
def check_vm(name: str, for_ft: bool, output: str) -> int:
    """Check the VM NAME: what HA and, with --for-ft, fault tolerance ask of it."""
    report = AgentClient().call("GET", f"/v1/check/vm/{quote(name)}?for_ft={for_ft}", timeout_s=_TIMEOUT_S)
    return show(report, Reporter(output))


@check.command(name="host", epilog=_EPILOG)
@click.argument("name")
@output_option
def check_host(name: str, output: str) -> int:
    """Check the host NAME: processor, KVM, versions, networks, datastore."""
    return show(AgentClient().call("GET", f"/v1/check/host/{quote(name)}", timeout_s=_TIMEOUT_S), Reporter(output))


@check.command(name="cluster", epilog=_EPILOG)
@output_option
def check_cluster(output: str) -> int:
    """Check the cluster: its settings, all its hosts, and each of them beside each other one."""
    return show(AgentClient().call("GET", "/v1/check/cluster", timeout_s=_TIMEOUT_S), Reporter(output))


def show(report: Json, reporter: Reporter) -> int:
    """Print a report; returns the exit status."""
    if reporter.json:
        reporter.document(report)
        return 0 if report["compliant"] else 1
    findings = report["findings"]
    word = "compliant" if report["compliant"] else "not compliant"
    click.echo(f"{report['subject']}: {word} ({len(report['checks'])} checks, {len(findings)} findings)")
    if findings:
        rows = [(each["severity"], each["code"], each["text"], each["remedy"]) for each in findings]
        reporter.table(("SEVERITY", "CODE", "FINDING", "REMEDY"), rows, "")
    return 0 if report["compliant"] else 1


def show_prepared(answer: Json, reporter: Reporter) -> int:
    """Print what ``vm prepare`` changed, or would; returns the exit status."""
    report = answer["report"]
    if reporter.json:
        reporter.document(answer)
        return 0 if report["compliant"] else 1
    if answer["changes"]:
        click.echo(answer["difference"])
        click.echo("would change:" if answer["dry_run"] else "changed:")
        for change in answer["changes"]:
            click.echo(f"  {change}")
        for image in answer.get("kept", ()):
            click.echo(f"  the old image stays: {image}")
    else:
        click.echo("nothing that could be mended")
    return show(report, reporter)
