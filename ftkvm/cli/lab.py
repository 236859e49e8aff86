"""``ftkvm lab``: real hosts on one machine, and the ways to break them."""

import json
import os
import shlex

import click

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import faults, operator
from ftkvm.lab import lab as labs
from ftkvm.lab.guest import domain


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def lab() -> None:
    """Real hosts on this machine, a shared datastore, a client, and the ways to break them."""


@lab.command()
@click.option("--hosts", default=3, show_default=True, help="Number of hosts.")
@click.option("--memory", type=int, default=None, metavar="MiB", help="Memory limit of each host (default: none).")
@click.option(
    "--hosts-as",
    type=click.Choice([labs.CONTAINERS, labs.VMS]),
    default=None,
    help="What a host is (default: as the lab is, containers if there is none).",
)
@click.option(
    "--time-dilation",
    type=click.FloatRange(1, 100),
    default=None,
    metavar="FACTOR",
    help="How much slower the clocks of hosts that are VMs go (default: 8 where they are emulated, else 1).",
)
@click.option(
    "--storage",
    type=click.Choice(["virtiofs", "nfs"]),
    default=None,
    help="The datastore of hosts that are VMs: this machine's directory, or a storage VM's by NFS, which `ftkvm host"
    " add --datastore-nfs` mounts (default: as the lab is, virtiofs if there is none).",
)
@click.option(
    "--bare",
    is_flag=True,
    help="Hosts that have sshd and a key, nothing else; a Debian mirror, an NFS server (VMs only).",
)
def up(
    hosts: int, memory: int | None, hosts_as: str | None, time_dilation: float | None, storage: str | None, bare: bool
) -> None:
    """Make the lab, or bring back what of it is not running."""
    labs.up(hosts, memory, _say, hosts_as, time_dilation, None if storage is None else storage == "nfs", bare)


@lab.command()
@click.option("--images", is_flag=True, help="Remove the hosts' disk images too.")
def down(images: bool) -> None:
    """Remove the lab, whatever state it is in."""
    labs.down(_say, images)


@lab.command()
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
def status(output: str) -> None:
    """Show the hosts, their links and their storage."""
    document = {
        **labs.status(),
        "kvm": domain.kvm_state(),
        "guests": {n: g.address for n, g in domain.guests().items()},
    }
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    rows = document["hosts"]
    assert isinstance(rows, list)
    for row in rows:
        cut = [n for n, state in row["links"].items() if state != "up"]
        click.echo(
            f"{row['name']:8} {row['state']:8} {row['addresses']['management']:12} storage {row['storage']:7}"
            f" watchdog {row['watchdog']:16} {'cut: ' + ', '.join(cut) if cut else 'all links up'}"
        )
    for key in ("hosts_as", "bare", "time_dilation", "kvm", "image", "storage", "datastore", "operator_home"):
        click.echo(f"{key}: {document[key]}")


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def client(command: tuple[str, ...]) -> None:
    """Run COMMAND at the operator's seat: the client's name space, with an SSH key for the hosts."""
    labs.record()
    words = operator.command(command)
    os.execvpe(words[0], words, operator.environment())


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in HOST."""
    words = labs.host(host).enter_command(command)
    os.execvp(words[0], words)


@lab.command()
@click.argument("host")
def shell(host: str) -> None:
    """A root shell in HOST."""
    words = labs.host(host).enter_command(["/bin/bash", "-l"])
    os.execvp(words[0], words)


HOST = click.argument("host")
NETWORK = click.argument("network", metavar="[management|ft|migration|vm]")


@lab.command()
@HOST
def crash(host: str) -> None:
    """Take HOST's power away: silently, nothing gets out of it any more."""
    faults.crash(host)


@lab.command()
@HOST
def start(host: str) -> None:
    """Give a crashed HOST its power back and wait until it answers."""
    faults.start(host)


@lab.command()
@HOST
@click.option(
    "--watchdog-too", is_flag=True, help="Its watchdog stands still as well; otherwise an armed one ends HOST."
)
def freeze(host: str, watchdog_too: bool) -> None:
    """Stop every process of HOST where it stands; of a VM all its CPUs."""
    faults.freeze(host, watchdog_too=watchdog_too)


