"""What can be mended mechanically in a domain's XML, so that FT takes it, without risk to the guest's data. Pure.

Disks are pointed at images that were converted (``convert``), and otherwise left alone. Not mended: TPM, NVDIMM,
passed-through devices, shared directories, memory, firmware, number of vCPUs: these need somebody who knows the guest.
"""

import difflib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ftkvm.core.checks import convert
from ftkvm.core.checks.convert import Conversion
from ftkvm.core.checks.domain import Rules, attribute, below, file, shown_source, target
from ftkvm.core.checks.vm import nic_back_end, nic_name


@dataclass(frozen=True)
class Mended:
    """``xml`` is the text as it was if there are no ``changes`` (one line each, in words)."""

    xml: str
    changes: tuple[str, ...]
    difference: str = ""


def mend(xml: str, rules: Rules, conversions: Sequence[Conversion] = ()) -> Mended:
    """The domain with everything mended that can be, on the disks that ``conversions`` make.

    :raises xml.etree.ElementTree.ParseError: not XML
    """

    def changes(root: ET.Element) -> Iterator[str]:
        yield from convert.apply(root, conversions)
        for one in _MENDS:
            yield from one(root, rules)

    return _changed(xml, changes)


def on_new_images(xml: str, conversions: Sequence[Conversion]) -> Mended:
    """The domain on the disks that ``conversions`` make, and else as it is.

    :raises xml.etree.ElementTree.ParseError: not XML
    """
    return _changed(xml, lambda root: convert.apply(root, conversions))


def _changed(xml: str, change: Callable[[ET.Element], Iterator[str]]) -> Mended:
    _keep_prefixes(xml)
    root = ET.fromstring(xml)
    before = _text(root)
    changes = tuple(change(root))
    if not changes:
        return Mended(xml, ())
    after = _text(root)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "as it is", "prepared", lineterm="", n=2)
    return Mended(after, changes, "\n".join(lines))


def _keep_prefixes(xml: str) -> None:
    """Have namespaces written with the prefixes they were read with."""
    for _event, (prefix, uri) in ET.iterparse(io.StringIO(xml), events=("start-ns",)):
        if prefix and not re.fullmatch(r"ns\d+", prefix):
            ET.register_namespace(prefix, uri)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _devices(root: ET.Element) -> ET.Element:
    devices = root.find("devices")
    return devices if devices is not None else ET.Element("devices")


def _nics(root: ET.Element, _rules: Rules) -> Iterator[str]:
    for interface in _devices(root).iterfind("interface"):
        back_end = nic_back_end(interface)
        if interface.get("type") not in ("bridge", "network") or back_end is None:
            continue
        driver = interface.find("driver")
        if driver is None:
            driver = ET.SubElement(interface, "driver")
        driver.set("name", "qemu")
        driver.attrib.pop("queues", None)
        yield f"NIC {nic_name(interface)}: back end qemu instead of {back_end}"


def _removed(root: ET.Element, wanted: Callable[[ET.Element], str]) -> Iterator[str]:
    devices = _devices(root)
    for device in list(devices):
        shown = wanted(device)
        if shown:
            devices.remove(device)
            yield f"{shown}: removed"


def _no_use_on_a_server(root: ET.Element, _rules: Rules) -> Iterator[str]:
    def wanted(device: ET.Element) -> str:
        kind = device.get("type", "")
        if device.tag in ("sound", "redirdev", "smartcard"):
            return " ".join(filter(None, (device.tag, device.get("model"), device.get("bus"), device.get("mode"))))
        if device.tag == "controller" and kind in ("fdc", "ccid"):
            return f"controller {kind}"
        return f"floppy {target(device)}" if device.tag == "disk" and device.get("device") == "floppy" else ""

    yield from _removed(root, wanted)


def _cdroms(root: ET.Element, rules: Rules) -> Iterator[str]:
    for disk in _devices(root).iterfind("disk[@device='cdrom']"):
        source = disk.find("source")
        if source is not None and not below(file(disk), rules.datastore):
            yield f"CD-ROM {target(disk)}: {shown_source(disk)} taken out"
            disk.remove(source)
            disk.set("type", "file")


def _ports(root: ET.Element, _rules: Rules) -> Iterator[str]:
    for port in _devices(root):
        if port.tag in ("serial", "parallel", "console", "channel") and port.get("type") in ("file", "dev", "pipe"):
            number = attribute(port, "target", "port") or attribute(port, "target", "name") or "0"
            yield f"{port.tag} {number}: a pty instead of {shown_source(port)}"
            port.set("type", "pty")
            for source in port.findall("source"):
                port.remove(source)


def _io_threads(root: ET.Element, _rules: Rules) -> Iterator[str]:
    for disk in _devices(root).iterfind("disk"):
        driver = disk.find("driver")
        if driver is None or (driver.get("iothread") is None and driver.find("iothreads") is None):
            continue
        driver.attrib.pop("iothread", None)
        for each in driver.findall("iothreads"):
            driver.remove(each)
        yield f"disk {target(disk)}: no I/O thread"


def _random(root: ET.Element, _rules: Rules) -> Iterator[str]:
    for rng in _devices(root).iterfind("rng"):
        if attribute(rng, "backend", "model") == "egd":
            for backend in rng.findall("backend"):
                rng.remove(backend)
            ET.SubElement(rng, "backend", {"model": "random"}).text = "/dev/urandom"
            yield "rng: /dev/urandom instead of an entropy daemon"


_MENDS: tuple[Callable[[ET.Element, Rules], Iterator[str]], ...] = (
    _nics, _no_use_on_a_server, _cdroms, _ports, _io_threads, _random,
)  # fmt: skip
