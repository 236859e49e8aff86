"""The agent side of admission, settings and what-if: a real directory as datastore, and hosts that are made up."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.admission import Admission
from ftkvm.agent.cluster import ClusterReader, commit_config, latest_config
from ftkvm.agent.cluster_settings import ClusterSettings
from ftkvm.agent.cluster_view import ClusterView
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha.settings import cluster_of
from ftkvm.agent.ha.store import HaStore
from ftkvm.agent.health import Health
from ftkvm.agent.join import join
from ftkvm.agent.operations import Operations
from ftkvm.agent.power import write_power
from ftkvm.agent.service import Places, Service
from ftkvm.agent.upgrade_room import UpgradeRoom
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.api.app import build_app
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.cluster import print_settings, print_validity, print_what_if
from ftkvm.cli.output import Reporter
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.core.ha.model import Heartbeat
from ftkvm.core.upgrade import Do, UpgradeStep
from ftkvm.ports import Json, PeerUnreachable

XML = """<domain><name>{name}</name><memory unit='KiB'>{kib}</memory>
<devices><interface type='bridge'><source bridge='br-vm'/></interface></devices></domain>"""


@dataclass
class MadeUpHosts:
    """What each host answers: its health, and the VMs it runs; a host that is not here does not answer."""

    running: dict[str, list[Json]] = field(default_factory=dict)
    memory_mb: dict[str, int] = field(default_factory=dict)
    started: list[tuple[str, str]] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    free_mb: dict[str, int] = field(default_factory=dict)

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        self.asked.append((host, path))
        if host not in self.running:
            raise PeerUnreachable("FTKVM-202", host=host, detail="made up")
        if path == "/v1/local/vms":
            return {"vms": self.running[host]}
        if path == "/v1/local/ha":
            role = self.roles.get(host, "secondary")
            return {"status": {"role": role, "isolated": False, "datastore_ok": True, "term": 1, "coordinator": "h1",
                               "hosts": [], "waiting": []}}  # fmt: skip
        if path == "/v1/health":
            vms = len(self.running[host])
            return {"error": None, "cpu_mhz": 9000, "memory_mb": self.memory_mb.get(host, 9728), "vms": vms,
                    "bridges": ["br-vm"], "age_ms": 1}  # fmt: skip
        if path == "/v1/peer/facts":
            return {"datastore": "ok", "qemu_version": "11.1.3", "libvirt_version": "11.3.0", "cpu": "a", "ft_vms": 0,
                    "free_memory_mb": self.free_mb.get(host, 1 << 20), "bridges": ["br-vm"]}  # fmt: skip
        self.started.append((host, path))
        return {"id": "x"}


@dataclass
class World:
    """A cluster as one agent sees it."""

    ctx: AgentContext
    vms: Vms
    service: Service
    settings: ClusterSettings
    peers: MadeUpHosts

    @property
    def admission(self) -> Admission:
        return self.service.admission

    def vm(self, number: int, host: str | None = None, role: str = "solo", **own: Any) -> VmRecord:
        record = VmRecord(f"u{number}", f"vm{number}", own.pop("ft", False), {}, own.pop("ha", {}))
        self.ctx.datastore.replace(vm_file.newest_path(self.ctx.datastore, record.uuid), record.to_json())
        kib = own.pop("memory_mb", 1024) * 1024
        self.ctx.datastore.replace_text(f"vms/u{number}/domain.xml", XML.format(name=record.name, kib=kib))
        if host:
            self.runs(record, host, role)
        return record

    def runs(self, record: VmRecord, host: str, role: str = "solo") -> None:
        entry: Json = {"uuid": record.uuid, "name": record.name, "state": "running", "role": role}
        self.peers.running[host].append(entry)

    def places(self) -> Places:
        return self.service.places()

    def set(self, **words: str) -> Json:
        return self.settings.change({name.replace("__", "."): text for name, text in words.items()}, None)


def code(caught: "pytest.ExceptionInfo[FtkvmError]") -> tuple[str, str]:
    return caught.value.code, caught.value.text


@pytest.fixture
def world(tmp_path: Path) -> World:
    datastore = DirectoryDatastore(tmp_path / "ds", "h1")
    (tmp_path / "ds").mkdir()
    datastore.initialise()
    hosts = {name: HostEntry(name, f"10.0.0.{n}", f"10.1.0.{n}", f"10.2.0.{n}")
             for n, name in enumerate(("h1", "h2", "h3"), 1)}  # fmt: skip
    assert commit_config(datastore, ClusterConfig(1, "lab", hosts, {}))
    workers = Workers()
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", tmp_path, paths=Paths(tmp_path))
    peers = MadeUpHosts({"h1": [], "h2": [], "h3": []})
    reader = ClusterReader(datastore, workers, tmp_path / "cache.json")
    ctx = AgentContext(config, "boot", datastore, peers, cast(Any, None), workers, reader)
    operations = Operations("h1", workers, tmp_path / "operations")
    operations.load()
    vms = Vms(ctx, operations)
    service = Service(ctx, vms, operations)
    return World(ctx, vms, service, ClusterSettings(ctx, vms, service.admission), peers)


def test_what_is_reckoned_with(world: World) -> None:
    world.vm(1, "h1", ha={"ha.cpu_reservation_mhz": 500, "ha.restart_priority": "high"})
    pair = world.vm(2, "h1", "primary", ft=True, memory_mb=2048)
    world.runs(pair, "h2", "secondary")
    moving = world.vm(3, "h2")
    world.runs(moving, "h3", "incoming")  # the other end of a live migration is no copy
    world.peers.running["h3"].append({"uuid": "alien", "name": "alien", "state": "running", "role": "solo"})
    world.vm(4)
    now = world.admission.now(bridges=True)
    found = {(load.name, load.host): load for load in now.loads}
    assert set(found) == {("vm1", "h1"), ("vm2", "h1"), ("vm2", "h2"), ("vm3", "h2")}
    assert (found["vm1", "h1"].cpu_mhz, found["vm1", "h1"].priority) == (500, "high")
    assert (found["vm2", "h1"].memory_mb, found["vm2", "h1"].overhead_mb) == (2048, 64)
    assert (found["vm2", "h2"].memory_mb, found["vm2", "h2"].overhead_mb) == (2048, 2112)
    assert found["vm1", "h1"].bridges == {"br-vm"}
    assert [(host.cpu_mhz, host.memory_mb, host.good) for host in now.hosts] == [(9000, 9216, True)] * 3


def test_the_room_of_an_upgrade_is_reckoned_with_the_memory_of_the_vms(world: World) -> None:
    """Not with reservations, which most VMs have none of; and with what a host has left for others' sake."""
    pair = world.vm(1, "h1", "primary", ft=True, memory_mb=2048)
    world.runs(pair, "h2", "secondary")
    world.vm(2, "h3", memory_mb=5000)
    world.vm(3, memory_mb=90_000)  # it is off
    room = UpgradeRoom(world.ctx, world.vms, world.admission)
    steps = [UpgradeStep(Do.ENTER, "h3"), UpgradeStep(Do.EXIT, "h3")]
    assert room.look(steps) == {"short": []}
    world.peers.memory_mb = {"h1": 512 + 2112 + 5063, "h2": 512 + 4160 + 5063}
    text = ("host h3: maintenance, its VMs move away: VM vm2: h1: 5063 of 7175 MB are left, 5064 are needed; "
            "h2: 5063 of 9223 MB are left, 5064 are needed")  # fmt: skip
    assert room.look(steps) == {"short": [{"number": 1, "vm": "vm2", "text": text}]}
    world.peers.memory_mb = {"h2": 20_000}
    world.peers.free_mb = {"h1": 100, "h2": 5064}
    assert room.look(steps) == {"short": []}
    world.peers.free_mb["h2"] = 5063
    assert "h1: 100 of 2212 MB are left, 5064 are needed; h2: 5063 of 9223" in str(room.look(steps))
    world.set(ha__admission_policy="failover-host", ha__failover_host="h2")
    assert "h2: the failover host, which is kept empty" in str(room.look(steps))