@lab.command()
@HOST
@click.argument("state", type=click.Choice(["on", "off"]))
def watchdog(host: str, state: str) -> None:
    """Give HOST a watchdog, or take it away, from its next boot on (then: ftkvm host add HOST again)."""
    faults.watchdog(host, state == "on")


@lab.command()
@HOST
@click.argument("parts", nargs=-1, metavar="[cpu=CPU] [kernel=WORDS]")
def hardware(host: str, parts: tuple[str, ...]) -> None:
    """Show or change what HOST (a VM) is made of, from its next boot on: cpu=EPYC, cpu=-avx2, cpu= as the others'."""
    if wrong := [part for part in parts if "=" not in part]:
        raise click.BadParameter(f"{wrong[0]!r} is not PART=VALUE")
    there = faults.change_hardware(host, dict(part.split("=", 1) for part in parts))
    click.echo(f"cpu: {there.cpu or 'as every host'}\nkernel: {there.kernel or 'as every host'}")


@lab.command()
@HOST
def thaw(host: str) -> None:
    """Let a frozen HOST go on."""
    faults.thaw(host)


@lab.command()
@HOST
@NETWORK
def cut(host: str, network: str) -> None:
    """Cut HOST off one network."""
    faults.cut(host, network)


@lab.command()
@HOST
@NETWORK
def heal(host: str, network: str) -> None:
    """Connect HOST to that network again."""
    faults.heal(host, network)


@lab.command()
@HOST
@click.argument("state", type=click.Choice(["hang", "fail", "ok"]))
def storage(host: str, state: str) -> None:
    """Make the datastore hang or fail for HOST alone, or bring it back."""
    faults.storage(host, state)


@lab.command()
@HOST
@NETWORK
@click.option("--delay", type=click.FloatRange(0, 10_000), default=0, metavar="MS", help="In the hosts' time.")
@click.option("--loss", type=click.FloatRange(0, 50), default=0, metavar="PERCENT", help="Frames that get lost.")
@click.option("--off", is_flag=True, help="Take it back.")
def slow(host: str, network: str, delay: float, loss: float, off: bool) -> None:
    """Delay HOST's frames on one network, or lose some of them, in both directions (VMs only)."""
    if off == bool(delay or loss):
        raise FtkvmError("FTKVM-605", option="--off", detail="either --delay, --loss or both are given, or --off")
    faults.slow(host, network, delay, loss)


@lab.command()
@HOST
@click.argument("daemon")
def kill(host: str, daemon: str) -> None:
    """SIGKILL the main process of DAEMON (a unit such as libvirtd, or qemu:VM) on HOST."""
    click.echo(f"killed {', '.join(map(str, faults.kill(host, daemon)))}")


@lab.command()
@click.argument("name")
@click.option("--host", default=None, help="Host whose libvirt gets the domain (default: the first that runs).")
@click.option("--disk-size", default="1G", show_default=True, help="Size of its (sparse) disk.")
@click.option("--memory", default=192, show_default=True, metavar="MiB")
@click.option("--vcpus", default=1, show_default=True)
def guest(name: str, host: str | None, disk_size: str, memory: int, vcpus: int) -> None:
    """Make the small guest NAME: its disk on the datastore, its domain defined (not started) on HOST."""
    chosen = labs.host(host) if host else next((h for h in labs.hosts() if h.state == "running"), labs.hosts()[0])
    made = domain.create(name, chosen, disk_size, memory, vcpus)
    click.echo(f"{name} is defined on {chosen.name}: address {made.address}, disk {made.disk}")


@lab.command()
@click.argument("vm")
def console(vm: str) -> None:
    """The serial console of VM, on the host where it runs (leave with Ctrl-])."""
    for each in labs.hosts():
        if each.state == "running" and each.succeeds(
            ["sh", "-c", f'[ "$(virsh domstate -- {shlex.quote(vm)})" = running ]']
        ):
            words = each.enter_command(["virsh", "console", "--force", "--", vm])
            os.execvp(words[0], words)
    raise FtkvmError("FTKVM-726", vm=vm)
