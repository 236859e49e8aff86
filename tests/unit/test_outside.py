"""What is found of a copy that somebody changed past ftkvm, and what is not taken for a change."""

import re
from pathlib import Path

import pytest

from ftkvm.agent.outside import OLD_AFTER_S, Found, Outside, compare, warnings
from ftkvm.agent.records import CopyPlace, PairDoc
from ftkvm.catalogue import FtkvmError
from ftkvm.engine.machine import difference, machine_of

LIVE = """<domain type='qemu' id='3'><name>v1</name><uuid>u1</uuid><memory unit='KiB'>65536</memory>
<currentMemory unit='KiB'>65536</currentMemory><vcpu placement='static'>2</vcpu><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
<source file='/srv/ftkvm/images/v1.qcow2.ft-7-p.qcow2' index='3'/><backingStore type='file' index='1'/>
<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
<address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br-vm'/><target dev='vnet0'/>
<model type='virtio'/><driver name='qemu'/><alias name='net0'/>
<address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></interface>
<channel type='unix'><source mode='bind' path='/run/domain-3-v1/org.qemu.guest_agent.0'/>
<target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/><alias name='channel0'/></channel>
<graphics type='vnc' port='5900' autoport='yes'/></devices></domain>"""
IMAGE = "/srv/ftkvm/images/v1.qcow2.ft-7-p.qcow2"
NIC = "<interface type='bridge'><mac address='52:54:00:00:00:02'/><target dev='vnet1'/><alias name='net1'/></interface>"
PLACE = CopyPlace("h1", {"vda": IMAGE}, "boot", machine_of(LIVE))


def found(xml: str = LIVE, jobs: tuple[str, ...] = (), persistent: bool = False) -> Found:
    return compare("v1", PLACE, xml, jobs, epoch=7, persistent=persistent)


def test_nothing_was_changed() -> None:
    assert found().texts == ()


@pytest.mark.parametrize(("pattern", "other"), [
    ("vnet0", "vnet17"), ("id='3'", "id='44'"), ("domain-3-v1", "domain-44-v1"), ("index='3'", "index='9'"),
    ("state='disconnected'", "state='connected'"), ("port='5900'", "port='5907'"),
    ("<currentMemory unit='KiB'>65536", "<currentMemory unit='KiB'>49152"),
])  # fmt: skip
def test_what_differs_by_itself_is_no_change(pattern: str, other: str) -> None:
    assert pattern in LIVE
    assert found(LIVE.replace(pattern, other)).texts == ()


def test_another_image() -> None:
    (change,) = found(LIVE.replace(IMAGE, "/srv/ftkvm/images/v1.snap")).changes
    assert change.code == "FTKVM-150"
    assert (change.params["image"], change.params["recorded"]) == ("/srv/ftkvm/images/v1.snap", IMAGE)


@pytest.mark.parametrize(("xml", "difference"), [
    (LIVE.replace("</devices>", f"{NIC}</devices>"), "+interface bridge 52:54:00:00:00:02"),
    (re.sub("<interface.*?</interface>", "", LIVE, flags=re.S),
     "-interface bridge 52:54:00:00:00:01 virtio at 0x00:0x0000:0x0:0x03:pci"),
    (LIVE.replace("'static'>2<", "'static' current='1'>2<"), "+vcpu 1, -vcpu 2"),
    (LIVE.replace("<model type='virtio'/>", "<model type='virtio'/><link state='down'/>"),
     "+interface bridge 52:54:00:00:00:01 virtio down at 0x00:0x0000:0x0:0x03:pci, "
     "-interface bridge 52:54:00:00:00:01 virtio at 0x00:0x0000:0x0:0x03:pci"),
])  # fmt: skip
def test_other_devices(xml: str, difference: str) -> None:
    (change,) = found(xml).changes
    assert (change.code, change.params["difference"]) == ("FTKVM-151", difference)


def test_two_alike_are_two() -> None:
    two = machine_of(LIVE.replace("</devices>", f"{NIC}{NIC}</devices>"))
    one = machine_of(LIVE.replace("</devices>", f"{NIC}</devices>"))
    assert difference(two, one) == "-interface bridge 52:54:00:00:00:02"


def test_jobs_and_a_definition_are_told_and_end_nothing() -> None:
    seen = found(jobs=("pull-vda-libvirt-1-format",), persistent=True)
    assert seen.changes == ()
    assert [each.code for each in seen.notes] == ["FTKVM-152", "FTKVM-153"]


def test_a_record_of_an_older_version_says_nothing_of_devices() -> None:
    old = PairDoc("u1", "v1", 7, PLACE, PLACE).to_json()
    del old["primary"]["machine"]
    place = PairDoc.from_json(old).primary
    assert (
        compare("v1", place, LIVE.replace("</devices>", f"{NIC}</devices>"), (), epoch=7, persistent=False).texts == ()
    )
    assert PairDoc.from_json(PairDoc("u1", "v1", 7, PLACE, PLACE).to_json()).secondary == PLACE


def test_what_the_other_host_found_counts_for_its_epoch_and_its_notes_for_some_seconds() -> None:
    change, note = FtkvmError("FTKVM-150", vm="v1"), FtkvmError("FTKVM-153", vm="v1")
    outside = Outside(peers=Found.from_json(Found(7, (change,), (note,)).to_json()))
    assert outside.peers is not None
    at = outside.peers.at
    assert [each.code for each in outside.of(7, at).changes] == ["FTKVM-150"]
    assert [each.code for each in outside.of(7, at).notes] == ["FTKVM-153"]
    assert (len(outside.of(7, at + OLD_AFTER_S).changes), outside.of(7, at + OLD_AFTER_S).notes) == (1, ())
    assert outside.of(8, at).texts == ()


def test_status_tells_it_while_it_is_so_and_after_the_pair_was_made_anew() -> None:
    outside = Outside(own=Found(7, (FtkvmError("FTKVM-150", vm="v1", disk="vda"),)))
    (now,) = warnings(outside, 7, None)
    assert now.startswith("FTKVM-150: VM v1: disk vda") and "turn-off v1" in now
    (before,) = warnings(outside, 8, {"reason": "colo-exit", "epoch": 7})
    assert before.startswith("the pair was ended and made anew: FTKVM-150")
    assert warnings(outside, 9, None) == []
    ended = {"reason": "changed-outside", "epoch": 7, "detail": "FTKVM-150: it"}
    assert warnings(Outside(), 8, ended) == ["the pair was ended and made anew: FTKVM-150: it"]
    assert warnings(Outside(), 9, ended) == []
    assert warnings(Outside(), 8, {"reason": "peer-silent", "epoch": 7}) == []


def test_every_shape_of_domain_is_the_same_as_itself() -> None:
    for path in sorted((Path(__file__).parents[1] / "checks/vm").glob("*.xml")):
        xml = path.read_text()
        assert difference(machine_of(xml), machine_of(xml)) == ""
