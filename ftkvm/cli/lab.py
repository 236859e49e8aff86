"""``ftkvm lab``: real hosts on one machine, and the ways to break them."""

import json
import os

import click

from ftkvm.lab import lab as labs
from ftkvm.lab import operator


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def lab() -> None:
    """Real hosts on this machine, a shared datastore, a client, and the ways to break them."""


@lab.command()
@click.option("--hosts", default=3, show_default=True, help="Number of hosts.")
@click.option("--memory", type=int, default=None, metavar="MiB", help="Memory limit of each host (default: none).")
def up(hosts: int, memory: int | None) -> None:
    """Make the lab, or bring back what of it is not running."""
    labs.up(hosts, memory, _say)


@lab.command()
@click.option("--images", is_flag=True, help="Remove the hosts' disk images too.")
def down(images: bool) -> None:
    """Remove the lab, whatever state it is in."""
    labs.down(_say, images)


@lab.command()
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
def status(output: str) -> None:
    """Show the hosts, their links and their storage."""
    document = labs.status()
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    rows = document["hosts"]
    assert isinstance(rows, list)
    for row in rows:
        cut = [n for n, state in row["links"].items() if state != "up"]
        click.echo(f"{row['name']:8} {row['state']:8} {row['addresses']['management']:12} storage {row['storage']:7}"
                   f" {'cut: ' + ', '.join(cut) if cut else 'all links up'}")
    for key in ("image", "datastore", "operator_home"):
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
