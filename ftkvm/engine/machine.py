"""What of a running domain has to stay as it is while it has two copies: its devices. Read from libvirt's live XML."""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable

_OWN = ("type", "device", "model", "index", "bus", "mode")
"""Attributes of a device's element that say what it is; the others are its back end's, or this host's."""
_PARTS: dict[str, tuple[str, ...]] = {
    "target": ("bus", "type", "name", "port"),
    "mac": ("address",),
    "model": ("type", "name"),
    "link": ("state",),
}
_BACK_ENDS = ("emulator", "graphics")


def machine_of(live_xml: str) -> tuple[str, ...]:
    """One line for each device and for processors and memory, sorted; what differs from host to host is left out."""
    root = ET.fromstring(live_xml)
    vcpu, devices = root.find("vcpu"), root.find("devices")
    found = [f"memory {root.findtext('memory', '?')} KiB"]
    if vcpu is not None:
        found.append(f"vcpu {vcpu.get('current', vcpu.text)}")
    found += [_line(device) for device in (devices if devices is not None else ()) if device.tag not in _BACK_ENDS]
    return tuple(sorted(found))


def difference(recorded: Iterable[str], now: Iterable[str]) -> str:
    """What is there more (+) and less (-) than recorded; empty if nothing."""
    before, after = Counter(recorded), Counter(now)
    more, less = after - before, before - after
    return ", ".join([*(f"+{line}" for line in sorted(more)), *(f"-{line}" for line in sorted(less))])


def _line(device: ET.Element) -> str:
    words = [device.tag, *(device.attrib[name] for name in _OWN if name in device.attrib)]
    target = device.find("target")
    if device.tag == "disk" and target is not None:  # of an interface it is the tap, another one on each host
        words.append(target.get("dev", ""))
    for tag, names in _PARTS.items():
        for part in device.findall(tag):
            words += [part.attrib[name] for name in names if name in part.attrib]
    address = device.find("address")
    if address is not None:
        words.append(
            "at " + ":".join(value for name, value in sorted(address.attrib.items()) if name != "multifunction")
        )
    return " ".join(words)
