"""A promoted copy's active disk, written back into its image: QEMU's own commit, and another one when that has failed.

QEMU's failover begins a commit of *active* into S. It is internal: no event tells its end, ``query-jobs`` does not show
it. It shows in the block graph only, as a job without a name while it runs, and by ``replication`` standing on
libvirt's node when it is done. When it fails (no space for S to grow, an I/O error) it is just gone: the guest runs on,
on active over hidden over S, for good. Nothing is lost by that, and nothing else can be done with the disk.

Then :func:`again` takes quorum and replication out, so that the device stands on *active* itself, and commits with a
job that has a name, an end and an error. Each step asks what is there: an agent that starts again goes on from it.
"""

import logging
import time
from collections.abc import Callable
from enum import StrEnum

from . import graph
from .graph import DiskNames, EngineError, MonitorPort
from .shape import Disk

log = logging.getLogger(__name__)


class WriteBack(StrEnum):
    """How far the write-back of one disk is."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    OURS = "ours"  # QEMU's own had failed: ours is under way, or was cut off


class WriteBackFailed(EngineError):
    """The commit of a disk's active image failed; the guest runs on, on all its images. ``detail``: QEMU's words."""

    def __init__(self, target: str, detail: str) -> None:
        super().__init__(f"commit of the active image of {target}: {detail}")
        self.target = target
        self.detail = detail


def look(monitor: MonitorPort, disk: Disk) -> WriteBack:
    """Whether QEMU's failover, or :func:`again`, has written *active* into S, so that the guest writes to S itself."""
    names = DiskNames(disk.target)
    if names.commit_job in graph.jobs(monitor):
        return WriteBack.OURS
    if _is_written(monitor, disk):
        return WriteBack.DONE
    if names.replication not in graph.node_names(monitor):
        return WriteBack.OURS
    begun = graph.colo_mode(monitor) == "none"  # QEMU leaves COLO after it has started the commit
    return WriteBack.FAILED if begun and not graph.has_job(monitor, names.active) else WriteBack.RUNNING


def _is_written(monitor: MonitorPort, disk: Disk) -> bool:
    names = DiskNames(disk.target)
    if names.replication not in graph.node_names(monitor):
        return graph.drive_path(monitor, disk)[1] not in (names.active, names.detour)
    node, _size = graph.libvirt_node(monitor, disk)
    return graph.child_of(monitor, names.replication, "file") == node


def again(monitor: MonitorPort, disk: Disk, timeout_s: float) -> None:
    """Write *active* into S by a job of our own; the guest runs meanwhile, and on S afterwards.

    :raises WriteBackFailed: this one failed too; the guest runs on, on all its images
    :raises EngineError: not done in ``timeout_s``; the job goes on
    """
    job_id = DiskNames(disk.target).commit_job
    if job_id not in graph.jobs(monitor):
        detach(monitor, disk)
        if not _is_written(monitor, disk):
            _start(monitor, disk)
    deadline, completing = time.monotonic() + timeout_s, False
    while (job := graph.jobs(monitor).get(job_id)) is not None and job["status"] != "concluded":
        if job["status"] == "ready" and not completing:
            monitor.execute("job-complete", {"id": job_id})
            completing = True
        if time.monotonic() > deadline:
            raise EngineError(f"commit of the active image of {disk.target}: not within {timeout_s:g} s")
        time.sleep(0.005)
    if job is not None:
        monitor.execute("job-dismiss", {"id": job_id})
    if not _is_written(monitor, disk):
        raise WriteBackFailed(disk.target, (job or {}).get("error") or "the job ended without an error")
    if monitor.execute("query-status")["status"] == "io-error":
        monitor.execute("cont")  # its own writes had found no space either: now there is some


def _start(monitor: MonitorPort, disk: Disk) -> None:
    names = DiskNames(disk.target)
    node, _size = graph.libvirt_node(monitor, disk)
    log.warning("%s: QEMU's commit of the active image failed; it is made anew", disk.target)
    monitor.execute(
        "block-commit",
        {"job-id": names.commit_job, "device": names.active, "base-node": node, "auto-dismiss": False},
    )


def detach(monitor: MonitorPort, disk: Disk) -> None:
    """Put the device on *active*; quorum and replication out. The guest stands still meanwhile. Again: no harm.

    safety: taking replication out cancels a commit of QEMU's that still runs. That is harmless here, for *active* stays
    on top and has all of it; and if it ends in that very moment, S holds the same as *active*, because the guest stood
    still since before it was last seen to be unfinished. While the device is on null-co a write would be acknowledged
    and lost, so the guest runs again only once the device is on *active*. A detour that is found means that a run was
    cut off, and that the guest, if it stands still, is ours to start: so it is made before and deleted after all else.
    """
    names = DiskNames(disk.target)
    marked = names.detour in graph.node_names(monitor)
    running = bool(monitor.execute("query-status")["running"])
    if graph.drive_path(monitor, disk)[1] != names.active:
        if not marked:
            _node, size = graph.libvirt_node(monitor, disk)
            monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.detour, "size": size})
        if running:
            monitor.execute("stop")
        if not _is_written(monitor, disk):
            graph.set_drive(monitor, disk, names.detour)
            graph.delete_node(monitor, names.quorum)
            graph.delete_node(monitor, names.replication)
            graph.set_drive(monitor, disk, names.active)
    if running or marked:
        monitor.execute("cont")
    graph.delete_node(monitor, names.detour)


class Writer:
    """Waits for the write-back of several disks, and makes one anew that has failed."""

    SETTLES_S = 1.0
    """A failed one must look so for this long: between the end of the job and the switch it would too."""

    def __init__(self, monitor: MonitorPort, disks: tuple[Disk, ...], on_committed: Callable[[Disk], None]) -> None:
        self._monitor, self._on_committed = monitor, on_committed
        self._waiting = list(disks)
        self._failed_since: dict[str, float] = {}

    def all_done(self, timeout_s: float) -> bool:
        """Look at each that is not done. :raises WriteBackFailed: one failed again; see :func:`again`"""
        for disk in list(self._waiting):
            state = look(self._monitor, disk)
            if state is WriteBack.OURS or (state is WriteBack.FAILED and self._settled(disk.target)):
                again(self._monitor, disk, timeout_s)
                state = WriteBack.DONE
            if state is WriteBack.DONE:
                self._on_committed(disk)
                self._waiting.remove(disk)
        return not self._waiting

    def _settled(self, target: str) -> bool:
        now = time.monotonic()
        return now - self._failed_since.setdefault(target, now) >= self.SETTLES_S
