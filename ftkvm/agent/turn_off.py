"""Turn FT off (FT-08): the epoch ends with the primary as its winner, the secondary goes, the disks are merged back.

Every part asks what is there before it acts, so an agent that starts again simply runs it once more.
"""

import logging
from collections.abc import Callable, Collection
from typing import Any

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.chain import ours_on_top
from ..core.pair import Winner
from ..core.reasons import Reason
from ..engine import primary
from . import holds, steps
from .cold_start import ColdStart
from .context import AgentContext
from .fault_points import fault_point
from .merging import merge_chain, resume_left_standing
from .own_images import define_on
from .pair_worker import PairWorker
from .records import OperationDoc, PairDoc, PairStore

log = logging.getLogger(__name__)

STEPS: tuple[tuple[str, str], ...] = (
    ("journal", "note what is to be done"),
    ("win", "end the epoch: this copy goes on"),
    ("secondary", "end the secondary"),
    ("release", "take the pair out of the VM"),
    ("merge", "merge the overlays back"),
    ("forget", "FT is off"),
)
assert tuple(name for name, _text in STEPS) == steps.TURN_OFF  # the tests that interrupt each step rely on it


def turn_off(
    ctx: AgentContext,
    worker: PairWorker,
    progress: Callable[[int, int, str], None],
    kept: dict[str, Any] | None = None,
) -> None:
    """Run or carry on the removal; the caller holds the worker's operation lock. ``kept``: FT is only disabled.

    :raises FtkvmError: a step failed; the journal stays, and the next run carries on
    """
    run = _TurnOff(ctx, worker, kept)
    for number, (name, text) in enumerate(STEPS, 1):
        progress(number, len(STEPS), text)
        getattr(run, name)()
        fault_point(ctx, name)


def turn_off_stopped(
    cold: ColdStart, progress: Callable[[int, int, str], None], kept: dict[str, Any] | None = None
) -> None:
    """Turn FT off for a VM that runs nowhere (the caller made sure): its newest overlays go into the user's images.

    :raises FtkvmError: FTKVM-331 qemu-img failed; run it again, it carries on
    """
    ctx, store = cold.ctx, cold.store
    pair = ctx.workers.run(store.latest, 5.0, "read pair records")
    if pair is not None and not isinstance(ctx.workers.run(lambda: store.winner(pair.epoch), 5.0, "winner"), Winner):
        cold.require_home(pair.primary.host)
        cold.end_epoch(pair.epoch, pair.primary.host)
    cold.require_home(None)
    newest = cold.images(progress)
    used: set[str] = set()
    if pair is not None and pair.copied:
        define_on(ctx, store.uuid, newest)
        progress(1, 1, "FT is off")
        store.set_ft_off(kept)
        store.clear_operation()
        return
    tops: dict[str, str] = {}
    for number, (target, top) in enumerate(sorted(newest.items()), 1):
        progress(number, len(newest) + 1, f"merge the overlays of {target}")
        chain = [image.path for image in images.chain(top)]
        overlays = ours_on_top(chain)
        if overlays:
            images.commit(top, chain[len(overlays)])
        for path in overlays:  # the top first: it is what says that there is something to merge
            images.remove(path)
        used |= set(chain[len(overlays) :])
        tops[target] = chain[len(overlays)]
    progress(len(newest) + 1, len(newest) + 1, "FT is off")
    remove_overlays(store, used)
    define_on(ctx, store.uuid, tops)
    store.set_ft_off(kept)
    store.clear_operation()


def remove_overlays(store: PairStore, used: Collection[str]) -> None:
    """All overlays that any pair record of the VM names, but those ``used``: the images its disks are made of now.

    safety: after a merge none of ours is among them, unless somebody has put an image on top of one (a snapshot with
    virsh): that one cannot be read without it.
    """
    for epoch in store.epochs():
        pair = store.pair(epoch)
        for place in (pair.primary, pair.secondary) if pair else ():
            for image in place.disks.values():
                if ".ft-" in image and image not in used:
                    images.remove_copy(image)


