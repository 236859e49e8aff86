"""Which node of QEMU a disk's device belongs on."""

from typing import Any

import pytest

from ftkvm.engine.graph import EngineError, libvirt_node
from ftkvm.engine.shape import Disk

DISK = Disk("vda", "virtio-disk0", "/i/v.ft-7-p", "qcow2")


class Qemu:
    """A QEMU's block graph; ``nodes``: name → (driver, file, children by role)."""

    def __init__(self, nodes: dict[str, tuple[str, str, dict[str, str]]]) -> None:
        self._nodes = nodes

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 5.0, oob: bool = False
    ) -> Any:
        if command == "query-named-block-nodes":
            return [
                {"node-name": name, "drv": driver, "file": file, "image": {"filename": file, "virtual-size": 100}}
                for name, (driver, file, _children) in self._nodes.items()
            ]
        assert command == "x-debug-query-block-graph"
        ids = {name: number for number, name in enumerate(self._nodes)}
        edges = [
            {"parent": ids[name], "child": ids[child], "name": role}
            for name, (_driver, _file, children) in self._nodes.items()
            for role, child in children.items()
        ]
        return {"nodes": [{"id": i, "type": "block-driver", "name": name} for name, i in ids.items()], "edges": edges}

    def getfd(self, fd: int, name: str) -> None:
        raise AssertionError


IMAGE: tuple[str, str, dict[str, str]] = ("qcow2", "/i/v.ft-7-p", {})


def test_the_node_of_the_disks_image() -> None:
    assert libvirt_node(Qemu({"libvirt-1-format": IMAGE}), DISK) == ("libvirt-1-format", 100)
    with pytest.raises(EngineError, match=r"v\.ft-7-p"):
        libvirt_node(Qemu({"libvirt-1-format": ("qcow2", "/i/other", {})}), DISK)


def test_below_a_quorum_it_is_the_quorums_child_whatever_image_is_known() -> None:
    """Somebody took a snapshot: the image we know is still open, below it."""
    graph = {
        "libvirt-1-format": IMAGE,
        "libvirt-2-format": ("qcow2", "/i/v.s1", {"backing": "libvirt-1-format"}),
        "ft-r-vda": ("replication", "", {}),
        "ft-q-vda": ("quorum", "", {"children.1": "ft-r-vda", "children.0": "libvirt-2-format"}),
    }
    assert libvirt_node(Qemu(graph), DISK) == ("libvirt-2-format", 100)


def test_below_a_secondarys_quorum_lies_no_node_of_libvirts() -> None:
    graph = {"libvirt-1-format": IMAGE, "ft-r-vda": ("replication", "", {}),
             "ft-q-vda": ("quorum", "", {"children.0": "ft-r-vda"})}  # fmt: skip
    assert libvirt_node(Qemu(graph), DISK) == ("libvirt-1-format", 100)
