"""The primary's side: insert the pair into a running QEMU, and take it out again.

Order and reasons are those of engine.md: the disk's mirror runs while memory is copied, the quorum and the network
filters go in only at ``pre-switchover``, when the guest stands still. In any other order the secondary's disk lacks
writes that the guest believes done.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import credentials, graph
from .graph import DiskNames, EngineError, MonitorPort
from .shape import Disk, Nic, Shape

log = logging.getLogger(__name__)

MIGRATION_FD = "ft-migration"
HOLD_LABELS = {"compare_in": "compare-in", "compare_out": "compare-out", "secondary_in": "sec"}
"""Character devices whose names differ from the hold proxy's sockets."""


@dataclass(frozen=True)
class NicPorts:
    """TCP ports on the secondary's FT address for one NIC."""

    mirror: int
    compare: int


@dataclass(frozen=True)
class Endpoints:
    """Where the secondary listens, on its FT address. ``encrypted``: with TLS, by the epoch's key (``credentials``)."""

    address: str
    migration_port: int
    nbd_port: int
    nics: Mapping[str, NicPorts]
    encrypted: bool = False


@dataclass(frozen=True)
class HoldSockets:
    """Unix sockets of the hold proxy for one NIC; QEMU connects. By ``secondary_in`` come the secondary's frames."""

    tx: str
    compare_in: str
    compare_out: str
    rx: str
    secondary_in: str

    @classmethod
    def under(cls, directory: Path, nic: Nic) -> "HoldSockets":
        return cls(**{end: str(directory / f"{nic.alias}.{end}") for end in cls.__dataclass_fields__})


def wait_for(what: str, done: Callable[[], bool], timeout_s: float, interval_s: float = 0.01) -> None:
    """Poll until ``done()``; :raises EngineError: not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise EngineError(f"{what}: not within {timeout_s:g} s")
        time.sleep(interval_s)


def suppress_vmdesc(monitor: MonitorPort, suppressed: bool = True) -> None:
    """Stop the 50-140 KiB that every checkpoint leaks otherwise (the JSON description of the device state).

    It has to be given back with FT: a live migration goes to a QEMU that expects the description, and waits for it for
    ever, with the guest standing still (seen).
    """
    monitor.execute("qom-set", {"path": "/machine", "property": "suppress-vmdesc", "value": suppressed})


NBD_OPEN_TIMEOUT_S = 2
"""A secondary that accepts and never speaks (it froze) would block the primary's main loop, guest and all, and `yank`
does not free it (seen, docs/security.md)."""


# --- disks -------------------------------------------------------------------------------------------------


def start_mirror(monitor: MonitorPort, disk: Disk, endpoints: Endpoints, *, whole: bool = False) -> None:
    """Copy what the top image holds to the secondary's image, and keep copying while the guest writes.

    :param whole: copy the whole disk: the secondary's image shares nothing with ours
    """
    names = DiskNames(disk.target)
    if names.nbd not in graph.node_names(monitor):
        monitor.execute(
            "blockdev-add",
            {
                "driver": "nbd",
                "node-name": names.nbd,
                "export": disk.target,
                "server": {"type": "inet", "host": endpoints.address, "port": str(endpoints.nbd_port)},
                "open-timeout": NBD_OPEN_TIMEOUT_S,
                **credentials.option(endpoints.encrypted),
            },
        )
    node, _size = graph.libvirt_node(monitor, disk)
    if names.mirror_job not in graph.jobs(monitor):
        monitor.execute(
            "blockdev-mirror",
            {
                "job-id": names.mirror_job,
                "device": node,
                "target": names.nbd,
                "sync": "full" if whole else "top",
                "auto-dismiss": True,
            },
        )


def mirror_ready(monitor: MonitorPort, disk: Disk) -> bool:
    """Whether the mirror has caught up. :raises EngineError: it is gone."""
    job = graph.jobs(monitor).get(DiskNames(disk.target).mirror_job)
    if job is None or job.get("error"):
        raise EngineError(f"the mirror of {disk.target} ended: {(job or {}).get('error', 'no job')}")
    return bool(job["status"] == "ready")


def mirrored_bytes(monitor: MonitorPort, disks: Iterable[Disk]) -> tuple[int, int]:
    """(done, of) of all mirrors together; what the guest writes meanwhile counts too."""
    running = graph.jobs(monitor)
    found = [running[name] for disk in disks if (name := DiskNames(disk.target).mirror_job) in running]
    return sum(int(job["current-progress"]) for job in found), sum(int(job["total-progress"]) for job in found)


def stop_mirror(monitor: MonitorPort, disk: Disk, *, force: bool) -> None:
    """End the mirror; without ``force`` only when both sides are the same. Returns when the job is gone."""
    job = DiskNames(disk.target).mirror_job
    if job in graph.jobs(monitor):
        monitor.execute("block-job-cancel", {"device": job, "force": force})
        wait_for(f"end of mirror {job}", lambda: job not in graph.jobs(monitor), 5.0, 0.002)


def insert_disk(monitor: MonitorPort, disk: Disk) -> None:
    """Put quorum and replication between the device and libvirt's node; the guest must stand still.

    A quorum does not take a node that a device writes to, so a null-co node holds the place for an instant.
    """
    names = DiskNames(disk.target)
    stop_mirror(monitor, disk, force=False)
    node, size = graph.libvirt_node(monitor, disk)
    monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.placeholder, "size": size})
    graph.set_drive(monitor, disk, names.placeholder)
    monitor.execute(
        "blockdev-add",
        {
            "driver": "quorum",
            "node-name": names.quorum,
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [node],
        },
    )
    graph.set_drive(monitor, disk, names.quorum)
    monitor.execute("blockdev-del", {"node-name": names.placeholder})
    monitor.execute(
        "blockdev-add", {"driver": "replication", "node-name": names.replication, "mode": "primary", "file": names.nbd}
    )
    monitor.execute("x-blockdev-change", {"parent": names.quorum, "node": names.replication})


def restore_disk(monitor: MonitorPort, disk: Disk) -> None:
    """Back to libvirt's own node, whatever of the pair is there; the guest may run."""
    names = DiskNames(disk.target)
    stop_mirror(monitor, disk, force=True)
    child = graph.quorum_child(monitor, names.quorum, names.replication)
    if child is not None:
        monitor.execute("x-blockdev-change", {"parent": names.quorum, "child": child})
    graph.delete_node(monitor, names.replication)
    restore_drive(monitor, disk)
    graph.delete_node(monitor, names.nbd)


