"""What the agents of other hosts ask of this one about pairs: to start a secondary, to tell of it, to end it."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..catalogue import FtkvmError
from ..core.pair import QemuState, Winner
from ..core.reasons import Reason
from ..keeper.model import PairSpec
from .copy_usage import usage_of
from .outside import Found
from .own_images import remove_lost, room
from .pair_secondary import prepare
from .pair_worker import PairWorker
from .placing import own_facts
from .records import PairStore
from .storage import patiently

if TYPE_CHECKING:
    from .pair_manager import PairManager

log = logging.getLogger(__name__)


class PeerRequests:
    """Each method answers one request; who asks was checked by its certificate."""

    def __init__(self, manager: "PairManager") -> None:
        self._manager = manager
        self._ctx = manager.ctx

    def prepare(self, uuid: str, request: dict[str, Any]) -> dict[str, Any]:
        """Start the secondary of a pair that another host makes. :raises FtkvmError: FTKVM-501, 52x"""
        worker = self._manager.adopt(uuid, request["vm"])
        if worker.operation_lock.locked():
            raise FtkvmError("FTKVM-501", vm=worker.name, operation=worker.operation_name or "unknown")
        return prepare(self._ctx, worker, request)

    def facts(self) -> dict[str, Any]:
        """What placement wants to know of this host."""
        return own_facts(self._ctx, len(self._manager.workers))

    def room(self, directories: Sequence[str], stale: Sequence[str]) -> dict[str, Any]:
        """What is free here for whole copies; see :func:`ftkvm.agent.own_images.room`."""
        found = patiently(self._ctx, lambda: room(directories, stale), "room of directories")
        return {"room": {name: each and asdict(each) for name, each in found.items()}}

    def copy(self, uuid: str) -> dict[str, Any]:
        """What this host's copy of a VM is now."""
        worker = self._manager.workers.get(uuid)
        if worker is None:
            return {"qemu": "absent"}
        state = worker.vm.observe().state
        if state is QemuState.SECONDARY_LOADED:
            worker.publish_loaded()
        epoch = worker.spec.epoch if worker.spec else None
        usage = usage_of(worker.vm.pid())
        return {"qemu": str(state), "epoch": epoch, "reset_age_ms": worker.reset_age_ms(), "usage": usage}

    def changed_on_secondary(self, vm_uuid: str, document: dict[str, Any]) -> dict[str, Any]:
        """What the secondary's host has found of its copy."""
        worker = self._manager.workers.get(vm_uuid)
        if worker is not None:
            worker.outside.peers = Found.from_json(document)
        return {}

    def destroy(self, uuid: str, epoch: int, reason: str, copied: Sequence[str] = ()) -> dict[str, Any]:
        """Kill this host's copy of ``epoch`` because the asker owns the VM now. A copy of a later epoch stays.

        :param copied: its images, if they are on this host's own disks; they go too

        safety: the asker is an agent of the cluster (its certificate says so). An *abandoned* copy is a secondary whose
        pair record was never written, or which never was whole: it holds no state that could go live. Any other is
        ended only if the winner file does not name this host. When the datastore does not answer here, the winner's
        word is all there is, and a destroyed loser is always safe.
        """
        worker = self._manager.workers.get(uuid)
        spec = worker.spec if worker is not None else None
        if worker is None or spec is None or worker.vm.pid() is None:
            gone = worker is None or worker.vm.pid() is None
            if gone and (worker is not None or uuid not in self._manager.domains.running()):
                self._remove_copy(uuid, epoch, copied)
            return {"destroyed": gone}
        if spec.epoch > epoch or not self._may_be_ended(worker, spec, reason):
            raise FtkvmError("FTKVM-522", vm=worker.name, host=self._ctx.host, epoch=epoch)
        worker.destroy_own(Reason(reason))
        gone = worker.vm.pid() is None
        if gone:
            self._remove_copy(uuid, epoch, copied)
        return {"destroyed": gone}

    def _remove_copy(self, uuid: str, epoch: int, copied: Sequence[str]) -> None:
        """Images of a secondary that will never go live; its QEMU is gone (libvirt may not have noticed yet)."""
        if copied:
            store = PairStore(self._ctx.datastore, uuid)
            gone = patiently(self._ctx, lambda: remove_lost(store, self._ctx.host, epoch, copied), "remove images")
            log.info("%s: removed %s", uuid, ", ".join(gone) or "nothing")

    def _may_be_ended(self, worker: PairWorker, spec: PairSpec, reason: str) -> bool:
        try:
            winner = patiently(self._ctx, lambda: worker.store.winner(spec.epoch), "read winner")
            if isinstance(winner, Winner):
                return winner.host != self._ctx.host
            recorded = patiently(self._ctx, lambda: worker.store.pair(spec.epoch), "read pair record") is not None
        except FtkvmError as error:
            log.warning("%s: %s; taking the peer's word", worker.name, error)
            return reason != Reason.ABANDONED
        never_whole = worker.vm.observe().state is QemuState.SECONDARY_LOADING
        return reason == Reason.ABANDONED and spec.role == "secondary" and (never_whole or not recorded)


__all__ = ["PeerRequests"]
