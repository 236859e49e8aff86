"""Maintenance of a host: what would keep it from being emptied is told before anything is touched."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters import images
from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.checks import Checks
from ftkvm.agent.cluster import ClusterReader, commit_config
from ftkvm.agent.context import AgentContext
from ftkvm.agent.evacuation import unprotected_s
from ftkvm.agent.ha import documents
from ftkvm.agent.operations import Operations
from ftkvm.agent.placing import choose_host, no_place
from ftkvm.agent.records import CopyPlace, PairDoc, PairStore
from ftkvm.agent.service import Service
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.core.facts import DatastoreState
from ftkvm.core.placement import HostFacts, Refusal, Room, VmNeeds
from ftkvm.core.reasons import Reason
from ftkvm.ports import Json, PeerUnreachable, Progress

XML = """<domain><name>{name}</name><memory unit='KiB'>1048576</memory><devices>
<interface type='bridge'><source bridge='br-vm'/></interface></devices></domain>"""


@dataclass(frozen=True)
class Domain:
    """A domain as libvirt sees it."""

    uuid: str
    name: str
    state: str = "running"
    active: bool = True
    persistent: bool = False


@dataclass
class Libvirt:
    """The QEMUs of host h1."""

    running: dict[str, Domain] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)

    def domains(self) -> list[Domain]:
        return list(self.running.values())

    def domain(self, uuid: str) -> Domain | None:
        return self.running.get(uuid)

    def require_versions(self) -> None:
        pass

    def xml(self, uuid: str) -> str:
        return self.definitions.get(uuid) or XML.format(name=self.running[uuid].name)


@dataclass
class RunningVm:
    """The LocalVm of vm2, as far as its host is chosen by it; it is its own Domains."""

    libvirt: Libvirt
    uuid: str = "u2"
    name: str = "vm2"

    @property
    def domains(self) -> Libvirt:
        return self.libvirt


class Life:
    """What the PairManager does with a pair's copy: noted, and measured by nobody's clock."""

    def __init__(self) -> None:
        self.moved: list[str] = []

    def move(self, uuid: str, to: str | None, progress: Progress) -> Json:
        progress(1, 1, "failing over")
        self.moved.append(uuid)
        return {"vm": uuid, "to": "h2", "reprotect_s": 4.25, "unprotected_s": 0.0}


@dataclass
class Pairs:
    """The PairManager: which main copies are here."""

    life: Life
    main: set[str] = field(default_factory=set)

    def status(self, uuid: str | None) -> list[dict[str, Any]]:
        return [{"uuid": each} for each in sorted(self.main)]


@dataclass
class Cluster:
    """Three hosts as h1 sees them: h1 is real, the others are what they say."""

    datastore: DirectoryDatastore
    libvirt: Libvirt
    free_mb: dict[str, int]
    operations: Operations
    pairs: Pairs
    reader: ClusterReader
    service: Service = field(init=False)
    old_agent: bool = False
    room: dict[str, Json] = field(default_factory=dict)

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        if host not in self.free_mb:
            raise PeerUnreachable("FTKVM-202", host=host, detail="made up")
        if path == "/v1/peer/facts":
            return {"datastore": "ok", "qemu_version": "11.1.3", "libvirt_version": "11.3.0", "cpu": "a", "ft_vms": 0,
                    "free_memory_mb": self.free_mb[host], "bridges": ["br-vm"]}  # fmt: skip
        if path == "/v1/peer/room":
            if host not in self.room:
                raise FtkvmError("FTKVM-901", detail="Not Found")
            return {"room": self.room[host]}
        if path == "/v1/local/vms":
            return {"vms": self.service.vms.local() if host == "h1" else []}
        if path == "/v1/health":
            return {"error": None, "cpu_mhz": 9000, "memory_mb": 9728, "vms": 0, "bridges": ["br-vm"], "age_ms": 1}
        assert host == "h1", (host, path)
        if path == "/v1/local/evacuation":
            if self.old_agent:
                raise FtkvmError("FTKVM-901", detail="Not Found")
            return self.service.here.obstacles()
        assert path == "/v1/local/evacuate"
        return self.service.here.evacuate()

    def vm(self, number: int, secondary: str | None = None, primary: str = "h1", *, decided: bool = False,
           disks: dict[str, str] | None = None) -> str:  # fmt: skip
        """A VM that has a copy on h1; with ``secondary``, one of a pair; with ``disks``, of one with whole copies."""
        uuid, name = f"u{number}", f"vm{number}"
        record = VmRecord(uuid, name, secondary is not None, {}, {})
        vm_file.create(self.datastore, uuid, record.to_json())
        self.datastore.replace_text(f"vms/{uuid}/domain.xml", XML.format(name=name))
        self.libvirt.running[uuid] = Domain(uuid, name)
        store = PairStore(self.datastore, uuid)
        if secondary is not None:
            places = (CopyPlace(primary, disks or {}, "b"), CopyPlace(secondary, disks or {}, "b"))
            store.create(PairDoc(uuid, name, 1, *places, 1, copied=disks is not None))
            if decided:
                store.arbitrate(1, primary, "b", Reason.MOVED)
            if primary == "h1":
                self.pairs.main.add(uuid)
        return name

    def enter(self) -> Json:
        begun = self.service.hosts.maintenance("h1", on=True)
        deadline = time.monotonic() + 5
        while self.service.operation(str(begun["id"]))["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.service.operation(str(begun["id"]))

    def refused(self) -> FtkvmError:
        """Entering maintenance is refused, and nothing has changed."""
        before = {str(path): path.read_bytes() for path in self.datastore.root.rglob("*") if path.is_file()}
        with pytest.raises(FtkvmError) as caught:
            self.service.hosts.maintenance("h1", on=True)
        assert before == {str(path): path.read_bytes() for path in self.datastore.root.rglob("*") if path.is_file()}
        assert not self.reader.current(fresh=True).hosts["h1"].maintenance
        assert self.operations.all_running() == []
        assert self.pairs.life.moved == []
        assert caught.value.code == "FTKVM-665" and caught.value.remedy
        return caught.value


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    datastore = DirectoryDatastore(tmp_path / "ds", "h1")
    datastore.root.mkdir()
    datastore.initialise()
    hosts = {name: HostEntry(name, f"10.0.0.{n}", f"10.1.0.{n}", f"10.2.0.{n}")
             for n, name in enumerate(("h1", "h2", "h3"), 1)}  # fmt: skip
    assert commit_config(datastore, ClusterConfig(1, "lab", hosts, {}))
    workers = Workers()
    operations = Operations("h1", workers, tmp_path / "operations")
    operations.load()
    reader = ClusterReader(datastore, workers, tmp_path / "cache.json")
    made = Cluster(datastore, Libvirt(), dict.fromkeys(hosts, 4096), operations, Pairs(Life()), reader)
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", datastore.root, paths=Paths(tmp_path))
    ctx = AgentContext(config, "boot", datastore, made, cast(Any, made.libvirt), workers, reader)
    ctx.extras["pairs"] = made.pairs
    made.service = Service(ctx, Vms(ctx, operations), operations)
    yield made


def test_a_pair_whose_copy_leaves_needs_a_third_host(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2")
    del cluster.free_mb["h3"]
    error = cluster.refused()
    assert error.text.endswith("vm1")
    assert "h3: not-alive" in error.cause and "h2: primary-host" in error.cause


@pytest.mark.parametrize(("primary", "secondary"), [("h1", "h2"), ("h2", "h1")])
def test_the_new_secondary_needs_twice_the_memory_whichever_copy_leaves(
    cluster: Cluster, primary: str, secondary: str
) -> None:
    cluster.vm(1, secondary=secondary, primary=primary)
    assert cluster.service.here.obstacles() == {"obstacles": {}}
    cluster.free_mb["h3"] = 2047
    assert "h3: memory" in cluster.refused().cause


@pytest.mark.parametrize(("free_mb", "fits"), [(2049, False), (2050, True)])
def test_whoever_asks_reckons_the_same_needs(cluster: Cluster, free_mb: int, fits: bool) -> None:
    """1 GiB and a bit: who rounds down takes a host that has no room, and the copy made there is the one to fail."""
    cluster.vm(1, secondary="h2")
    cluster.vm(2)
    xml = XML.replace("1048576", "1048577").format(name="vm2")
    for uuid in ("u1", "u2"):
        cluster.datastore.replace_text(f"vms/{uuid}/domain.xml", xml)
    cluster.libvirt.definitions["u2"] = xml
    cluster.free_mb["h3"] = free_mb
    ctx = cluster.service._ctx
    evacuation = cluster.service.here.obstacles()["obstacles"].get("vm1", "")
    enable = refused_with(lambda: choose_host(ctx, cast(Any, RunningVm(cluster.libvirt)), "h3"))
    report = Checks(ctx, cluster.service, cast(Any, None)).vm_here("u2", for_ft=True)
    check = " ".join(each["text"] for each in report["findings"] if each["code"] == "FTKVM-404")
    said = (evacuation, enable, check)
    assert [bool(re.search("h3: (ft-network, )?memory", text)) for text in said] == 3 * [not fits], said
    assert documents.definition("domain.xml", xml).memory_mb == VmNeeds.of("vm2", "h1", xml).memory_mb == 1025


def refused_with(ask: Callable[[], object]) -> str:
    """What is said; in a test no host is reached over an FT network."""
    with pytest.raises(FtkvmError) as caught:
        ask()
    return caught.value.text + caught.value.cause


@pytest.mark.parametrize(("memory", "mb"), [
    ("<memory unit='KiB'>1048576</memory>", 1024), ("<memory>1048577</memory>", 1025),
    ("<memory unit='MiB'>512</memory>", 512), ("<memory unit='b'>1</memory>", 1), ("<memory unit='G'>2</memory>", 2048),
    ("<memory>2048</memory><currentMemory>1024</currentMemory>", 2), ("", 0),
])  # fmt: skip
def test_memory_of_a_definition(memory: str, mb: int) -> None:
    assert VmNeeds.of("vm1", "h1", f"<domain>{memory}</domain>").memory_mb == mb


@pytest.mark.parametrize("memory", ["<memory>much</memory>", "<memory unit='stone'>5</memory>"])
def test_memory_that_is_not_understood(memory: str) -> None:
    with pytest.raises(ValueError, match=r"much|stone"):
        VmNeeds.of("vm1", "h1", f"<domain>{memory}</domain>")


def test_a_host_without_room_for_a_whole_copy_takes_none(cluster: Cluster, tmp_path: Path) -> None:
    """ft.disks=copy: the sum is told; a host that does not know the question, of an older version, is not ruled out."""
    image = tmp_path / "vm1.qcow2"
    images.create_empty(str(image), 1 << 30)
    cluster.vm(1, secondary="h2", disks={"vda": str(image)})
    cluster.room["h3"] = {str(tmp_path): {"device": 7, "free_bytes": (1 << 30) - 1}}
    assert cluster.refused().cause.count("no host has room for whole copies of the disks of VM vm1: h2: primary-host; "
        f"h3: disk-room ({tmp_path}: 1023 MiB free, whole copies may need 1024 MiB)") == 1  # fmt: skip
    cluster.room["h3"] = {str(tmp_path): None}
    assert f"h3: disk-room (there is no directory {tmp_path})" in cluster.refused().cause
    cluster.room["h3"] = {str(tmp_path): {"device": 7, "free_bytes": 1 << 30}}
    assert cluster.service.here.obstacles() == {"obstacles": {}}
    del cluster.room["h3"]
    assert cluster.service.here.obstacles() == {"obstacles": {}}


def test_room_is_named_only_if_it_is_all_that_a_host_lacks() -> None:
    needs = VmNeeds("vm1", "h1", 512, copies={"/d": 5 << 20})
    facts = [HostFacts("h2", True, DatastoreState.OK, "11", "11", "c", 0, room={"/d": Room(1, 0)})]
    both = {"h2": (Refusal.MEMORY, Refusal.DISK_ROOM), "h3": (Refusal.NOT_ALIVE,)}
    sum_ = "/d: 0 MiB free, whole copies may need 5 MiB"
    reasons = f"h2: memory, disk-room ({sum_}); h3: not-alive"
    assert str(no_place(needs, both, facts)) == f"FTKVM-404: no second host for VM vm1: {reasons}"
    assert no_place(needs, {**both, "h2": (Refusal.DISK_ROOM,)}, facts).code == "FTKVM-156"


def test_two_pairs_do_not_both_count_on_the_same_room(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2")
    cluster.vm(2, secondary="h2")
    cluster.free_mb["h3"] = 4095
    assert cluster.refused().text.endswith("vm2")
    cluster.free_mb["h3"] = 4096
    assert cluster.service.here.obstacles() == {"obstacles": {}}


def test_a_vm_with_ft_on_that_has_no_pair_is_not_moved(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2", decided=True)
    assert "not protected now" in cluster.refused().cause


def test_an_ordinary_vm_that_fits_nowhere_keeps_the_others_where_they_are(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2")
    cluster.vm(2)
    cluster.free_mb["h2"] = cluster.free_mb["h3"] = 100
    cluster.free_mb["h3"] = 2048  # for the secondary only
    assert "vm2: no host can take VM vm2" in cluster.refused().cause


def test_what_leaves_is_told_with_what_it_cost(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2")
    found = cluster.enter()
    assert (found["state"], cluster.pairs.life.moved) == ("done", ["u1"])
    assert found["result"] == {"moves": [{"vm": "vm1", "what": "primary", "unprotected_s": 4.25}]}
    assert cluster.reader.current(fresh=True).hosts["h1"].maintenance


def test_an_agent_of_an_older_version_is_not_asked(cluster: Cluster) -> None:
    """In the middle of a rolling upgrade: it looks at each VM when it moves it."""
    cluster.old_agent = True
    assert cluster.enter()["state"] == "done"


def test_the_place_is_looked_at_again_before_each_copy_leaves(cluster: Cluster) -> None:
    cluster.vm(1, secondary="h2")
    cluster.old_agent = True
    del cluster.free_mb["h3"]
    found = cluster.enter()
    assert (found["state"], found["error"]["code"], cluster.pairs.life.moved) == ("failed", "FTKVM-658", [])


def test_what_was_measured_of_each_kind_of_move() -> None:
    assert unprotected_s("secondary", {"unprotected_s": 3.5}) == 3.5
    assert unprotected_s("primary", {"unprotected_s": 0.0, "reprotect_s": 4.5}) == 4.5
    assert unprotected_s("primary", {"reprotect_s": None}) is None
    assert unprotected_s("live", {}) is None
