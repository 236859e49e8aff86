"""Where a VM is restarted (HA-07): the host with most unreserved memory and CPU, that can take it at all. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ftkvm.core.ha.model import HostCapacity, Vm


@dataclass
class Room:
    """What is left on the hosts that may be used, less what was given to them just now."""

    capacities: Mapping[str, HostCapacity]
    failover_host: str | None = None
    _given: dict[str, tuple[int, int]] = field(default_factory=dict)

    def give(self, host: str, cpu_mhz: int, memory_mb: int) -> None:
        """Count a VM that the host's own figures may not hold yet."""
        cpu, memory = self._given.get(host, (0, 0))
        self._given[host] = cpu + cpu_mhz, memory + memory_mb

    def free(self, host: str) -> tuple[int, int]:
        """Unreserved memory (MB) and CPU (MHz)."""
        cpu, memory = self._given.get(host, (0, 0))
        return self.capacities[host].memory_mb - memory, self.capacities[host].cpu_mhz - cpu

    def place(self, vm: Vm, avoid: Iterable[str] = ()) -> str | None:
        """The best host for the VM, or None. The failover host first; ``avoid``: only if no other one will do."""
        fitting = [host for host in self.capacities if self._why_not(host, vm) is None]
        avoided = set(avoid)
        return min(fitting, key=lambda host: (host in avoided, host != self.failover_host, *self._rank(host)),
                   default=None)  # fmt: skip

    def why_nowhere(self, vm: Vm) -> str:
        """Why no host can take the VM, host by host."""
        if not self.capacities:
            return "no other host is there that could take it"
        return "; ".join(f"{host}: {self._why_not(host, vm)}" for host in sorted(self.capacities))

    def _rank(self, host: str) -> tuple[int, int, str]:
        memory, cpu = self.free(host)
        return -memory, -cpu, host

    def _why_not(self, host: str, vm: Vm) -> str | None:
        capacity = self.capacities[host]
        if vm.ft is not None and vm.ft.home not in (None, host):
            return f"its disks are on {vm.ft.home}"
        if not capacity.compatible:
            return capacity.why_not or "it takes no VMs"
        memory, cpu = self.free(host)
        if memory < vm.memory_mb:
            return f"{memory} MB free, {vm.memory_mb} MB needed"
        if cpu < vm.cpu_mhz:
            return f"{cpu} MHz free, {vm.cpu_mhz} MHz needed"
        if not vm.bridges <= capacity.bridges:
            return f"no bridge {', '.join(sorted(vm.bridges - capacity.bridges))}"
        return None
