"""The configuration of one hold proxy, written by the agent (see the contract in docs/keeper.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ftkvm.hold.frames import Mode


@dataclass(frozen=True)
class NicConfig:
    """One NIC, the unix socket paths on which the proxy listens for QEMU, and where the secondary's frames come from.

    ``secondary``: ``address:port`` on the FT network; the proxy connects there.
    """

    id: str
    mac: str
    tx: str
    compare_in: str
    compare_out: str
    rx: str
    secondary_in: str
    secondary: str

    @property
    def secondary_address(self) -> tuple[str, int]:
        host, _colon, port = self.secondary.rpartition(":")
        return host, int(port)


@dataclass(frozen=True)
class HoldConfig:
    """``key_file``: where the key of the secondary's frames lies while the proxy starts; empty: they come plain."""

    uuid: str
    monitor: str
    mode: Mode
    status: str
    nics: tuple[NicConfig, ...]
    key_file: str = ""


def load(path: Path) -> HoldConfig:
    """Raises OSError, or ValueError naming what does not fit."""
    doc: dict[str, Any] = json.loads(path.read_text())
    try:
        if doc["mode"] not in get_args(Mode):
            raise ValueError(f"{path}: mode {doc['mode']!r} is none of {', '.join(get_args(Mode))}")
        nics = tuple(NicConfig(**{key: str(nic[key]) for key in NicConfig.__dataclass_fields__}) for nic in doc["nics"])
        mode, key_file = cast(Mode, doc["mode"]), str(doc.get("key_file", ""))
        return HoldConfig(str(doc["uuid"]), str(doc["monitor"]), mode, str(doc["status"]), nics, key_file)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error!r}") from error
