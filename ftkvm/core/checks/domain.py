"""What the checks of a VM look at: its domain XML, what is known of its images, and the cluster's rules. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_UNITS = {"b": 1, "bytes": 1, "kb": 1000, "k": 1024, "kib": 1024, "mb": 10**6, "m": 1 << 20, "mib": 1 << 20,
          "gb": 10**9, "g": 1 << 30, "gib": 1 << 30}  # fmt: skip
_MIB = 1 << 20

MAX_VCPUS = 8
TEMPLATE_TAG = "{urn:ftkvm:1}template"
"""In <metadata>: the domain is a pattern for others, never to be run with FT. libvirt itself knows no templates."""
QEMU_COMMANDLINE = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"


@dataclass(frozen=True)
class ImageFacts:
    """What qemu-img says of an image."""

    format: str
    internal_snapshots: int = 0


MOST_DISKS = 16
"""More are warned of (FT-12)."""


@dataclass(frozen=True)
class Rules:
    """What the checks need to know of the cluster."""

    datastore: str
    bridge: str = "br-vm"
    max_vcpus: int = MAX_VCPUS
    copied: bool = False
    """The VM's ft.disks is copy: its disks are files on the hosts' own disks."""
    emulation: bool = False
    """The cluster's setting ft.emulation: FT may be turned on for emulated guests."""

    def suits(self, path: str) -> bool:
        """Whether a written disk's image is where FT wants it."""
        return own_file(path, self.datastore) if self.copied else below(path, self.datastore)


@dataclass(frozen=True)
class VmFacts:
    """All that the checks of a VM look at. ``images``: by path, as far as they could be had."""

    domain: ET.Element
    rules: Rules
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    ha_disabled: bool = False

    @classmethod
    def of(cls, xml: str, rules: Rules, images: Mapping[str, ImageFacts] | None = None) -> "VmFacts":
        """:raises xml.etree.ElementTree.ParseError: not XML"""
        return cls(ET.fromstring(xml), rules, images or {})


def disk_files(xml: str) -> dict[str, str]:
    """Image file by target of every disk that can be written (not CD-ROMs)."""
    disks = ET.fromstring(xml).iterfind("devices/disk")
    return {target(disk): source for disk in disks if disk.get("device", "disk") == "disk" and (source := file(disk))}


def changed_images(xml: str, images: Mapping[str, str]) -> dict[str, str]:
    """Those of ``images`` that the definition does not name already: a raw disk of the user's stays raw."""
    files = disk_files(xml)
    return {target: image for target, image in images.items() if files.get(target) != image}


def memory_mb(domain: ET.Element) -> int:
    """The VM's memory; what is left over of a MB counts as one. 0 if it tells none.

    :raises ValueError: the figure or its unit is not understood
    """
    memory = domain.find("memory")
    if memory is None or not memory.text:
        return 0
    unit = memory.get("unit", "KiB")  # as libvirt itself writes it
    if unit.lower() not in _UNITS:
        raise ValueError(f"memory in {unit}")
    return -(-int(memory.text) * _UNITS[unit.lower()] // _MIB)


def bridges(domain: ET.Element) -> frozenset[str]:
    """The bridges the VM's NICs are on."""
    sources = domain.iterfind("./devices/interface[@type='bridge']/source")
    return frozenset(source.get("bridge", "") for source in sources)


def vcpus(domain: ET.Element) -> int:
    """The most vCPUs the domain can have; 0 if that is not understood."""
    text = (domain.findtext("vcpu") or "1").strip()
    return int(text) if text.isdigit() else 0


def target(disk: ET.Element) -> str:
    """``vda``; ``?`` if it has none."""
    return attribute(disk, "target", "dev") or "?"


def file(disk: ET.Element) -> str:
    """Path of a disk that is a file, else empty."""
    return attribute(disk, "source", "file") if disk.get("type") == "file" else ""


def attribute(element: ET.Element, child: str, name: str) -> str:
    """An attribute of a child element; empty if either is missing."""
    found = element.find(child)
    return "" if found is None else found.get(name, "")


def shown_source(element: ET.Element) -> str:
    """What a device's <source> names, in words."""
    source = element.find("source")
    return " ".join(source.attrib.values()) if source is not None and source.attrib else "nothing"


def below(path: str, datastore: str) -> bool:
    """Whether the path is a file of the datastore, reached without ``..``."""
    return bool(path) and ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(datastore)


def own_file(path: str, datastore: str) -> bool:
    """Whether the path is a file on the host's own disks, reached without ``..``."""
    parts = PurePosixPath(path).parts
    return parts[:1] == ("/",) and ".." not in parts and not PurePosixPath(path).is_relative_to(datastore)
