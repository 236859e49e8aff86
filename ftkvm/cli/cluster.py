"""``ftkvm cluster``."""

import ipaddress
import itertools
import re
import time
from pathlib import PurePosixPath

import click
from rich.console import Group
from rich.text import Text

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.client import AgentClient
from ftkvm.cli.names import require_name, words_of
from ftkvm.cli.output import Reporter, make_table, output_option, watch_document
from ftkvm.home import ClusterFile, Home
from ftkvm.ports import Json

_FURTHER = re.compile(r"das\.isolationaddress([2-9]|10)")
"""Left out of the table while they are not set."""


@click.group()
def cluster() -> None:
    """The cluster."""


@cluster.command()
@click.argument("name")
@click.option("--datastore", required=True, metavar="PATH", help="Directory that every host mounts.")
@click.option("--management-network", required=True, metavar="CIDR", help="Network of the agents and of the operator.")
@click.option("--ft-network", required=True, metavar="CIDR", help="Network of beats, checkpoints and disk writes.")
@click.option("--migration-network", required=True, metavar="CIDR", help="Network of live migrations.")
@click.option("--vm-bridge", "vm_bridges", multiple=True, default=("br-vm",), show_default=True,
              help="Bridge of the VMs on every host (repeatable).")  # fmt: skip
@output_option
def create(
    name: str, datastore: str, management_network: str, ft_network: str, migration_network: str,
    vm_bridges: tuple[str, ...], output: str,
) -> None:  # fmt: skip
    """Create the cluster NAME: its certificate authority and the operator's certificate, in $FTKVM_HOME."""
    require_name("NAME", name)
    path = PurePosixPath(datastore)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
        raise FtkvmError(
            "FTKVM-605", option="--datastore", detail=f"{datastore} is not an absolute path of a directory"
        )
    networks = _networks(management_network, ft_network, migration_network)
    for bridge in vm_bridges:
        require_name("--vm-bridge", bridge)
    home = Home()
    home.create(ClusterFile(name, "", str(path), *networks, list(vm_bridges)))
    text = f"Cluster {name} created; keep {home.directory} safe, it holds its keys. Next: ftkvm host add NAME"
    Reporter(output).result({"cluster": name, "home": str(home.directory)}, text)


def _networks(management: str, ft: str, migration: str) -> tuple[str, str, str]:
    options = {"--management-network": management, "--ft-network": ft, "--migration-network": migration}
    parsed = {}
    for option, text in options.items():
        try:
            parsed[option] = ipaddress.IPv4Network(text)
        except ValueError as error:
            raise FtkvmError("FTKVM-605", option=option, detail=str(error)) from error
    for (option, network), (other, second) in itertools.combinations(parsed.items(), 2):
        if network.overlaps(second):
            raise FtkvmError("FTKVM-605", option=option, detail=f"{network} overlaps {second} of {other}")
    one, two, three = (str(network) for network in parsed.values())
    return one, two, three


@cluster.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until interrupted.")
@output_option
def status(watch: bool, output: str) -> None:
    """Show the cluster at a glance: validity, coordinator, hosts and why they are what they are, VMs, what waits."""
    reporter = Reporter(output)
    client = AgentClient()
    if not watch:
        _show_status(reporter, client.call("GET", "/v1/cluster/status", timeout_s=15.0))
    elif reporter.json:
        while True:
            reporter.document(client.call("GET", "/v1/cluster/status", timeout_s=15.0))
            time.sleep(1.0)
    else:
        watch_document(reporter, lambda: client.call("GET", "/v1/cluster/status", timeout_s=15.0), _render_status)


def _show_status(reporter: Reporter, document: Json) -> None:
    if reporter.json:
        reporter.document(document)
    else:
        reporter.out.print(_render_status(document))


