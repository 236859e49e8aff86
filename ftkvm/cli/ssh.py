"""The options of commands that reach a host over SSH."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ftkvm.catalogue import FtkvmError

F = TypeVar("F", bound=Callable[..., Any])
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


def ssh_options(command: F) -> F:
    """Adds ``--ssh-user``, ``--ssh-key``, ``--ssh-port`` and ``--known-hosts`` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def require_key(ssh_key: Path | None) -> None:
    """:raises FtkvmError: FTKVM-605, there is no such file"""
    if ssh_key is not None and not ssh_key.is_file():
        raise FtkvmError("FTKVM-605", option="--ssh-key", detail=f"no file {ssh_key}")
