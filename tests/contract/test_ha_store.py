"""The HA machine's files on a real directory: what is written is read, claims go once, corrupt files are named."""

import threading
import time
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.ha.store import HaStore
from ftkvm.core.ha.model import (
    Heartbeat,
    HostCapacity,
    HostMode,
    IsolationResponse,
    Lease,
    Owner,
    OwnerWhy,
    Priority,
    Roles,
)
from ftkvm.core.ha.placing import Room
from ftkvm.ports import CorruptFile, Json

XML = """<domain type='kvm'><name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>2</vcpu><devices>
<interface type='bridge'><source bridge='br-vm'/></interface></devices></domain>"""


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryDatastore:
    made = DirectoryDatastore(tmp_path, "host1")
    made.initialise()
    return made


@pytest.fixture
def store(directory: DirectoryDatastore) -> HaStore:
    return HaStore(directory, "host1", "boot1")


def put_vm(directory: DirectoryDatastore, uuid: str, **more: object) -> None:
    directory.replace_text(f"vms/{uuid}/domain.xml", XML.format(name=uuid, mib=512))
    before = vm_file.read_versioned(directory, uuid)
    path = vm_file.record_path(uuid, before.number + 1 if before is not None else 1)
    directory.create_once(path, {"uuid": uuid, "name": f"vm-{uuid}", **more})


def put_owner(directory: DirectoryDatastore, uuid: str, number: int, host: str | None, **more: object) -> None:
    document: Json = {"host": host, "boot_id": "boot1", "at": 0.0, **more}
    directory.create_once(f"vms/{uuid}/owner/{number:07d}.json", document)


def nothing() -> bool:
    return False


def test_heartbeats_lease_and_roles_come_back(store: HaStore) -> None:
    mine = Heartbeat("host1", "boot1", 7, HostMode.ISOLATED, 5000, 8000)
    store.write_heartbeat(mine)
    assert store.read_heartbeats().heartbeats == {"host1": mine}
    assert store.claim_lease(Lease(1, "host1", "boot1")) == Lease(1, "host1", "boot1")
    assert store.claim_lease(Lease(2, None, "boot1")).host is None
    assert store.claim_roles(Roles(1, ("host1", "host2"))) == Roles(1, ("host1", "host2"))
    read = store.read_heartbeats()
    assert read.lease == Lease(2, None, "boot1")
    assert read.roles == Roles(1, ("host1", "host2"))
    assert read.corrupt == ()


def test_of_many_claims_of_a_term_one_holds(directory: DirectoryDatastore) -> None:
    stores = [HaStore(directory, f"host{n}", f"boot{n}") for n in range(12)]
    answers: list[Lease] = []
    gate = threading.Barrier(len(stores))

    def claim(number: int) -> None:
        gate.wait()
        answers.append(stores[number].claim_lease(Lease(5, f"host{number}", f"boot{number}")))

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    assert len(set(answers)) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "host": "host2"}'])
def test_a_corrupt_heartbeat_is_named_and_left_alone(store: HaStore, directory: DirectoryDatastore, text: str) -> None:
    store.write_heartbeat(Heartbeat("host1", "boot1", 1))
    directory.replace_text("hosts/host2/ha.json", text)
    read = store.read_heartbeats()
    assert set(read.heartbeats) == {"host1"}
    assert read.corrupt == ("hosts/host2/ha.json",)
    assert directory.read_text("hosts/host2/ha.json") == text


def test_a_corrupt_newest_lease_hides_no_older_one(store: HaStore, directory: DirectoryDatastore) -> None:
    store.claim_lease(Lease(1, "host2", "boot2"))
    directory.replace_text("leases/coordinator/0000002.json", "no JSON")
    read = store.read_heartbeats()
    assert read.lease is None
    assert read.corrupt == ("leases/coordinator/0000002.json",)
    with pytest.raises(CorruptFile):
        store.claim_lease(Lease(2, "host1", "boot1"))