def test_hosts_in_maintenance_or_silent_do_not_count_and_their_vms_do(world: World) -> None:
    record = world.vm(1)
    world.ctx.datastore.create_once("vms/u1/owner/0000001.json", {"host": "h3", "boot_id": "b"})
    del world.peers.running["h3"]
    config = world.ctx.cluster.current(fresh=True)
    resting = {**config.hosts, "h2": replace(config.hosts["h2"], maintenance=True)}
    assert commit_config(world.ctx.datastore, replace(config, version=2, hosts=resting))
    now = world.admission.now()
    assert {host.name: host.why_not for host in now.hosts} == {
        "h1": "", "h2": "in maintenance", "h3": "it does not answer"}  # fmt: skip
    assert [(load.name, load.host) for load in now.loads] == [(record.name, "h3")]
    other = world.vm(2)
    with pytest.raises(FtkvmError) as caught:
        world.service.start(other.name, "h1")
    assert code(caught)[0] == "FTKVM-630" and "slots: h1 35;" in code(caught)[1]


def test_a_start_is_admitted_or_refused_with_the_sum(world: World) -> None:
    for number in range(1, 5):
        world.vm(number, "h1" if number < 3 else "h2", ha={"ha.memory_reservation_mb": 4000})
    fifth = world.vm(5, ha={"ha.memory_reservation_mb": 4000})
    with pytest.raises(FtkvmError) as caught:
        world.service.start(fifth.name, None)
    assert code(caught)[0] == "FTKVM-630"
    assert "4064 MB (set by vm1, vm2, vm3 and 2 more); slots: h1 2, h2 2, h3 2; used 5; without h1: 4 slots for 5" in (
        caught.value.text)  # fmt: skip
    assert not world.peers.started
    world.set(ha__admission_control="off")
    world.service.start(fifth.name, None)
    assert world.peers.started == [("h3", "/v1/local/vms/u5/start")]  # the only one with 4064 MB unreserved
    with pytest.raises(FtkvmError) as caught:
        world.service.start(fifth.name, "h1")
    assert code(caught)[0] == "FTKVM-633" and "h1 has" in code(caught)[1]


