"""VMs of other shapes than the lab's small one: protected, failed over with a client connected, taken apart again.

CI takes the shape that has most at once, and a refusal; ``FTKVM_FULL=1`` (`make long`) takes them all. What was seen is
in docs/engine-notes.md.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ftkvm.lab import faults
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.host import Host
from ftkvm.lab.looks import hmp

from .conftest import FULL
from .disk import image_of
from .seat import Seat, seated

pytestmark = pytest.mark.lab

PATIENCE_S = 120
EXTRA_SIZE = "256M"


@dataclass(frozen=True)
class Shape:
    """``disks``: beside the guest's own; ``nics``: beside its own; ``change``: anything else in the XML."""

    disks: int = 0
    nics: int = 0
    change: Callable[[str], str] = lambda xml: xml
    failovers: int = 1
    bus: str = "virtio"
    memory_mb: int = 160


def _q35(xml: str) -> str:
    return xml.replace("machine='pc'", "machine='q35'")


def _vcpus(number: int) -> Callable[[str], str]:
    return lambda xml: re.sub(r"<vcpu>\d+</vcpu>", f"<vcpu>{number}</vcpu>", xml)


def _iothread(xml: str) -> str:
    xml = xml.replace("<os>", "<iothreads>1</iothreads><os>", 1)
    return xml.replace("cache='none'/>", "cache='none' iothread='1'/>", 1)


SHAPES = {
    "q35-2-vcpus-4-disks-3-nics": Shape(3, 2, lambda xml: _vcpus(2)(_q35(xml))),
    "pc-3-disks-2-nics": Shape(2, 1),
    "ide-disk-beside": Shape(1, 0, bus="ide"),
    "3-gib-of-memory": Shape(memory_mb=3072, failovers=2),
    "16-disks-3-nics": Shape(15, 2, failovers=3),
}
CI = ["q35-2-vcpus-4-disks-3-nics"]


def targets(shape: Shape) -> list[str]:
    """Targets of the disks beside the guest's own."""
    letters = "bcdefghijklmnopq"[: shape.disks]
    return [f"hd{letters[0]}"] if shape.bus == "ide" else [f"vd{letter}" for letter in letters]


def extended(seat: Seat, name: str, shape: Shape) -> Callable[[str], str]:
    """The change that gives a guest's XML this shape; makes its images."""

    def change(xml: str) -> str:
        more = ""
        for target in targets(shape):
            image = seat.image(f"{name}-{target}.qcow2", EXTRA_SIZE)
            more += (
                f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>"
                f"<source file='{image}'/><target dev='{target}' bus='{shape.bus}'/></disk>"
            )
        for number in range(shape.nics):
            mac = f"52:54:00:7e:{len(seat.guests):02x}:{number:02x}"
            more += (
                f"<interface type='bridge'><mac address='{mac}'/><source bridge='br-vm'/><model type='virtio'/>"
                "<driver name='qemu'/></interface>"
            )
        return shape.change(xml.replace("<controller type='usb'", more + "<controller type='usb'", 1))

    return change


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host17", "host18") as made:
        made.add_all_hosts()
        yield made


def write(host: Host, guest: Guest, number: int) -> None:
    """Write pattern ``number`` at ``number`` MiB to a disk beside the guest's own, as the guest would."""
    device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
    said = hmp(host, guest.name, f'qemu-io -d {device} "write -P {number} {number}M 64k"')
    assert "rror" not in said and "ailed" not in said, said


def check(seat: Seat, host: Host, guest: Guest, shape: Shape) -> None:
    for number, target in enumerate(targets(shape), 1):
        image = image_of(seat, guest.name, target)
        said = host.run(["qemu-io", "-U", "-r", "-c", f"read -P {number} {number}M 64k", image], timeout_s=60)
        assert "read 65536/65536" in said and "ailed" not in said, (target, said)


@pytest.mark.parametrize("name", list(SHAPES) if FULL else CI)
def test_shape(seat: Seat, name: str) -> None:
    shape = SHAPES[name]
    guest = seat.guest(f"s{len(seat.guests)}", extended(seat, f"s{len(seat.guests)}", shape), shape.memory_mb)
    seat.ok("vm", "start", guest.name, "--host", seat.hosts[0].name)
    try:
        wait_for_guest(guest.address, PATIENCE_S)
        said = seat.run("enable", guest.name, timeout_s=PATIENCE_S)
        assert said.status == 0, said.err + seat.logs()
        pair = seat.wait_protected(guest.name, 0, PATIENCE_S)
        with CounterClient(guest.address) as counter:
            for failover in range(shape.failovers):
                if shape.bus == "virtio" and not failover:
                    for number in range(1, shape.disks + 1):
                        write(seat.host(pair["host"]), guest, number)
                    time.sleep(3.0)  # a checkpoint covers it: the second host's guest does not make this write itself
                before, at = counter.last, time.monotonic()
                faults.kill(pair["host"], f"qemu:{guest.name}")
                after = seat.wait_protected(guest.name, pair["epoch"], PATIENCE_S)
                print(f"{name}: protected again after {time.monotonic() - at:.1f} s, {after['last_failover']}")
                assert after["host"] == pair["secondary_host"]
                assert (counter.broken, counter.gaps) == (None, 0)
                deadline = time.monotonic() + 20
                while counter.last <= before:
                    assert time.monotonic() < deadline, f"the client is not served: {counter.last}"
                    time.sleep(0.05)
                pair = after
            if shape.bus == "virtio":
                check(seat, seat.host(pair["host"]), guest, shape)
            assert seat.run("turn-off", guest.name, timeout_s=PATIENCE_S).status == 0
            last = counter.last
            time.sleep(2.0)
            assert (counter.broken, counter.gaps) == (None, 0)
            assert counter.last > last
        if shape.bus == "virtio":
            check(seat, seat.host(pair["host"]), guest, shape)
        assert not list((seat.datastore / "images").glob("*.ft-*"))
    finally:
        seat.run("turn-off", guest.name, timeout_s=PATIENCE_S)
        seat.run("vm", "stop", guest.name, "--force")


def _scsi(xml: str) -> str:
    xml = xml.replace("<target dev='vda' bus='virtio'/>", "<target dev='sda' bus='scsi'/>")
    controllers = "<controller type='scsi' model='virtio-scsi'/><controller type='usb'"
    return xml.replace("<controller type='usb'", controllers, 1)


@pytest.mark.parametrize(("change", "code"), [(_scsi, "FTKVM-125"), (_iothread, "FTKVM-131")])
def test_what_cannot_be_carried_is_refused(seat: Seat, change: Callable[[str], str], code: str) -> None:
    """virtio-scsi: a disk's node cannot be changed while it runs. I/O threads: QEMU aborts at go-live."""
    guest = seat.guest(f"s{len(seat.guests)}", change)
    seat.ok("vm", "start", guest.name, "--host", seat.hosts[0].name)
    with seat.unchanged():
        assert seat.run("enable", guest.name).code == code
    seat.ok("vm", "stop", guest.name, "--force")
