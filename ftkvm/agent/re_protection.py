"""A VM that runs alone gets a secondary again: when to try, where, how often, and why not yet."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..adapters import images
from ..core.chain import EpochImages, garbage, parse_overlay
from ..core.pair import Winner
from ..core.reasons import Reason
from ..ports import Progress
from . import fitness
from .context import AgentContext
from .pair_worker import PairWorker
from .placing import choose_host
from .records import PairDoc

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0


class ReProtection:
    """The attempts for all VMs of this host; ``protect`` runs the plan once."""

    def __init__(self, ctx: AgentContext, protect: Callable[[PairWorker, str, Progress], PairDoc]) -> None:
        self._ctx = ctx
        self._protect = protect
        self._retry_at: dict[str, float] = {}
        self._retry_s: dict[str, float] = {}
        self.refusals: dict[str, str] = {}
        """Per VM's UUID why it is not protected yet."""

    def wanted(self, worker: PairWorker, reason: Reason) -> None:
        """Called by a worker on every turn while the VM runs alone: start a protect when it is time to."""
        now = time.monotonic()
        if worker.operation_lock.locked() or now < self._retry_at.get(worker.uuid, 0.0):
            return
        left_s = fitness.booted_in_s(worker)
        if left_s:
            self.refusals[worker.uuid] = str(fitness.boots(worker.name, left_s))
            return
        self._retry_at[worker.uuid] = now + 3600.0  # until this attempt has ended
        self._ctx.workers.submit(lambda: self._attempt(worker, reason), f"re-protect {worker.name}")

    def _attempt(self, worker: PairWorker, reason: Reason) -> None:
        started = time.monotonic()
        try:
            remove_garbage(worker)
            host = choose_host(self._ctx, worker.vm, None)
            self._protect(worker, host, lambda step, of, text: log.info("%s: %d/%d %s", worker.name, step, of, text))
            self._retry_s.pop(worker.uuid, None)
            self.refusals.pop(worker.uuid, None)
            worker.reprotect_s = round(time.monotonic() - started, 3)
            delay_s = 0.0
        except Exception as error:
            self.refusals[worker.uuid] = str(error)
            delay_s = self._retry_s.get(worker.uuid, RETRY_FIRST_S)
            self._retry_s[worker.uuid] = min(RETRY_MAX_S, delay_s * 2)
            log.warning("%s: not protected (%s), again in %.0f s: %s", worker.name, reason, delay_s, error)
        self._retry_at[worker.uuid] = time.monotonic() + delay_s


def remove_garbage(worker: PairWorker) -> None:
    """Images of copies that lost their epoch go, once no live record and no open chain names them (core.chain)."""
    store = worker.store
    epochs = []
    for epoch in store.epochs():
        pair, winner = store.pair(epoch), store.winner(epoch)
        if pair is not None:
            host = winner.host if isinstance(winner, Winner) else None
            sides = [frozenset(place.disks.values()) for place in (pair.primary, pair.secondary)]
            epochs.append(EpochImages(pair.core(), sides[0], sides[1], host))
    chains = [[image.path for image in images.chain(disk.source)] for disk in worker.vm.shape(fresh=True).disks]
    directories = {Path(chain[-1]).parent for chain in chains}
    bases = {chain[-1] for chain in chains}
    files = [
        str(path)
        for directory in directories
        for path in directory.glob("*.ft-*.qcow2")
        if (overlay := parse_overlay(str(path))) is not None and overlay.base in bases
    ]
    for path in garbage(files, chains, epochs, operation_running=store.operation() is not None):
        log.info("%s: %s is of no use any more", worker.name, path)
        images.remove(path)


__all__ = ["ReProtection"]
