"""Which disks are converted, under which names, and what the definition says afterwards."""

from pathlib import Path

import pytest

from ftkvm.core.checks.convert import Conversion, conversions
from ftkvm.core.checks.domain import Rules, VmFacts
from ftkvm.core.checks.mend import mend, on_new_images
from ftkvm.core.checks.model import run
from ftkvm.core.checks.vm import CHECKS

DIRECTORY = Path(__file__).parent / "vm"
RULES = Rules(datastore="/srv/ft")
CONVERTED = {
    "disk-vmdk": Conversion("vdb", "/srv/ft/b.vmdk", "vmdk", "/srv/ft/b.qcow2"),
    "disk-raw-block": Conversion("vda", "/dev/sdb", "raw", "/srv/ft/images/vm1-vda.qcow2"),
    "disk-local-file": Conversion("vdb", "/var/lib/libvirt/images/b.qcow2", "qcow2", "/srv/ft/images/vm1-vdb.qcow2"),
    "disk-path-out-of-datastore": Conversion("vdb", "/srv/ft/../b.qcow2", "qcow2", "/srv/ft/images/vm1-vdb.qcow2"),
}
DISK = "<disk type='file' device='disk'><driver name='qemu' type='{1}'/><source file='{0}'/><target dev='{2}'/></disk>"


def domain(*disks: tuple[str, str, str]) -> str:
    return f"<domain><name>v</name><devices>{''.join(DISK.format(*each) for each in disks)}</devices></domain>"


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.xml")), ids=lambda path: path.stem)
def test_only_disks_that_are_refused_for_their_image(path: Path) -> None:
    xml = path.read_text()
    expected = CONVERTED.get(path.stem)
    found = conversions(xml, "vm1", RULES, lambda each: not each.startswith("/srv/ft/") or each.endswith(".vmdk")
                        or ".." in each)  # fmt: skip
    assert found == ((expected,) if expected else ())
    if expected:
        changed = on_new_images(xml, found)
        assert [each.code for each in run("vm", CHECKS, VmFacts.of(xml, RULES), vm="vm1").findings] != []
        assert run("vm", CHECKS, VmFacts.of(changed.xml, RULES), vm="vm1").findings == ()
        assert changed.changes == (str(expected),) and expected.source not in changed.xml
        assert mend(xml, RULES, found).xml == changed.xml


def test_a_name_that_is_taken_is_left_to_who_has_it() -> None:
    there = {"/srv/ft/a.vmdk", "/srv/ft/a.vdi", "/srv/ft/a.qcow2"}
    xml = domain(("/srv/ft/a.vmdk", "vmdk", "vda"), ("/srv/ft/a.vdi", "vdi", "vdb"))
    found = conversions(xml, "v", RULES, there.__contains__)
    assert [each.image for each in found] == ["/srv/ft/a-1.qcow2", "/srv/ft/a-2.qcow2"]


def test_an_image_that_this_host_does_not_see_is_left_alone() -> None:
    assert conversions(domain(("/srv/ft/a.vmdk", "vmdk", "vda")), "v", RULES, lambda _path: False) == ()


def test_the_definition_tells_the_format() -> None:
    """What the guest has written into a raw image must not choose how it is read."""
    [found] = conversions(domain(("/var/a.vmdk", "raw", "vda")), "v", RULES, {"/var/a.vmdk"}.__contains__)
    assert found.source_format == "raw"