class _TurnOff:
    def __init__(self, ctx: AgentContext, worker: PairWorker, kept: dict[str, Any] | None) -> None:
        self.ctx, self.worker, self.store, self.kept = ctx, worker, worker.store, kept
        self.pair = ctx.workers.run(self.store.latest, 5.0, "read pair record")

    def journal(self) -> None:
        epoch = self.pair.epoch if self.pair else 0
        journal = OperationDoc("turn-off", self.ctx.host, self.ctx.boot_id, epoch, disabled=self.kept)
        self.store.save_operation(journal)
        self.store.set_ft_off(self.kept)  # from here on nobody asks for a new secondary

    def win(self) -> None:
        """The winner file first: from then on the secondary cannot go live, whatever becomes of the rest."""
        pair = self.pair
        if pair is None or self._over(pair):
            return
        winner = self.ctx.workers.run(
            lambda: self.store.arbitrate(pair.epoch, self.ctx.host, self.ctx.boot_id, Reason.TURN_OFF),
            10.0,
            "end the epoch",
        )
        if isinstance(winner, Winner) and winner.host != self.ctx.host:
            raise FtkvmError("FTKVM-517", vm=self.worker.name, host=winner.host)
        self.worker.publish_solo(pair.epoch)
        own = self.store.own_as_winner
        self.ctx.workers.run(lambda: own(pair.epoch, self.ctx.host, self.ctx.boot_id), 10.0, "own the VM")

    def _over(self, pair: PairDoc) -> bool:
        """The last pair ended before this QEMU was started: it has no part in it."""
        spec = self.worker.spec
        decided = self.ctx.workers.run(lambda: self.store.winner(pair.epoch), 5.0, "read winner")
        return isinstance(decided, Winner) and (spec is None or spec.epoch != pair.epoch)

    def secondary(self) -> None:
        """Best effort: one that cannot be reached reads the winner file and ends itself."""
        if self.pair is None or self.pair.secondary.host == self.ctx.host:
            return
        try:
            self.ctx.peers.call(
                self.pair.secondary.host,
                "POST",
                f"/v1/peer/pairs/{self.worker.uuid}/destroy",
                {
                    "epoch": self.pair.epoch,
                    "reason": str(Reason.TURN_OFF),
                    "images": list(self.pair.secondary.disks.values()) if self.pair.copied else [],
                },
                timeout_s=5.0,
            )
        except FtkvmError as error:
            log.warning("%s: secondary not told: %s", self.worker.name, error)

    def release(self) -> None:
        vm = self.worker.vm
        if vm.pid() is None:
            raise FtkvmError("FTKVM-102", vm=self.worker.name)
        resume_left_standing(self.ctx, vm)
        primary.normalise(vm.monitor(create=True), vm.shape(fresh=True))
        holds.stop(self.ctx, self.worker.uuid)

    def merge(self) -> None:
        if self.pair is not None and self.pair.copied:  # nothing was put on top of anything
            newest = {disk.target: disk.source for disk in self.worker.vm.shape(fresh=True).disks}
            define_on(self.ctx, self.worker.uuid, newest)
            return
        vm = self.worker.vm
        for disk in vm.shape(fresh=True).disks:
            merge_chain(self.ctx, vm, disk.target)
        disks = vm.shape(fresh=True).disks
        remove_overlays(self.store, {image.path for disk in disks for image in images.chain(disk.source)})
        define_on(self.ctx, self.worker.uuid, {disk.target: disk.source for disk in disks})

    def forget(self) -> None:
        """The keeper no longer gates the VM's port; the records of past epochs stay: they still arbitrate."""
        self.worker.keeper.drop_pair(self.worker.uuid)
        self.worker.spec = None
        self.store.clear_operation()