def test_vms_with_owner_power_and_settings(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a", ha={"ha.restart_priority": "high", "ha.memory_reservation_mb": 2000})
    put_vm(directory, "b", power="off")
    put_vm(directory, "c", power="on")
    put_owner(directory, "a", 1, "host2")
    put_owner(directory, "a", 2, "host1", why="restarted")
    put_owner(directory, "b", 1, "host1")
    read = store.read_vms({"ha.isolation_response": "leave-on"})
    vms = {vm.uuid: vm for vm in read.vms}
    assert vms["a"].owner == Owner(2, "host1", "boot1", OwnerWhy.RESTARTED)
    assert vms["a"].power  # from before there was the word: somebody owns it
    assert vms["a"].priority is Priority.HIGH
    assert vms["a"].isolation_response is IsolationResponse.LEAVE_ON
    assert vms["a"].memory_mb >= 2000
    assert vms["a"].bridges == {"br-vm"}
    assert not vms["b"].power
    assert vms["c"].power
    assert vms["c"].owner.number == 0


def test_what_changes_is_read_again(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a", power="on")
    put_owner(directory, "a", 1, "host2")
    assert store.read_vms({}).vms[0].owner.host == "host2"
    put_owner(directory, "a", 2, None, why="released")
    assert store.read_vms({}).vms[0].owner == Owner(2, None, "boot1", OwnerWhy.RELEASED)
    store.set_power("a", on=False)
    assert not store.read_vms({}).vms[0].power
    put_vm(directory, "a", power="off", ha={"ha.restart_priority": "low"})
    assert store.read_vms({}).vms[0].priority is Priority.LOW


def test_a_record_of_an_older_version_is_read_until_it_is_changed(
    store: HaStore, directory: DirectoryDatastore
) -> None:
    directory.replace_text("vms/a/domain.xml", XML.format(name="a", mib=512))
    directory.replace("vms/a/vm.json", {"uuid": "a", "name": "vm-a", "power": "on"})
    assert store.read_vms({}).vms[0].power
    directory.replace(
        "vms/a/vm.json", {"uuid": "a", "name": "vm-a", "power": "off", "ha": {"ha.restart_priority": "low"}}
    )
    assert not store.read_vms({}).vms[0].power
    store.set_power("a", on=True)
    vm = store.read_vms({}).vms[0]
    assert vm.power and vm.priority is Priority.LOW
    assert directory.list("vms/a/record") == ["0000001.json"]


def test_a_corrupt_vm_is_named_and_the_others_are_there(store: HaStore, directory: DirectoryDatastore) -> None:
    for uuid in ("a", "b", "c", "d"):
        put_vm(directory, uuid)
        put_owner(directory, uuid, 1, "host1")
    directory.replace_text("vms/a/record/0000002.json", "{")
    directory.replace_text("vms/b/domain.xml", "<domain><memory>much</memory></domain>")
    put_owner(directory, "c", 2, "host1", why="for fun")
    read = store.read_vms({})
    assert [vm.uuid for vm in read.vms] == ["d"]
    assert read.corrupt == ("vms/a/record/0000002.json", "vms/b/domain.xml", "vms/c/owner/0000002.json")


def test_only_ones_own_vm_is_released(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a")
    put_owner(directory, "a", 1, "host2")
    assert not store.release("a", OwnerWhy.RELEASED, "isolated", comes_here=nothing)
    put_owner(directory, "a", 2, "host1")
    assert store.release("a", OwnerWhy.RELEASED, "isolated", comes_here=nothing)
    assert store.owner("a") == Owner(3, None, "boot1", OwnerWhy.RELEASED)
    assert not store.release("a", OwnerWhy.RELEASED, "isolated", comes_here=nothing)
    assert store.owner("a").number == 3


def test_what_is_here_again_or_on_its_way_is_not_released(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a")
    put_owner(directory, "a", 1, "host1")
    assert not store.release("a", OwnerWhy.RELEASED, "isolated", comes_here=lambda: True)
    assert store.owner("a").number == 1


def test_a_start_that_comes_after_the_look_is_not_released(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a")
    put_owner(directory, "a", 1, "host1")

    def claimed_now() -> bool:
        put_owner(directory, "a", 2, "host1", why="restarted")
        return False  # it was asked before that start

    assert not store.release("a", OwnerWhy.RELEASED, "isolated", comes_here=claimed_now)
    assert store.owner("a") == Owner(2, "host1", "boot1", OwnerWhy.RESTARTED)


def test_an_ft_vm_has_its_newest_epoch(store: HaStore, directory: DirectoryDatastore) -> None:
    put_vm(directory, "a", ft={"enabled": True})
    for epoch in (9, 10):
        sides = {"primary": {"host": f"host{epoch}", "disks": {}}, "secondary": {"host": "host2", "disks": {}}}
        directory.create_once(f"ft/a/epoch-{epoch:04d}.pair", sides)
    ft = store.read_vms({}).vms[0].ft
    assert ft is not None
    assert (ft.epoch, ft.primary, ft.winner) == (10, "host10", None)
    directory.create_once("ft/a/epoch-0010.winner", {"host": "host2", "reason": "x"})
    ft = store.read_vms({}).vms[0].ft
    assert ft is not None
    assert ft.winner == "host2"


def test_a_look_at_many_unchanged_vms_is_cheap(store: HaStore, directory: DirectoryDatastore) -> None:
    for number in range(300):
        put_vm(directory, f"u{number}", power="on")
        put_owner(directory, f"u{number}", 1, "host1")
    assert len(store.read_vms({}).vms) == 300
    reads: list[str] = []
    counting = CountingDatastore(directory.root, "host1", reads)
    again = HaStore(counting, "host1", "boot1")
    again.read_vms({})
    first = len(reads)
    began = time.perf_counter()
    assert len(again.read_vms({}).vms) == 300
    print(f"300 unchanged VMs: {1000 * (time.perf_counter() - began):.1f} ms")
    assert first >= 900
    assert len(reads) == first  # nothing was read a second time


class CountingDatastore(DirectoryDatastore):
    """Tells which files were read."""

    def __init__(self, root: Path, host: str, reads: list[str]) -> None:
        super().__init__(root, host)
        self._reads = reads

    def read_text(self, path: str) -> str | None:
        self._reads.append(path)
        return super().read_text(path)


def test_a_vm_whose_disks_are_converted_is_not_wanted_on_for_that(
    store: HaStore, directory: DirectoryDatastore
) -> None:
    """Nobody ever started it, so no word tells what is wanted: its owner does, and this one does not run it."""
    put_vm(directory, "a")
    put_owner(directory, "a", 1, "host2", why="preparing")
    assert [vm.power for vm in store.read_vms({}).vms] == [False]
    put_owner(directory, "a", 2, "host2", why="started")
    assert [vm.power for vm in store.read_vms({}).vms] == [True]


@pytest.mark.parametrize(("winner", "reason", "home"), [(None, "", "host2"), ("host2", "colo-exit", "host2"),
                         ("host3", "colo-exit", "host3"), ("host3", "guest-shutdown", "host2")])  # fmt: skip
def test_a_vm_whose_images_are_on_one_hosts_disks_is_restarted_there_only(
    store: HaStore, directory: DirectoryDatastore, winner: str | None, reason: str, home: str
) -> None:
    put_vm(directory, "a", power="on")
    own = {"vda": "/var/lib/vm/a.qcow2"}
    places = {"primary": {"host": "host2", "disks": own}, "secondary": {"host": "host3", "disks": own}}
    disk = "<disk type='file'><source file='{}'/><target dev='vda'/></disk></devices>"
    xml = XML.format(name="a", mib=512)
    directory.replace_text("vms/a/domain.xml", xml.replace("</devices>", disk.format(own["vda"])))
    directory.create_once("ft/a/epoch-0004.pair", {"epoch": 4, **places, "owner": 0, "copied": True})
    if winner is not None:
        directory.create_once("ft/a/epoch-0004.winner", {"host": winner, "reason": reason})
    [vm] = store.read_vms({}).vms
    assert vm.ft is not None and vm.ft.home == home
    roomy = HostCapacity(10_000, 10_000, frozenset({"br-vm"}))
    other = {"host2": "host3", "host3": "host2"}[home]
    assert Room({"host1": roomy, "host2": roomy, "host3": roomy}).place(vm) == home
    without = Room({"host1": roomy, other: roomy})
    assert without.place(vm) is None
    assert f"its disks are on {home}" in without.why_nowhere(vm)
    directory.replace_text("vms/a/domain.xml", xml.replace("</devices>", disk.format("/srv/ft/a.qcow2")))
    [moved] = store.read_vms({}).vms
    assert moved.ft is not None and moved.ft.home is None
