"""QEMUs of ordinary VMs on simulated hosts, and what must never be: two of one VM."""

from dataclasses import dataclass, field

from ftkvm.sim.ha.host import Host


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class Qemu:
    """One process. It ends with its host's power; a freeze does not end it."""

    uuid: str
    host: Host
    boot: int
    memory_mb: int
    since: int
    role: str = "solo"

    @property
    def alive(self) -> bool:
        return self.host.up and self.host.boot == self.boot


_NONE: list[Qemu] = []


@dataclass
class Hypervisors:
    """All QEMUs of the cluster, by VM."""

    running: dict[str, list[Qemu]] = field(default_factory=dict)
    by_host: dict[str, list[Qemu]] = field(default_factory=dict)

    def of(self, uuid: str) -> list[Qemu]:
        """The living QEMUs of a VM."""
        found = [qemu for qemu in self.running.get(uuid, []) if qemu.alive]
        self.running[uuid] = found
        return found

    def on(self, host: Host) -> list[Qemu]:
        """A list that is never changed in place: as long as it is the same one, the same QEMUs live."""
        there = self.by_host.get(host.name, _NONE)
        # those of one host live and die together, with its boot; what ended alone was taken out
        if there and not there[-1].alive:
            there = self.by_host[host.name] = _NONE
        return there

    def start(self, uuid: str, host: Host, memory_mb: int, now: int) -> Qemu:
        """A QEMU begins to run the VM.

        :raises Violation: another one is alive, on a frozen host too: that may thaw and write
        """
        others = self.of(uuid)
        if others:
            where = ", ".join(f"{each.host.name}{' (frozen)' if each.host.frozen else ''}" for each in others)
            raise Violation(f"{uuid} is started on {host.name} while it runs on {where}")
        made = Qemu(uuid, host, host.boot, memory_mb, now)
        self.running[uuid].append(made)
        self.by_host[host.name] = [*self.on(host), made]
        return made

    def set_role(self, qemu: Qemu, role: str) -> None:
        """It becomes a copy of a pair, or goes on alone."""
        qemu.role = role
        self.by_host[qemu.host.name] = [*self.on(qemu.host)]  # a new list: who looked at the old one looks again

    def end(self, qemu: Qemu) -> None:
        if qemu in self.running.get(qemu.uuid, []):
            self.running[qemu.uuid].remove(qemu)
            self.by_host[qemu.host.name] = [each for each in self.by_host[qemu.host.name] if each is not qemu]
