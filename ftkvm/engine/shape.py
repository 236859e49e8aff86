"""What the engine must know of a domain, read from libvirt's live XML; and the XML of its secondary."""

import copy
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)


@dataclass(frozen=True)
class Disk:
    """One writable disk: libvirt's target (``vda``), device alias (``virtio-disk0``), image, and image format."""

    target: str
    alias: str
    source: str
    image_format: str

    @property
    def qom_candidates(self) -> tuple[str, str]:
        """Where its ``drive`` property lives: virtio devices have it on their back end (docs: qdev properties)."""
        return (f"/machine/peripheral/{self.alias}/virtio-backend", f"/machine/peripheral/{self.alias}")


@dataclass(frozen=True)
class Nic:
    """One interface: alias (``net0``), QEMU's netdev id, the tap device at the bridge, MAC address."""

    alias: str
    tap: str
    mac: str

    @property
    def netdev(self) -> str:
        return f"host{self.alias}"


@dataclass(frozen=True)
class Shape:
    """The parts of a running domain the engine works on."""

    uuid: str
    name: str
    vcpus: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]


def parse_shape(live_xml: str) -> Shape:
    """Read a *live* domain XML (it must carry aliases).

    :raises ValueError: the XML is no live domain's
    """
    root = ET.fromstring(live_xml)
    disks = []
    for disk in root.iterfind("./devices/disk[@device='disk']"):
        if disk.find("readonly") is not None:
            continue
        source, target, alias, driver = (disk.find(tag) for tag in ("source", "target", "alias", "driver"))
        if source is None or target is None or alias is None:
            raise ValueError("a disk has no file source or no alias: not the XML of a running domain")
        image_format = driver.get("type", "raw") if driver is not None else "raw"
        disks.append(Disk(target.attrib["dev"], alias.attrib["name"], source.get("file", ""), image_format))
    nics = []
    for nic in root.iterfind("./devices/interface"):
        tap, alias, mac = (nic.find(tag) for tag in ("target", "alias", "mac"))
        if tap is None or alias is None or mac is None:
            raise ValueError("an interface has no tap or no alias: not the XML of a running domain")
        nics.append(Nic(alias.attrib["name"], tap.attrib["dev"], mac.attrib["address"]))
    return Shape(
        root.findtext("uuid", ""),
        root.findtext("name", ""),
        int(root.findtext("vcpu", "1")),
        tuple(disks),
        tuple(nics),
    )


def secondary_xml(migratable_xml: str, images: Mapping[str, str]) -> str:
    """The XML of the secondary: the same machine, its own images, waiting for a migration.

    ``images`` maps disk targets to image paths. Device addresses stay as they are, so that the guest finds the same
    machine on both sides. ``-incoming defer`` comes through libvirt's QEMU namespace: libvirt itself would only wait
    for a migration that it drives.
    """
    root = _without_passthrough(ET.fromstring(migratable_xml))
    root.attrib.pop("id", None)
    for disk in root.iterfind("./devices/disk[@device='disk']"):
        target = disk.find("target")
        image = images.get(target.attrib["dev"]) if target is not None else None
        if image is None:
            continue
        for stale in ("backingStore", "source", "mirror"):
            for element in disk.findall(stale):
                disk.remove(element)
        ET.SubElement(disk, "source", {"file": image})
        driver = disk.find("driver")
        if driver is not None:
            driver.set("type", "qcow2")
    for nic in root.iterfind("./devices/interface"):
        for tap in nic.findall("target"):
            nic.remove(tap)
    line = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    for value in ("-incoming", "defer"):
        ET.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", {"value": value})
    return ET.tostring(root, encoding="unicode")


def plain_xml(xml: str, images: Mapping[str, str] | None = None) -> str:
    """``xml`` without what a pair added to it: an ordinary domain, with ``images`` (target → path) when given."""
    root = _without_passthrough(ET.fromstring(xml))
    root.attrib.pop("id", None)
    for disk in root.iterfind("./devices/disk[@device='disk']"):
        target, source = disk.find("target"), disk.find("source")
        for stale in disk.findall("backingStore"):
            disk.remove(stale)
        if images and target is not None and source is not None and target.attrib["dev"] in images:
            source.set("file", images[target.attrib["dev"]])
            driver = disk.find("driver")
            if driver is not None:
                driver.set("type", "qcow2")
    return ET.tostring(root, encoding="unicode")


def as_if_never_a_secondary(xml: str) -> str:
    """The XML of a domain without what it was started with as a secondary; any other domain's is what it was."""
    return ET.tostring(_without_passthrough(ET.fromstring(xml)), encoding="unicode")


def _without_passthrough(root: ET.Element) -> ET.Element:
    """A copy of the tree in which our ``-incoming defer`` is gone; an operator's own arguments stay."""
    root = copy.deepcopy(root)
    for line in root.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
        arguments = line.findall(f"{{{QEMU_NAMESPACE}}}arg")
        values = [argument.get("value") for argument in arguments]
        for index in range(len(values) - 1):
            if values[index : index + 2] == ["-incoming", "defer"]:
                line.remove(arguments[index])
                line.remove(arguments[index + 1])
        if len(line) == 0:
            root.remove(line)
    return root
