"""One run of the protect plan on a pair: with what it is run, and what is taken back when it fails."""

import logging

from ..catalogue import FtkvmError
from ..core.ft_settings import effective
from ..core.ha.settings import encryption
from ..core.reasons import Reason
from ..ports import Progress
from .figures import DEFAULT_INTERVAL_MS
from .pair_worker import PairWorker
from .protect import Protect
from .protect_undo import undo_protect
from .records import PairDoc
from .recovery import recover
from .storage import patiently

log = logging.getLogger(__name__)


def protect(worker: PairWorker, secondary: str, progress: Progress, *, enabling: bool) -> PairDoc:
    """Run the plan once; what fails before the commit point is undone, after it arbitration takes over.

    The caller holds the worker's operation lock. ``enabling``: FT is being turned on, and off again if this fails.
    """
    ctx, store = worker.ctx, worker.store
    unfinished = patiently(ctx, store.operation, "read journal")
    if unfinished is not None and unfinished.host == ctx.host:
        # safety: a new journal would overwrite the only document that names the overlays of the one before.
        recover(ctx, worker, locked=True)
        if unfinished.kind != "protect":
            raise FtkvmError("FTKVM-501", vm=worker.name, operation=unfinished.kind)
    if enabling:
        patiently(ctx, lambda: store.set_ft_enabled(True), "write record")
    epochs = patiently(ctx, store.epochs, "read epochs")
    settings = effective((patiently(ctx, store.vm, "read datastore") or {}).get("ft", {}).get("settings", {}))
    interval_ms = DEFAULT_INTERVAL_MS

    def told(step: int, steps: int, text: str) -> None:
        worker.operation_step = text
        progress(step, steps, text)

    plan = Protect(
        ctx,
        store,
        worker.vm,
        worker.keeper,
        secondary,
        (epochs[-1] if epochs else 0) + 1,
        interval_ms=interval_ms,
        uncompared_frames=str(settings["ft.uncompared_frames"]),
        compare_timeout_ms=int(settings["ft.compare_timeout_ms"]),
        max_switchover_s=float(settings["ft.max_switchover_seconds"]),
        start_timeout_s=float(settings["ft.secondary_start_seconds"]),
        copied=settings["ft.disks"] == "copy",
        encrypted=encryption(ctx.cluster.current().settings).ft,
        progress=told,
        cancelled=worker.cancel_operation.is_set,
        on_record=worker.new_epoch,
    )
    try:
        pair = plan.run()
    except Exception as error:
        log.exception("%s: protect", worker.name)
        try:
            _undo(worker, plan, enabling)
        except Exception as undo_error:
            log.exception("%s: not undone yet", worker.name)
            raise FtkvmError("FTKVM-518", vm=worker.name, reason=error, detail=undo_error) from error
        if isinstance(error, FtkvmError):
            raise
        raise FtkvmError("FTKVM-515", vm=worker.name, detail=error) from error
    worker.protect_figures = plan.figures
    worker.poller.refresh(2.0)
    return pair


def _undo(worker: PairWorker, plan: Protect, enabling: bool) -> None:
    """Before the commit point undo everything; after it the epoch must be won first."""
    pair = patiently(worker.ctx, lambda: worker.store.pair(plan.epoch), "read pair record") if plan.committed else None
    if pair is not None:
        winner = patiently(
            worker.ctx,
            lambda: worker.store.arbitrate(plan.epoch, worker.ctx.host, worker.ctx.boot_id, Reason.PROTECT_UNDONE),
            "end the epoch",
        )
        if winner.host != worker.ctx.host:
            worker.vm.kill()
            return
        worker.publish_solo(plan.epoch)
    if enabling:
        worker.store.set_ft_enabled(False)
    undo_protect(worker.ctx, worker.store, worker.vm, plan.journal, worker.keeper)
    if enabling or (pair is None and worker.spec is not None and worker.spec.role != "solo"):
        worker.keeper.drop_pair(worker.uuid)
        worker.spec = None
    worker.poller.refresh(2.0)


__all__ = ["protect"]
