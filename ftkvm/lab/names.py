"""What the lab is called and where it lies: every name, address and path it owns, in one place.

Everything the lab makes on the machine carries the prefix ``ftlab-`` or lies below `STATE`; clean-up removes exactly
that and nothing else, so it also works after a killed run, without any record of what was made. With ``FTKVM_LAB=NAME``
(letters) in the environment there is a second lab beside the first, which shares nothing with it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

NAME = re.sub("[^a-z]", "", os.environ.get("FTKVM_LAB", ""))[:8]
PREFIX = f"ftlab{NAME}-"
STATE = Path(f"/var/lib/ftkvm-lab-{NAME}" if NAME else "/var/lib/ftkvm-lab")
IMAGES = STATE / "images"
HOSTS = STATE / "hosts"
DATASTORE = STATE / "datastore"
OPERATOR = STATE / "operator"
GUESTS = STATE / "guest"
LOCK = STATE / "lock"
NETNS_ETC = Path("/etc/netns")

DATASTORE_MOUNT = "/srv/ftkvm"
"""Where a host sees the datastore (its own FUSE mount)."""

DATASTORE_UNIT = "ftlab-datastore.service"
SWITCH_NS = f"{PREFIX}net"
CLIENT_NS = f"{PREFIX}client"
MAX_HOSTS = 9
STORAGE = "storage"
"""The storage VM of a lab whose datastore is NFS."""
EXPORTS = ("/export/ftkvm", "/export/other")
"""What it serves: the datastore, and another one for tests that need two."""
STORAGE_NETWORK = "migration"
"""On which hosts mount it: a host whose management network is cut keeps its datastore, as with other kinds of it."""


@dataclass(frozen=True)
class Network:
    """One of the four networks: its name for ``cut``/``heal``, its NIC in a host, its /24."""

    name: str
    nic: str
    prefix: str

    @property
    def bridge(self) -> str:
        """The switch, a bridge in the name space `SWITCH_NS`."""
        return f"sw-{self.name}"


NETWORKS: dict[str, Network] = {
    n.name: n
    for n in (
        Network("management", "mgmt0", "10.77.0"),
        Network("ft", "ft0", "10.77.1"),
        Network("migration", "mig0", "10.77.2"),
        Network("vm", "vm0", "10.77.3"),
    )
}
HOST_NETWORKS = ("management", "ft", "migration")
"""The networks on which a host has an address of its own (the VM network is only bridged)."""

VM_BRIDGE = "br-vm"
CLIENT_NETWORKS = ("management", "vm")
CLIENT_NUMBER = 2
POWER_SWITCH_PORT = 7230
"""Where VMs reach the power switch, at the client's address on the management network; their fence agent knows it."""


def host_names(count: int) -> list[str]:
    """The first ``count`` host names."""
    return [f"host{i}" for i in range(1, count + 1)]


def number(host: str) -> int:
    """``host3`` -> 3; the storage VM is 0."""
    return 0 if host == STORAGE else int(host.removeprefix("host"))


def host_address(host: str, network: str) -> str:
    """The host's address on a network that it has one on."""
    return f"{NETWORKS[network].prefix}.{10 + number(host)}"


def export() -> str:
    """The datastore as hosts mount it, ``SERVER:/PATH``."""
    return f"{host_address(STORAGE, STORAGE_NETWORK)}:{EXPORTS[0]}"


def client_address(network: str) -> str:
    return f"{NETWORKS[network].prefix}.{CLIENT_NUMBER}"


def mac(end: str, network: str) -> str:
    """The NIC's address. Fixed, as hardware's is: after a power cycle the others' ARP caches are still right."""
    last = CLIENT_NUMBER if end == "client" else 10 + number(end)
    return f"02:77:00:00:{list(NETWORKS).index(network):02x}:{last:02x}"


def netns(host: str) -> str:
    """The host's network name space, also the name of its container and control group."""
    return f"{PREFIX}{host}"


def port(host: str, network: str) -> str:
    """The switch's port to a host's NIC (an interface in `SWITCH_NS`; ``client`` is a host here)."""
    return f"{host}-{NETWORKS[network].nic}"


@dataclass(frozen=True)
class HostPaths:
    """What a host owns on disk; ``upper`` is its disk (what differs from the image) and survives a power loss."""

    host: str

    @property
    def base(self) -> Path:
        return HOSTS / self.host

    @property
    def upper(self) -> Path:
        return self.base / "disk"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def console(self) -> Path:
        return self.base / "console.log"