def restore_drive(monitor: MonitorPort, disk: Disk) -> None:
    """The device on libvirt's node; quorum, replication and place holder gone. The guest stands still meanwhile.

    safety: while the device is on null-co a write would be acknowledged and lost, so the guest is stopped before and
    runs again only once the device is on libvirt's node. A run that was cut off there left it stopped: a device found
    on the place holder means that it is ours to start.
    """
    names = DiskNames(disk.target)
    node, size = graph.libvirt_node(monitor, disk)
    _path, current = graph.drive_path(monitor, disk)
    if current != node:
        running = monitor.execute("query-status")["running"]
        if running:
            monitor.execute("stop")
        if names.placeholder not in graph.node_names(monitor):
            monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.placeholder, "size": size})
        graph.set_drive(monitor, disk, names.placeholder)
        graph.delete_node(monitor, names.quorum)
        graph.delete_node(monitor, names.replication)
        graph.set_drive(monitor, disk, node)
        if running or (current == names.placeholder and _nothing_else_resumes(monitor)):
            monitor.execute("cont")
    graph.delete_node(monitor, names.quorum)
    graph.delete_node(monitor, names.placeholder)


def _nothing_else_resumes(monitor: MonitorPort) -> bool:
    """False while a migration holds the guest at pre-switchover: cancelling it lets the guest run."""
    return migration_status(monitor).get("status") not in ("pre-switchover", "device", "cancelling")


def leave_placeholders(monitor: MonitorPort, shape: Shape) -> None:
    """Before anything may let the guest run: no device of it on a place holder (an insertion was cut off there)."""
    for disk in shape.disks:
        if graph.drive_path(monitor, disk)[1] == DiskNames(disk.target).placeholder:
            restore_drive(monitor, disk)


