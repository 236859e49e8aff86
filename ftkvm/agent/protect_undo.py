"""Taking back what a protect began, from its journal alone; so any agent can do it, at any time."""

import contextlib
import logging

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.reasons import Reason
from ..engine import primary
from ..keeper.client import KeeperClient
from . import holds
from .context import AgentContext
from .local_vm import LocalVm
from .merging import merge_overlays, resume_left_standing
from .records import OperationDoc, PairStore

log = logging.getLogger(__name__)


def undo_protect(ctx: AgentContext, store: PairStore, vm: LocalVm, journal: OperationDoc, keeper: KeeperClient) -> None:
    """Undo from the journal alone: each undo asks what is there, so it may be repeated after any interruption."""
    journal.undoing = True
    store.save_operation(journal)
    with contextlib.suppress(FtkvmError):  # an unreachable secondary waits in inmigrate; its agent ends it (ABANDONED)
        ctx.peers.call(
            journal.secondary or "",
            "POST",
            f"/v1/peer/pairs/{vm.uuid}/destroy",
            {"epoch": journal.epoch, "reason": str(Reason.ABANDONED), "images": journal.own_images},
            timeout_s=10.0,
        )
    if vm.pid() is not None:
        resume_left_standing(ctx, vm)
        disconnect(ctx, vm)
        merge_overlays(
            ctx,
            vm,
            {
                target: path
                for target, path in journal.primary_disks.items()
                if path != journal.original_disks.get(target)
            },
        )
    for path in () if journal.copied else journal.secondary_disks.values():
        images.remove_copy(path)
    store.clear_operation()


def disconnect(ctx: AgentContext, vm: LocalVm) -> None:
    """Whatever part of a pair is in this QEMU: out, and the guest running."""
    try:
        monitor = vm.monitor()
    except Exception as error:  # no monitor of ours was ever added: nothing was connected
        log.info("%s: nothing to disconnect: %s", vm.name, error)
        return
    primary.normalise(monitor, vm.shape(fresh=True))
    holds.stop(ctx, vm.uuid)


__all__ = ["undo_protect"]
