"""``ftkvm``: the operator's commands. One file per noun.

Exit statuses: 0 done · 1 refused or failed · 2 wrong usage · 3 no such thing · 4 somebody does not answer ·
5 outcome unknown · 6 storage.
"""

import importlib.util
import sys
from collections.abc import Sequence

import click

from ftkvm import __version__
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.cert import cert
from ftkvm.cli.check import check
from ftkvm.cli.cluster import cluster
from ftkvm.cli.explain import explain
from ftkvm.cli.ft import disable, enable, status, test, turn_off
from ftkvm.cli.history import history
from ftkvm.cli.host import host
from ftkvm.cli.output import print_error
from ftkvm.cli.upgrade import upgrade_plan
from ftkvm.cli.vm import vm


@click.group(epilog="Exit status: 1 refused or failed, 2 usage, 3 no such thing, 4 no answer, 5 unknown, 6 storage.")
@click.version_option(__version__, prog_name="ftkvm")
def cli() -> None:
    """High availability and fault tolerance for QEMU/KVM virtual machines."""


cluster.add_command(upgrade_plan)
for command in (cluster, host, vm, enable, disable, turn_off, test, status, history, check, cert, explain):
    cli.add_command(command)
if importlib.util.find_spec("ftkvm.lab") is not None:  # hosts have no lab, and no simulator
    from ftkvm.cli.lab import lab
    from ftkvm.cli.simulate import simulate

    cli.add_command(lab)
    cli.add_command(simulate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = ("--output" in words and "json" in words) or "--output=json" in words
    try:
        result = cli.main(words, prog_name="ftkvm", standalone_mode=False)
    except FtkvmError as error:
        print_error(error, as_json=as_json)
        return error.message.exit_status
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
