"""What `vm prepare` mends, on the domains of ``vm/``."""

from pathlib import Path

import pytest

from ftkvm.core.checks.domain import Rules, VmFacts
from ftkvm.core.checks.mend import mend
from ftkvm.core.checks.model import run
from ftkvm.core.checks.vm import CHECKS

DIRECTORY = Path(__file__).parent / "vm"
RULES = Rules(datastore="/srv/ft")
MENDABLE = {
    "nic-vhost-default", "nic-vhost-named", "nic-multiqueue", "two-troubles-one-device-each", "sound-ich9", "sound-usb",
    "usb-redirection", "usb-redirection-tcp", "smartcard-host", "floppy-file", "cdrom-host-drive", "cdrom-local-iso",
    "cdrom-remote-iso", "serial-file", "serial-host-port", "serial-pipe", "parallel-host-port", "parallel-file",
    "channel-file", "disk-io-thread", "rng-egd",
}  # fmt: skip


def findings(xml: str) -> list[str]:
    return [each.code for each in run("vm", CHECKS, VmFacts.of(xml, RULES), vm="vm1").findings]


@pytest.mark.parametrize("name", sorted(MENDABLE))
def test_mended(name: str) -> None:
    xml = (DIRECTORY / f"{name}.xml").read_text()
    mended = mend(xml, RULES)
    assert mended.changes
    assert findings(xml) and not findings(mended.xml)
    assert "\n+" in mended.difference or "\n-" in mended.difference
    again = mend(mended.xml, RULES)
    assert (again.changes, again.xml) == ((), mended.xml)


@pytest.mark.parametrize("path", [each for each in sorted(DIRECTORY.glob("*.xml")) if each.stem not in MENDABLE],
                         ids=lambda path: path.stem)  # fmt: skip
def test_left_as_it_is(path: Path) -> None:
    xml = path.read_text()
    mended = mend(xml, RULES)
    assert (mended.xml, mended.changes, mended.difference) == (xml, (), "")


def test_the_rest_stays_and_disks_are_not_touched() -> None:
    head = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>vm1</name><metadata>"
    head += "<x:y xmlns:x='urn:x'>kept</x:y></metadata><devices>"
    disk = "<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='sda' bus='scsi'/></disk>"
    tail = "<sound model='ac97'/></devices><qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
    mended = mend(head + disk + tail, RULES)
    assert mended.changes == ("sound ac97: removed",)
    assert "<x:y" in mended.xml and "<qemu:arg" in mended.xml and 'dev="/dev/sda"' in mended.xml
    assert mended.difference.count("\n-") == 1  # one line goes, none comes
    assert mended.difference.count("\n+") == 0 + mended.difference.count("\n+++")
