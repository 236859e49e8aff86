"""Starting a VM again after every copy of it is gone: end its epoch, find the newest images, finish what was cut off.

Everything here is decided from files (``core.newest``) and may be cut off anywhere and run again, on any host: the
caller has made sure that the VM runs nowhere, and holds its owner file, so nobody else does the same meanwhile.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.chain import Side
from ..core.checks.domain import disk_files
from ..core.newest import (
    DiskPlan,
    Papers,
    explained,
    plan_copied,
    plan_disk,
    scratch,
    side_that_went_on,
    still_meant,
)
from ..core.pair import Role, Winner, WinnerState
from ..core.reasons import NOBODY_GOES_LIVE, Reason
from ..ports import Progress
from .context import AgentContext
from .own_images import home_of
from .records import OperationDoc, PairDoc, PairStore
from .storage import bounded

T = TypeVar("T")
log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 30.0
FOLD_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class ColdStart:
    """One VM that runs nowhere. ``definition``: its stored domain XML."""

    ctx: AgentContext
    vm: str
    store: PairStore
    definition: str

    def end_epoch(self, epoch: int | None, primary: str | None) -> None:
        """Win the undecided epoch for its primary, in a way that lets nobody go live.

        safety: the caller says that no copy of the epoch is left (both its hosts answered and have none, or HA proved
        both dead). Should it be wrong about one, that copy still cannot go live: it reads this file back, or finds it
        when it arbitrates, and destroys itself whichever host the file names (``NOBODY_GOES_LIVE``). If the other copy
        had won first, it may be live: refused, as is an epoch other than the newest: the caller looked too long ago.

        :raises FtkvmError: FTKVM-118 the newest epoch is another one, or a copy has won it meanwhile
        """
        if epoch is None:
            return
        pair = self._read(self.store.latest)
        if pair is None or pair.epoch != epoch or pair.primary.host != primary:
            raise FtkvmError("FTKVM-118", vm=self.vm, epoch=epoch)
        host, boot_id = pair.primary.host, self.ctx.boot_id
        winner = self._read(lambda: self.store.arbitrate(epoch, host, boot_id, Reason.COLD_RESTART))
        log.warning("%s: epoch %d ends with %s (%s)", self.vm, epoch, winner.host, winner.reason)
        if winner.reason not in NOBODY_GOES_LIVE:
            raise FtkvmError("FTKVM-118", vm=self.vm, epoch=epoch)

    def home(self, cold_winner: str | None = None) -> str | None:
        """The only host that the VM may be started on, by its last pair; None: any.

        :param cold_winner: who wins that pair's epoch now, if nobody has
        :raises FtkvmError: FTKVM-111 nobody has, and nobody does
        """
        _journal, pair, winner = self._read(self._documents)
        if pair is None or not pair.copied or not still_meant(disk_files(self.definition), pair.primary.disks):
            return None
        host = home_of(pair, winner)
        if host is not None:
            return host
        if cold_winner is None:
            raise FtkvmError("FTKVM-111", vm=self.vm)
        return cold_winner

    def require_home(self, cold_winner: str | None) -> None:
        """This host has the newest images.

        safety: asked before an epoch is ended and before the VM is claimed: a start that cannot succeed here must not
        take the chance to go live from a copy that is whole.

        :raises FtkvmError: FTKVM-172 another host has them, FTKVM-111 as :meth:`home`
        """
        host = self.home(cold_winner)
        if host not in (None, self.ctx.host):
            raise FtkvmError("FTKVM-172", vm=self.vm, home=host)

    def images(self, progress: Progress) -> dict[str, str]:
        """Disk target → image to start from, with what was cut off finished.

        :raises FtkvmError: FTKVM-111 the newest epoch has no winner; FTKVM-115 an overlay that nothing explains;
            FTKVM-172 another host has the newest images, FTKVM-174 one is gone; FTKVM-331 qemu-img failed
        """
        journal, pair, winner = self._read(self._documents)
        if pair is not None and not isinstance(winner, Winner):
            raise FtkvmError("FTKVM-111", vm=self.vm)
        if pair is not None and pair.copied and not still_meant(disk_files(self.definition), pair.primary.disks):
            pair = None
        papers = _papers(journal, pair, winner)
        if pair is not None and papers.copied and home_of(pair, winner) != self.ctx.host:
            raise FtkvmError("FTKVM-172", vm=self.vm, home=home_of(pair, winner))
        unrecorded = journal is not None and journal.is_protect_after(papers.last_epoch)
        if journal is not None and unrecorded:
            self._end_waiting(journal)
        plans = self._look(lambda: self._plans(papers))
        for target, plan in plans.items():
            if plan.fold or plan.settle:
                progress(2, 3, f"finishing what was cut off on disk {target}")
                log.warning("%s: %s: %s", self.vm, target, plan)
                bounded(self.ctx, lambda plan=plan: _carry_out(plan), f"disk {target}", FOLD_TIMEOUT_S)  # type: ignore[misc]
        if journal is not None and unrecorded:
            for image in () if journal.copied else journal.secondary_disks.values():  # it never had a whole copy
                self._look(lambda image=image: images.remove_copy(image))  # type: ignore[misc]
        if not papers.copied:
            self._look(lambda: self._require_explained(plans, papers))
        self._close(journal)
        return {target: plan.image for target, plan in plans.items()}

    def _end_waiting(self, journal: OperationDoc) -> None:
        """The copy that was being made may still wait for its primary, with the images below it open.

        Its host refuses if the pair was recorded after all. One that does not answer has been proved dead, or the
        images' locks say that it is not.
        """
        try:
            self.ctx.peers.call(
                journal.secondary or "",
                "POST",
                f"/v1/peer/pairs/{self.store.uuid}/destroy",
                {"epoch": journal.epoch, "reason": str(Reason.ABANDONED), "images": journal.own_images},
                timeout_s=5.0,
            )
        except FtkvmError as error:
            log.warning("%s: the copy on %s was not ended: %s", self.vm, journal.secondary, error)

    def _documents(self) -> tuple[OperationDoc | None, PairDoc | None, WinnerState | None]:
        pair = self.store.latest()
        return self.store.operation(), pair, self.store.winner(pair.epoch) if pair else None

    def _plans(self, papers: Papers) -> dict[str, DiskPlan]:
        files = disk_files(self.definition)
        if papers.copied:
            return {target: self._plan_copied(target, papers) for target in files}
        recorded = set(papers.last.values())

        def usable(path: str) -> bool:
            """A recorded image was whole: if it has no backing file, it was pulled since (virsh blockpull)."""
            return images.is_there(path) if path in recorded else images.is_overlay(path)

        return {target: plan_disk(target, base, papers, usable) for target, base in files.items()}

    def _plan_copied(self, target: str, papers: Papers) -> DiskPlan:
        plan = plan_copied(target, papers, lambda path: Path(path).exists())
        if plan is None:
            raise FtkvmError("FTKVM-174", vm=self.vm, device=target, image=papers.last.get(target), host=self.ctx.host)
        return plan

    def _require_explained(self, plans: dict[str, DiskPlan], papers: Papers) -> None:
        """Refuse images that have an overlay of ours on them which no record accounts for.

        safety: starting below it could lose the newest writes without a word.
        """
        for plan in plans.values():
            above = [each for each in images.overlays_on(plan.image) if not explained(each, papers)]
            above += images.snapshots_on(plan.image)
            if above:
                raise FtkvmError("FTKVM-115", vm=self.vm, image=plan.image, newer=", ".join(above))

    def _close(self, journal: OperationDoc | None) -> None:
        """The cut-off operation is no longer anybody's: a protect is done with, a turn-off is this host's to finish."""
        if journal is None:
            return
        if journal.kind == "turn-off":
            journal.host, journal.boot_id = self.ctx.host, self.ctx.boot_id
            self._read(lambda: self.store.save_operation(journal))
            return
        self._read(self.store.clear_operation)

    def _read(self, work: Callable[[], T]) -> T:
        return bounded(self.ctx, work, f"ft/{self.store.uuid}")

    def _look(self, work: Callable[[], T]) -> T:
        return bounded(self.ctx, work, f"images of {self.vm}", LOOK_TIMEOUT_S)


def _papers(journal: OperationDoc | None, pair: PairDoc | None, winner: WinnerState | None) -> Papers:
    begun: dict[str, str] = {}
    if journal is not None and journal.is_protect_after(pair.epoch if pair else 0):
        begun = {t: path for t, path in journal.primary_disks.items() if path != journal.original_disks.get(t)}
    if pair is None or not isinstance(winner, Winner):
        return Papers(begun)
    side = side_that_went_on(pair.core(), winner)
    place = pair.primary if side is Role.PRIMARY else pair.secondary
    return Papers({} if pair.copied else begun, place.disks, side, pair.epoch, pair.copied)


def _carry_out(plan: DiskPlan) -> None:
    if plan.fold is not None:
        images.fold(plan.fold)
    if plan.settle is not None:
        images.settle(plan.settle, scratch(plan.settle, Side.HIDDEN), scratch(plan.settle, Side.ACTIVE))
