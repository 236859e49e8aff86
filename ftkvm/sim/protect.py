"""A protect operation in the simulator: journal, secondary, record, COLO; or undone. Only what matters for go-live."""

from typing import TYPE_CHECKING

from ftkvm.core import pair as core
from ftkvm.core.pair import QemuState, Winner
from ftkvm.core.reasons import Reason
from ftkvm.keeper.model import PairSpec, PeerSpec
from ftkvm.sim.keeper import UUID
from ftkvm.sim.storage import Files, OperationDoc

if TYPE_CHECKING:
    from ftkvm.sim.agent import Agent


def spec_of(record: core.PairRecord, me: str) -> PairSpec:
    """What a side tells its keeper when an epoch begins."""
    primary = record.primary == me
    peer = PeerSpec(record.secondary if primary else record.primary, "10.0.0.1", 7444)
    return PairSpec(UUID, "vm1", record.epoch, "primary" if primary else "secondary", peer, ("vnet0",), "running")


class Protecting:
    """A protect operation, cut down to what matters for go-live: journal, secondary, record, COLO; or undone."""

    def __init__(self, agent: "Agent", doc: OperationDoc) -> None:
        self.agent = agent
        self.doc = doc
        self.phase = core.OperationPhase.PREPARING
        self.record = core.PairRecord(doc.epoch, doc.owner, doc.target)

    def _mine(self) -> bool:
        return self.agent.protecting is self

    def start(self) -> None:
        """Journal first."""
        doc = self.doc
        self.agent.after(6000, 6000, self._too_late)

        def write(files: Files) -> object:
            files.operation = doc
            return doc

        self.agent.ask(write, lambda _: self._prepare())

    def _prepare(self) -> None:
        if self._mine() and self.phase is core.OperationPhase.PREPARING:
            agent = self.agent
            agent.world.tell(agent.host, self.doc.target, lambda other: other.prepare(agent.host, self.doc))

    def copied(self) -> None:
        """The secondary waits; memory is copied, then the record is written."""
        self.agent.after(50, 400, self._write_record)

    def _write_record(self) -> None:
        if not self._mine() or self.phase is not core.OperationPhase.PREPARING:
            return
        record = self.record
        self.agent.ask(lambda files: files.records.setdefault(record.epoch, record), self._written)

    def _written(self, found: object) -> None:
        if not self._mine() or self.phase is not core.OperationPhase.PREPARING:
            return
        agent, copy = self.agent, self.agent.copy
        if found != self.record or copy is None or copy.state is not QemuState.PLAIN:
            self.undo()
            return
        agent.record, agent.absent = self.record, self.record.epoch
        agent.keeper.set_pair(spec_of(self.record, agent.host.name))
        agent.after(5, 40, self._commit)

    def _commit(self) -> None:
        """COLO runs, or it does not."""
        if not self._mine() or self.phase is not core.OperationPhase.PREPARING:
            return
        guest, copy = self.agent.world.guest, self.agent.copy
        if copy is None or not guest.start_colo(copy, self.doc.target, self.doc.epoch):
            self.undo()
            return
        self.phase = core.OperationPhase.COMMITTED
        self._finish()

    def _finish(self) -> None:
        doc = self.doc

        def clear(files: Files) -> object:
            if files.operation == doc:
                files.operation = None
            return None

        self.agent.ask(clear)
        self.agent.operation = None
        self.agent.protecting = None

    def _too_late(self) -> None:
        if self._mine() and self.phase is core.OperationPhase.PREPARING:
            self.undo()

    def recover(self) -> None:
        """A restarted agent finds the journal: if COLO runs in this epoch it was committed, else it is undone."""
        copy, record = self.agent.copy, self.agent.record
        began = record is not None and record.epoch >= self.doc.epoch
        if copy is None or (began and copy.state is QemuState.PRIMARY):
            self._finish()
        else:
            self.undo()

    def undo(self) -> None:
        """Before the commit point: win the epoch if its record may exist, then take the secondary away."""
        if not self._mine():
            return
        self.phase = core.OperationPhase.UNDOING
        agent, epoch = self.agent, self.doc.epoch
        agent.retry_at = agent.host.kernel_now() + 500
        winner = agent.known.get(epoch)
        if winner is None:
            agent.ask(self._end_epoch, self._ended)
            agent.after(1500, 1500, self.undo)
            return
        if winner.host == agent.host.name:
            if agent.keeper.spec is not None and agent.keeper.spec.epoch <= epoch and agent.copy is not None:
                agent.solo(epoch, agent.keeper.spec)
            agent.world.tell(agent.host, self.doc.target, lambda other: other.told(epoch))
            self._finish()
        else:
            self._finish()

    def _end_epoch(self, files: Files) -> object:
        """One round trip here; the real agent reads the record, then creates the winner file."""
        if self.doc.epoch not in files.records:
            return None
        return files.win(self.doc.epoch, Winner(self.agent.host.name, Reason.PROTECT_UNDONE))

    def _ended(self, found: object) -> None:
        if not self._mine():
            return
        agent = self.agent
        if isinstance(found, Winner):
            agent.known[self.doc.epoch] = found
            self.undo()
            return
        agent.world.tell(agent.host, self.doc.target, lambda other: other.told(self.doc.epoch))
        self._finish()
