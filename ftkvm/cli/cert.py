"""``ftkvm cert``: who has certificates of this cluster, until when; new ones, renewed ones, revoked ones."""

import time
from pathlib import Path
from typing import Any

import click

from ftkvm.adapters.local_file import make_directory
from ftkvm.adapters.pki import write_private
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.beat_keys import Changed, change, members
from ftkvm.cli.client import AgentClient
from ftkvm.cli.names import require_name
from ftkvm.cli.output import Reporter, output_option
from ftkvm.core.trust import ALARM_DAYS, DAY_S, Role
from ftkvm.home import Home
from ftkvm.ports import Json

_OPERATOR_ROLES = [str(role) for role in Role if role is not Role.HOST]


@click.group()
def cert() -> None:
    """Certificates of hosts and operators."""


@cert.command(name="list")
@output_option
def list_certificates(output: str) -> None:
    """Show all certificates that were issued from here, and what each host uses now."""
    home = Home()
    cluster, revoked, now = home.load(), home.revoked(), time.time()
    used = _in_use(AgentClient(home), sorted(cluster.hosts)) if cluster.hosts else {}
    rows = []
    for row in home.issued():
        serial = str(row["serial"])
        days = int((float(row["not_after"]) - now) // DAY_S)
        state = (
            "revoked" if serial in revoked else "expired" if days < 0 else "ends soon" if days < ALARM_DAYS else "ok"
        )
        at = [host for host, said in used.items() if said.get("serial") == serial]
        rows.append(
            {**row, "days_left": days, "state": state, "in_use": bool(at) if row["role"] == Role.HOST else None}
        )
    reporter = Reporter(output)
    if reporter.json:
        reporter.document({"certificates": rows, "hosts": used})
        return
    table = [(row["name"], row["role"], row["state"], row["days_left"], "yes" if row["in_use"] else "",
              row["serial"], row["fingerprint"][:23]) for row in rows]  # fmt: skip
    reporter.table(("NAME", "ROLE", "STATE", "DAYS", "IN USE", "SERIAL", "SHA-256"), table, "No certificates.")
    for host, said in used.items():
        if said.get("error"):
            click.echo(f"{host}: {said['error']}")
    if home.beats_due().due or not home.beat_keys().settled:
        click.echo("The beat key is not changed yet although a host has left: `ftkvm cert rotate-beats`.")


def _in_use(client: AgentClient, hosts: list[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for host in hosts:
        try:
            found[host] = client.ask(host, "GET", "/v1/security", None, 3.0)
        except FtkvmError as error:
            found[host] = {"error": error.text}
    return found


@cert.command()
@click.argument("name")
@click.option("--role", type=click.Choice(_OPERATOR_ROLES), required=True)
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="The new operator's $FTKVM_HOME.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
@output_option
def issue(name: str, role: str, directory: Path, days: int, output: str) -> None:
    """Make a certificate for the operator NAME, in a directory that is their $FTKVM_HOME.

    The cluster's authority stays here: they can use the cluster as far as their role goes, and add no hosts.
    """
    require_name("NAME", name)
    home = Home()
    cluster = home.load()
    if (directory / "client.key").exists():
        raise FtkvmError("FTKVM-603", home=directory)
    pair = home.authority().issue(name, role=Role(role), days=days)
    row = home.note(pair.certificate)
    make_directory(directory)
    for file, content in (("ca.crt", home.authority().certificate), ("client.crt", pair.certificate),
                          ("client.key", pair.key)):  # fmt: skip
        write_private(directory / file, content)
    Home(directory).save(cluster)
    Reporter(output).result({**row, "directory": str(directory)}, f"{name} is {role} with FTKVM_HOME={directory}.")


@cert.command()
@click.argument("host", required=False)
@click.option("--all", "every", is_flag=True, help="All hosts of the cluster.")
@click.option("--days", type=click.IntRange(1, 3650), default=1825, show_default=True)
@output_option
def renew(host: str | None, every: bool, days: int, output: str) -> None:
    """Give HOST a new key and certificate. Nothing is restarted, and no connection is cut.

    The key is made on the host and stays there. The certificate before counts until its end, unless it is revoked.
    """
    home = Home()
    cluster = home.load()
    if (host is None) == (not every):
        raise FtkvmError("FTKVM-605", option="HOST", detail="name one host, or --all")
    hosts = sorted(cluster.hosts) if host is None else [host]
    client, authority, rows = AgentClient(home), home.authority(), []
    for name in hosts:
        entry = cluster.entry(name)
        request = str(client.ask(name, "POST", "/v1/security/request", {})["request"])
        try:
            certificate = authority.sign(request.encode(), name, (entry.management, entry.ft), days)
        except ValueError as error:
            raise FtkvmError("FTKVM-330", detail=str(error)) from error
        row = home.note(certificate)
        client.ask(name, "POST", "/v1/security/certificate", {"certificate": certificate.decode()})
        rows.append(row)
    Reporter(output).result({"renewed": rows}, f"Renewed for {days} days: {', '.join(hosts)}.")


@cert.command(name="rotate-beats")
@output_option
def rotate_beats(output: str) -> None:
    """Change the key that the hosts sign their beats with. Nothing is restarted, and no pair is lost.

    `ftkvm host remove` does it by itself; it waits until every host has taken each step, and goes on here.
    """
    home = Home()
    pending = not home.beat_keys().settled or bool(home.beats_due().due)
    done = change_beat_keys(home, anew=not pending)
    if not done.finished:
        raise FtkvmError("FTKVM-339", hosts=done.silent())
    Reporter(output).result(done.to_json(), done.text())


def change_beat_keys(home: Home, *, anew: bool = False) -> Changed:
    """Change them on all members; see :func:`ftkvm.cli.beat_keys.change`.

    :raises FtkvmError: FTKVM-607 no agent says who the members are
    """
    with home.held(alone=True):
        if not home.load().hosts:
            return change(home, _Nobody(), [], anew=anew)
        client = AgentClient(home)
        told = [str(row["name"]) for row in client.call("GET", "/v1/hosts")["hosts"]]
        return change(home, client, members(home, told), anew=anew)


class _Nobody:
    def ask(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 10.0) -> Json:
        raise FtkvmError("FTKVM-201", host=host)


@cert.command()
@click.argument("name")
@output_option
def revoke(name: str, output: str) -> None:
    """Have no host accept the certificates of NAME any more (a host, an operator, or one serial number).

    All other hosts that answer are told at once; the rest find the list on the datastore, within 30 s.
    A host's VMs, pairs and beats go on; to have them elsewhere, use `host maintenance enter` or `host remove` first.
    Its beats are refused from when it is removed: then the key they are signed with is changed.
    """
    home = Home()
    cluster, before = home.load(), home.revoked()
    serials = {str(row["serial"]) for row in home.issued() if name in (row["name"], row["serial"])}
    if not serials:
        raise FtkvmError("FTKVM-332", name=name)
    home.revoke(serials)
    missed = spread_list(AgentClient(home), sorted(cluster.hosts)) if cluster.hosts else []
    answer: dict[str, Any] = {"name": name, "revoked": sorted(serials - before), "not_told": missed}
    text = f"Revoked: {len(serials - before)} of {name}."
    Reporter(output).result(answer, text + (f" Not told yet: {', '.join(missed)}." if missed else ""))


def spread_list(client: AgentClient, hosts: list[str]) -> list[str]:
    """Give all hosts the revocation list; returns those that could not be told."""
    missed, body = [], {"list": client.home.revocation_list().decode()}
    for host in hosts:
        try:
            client.ask(host, "POST", "/v1/security/revoked", body)
        except FtkvmError:
            missed.append(host)
    return missed
