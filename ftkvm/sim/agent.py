"""The agent of one simulated host: observes its own side, asks the production core, acts. Everything takes time.

An agent that is killed loses its memory and nothing else: what it asked of the datastore may still happen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ftkvm.core import pair as core
from ftkvm.core.pair import Decision, FtSettings, Observation, QemuState, Winner
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason
from ftkvm.keeper.model import PairSpec
from ftkvm.sim.clock import Clock
from ftkvm.sim.guest import Copy, Guest
from ftkvm.sim.host import Host
from ftkvm.sim.keeper import Keeper
from ftkvm.sim.protect import Protecting, spec_of
from ftkvm.sim.storage import Files, OperationDoc, Storage

Decide = Callable[[Observation, FtSettings], Decision]
Reading = tuple[core.PairRecord | None, Winner | None, OperationDoc | None]
READ_MS = 300
ASK_TIMEOUT_MS = 1000


class World(Protocol):
    """What an agent can reach."""

    clock: Clock
    guest: Guest
    storage: Storage
    decide: Decide
    settings: FtSettings
    trust_old_answers: bool  # a deliberate break

    def tell(self, sender: Host, receiver: str, message: Callable[["Agent"], None]) -> None:
        """Carry a message to another agent over the management network, perhaps."""

    def candidates(self, me: str) -> list[str]:
        """Hosts that could take a secondary now."""

    def went_live(self, copy: Copy, epoch: int, how: str) -> None:
        """A copy has become the VM. The checker looks."""


@dataclass
class Ask:
    """A question to the datastore that has not been answered."""

    epoch: int
    sent: int


class Agent:
    """One life of an agent process on one host."""

    def __init__(self, host: Host, keeper: Keeper, world: World) -> None:
        self.host = host
        self.keeper = keeper
        self.world = world
        self.alive = True
        self.boot = host.boot
        self.started = host.kernel_now()
        self.record: core.PairRecord | None = None
        self.record_known = False
        self.absent: int | None = None  # epoch whose winner file was read as absent
        self.known: dict[int, Winner] = {}
        self.operation: OperationDoc | None = None
        self.ok_since: int | None = None
        self.ran_as_primary: int | None = None  # the last epoch in which it saw it
        self.absent_since: int | None = None
        self.asked: Ask | None = None
        self.reading: int | None = None
        self.busy = False
        self.protecting: Protecting | None = None
        self.retry_at = 0
        self.last: Decision | None = None
        self._turn()

    # ---------------------------------------------------------------------------------------------- time

    def after(self, low_ms: int, high_ms: int, event: Callable[[], None]) -> None:
        """Something this process does later, if it still lives then."""
        self.host.after(low_ms, high_ms, lambda: event() if self.alive else None)

    def _turn(self) -> None:
        self.step()
        recheck = self.last.recheck_ms if self.last else None
        wait = 50 if self.keeper.spec is not None or self.copy is not None else 250
        self.after(1, min(wait, recheck) if recheck else wait, self._turn)

    @property
    def copy(self) -> Copy | None:
        return self.world.guest.on(self.host)

    def ask(self, work: Callable[[Files], object], reply: Callable[[object], None] | None = None) -> None:
        """Ask the datastore; the answer comes late, twice as late, or never."""
        self.world.storage.ask(self.host, work, lambda found: reply(found) if reply and self.alive else None)

    # ------------------------------------------------------------------------------------------- observe

    def observe(self) -> Observation:
        """QEMU first, then what the datastore said last."""
        now, copy, spec = self.host.kernel_now(), self.copy, self.keeper.spec
        datastore = self.keeper.datastore()
        if datastore is not core.DatastoreState.OK:
            self.ok_since = None
        elif self.ok_since is None:
            self.ok_since = now
        record = self.record
        winner: core.WinnerState = core.WinnerUnknown()
        if record is not None:
            absent = core.WinnerAbsent() if self.absent == record.epoch else winner
            winner = self.known.get(record.epoch, absent)
        in_colo = copy is not None and copy.is_in_colo()
        shut = spec is not None and spec.qemu == "shutdown"
        qemu = QemuState.SHUT_DOWN if shut else copy.state if copy else QemuState.ABSENT
        secondary = record is not None and record.secondary == self.host.name
        epoch = record.epoch if record is not None else None
        if qemu is QemuState.PRIMARY:
            self.ran_as_primary = epoch
        gone = qemu is QemuState.ABSENT and epoch is not None and self.ran_as_primary == epoch
        self.absent_since = (self.absent_since or now) if gone else None
        return Observation(
            now_ms=now,
            me=self.host.name,
            boot_id=self.host.boot_id,
            record=record,
            record_known=self.record_known,
            winner=winner,
            qemu=qemu,
            absent_ms=0 if self.absent_since is None else now - self.absent_since,
            qemu_epoch=copy.epoch if copy else spec.epoch if spec else None,
            colo_exit_age_ms=now - copy.exited_at if copy and in_colo and copy.exited else None,
            checkpoint_age_ms=now - max(copy.last_checkpoint, self.started) if copy and in_colo else None,
            replication_error=(copy is not None and copy.replication_error) or (secondary and self.keeper.mount_failed),
            own_disk_error=copy is not None and copy.own_disk_error,
            hold_alive=copy is None or copy.hold_alive,
            peer=self.keeper.evidence(),
            datastore=datastore,
            datastore_ok_ms=0 if self.ok_since is None else now - self.ok_since,
            operation=self._operation(record),
        )

    def _operation(self, record: core.PairRecord | None) -> core.Operation | None:
        if self.protecting is not None:
            return core.Operation("protect", self.protecting.phase)
        doc = self.operation
        if doc is None or doc.epoch in self.known or (record is not None and record.epoch > doc.epoch):
            return None
        return core.Operation(doc.kind, core.OperationPhase.PREPARING)

    def read(self) -> None:
        """One reading at a time; one that does not come back is given up."""
        now = self.host.kernel_now()
        if self.reading is not None and now - self.reading < ASK_TIMEOUT_MS:
            return
        self.reading = now
        self.ask(_read, self._have_read)

    def _have_read(self, found: object) -> None:
        assert isinstance(found, tuple)
        record, winner, operation = found
        self.reading, self.record_known = None, True
        if record is not None and (self.record is None or record.epoch >= self.record.epoch):
            self.record = record
            self.absent = record.epoch if winner is None else None
            if winner is not None:
                self.known[record.epoch] = winner
        self.operation = operation
        mine = operation is not None and operation.owner == self.host.name
        if mine and self.protecting is None and operation is not None and not self.busy:
            self.protecting = Protecting(self, operation)
            self.protecting.recover()

    # ----------------------------------------------------------------------------------------------- act

    def step(self) -> None:
        """One turn."""
        if self.reading is None or self.host.kernel_now() - self.reading > READ_MS:
            self.read()
        copy, spec = self.copy, self.keeper.spec
        if spec is not None:
            self._publish(copy, spec)
        if self.busy:
            return
        self.last = self.world.decide(self.observe(), self.world.settings)
        for action in self.last.actions:
            self._act(action)

    def _publish(self, copy: Copy | None, spec: PairSpec) -> None:
        """Say through the keeper what this QEMU is."""
        loaded = copy is not None and copy.state is QemuState.SECONDARY_LOADED
        said = "shutdown" if spec.qemu == "shutdown" else "gone" if copy is None else "loaded" if loaded else "running"
        if copy is not None and copy.guest_off:
            said = "shutdown"
        if said != spec.qemu:
            self.keeper.set_pair(replace(spec, qemu=said))  # type: ignore[arg-type]

    def shut_down(self) -> None:
        """SHUTDOWN of the guest was reported."""
        if self.keeper.spec is not None:
            self.keeper.set_pair(replace(self.keeper.spec, qemu="shutdown"))
        self.step()

    def _act(self, action: core.Action) -> None:
        match action:
            case core.Arbitrate(epoch, reason):
                self._arbitrate(epoch, reason)
            case core.EndEpochShutdown(epoch):
                self._arbitrate(epoch, Reason.GUEST_SHUTDOWN)
            case core.GoLive(epoch) | core.GoOnAlone(epoch):
                self._win(epoch, "promoted" if isinstance(action, core.GoLive) else "alone")
            case core.DestroyOwn(reason):
                self.destroy(reason)
            case core.TellPeerDestroy(epoch):
                self._tell(epoch)
            case core.ReProtect():
                self._protect()
            case core.Nothing(Reason.EPOCH_ENDED):
                self.keeper.drop_pair()

    def _arbitrate(self, epoch: int, reason: Reason) -> None:
        now = self.host.kernel_now()
        if self.asked is not None and self.asked.epoch == epoch and now - self.asked.sent < ASK_TIMEOUT_MS:
            return
        asked = self.asked = Ask(epoch, now)
        me = self.host.name

        def answered(found: object) -> None:
            assert isinstance(found, Winner)
            credited = self.record.epoch if self.world.trust_old_answers and self.record else asked.epoch
            self.known[credited] = found
            if self.asked is asked:
                self.asked = None
            self.step()

        self.ask(lambda files: files.win(epoch, Winner(me, reason)), answered)

    def _win(self, epoch: int, how: str) -> None:
        """Promote or go on alone: the gate first, then QEMU; the latter takes a moment."""
        copy, spec = self.copy, self.keeper.spec
        if copy is None:
            return
        self.busy = True
        self.solo(epoch, spec)

        def done() -> None:
            self.busy = False
            if copy.alive and copy.state is not QemuState.PLAIN:
                self.world.guest.leave_colo(copy)
                copy.state, copy.epoch = QemuState.PLAIN, epoch
                copy.stopped = copy.exited = False
                copy.replication_error = copy.own_disk_error = False
                self.world.went_live(copy, epoch, how)
                copy.hold_alive = True
                copy.release_all()
            self.step()

        self.after(2, 30, done)

    def solo(self, epoch: int, spec: PairSpec | None) -> None:
        if spec is None and self.record is not None:
            spec = spec_of(self.record, self.host.name)
        if spec is not None:
            self.keeper.set_pair(replace(spec, epoch=epoch, role="solo", won_epoch=epoch, qemu="running"))

    def destroy(self, reason: Reason) -> None:
        """SIGKILL; a process needs a moment to go."""
        copy = self.copy
        if copy is None:
            if self.keeper.spec is not None and self.keeper.spec.qemu == "shutdown":
                self.keeper.set_pair(replace(self.keeper.spec, qemu="gone"))
            return
        self.busy = True

        def done() -> None:
            self.busy = False
            self.world.guest.kill(copy, f"own:{reason}")
            spec = self.keeper.spec
            if spec is not None and (copy.epoch is None or spec.epoch <= copy.epoch):
                self.keeper.set_pair(replace(spec, qemu="gone"))

        self.after(1, 6, done)

    def _tell(self, epoch: int) -> None:
        record = self.record
        if record is None or record.epoch != epoch:
            return
        other = record.secondary if record.primary == self.host.name else record.primary
        self.world.tell(self.host, other, lambda agent: agent.told(epoch))

    def told(self, epoch: int) -> None:
        """Another agent says that this host's copy has lost."""
        copy, winner = self.copy, self.known.get(epoch)
        if winner is not None and winner.host == self.host.name and winner.reason not in NOBODY_GOES_LIVE:
            return
        if copy is not None and copy.epoch is not None and copy.epoch <= epoch and not self.busy:
            self.destroy(Reason.PEER_WON)

    # -------------------------------------------------------------------------------------------- protect

    def _protect(self) -> None:
        if self.protecting is not None or self.host.kernel_now() < self.retry_at:
            return
        hosts = self.world.candidates(self.host.name)
        if not hosts:
            return
        epoch = (self.record.epoch if self.record else 0) + 1
        doc = OperationDoc("protect", self.host.name, epoch, self.world.clock.rng.choice(hosts))
        self.protecting = Protecting(self, doc)
        self.protecting.start()

    def prepare(self, sender: Host, doc: OperationDoc) -> None:
        """Another host wants its secondary here."""
        if self.copy is not None or self.protecting is not None or self.busy:
            return
        if self.keeper.spec is not None and self.keeper.spec.epoch >= doc.epoch:
            return
        guest = self.world.guest
        copy = Copy(self.host, doc.epoch, QemuState.SECONDARY_LOADING, guest.out, boot=self.host.boot)
        guest.copies.append(copy)
        self.operation = doc
        self.keeper.set_pair(spec_of(core.PairRecord(doc.epoch, doc.owner, self.host.name), self.host.name))
        self.world.tell(self.host, doc.owner, lambda agent: agent.prepared(doc.epoch))

    def prepared(self, epoch: int) -> None:
        if self.protecting is not None and self.protecting.doc.epoch == epoch:
            self.protecting.copied()


def _read(files: Files) -> Reading:
    record = files.latest()
    return record, files.winners.get(record.epoch) if record else None, files.operation
