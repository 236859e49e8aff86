"""``ftkvm vm``."""

from urllib.parse import quote

import click

from ftkvm.cli.client import AgentClient
from ftkvm.cli.output import Reporter, output_option


@click.group()
def vm() -> None:
    """The cluster's VMs."""


@vm.command()
@click.argument("domain")
@click.option("--host", required=True, help="Host whose libvirt has the domain.")
@output_option
def register(domain: str, host: str, output: str) -> None:
    """Take the libvirt domain DOMAIN (name or UUID) over into the cluster; a running one goes on undisturbed.

    Its definition moves to the datastore, so that a host that comes back can never start an old copy.
    """
    reporter = Reporter(output)
    answer = AgentClient().call("POST", "/v1/vms/register", {"domain": domain, "host": host}, 40.0)
    reporter.result(answer, f"VM {answer['name']} ({answer['uuid']}) is registered.")


@vm.command(name="list")
@output_option
def list_vms(output: str) -> None:
    """Show the VMs and where they run."""
    reporter = Reporter(output)
    vms = AgentClient().call("GET", "/v1/vms")["vms"]
    if reporter.json:
        reporter.document(vms)
        return
    rows = [
        (entry["name"], entry["state"], entry["host"], "on" if entry["ft"] else "off", entry["uuid"]) for entry in vms
    ]
    reporter.table(
        ("NAME", "STATE", "HOST", "FT", "UUID"), rows, "No VM is registered: ftkvm vm register DOMAIN --host H"
    )


@vm.command()
@click.argument("name")
@click.option("--host", help="Host to start on; otherwise the one with the fewest VMs.")
@output_option
def start(name: str, host: str | None, output: str) -> None:
    """Start the VM NAME."""
    reporter = Reporter(output)
    client = AgentClient()
    operation = client.call("POST", f"/v1/vms/{quote(name)}/start", {"host": host}, 30.0)
    done = client.wait(operation, reporter)
    reporter.result(done, f"VM {done['vm']} runs on {done['host']}.")


@vm.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Switch it off at once.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds for the guest to shut down.")
@output_option
def stop(name: str, force: bool, timeout_s: float, output: str) -> None:
    """Shut the VM NAME down; switch it off when that takes too long."""
    reporter = Reporter(output)
    client = AgentClient()
    body = {"force": force, "timeout_s": timeout_s}
    done = client.wait(client.call("POST", f"/v1/vms/{quote(name)}/stop", body, 30.0), reporter)
    reporter.result(done, f"VM {done['vm']} is off.")
