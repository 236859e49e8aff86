"""``ftkvm cluster``."""

import ipaddress
import itertools
from pathlib import PurePosixPath

import click

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.names import require_name
from ftkvm.cli.output import Reporter, output_option
from ftkvm.home import ClusterFile, Home


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
