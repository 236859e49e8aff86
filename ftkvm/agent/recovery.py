"""What an agent does with what the one before it left half done, or it itself could not undo.

The journal on the datastore and QEMU itself are all it knows. A pair that runs is left alone; a protect that did not
reach its commit point is undone; one that did goes forward if lockstep was reached, else its epoch is ended by its
winner file; a turn-off is carried on.
"""

import contextlib
import logging

from ..catalogue import FtkvmError
from ..core.pair import QemuState
from ..core.reasons import Reason
from .context import AgentContext
from .merging import resume_left_standing
from .pair_worker import PairWorker
from .protect_undo import undo_protect
from .records import OperationDoc
from .turn_off import turn_off

log = logging.getLogger(__name__)


def recover(ctx: AgentContext, worker: PairWorker, *, locked: bool = False) -> None:
    """Bring this VM's last operation to an end. Raises when the datastore or libvirt does not answer: try again.

    :param locked: the caller holds the operation lock (an agent that has just started has nobody to keep out)
    """
    store = worker.store
    if not worker.operation_lock.locked():
        resume_left_standing(ctx, worker.vm)
    journal = ctx.workers.run(store.operation, 5.0, "read journal")
    if journal is None or journal.host != ctx.host:
        return
    log.warning("%s: %s was left at %s", worker.name, journal.kind, journal.steps[-1:])
    if worker.vm.pid() is None:
        _without_qemu(ctx, worker, journal)
    elif journal.kind == "turn-off":
        with contextlib.nullcontext() if locked else worker.operation_lock:
            worker.operation_name = "turn-off"
            turn_off(ctx, worker, lambda *done: log.info("%s: %d/%d %s", worker.name, *done), journal.disabled)
            worker.operation_name = None
    else:
        _protect(ctx, worker, journal)


def _protect(ctx: AgentContext, worker: PairWorker, journal: OperationDoc) -> None:
    store = worker.store
    view = worker.vm.observe()
    pair = ctx.workers.run(lambda: store.pair(journal.epoch), 5.0, "read pair record")
    if pair is not None:
        if view.state is QemuState.PRIMARY and view.colo_running and not journal.undoing:
            log.warning("%s: lockstep was reached: going on", worker.name)
            store.clear_operation()
            return
        winner = ctx.workers.run(
            lambda: store.arbitrate(journal.epoch, ctx.host, ctx.boot_id, Reason.PROTECT_UNDONE), 5.0, "end the epoch"
        )
        if winner.host != ctx.host:
            worker.vm.kill()
            store.clear_operation()
            return
        worker.spec_of_pair(pair)
        worker.publish_solo(journal.epoch)
    undo_protect(ctx, store, worker.vm, journal, worker.keeper)
    if worker.spec is not None and worker.spec.role == "primary":  # its record was never written: no pair, no gate
        worker.keeper.drop_pair(worker.uuid)
        worker.spec = None


def _without_qemu(ctx: AgentContext, worker: PairWorker, journal: OperationDoc) -> None:
    """The VM is not on this host any more. A journal of a recorded pair is of no use: its winner file tells all.

    Any other may be the only document that names the newest overlay, or says that FT is to go: it stays for whoever
    starts the VM again (``cold_start``).
    """
    if journal.kind == "protect":
        _end_waiting(ctx, worker, journal)
    pair = ctx.workers.run(worker.store.latest, 5.0, "read pair record")
    if journal.kind == "protect" and pair is not None and journal.epoch <= pair.epoch:
        log.warning("%s: no QEMU here; its journal (epoch %d) is dropped", worker.name, journal.epoch)
        worker.store.clear_operation()
    else:
        log.warning("%s: no QEMU here; the journal of %s stays for the VM's next start", worker.name, journal.kind)


def _end_waiting(ctx: AgentContext, worker: PairWorker, journal: OperationDoc) -> None:
    """The copy that was being made waits for nobody. Its host ends it unless it is whole and may go live.

    One that is not reached ends by itself.
    """
    path = f"/v1/peer/pairs/{worker.uuid}/destroy"
    body = {"epoch": journal.epoch, "reason": str(Reason.ABANDONED), "images": journal.own_images}
    try:
        ctx.peers.call(journal.secondary or "", "POST", path, body, timeout_s=5.0)
    except FtkvmError as error:
        log.info("%s: the copy on %s was not ended: %s", worker.name, journal.secondary, error)


def inherit(ctx: AgentContext, worker: PairWorker, journal: OperationDoc) -> None:
    """The VM runs here, having won the epoch in which another host had begun an operation and was lost.

    A protect ended with its epoch; a turn-off is carried on here.
    """
    log.warning("%s: %s was begun on %s, which lost the VM", worker.name, journal.kind, journal.host)
    if journal.kind != "turn-off":
        ctx.workers.run(worker.store.clear_operation, 5.0, "drop journal")
        return
    journal.host, journal.boot_id = ctx.host, ctx.boot_id
    ctx.workers.run(lambda: worker.store.save_operation(journal), 5.0, "take over journal")
    recover(ctx, worker)
