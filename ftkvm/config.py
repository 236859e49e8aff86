"""What a host knows of itself (/etc/ftkvm/agent.toml) and what the cluster knows of its hosts (config/NNNNNNN.json)."""

import ipaddress
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError

DEFAULT_API_PORT = 7443
DEFAULT_KEEPER_PORT = 7444
DEFAULT_TUNNEL_PORT = 7446
DEFAULT_HA_PORT = 7445
FT_PORTS = range(7500, 8500)
"""TCP, on the FT network: the channels between a pair's two QEMUs. A firewall opens them all (hostprep/openings.py)."""


@dataclass(frozen=True)
class Paths:
    """Where things lie on a host; another root lets several agents live in one process (tests)."""

    root: Path = Path("/")

    @property
    def config(self) -> Path:
        return self.root / "etc/ftkvm/agent.toml"

    @property
    def pki(self) -> Path:
        return self.root / "etc/ftkvm/pki"

    @property
    def beat_key(self) -> Path:
        return self.root / "etc/ftkvm/beat.key"

    @property
    def run(self) -> Path:
        """Volatile state: survives restarts of daemons, not a reboot."""
        return self.root / "run/ftkvm"


@dataclass(frozen=True)
class HostConfig:
    """One host's own settings; addresses are this host's on each network."""

    name: str
    management: str
    ft: str
    migration: str
    datastore: Path
    vm_bridges: tuple[str, ...] = ("br-vm",)
    api_port: int = DEFAULT_API_PORT
    keeper_port: int = DEFAULT_KEEPER_PORT
    tunnel_port: int = DEFAULT_TUNNEL_PORT
    ha_port: int = DEFAULT_HA_PORT
    watchdog: str = ""
    """Path of the watchdog's device (or socket); empty: none."""
    paths: Paths = field(default_factory=Paths)

    @classmethod
    def load(cls, paths: Paths | None = None) -> "HostConfig":
        """Read agent.toml.

        :raises FtkvmError: FTKVM-601, missing or not understood, with the reason
        """
        paths = paths or Paths()
        try:
            document = tomllib.loads(paths.config.read_text())
            return cls._from_toml(document, paths)
        except (OSError, tomllib.TOMLDecodeError, KeyError, ValueError, TypeError) as error:
            raise FtkvmError("FTKVM-601", path=paths.config, detail=f"{type(error).__name__}: {error}") from error

    @classmethod
    def _from_toml(cls, document: dict[str, Any], paths: Paths) -> "HostConfig":
        networks = document["networks"]
        addresses = {kind: str(ipaddress.ip_address(networks[kind])) for kind in ("management", "ft", "migration")}
        return cls(
            name=str(document["host"]["name"]),
            datastore=Path(document["datastore"]["path"]),
            vm_bridges=tuple(networks.get("vm_bridges", ("br-vm",))),
            api_port=int(document.get("api", {}).get("port", DEFAULT_API_PORT)),
            keeper_port=int(document.get("keeper", {}).get("port", DEFAULT_KEEPER_PORT)),
            tunnel_port=int(document.get("tunnel", {}).get("port", DEFAULT_TUNNEL_PORT)),
            ha_port=int(document.get("ha", {}).get("port", DEFAULT_HA_PORT)),
            watchdog=str(document.get("watchdog", {}).get("device", "")),
            paths=paths,
            **addresses,
        )

    def to_toml(self) -> str:
        """The text of agent.toml; stable, so that a second preparation changes nothing."""
        bridges = ", ".join(f'"{name}"' for name in self.vm_bridges)
        watchdog = f'\n[watchdog]\ndevice = "{self.watchdog}"\n' if self.watchdog else ""
        return (
            f'[host]\nname = "{self.name}"\n\n'
            f'[networks]\nmanagement = "{self.management}"\nft = "{self.ft}"\nmigration = "{self.migration}"\n'
            f"vm_bridges = [{bridges}]\n\n"
            f'[datastore]\npath = "{self.datastore}"\n\n'
            f"[api]\nport = {self.api_port}\n\n[keeper]\nport = {self.keeper_port}\n"
            f"\n[tunnel]\nport = {self.tunnel_port}\n\n"
            f"[ha]\nport = {self.ha_port}\n{watchdog}"
        )


@dataclass(frozen=True)
class HostEntry:
    """A host as the cluster's configuration names it."""

    name: str
    management: str
    ft: str
    migration: str
    api_port: int = DEFAULT_API_PORT
    keeper_port: int = DEFAULT_KEEPER_PORT
    tunnel_port: int = DEFAULT_TUNNEL_PORT
    maintenance: bool = False
    fence: dict[str, str] = field(default_factory=dict)
    """Power fencing device: ``agent`` (a program of fence-agents) and its keys; empty: none."""

    @classmethod
    def from_json(cls, name: str, document: dict[str, Any]) -> "HostEntry":
        return cls(
            name,
            str(document["management"]),
            str(document["ft"]),
            str(document["migration"]),
            int(document.get("api_port", DEFAULT_API_PORT)),
            int(document.get("keeper_port", DEFAULT_KEEPER_PORT)),
            int(document.get("tunnel_port", DEFAULT_TUNNEL_PORT)),
            bool(document.get("maintenance", False)),
            fence={str(key): str(value) for key, value in document.get("fence", {}).items()},
        )

    def to_json(self) -> dict[str, Any]:
        fence = {"fence": self.fence} if self.fence else {}
        return {
            "management": self.management,
            "ft": self.ft,
            "migration": self.migration,
            "api_port": self.api_port,
            "keeper_port": self.keeper_port,
            "tunnel_port": self.tunnel_port,
            "maintenance": self.maintenance,
            **fence,
        }


@dataclass(frozen=True)
class ClusterConfig:
    """One version of the cluster's configuration; a change is a new version (compare-and-swap)."""

    version: int
    cluster: str
    hosts: dict[str, HostEntry]
    settings: dict[str, Any]
    order: tuple[str, ...] = ()
    """Hosts in the order they joined; see :meth:`joined`."""
    removed: dict[str, str] = field(default_factory=dict)
    """Hosts that were removed as dead, with the boot that is over by the operator's word."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ClusterConfig":
        hosts = {name: HostEntry.from_json(name, entry) for name, entry in document.get("hosts", {}).items()}
        order = tuple(str(name) for name in document.get("order", ()))
        settings = dict(document.get("settings", {}))
        removed = {str(name): str(boot) for name, boot in document.get("removed", {}).items()}
        return cls(int(document["version"]), str(document["cluster"]), hosts, settings, order, removed)

    def joined(self) -> tuple[str, ...]:
        """All hosts in the order they joined; those from before that was noted come first, by name."""
        return tuple(sorted(set(self.hosts) - set(self.order))) + tuple(n for n in self.order if n in self.hosts)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "cluster": self.cluster,
            "hosts": {name: entry.to_json() for name, entry in sorted(self.hosts.items())},
            "settings": self.settings,
            "order": [name for name in self.order if name in self.hosts],
            "removed": {name: boot for name, boot in sorted(self.removed.items()) if name not in self.hosts},
        }
