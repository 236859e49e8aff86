"""``ftkvm host``."""

import contextlib
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.beat_keys import leaving
from ftkvm.cli.cert import change_beat_keys, spread_list
from ftkvm.cli.client import AgentClient
from ftkvm.cli.names import require_name
from ftkvm.cli.output import Reporter, output_option
from ftkvm.cli.ssh import SshAccess, ssh_options
from ftkvm.core.trust import Role
from ftkvm.home import Home
from ftkvm.ports import Json

if TYPE_CHECKING:
    from hostprep.journal import TakenBack
    from hostprep.ssh import Session, Target


@click.group()
def host() -> None:
    """The cluster's hosts."""


@host.command()
@click.argument("name")
@click.option("--address", help="Where SSH reaches the host, if not at its name.")
@click.option(
    "--bridge-nic", default="", help="Make the VMs' bridge of this NIC (name or MAC), if the host has none yet."
)
@click.option("--datastore-nfs", default="", metavar="SERVER:/PATH", help="Mount the datastore from this NFS server.")
@click.option(
    "--nic", "nics", multiple=True, metavar="NETWORK=NIC[+NIC],ADDRESS/LENGTH[,mtu=BYTES][,mode=MODE]",
    help="Set up one of the host's own networks (management, ft, migration); several NICs make a bond.",
)  # fmt: skip
@ssh_options
@click.option("--dry-run", is_flag=True, help="Show each command and each file's difference, and change nothing.")
@output_option
def add(
    name: str, address: str | None, bridge_nic: str, datastore_nfs: str, nics: tuple[str, ...], ssh: SshAccess,
    dry_run: bool, output: str,
) -> None:  # fmt: skip
    """Prepare the Debian 13 host NAME over SSH and take it into the cluster. Run again, it changes nothing."""
    from hostprep.ground import Ground
    from hostprep.nics import Nic
    from hostprep.prepare import prepare  # paramiko takes a while to import, and hosts do not have it

    require_name("NAME", name)
    reporter = Reporter(output)
    with reporter.progress(f"host {name}") as show:
        ground = Ground(bridge_nic, datastore_nfs, tuple(map(Nic.parse, nics)))
        done = prepare(Home(), ssh.target(name, address), show, dry_run=dry_run, ground=ground)
    document = {"host": name, **done.entry.to_json(), "dry_run": dry_run, "steps": done.steps}
    document["warnings"] = [each.to_json() for each in done.warnings]
    if dry_run:
        document["plan"] = [view.to_json() for view in done.views]
        lines = [f"  {line}" for view in done.views for line in view.lines()]
        text = "\n".join(["would:", *lines]) if lines else "nothing would be done"
    else:
        text = f"Host {name} is in the cluster" + ("." if done.steps else "; nothing had to be changed.")
    told = [f"Warning: {each.code}: {each.text}\n  {each.remedy}" for each in done.warnings]
    reporter.result(document, "\n".join([text, *told]))


@host.command(name="list")
@output_option
def list_hosts(output: str) -> None:
    """Show the hosts, their addresses, versions, and what is wrong with them."""
    reporter = Reporter(output)
    client = AgentClient()
    hosts = client.call("GET", "/v1/hosts")["hosts"]
    if reporter.json:
        reporter.document(hosts)
        return
    rows = []
    for entry in hosts:
        state = "silent" if not entry["answers"] else "ok" if not entry["error"] else "trouble"
        if entry.get("maintenance"):
            state = "maintenance" if state == "ok" else f"maintenance, {state}"
        trouble = (entry.get("error") or {}).get("text")
        rows.append((entry["name"], state, entry["management"], entry["ft"], entry["migration"], entry.get("qemu"),
                     entry.get("datastore"), entry.get("vms"), trouble))  # fmt: skip
    columns = ("NAME", "STATE", "MANAGEMENT", "FT", "MIGRATION", "QEMU", "DATASTORE", "VMS", "TROUBLE")
    reporter.table(columns, rows, "The cluster has no hosts yet: ftkvm host add NAME")


@host.group()
def maintenance() -> None:
    """Maintenance mode of a host."""


@maintenance.command()
@click.argument("name")
@output_option
def enter(name: str, output: str) -> None:
    """Move all VMs off the host NAME, live, and give it no new ones."""
    reporter = Reporter(output)
    client = AgentClient()
    done = client.wait(client.call("POST", f"/v1/hosts/{quote(name)}/maintenance", {"on": True}, 30.0), reporter)
    moves = (done.get("result") or {}).get("moves", [])
    notes = [f" VM {move['vm']} ran unprotected for {move['unprotected_s']:.1f} s."
             for move in moves if move["unprotected_s"]]  # fmt: skip
    reporter.result(done, f"Host {name} is in maintenance and runs no VM of the cluster.{''.join(notes)}")


@maintenance.command(name="exit")
@click.argument("name")
@output_option
def exit_maintenance(name: str, output: str) -> None:
    """Bring the host NAME back."""
    answer = AgentClient().call("POST", f"/v1/hosts/{quote(name)}/maintenance", {"on": False}, 30.0)
    Reporter(output).result(answer, f"Host {name} takes VMs again.")


