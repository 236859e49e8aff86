"""``ftkvm vm``."""

from urllib.parse import quote

import click

from ftkvm.cli.check import show_prepared
from ftkvm.cli.client import AgentClient
from ftkvm.cli.names import words_of
from ftkvm.cli.output import Reporter, output_option
from ftkvm.ports import Json


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
    print_vms(AgentClient().call("GET", "/v1/vms")["vms"], Reporter(output))


def print_vms(vms: list[Json], reporter: Reporter) -> None:
    """The VMs as a table; below it, as errors, what is wrong with their guests."""
    if reporter.json:
        reporter.document(vms)
        return
    rows = [
        (entry["name"], entry["state"], entry["host"], _ft(entry),
         (entry.get("monitoring") or {}).get("state", "-"), entry["uuid"])
        for entry in vms
    ]  # fmt: skip
    heads = ("NAME", "STATE", "HOST", "FT", "MONITORING", "UUID")
    reporter.table(heads, rows, "No VM is registered: ftkvm vm register DOMAIN --host H")
    for entry in vms:
        error = (entry.get("monitoring") or {}).get("error")
        if error and error["code"] != "FTKVM-144":  # a guest without an agent is nothing unusual
            click.echo(f"{error['text']}\n  Cause: {error['cause']}\n  Remedy: {error['remedy']}", err=True)


def _ft(entry: Json) -> str:
    return "on" if entry["ft"] else "disabled" if entry["ft_disabled"] else "off"


@vm.command(name="set")
@click.argument("name")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@output_option
def set_settings(name: str, changes: tuple[str, ...], output: str) -> None:
    """Change FT (ft.*) and HA (ha.*) settings of the VM NAME, all or none; KEY= takes one back to its default."""
    body: Json = dict(words_of(changes))
    _show_settings(AgentClient().call("POST", f"/v1/vms/{quote(name)}/settings", body), Reporter(output))


@vm.command()
@click.argument("name")
@output_option
def show(name: str, output: str) -> None:
    """Show the FT and HA settings of the VM NAME, with their defaults and ranges."""
    _show_settings(AgentClient().call("GET", f"/v1/vms/{quote(name)}/settings"), Reporter(output))


def _show_settings(answer: Json, reporter: Reporter) -> None:
    if reporter.json:
        reporter.document(answer)
        return
    rows = [(each["name"], str(each["value"]), str(each["default"]), each["unit"], each["allowed"], each["applies"],
             each["meaning"]) for each in answer["settings"]]  # fmt: skip
    reporter.table(("SETTING", "VALUE", "DEFAULT", "UNIT", "ALLOWED", "APPLIES", "MEANING"), rows, "none")


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


@vm.command(epilog="Exit status: 0 prepared or nothing to do, 1 findings are left that nobody can mend mechanically.")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--discard", is_flag=True, help="Delete the old images of disks that were converted.")
@click.option("--host", help="Host that has the images, if they are not on the datastore.")
@output_option
def prepare(name: str, dry_run: bool, discard: bool, host: str | None, output: str) -> int:
    """Mend the VM NAME, which is off, so that fault tolerance takes it.

    Disks of another format than qcow2 and raw, or not on the datastore, are converted into new qcow2 images there; the
    old images stay. Other disks are not touched.
    """
    reporter, client = Reporter(output), AgentClient()
    body = {"dry_run": dry_run, "discard": discard, "host": host}
    answer = client.call("POST", f"/v1/vms/{quote(name)}/prepare", body, 30.0)
    if answer.get("operation"):
        answer = client.wait(answer["operation"], reporter)["result"]
    return show_prepared(answer, reporter)


@vm.command()
@click.argument("name")
@click.option("--to", "to", metavar="HOST", help="Host to move to; otherwise the one with the most free memory.")
@click.option("--secondary", is_flag=True, help="Move the second copy of a VM with FT on.")
@output_option
def migrate(name: str, to: str | None, secondary: bool, output: str) -> None:
    """Move the running VM NAME to another host, live: its connections stay.

    With FT on, the secondary is made anew on the host, and the VM fails over to it; --secondary leaves it at that.
    """
    reporter = Reporter(output)
    client = AgentClient()
    path = "ft/move-secondary" if secondary else "migrate"
    done = client.wait(client.call("POST", f"/v1/vms/{quote(name)}/{path}", {"to": to}, 30.0), reporter)
    unprotected_s = (done.get("result") or {}).get("unprotected_s")
    note = f" It ran unprotected for {unprotected_s} s." if unprotected_s else ""
    reporter.result(done, f"VM {done['vm']}: {done['text']}.{note}")


@vm.command()
@click.argument("name")
@click.option("--host", required=True, help="Host whose libvirt gets the definition back.")
@output_option
def unregister(name: str, host: str, output: str) -> None:
    """Take the VM NAME, which is off, out of the cluster; its disks are not touched."""
    reporter = Reporter(output)
    answer = AgentClient().call("POST", f"/v1/vms/{quote(name)}/unregister", {"host": host}, 40.0)
    reporter.result(answer, f"VM {answer['name']} is defined in {host}'s libvirt, and no longer in the cluster.")


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
