"""How commands reach a host over SSH: their options, and what comes of them."""

import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkvm.catalogue import FtkvmError
from ftkvm.home import Home

if TYPE_CHECKING:  # paramiko takes a while to import, and hosts do not have it
    from hostprep.ssh import Target

_OPTIONS = (
    click.option("--ssh-user", default="root", show_default=True),
    click.option(
        "--ssh-key", type=click.Path(path_type=Path), help="Private key; otherwise the agent's and ~/.ssh's are tried."
    ),
    click.option("--ssh-port", default=22, show_default=True),
    click.option(
        "--known-hosts", type=click.Path(path_type=Path), default=Path("~/.ssh/known_hosts"), show_default=True
    ),
)


@dataclass(frozen=True)
class SshAccess:
    """With which user, key, port and known host keys."""

    user: str
    key: Path | None
    port: int
    known_hosts: Path

    def target(self, name: str, address: str | None = None) -> "Target":
        """The host ``name``, at ``address``; without one at its name if that leads anywhere, else at its address in the
        cluster: it may have been added with --address."""
        from hostprep.ssh import Target

        return Target(name, address or _address_of(name), self.user, self.port, self.key, self.known_hosts)


def ssh_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--ssh-user``, ``--ssh-key``, ``--ssh-port`` and ``--known-hosts`` to a command, which gets ``ssh``.

    The command raises FTKVM-605 when there is no such key file.
    """

    @functools.wraps(command)
    def with_access(*, ssh_user: str, ssh_key: Path | None, ssh_port: int, known_hosts: Path, **others: Any) -> Any:
        if ssh_key is not None and not ssh_key.is_file():
            raise FtkvmError("FTKVM-605", option="--ssh-key", detail=f"no file {ssh_key}")
        return command(ssh=SshAccess(ssh_user, ssh_key, ssh_port, known_hosts), **others)

    made: Callable[..., Any] = with_access
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def _address_of(name: str) -> str:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        cluster = Home().load()
        return cluster.entry(name).management if name in cluster.hosts else name
    return name
