"""Reading a QEMU: which nodes, objects, character devices and jobs are there. Every step asks before it acts.

Names are ours and tell what is what, so that an agent that starts again finds its things: ``ft-q-vda`` is the quorum
of disk vda, ``ft-cmp-net0`` the colo-compare of net0. libvirt's own nodes are called ``libvirt-N-format``.
"""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from .shape import Disk

log = logging.getLogger(__name__)


class MonitorPort(Protocol):
    """What the engine needs of a monitor (ftkvm.adapters.qmp.Monitor)."""

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 5.0, oob: bool = False
    ) -> Any: ...

    def getfd(self, fd: int, name: str) -> None: ...


class EngineError(Exception):
    """QEMU is not in the state a step needs; the text says what was seen."""


@dataclass(frozen=True)
class DiskNames:
    """Node, job and export names of one disk; QEMU allows 31 characters."""

    target: str

    @property
    def quorum(self) -> str:
        return f"ft-q-{self.target}"

    @property
    def placeholder(self) -> str:
        return f"ft-ph-{self.target}"

    @property
    def nbd(self) -> str:
        return f"ft-nbd-{self.target}"

    @property
    def replication(self) -> str:
        return f"ft-r-{self.target}"

    @property
    def hidden(self) -> str:
        return f"ft-hid-{self.target}"

    @property
    def active(self) -> str:
        return f"ft-act-{self.target}"

    @property
    def detour(self) -> str:
        """As ``placeholder``, while the device goes from the quorum to *active* (``writeback``)."""
        return f"ft-dt-{self.target}"

    @property
    def commit_job(self) -> str:
        return f"ft-commit-{self.target}"

    @property
    def mirror_job(self) -> str:
        return f"ft-mirror-{self.target}"

    @property
    def export(self) -> str:
        return f"ft-x-{self.target}"


def node_names(monitor: MonitorPort) -> set[str]:
    """Names of all block nodes."""
    return {node["node-name"] for node in monitor.execute("query-named-block-nodes", {"flat": True})}


def objects(monitor: MonitorPort) -> set[str]:
    """Ids of all user-created objects (filters, compares, iothreads, monitors)."""
    return {entry["name"] for entry in monitor.execute("qom-list", {"path": "/objects"})}


def chardevs(monitor: MonitorPort) -> set[str]:
    """Labels of all character devices."""
    return {entry["label"] for entry in monitor.execute("query-chardev")}


def jobs(monitor: MonitorPort) -> dict[str, dict[str, Any]]:
    """Running jobs by id."""
    return {job["id"]: job for job in monitor.execute("query-jobs")}


def drive_path(monitor: MonitorPort, disk: Disk) -> tuple[str, str]:
    """(QOM path, node name) of the ``drive`` property of a disk's device.

    :raises EngineError: the device has none
    """
    backend, device = disk.qom_candidates
    properties = _properties(monitor, device)
    path = device
    if "drive" not in properties and backend.rpartition("/")[2] in properties:
        path, properties = backend, _properties(monitor, backend)
    if "drive" not in properties:
        raise EngineError(f"device {disk.alias} has no drive property")
    return path, str(monitor.execute("qom-get", {"path": path, "property": "drive"}))


def _properties(monitor: MonitorPort, path: str) -> set[str]:
    return {entry["name"] for entry in monitor.execute("qom-list", {"path": path})}


def set_drive(monitor: MonitorPort, disk: Disk, node: str) -> None:
    """Point the disk's device at ``node``. Setting the node it already has aborts QEMU (engine.md), so ask first."""
    path, current = drive_path(monitor, disk)
    if current != node:
        monitor.execute("qom-set", {"path": path, "property": "drive", "value": node})


