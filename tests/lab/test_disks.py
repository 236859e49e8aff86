"""Disks that are not as FT has them by itself: converted first (FT-17), and without shared storage (FT-22).

``FTKVM_FULL=1`` (`make long`) only: three hosts of its own, two guests, and a good many full copies.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ftkvm.lab import faults, ledger, names
from ftkvm.lab import lab as labs
from ftkvm.lab.client import CounterClient, LedgerClient, wait_for_guest
from ftkvm.lab.host import Host

from .disk import image_of, place, qmp
from .seat import DOMAIN, Seat, seated

pytestmark = [pytest.mark.lab, pytest.mark.long]

HOSTS = ("host31", "host32", "host33")
OWN = "/var/lib/vm"
FAULT_POINT = "/run/ftkvm/stop-after-step"
PATIENCE_S = 150


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), *HOSTS) as made:
        made.add_all_hosts()
        for host in made.hosts:
            host.run(["mkdir", "-p", OWN])
        yield made


@contextmanager
def clients(address: str) -> Iterator[tuple[CounterClient, LedgerClient]]:
    with CounterClient(address) as counter, LedgerClient(address, every_s=0.02) as records:
        yield counter, records


def with_disk(before: str, path: str, image_format: str) -> Callable[[str], str]:
    """The change of a guest's XML that gives it another disk."""
    return lambda xml: xml.replace(before, path).replace("type='qcow2'", f"type='{image_format}'")


def power_on_alone(seat: Seat, name: str) -> None:
    """Boot a host while others are off, and wait until its agent answers."""
    host = seat.host(name)
    host.boot(names.IMAGES / labs.record().image, None)
    host.wait_ready()
    deadline = time.monotonic() + 60
    while not any(row["name"] == name and row["answers"] for row in seat.run("host", "list").out or []):
        assert time.monotonic() < deadline, seat.logs()
        time.sleep(0.5)


def define(seat: Seat, host: Host, name: str, image: str, image_format: str) -> None:
    """Define a domain without a system on its disk."""
    xml = DOMAIN.format(name=name, image=image, driver="<driver name='qemu'/>")
    (seat.datastore / f"{name}.xml").write_text(xml.replace("type='qcow2'", f"type='{image_format}'"))
    host.run(["virsh", "-q", "define", f"{seat.inside}/{name}.xml"])


def own_files(host: Host) -> list[str]:
    return host.run(["ls", OWN]).split()


def test_enable_of_a_vm_that_is_off_converts_its_disk_and_it_is_protected_when_it_starts(seat: Seat) -> None:
    vmdk = f"{seat.inside}/images/v1.vmdk"
    guest = seat.guest("v1", with_disk(f"{seat.inside}/images/v1.qcow2", vmdk, "vmdk"))
    images = seat.datastore / "images"
    one = seat.hosts[0]
    one.run(["qemu-img", "convert", "-O", "vmdk", f"{seat.inside}/images/v1.qcow2", vmdk], timeout_s=60)
    one.run(["qemu-io", "-f", "vmdk", "-c", "write -P 7 512M 384M", vmdk], timeout_s=60)  # so that there is progress
    (images / "v1.qcow2").unlink()
    said = seat.run("enable", "v1")
    assert said.status == 0, said.err
    print(said.err)
    assert "converting disk vda: " in said.err
    assert said.out["result"]["kept"] == [vmdk]
    assert {path.name for path in images.iterdir()} == {"v1.vmdk", "v1.qcow2"}
    one.run(["qemu-img", "compare", vmdk, f"{seat.inside}/images/v1.qcow2"], timeout_s=60)
    seat.ok("vm", "start", "v1", "--host", one.name)
    wait_for_guest(guest.address, PATIENCE_S)
    seat.wait_protected("v1", 0, PATIENCE_S)
    seat.ok("turn-off", "v1")
    seat.ok("vm", "stop", "--force", "v1")


