"""The secondary's side: make a waiting QEMU ready to follow, and make it live.

Graph of one disk (QEMU's docs/system/qemu-colo.rst, docs/block-replication.txt)::

    device → quorum → replication (secondary) → active → hidden → libvirt's node (S) ⇐ NBD from the primary

What the primary writes arrives in S; what the secondary's guest writes goes to *active* and is forgotten at each
checkpoint. After go-live *active* is committed into S by a job.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import credentials, graph
from .graph import DiskNames, MonitorPort
from .primary import NicPorts, restore_drive, suppress_vmdesc, wait_for
from .shape import Disk, Nic, Shape
from .writeback import Writer

log = logging.getLogger(__name__)

INCOMING_FD = "ft-incoming"


@dataclass(frozen=True)
class Overlays:
    """The two scratch images of one disk; same virtual size as the disk, emptied at each checkpoint.

    Beside ``….ft-7-s.qcow2`` lie ``….ft-7-h.qcow2`` and ``….ft-7-a.qcow2``, on the datastore: after go-live *active*
    holds writes of the live guest until the commit job is done.
    """

    hidden: str
    active: str

    @classmethod
    def beside(cls, image: str) -> "Overlays":
        stem = image.removesuffix("-s.qcow2")
        return cls(f"{stem}-h.qcow2", f"{stem}-a.qcow2")


def build_disk(monitor: MonitorPort, disk: Disk, overlays: Overlays) -> None:
    """Stack hidden, active, replication and quorum over libvirt's node and put the device on top."""
    names = DiskNames(disk.target)
    node, _size = graph.libvirt_node(monitor, disk)
    for name, image, backing in ((names.hidden, overlays.hidden, node), (names.active, overlays.active, names.hidden)):
        monitor.execute(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": name,
                "backing": backing,
                "cache": {"direct": True},
                "file": {"driver": "file", "filename": image, "cache": {"direct": True}},
            },
        )
    monitor.execute(
        "blockdev-add",
        {
            "driver": "replication",
            "node-name": names.replication,
            "mode": "secondary",
            "top-id": names.quorum,
            "file": names.active,
        },
    )
    monitor.execute(
        "blockdev-add",
        {
            "driver": "quorum",
            "node-name": names.quorum,
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [names.replication],
        },
    )
    graph.set_drive(monitor, disk, names.quorum)


def serve_disks(monitor: MonitorPort, disks: tuple[Disk, ...], address: str, port: int, *, encrypted: bool) -> None:
    """One NBD server on the FT address, one writable export per disk, named by its target."""
    monitor.execute(
        "nbd-server-start",
        {
            "addr": {"type": "inet", "data": {"host": address, "port": str(port)}},
            "max-connections": 2 * len(disks) + 2,
            **credentials.option(encrypted),
        },
    )
    for disk in disks:
        node, _size = graph.libvirt_node(monitor, disk)
        monitor.execute(
            "block-export-add",
            {
                "type": "nbd",
                "id": DiskNames(disk.target).export,
                "node-name": node,
                "name": disk.target,
                "writable": True,
            },
        )


def build_nic(monitor: MonitorPort, nic: Nic, ports: NicPorts, address: str, *, encrypted: bool) -> None:
    """Frames of the network come from the primary's mirror; what this guest sends goes to the primary's compare.

    Unlike in QEMU's own description there is no filter-rewriter: no frame that opens a TCP connection leaves before a
    checkpoint has given both copies the same sequence numbers.
    """
    for label, port in ((f"ft-red0-{nic.alias}", ports.mirror), (f"ft-red1-{nic.alias}", ports.compare)):
        monitor.execute(
            "chardev-add",
            {
                "id": label,
                "backend": {
                    "type": "socket",
                    "data": {
                        "addr": {"type": "inet", "data": {"host": address, "port": str(port)}},
                        "server": True,
                        "wait": False,
                        "nodelay": True,
                        **credentials.option(encrypted),
                    },
                },
            },
        )
    common = {"netdev": nic.netdev, "vnet_hdr_support": True}
    monitor.execute(
        "object-add",
        {
            "qom-type": "filter-redirector",
            "id": f"ft-f1-{nic.alias}",
            "queue": "tx",
            "indev": f"ft-red0-{nic.alias}",
            **common,
        },
    )
    monitor.execute(
        "object-add",
        {
            "qom-type": "filter-redirector",
            "id": f"ft-f2-{nic.alias}",
            "queue": "rx",
            "outdev": f"ft-red1-{nic.alias}",
            **common,
        },
    )


