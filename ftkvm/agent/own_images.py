"""Images on the hosts' own disks (FT-22, ``ft.disks=copy``): where they must be, room for them, and when they go.

Each side of such a pair has whole images, and nothing of one is in the other. Which side's are the newest after an
epoch is :func:`ftkvm.core.newest.home`'s to say; here a file is deleted only when that names another host.
"""

import contextlib
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.chain import Side, parse_overlay
from ..core.checks.domain import changed_images, own_file
from ..core.newest import home, scratches
from ..core.pair import Winner, WinnerState
from ..core.placement import Room, lacking
from ..engine.shape import Disk, plain_xml
from .records import PairDoc, PairStore

if TYPE_CHECKING:
    from .context import AgentContext

log = logging.getLogger(__name__)


def home_of(pair: PairDoc, winner: WinnerState | None) -> str | None:
    """The host that has the newest images after an epoch of this kind; None: not decided."""
    return home(pair.core(), winner) if isinstance(winner, Winner) else None


def require_own_images(datastore: str, vm: str, disks: Iterable[Disk]) -> None:
    """All disks are files on this host's own disks.

    :raises FtkvmError: FTKVM-173 one is not
    """
    for disk in disks:
        if not own_file(disk.source, datastore):
            source = disk.source or "no file"
            raise FtkvmError("FTKVM-173", vm=vm, device=disk.target, source=source, datastore=datastore)


def stale_on(store: PairStore, host: str, mine: Collection[str]) -> list[str]:
    """What earlier pairs left on another host, asked by the one that the VM runs on now.

    safety: an image is named only if the record of an ended epoch says that it was that host's copy, and ``mine`` (this
    host's images) does not have the same path: nothing is lost even if the "own" disks of two hosts are one directory.
    The image that the user made is never named.
    """
    found: set[str] = set()
    for epoch in store.epochs():
        pair = store.pair(epoch)
        places = (pair.primary, pair.secondary) if pair is not None and pair.copied else ()
        if pair is not None and not isinstance(store.winner(epoch), Winner):
            continue
        found |= {path for place in places if place.host == host for path in place.disks.values()}
    return sorted(path for path in found - set(mine) if parse_overlay(path) is not None)


def make_room(vm: str, host: str, disks: Mapping[str, str], sizes: Mapping[str, int], stale: Iterable[str]) -> None:
    """Remove what earlier pairs left here, and see that new images (target → path, → bytes) have room.

    :raises FtkvmError: FTKVM-521 they have not, or the directory is not there
    """
    for path in stale:
        if path not in disks.values():
            images.remove_copy(path)
    needed = _by_directory((path, sizes[target]) for target, path in disks.items())
    lacks = lacking(room(needed), needed)
    if lacks:
        raise FtkvmError("FTKVM-521", vm=vm, host=host, detail="; ".join(lacks))


def whole_copies(files: Iterable[str]) -> dict[str, int]:
    """What whole copies of images will need, in bytes by directory: as much as the disks are large. Blocks.

    :raises FtkvmError: FTKVM-331 one cannot be read
    """
    return _by_directory((path, images.chain(path)[0].virtual_bytes) for path in files)


def room(directories: Iterable[str], stale: Iterable[str] = ()) -> dict[str, Room | None]:
    """What this host has free in directories; None: it is not there. Blocks.

    :param stale: images that go before a copy is made here: what they take counts as free. Only such as we name ours.
    """
    freed: dict[int, int] = {}
    for path in (file for each in stale if parse_overlay(each) for file in (each, *scratches(each))):
        with contextlib.suppress(OSError):
            seen = Path(path).lstat()
            freed[seen.st_dev] = freed.get(seen.st_dev, 0) + seen.st_blocks * 512
    found: dict[str, Room | None] = {}
    for directory in directories:
        try:
            device, free = Path(directory).stat().st_dev, shutil.disk_usage(directory).free
        except OSError:
            found[directory] = None
        else:
            found[directory] = Room(device, free + freed.get(device, 0)) if Path(directory).is_dir() else None
    return found


def _by_directory(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, size in sizes:
        directory = str(Path(path).parent)
        found[directory] = found.get(directory, 0) + size
    return found


def remove_lost(store: PairStore, me: str, epoch: int, paths: Sequence[str]) -> list[str]:
    """Remove images of a secondary that will never go live; returns those removed. Blocks.

    safety: the file that says so is read here: the epoch was never recorded, or another host has its newest images.
    What cannot be read, or is not decided, lets them stay.
    """
    pair = store.pair(epoch)
    if pair is not None and home_of(pair, store.winner(epoch)) in (None, me):
        return []
    gone = []
    for path in paths:
        overlay = parse_overlay(path)
        if overlay is not None and (overlay.epoch, overlay.side) == (epoch, Side.SECONDARY):
            images.remove_copy(path)
            gone.append(path)
    return gone


def define_on(ctx: "AgentContext", uuid: str, newest: Mapping[str, str]) -> None:
    """Have the VM's stored definition name the images its disks are on now, where it names others.

    Whole images (`ft.disks=copy`) change their names, and a snapshot or a pull with virsh puts a disk on another image.
    safety: whoever takes the definition for what it says (a start that no pair accounts for, `vm unregister`,
    `vm prepare`) would go back in time with an older image.
    """
    path = f"vms/{uuid}/domain.xml"
    xml = ctx.workers.run(lambda: ctx.datastore.read_text(path), 5.0, "read definition") or ""
    changed = changed_images(xml, newest) if xml else {}
    if changed:
        log.info("%s: its definition now names %s", uuid, changed)
        text = plain_xml(xml, changed)
        ctx.workers.run(lambda: ctx.datastore.replace_text(path, text), 10.0, "write definition")