def test_without_shared_storage(seat: Seat) -> None:
    one = seat.hosts[0]
    disk = f"{OWN}/c1.qcow2"
    guest = seat.guest("c1", with_disk(f"{seat.inside}/images/c1.qcow2", disk, "qcow2"))
    one.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"])
    one.run(["qemu-io", "-c", "write -P 7 512M 192M", disk], timeout_s=60)  # so that there is progress
    seat.ok("vm", "start", "c1", "--host", one.name)
    wait_for_guest(guest.address, PATIENCE_S)
    with seat.unchanged():
        assert seat.run("enable", "c1").code == "FTKVM-124"
    seat.ok("vm", "set", "c1", "ft.disks=copy")
    with clients(guest.address) as (counter, records):
        said = seat.run("enable", "c1", timeout_s=PATIENCE_S)
        assert said.status == 0, said.err + seat.logs()
        print(said.err)
        assert "copy the disks to" in said.err
        pair = seat.wait_protected("c1", 0, PATIENCE_S)
        # a QEMU is killed: the other host's own image goes on, and a third copy is made in full
        faults.kill(pair["host"], "qemu:c1")
        pair, before = seat.wait_protected("c1", pair["epoch"], PATIENCE_S), pair
        print(pair["last_failover"], pair["protect"])
        assert pair["host"] == before["secondary_host"]
        assert image_of(seat, "c1") == f"{disk}.ft-{before['epoch']}-s.qcow2"
        # a host loses power
        seat.crash(pair["host"])
        lost, before = pair["host"], pair
        pair = seat.wait_protected("c1", pair["epoch"], PATIENCE_S)
        assert pair["host"] == before["secondary_host"] and lost not in (pair["host"], pair["secondary_host"])
        assert (counter.broken, counter.gaps) == (None, 0)
        last = len(records.acknowledged)
        assert last > 50
    seat.power_on(lost)
    # both hosts of the pair lose power: what the third has is old, and is never started
    acknowledged = list(records.acknowledged)
    primary, second = str(pair["host"]), str(pair["secondary_host"])
    seat.ok("cluster", "set", "ha.enabled=off")
    seat.crash(primary, second)
    power_on_alone(seat, second)
    assert seat.run("vm", "start", "c1", timeout_s=60).status != 0
    assert seat.run("vm", "start", "c1", "--host", lost, timeout_s=60).status != 0
    seat.power_on(primary)
    for wrong in (lost, second):
        said = seat.run("vm", "start", "c1", "--host", wrong, timeout_s=60)
        assert said.code == "FTKVM-172", (said.code, said.err)
    seat.ok("vm", "start", "c1")
    assert place(seat, "c1").name == primary
    wait_for_guest(guest.address, PATIENCE_S)
    protected = seat.wait_protected("c1", int(pair["epoch"]), PATIENCE_S)
    seat.ok("turn-off", "c1")
    left = own_files(seat.host(protected["secondary_host"]))
    assert not [name for name in left if f".ft-{protected['epoch']}-" in name], left
    image = image_of(seat, "c1")
    seat.ok("vm", "stop", "--force", "c1")
    home = seat.host(primary)
    verdict = ledger.verify(home, image, acknowledged)
    print(verdict.acknowledged, len(verdict.lost), len(verdict.doubled), len(verdict.wrong))
    assert not verdict.lost and not verdict.wrong
    assert image in (seat.datastore / f".ftkvm/vms/{guest.uuid}/domain.xml").read_text()
    print({host.name: own_files(host) for host in seat.hosts})