def starts_here(world: World, record: VmRecord, why: str = "started") -> str:
    """The code with which the start of the VM ends on h1; nothing is really started in these tests."""
    begun = world.service.here.start(record.uuid, 0, why=why)
    deadline = time.monotonic() + 5
    while (now := world.service.operation(str(begun["id"])))["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not world.ctx.datastore.list(f"vms/{record.uuid}/owner")
    return str((now["error"] or {}).get("code"))


def test_of_two_starts_at_the_same_moment_never_both_pass(world: World) -> None:
    """Both were admitted while neither was under way; each is admitted again when it is, and sees the other."""
    for number in range(1, 4):
        world.vm(number, f"h{number}", ha={"ha.memory_reservation_mb": 4000})
    one, two = (world.vm(number, ha={"ha.memory_reservation_mb": 4000}) for number in (4, 5))
    for record, host in ((one, "h1"), (two, "h2")):
        world.admission.require_start(record, host, world.places())  # slots: 2 each, 4 without one host, 3 used
    entry: Json = {"uuid": one.uuid, "name": one.name, "state": "starting", "role": "solo"}
    world.peers.running["h1"].append(entry)
    world.admission.require_start(one, "h1")  # it is not counted twice
    with pytest.raises(FtkvmError) as caught:
        world.admission.require_start(two, "h2")
    assert code(caught)[0] == "FTKVM-630"
    world.peers.running["h1"].remove(entry)
    world.peers.running["h2"].append({"uuid": two.uuid, "name": two.name, "state": "starting", "role": "solo"})
    assert starts_here(world, one) == "FTKVM-630"
    assert starts_here(world, one, "restarted") == "FTKVM-900"  # HA's goes on, to libvirt, which is not there


def test_placing_leaves_the_failover_host_alone(world: World) -> None:
    world.set(ha__admission_policy="failover-host", ha__failover_host="h1")
    record = world.vm(1)
    assert world.admission.place(record, {"h1": 0, "h2": 5, "h3": 7}, world.places()) == "h2"
    with pytest.raises(FtkvmError) as caught:
        world.admission.place(record, {"h1": 0}, world.places())
    assert code(caught)[0] == "FTKVM-632"
    running = world.vm(2, "h2")
    with pytest.raises(FtkvmError) as caught:
        world.admission.require_migration(running, "h1")
    assert code(caught)[0] == "FTKVM-632" and "migrate to h1" in code(caught)[1]
    world.admission.require_migration(running, "h3")
    with pytest.raises(FtkvmError):
        world.admission.require_protect(running, "h1")
    with pytest.raises(FtkvmError):
        world.admission.require_arrival("u9", "vm9", "h1")
    world.admission.require_arrival("u9", "vm9", "h2")


def test_ft_needs_its_whole_memory_and_room_for_its_secondary(world: World) -> None:
    record = world.vm(1, "h1", memory_mb=4000)
    world.admission.require_protect(record, None)
    large = world.vm(2, "h1", memory_mb=5000)
    with pytest.raises(FtkvmError) as caught:
        world.admission.require_protect(large, "h2")  # it would need twice 5000 MB, of 9216
    assert code(caught)[0] == "FTKVM-633" and "vm2 (secondary)" in code(caught)[1]
    with pytest.raises(FtkvmError) as caught:
        world.service.start(world.vm(3, ft=True, memory_mb=5000).name, "h1")
    assert code(caught)[0] == "FTKVM-630" and "vm3 (secondary)" in code(caught)[1]


def test_where_a_pairs_images_are_is_not_changed_while_ft_is_on(world: World) -> None:
    name = world.vm(1, "h1", ft=True).name
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm(name, {"ft.disks": "copy"})
    assert code(caught)[0] == "FTKVM-114" and world.vms.find(name).ft_settings == {}
    world.settings.change_vm(name, {"ft.disks": "shared"})  # what it is already
    off = world.vm(2, "h1").name
    world.settings.change_vm(off, {"ft.disks": "copy"})
    assert world.vms.find(off).ft_settings == {"ft.disks": "copy"}


def test_a_vms_settings_all_or_none(world: World) -> None:
    world.vm(1, "h1")
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm("vm1", {"ha.restart_priority": "soon", "ft.checkpoint_max_ms": "900"})
    assert code(caught)[0] == "FTKVM-637"
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm("vm1", {"ha.restart_priority": "high", "ft.checkpoint_max_ms": "many"})
    assert code(caught)[0] == "FTKVM-114"
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm("vm1", {"ha.restart_priority": "high", "ha.memory_reservation_mb": "9216"})
    assert code(caught)[0] == "FTKVM-633"
    assert world.vms.find("vm1").ha == {} and world.vms.find("vm1").ft_settings == {}
    shown = world.settings.change_vm("vm1", {"ha.restart_priority": "high", "ha.memory_reservation_mb": "4000"})
    assert world.vms.find("vm1").ha == {"ha.restart_priority": "high", "ha.memory_reservation_mb": 4000}
    assert {each["name"]: each["value"] for each in shown["settings"]}["ha.restart_priority"] == "high"
    world.settings.change_vm("vm1", {"ha.memory_reservation_mb": "", "ha.restart_priority": ""})
    assert world.vms.find("vm1").ha == {}


def test_two_who_set_a_vm_at_the_same_moment_both_do(world: World) -> None:
    """Through two agents: neither overwrites what the other said, nor what is said of FT and power meanwhile."""
    world.vm(1, "h1")
    other = replace(world.ctx, workers=Workers())
    vms = Vms(other, Operations("h2", other.workers, world.ctx.config.paths.run / "operations-h2"))
    second = ClusterSettings(other, vms, world.admission)
    for number in range(8):
        wanted = {"ha.restart_priority": ("high", "low")[number % 2], "ha.vm_max_resets": str(number + 1),
                  "ft.checkpoint_max_ms": str(500 + number)}  # fmt: skip
        first, *rest = wanted.items()
        with ThreadPoolExecutor(3) as pool:
            works = [pool.submit(world.settings.change_vm, "vm1", dict([first])),
                     pool.submit(second.change_vm, "vm1", dict(rest)),
                     pool.submit(write_power, world.ctx.datastore, "u1", on=number % 2 == 0)]  # fmt: skip
        for work in works:
            work.result()
        record = world.vms.find("vm1")
        assert record.ha == {"ha.restart_priority": wanted["ha.restart_priority"], "ha.vm_max_resets": number + 1}
        assert record.ft_settings == {"ft.checkpoint_max_ms": 500 + number}
        assert (vm_file.read(world.ctx.datastore, "u1") or {})["power"] == ("on" if number % 2 == 0 else "off")


@dataclass
class Part:
    """A part of an agent that acts by VMs' settings; and HA's status."""

    changed: list[str] = field(default_factory=list)

    def settings_changed(self, uuid: str) -> None:
        self.changed.append(uuid)

    def status(self) -> Json:
        return {"status": {"coordinator": "h3"}}


def told(world: World) -> list[str]:
    return [host for host, path in world.peers.asked if path == "/v1/local/vms/u1/settings-changed"]


def test_the_host_that_runs_a_vm_is_told_of_its_settings(world: World) -> None:
    """And the coordinator, which would restart it; the others have nothing to do with it."""
    world.vm(1, "h2")
    world.ctx.datastore.create_once("vms/u1/owner/0000001.json", {"host": "h2", "boot_id": "b"})
    world.ctx.extras["ha"] = Part()
    answer = world.settings.change_vm("vm1", {"ha.isolation_response": "leave-on"})
    assert (answer["told"], answer["not_told"]) == (["h2", "h3"], [])
    assert sorted(told(world)) == ["h2", "h3"]
    del world.peers.running["h2"]
    answer = world.settings.change_vm("vm1", {"ha.isolation_response": "power-off"})
    assert (answer["told"], answer["not_told"]) == (["h3"], ["h2"])
    assert world.vms.find("vm1").ha == {"ha.isolation_response": "power-off"}


def test_a_refused_change_is_told_to_nobody(world: World) -> None:
    world.vm(1, "h2")
    world.ctx.datastore.create_once("vms/u1/owner/0000001.json", {"host": "h2", "boot_id": "b"})
    with pytest.raises(FtkvmError):
        world.settings.change_vm("vm1", {"ha.isolation_response": "perhaps"})
    assert told(world) == []


def test_who_is_told_has_every_part_read_again(world: World) -> None:
    parts = {name: Part() for name in ("ha", "vm_monitor", "pairs")}
    world.ctx.extras.update(parts)
    client = TestClient(build_app(world.service, Health(world.ctx)))
    assert client.post("/v1/local/vms/u1/settings-changed").json() == {"host": "h1"}
    assert [part.changed for part in parts.values()] == [["u1"]] * 3


def test_with_ft_on_the_memory_reservation_is_not_editable(world: World) -> None:
    """FT-11; what was set before is left as it was."""
    world.vm(1, "h1", ft=True, ha={"ha.memory_reservation_mb": 1000})
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm("vm1", {"ha.memory_reservation_mb": "2000"})
    assert code(caught)[0] == "FTKVM-139"
    world.settings.change_vm("vm1", {"ha.restart_priority": "high"})
    assert world.vms.find("vm1").ha == {"ha.memory_reservation_mb": 1000, "ha.restart_priority": "high"}


def test_raising_a_reservation_that_makes_the_slot_too_large(world: World) -> None:
    for number in range(1, 8):
        world.vm(number, f"h{number % 3 + 1}", ha={"ha.memory_reservation_mb": 1000})
    with pytest.raises(FtkvmError) as caught:
        world.settings.change_vm("vm1", {"ha.memory_reservation_mb": "3000"})  # slots of 3064 MB: 3 per host, 6 for 7
    assert code(caught)[0] == "FTKVM-630" and "3064 MB (set by vm1)" in code(caught)[1]
    world.settings.change_vm("vm1", {"ha.memory_reservation_mb": "2000"})


def test_writers_of_settings_never_overwrite_each_other(world: World) -> None:
    words = [{"ha.max_attempts": str(number)} if number % 2 else {"ha.retry_most_ms": str(60_000 + number)}
             for number in range(1, 9)]  # fmt: skip

    def write(change: Mapping[str, str]) -> str:
        try:
            world.settings.change(change, None)
        except FtkvmError as error:
            return error.code
        return "done"

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(write, words))
    config = latest_config(world.ctx.datastore)
    assert config is not None
    assert set(said) <= {"done", "FTKVM-606"} and config.version == 1 + said.count("done")
    with pytest.raises(FtkvmError) as caught:
        world.settings.change({"ha.max_attempts": "50"}, 1)
    assert code(caught)[0] == "FTKVM-636"


