"""Which domains can be protected: each refusal, alone, on an otherwise good domain."""
# ruff: noqa: E501  (XML)

from dataclasses import replace

import pytest

from ftkvm.core.checks.domain import ImageFacts, Rules, VmFacts, disk_files
from ftkvm.core.checks.model import run
from ftkvm.core.checks.vm import CHECKS

DISK = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/ft/a.qcow2'/><target dev='vda' bus='virtio'/></disk>"
NIC = "<interface type='bridge'><source bridge='br-vm'/><target dev='vnet0'/><model type='virtio'/><driver name='qemu'/></interface>"
RULES = Rules(datastore="/srv/ft")


def domain(
    devices: str = DISK + NIC, kind: str = "kvm", machine: str = "pc-q35-10.0", vcpu: str = "2", os: str = ""
) -> str:
    return (
        f"<domain type='{kind}'><name>vm1</name><vcpu>{vcpu}</vcpu><os><type machine='{machine}'>hvm</type>{os}</os>"
        f"<devices>{devices}</devices></domain>"
    )


def codes(xml: str, images: dict[str, ImageFacts] | None = None) -> list[str]:
    return [finding.code for finding in run("vm vm1", CHECKS, VmFacts.of(xml, RULES, images), vm="vm1").findings]


@pytest.mark.parametrize("machine", ["pc", "q35", "pc-i440fx-7.2", "pc-q35-11.1"])
def test_good(machine: str) -> None:
    assert codes(domain(machine=machine), {"/srv/ft/a.qcow2": ImageFacts("qcow2")}) == []


@pytest.mark.parametrize(
    ("allowed", "for_ft", "code", "passes"),
    [(False, True, "FTKVM-136", False), (True, True, "FTKVM-137", True), (False, False, "", True)],
)
def test_emulation_is_allowed_on_purpose_or_not_at_all(allowed: bool, for_ft: bool, code: str, passes: bool) -> None:
    facts = VmFacts.of(domain(kind="qemu"), replace(RULES, emulation=allowed))
    report = run("vm vm1", CHECKS, facts, for_ft=for_ft, vm="vm1")
    assert [each.code for each in report.findings] == ([code] if code else [])
    assert (not report.errors) is passes


@pytest.mark.parametrize("extra", [
    "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>",
    "<serial type='pty'/>", "<graphics type='vnc'/>", "<video><model type='virtio'/></video>", "<memballoon model='virtio'/>",
    "<rng model='virtio'/>", "<input type='tablet' bus='usb'/>", "<controller type='usb' model='qemu-xhci'/>",
    "<channel type='unix'/>", "<watchdog model='itco'/>",
    "<interface type='bridge'><source bridge='br-vm'/><model type='e1000e'/></interface>",
])  # fmt: skip
def test_what_can_be_carried(extra: str) -> None:
    assert codes(domain(DISK + NIC + extra)) == []