def test_a_conversion_whose_agent_dies_is_made_anew(seat: Seat) -> None:
    """qemu-img ends with the agent, the definition is the old one, and the next run removes the file."""
    one = seat.hosts[0]
    vmdk, images = f"{seat.inside}/images/v3.vmdk", seat.datastore / "images"
    images.mkdir(exist_ok=True)
    one.run(["qemu-img", "create", "-q", "-f", "vmdk", vmdk, "1G"])
    one.run(["qemu-io", "-f", "vmdk", "-c", "write -P 7 0 768M", vmdk], timeout_s=60)
    define(seat, one, "v3", vmdk, "vmdk")
    seat.ok("vm", "register", "v3", "--host", one.name)
    before = (seat.datastore / f".ftkvm/vms/{seat.vm('v3')['uuid']}/domain.xml").read_text()
    with subprocess.Popen(seat.words("vm", "prepare", "v3"), env=seat.environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as prepare:  # fmt: skip
        deadline = time.monotonic() + 30
        while not (begun := list(images.glob("v3.qcow2.*.converting"))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for host in seat.hosts:
            host.run(["systemctl", "kill", "-s", "KILL", "ftkvm-agent"])
        assert prepare.wait(60) != 0
    assert all(host.run(["sh", "-c", "pgrep -x qemu-img || true"]) == "" for host in seat.hosts)
    assert begun[0].exists() and not (images / "v3.qcow2").exists()
    assert (seat.datastore / f".ftkvm/vms/{seat.vm('v3')['uuid']}/domain.xml").read_text() == before
    seat.wait_hosts()
    seat.ok("vm", "prepare", "v3")
    assert not list(images.glob("*.converting"))
    one.run(["qemu-img", "compare", vmdk, f"{seat.inside}/images/v3.qcow2"], timeout_s=60)


def test_a_host_without_room_takes_no_copy_and_one_that_is_filled_up_half_way_loses_it_again(seat: Seat) -> None:
    one, two, three = seat.hosts
    small = f"{OWN}/small"
    disk = f"{small}/r1.qcow2"
    one.run(["mkdir", "-p", small])
    two.run(["sh", "-c", f"mkdir -p {small} && mount -t tmpfs -o size=48M none {small}"])
    one.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"])
    one.run(["qemu-io", "-c", "write -P 7 0 40M", disk], timeout_s=60)
    define(seat, one, "r1", disk, "qcow2")
    seat.ok("vm", "register", "r1", "--host", one.name)
    seat.ok("vm", "set", "r1", "ft.disks=copy")
    seat.ok("vm", "start", "r1", "--host", one.name)
    with seat.unchanged():
        refused = seat.run("enable", "r1")
        checked = seat.run("check", "vm", "r1", "--for-ft")
    room = f"{two.name}: disk-room ({small}: 48 MiB free, whole copies may need 64 MiB)"
    assert (refused.code, room in refused.err, checked.status) == ("FTKVM-156", True, 1), refused.err
    assert f"{three.name}: disk-room (there is no directory {small})" in refused.err
    assert [room in each["text"] for each in checked.out["findings"] if each["code"] == "FTKVM-156"] == [True]
    two.run(["mount", "-o", "remount,size=72M", small])
    nodes = qmp(one, "r1", "query-named-block-nodes", flat=True)
    with seat.waiting_after("channels", "enable", "r1", timeout_s=PATIENCE_S) as ended:
        assert "r1.qcow2.ft-1-s.qcow2" in two.run(["ls", small])
        two.run(["fallocate", "-l", "50M", f"{small}/fill"])
    (said,) = ended
    assert (said.code, "No space left on device" in said.err) == ("FTKVM-157", True), said.err + seat.logs()
    assert two.run(["ls", small]).split() == ["fill"]
    assert (seat.vm("r1")["state"], seat.vm("r1")["ft"]) == ("running", False)
    after = qmp(one, "r1", "query-named-block-nodes", flat=True)
    assert {node["node-name"] for node in after} == {node["node-name"] for node in nodes}
    assert "r1" not in two.run(["virsh", "-q", "list", "--all", "--name"]).split()
    two.run(["rm", f"{small}/fill"])
    seat.ok("enable", "r1")
    assert seat.wait_protected("r1", 0, PATIENCE_S)["secondary_host"] == two.name
    seat.ok("turn-off", "r1")
    seat.ok("vm", "stop", "--force", "r1")
    two.run(["umount", small])


@pytest.mark.parametrize("step", ["secondary", "mirror", "record"])
def test_a_copy_that_is_cut_off_leaves_nothing(seat: Seat, step: str) -> None:
    """The agent dies after a step; the VM is protected by the next attempt, and only that one's images are there."""
    one, name = seat.hosts[0], f"cut-{step}"
    disk = f"{OWN}/{name}.qcow2"
    one.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"])
    define(seat, one, name, disk, "qcow2")
    seat.ok("vm", "register", name, "--host", one.name)
    seat.ok("vm", "set", name, "ft.disks=copy")
    seat.ok("vm", "start", name, "--host", one.name)
    one.run(["sh", "-c", f"echo {step} > {FAULT_POINT}"])
    assert seat.run("enable", name, timeout_s=60).status != 0
    pair = seat.wait_protected(name, 0, PATIENCE_S)
    assert one.run(["sh", "-c", f"ls {FAULT_POINT} 2>/dev/null || true"]) == ""  # it did die there
    assert pair["host"] == one.name
    image = f"{name}.qcow2.ft-{pair['epoch']}-"
    for host in seat.hosts[1:]:
        there = [file for file in own_files(host) if file.startswith(name)]
        wanted = [f"{image}{side}.qcow2" for side in "ahs"] if host.name == pair["secondary_host"] else []
        assert sorted(there) == wanted
    seat.ok("turn-off", name)
    seat.ok("vm", "stop", "--force", name)