def test_bad_settings_of_the_cluster(world: World) -> None:
    for words, wanted in (
        ({"ha.failover_host": "h9"}, "FTKVM-634"),
        ({"ha.host_failures": "9"}, "FTKVM-634"),
        ({"ha.watchdog_ms": "9000"}, "FTKVM-635"),
    ):
        with pytest.raises(FtkvmError) as caught:
            world.settings.change(words, None)
        assert code(caught)[0] == wanted
    assert world.ctx.cluster.current(fresh=True).version == 1


def test_validate_names_what_is_wrong(world: World) -> None:
    config = world.ctx.cluster.current(fresh=True)
    stored = {"ha.host_failures": "two", "ha.lease_ms": 13_000, "das.usedefaultisolationaddress": False, "id": "x"}
    assert commit_config(world.ctx.datastore, replace(config, version=2, settings=stored))
    world.vm(1, ha={"ha.restart_priority": 7})
    found = world.settings.validate()
    assert any("ha.host_failures" in text for text in found["problems"])
    assert any(text.startswith("vm1: ha.restart_priority") for text in found["problems"])
    assert len(found["problems"]) == 2
    assert "14000 is above ha.lease_ms 13000" in found["breaches"][0]
    assert "no isolation address" in found["warnings"][0]


def test_the_cluster_at_a_glance_asks_each_host_once(world: World) -> None:
    world.vm(1, "h1")
    del world.peers.running["h3"]
    shown = ClusterView(world.ctx, world.service, world.settings).status()
    for name in ("h1", "h2", "h3"):
        paths = [path for host, path in world.peers.asked if host == name]
        assert sorted(paths) == ["/v1/health", "/v1/local/ha", "/v1/local/vms"]
    assert [(host["name"], host["state"]) for host in shown["hosts"]] == [
        ("h1", "live"), ("h2", "live"), ("h3", "silent")]  # fmt: skip
    assert shown["validity"]["hosts"]["h3"]["why_not"] == "it does not answer"
    assert [(vm["name"], vm["host"], vm["protection"]) for vm in shown["vms"]] == [("vm1", "h1", "HA")]


