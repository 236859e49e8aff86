"""Merging overlays back into the image below while the VM runs, so that files always tell which image is the newest.

safety: after libvirt's pivot the guest writes to the lower image, and the overlay is old. A host that dies between the
pivot and the overlay's deletion would leave a file that looks newer than it is, and a later start from it would lose
the writes since. So the guest stands still from before the pivot until the overlay is deleted (some 20 ms): while both
exist, both hold the same. That it stands still for us is noted on this host, for an agent that starts after this one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.chain import ours_on_top

if TYPE_CHECKING:
    from .context import AgentContext
    from .local_vm import LocalVm

log = logging.getLogger(__name__)

DIRECTORY = "merging"


def merge_chain(ctx: "AgentContext", vm: "LocalVm", target: str) -> None:
    """Commit all overlays of ours on top of a disk into the user's image below, while the VM runs; delete them."""
    disk = next(disk for disk in vm.shape(fresh=True).disks if disk.target == target)
    chain = [image.path for image in images.chain(disk.source)]
    overlays = ours_on_top(chain)
    if overlays:
        _commit(ctx, vm, target, overlays[0], chain[len(overlays)])
    vm.shape(fresh=True)
    for path in overlays:
        images.remove(path)


def merge_overlays(ctx: "AgentContext", vm: "LocalVm", overlays: dict[str, str]) -> None:
    """Commit the given top overlays (target → path) into their backing files, while the VM runs, and delete them."""
    tops = {disk.target: disk.source for disk in vm.shape(fresh=True).disks}
    for target, path in overlays.items():
        if tops.get(target) == path:
            _commit(ctx, vm, target, path, images.chain(path)[1].path)
        images.remove(path)
    vm.shape(fresh=True)


def _commit(ctx: "AgentContext", vm: "LocalVm", target: str, top: str, base: str) -> None:
    vm.job_error = None
    try:
        _committed(ctx, vm, target, top, base)
    except FtkvmError as error:
        if error.code != "FTKVM-516" or vm.job_error is None:
            raise
        detail = f"{error.params['detail']} ({vm.job_error})"
        raise FtkvmError("FTKVM-516", disk=target, detail=detail) from error


def _committed(ctx: "AgentContext", vm: "LocalVm", target: str, top: str, base: str) -> None:
    with vm.domains.committed(vm.uuid, target, base) as pivot, _standing_still(ctx, vm):
        pivot()
        images.remove(top)


@contextmanager
def _standing_still(ctx: "AgentContext", vm: "LocalVm") -> Iterator[None]:
    """The guest does not run inside, if it ran before."""
    if not vm.domains.is_running(vm.uuid):
        yield
        return
    note = _note(ctx, vm.uuid)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()
    vm.domains.suspend(vm.uuid)
    try:
        yield
    finally:
        vm.domains.resume(vm.uuid)
        note.unlink(missing_ok=True)


def resume_left_standing(ctx: "AgentContext", vm: "LocalVm") -> None:
    """Let a guest run that an agent before this one had made to stand still. The caller holds the operation lock."""
    note = _note(ctx, vm.uuid)
    if not note.exists():
        return
    if vm.pid() is not None and not vm.domains.is_running(vm.uuid):
        log.warning("%s: stood still for a merge that was cut off; it runs again", vm.name)
        vm.domains.resume(vm.uuid)
    note.unlink(missing_ok=True)


def _note(ctx: "AgentContext", uuid: str) -> Path:
    return Path(ctx.config.paths.run / DIRECTORY / uuid)