def prepare(
    monitor: MonitorPort,
    shape: Shape,
    overlays: Mapping[str, Overlays],
    address: str,
    nbd_port: int,
    nic_ports: Mapping[str, NicPorts],
    key_directory: Path | None,
) -> None:
    """All of the above, and the capabilities; the domain waits for :func:`accept_migration`.

    :param key_directory: where the key lies that all channels are encrypted with; None: they are plain
    """
    encrypted = key_directory is not None
    if key_directory is not None:
        credentials.add(monitor, key_directory, "server")
        monitor.execute("migrate-set-parameters", credentials.option(True))
    for disk in shape.disks:
        build_disk(monitor, disk, overlays[disk.target])
    serve_disks(monitor, shape.disks, address, nbd_port, encrypted=encrypted)
    for nic in shape.nics:
        build_nic(monitor, nic, nic_ports[nic.alias], address, encrypted=encrypted)
    suppress_vmdesc(monitor)
    graph.set_capabilities(monitor, on=("return-path", "x-colo"))


def accept_migration(monitor: MonitorPort, fd: int) -> None:
    """Start the incoming migration on the connected socket ``fd``."""
    monitor.getfd(fd, INCOMING_FD)
    monitor.execute("migrate-incoming", {"uri": f"fd:{INCOMING_FD}"})


def is_loaded(monitor: MonitorPort, timeout_s: float = 5.0) -> bool:
    """Whether this copy has taken a whole checkpoint and could go live: COLO mode secondary, past ``inmigrate``."""
    if graph.colo_mode(monitor, timeout_s) != "secondary":
        return False
    return monitor.execute("query-status", timeout_s=timeout_s)["status"] in ("running", "colo", "paused")


def go_live(monitor: MonitorPort, shape: Shape) -> None:
    """Become the running copy. Only after this side won the epoch (docs/safety.md).

    The redirectors go first: they are what keeps this guest's frames from the network. There is no filter-rewriter to
    keep: connections have the same sequence numbers on both sides (ftkvm.hold.frames.opens_connection).
    """
    for nic in shape.nics:
        graph.delete_object(monitor, f"ft-f2-{nic.alias}")
        graph.delete_object(monitor, f"ft-f1-{nic.alias}")
    if monitor.execute("query-block-exports"):
        monitor.execute("nbd-server-stop")
    if graph.colo_mode(monitor) == "secondary":
        monitor.execute("x-colo-lost-heartbeat")


def normalise(
    monitor: MonitorPort, shape: Shape, on_committed: Callable[[Disk], None], timeout_s: float = 60.0
) -> None:
    """After go-live: *active* is committed into S, then an ordinary libvirt domain. Repeating it is harmless.

    :param on_committed: called with each disk as soon as its guest writes to S, and its scratch disks are of no use
    :raises WriteBackFailed: a commit failed, and so did another one; the guest runs on, and it may be tried again
    :raises EngineError: the commit takes longer than ``timeout_s``; the guest runs on, and it may be waited for again
    """
    go_live(monitor, shape)
    writer = Writer(monitor, shape.disks, on_committed)
    wait_for("commit of the active disks", lambda: writer.all_done(timeout_s), timeout_s, 0.005)
    for nic in shape.nics:
        for name in ("red0", "red1"):
            graph.delete_chardev(monitor, f"ft-{name}-{nic.alias}")
    for disk in shape.disks:
        names = DiskNames(disk.target)
        restore_drive(monitor, disk)
        for name in (names.replication, names.active, names.hidden):
            graph.delete_node(monitor, name)
    graph.set_capabilities(monitor, off=("x-colo", "return-path"))
    suppress_vmdesc(monitor, False)
    credentials.remove(monitor)