def refused(world: World, name: str, *, dead: bool = False) -> str:
    """The code with which removing the host is refused; nothing may have changed."""
    before = latest_config(world.ctx.datastore)
    with pytest.raises(FtkvmError) as caught:
        world.service.hosts.remove(name, dead=dead)
    assert caught.value.cause and caught.value.remedy
    if caught.value.code != "FTKVM-264":  # a heartbeat that moves once is dead when asked again
        with pytest.raises(FtkvmError) as shown:
            world.service.hosts.may_remove(name, dead=dead)
        assert shown.value.code == caught.value.code
    assert latest_config(world.ctx.datastore) == before
    return caught.value.code


def test_a_primary_host_stays(world: World) -> None:
    world.peers.roles = {"h1": "coordinator"}
    assert refused(world, "h1") == "FTKVM-244"
    del world.peers.running["h1"]
    assert refused(world, "h1", dead=True) == "FTKVM-244"  # the others have not made up for it yet
    world.peers.roles = {"h2": "primary"}
    world.service.hosts.remove("h1", dead=True)
    assert sorted(world.ctx.cluster.hosts()) == ["h2", "h3"]
    assert refused(world, "h2") == "FTKVM-244"
    world.set(ha__enabled="off")  # then there is nothing to join through
    world.service.hosts.remove("h2", dead=False)
    assert refused(world, "h3") == refused(world, "h3", dead=True) == "FTKVM-243"


