"""From the cluster's configuration to what the HA machine is told: hosts, networks, times, what a VM needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkvm.agent.ha.documents import Definition
from ftkvm.config import ClusterConfig, HostEntry
from ftkvm.core.ha.capacity import OVERHEAD_MB
from ftkvm.core.ha.model import Cluster
from ftkvm.core.ha.settings import VmSettings, failover_host, ha_settings, in_force


def needed_memory_mb(values: VmSettings, settings: Mapping[str, Any], defined: Definition, *, ft: bool) -> int:
    """What a host must have unreserved to run the VM: its reservation (with FT on, all its memory), and overhead."""
    reckoned = int(in_force(settings)["das.vmMemoryMinMB"])
    return (defined.memory_mb if ft else values.memory_mb or reckoned) + OVERHEAD_MB


def host_addresses(entry: HostEntry, networks: tuple[str, ...]) -> dict[str, str]:
    """A host's address on each HA network; two networks with one address are one."""
    found: dict[str, str] = {}
    for network in networks:
        address = getattr(entry, network, "")
        if address and address not in found.values():
            found[network] = str(address)
    return found


def cluster_of(config: ClusterConfig, gateway: str | None) -> Cluster:
    """The cluster as the HA machine sees it; ``gateway``: of the management network, pinged by default (HA-04)."""
    return Cluster(
        hosts=config.joined(),
        maintenance=frozenset(name for name, entry in config.hosts.items() if entry.maintenance),
        fenceable=frozenset(name for name, entry in config.hosts.items() if entry.fence),
        failover_host=failover_host(config.settings),
        settings=ha_settings(config.settings, gateway),
        removed=config.removed,
    )


def default_gateway(address: str, routes: Path = Path("/proc/net/route")) -> str | None:
    """The default gateway that lies in the network of ``address``, or the only one; None if there is none."""
    gateways: list[tuple[str, str]] = []
    local: list[tuple[str, int, int]] = []
    for line in routes.read_text().splitlines()[1:]:
        words = line.split()
        device, target, gateway, mask = words[0], int(words[1], 16), int(words[2], 16), int(words[7], 16)
        if target == 0 and mask == 0 and gateway:
            gateways.append((device, _dotted(gateway)))
        elif not gateway:
            local.append((device, target, mask))
    own = _number(address)
    devices = {device for device, target, mask in local if own & mask == target}
    return next((gateway for device, gateway in gateways if device in devices), None)


def _number(address: str) -> int:
    """As /proc/net/route prints it: the bytes the other way round."""
    return int.from_bytes(bytes(int(part) for part in address.split(".")), "little")


def _dotted(number: int) -> str:
    return ".".join(str(byte) for byte in number.to_bytes(4, "little"))