def _render_status(document: Json) -> Group:
    validity = document["validity"]
    runtime = validity["runtime"]
    ha = "on" if validity["ha"] else "off"
    policy = validity["policy"] if validity["admission_control"] else "off"
    lines = [
        f"cluster {document['cluster']}: {validity['validity']}; HA {ha}, admission control: {policy}; "
        f"coordinator {document['coordinator'] or 'none'} (term {document['term']})",
        *(f"  {text}" for text in validity["reasons"]),
        f"slots: {runtime['used_slots']} of {runtime['total_slots']} used, {runtime['available_slots']} available; "
        f"{runtime['good_hosts']} of {runtime['hosts']} hosts good; "
        f"host failures tolerated: {runtime['current_failover_capacity']}",
    ]
    hosts = [
        (row["name"], row["role"], row["state"], "-" if row["vms"] is None else row["vms"], row["datastore"],
         _fencing(row), row["why"]) for row in document["hosts"]
    ]  # fmt: skip
    vms = [
        (row["name"], row["state"], row["host"], row["protection"], row["restart_priority"], row["isolation_response"],
         _last(row["last_restart"])) for row in document["vms"]
    ]  # fmt: skip
    waiting = [
        f"waiting: {row['vm']}: {row['why']} (failed attempts: {row['attempts']})" for row in document["waiting"]
    ]
    events = [f"{time.strftime('%H:%M:%S', time.localtime(row['at']))} {row['by']}: {row['text']}"
              for row in document["events"]]  # fmt: skip
    return Group(
        Text("\n".join(lines)),
        make_table(("HOST", "ROLE", "STATE", "VMS", "DATASTORE", "FENCED BY", "WHY"), hosts),
        make_table(("VM", "STATE", "HOST", "PROTECTION", "PRIORITY", "ISOLATION", "LAST RESTART"), vms),
        Text("\n".join([*waiting, *events])),
    )


def _fencing(row: Json) -> str:
    ways = [f"watchdog {row['watchdog_ms'] / 1000:.0f} s"] if row["watchdog_ms"] else []
    return " + ".join([*ways, *(["power"] if row["fence"] else [])]) or "nothing"


def _last(event: Json | None) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(event['at']))} {event['text']}" if event else ""


@cluster.command()
@output_option
def show(output: str) -> None:
    """Show all settings: value, default, range, when a change applies, meaning."""
    print_settings(AgentClient().call("GET", "/v1/cluster/settings"), Reporter(output))


@cluster.command(name="set")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--if-version", "version", type=click.IntRange(min=0),
              help="Refuse unless the configuration is still this version (`cluster show` tells it).")  # fmt: skip
@output_option
def set_settings(changes: tuple[str, ...], version: int | None, output: str) -> None:
    """Change settings, all or none; KEY= takes one back to its default."""
    body: Json = {"changes": words_of(changes), "version": version}
    answer = AgentClient().call("POST", "/v1/cluster/settings", body)
    reporter = Reporter(output)
    if reporter.json:
        reporter.document(answer)
        return
    rows = [each for each in answer["settings"] if each["name"] in answer["changed"] or each["waits"]]
    print_settings({**answer, "settings": rows}, reporter)


def print_settings(answer: Json, reporter: Reporter) -> None:
    """Settings as ``/v1/cluster/settings`` answers them."""
    if reporter.json:
        reporter.document(answer)
        return
    keys = ("default", "unit", "allowed", "applies", "meaning")
    shown = [each for each in answer["settings"] if not (_FURTHER.fullmatch(each["name"]) and each["is_default"])]
    rows = [(each["name"], _value(each), *(each[key] for key in keys)) for each in shown]
    reporter.table(("SETTING", "VALUE", *(key.upper() for key in keys)), rows, "none")
    click.echo(f"cluster {answer['cluster']}, version {answer['version']}")


def _value(row: Json) -> str:
    waits = f" ({row['in_force'] or 'none'} now)" if row["waits"] else ""
    return f"{row['value']}{waits}"


@cluster.command()
@output_option
def validate(output: str) -> int:
    """Check the settings and whether the room for restarts is there. Exit status 1: it is not."""
    answer = AgentClient().call("GET", "/v1/cluster/validate")
    reporter = Reporter(output)
    bad = answer["validity"] == "invalid" or bool(answer["breaches"] or answer["problems"])
    if reporter.json:
        reporter.document(answer)
        return int(bad)
    print_validity(answer, reporter)
    return int(bad)


