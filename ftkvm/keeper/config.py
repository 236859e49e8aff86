"""What the keeper reads at its start: the host's agent.toml and the cluster's beat keys. Standard library only."""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ftkvm.keeper import keys
from ftkvm.keeper.keys import BeatKeys
from ftkvm.keeper.rules import SILENT_MS

DEFAULT_PORT = 7444


@dataclass(frozen=True)
class KeeperConfig:
    host: str
    ft_address: str
    port: int
    datastore: Path
    keys: BeatKeys
    run: Path
    silent_ms: int


def run_directory() -> Path:
    """Volatile state of this host's FTKVM processes."""
    return Path(os.environ.get("FTKVM_RUN", "/run/ftkvm"))


def load() -> KeeperConfig:
    """Read agent.toml (``FTKVM_AGENT_TOML`` overrides its place) and beat.key, which lies beside it.

    Raises OSError, tomllib.TOMLDecodeError, KeyError or ValueError: without its configuration a keeper cannot run.
    """
    path = Path(os.environ.get("FTKVM_AGENT_TOML", "/etc/ftkvm/agent.toml"))
    doc = tomllib.loads(path.read_text())
    beat_keys = keys.load(path.parent / "beat.key")
    keeper = doc.get("keeper", {})
    return KeeperConfig(
        host=str(doc["host"]["name"]),
        ft_address=str(doc["networks"]["ft"]),
        port=int(keeper.get("port", DEFAULT_PORT)),
        datastore=Path(doc["datastore"]["path"]),
        keys=beat_keys,
        run=run_directory(),
        silent_ms=int(keeper.get("silent_ms", SILENT_MS)),
    )
