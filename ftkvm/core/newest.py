"""Which image holds the newest state of a VM that runs nowhere. Pure: records and files in, images out.

Three kinds of documents speak of a disk, and the latest that still has its file is right:

1. the journal of a protect whose pair was never recorded: the overlay that it put on top (*begun*);
2. the newest pair record with its winner file: the images of the side that went on;
3. the definition: the user's own image.

A file that is gone has been merged into what is below it: a merge deletes the overlay in the moment in which both hold
the same, while the guest stands still (``ftkvm.agent.merging``), and the top goes first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ftkvm.core.chain import Side, parse_overlay
from ftkvm.core.facts import PairRecord, Role, Winner
from ftkvm.core.reasons import NOBODY_GOES_LIVE


def side_that_went_on(record: PairRecord, winner: Winner) -> Role:
    """Whose images count after the epoch's end.

    safety: after a reason for which nobody goes live it is always the primary's, whichever host wrote the file. Every
    answer that a client ever got in an epoch without a winner came from the primary, after the primary's own guest had
    written to the primary's overlay whatever that answer promises: the quorum asks that overlay first, and passes every
    flush on to it. What the secondary's guest wrote itself was never answered for.
    """
    if winner.reason in NOBODY_GOES_LIVE or winner.host == record.primary:
        return Role.PRIMARY
    return Role.SECONDARY


def home(record: PairRecord, winner: Winner) -> str:
    """The only host that has the newest images, of a pair whose sides have images of their own.

    safety: this is all that keeps a start from taking the loser's images, which look just like the winner's. It rests
    on the same file that decided who went on, so there is no moment at which the two could differ; and images change
    hands in no other way: a VM with disks of one host is not migrated, and a pair is only made where its images are.
    """
    return record.primary if side_that_went_on(record, winner) is Role.PRIMARY else record.secondary


def still_meant(files: Mapping[str, str], images: Mapping[str, str]) -> bool:
    """Whether a definition's disks (target → file) are those that a pair's ``images`` were made of.

    If somebody has defined the VM with other disks since, the pair's are not its own any more.
    """
    return all(_base(files.get(target, "")) == _base(path) for target, path in images.items())


def _base(path: str) -> str:
    overlay = parse_overlay(path)
    return overlay.base if overlay else path


@dataclass(frozen=True)
class Papers:
    """What the records say of a VM's disks, by target: ``begun`` and ``last`` as in the module's description.

    ``last_side``: which side of the last pair ``last`` is; None if there never was one.
    """

    begun: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, str] = field(default_factory=dict)
    last_side: Role | None = None
    last_epoch: int = 0
    copied: bool = False
    """``last`` are whole images on the disks of one host (``home``); nothing else has what they hold."""


@dataclass(frozen=True)
class DiskPlan:
    """What to do with one disk before the VM is started from ``image``, in this order.

    ``fold``: commit this overlay into the image below it, and delete it. ``settle``: write the scratch disks beside
    this promoted secondary's image into it (QEMU had not done so), and delete them.
    """

    image: str
    fold: str | None = None
    settle: str | None = None


def plan_disk(target: str, base: str, papers: Papers, usable: Callable[[str], bool]) -> DiskPlan:
    """The newest image of one disk.

    :param base: the user's image, as the definition has it
    :param usable: whether a file is there and is an overlay; a file that was only just being created is not
    """
    begun, last = papers.begun.get(target), papers.last.get(target)
    below = last if last is not None and usable(last) else base
    if begun is not None and begun != below and usable(begun):
        return DiskPlan(below, fold=begun)  # a protect begins only where no scratch disk is left
    if below == last and papers.last_side is Role.SECONDARY and usable(scratch(last, Side.ACTIVE)):
        return DiskPlan(below, settle=below)
    return DiskPlan(below)


def plan_copied(target: str, papers: Papers, exists: Callable[[str], bool]) -> DiskPlan | None:
    """The newest image of a disk that each side has whole; None: it is gone, and no other image may take its place.

    safety: unlike with a shared base a file that is missing was not merged into anything: nothing ever is. The user's
    image may be as old as the first failover.
    """
    last = papers.last.get(target)
    if last is None or not exists(last):
        return None
    unsettled = papers.last_side is Role.SECONDARY and exists(scratch(last, Side.ACTIVE))
    return DiskPlan(last, settle=last if unsettled else None)


def scratch(image: str, side: Side) -> str:
    """The hidden or active disk that lies beside a secondary's image."""
    return f"{image.removesuffix(f'-{Side.SECONDARY}.qcow2')}-{side}.qcow2"


def scratches(image: str) -> list[str]:
    """The scratch disks that go with one of our images; none unless it is a secondary's."""
    known = parse_overlay(image)
    beside = known is not None and known.side is Side.SECONDARY
    return [scratch(image, side) for side in (Side.ACTIVE, Side.HIDDEN)] if beside else []


def explained(overlay: str, papers: Papers) -> bool:
    """Whether an overlay that lies on the image to start from is known to hold nothing newer than it.

    Those of ended epochs do not: they are a loser's, or were merged.
    """
    known = parse_overlay(overlay)
    return known is not None and known.epoch <= papers.last_epoch
