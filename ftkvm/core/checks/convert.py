"""Which disks of a VM that is off are converted so that FT takes them (FT-17), and its definition afterwards. Pure.

Converted is a disk that FT refuses for its image only: of another format than qcow2 and raw, or not a file on the
datastore. The format is what the definition says, never what the image looks like: the guest writes a raw image's
first bytes, and could make it look like one that names a file of the host as its backing file.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ftkvm.core.checks.domain import Rules, attribute, below, file, target

TAKEN_AS_THEY_ARE = frozenset({"qcow2", "raw"})
"""Formats that an overlay can be put on."""
CONVERTIBLE = frozenset({"parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc"})
"""Formats that qemu-img reads as a whole disk, as the definition names them."""
_REFUSED_MARKS = ("readonly", "shareable", "transient", "encryption", "source/encryption")


@dataclass(frozen=True)
class Conversion:
    """One disk: libvirt's target (``vda``), its present image and format, and the path of the qcow2 image to make."""

    target: str
    source: str
    source_format: str
    image: str

    def __str__(self) -> str:
        return f"disk {self.target}: {self.source} ({self.source_format}) converted to {self.image} (qcow2)"


def conversions(xml: str, vm: str, rules: Rules, exists: Callable[[str], bool]) -> tuple[Conversion, ...]:
    """What has to be converted.

    :param exists: whether there is such a file here; a source that is not is left out, a new name that is not is free
    :raises xml.etree.ElementTree.ParseError: not XML
    """
    found: list[Conversion] = []
    for disk in _disks(ET.fromstring(xml)):
        source, image_format = _source(disk), attribute(disk, "driver", "type") or "raw"
        is_suitable = image_format in TAKEN_AS_THEY_ARE and rules.suits(file(disk))
        marked = any(disk.find(mark) is not None for mark in _REFUSED_MARKS)
        if source and not is_suitable and not marked and image_format in CONVERTIBLE and exists(source):
            named = {each.image for each in found}
            image = _free_name(
                source,
                f"{vm}-{target(disk)}",
                rules.datastore,
                lambda path, named=named: path in named or exists(path),  # type: ignore[misc]
            )
            found.append(Conversion(target(disk), source, image_format, image))
    return tuple(found)


def apply(root: ET.Element, done: Sequence[Conversion]) -> Iterator[str]:
    """Point the disks of a definition at their new images; yields each change in words."""
    by_target = {each.target: each for each in done}
    for disk in _disks(root):
        conversion = by_target.get(target(disk))
        if conversion is None:
            continue
        for stale in ("source", "backingStore", "mirror"):
            for element in disk.findall(stale):
                disk.remove(element)
        disk.set("type", "file")
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", {"name": "qemu"})
        driver.set("type", "qcow2")
        ET.SubElement(disk, "source", {"file": conversion.image})
        yield str(conversion)


def _disks(root: ET.Element) -> Iterator[ET.Element]:
    return (disk for disk in root.iterfind("devices/disk") if disk.get("device", "disk") == "disk")


def _source(disk: ET.Element) -> str:
    """Path of a disk that is a file or a block device, else empty."""
    return attribute(disk, "source", "dev") if disk.get("type") == "block" else file(disk)


def _free_name(source: str, name: str, datastore: str, taken: Callable[[str], bool]) -> str:
    """A name beside an image that lies on the datastore; for another one, ``images/<vm>-<target>.qcow2``."""
    path = PurePosixPath(source)
    stem = path.with_suffix("") if below(source, datastore) else PurePosixPath(datastore) / "images" / name
    candidates = (f"{stem}{number}.qcow2" for number in ("", *(f"-{each}" for each in range(1, 1000))))
    return next(path for path in candidates if path != source and not taken(path))
