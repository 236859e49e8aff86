"""Runs the HA machine of one simulated host: observes, takes a turn, begins the actions, hands back their ends."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from ftkvm.core.ha import model as m
from ftkvm.sim.clock import Clock
from ftkvm.sim.ha.host import Host
from ftkvm.sim.ha.qemu import Hypervisors, Qemu
from ftkvm.sim.ha.storage import Files, Storage

Machine = Callable[[object | None, m.Seen], m.Turn]
START_TIMEOUT_MS = 30_000
READ_TIMEOUT_MS = 4_000
SILENT = m.Beats({})


class World(Protocol):
    """What an agent can reach."""

    clock: Clock
    storage: Storage
    qemus: Hypervisors
    machine: Machine

    def cluster(self) -> m.Cluster: ...
    def send_beat(self, sender: "Agent") -> None: ...
    def ask_peer(self, sender: Host, receiver: str, message: Callable[["Agent"], None]) -> bool: ...
    def pings(self, sender: Host, address: str) -> bool: ...
    def fence(self, host: str, done: Callable[[bool], None]) -> None: ...
    def acts(self, agent: "Agent", action: m.Action) -> None: ...
    def tell(self, agent: "Agent", event: m.Event) -> None: ...
    def start_fails(self, uuid: str, host: str) -> bool: ...
    def began(self, uuid: str) -> None: ...
    def guest_shuts_down_ms(self, uuid: str) -> int | None: ...


class Agent:
    """One life of an agent process. Killed, it loses its memory and nothing else."""

    def __init__(self, host: Host, world: World) -> None:
        self.host, self.world = host, world
        self.alive, self.boot = True, host.boot
        self.state: object | None = None
        self.beats: dict[str, m.Beats] = {}
        self.ended: list[m.Ended] = []
        self.busy: dict[str, str] = {}  # VM → what is done with it here
        self.under_way: set[str] = set()
        self.stint = 0  # how often it has begun to coordinate
        self.starting: dict[str, tuple[m.StartVm, int]] = {}  # VM → the start it asked for in which stint, not ended
        self.watchdog_ms = 0
        self.status: m.Status | None = None
        self._woken = False
        self._looked: list[Qemu] | None = None
        self._local: tuple[m.LocalVm, ...] = ()
        self._used_mb = 0
        self.after(1, 900, self._beat)

    # ---------------------------------------------------------------------------------------------- time

    def after(self, low_ms: int, high_ms: int, event: Callable[[], None]) -> None:
        """Something this process does later, if it still lives then."""
        self.host.after(low_ms, high_ms, lambda: event() if self.alive else None)

    def _beat(self) -> None:
        self.world.send_beat(self)
        self._turn()
        interval = round(self.world.cluster().settings.interval_ms / self.host.drift)
        self.after(interval, interval, self._beat)

    def wake(self) -> None:
        """Take a turn soon: something ended."""
        if not self._woken:
            self._woken = True
            self.after(5, 25, self._turn)

    # ------------------------------------------------------------------------------------------- observe

    def local(self) -> tuple[m.LocalVm, ...]:
        self._look()
        if not self.busy:
            return self._local
        there = {vm.uuid: vm for vm in self._local}
        for uuid, what in self.busy.items():
            if what == "start" and uuid not in there:
                there[uuid] = m.LocalVm(uuid, state="starting")
        return tuple(there.values())

    def _look(self) -> None:
        """Reckon again what follows from the QEMUs here, if they are not those of the last look."""
        qemus = self.world.qemus.on(self.host)
        if qemus is not self._looked:
            self._looked = qemus
            self._local = tuple(m.LocalVm(qemu.uuid, qemu.role) for qemu in qemus)
            self._used_mb = sum(qemu.memory_mb for qemu in qemus)

    def capacity(self) -> m.HostCapacity:
        self._look()
        mount = self.world.storage.mounts[self.host.name]
        fine = mount in ("ok", "slow")
        return m.HostCapacity(self.host.cpu_mhz, self.host.memory_mb - self._used_mb, compatible=fine, why_not=mount)

    def heard(
        self, sender: str, network: str, capacity: m.HostCapacity, solo_vms: int, same: dict[tuple[int, str], m.Beats]
    ) -> None:
        """A beat has arrived. ``same``: what others made of it; clocks that agree share it, for speed."""
        before, now = self.beats.get(sender, SILENT), self.host.now()
        alone = before.ping_answered is None and len({*before.networks, network}) == 1
        if not alone:
            networks = {**before.networks, network: now}
            self.beats[sender] = m.Beats(networks, before.ping_answered, solo_vms, capacity)
            return
        found = same.get((now, network))
        if found is None:
            found = same[now, network] = m.Beats({network: now}, None, solo_vms, capacity)
        self.beats[sender] = found

    # ----------------------------------------------------------------------------------------------- act

    def _turn(self) -> None:
        self._woken = False
        ended, self.ended = tuple(self.ended), []
        seen = m.Seen(
            self.host.now(), self.host.name, self.host.boot_id, self.world.cluster(), dict(self.beats), self.local(),
            self.watchdog_ms, ended, self.capacity(),
        )  # fmt: skip
        turn = self.world.machine(self.state, seen)
        self.state, self.status = turn.state, turn.status
        for event in turn.events:
            self.world.tell(self, event)
        for action in turn.actions:
            self.act(action)

    def end(self, action: m.Action, result: m.Result, value: object = None, code: str = "") -> None:
        """An action has ended; the machine hears of it once."""
        if isinstance(action, m.StartVm) and self.starting.get(action.uuid, (None, 0))[0] == action:
            del self.starting[action.uuid]
        self.ended.append(m.Ended(action, result, value, code))
        self.wake()

    def act(self, action: m.Action) -> None:
        """Begin an action."""
        self.world.acts(self, action)
        match action:
            case m.WriteHeartbeat(heartbeat):
                self._file(action, "heartbeat", lambda files: files.heartbeats.update({heartbeat.host: heartbeat}))
            case m.ReadHeartbeats():
                self._file(action, "read", _read)
            case m.ClaimLease(lease):
                self._file(action, f"lease{lease.term}", lambda files: files.claim_lease(lease))
            case m.ClaimRoles(roles):
                self._file(action, f"roles{roles.number}", lambda files: files.claim_roles(roles))
            case m.ReadVms(local):
                self._file(action, "vms", lambda files: self._vms(files, local))
            case m.Ping():
                self._ping(action)
            case m.PetWatchdog():
                self._pet()
            case m.StopVm():
                self._stop(action)
            case m.StartVm():
                self._ask_to_start(action)
            case m.Fence(host):
                self.world.fence(host, lambda off: self.end(action, m.Result.OK if off else m.Result.FAILED))

    def _file(self, action: m.Action, key: str, work: Callable[[Files], Any]) -> None:
        """A datastore operation, never two of one kind at once; one that takes too long is of unknown outcome."""
        if key in self.under_way:
            self.end(action, m.Result.FAILED, code="FTKVM-620")
            return
        self.under_way.add(key)
        open_ = [True]

        def close(result: m.Result, value: object = None) -> None:
            if result is not m.Result.UNKNOWN:
                self.under_way.discard(key)
            if open_[0] and self.alive:
                open_[0] = False
                if result is m.Result.OK and isinstance(action, m.WriteHeartbeat):
                    self._arm()
                self.end(action, result, value)

        self.world.storage.ask(self.host, work, lambda value: close(m.Result.OK, value), lambda: close(m.Result.FAILED))
        self.after(READ_TIMEOUT_MS, READ_TIMEOUT_MS, lambda: close(m.Result.UNKNOWN))

    def _vms(self, files: Files, local: bool) -> tuple[m.Vm, ...]:
        if not local:
            return tuple(files.vms.values())
        return tuple(vm for vm in files.vms.values() if vm.owner.host == self.host.name)

    def _ping(self, action: m.Ping) -> None:
        answered = tuple(address for address in action.addresses if self.world.pings(self.host, address))

        def done() -> None:
            if action.hosts:
                for name in answered:
                    before = self.beats.get(name, SILENT)
                    self.beats[name] = replace(before, ping_answered=self.host.now())
            self.end(action, m.Result.OK, answered)

        self.after(2, 20 if len(answered) == len(action.addresses) else 1000, done)

    def _arm(self) -> None:
        if self.host.watchdog.present and self.watchdog_ms == 0:
            self.watchdog_ms = self.host.watchdog.timeout_ms
            self._pet()

    def _pet(self) -> None:
        if self.watchdog_ms:
            self.host.watchdog.armed_until = self.world.clock.now + self.watchdog_ms

    # --------------------------------------------------------------------------------------- this host's VMs

    def _stop(self, action: m.StopVm) -> None:
        mine = [qemu for qemu in self.world.qemus.on(self.host) if qemu.uuid == action.uuid]
        if self.busy.get(action.uuid) and not action.power_off:
            self.end(action, m.Result.FAILED, code="FTKVM-501")
            return
        if action.owner is not None and (self.busy.get(action.uuid) or mine):
            self.end(action, m.Result.OK, "runs again")
            return
        self.busy[action.uuid] = "stop"
        takes = self.world.guest_shuts_down_ms(action.uuid)
        if action.power_off or not mine:
            self.after(5, 400, lambda: self._stopped(action, mine))
        elif takes is not None and takes < action.timeout_ms:
            self.after(takes, takes, lambda: self._stopped(action, mine))
        else:
            self.after(action.timeout_ms, action.timeout_ms + 400, lambda: self._stopped(action, mine))

    def _stopped(self, action: m.StopVm, mine: list[Qemu]) -> None:
        for qemu in mine:
            self.world.qemus.end(qemu)
        self.busy.pop(action.uuid, None)
        host = self.host

        def release(files: Files) -> bool:
            owner = files.vms[action.uuid].owner
            ours = owner.host == host.name and owner.boot_id == host.boot_id
            if ours and action.owner in (None, owner.number):
                files.claim_owner(action.uuid, m.Owner(owner.number + 1, None, host.boot_id, action.release))
            return True

        self._file(action, f"release {action.uuid}", release)

    def _ask_to_start(self, action: m.StartVm) -> None:
        open_ = [True]

        def close(result: m.Result, code: str = "") -> None:
            if open_[0] and self.alive:
                open_[0] = False
                self.end(action, result, code=code)

        def answer(result: m.Result, code: str = "") -> None:
            self.world.ask_peer(self.world_host(action.host), self.host.name, lambda _agent: close(result, code))

        if not self.world.ask_peer(self.host, action.host, lambda agent: agent.start_here(action, answer)):
            self.after(300, 1000, lambda: close(m.Result.FAILED, "FTKVM-202"))
        self.after(START_TIMEOUT_MS, START_TIMEOUT_MS, lambda: close(m.Result.UNKNOWN))

    def world_host(self, name: str) -> Host:
        return self.world.storage.hosts[name]

    def start_here(self, action: m.StartVm, answer: Callable[..., None]) -> None:
        """Take the VM's next owner file, then begin its QEMU."""
        if self.busy.get(action.uuid) or any(q.uuid == action.uuid for q in self.world.qemus.on(self.host)):
            answer(m.Result.FAILED, "FTKVM-103")
            return
        self.busy[action.uuid] = "start"
        mine = m.Owner(action.owner + 1, self.host.name, self.host.boot_id, m.OwnerWhy.RESTARTED)

        def take(files: Files) -> object:
            """A pair that nobody has won is won first, so that no copy of it goes live (``ColdStart.end_epoch``)."""
            if action.cold_epoch is not None:
                won = files.win_epoch(action.uuid, str(action.cold_winner), mine.boot_id, nobody=True)
                if not won.nobody:
                    return won
            return files.claim_owner(action.uuid, mine)

        def claimed(owner: object) -> None:
            if isinstance(owner, m.FtEpoch):
                self.busy.pop(action.uuid, None)
                answer(m.Result.FAILED, "FTKVM-118")
                return
            if owner != mine:
                self.busy.pop(action.uuid, None)
                answer(m.Result.FAILED, "FTKVM-103")
                return
            self.after(200, 1500, begin)

        def begin() -> None:
            if self.busy.pop(action.uuid, None) != "start":  # stopped meanwhile: its owner file is released by that
                answer(m.Result.FAILED, "FTKVM-106")
                return
            if self.world.start_fails(action.uuid, self.host.name):
                self.busy[action.uuid] = "start"
                self.world.storage.ask(self.host, give_back, refused, lambda: refused(False))
                return
            memory = self.world.storage.files.vms[action.uuid].memory_mb
            self.world.qemus.start(action.uuid, self.host, memory, self.world.clock.now)
            self.world.began(action.uuid)
            self.world.storage.files.note_failed(action.uuid, 0)
            answer(m.Result.OK)

        def give_back(files: Files) -> bool:
            """libvirt refused, nothing runs: another host may try (``Vms._not_started``)."""
            owner = m.Owner(mine.number + 1, None, mine.boot_id, m.OwnerWhy.RELEASED)
            if files.claim_owner(action.uuid, owner) != owner:
                return False
            files.note_failed(action.uuid, action.attempt)
            return True

        def refused(_given_back: bool) -> None:
            self.busy.pop(action.uuid, None)
            answer(m.Result.FAILED, "FTKVM-106")

        def failed() -> None:
            self.busy.pop(action.uuid, None)
            answer(m.Result.FAILED, "FTKVM-302")

        self.world.storage.ask(self.host, take, claimed, failed)


def _read(files: Files) -> m.HeartbeatsRead:
    return m.HeartbeatsRead(dict(files.heartbeats), files.lease, files.roles, files.corrupt)
