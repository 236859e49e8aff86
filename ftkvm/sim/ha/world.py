"""The simulated cluster: what connects its hosts, what the checker watches, what a person or fate does to it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ftkvm.core.ha import machine as production
from ftkvm.core.ha import model as m
from ftkvm.sim.clock import Clock
from ftkvm.sim.ha.agent import Agent, Machine
from ftkvm.sim.ha.host import Host
from ftkvm.sim.ha.pairs import Pairs
from ftkvm.sim.ha.qemu import Hypervisors, Violation
from ftkvm.sim.ha.storage import Files, Storage

GATEWAY = "gateway"
BOOT_MS = (15_000, 40_000)
AGENT_RESTART_MS = (500, 3_000)


@dataclass
class Shape:
    """What a cluster is made of. ``watchdogs``: hosts that have one; ``fences``: hosts with a power switch."""

    hosts: int = 3
    vms: int = 6
    networks: tuple[str, ...] = ("management",)
    watchdogs: bool | tuple[str, ...] = True
    fences: tuple[str, ...] = ()
    drift: float = 0.0
    settings: m.HaSettings = field(default_factory=lambda: m.HaSettings(isolation_addresses=(GATEWAY,)))
    vm_memory_mb: int = 512
    failover_host: str | None = None


def step(state: object | None, seen: m.Seen) -> m.Turn:
    """The production machine."""
    return production.start(seen) if state is None else production.turn(state, seen)


class World:
    """Everything there is, and what is watched."""

    def __init__(self, seed: int, shape: Shape, machine: Machine = step) -> None:
        self.clock = Clock(seed)
        self.shape, self.machine = shape, machine
        names = [f"h{number}" for number in range(1, shape.hosts + 1)]
        drift = shape.drift
        self.hosts = {name: Host(name, self.clock, drift=1 + self.clock.rng.uniform(-drift, drift)) for name in names}
        for host in self.hosts.values():
            host.watchdog.present = shape.watchdogs is True or (
                shape.watchdogs is not False and host.name in shape.watchdogs
            )
        self.storage = Storage(self.clock, self.hosts)
        self.qemus = Hypervisors()
        self.pairs = Pairs(self.clock, self.storage, self.qemus)
        self.agents: dict[str, Agent] = {}
        self.maintenance: set[str] = set()
        self.removed: dict[str, str] = {}  # hosts taken out as dead, with the boot of their last heartbeat
        self.settings = shape.settings
        self.cut: set[tuple[str, str, str]] = set()  # (from, to, network); "*" is everybody, GATEWAY the gateway
        self.gateway_answers = True
        self.bad_starts: dict[str, int] = {}  # VM → how many of its next starts fail
        self.deaf_guests: set[str] = set()  # guests that do not shut down when asked
        self.log: list[tuple[int, str, m.Event]] = []
        self.started: list[tuple[int, str, str, str]] = []  # (when, coordinator, VM, host) of every start asked for
        self._cluster: m.Cluster | None = None
        self._make_vms(shape.vms)
        self.storage.files.owner_changed = self.check
        for name in names:
            self.agents[name] = Agent(self.hosts[name], self)
        self.clock.after(200, 200, self._watch)

    def _make_vms(self, count: int) -> None:
        names, memory = list(self.hosts), self.shape.vm_memory_mb
        for number in range(1, count + 1):
            host = self.hosts[names[number % len(names)]]
            uuid = f"vm{number}"
            owner = m.Owner(1, host.name, host.boot_id)
            priority = (m.Priority.HIGH, m.Priority.MEDIUM, m.Priority.LOW)[number % 3]
            self.storage.files.vms[uuid] = m.Vm(uuid, uuid, True, owner, priority, cpu_mhz=100, memory_mb=memory)
            self.qemus.start(uuid, host, memory, 0)

    # ------------------------------------------------------------------------------------ what agents reach

    def cluster(self) -> m.Cluster:
        if self._cluster is None:
            self._cluster = m.Cluster(
                tuple(name for name in self.hosts if name not in self.removed),
                frozenset(self.maintenance),
                frozenset(self.shape.fences),
                self.shape.failover_host,
                self.settings,
                dict(self.removed),
            )
        return self._cluster

    def changed(self) -> None:
        """The configuration has changed."""
        self._cluster = None

    def connected(self, sender: str, receiver: str, network: str) -> bool:
        if not self.cut:
            return True
        ways = ((sender, receiver), (sender, "*"), ("*", receiver))
        return not any((one, other, network) in self.cut for one, other in ways)

    def send_beat(self, sender: Agent) -> None:
        """One beat to every other host over every network."""
        name, capacity = sender.host.name, sender.capacity()
        solo = sum(1 for vm in sender.local() if vm.role == "solo")
        same: dict[tuple[int, str], m.Beats] = {}

        def arrive() -> None:
            for other, agent in self.agents.items():
                if other == name or not agent.alive or not agent.host.runs or agent.boot != agent.host.boot:
                    continue
                for network in self.shape.networks:
                    if not self.cut or self.connected(name, other, network):
                        agent.heard(name, network, capacity, solo, same)

        self.clock.after(1, 8, arrive)

    def ask_peer(self, sender: Host, receiver: str, message: Callable[[Agent], None]) -> bool:
        """Carry a message to a host's agent; False: it cannot be reached now."""
        agent, network = self.agents[receiver], self.shape.networks[0]
        there = agent.host.up and agent.alive and agent.boot == agent.host.boot
        if sender.name != receiver and not self.connected(sender.name, receiver, network):
            return False
        if not there:
            return False
        agent.after(1, 10, lambda: message(agent))
        return True

    def pings(self, sender: Host, address: str) -> bool:
        """A kernel answers pings also while its processes are frozen."""
        network = self.shape.networks[0]
        if address not in self.hosts:
            return self.gateway_answers and self.connected(sender.name, GATEWAY, network)
        there = self.connected(sender.name, address, network) and self.connected(address, sender.name, network)
        return self.hosts[address].up and there

    def fence(self, host: str, done: Callable[[bool], None]) -> None:
        works = host in self.shape.fences and self.clock.rng.random() > 0.1

        def act() -> None:
            if works:
                self.crash(host)
            done(works)

        self.clock.after(500, 4000, act)

    def start_fails(self, uuid: str, host: str) -> bool:
        left = self.bad_starts.get(uuid, 0)
        self.bad_starts[uuid] = max(0, left - 1)
        return left > 0

    def guest_shuts_down_ms(self, uuid: str) -> int | None:
        return None if uuid in self.deaf_guests else self.clock.rng.randint(500, 20_000)

    # ------------------------------------------------------------------------------------------- the checker

    def tell(self, agent: Agent, event: m.Event) -> None:
        agent.stint += event.kind == "coordinator"
        self.log.append((self.clock.now, agent.host.name, event))

    def acts(self, agent: Agent, action: m.Action) -> None:
        """At most one coordinator acts: who starts or fences holds the newest lease at that moment. And it starts a VM
        anew only when it has heard what became of its start before, since it began to coordinate. Whoever begins, be it
        the same host (seed 205963), even with the same lease after it could not act for a while (seed 405282), begins
        with what the datastore says.

        :raises Violation: it does not
        """
        if not isinstance(action, m.StartVm | m.Fence):
            return
        lease, host = self.storage.files.lease, agent.host
        if lease is None or (lease.host, lease.boot_id) != (host.name, host.boot_id):
            raise Violation(f"{host.name} acts ({action}), the lease is {lease}")
        if isinstance(action, m.StartVm):
            _before, stint = agent.starting.get(action.uuid, (None, 0))
            if stint == agent.stint:
                raise Violation(
                    f"{host.name} asks for two starts of {action.uuid} at once, the second on {action.host}"
                )
            agent.starting[action.uuid] = action, agent.stint
            self.started.append((self.clock.now, host.name, action.uuid, action.host))

    def check(self, uuid: str) -> None:
        """Whoever runs a VM owns it; looked at whenever an owner file or a QEMU is made.

        :raises Violation: it is not so
        """
        owner = self.storage.files.vms[uuid].owner
        for qemu in self.qemus.running.get(uuid, ()):
            if qemu.alive and (owner.host, owner.boot_id) != (qemu.host.name, qemu.host.boot_id):
                raise Violation(f"{uuid} runs on {qemu.host.name}, its owner file says {owner}")

    def began(self, uuid: str) -> None:
        """A QEMU was started.

        :raises Violation: its host does not own the VM
        """
        self.check(uuid)

    def _watch(self) -> None:
        for host in self.hosts.values():
            dog = host.watchdog
            if host.up and dog.armed_until is not None and self.clock.now >= dog.armed_until and not dog.broken:
                self.tell(self.agents[host.name], m.Event("watchdog", f"the watchdog ends {host.name}", host.name))
                self.crash(host.name)
                self.clock.after(*BOOT_MS, lambda name=host.name: self.start(name))  # type: ignore[misc]
        self.clock.after(200, 200, self._watch)

    # -------------------------------------------------------------------------------------------- what happens

    def crash(self, name: str) -> None:
        """Power loss."""
        self.agents[name].alive = False
        self.hosts[name].power_off()

    def start(self, name: str) -> None:
        """Power on; does nothing to a host that is up."""
        if not self.hosts[name].up:
            self.hosts[name].power_on()
            self.agents[name] = Agent(self.hosts[name], self)

    def kill_agent(self, name: str) -> None:
        """Its process dies and is started again."""
        agent = self.agents[name]
        if agent.alive and self.hosts[name].runs:
            agent.alive = False
            self.hosts[name].after(*AGENT_RESTART_MS, lambda: self._restart_agent(name))

    def _restart_agent(self, name: str) -> None:
        if not self.agents[name].alive:
            fresh = Agent(self.hosts[name], self)
            fresh.watchdog_ms = (
                0 if self.hosts[name].watchdog.armed_until is None else (self.hosts[name].watchdog.timeout_ms)
            )
            self.agents[name] = fresh

    def freeze(self, name: str) -> None:
        if self.hosts[name].up:
            self.hosts[name].frozen = True

    def thaw(self, name: str) -> None:
        if self.hosts[name].frozen:
            self.hosts[name].thaw()

    def cut_off(self, name: str, network: str, on: bool) -> None:
        """Pull or plug the host's cable of one network."""
        for way in ((name, "*", network), ("*", name, network)):
            (self.cut.add if on else self.cut.discard)(way)

    def kill_qemu(self, uuid: str) -> None:
        for qemu in self.qemus.of(uuid):
            self.qemus.end(qemu)

    def power_off_guest(self, uuid: str) -> None:
        """The guest shuts itself down; the agent of its host notes that nobody wants it to run."""
        self.pairs.guest_off(uuid)
        for qemu in self.qemus.of(uuid):
            if qemu.host.runs and self.agents[qemu.host.name].alive:
                self.qemus.end(qemu)
                host = qemu.host

                def note(files: Files, host: Host = host) -> None:
                    owner = files.vms[uuid].owner
                    if (owner.host, owner.boot_id) == (host.name, host.boot_id):
                        files.power(uuid, False)
                        files.claim_owner(uuid, m.Owner(owner.number + 1, None, host.boot_id, m.OwnerWhy.STOPPED))

                self.storage.ask(host, note, lambda _done: None, lambda: None)

    def set_maintenance(self, name: str, on: bool) -> None:
        (self.maintenance.add if on else self.maintenance.discard)(name)
        self.changed()

    def remove_dead(self, name: str) -> None:
        """``ftkvm host remove --dead``."""
        heartbeat = self.storage.files.heartbeats.get(name)
        self.removed[name] = heartbeat.boot_id if heartbeat is not None else ""
        self.changed()

    def add(self, name: str) -> None:
        """``ftkvm host add`` of a host that was removed."""
        self.removed.pop(name, None)
        self.changed()

    def set_settings(self, **changed: object) -> None:
        self.settings = replace(self.settings, **changed)  # type: ignore[arg-type]
        self.changed()

    def coordinator(self) -> str | None:
        """Who holds the newest lease and lives under the boot id it was taken with."""
        lease = self.storage.files.lease
        if lease is None or lease.host is None or self.hosts[lease.host].boot_id != lease.boot_id:
            return None
        return lease.host if self.hosts[lease.host].up else None

    def not_running(self) -> list[str]:
        """VMs that are wanted and run nowhere."""
        return [uuid for uuid, vm in self.storage.files.vms.items() if vm.power and not self.qemus.of(uuid)]

    def summary(self) -> list[str]:
        """For people: who coordinates, what runs where, what waits."""
        lines = [f"coordinator: {self.coordinator() or 'nobody'}; primaries: {self._primaries()}"]
        for uuid, vm in self.storage.files.vms.items():
            where = ", ".join(qemu.host.name for qemu in self.qemus.of(uuid)) or ("nowhere" if vm.power else "off")
            lines.append(
                f"{uuid} ({vm.priority}): {where}; owner {vm.owner.number} {vm.owner.host} {vm.owner.why}{_epoch(vm)}"
            )
        who = self.coordinator()
        status = self.agents[who].status if who is not None else None
        lines += [f"waits: {each.name}: {each.why}" for each in status.waiting] if status is not None else []
        lines += [f"{view.host} is {view.state}: {view.why}" for view in status.hosts] if status is not None else []
        return lines

    def _primaries(self) -> str:
        roles = self.storage.files.roles
        return ", ".join(roles.primaries) if roles is not None else "none"


def _epoch(vm: m.Vm) -> str:
    """What became of a pair, for people."""
    if vm.ft is None:
        return ""
    won = "nobody goes live" if vm.ft.nobody else f"won by {vm.ft.winner}" if vm.ft.winner else "open"
    return f"; pair of {vm.ft.primary} and {vm.ft.secondary}: {won}"