@pytest.mark.parametrize(("devices", "code"), [
    (NIC.replace("<driver name='qemu'/>", ""), "FTKVM-120"),
    (NIC.replace("name='qemu'", "name='vhost'"), "FTKVM-120"),
    (NIC.replace("name='qemu'", "name='qemu' queues='4'"), "FTKVM-120"),
    (NIC.replace("type='bridge'", "type='user'"), "FTKVM-130"),
    (NIC.replace("type='bridge'", "type='vhostuser'"), "FTKVM-130"),
    (NIC.replace("type='bridge'", "type='vdpa'"), "FTKVM-130"),
    (NIC.replace("type='bridge'", "type='hostdev'"), "FTKVM-130"),
    (NIC.replace("type='bridge'", "type='direct'"), "FTKVM-130"),
    (DISK.replace("qcow2'/><source", "vmdk'/><source"), "FTKVM-123"),
    (DISK.replace("/srv/ft/", "/var/lib/libvirt/images/"), "FTKVM-124"),
    (DISK.replace("/srv/ft/", "/srv/ft/../x/"), "FTKVM-124"),
    (DISK.replace("/srv/ft/", "/srv/ft2/"), "FTKVM-124"),
    (DISK.replace("type='file'", "type='block'").replace("file=", "dev="), "FTKVM-124"),
    (DISK.replace("bus='virtio'", "bus='scsi'"), "FTKVM-125"),
    (DISK.replace("bus='virtio'", "bus='usb'"), "FTKVM-125"),
    (DISK.replace("</disk>", "<shareable/></disk>"), "FTKVM-127"),
    (DISK.replace("<driver ", "<driver iothread='1' "), "FTKVM-131"),
    (DISK.replace("</disk>", "<readonly/></disk>"), "FTKVM-127"),
    (DISK.replace("</disk>", "<transient/></disk>"), "FTKVM-127"),
    (DISK.replace("device='disk'", "device='floppy'"), "FTKVM-122"),
    (DISK.replace("device='disk'", "device='lun'"), "FTKVM-122"),
    ("<hostdev mode='subsystem' type='pci'/>", "FTKVM-122"),
    ("<hostdev mode='subsystem' type='mdev'/>", "FTKVM-122"),
    ("<redirdev bus='usb' type='spicevmc'/>", "FTKVM-122"),
    ("<sound model='ich9'/>", "FTKVM-122"),
    ("<filesystem type='mount'/>", "FTKVM-122"),
    ("<shmem name='x'/>", "FTKVM-122"),
    ("<tpm model='tpm-crb'/>", "FTKVM-122"),
    ("<vsock model='virtio'/>", "FTKVM-122"),
    ("<input type='passthrough' bus='virtio'/>", "FTKVM-122"),
    ("<controller type='fdc'/>", "FTKVM-122"),
    ("<disk type='file' device='cdrom'><source file='/home/me/x.iso'/><target dev='sda' bus='sata'/></disk>", "FTKVM-124"),
])  # fmt: skip
def test_what_cannot(devices: str, code: str) -> None:
    rest = (NIC if "<interface" not in devices else "") + (DISK if "<disk" not in devices else "")
    assert codes(domain(devices + rest)) == [code]


@pytest.mark.parametrize(("xml", "code"), [
    (domain(kind="xen"), "FTKVM-129"),
    (domain(machine="microvm"), "FTKVM-121"),
    (domain(machine="virt-9.0"), "FTKVM-121"),
    (domain(vcpu="9"), "FTKVM-128"),
    (domain(os="<nvram>/var/lib/x.fd</nvram>"), "FTKVM-122"),
])  # fmt: skip
def test_machines(xml: str, code: str) -> None:
    assert codes(xml) == [code]


def test_images_count_more_than_the_xml() -> None:
    assert codes(domain(), {"/srv/ft/a.qcow2": ImageFacts("qcow2", 2)}) == ["FTKVM-126"]
    assert codes(domain(), {"/srv/ft/a.qcow2": ImageFacts("vdi")}) == ["FTKVM-123"]


def test_more_than_sixteen_disks_are_warned_of() -> None:
    disks = [DISK.replace("dev='vda'", f"dev='vd{letter}'") for letter in "abcdefghijklmnopq"]
    assert codes(domain("".join(disks[:16]) + NIC)) == []
    assert codes(domain("".join(disks) + NIC)) == ["FTKVM-138"]


def test_all_reasons_are_told() -> None:
    bad = NIC.replace("<driver name='qemu'/>", "") + DISK.replace("virtio", "scsi") + "<sound model='ac97'/>"
    assert codes(domain(bad, machine="virt")) == ["FTKVM-121", "FTKVM-120", "FTKVM-125", "FTKVM-122"]


def test_disk_files() -> None:
    cdrom = "<disk type='file' device='cdrom'><source file='/srv/ft/x.iso'/><target dev='sda'/></disk>"
    assert disk_files(domain(DISK + cdrom)) == {"vda": "/srv/ft/a.qcow2"}