# --- network -----------------------------------------------------------------------------------------------


def add_nic_channels(monitor: MonitorPort, nic: Nic, secondary: Endpoints, hold: HoldSockets) -> None:
    """The character devices of one NIC: the mirror to the secondary, five to the hold proxy. They may be there early.

    The secondary's frames come through the hold proxy, which connects to the secondary itself.
    """
    inet = {"type": "inet", "data": {"host": secondary.address, "port": str(secondary.nics[nic.alias].mirror)}}
    mirror = {"addr": inet, "server": False, "nodelay": True, **credentials.option(secondary.encrypted)}
    backends = {f"ft-mir-{nic.alias}": mirror}
    for end, path in vars(hold).items():
        label = f"ft-{HOLD_LABELS.get(end, end)}-{nic.alias}"
        backends[label] = {"addr": {"type": "unix", "data": {"path": path}}, "server": False}
    present = graph.chardevs(monitor)
    for label, data in backends.items():
        if label not in present:
            monitor.execute("chardev-add", {"id": label, "backend": {"type": "socket", "data": data}})


def insert_nic(monitor: MonitorPort, nic: Nic, compare_timeout_ms: int) -> None:
    """Mirror what comes in, and let out only what colo-compare (or the hold proxy) releases."""
    present = graph.objects(monitor)
    common = {"netdev": nic.netdev, "vnet_hdr_support": True}

    def add(qom_type: str, name: str, **arguments: object) -> None:
        if name not in present:
            monitor.execute("object-add", {"qom-type": qom_type, "id": name, **arguments})

    add("filter-mirror", f"ft-m-{nic.alias}", queue="tx", outdev=f"ft-mir-{nic.alias}", **common)
    add("filter-redirector", f"ft-rin-{nic.alias}", queue="rx", indev=f"ft-rx-{nic.alias}", **common)
    add("filter-redirector", f"ft-rout-{nic.alias}", queue="rx", outdev=f"ft-tx-{nic.alias}", **common)
    add("iothread", f"ft-io-{nic.alias}")
    add(
        "colo-compare",
        f"ft-cmp-{nic.alias}",
        primary_in=f"ft-compare-in-{nic.alias}",
        secondary_in=f"ft-sec-{nic.alias}",
        outdev=f"ft-compare-out-{nic.alias}",
        iothread=f"ft-io-{nic.alias}",
        vnet_hdr_support=True,
        compare_timeout=compare_timeout_ms,
        expired_scan_cycle=compare_timeout_ms,
    )


def remove_nic(monitor: MonitorPort, nic: Nic) -> None:
    """Compare and filters out, then their character devices; frames flow directly again."""
    for name in ("cmp", "m", "rin", "rout", "io"):
        graph.delete_object(monitor, f"ft-{name}-{nic.alias}")
    remove_nic_channels(monitor, nic)


def remove_nic_channels(monitor: MonitorPort, nic: Nic) -> None:
    """The character devices of one NIC, when nothing uses them any more."""
    for name in ("mir", "sec", "tx", "compare-in", "compare-out", "rx"):
        graph.delete_chardev(monitor, f"ft-{name}-{nic.alias}")


# --- memory ------------------------------------------------------------------------------------------------


def start_migration(monitor: MonitorPort, fd: int, checkpoint_interval_ms: int, *, encrypted: bool) -> None:
    """Begin the copy of memory over the connected socket ``fd`` (TCP_NODELAY set by whoever opened it).

    Encrypted, QEMU's main loop stands still, guest and all, until the other side has answered the handshake, and `yank`
    does not free it: whoever opened the socket keeps it, and shuts it down when that takes long (docs/security.md).
    """
    suppress_vmdesc(monitor)
    graph.set_capabilities(monitor, on=("return-path", "x-colo", "pause-before-switchover"))
    monitor.execute(
        "migrate-set-parameters",
        {
            "x-checkpoint-delay": checkpoint_interval_ms,
            "max-bandwidth": 0,
            "downtime-limit": 300,
            **credentials.option(encrypted),
        },
    )
    monitor.getfd(fd, MIGRATION_FD)
    monitor.execute("migrate", {"uri": f"fd:{MIGRATION_FD}"})