@host.command()
@click.argument("name")
@click.option("--dead", is_flag=True, help="The host does not answer, and you have made sure that it is switched off.")
@click.option("--keep-files", is_flag=True, help="Leave on the host what its preparation changed.")
@click.option("--purge", is_flag=True, help="Also remove the packages that its preparation installed.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--address", help="Where SSH reaches the host, if not at its name.")
@ssh_options
@output_option
def remove(
    name: str, dead: bool, keep_files: bool, purge: bool, dry_run: bool, address: str | None, ssh: SshAccess,
    output: str,
) -> None:  # fmt: skip
    """Take the host NAME out of the cluster, and take back over SSH what its preparation changed. It must run no VMs.

    Of a dead host only the cluster forgets; when it is back: `ftkvm host restore NAME`.
    """
    reporter, client = Reporter(output), AgentClient()
    with contextlib.ExitStack() as stack:
        runner = None
        if not (dead or keep_files) and name in client.cluster.hosts:
            runner = stack.enter_context(_session(ssh.target(name, address)))
        answer = _would_forget(client, name, dead=dead) if dry_run else _forget(client, name, dead=dead)
        back = _take_back(runner, purge=purge, dry_run=dry_run) if runner is not None else None
    answer["taken_back"] = back.to_json() if back is not None else None
    answer["dry_run"] = dry_run
    done = f"Host {name} is out of the cluster, its certificates are revoked."
    would = f"would: take host {name} out of the cluster, revoke its certificates, and change the hosts' beat key"
    said = [] if dry_run else [str(answer["beat_keys"]["text"])]
    lines = [would if dry_run else done, *said, *(back.lines() if back else [])]
    reporter.result(answer, "\n".join(lines))


def _would_forget(client: AgentClient, name: str, *, dead: bool) -> Json:
    """What :func:`_forget` would do."""
    if name not in client.cluster.hosts:
        raise FtkvmError("FTKVM-201", host=name)
    answer = client.call("GET", f"/v1/hosts/{quote(name)}/removal?dead={str(dead).lower()}")
    return {**answer, "revoked": sorted(_serials(client.home, name)), "not_told": []}


def _serials(home: Home, name: str) -> set[str]:
    return {str(row["serial"]) for row in home.issued() if row["name"] == name and row["role"] == Role.HOST}


def _forget(client: AgentClient, name: str, *, dead: bool) -> Json:
    """Out of the cluster, and its certificates are worth nothing."""
    with leaving(client.home, name):
        answer = client.call("POST", f"/v1/hosts/{name}/remove", {"dead": dead})
    known = client.home.drop_host(name).hosts
    serials = _serials(client.home, name)
    missed: list[str] = []
    if serials:
        client.home.revoke(serials)
        missed = spread_list(client, sorted(known))
    return {**answer, "revoked": sorted(serials), "not_told": missed, "beat_keys": _new_beat_keys(client.home)}


def _new_beat_keys(home: Home) -> Json:
    """Have the host that is out know no key that counts; what hinders it now is told, and hinders nothing else."""
    try:
        done = change_beat_keys(home)
    except FtkvmError as error:
        return {
            "finished": False,
            "text": f"The beat key is not changed yet: {error.text}. `ftkvm cert rotate-beats` does it.",
        }
    return {**done.to_json(), "text": done.text()}


@host.command()
@click.argument("name")
@click.option("--purge", is_flag=True, help="Also remove the packages that its preparation installed.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--address", help="Where SSH reaches the host, if not at its name.")
@ssh_options
@output_option
def restore(name: str, purge: bool, dry_run: bool, address: str | None, ssh: SshAccess, output: str) -> None:
    """Make the host NAME, which is out of the cluster, what it was before `ftkvm host add`.

    For a host that was removed while it was dead, or whose preparation was cut off. Done again, it changes nothing.
    """
    from hostprep.prepare import require_out

    reporter = Reporter(output)
    cluster = Home().load()
    if name in cluster.hosts and not dry_run:
        raise FtkvmError("FTKVM-342", host=name)
    with _session(ssh.target(name, address)) as runner:
        if not dry_run:
            require_out(runner, cluster.datastore)
        back = _take_back(runner, purge=purge, dry_run=dry_run)
    text = "\n".join([*(["would:"] if dry_run else []), *back.lines()])
    reporter.result({"host": name, "dry_run": dry_run, **back.to_json()}, text or "Nothing was changed on it.")


def _session(target: "Target") -> "Session":
    from hostprep.ssh import Session

    return Session(target)


def _take_back(runner: "Session", *, purge: bool, dry_run: bool = False) -> "TakenBack":
    from hostprep.journal import take_back

    try:
        return take_back(runner, purge=purge, dry_run=dry_run)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-341", host=runner.host, detail=error.text) from error


@host.command()
@click.argument("name")
@click.argument("parameters", nargs=-1, required=True, metavar="none | agent=fence_NAME KEY=VALUE...")
@output_option
def fence(name: str, parameters: tuple[str, ...], output: str) -> None:
    """Set how the host NAME is switched off when it hangs: a program of Debian's fence-agents and its keys.

    They are kept on the datastore, which all hosts read, passwords included. `none` takes the device away.
    """
    reporter = Reporter(output)
    pairs = {} if parameters == ("none",) else dict(_pair(word) for word in parameters)
    answer = AgentClient().call("POST", f"/v1/hosts/{name}/fence", {"parameters": pairs})
    reporter.result(answer, f"Host {name} is fenced by {answer['agent']}." if pairs else f"Host {name} has no fencing.")


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals or "\n" in word or key == "action":
        raise FtkvmError("FTKVM-605", option=word, detail="KEY=VALUE is needed (and not action=)")
    return key, value
