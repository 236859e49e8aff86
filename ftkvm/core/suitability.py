"""Can this domain be protected? A pure check of its XML and of what is known of its images.

Only what the engine was tried with is accepted; everything else is refused by name, before anything is touched.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_VCPUS = 8
_DISK_BUSES = frozenset({"virtio", "ide"})
_FORMATS = frozenset({"qcow2", "raw"})
_HOST_BOUND = frozenset(
    {"hostdev", "redirdev", "filesystem", "sound", "smartcard", "shmem", "tpm", "vsock", "lease", "iommu"}
)
"""Devices with state in the host, in hardware, or in a helper process."""
_USB_TABLET_BUSES = frozenset({"usb", "ps2", "virtio"})


@dataclass(frozen=True)
class Finding:
    """Something that forbids protection: a message of the catalogue with its parameters."""

    code: str
    params: dict[str, str]


@dataclass(frozen=True)
class ImageFacts:
    """What qemu-img says of an image."""

    format: str
    internal_snapshots: int = 0


@dataclass(frozen=True)
class Rules:
    """What the check needs to know of the cluster."""

    datastore: str
    bridge: str = "br-vm"
    max_vcpus: int = MAX_VCPUS


def disk_files(xml: str) -> dict[str, str]:
    """Image file by target of every disk that can be written (not CD-ROMs)."""
    disks = ET.fromstring(xml).iterfind("devices/disk")
    return {_target(disk): source for disk in disks if disk.get("device", "disk") == "disk" and (source := _file(disk))}


def check(vm: str, xml: str, images: Mapping[str, ImageFacts], rules: Rules) -> list[Finding]:
    """Everything that forbids protecting this domain, in the order of its XML; empty if nothing does.

    :param images: facts by path, as far as they could be had
    :raises xml.etree.ElementTree.ParseError: not XML
    """
    domain = ET.fromstring(xml)
    findings = [*_machine(domain, rules)]
    for device in domain.iterfind("devices/*"):
        if device.tag == "disk":
            findings += _disk(device, images, rules)
        elif device.tag == "interface":
            findings += _interface(device, rules)
        else:
            findings += _other(device)
    return [Finding(finding.code, {"vm": vm, **finding.params}) for finding in findings]


def _machine(domain: ET.Element, rules: Rules) -> Iterator[Finding]:
    kind = domain.get("type", "")
    if kind not in ("kvm", "qemu"):
        yield Finding("FTKVM-129", {"type": kind or "(none)"})
    machine = domain.find("os/type")
    name = machine.get("machine", "pc") if machine is not None else "pc"
    if not (name in ("pc", "q35") or name.startswith(("pc-i440fx-", "pc-q35-"))):
        yield Finding("FTKVM-121", {"machine": name})
    if domain.find("os/nvram") is not None:
        yield Finding("FTKVM-122", {"device": "UEFI variable store (nvram)"})
    vcpus = int((domain.findtext("vcpu") or "1").strip())
    if vcpus > rules.max_vcpus:
        yield Finding("FTKVM-128", {"vcpus": str(vcpus), "limit": str(rules.max_vcpus)})


def _disk(disk: ET.Element, images: Mapping[str, ImageFacts], rules: Rules) -> Iterator[Finding]:
    name, kind, source = _target(disk), disk.get("device", "disk"), _file(disk)
    if kind == "cdrom":
        if disk.find("source") is not None and not _below(source, rules.datastore):
            yield Finding("FTKVM-124", _disk_params(name, disk, rules))
        return
    if kind != "disk":
        yield Finding("FTKVM-122", {"device": f"{kind} {name}"})
        return
    target = disk.find("target")
    bus = (target.get("bus") if target is not None else None) or "virtio"
    if bus not in _DISK_BUSES:
        yield Finding("FTKVM-125", {"device": name, "bus": bus})
    for mark in ("readonly", "shareable", "transient"):
        if disk.find(mark) is not None:
            yield Finding("FTKVM-127", {"device": name, "what": mark})
    driver = disk.find("driver")
    if driver is not None and (driver.get("iothread") or driver.find("iothreads") is not None):
        yield Finding("FTKVM-131", {"device": name})
    if not _below(source, rules.datastore):
        yield Finding("FTKVM-124", _disk_params(name, disk, rules))
        return
    facts = images.get(source)
    image_format = facts.format if facts else (driver.get("type", "raw") if driver is not None else "raw")
    if image_format not in _FORMATS:
        yield Finding("FTKVM-123", {"device": name, "format": image_format})
    if facts and facts.internal_snapshots:
        yield Finding("FTKVM-126", {"device": name})


def _interface(interface: ET.Element, rules: Rules) -> Iterator[Finding]:
    target, mac = interface.find("target"), interface.find("mac")
    name = (
        (target.get("dev") if target is not None else None) or (mac.get("address") if mac is not None else None) or "?"
    )
    kind = interface.get("type", "")
    if kind not in ("bridge", "network"):
        yield Finding("FTKVM-130", {"device": name, "type": kind, "bridge": rules.bridge})
        return
    driver = interface.find("driver")
    back_end = (driver.get("name") if driver is not None else None) or "vhost"
    queues = driver.get("queues") if driver is not None else None
    model = interface.find("model")
    emulated = model is not None and model.get("type", "").startswith(("e1000", "rtl8139"))  # these never use vhost
    if back_end != "qemu" and not (emulated and driver is None):
        yield Finding("FTKVM-120", {"device": name, "backend": back_end})
    elif queues not in (None, "1"):
        yield Finding("FTKVM-120", {"device": name, "backend": f"qemu with {queues} queues"})


def _other(device: ET.Element) -> Iterator[Finding]:
    if device.tag in _HOST_BOUND:
        yield Finding(
            "FTKVM-122", {"device": " ".join(filter(None, (device.tag, device.get("type"), device.get("model"))))}
        )
    elif device.tag == "controller" and device.get("type") in ("fdc", "ccid"):
        yield Finding("FTKVM-122", {"device": f"controller {device.get('type')}"})
    elif device.tag == "input" and (
        device.get("type") in ("passthrough", "evdev") or device.get("bus", "ps2") not in _USB_TABLET_BUSES
    ):
        yield Finding("FTKVM-122", {"device": f"input {device.get('type')}"})


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return (target.get("dev") if target is not None else None) or "?"


def _file(disk: ET.Element) -> str:
    source = disk.find("source")
    return (source.get("file") if source is not None and disk.get("type") == "file" else None) or ""


def _below(path: str, datastore: str) -> bool:
    return bool(path) and ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(datastore)


def _disk_params(name: str, disk: ET.Element, rules: Rules) -> dict[str, str]:
    source = disk.find("source")
    shown = " ".join(source.attrib.values()) if source is not None else "nothing"
    return {"device": name, "source": shown or "nothing", "datastore": rules.datastore}