def migration_status(monitor: MonitorPort) -> dict[str, object]:
    """query-migrate; ``status`` is absent when none ever ran."""
    answer = monitor.execute("query-migrate")
    return dict(answer)


def at_pre_switchover(monitor: MonitorPort) -> bool:
    """Whether memory is copied and the guest stands still. :raises EngineError: the migration failed."""
    answer = migration_status(monitor)
    if answer.get("status") in ("failed", "cancelled", "completed"):
        raise EngineError(
            f"the copy of memory ended: {answer.get('status')}: {answer.get('error-desc', 'no reason given')}"
        )
    return answer.get("status") == "pre-switchover"


def continue_migration(monitor: MonitorPort) -> None:
    """Leave pre-switchover: device state goes over, COLO starts, the guest runs on both sides."""
    monitor.execute("migrate-continue", {"state": "pre-switchover"})


def set_checkpoint_interval(monitor: MonitorPort, interval_ms: int) -> None:
    """Change the time between checkpoints of a running pair."""
    monitor.execute("migrate-set-parameters", {"x-checkpoint-delay": interval_ms})


# --- taking it out -----------------------------------------------------------------------------------------


def yank(monitor: MonitorPort, shape: Shape) -> None:
    """Break every connection to a peer that may hang: migration, NBD, mirror and compare. First, always, out of band.

    Without it the next command that touches one of them hangs (engine.md: 3 of 12 silent peers).
    """
    wanted = [{"type": "block-node", "node-name": DiskNames(disk.target).nbd} for disk in shape.disks]
    wanted += [{"type": "chardev", "id": f"ft-{kind}-{nic.alias}"} for nic in shape.nics for kind in ("mir", "sec")]
    wanted.append({"type": "migration"})
    present = monitor.execute("query-yank", oob=False, timeout_s=0.5) if _main_loop_answers(monitor) else wanted
    for instance in wanted:
        if instance in present:
            try:
                monitor.execute("yank", {"instances": [instance]}, oob=True, timeout_s=1.0)
            except Exception as error:  # one that is gone is as good as yanked; the others must still go
                log.info("yank %s: %s", instance, error)


def _main_loop_answers(monitor: MonitorPort) -> bool:
    try:
        monitor.execute("query-status", timeout_s=0.05)
    except Exception:
        return False
    return True


def release(monitor: MonitorPort, shape: Shape) -> None:
    """Let the guest run alone: the primary has won the epoch and its secondary is gone or lost.

    After this the guest runs and its frames leave; :func:`normalise` tidies up.
    """
    yank(monitor, shape)
    leave_placeholders(monitor, shape)
    status = migration_status(monitor).get("status")
    if graph.colo_mode(monitor) == "primary":
        monitor.execute("x-colo-lost-heartbeat")
    elif status in ("setup", "active", "pre-switchover", "device", "cancelling"):
        monitor.execute("migrate_cancel")
    for nic in shape.nics:
        for name in ("cmp", "m", "rin", "rout"):
            graph.delete_object(monitor, f"ft-{name}-{nic.alias}")


def normalise(monitor: MonitorPort, shape: Shape) -> None:
    """From any state in which the pair can be: an ordinary libvirt domain, running. Repeating it changes nothing."""
    release(monitor, shape)
    wait_for(
        "end of the migration",
        lambda: (
            migration_status(monitor).get("status")
            not in ("setup", "active", "pre-switchover", "device", "cancelling", "colo")
        ),
        5.0,
    )
    for nic in shape.nics:
        remove_nic(monitor, nic)
    for disk in shape.disks:
        restore_disk(monitor, disk)
    graph.set_capabilities(monitor, off=("x-colo", "pause-before-switchover", "return-path"))
    suppress_vmdesc(monitor, False)
    credentials.remove(monitor)
    state = monitor.execute("query-status")
    if not state["running"] and state["status"] in ("finish-migrate", "paused", "colo", "postmigrate"):
        monitor.execute("cont")
