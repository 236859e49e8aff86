"""The checks of a VM (CK-04, CK-06). Only what the engine was tried with passes; all else is refused by name."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from ftkvm.core.checks import domain as dom
from ftkvm.core.checks.domain import VmFacts, attribute, below, file, shown_source, target, vcpus
from ftkvm.core.checks.model import Check, Finding, Severity

_FORMATS = frozenset({"qcow2", "raw"})
_DISK_BUSES = frozenset({"virtio", "ide"})
_INPUT_BUSES = frozenset({"usb", "ps2", "virtio"})
_REMOVE = "Remove the device from the domain's XML"
_HOST_BOUND = {
    "hostdev": "Remove the passed-through device; use a virtio NIC on a bridge, or a disk on the datastore, instead",
    "redirdev": "Remove the USB redirection (<redirdev>)",
    "filesystem": "Unmount it in the guest and remove it; share the files over the network (NFS, SMB) instead",
    "sound": "Remove the sound device (<sound>)",
    "smartcard": "Remove the smart card reader (<smartcard>)",
    "shmem": "Remove the shared memory (<shmem>)",
    "tpm": "Remove the TPM after moving the guest's keys out of it (disk encryption, Windows' BitLocker)",
    "vsock": "Remove it; let the programs talk over a NIC or a virtio-serial channel",
    "lease": "Remove the lease; the cluster sees to it that the VM runs once",
    "iommu": "Remove the IOMMU (<iommu>); it is needed for passed-through devices only",
    "memory": "Remove the memory device (NVDIMM, DIMM, virtio-mem, virtio-pmem); <memory> gives the VM all its memory",
    "crypto": "Remove the crypto device (<crypto>)",
    "nvram": _REMOVE,
}
"""Devices with state in the host, in hardware, or in a helper process; and what to do about each."""


def _not_carried(device: str, how: str = _REMOVE) -> Finding:
    return Finding("FTKVM-122", {"device": device, "how": how})


# -- the machine -----------------------------------------------------------------------------------------------


def _domain_type(vm: VmFacts) -> Iterator[Finding]:
    kind = vm.domain.get("type", "")
    if kind not in ("kvm", "qemu"):
        yield Finding("FTKVM-129", {"type": kind or "(none)"})


def _emulated(vm: VmFacts) -> Iterator[Finding]:
    if vm.domain.get("type", "") == "qemu":
        if vm.rules.emulation:
            yield Finding("FTKVM-137", {}, Severity.WARNING)
        else:
            yield Finding("FTKVM-136", {})


def _machine(vm: VmFacts) -> Iterator[Finding]:
    name = attribute(vm.domain, "os/type", "machine") or "pc"
    if not (name in ("pc", "q35") or name.startswith(("pc-i440fx-", "pc-q35-"))):
        yield Finding("FTKVM-121", {"machine": name})


def _many_disks(vm: VmFacts) -> Iterator[Finding]:
    count = sum(disk.get("device", "disk") == "disk" for disk in vm.domain.iterfind("devices/disk"))
    if count > dom.MOST_DISKS:
        yield Finding("FTKVM-138", {"disks": str(count), "most": str(dom.MOST_DISKS)}, Severity.WARNING)


def _firmware(vm: VmFacts) -> Iterator[Finding]:
    os = vm.domain.find("os")
    if os is not None and (os.find("nvram") is not None or os.get("firmware") == "efi"):
        yield _not_carried(
            "UEFI variable store (nvram)", "Use BIOS firmware; a guest installed for UEFI must be moved to it"
        )


def _sealed_memory(vm: VmFacts) -> Iterator[Finding]:
    for seal in vm.domain.iterfind("launchSecurity"):
        yield _not_carried(
            f"launchSecurity {seal.get('type', '')}".strip(), "Remove <launchSecurity>: sealed memory cannot be copied"
        )


def _arguments(vm: VmFacts) -> Iterator[Finding]:
    words = [each.get("value", "") for each in vm.domain.iterfind(f"{dom.QEMU_COMMANDLINE}/*")]
    if words:
        yield _not_carried(
            f"qemu:commandline {' '.join(words)}", "Remove <qemu:commandline>; libvirt does not know what it makes"
        )


def _vcpus(vm: VmFacts) -> Iterator[Finding]:
    count = vcpus(vm.domain)
    if not 1 <= count <= vm.rules.max_vcpus:
        yield Finding("FTKVM-128", {"vcpus": str(count), "limit": str(vm.rules.max_vcpus)})


def _template(vm: VmFacts) -> Iterator[Finding]:
    if vm.domain.find(f"metadata/{dom.TEMPLATE_TAG}") is not None:
        yield Finding("FTKVM-132", {})


def _ha(vm: VmFacts) -> Iterator[Finding]:
    if vm.ha_disabled:
        yield Finding("FTKVM-133", {}, Severity.WARNING)


# -- disks -----------------------------------------------------------------------------------------------------


def _disks(vm: VmFacts) -> Iterator[ET.Element]:
    return (disk for disk in vm.domain.iterfind("devices/disk") if disk.get("device", "disk") == "disk")


def _shared_storage(vm: VmFacts) -> Iterator[Finding]:
    """Disks, and CD-ROMs with something in them."""
    for disk in vm.domain.iterfind("devices/disk"):
        kind = disk.get("device", "disk")
        empty_drive = kind == "cdrom" and disk.find("source") is None
        is_suitable = vm.rules.suits if kind == "disk" else lambda path: below(path, vm.rules.datastore)
        if kind in ("disk", "cdrom") and not empty_drive and not is_suitable(file(disk)):
            source, datastore = shown_source(disk), vm.rules.datastore
            yield Finding(
                "FTKVM-173" if kind == "disk" and vm.rules.copied else "FTKVM-124",
                {"device": target(disk), "source": source, "datastore": datastore},
            )


def _disk_kinds(vm: VmFacts) -> Iterator[Finding]:
    hows = {
        "floppy": "Remove the floppy drive, or use a CD-ROM with an image below the datastore",
        "lun": "Remove it; copy its contents into an image below the datastore (`qemu-img convert`)",
    }
    for disk in vm.domain.iterfind("devices/disk"):
        kind = disk.get("device", "disk")
        if kind not in ("disk", "cdrom"):
            yield _not_carried(f"{kind} {target(disk)}", hows.get(kind, _REMOVE))


def _disk_buses(vm: VmFacts) -> Iterator[Finding]:
    for disk in _disks(vm):
        bus = attribute(disk, "target", "bus") or "virtio"
        if bus not in _DISK_BUSES:
            yield Finding("FTKVM-125", {"device": target(disk), "bus": bus})


def _disk_marks(vm: VmFacts) -> Iterator[Finding]:
    for disk in _disks(vm):
        for mark in ("readonly", "shareable", "transient"):
            if disk.find(mark) is not None:
                yield Finding("FTKVM-127", {"device": target(disk), "what": mark})


def _io_threads(vm: VmFacts) -> Iterator[Finding]:
    for disk in _disks(vm):
        if attribute(disk, "driver", "iothread") or disk.find("driver/iothreads") is not None:
            yield Finding("FTKVM-131", {"device": target(disk)})


def _image_formats(vm: VmFacts) -> Iterator[Finding]:
    for disk in _disks(vm):
        path = file(disk)
        if not vm.rules.suits(path):
            continue  # told already, and nothing is known of it
        facts = vm.images.get(path)
        kind = facts.format if facts else attribute(disk, "driver", "type") or "raw"
        if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
            kind = "luks"
        if kind not in _FORMATS:
            yield Finding("FTKVM-123", {"device": target(disk), "format": kind})


def _snapshots(vm: VmFacts) -> Iterator[Finding]:
    for disk in _disks(vm):
        facts = vm.images.get(file(disk))
        if facts and facts.internal_snapshots and vm.rules.suits(file(disk)):
            yield Finding("FTKVM-126", {"device": target(disk)})


# -- other devices ---------------------------------------------------------------------------------------------


def nic_name(interface: ET.Element) -> str:
    """Its tap device, or its MAC address."""
    return attribute(interface, "target", "dev") or attribute(interface, "mac", "address") or "?"


def _nic_types(vm: VmFacts) -> Iterator[Finding]:
    for interface in vm.domain.iterfind("devices/interface"):
        kind = interface.get("type", "")
        port = attribute(interface, "virtualport", "type")
        if kind in ("bridge", "network") and not port:
            continue
        shown = f"{kind} ({port})" if port else kind
        yield Finding("FTKVM-130", {"device": nic_name(interface), "type": shown, "bridge": vm.rules.bridge})


def nic_back_end(interface: ET.Element) -> str | None:
    """The back end that FT cannot gate, in words; None if QEMU itself moves the packets."""
    driver = interface.find("driver")
    name = (driver.get("name") if driver is not None else None) or "vhost"
    queues = driver.get("queues") if driver is not None else None
    emulated = attribute(interface, "model", "type").startswith(("e1000", "rtl8139"))  # these never use vhost
    if name != "qemu" and not (emulated and driver is None):
        return name
    return f"qemu with {queues} queues" if queues not in (None, "1") else None


def _nic_back_ends(vm: VmFacts) -> Iterator[Finding]:
    for interface in vm.domain.iterfind("devices/interface"):
        back_end = nic_back_end(interface)
        if interface.get("type") in ("bridge", "network") and back_end:
            yield Finding("FTKVM-120", {"device": nic_name(interface), "backend": back_end})


def _host_bound(vm: VmFacts) -> Iterator[Finding]:
    for device in vm.domain.iterfind("devices/*"):
        kind = device.get("type", "")
        if device.tag in _HOST_BOUND:
            shown = " ".join(filter(None, (device.tag, kind, device.get("model"))))
            yield _not_carried(shown, _HOST_BOUND[device.tag])
        elif device.tag == "controller" and kind in ("fdc", "ccid"):
            yield _not_carried(f"controller {kind}", "Remove the controller with the drive or reader it is for")
        elif device.tag == "input" and (
            kind in ("passthrough", "evdev") or device.get("bus", "ps2") not in _INPUT_BUSES
        ):
            yield _not_carried(
                f"input {kind}", "Use <input type='tablet' bus='usb'/>, which no device of the host stands behind"
            )
        elif device.tag == "rng" and attribute(device, "backend", "model") == "egd":
            yield _not_carried("rng egd", "Use the back end <backend model='random'>/dev/urandom</backend>")


def _ports(vm: VmFacts) -> Iterator[Finding]:
    """Serial and parallel ports, consoles and channels that end in a file or a device of one host."""
    for port in vm.domain.iterfind("devices/*"):
        if port.tag in ("serial", "parallel", "console", "channel") and port.get("type") in ("file", "dev", "pipe"):
            number = attribute(port, "target", "port") or attribute(port, "target", "name") or "0"
            yield Finding("FTKVM-134", {"device": f"{port.tag} {number}", "source": shown_source(port)})


CHECKS: tuple[Check[VmFacts], ...] = (
    Check("domain-type", "runs in QEMU", _domain_type, Severity.ERROR),
    Check("template", "is not a template", _template, Severity.ERROR),
    Check("storage", "disks and CD-ROMs are files on the datastore", _shared_storage, Severity.WARNING),
    Check("nic-types", "NICs are on bridges of the cluster", _nic_types, Severity.WARNING),
    Check("ha", "HA restarts it", _ha, Severity.WARNING),
    Check("virtualisation", "runs on the host's processor", _emulated),
    Check("machine", "machine type", _machine),
    Check("firmware", "firmware", _firmware),
    Check("sealed-memory", "memory can be copied", _sealed_memory),
    Check("vcpus", "number of vCPUs", _vcpus),
    Check("disks", "number of disks", _many_disks),
    Check("nic-back-ends", "NICs go through QEMU", _nic_back_ends),
    Check("disk-kinds", "no floppies, no LUNs", _disk_kinds),
    Check("disk-buses", "disk buses", _disk_buses),
    Check("disk-marks", "disks are written by this VM alone", _disk_marks),
    Check("io-threads", "disks have no I/O threads", _io_threads),
    Check("image-formats", "image formats", _image_formats),
    Check("snapshots", "no snapshots", _snapshots),
    Check("host-devices", "no device of the host's", _host_bound),
    Check("ports", "no port ends in a file or device of the host", _ports),
    Check("arguments", "no QEMU arguments of its own", _arguments),
)