def test_a_host_with_a_copy_of_a_pair_stays(world: World) -> None:
    world.peers.roles = {"h1": "coordinator"}
    pair = world.vm(1, "h1", "primary", ft=True)
    world.runs(pair, "h2", "secondary")
    assert refused(world, "h2") == refused(world, "h2", dead=True) == "FTKVM-214"
    shown = world.service.hosts.may_remove("h3", dead=False)
    assert sorted(world.ctx.cluster.hosts()) == ["h1", "h2", "h3"]
    assert world.service.hosts.remove("h3", dead=False) == shown
    del world.peers.running["h2"]
    assert refused(world, "h2") == "FTKVM-202"


def beat(world: World, host: str, counter: int, boot_id: str = "gone") -> None:
    HaStore(cast(Any, world.ctx.datastore), host, boot_id).write_heartbeat(Heartbeat(host, boot_id, counter))


def test_a_dead_host_that_is_removed_gives_its_vms_free(world: World) -> None:
    """For HA by the boot that is over; and for hands, because it is not asked any more."""
    world.vm(1)
    world.ctx.datastore.create_once("vms/u1/owner/0000001.json", {"host": "h3", "boot_id": "gone"})
    del world.peers.running["h3"]
    beat(world, "h3", 7)
    with pytest.raises(FtkvmError) as caught:
        world.service.start("vm1", "h2")
    assert caught.value.code == "FTKVM-109"
    world.peers.roles = {"h1": "coordinator"}
    assert refused(world, "h3") == "FTKVM-202"
    world.service.hosts.remove("h3", dead=True)
    config = world.ctx.cluster.current(fresh=True)
    assert config.removed == {"h3": "gone"} and cluster_of(config, None).removed == {"h3": "gone"}
    world.service.start("vm1", "h2")
    assert world.peers.started == [("h2", "/v1/local/vms/u1/start")]
    again = {"name": "h3", "management": "10.0.0.3", "ft": "10.1.0.3", "migration": "10.2.0.3"}
    joined = join(world.ctx.datastore, {"cluster": "lab", "id": None, "first": False, "datastore": "/", "host": again})
    assert "h3" in joined.hosts and joined.removed == {}


