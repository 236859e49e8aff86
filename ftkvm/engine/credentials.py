"""The key that a pair's channels are encrypted with: TLS with a pre-shared key, one for each epoch.

QEMU's ``tls-creds-psk`` (docs/system/tls.rst) under one name on both sides. A key and not a certificate: nothing in a
pair can then expire. The secondary's QEMU is the server of every channel and reads the key's file at each handshake;
the primary's reads it once.
"""

from pathlib import Path
from typing import Literal

from . import graph
from .graph import MonitorPort

CREDENTIALS = "ft-tls"
USER = "ftkvm"
KEY_FILE = "keys.psk"
"""The name that QEMU looks for in the directory it is given."""


def file_text(key: str) -> str:
    """What stands in the key's file, of QEMU and of the hold proxy. ``key``: hexadecimal."""
    return f"{USER}:{key}\n"


def key_object(directory: Path, end: Literal["client", "server"]) -> dict[str, str]:
    """The arguments of ``object-add`` that have QEMU take the key from the file in ``directory``."""
    who = {"username": USER} if end == "client" else {}
    return {"qom-type": "tls-creds-psk", "id": CREDENTIALS, "dir": str(directory), "endpoint": end, **who}


def add(monitor: MonitorPort, directory: Path, end: Literal["client", "server"]) -> None:
    """Have QEMU take the key from the file in ``directory``; one of an earlier epoch goes first."""
    remove(monitor)
    monitor.execute("object-add", key_object(directory, end))


def option(encrypted: bool) -> dict[str, str]:
    """The argument with which every channel names its credentials (``tls-creds``); none for a plain one."""
    return {"tls-creds": CREDENTIALS} if encrypted else {}


def remove(monitor: MonitorPort) -> None:
    """Forget the key. Channels that are open go on; the next migration of this QEMU would else ask for TLS."""
    if CREDENTIALS in graph.objects(monitor):
        monitor.execute("migrate-set-parameters", {"tls-creds": ""})
        monitor.execute("object-del", {"id": CREDENTIALS})
