"""Converts the disks of a VM that is off, so that FT takes them (FT-17): with progress, and all or nothing.

The new images are made under names that nobody uses; then the definition is replaced, in one step, and that is the
commit. Cut off before, a run leaves the old definition and files that its note on the datastore names; the next run
removes them. The old images stay, unless they are to be discarded.

safety: nobody may start the VM from its old images while they are copied. The host that converts owns the VM
(``vms/<uuid>/owner``), and shows it as one that it is busy with until the last write has ended: who asks all hosts
finds it, who cannot ask this host finds its owner file, and of two that claim the next number one goes on.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ftkvm.adapters import images
from ftkvm.adapters.local_file import sync_directory
from ftkvm.agent import vm_file
from ftkvm.agent.context import AgentContext
from ftkvm.agent.storage import bounded
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.convert import Conversion, conversions
from ftkvm.core.checks.domain import Rules, disk_files
from ftkvm.core.ha.model import OwnerWhy
from ftkvm.ports import DatastoreUnreachable, Progress

log = logging.getLogger(__name__)
_LOOK_TIMEOUT_S = 5.0
_MIB = 1 << 20


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def planned(ctx: AgentContext, record: VmRecord, xml: str, rules: Rules) -> tuple[Conversion, ...]:
    """What this host would convert; a disk whose image it does not see is left out.

    :raises DatastoreUnreachable: FTKVM-306
    """
    what = f"disks of {record.name}"
    return bounded(ctx, lambda: conversions(xml, record.name, rules, os.path.lexists), what, _LOOK_TIMEOUT_S)


def require_not_wanted(ctx: AgentContext, record: VmRecord) -> None:
    """HA is not about to start the VM, which is off.

    :raises FtkvmError: FTKVM-135 it is
    """
    document = bounded(ctx, lambda: vm_file.read(ctx.datastore, record.uuid), f"vms/{record.uuid}")
    if document is not None and document.get("power") == "on":
        raise FtkvmError("FTKVM-135", vm=record.name, state="about to be started by HA")


class Converting:
    """One run; made and run once, in an operation whose kind ``Vms.local`` shows (``prepare``, ``enable``)."""

    def __init__(
        self,
        ctx: AgentContext,
        vms: Vms,
        record: VmRecord,
        todo: Sequence[Conversion],
        free_bytes: Callable[[Path], int] = _free_bytes,
    ) -> None:
        self._free_bytes = free_bytes
        self._ctx, self._vms, self._record, self._todo = ctx, vms, record, tuple(todo)
        self._note, self._definition = f"vms/{record.uuid}/prepare.json", f"vms/{record.uuid}/domain.xml"
        self._naming = False

    def run(self, owner: int, xml: str, new_xml: str, progress: Progress, *, discard: bool) -> list[str]:
        """Convert all disks, then replace the definition; returns the old images that are still there.

        :param owner: number of the newest owner file, read before it was seen that the VM is off everywhere
        :param xml: the definition that this was planned from
        :raises FtkvmError: FTKVM-103 somebody else started it, FTKVM-170 no room, FTKVM-171 it was changed meanwhile,
            FTKVM-331 qemu-img failed; the definition and the disks are as they were
        """
        self._vms.claim(self._record, owner, OwnerWhy.PREPARING)
        try:
            self._clean()
            self._require_room()
            self._ctx.datastore.replace(
                self._note, {"host": self._ctx.host, "images": [each.image for each in self._todo]}
            )
            for number, each in enumerate(self._todo, 1):
                self._convert(each, number, progress)
            self._commit(owner + 1, xml, new_xml)
        except (FtkvmError, OSError) as error:
            if not self._naming:  # else a definition that names them may still appear: the next run looks again
                with contextlib.suppress(FtkvmError, OSError):
                    self._clean()
            if isinstance(error, FtkvmError):
                raise
            detail = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise DatastoreUnreachable("FTKVM-302", host=self._ctx.host, path=error.filename, detail=detail) from error
        finally:
            self._vms.let_go(self._record, OwnerWhy.STOPPED)
        return self._discard() if discard else [each.source for each in self._todo]

    def _clean(self) -> None:
        """Remove what a run that was cut off left.

        safety: a file with an image's final name may be somebody's. It is ours only if it is the temporary file too.
        """
        note, xml = self._ctx.datastore.read_json(self._note), self._ctx.datastore.read_text(self._definition)
        if note is None or xml is None:
            return
        kept = set(disk_files(xml).values())
        for image in note["images"]:
            temporary = Path(self._temporary(image))
            if temporary.exists() and Path(image).exists() and image not in kept and temporary.samefile(image):
                images.remove(image)
            images.remove(str(temporary))
        self._ctx.datastore.remove(self._note)

    def _temporary(self, image: str) -> str:
        return f"{image}.{self._record.uuid}.converting"

    def _require_room(self) -> None:
        needed: dict[Path, int] = {}
        for each in self._todo:
            directory = Path(each.image).parent
            directory.mkdir(parents=True, exist_ok=True)
            needed[directory] = needed.get(directory, 0) + images.needed_bytes(each.source, each.source_format)
        for directory, size in needed.items():
            free = self._free_bytes(directory)
            if free < size:
                raise FtkvmError("FTKVM-170", vm=self._record.name, directory=directory,
                                 needed_mib=-(-size // _MIB), free_mib=free // _MIB)  # fmt: skip

    def _convert(self, each: Conversion, number: int, progress: Progress) -> None:
        def told(percent: int) -> None:
            progress(number, len(self._todo), f"converting disk {each.target}: {percent} %")

        told(0)
        images.convert(each.source, each.source_format, self._temporary(each.image), told)

    def _commit(self, owner: int, xml: str, new_xml: str) -> None:
        """Give the images their names, and replace the definition.

        safety: nothing here has a time-out. A write that hangs may still take effect later, so this host goes on
        showing the VM as its own until it has ended; given up, it could replace the definition of a VM that runs.
        """
        if self._vms.owner(self._record.uuid) != (owner, self._ctx.host):
            raise FtkvmError("FTKVM-171", vm=self._record.name)
        if self._ctx.datastore.read_text(self._definition) != xml:
            raise FtkvmError("FTKVM-171", vm=self._record.name)
        for each in self._todo:
            try:
                os.link(
                    self._temporary(each.image), each.image
                )  # unlike a rename, it never replaces a file of somebody
            except FileExistsError as error:
                raise FtkvmError("FTKVM-171", vm=self._record.name) from error
        for directory in {Path(each.image).parent for each in self._todo}:
            sync_directory(directory)
        self._naming = True
        self._ctx.datastore.replace_text(self._definition, new_xml)
        for each in self._todo:
            images.remove(self._temporary(each.image))
        self._ctx.datastore.remove(self._note)

    def _discard(self) -> list[str]:
        """Delete the old images that are files; returns what is still there."""
        kept = []
        for each in self._todo:
            if Path(each.source).is_file():
                images.remove(each.source)
            else:
                kept.append(each.source)
        return kept