def print_validity(answer: Json, reporter: Reporter) -> None:
    """What ``/v1/cluster/validate`` answered, for people."""
    click.echo(f"cluster {answer['cluster']}: {answer['validity']}")
    for heading, key in (("reason", "reasons"), ("unsafe", "breaches"), ("not understood", "problems"),
                         ("waits", "waiting"), ("warning", "warnings")):  # fmt: skip
        for text in answer[key]:
            click.echo(f"  {heading}: {text}")
    policy = answer["policy"] if answer["ha"] and answer["admission_control"] else "off"
    click.echo(f"admission control: {policy}")
    _show_runtime(answer["runtime"], reporter)
    if answer["policy"] == "percentage":
        click.echo(answer["percentage"]["sum"])
    if answer["failover_host"]["name"]:
        spare = answer["failover_host"]
        click.echo(f"failover host {spare['name']}: {spare['colour']}, {spare['why']}")
    rows = [(name, each["cpu_mhz"], each["memory_mb"], each["free_cpu_mhz"], each["free_memory_mb"],
             answer["runtime"]["slots_per_host"].get(name, 0), each["why_not"])
            for name, each in answer["hosts"].items()]  # fmt: skip
    columns = ("HOST", "CPU MHz", "MEMORY MB", "UNRESERVED MHz", "UNRESERVED MB", "SLOTS", "NOT RECKONED WITH")
    reporter.table(columns, rows, "no hosts")
    click.echo(f"restart commands are out within {answer['restart_within_ms'] / 1000:.0f} s of a host's crash")


def _show_runtime(runtime: Json, reporter: Reporter) -> None:
    """The advanced runtime info, as the guide lists it."""

    def names(key: str) -> str:
        return ", ".join(runtime[key][:3]) + (" …" if len(runtime[key]) > 3 else "") or "no VM"

    rows = [
        ("slot size", f"{runtime['slot_cpu_mhz']} MHz (set by {names('slot_cpu_set_by')}), "
                      f"{runtime['slot_memory_mb']} MB (set by {names('slot_memory_set_by')})"),
        ("total slots", runtime["total_slots"]),
        ("used slots", runtime["used_slots"]),
        ("available slots", runtime["available_slots"]),
        ("powered-on VMs", runtime["powered_on_vms"]),
        ("hosts", runtime["hosts"]),
        ("good hosts", runtime["good_hosts"]),
        ("host failures tolerated", f"{runtime['current_failover_capacity']} "
                                    f"({runtime['configured_failover_capacity']} configured)"),
    ]  # fmt: skip
    reporter.table(("RUNTIME INFO", ""), rows, "none")


@cluster.command(name="what-if")
@click.option("--lose", multiple=True, metavar="HOST", help="A host that is lost (repeatable; all at once).")
@output_option
def what_if(lose: tuple[str, ...], output: str) -> None:
    """Show what the loss of hosts would do: which VM goes where or fits nowhere, and what each policy makes of it."""
    answer = AgentClient().call("POST", "/v1/cluster/what-if", {"lose": list(lose)})
    reporter = Reporter(output)
    if reporter.json:
        reporter.document(answer)
        return
    print_what_if(answer, reporter)


def print_what_if(answer: Json, reporter: Reporter) -> None:
    """What ``/v1/cluster/what-if`` answered, for people."""
    runtime = answer["runtime"]
    click.echo(f"slots: {runtime['sum']}")
    rows = [(each["vm"], each["priority"], each["lost_with"], each["what"] if each["host"] else "does not run",
             each["host"], "; ".join(f"{host}: {why}" if host else why for host, why in each["why"].items()))
            for each in answer["vms"]]  # fmt: skip
    nothing = "No VM is on the hosts that are lost." if answer["lost"] else "No host is lost; name some with --lose."
    reporter.table(("VM", "PRIORITY", "LOST WITH", "WHAT", "ON", "WHY NOT"), rows, nothing)
    policies = [(f"{each['policy']}{' (in force)' if each['in_force'] else ''}", _yes(each["holds"]), each["room"],
                 _yes(each["promised"]), each["why"], _yes(each["holds_after"]))
                for each in answer["policies"]]  # fmt: skip
    reporter.table(("POLICY", "HOLDS NOW", "ROOM LEFT", "PROMISES THIS", "WHY", "HOLDS AFTER"), policies, "none")


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
