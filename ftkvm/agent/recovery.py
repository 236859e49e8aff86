"""What an agent that has just started does with what the one before it left half done.

The journal on the datastore and QEMU itself are all it knows. A pair that runs is left alone; a protect that did not
reach its commit point is undone; one that did goes forward if lockstep was reached, else its epoch is ended by its
winner file; a turn-off is carried on.
"""

import logging

from ..core.pair import QemuState, Winner
from ..core.reasons import Reason
from .context import AgentContext
from .pair_worker import PairWorker
from .protect import undo_protect
from .records import OperationDoc
from .turn_off import turn_off

log = logging.getLogger(__name__)


def recover(ctx: AgentContext, worker: PairWorker) -> None:
    """Bring this VM's last operation to an end. Raises when the datastore or libvirt does not answer: try again."""
    store = worker.store
    journal = ctx.workers.run(store.operation, 5.0, "read journal")
    if journal is None or journal.host != ctx.host:
        return
    log.warning("%s: an agent before this one left %s at %s", worker.name, journal.kind, journal.steps[-1:])
    if worker.vm.pid() is None:
        _without_qemu(ctx, worker, journal)
    elif journal.kind == "turn-off":
        with worker.operation_lock:
            worker.operation_name = "turn-off"
            turn_off(ctx, worker, lambda step, of, text: log.info("%s: %d/%d %s", worker.name, step, of, text))
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
    """The VM is not on this host any more: its journal is of no use; a secondary that waits is ended by its agent."""
    pair = ctx.workers.run(worker.store.latest, 5.0, "read pair record")
    winner = ctx.workers.run(lambda: worker.store.winner(pair.epoch), 5.0, "read winner") if pair else None
    log.warning(
        "%s: no QEMU here; journal %s dropped (winner: %s)",
        worker.name,
        journal.kind,
        winner.host if isinstance(winner, Winner) else "none",
    )
    worker.store.clear_operation()
