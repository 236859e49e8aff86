"""Overlay images of a pair: their names, when a new one is needed, when to merge, and which files are garbage.

A protect freezes what the VM has written so far as a read-only backing image that both copies share, and gives each
copy its own overlay on it. An overlay that an earlier epoch left behind can serve again: what it holds is copied
(mirror, sync=top), so that is only worth it while it is small. Merging back keeps the chain short.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ftkvm.core.facts import PairRecord


class Side(StrEnum):
    """Which file of a pair's disk an image is."""

    PRIMARY = "p"  # overlay that the primary writes
    SECONDARY = "s"  # overlay that receives the primary's writes on the secondary's host, and that it goes live with
    HIDDEN = "h"  # COLO's hidden disk over S: old content of sectors that the secondary's guest may still have to see
    ACTIVE = "a"  # COLO's active disk: what the secondary's guest itself wrote since the last checkpoint


_NAME = re.compile(r"^(?P<base>.+)\.ft-(?P<epoch>[1-9][0-9]*)-(?P<side>[psha])\.qcow2$")


@dataclass(frozen=True)
class Overlay:
    """A file name of ours, taken apart. `base`: the path of the disk as the user made it."""

    base: str
    epoch: int
    side: Side


def overlay_path(base: str, epoch: int, side: Side) -> str:
    """`<base>.ft-<epoch>-<side>.qcow2`; of an overlay of ours the user's disk below it counts."""
    known = parse_overlay(base)
    return f"{known.base if known else base}.ft-{epoch}-{side}.qcow2"


def parse_overlay(path: str) -> Overlay | None:
    """The overlay that `path` names, or None if it is not one of ours."""
    match = _NAME.match(path)
    if match is None:
        return None
    return Overlay(match["base"], int(match["epoch"]), Side(match["side"]))


@dataclass(frozen=True)
class ChainLimits:
    """When to merge and when to reuse."""

    max_depth: int = 4  # files in the chain, the user's disk included, that a protect may lead to
    reuse_bytes: int = 64 * 1024 * 1024  # an overlay up to this size is copied rather than frozen


@dataclass(frozen=True)
class ChainPlan:
    """What a protect does to one disk. `shared`: the image that will be the read-only base of both copies."""

    merge_first: bool  # commit the overlays into the user's disk before; then this plan is made anew
    snapshot: bool  # a new overlay for the primary; False: its present one serves
    shared: str


def plan_chain(chain: Sequence[str], top_bytes: int, limits: ChainLimits | None = None) -> ChainPlan:
    """What the next protect does with a disk whose images are `chain`, the one written to first.

    `top_bytes`: space that the topmost image occupies. The depth after a protect never exceeds `max_depth`, unless the
    user's own chain was that long already: then it grows by ours alone and merging stops above the user's images.
    """
    limits = limits or ChainLimits()
    ours = ours_on_top(chain)
    if ours and top_bytes <= limits.reuse_bytes:
        return ChainPlan(merge_first=False, snapshot=False, shared=chain[1])
    if ours and len(chain) + 1 > limits.max_depth:
        return ChainPlan(merge_first=True, snapshot=True, shared=chain[len(ours)])
    return ChainPlan(merge_first=False, snapshot=True, shared=chain[0])


def ours_on_top(chain: Sequence[str]) -> tuple[str, ...]:
    """The overlays of ours at the top of the chain: exactly these can be merged into the image below them."""
    count = 0
    while count < len(chain) - 1 and parse_overlay(chain[count]) is not None:
        count += 1
    return tuple(chain[:count])


@dataclass(frozen=True)
class EpochImages:
    """One pair record with the images it names, and the host its winner file names (None: no winner, so it lives)."""

    record: PairRecord
    primary_images: frozenset[str]
    secondary_images: frozenset[str]
    winner: str | None

    @property
    def kept(self) -> frozenset[str]:
        """Images that may be needed because of this record: both sides' while it lives, else the winner's."""
        if self.winner == self.record.primary:
            return self.primary_images
        if self.winner == self.record.secondary:
            return self.secondary_images
        return self.primary_images | self.secondary_images


def garbage(
    files: Iterable[str],
    chains: Collection[Sequence[str]],
    epochs: Sequence[EpochImages],
    *,
    operation_running: bool,
) -> frozenset[str]:
    """The overlays among `files` that nothing needs any more.

    `chains`: the complete chains of all disks of the VM's running (or last) copy and of its stored definition.
    `epochs`: every pair record of the VM. Kept is: what is not ours by name; everything in a chain; everything that a
    record without a winner names; the winner's images of the latest record (the definition may not name them yet);
    images of an epoch newer than every record. Without a chain, or while an operation runs, nothing is garbage.
    """
    if operation_running or not chains or not all(chains) or not epochs:
        return frozenset()
    latest = max(epochs, key=lambda each: each.record.epoch)
    needed = {image for chain in chains for image in chain}
    for each in epochs:
        if each.winner is None or each is latest:
            needed |= each.kept
    bases = {overlay.base if (overlay := parse_overlay(image)) else image for image in needed}
    return frozenset(
        path
        for path in files
        if (overlay := parse_overlay(path)) is not None
        and overlay.base in bases
        and overlay.epoch <= latest.record.epoch
        and path not in needed
        and not _live_epoch(overlay.epoch, epochs)
    )


def _live_epoch(epoch: int, epochs: Sequence[EpochImages]) -> bool:
    """Hidden and active disks are named by no record: while their epoch lives they stay, by their number."""
    return any(each.record.epoch == epoch and each.winner is None for each in epochs)
