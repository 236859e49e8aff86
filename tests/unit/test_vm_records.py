"""VMs' files on the datastore: a damaged one stops nothing but its own VM, and a VM that leaves takes all of them."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.context import AgentContext
from ftkvm.agent.operations import Operations
from ftkvm.agent.power import try_power
from ftkvm.agent.records import PairStore
from ftkvm.agent.service import Service
from ftkvm.agent.vm_resets import Reset, ResetStore
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostConfig, Paths
from ftkvm.ports import CorruptFile, Json

XML = "<domain><name>vm1</name></domain>"


@dataclass(frozen=True)
class Domain:
    """A domain as libvirt sees it."""

    uuid: str
    name: str
    active: bool = False
    persistent: bool = True
    state: str = "off"


@dataclass
class Libvirt:
    """Takes definitions, and has one domain that nobody registered."""

    defined: list[str] = field(default_factory=list)
    running: list[Domain] = field(default_factory=list)

    def domains(self) -> list[Domain]:
        return self.running

    def define(self, xml: str) -> None:
        self.defined.append(xml)

    def find(self, name: str) -> Domain:
        return Domain("u9", name)


@dataclass
class Host:
    """One agent's view of its VMs, on a real directory."""

    datastore: DirectoryDatastore
    libvirt: Libvirt
    ctx: AgentContext
    vms: Vms

    def register(self, number: int) -> None:
        vm_file.create(self.datastore, f"u{number}", VmRecord(f"u{number}", f"vm{number}").to_json())
        self.datastore.replace_text(f"vms/u{number}/domain.xml", XML)


def ended(service: Service, name: str) -> Json:
    deadline = time.monotonic() + 5
    while service.operation(name)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    return service.operation(name)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    datastore, libvirt = DirectoryDatastore(tmp_path / "ds", "h1"), Libvirt()
    datastore.root.mkdir()
    datastore.initialise()
    workers, nobody = Workers(), cast(Any, None)
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", datastore.root, paths=Paths(tmp_path))
    ctx = AgentContext(config, "boot", datastore, nobody, cast(Any, libvirt), workers, nobody)
    return Host(datastore, libvirt, ctx, Vms(ctx, Operations("h1", workers, tmp_path / "operations")))


DAMAGED = {
    "no JSON": "{",
    "a newer format": '{"format": 99, "uuid": "u1", "name": "vm1"}',
    "no name": '{"format": 1, "uuid": "u1"}',
    "settings that are none": '{"format": 1, "uuid": "u1", "name": "vm1", "ha": 7}',
}


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_named_and_left_alone(host: Host, text: str, number: int) -> None:
    """Of the older form, the first version, and one whose older versions are whole: those are not taken for it."""
    host.register(2)
    if number == 3:
        host.register(1)
        PairStore(host.datastore, "u1").set_ft_enabled(True)
    path = vm_file.record_path("u1", number)
    host.datastore.replace_text(path, text)
    assert [record.name for record in host.vms.records()] == ["vm2"]
    assert host.vms.find("vm2").uuid == "u2"
    assert path in host.vms.corrupt["u1"].text
    for attempt in (lambda: host.vms.find("vm1"), lambda: host.vms.find("u1"), lambda: host.vms.register("vm1")):
        with pytest.raises(CorruptFile) as caught:
            attempt()
        assert caught.value.code == "FTKVM-305" and caught.value.remedy
    try_power(host.ctx, "u1", on=False)
    assert vm_file.newest_path(host.datastore, "u1") == path and host.datastore.read_text(path) == text
    assert host.datastore.list("vms") == ["u1", "u2"]
    host.datastore.replace(path, VmRecord("u1", "vm1").to_json())  # restored
    assert [record.name for record in host.vms.records()] == ["vm1", "vm2"]
    with pytest.raises(FtkvmError) as unknown:
        host.vms.find("vm3")
    assert unknown.value.code == "FTKVM-101"


def test_a_host_is_not_empty_while_it_runs_a_vm_whose_record_is_damaged(host: Host, tmp_path: Path) -> None:
    operations = Operations("h1", host.ctx.workers, tmp_path / "operations")
    (tmp_path / "operations").mkdir(exist_ok=True)
    service = Service(host.ctx, host.vms, operations)
    assert ended(service, str(service.here.evacuate()["id"]))["state"] == "done"
    host.datastore.replace_text("vms/u1/record/0000001.json", "{")
    host.libvirt.running = [Domain("u1", "vm1", active=True, state="running"), Domain("u8", "alien", active=True)]
    found = ended(service, str(service.here.evacuate()["id"]))
    assert found["state"] == "failed"
    assert found["error"]["code"] == "FTKVM-658"
    assert "vms/u1/record/0000001.json" in found["error"]["cause"] and "alien" not in found["error"]["text"]


def test_a_vm_that_leaves_leaves_nothing(host: Host) -> None:
    """Its resets would count, and its settings be in force, if it came back under the same UUID."""
    host.register(1)
    PairStore(host.datastore, "u1").set_ft_enabled(True)
    host.datastore.replace("vms/u1/vm.json", VmRecord("u1", "vm1").to_json())  # of an older version
    host.datastore.create_once("vms/u1/owner/0000001.json", {"host": None, "boot_id": "boot"})
    resets = ResetStore(host.ctx)
    resets.add("u1", Reset(1.0, "h1", "hung"))
    resets.keep_screenshot("u1", b"picture", 1.0)
    host.vms.unregister("u1")
    assert host.libvirt.defined == [XML]
    left = [path for path in (host.datastore.root / ".ftkvm" / "vms" / "u1").rglob("*") if path.is_file()]
    assert left == []
    assert resets.load("u1") == []
    assert host.vms.records() == []