def libvirt_node(monitor: MonitorPort, disk: Disk) -> tuple[str, int]:
    """(node name, virtual size in bytes) of libvirt's own top node of the disk's image.

    safety: below a primary's quorum it is the quorum's child, whatever image we know of. An operator's snapshot puts
    another one on top, and the one we know is still open, below it: a device set to that one would go back in time.

    :raises EngineError: no such node: the image in the XML is not the one QEMU has open
    """
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    sizes = {node["node-name"]: node.get("image", {}).get("virtual-size") for node in nodes}
    if DiskNames(disk.target).quorum in sizes:
        for child in quorum_children(monitor, DiskNames(disk.target).quorum):
            if child.startswith("libvirt-"):
                return child, int(sizes[child])
    for node in nodes:
        if node["node-name"].startswith("libvirt-") and node["drv"] == disk.image_format:
            image = node.get("image", {})
            if disk.source in (image.get("filename"), node.get("file")):
                return str(node["node-name"]), int(image["virtual-size"])
    raise EngineError(f"no libvirt node has {disk.source} open")


def quorum_children(monitor: MonitorPort, quorum: str) -> dict[str, str]:
    """The children of ``quorum``: node → name as a child (``children.N``: they count up)."""
    graph = monitor.execute("x-debug-query-block-graph")
    names = {entry["id"]: entry["name"] for entry in graph["nodes"] if entry["type"] == "block-driver"}
    return {names[edge["child"]]: str(edge["name"]) for edge in graph["edges"] if names.get(edge["parent"]) == quorum}


def quorum_child(monitor: MonitorPort, quorum: str, node: str) -> str | None:
    """The name under which ``node`` is a child of ``quorum``; None when it is not."""
    return quorum_children(monitor, quorum).get(node)


def child_of(monitor: MonitorPort, node: str, role: str) -> str | None:
    """The name of the node that is ``node``'s child in ``role`` (``file``, ``backing``); None when there is none."""
    graph = monitor.execute("x-debug-query-block-graph")
    names = {entry["id"]: entry["name"] for entry in graph["nodes"] if entry["type"] == "block-driver"}
    for edge in graph["edges"]:
        if names.get(edge["parent"]) == node and edge["name"] == role:
            return str(names[edge["child"]])
    return None


def has_job(monitor: MonitorPort, node: str) -> bool:
    """Whether a block job works on ``node``, also one that ``query-jobs`` does not show (QEMU's internal ones)."""
    graph = monitor.execute("x-debug-query-block-graph")
    wanted = {entry["id"] for entry in graph["nodes"] if entry["type"] == "block-driver" and entry["name"] == node}
    jobs_found = {entry["id"] for entry in graph["nodes"] if entry["type"] == "block-job"}
    return any(edge["parent"] in jobs_found and edge["child"] in wanted for edge in graph["edges"])


def delete_node(monitor: MonitorPort, name: str, timeout_s: float = 5.0) -> None:
    """blockdev-del when the node is there."""
    if name in node_names(monitor):
        monitor.execute("blockdev-del", {"node-name": name}, timeout_s=timeout_s)


def delete_object(monitor: MonitorPort, name: str) -> None:
    """object-del when the object is there."""
    if name in objects(monitor):
        monitor.execute("object-del", {"id": name})


def delete_chardev(monitor: MonitorPort, label: str) -> None:
    """chardev-remove when it is there."""
    if label in chardevs(monitor):
        monitor.execute("chardev-remove", {"id": label})


def set_capabilities(monitor: MonitorPort, *, on: tuple[str, ...] = (), off: tuple[str, ...] = ()) -> None:
    """migrate-set-capabilities."""
    states = [{"capability": name, "state": name in on} for name in (*on, *off)]
    monitor.execute("migrate-set-capabilities", {"capabilities": states})


def colo_mode(monitor: MonitorPort, timeout_s: float = 5.0) -> str:
    """``none``, ``primary`` or ``secondary`` (query-colo-status)."""
    return str(monitor.execute("query-colo-status", timeout_s=timeout_s)["mode"])