def test_a_silent_host_whose_heartbeat_moves_is_not_dead(world: World) -> None:
    world.peers.roles = {"h1": "coordinator"}
    del world.peers.running["h3"]
    beat(world, "h3", 7)
    later = threading.Timer(1.0, beat, (world, "h3", 8))
    later.start()
    assert refused(world, "h3", dead=True) == "FTKVM-264"
    later.join()


def test_a_dead_host_of_a_cluster_without_ha_has_no_boot_to_note(world: World) -> None:
    world.set(ha__enabled="off")
    del world.peers.running["h3"]
    world.service.hosts.remove("h3", dead=True)
    assert world.ctx.cluster.current(fresh=True).removed == {}


def test_a_damaged_record_stops_its_own_vm_only(world: World) -> None:
    world.vm(1)
    world.vm(2, "h1")
    path = vm_file.newest_path(world.ctx.datastore, "u2")
    world.ctx.datastore.replace_text(path, "{")
    world.service.start("vm1", "h2")
    assert world.peers.started == [("h2", "/v1/local/vms/u1/start")]
    with pytest.raises(FtkvmError) as caught:
        world.service.start("vm2", None)
    assert code(caught)[0] == "FTKVM-305" and path in code(caught)[1]
    assert [entry["name"] for entry in world.service.list_vms()] == ["vm1"]
    assert any(path in text for text in world.settings.validate()["problems"])


def test_a_damaged_owner_file_is_no_answer(world: World) -> None:
    """Who owns the VM is not known: while a host is silent it is started nowhere; the list goes on."""
    world.vm(1)
    world.ctx.datastore.replace_text("vms/u1/owner/0000001.json", "{")
    del world.peers.running["h3"]
    assert [entry["state"] for entry in world.service.list_vms()] == ["unknown"]


def test_what_people_see(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 4):
        world.vm(number, f"h{number}", ha={"ha.memory_reservation_mb": 5000})
    reporter = Reporter()
    world.set(das__failedetectiontime="20000")
    print_validity(world.settings.validate(), reporter)
    print_what_if(world.settings.what_if(["h1"]), reporter)
    print_settings(world.settings.show(), reporter)
    said = capsys.readouterr().out
    assert "cluster lab: invalid" in said and "set by vm1, vm2, vm3" in said
    assert "h2: 5064 MB wanted, 4152 unreserved; h3: 5064 MB wanted, 4152 unreserved" in said
    assert "20000 (15000 now)" in said and "das.isolationaddress1 " in said and "das.isolationaddress2" not in said
    assert "restart commands are out within 18 s" in said
    assert "host-failures (in force)" in said
