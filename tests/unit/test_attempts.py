"""HA's failed attempts to start a VM are counted on the datastore: any coordinator goes on with them (HA-02)."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.attempts import path_of
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha.store import HaStore
from ftkvm.agent.operations import Operations
from ftkvm.agent.service import Service
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostConfig, Paths
from ftkvm.ports import Json

XML = "<domain type='kvm'><name>vm1</name><uuid>u1</uuid><memory unit='MiB'>512</memory><vcpu>1</vcpu></domain>"


@dataclass
class Libvirt:
    """Starts VMs, or fails with a message."""

    fails: FtkvmError | None = None
    created: list[str] = field(default_factory=list)

    def require_versions(self) -> None:
        pass

    def domain(self, uuid: str) -> None:
        return None

    def define(self, xml: str) -> None:
        pass

    def create(self, xml: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.created.append(xml)


@dataclass
class Host:
    """One agent on a real directory."""

    datastore: DirectoryDatastore
    libvirt: Libvirt
    service: Service
    vms: Vms

    def start(self, attempt: int, *, why: str = "restarted") -> Json:
        """A start as HA asks for it, until it has ended."""
        owner = self.vms.owner("u1")[0]
        name = str(self.service.here.start("u1", owner, why=why, attempt=attempt)["id"])
        deadline = time.monotonic() + 10
        while self.service.operation(name)["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.service.operation(name)

    def counted(self) -> int:
        """What a coordinator that knows nothing reads."""
        (vm,) = HaStore(self.datastore, "host2", "boot2").read_vms({}).vms
        return vm.failed_attempts


@pytest.fixture
def host(tmp_path: Path) -> Host:
    datastore, libvirt = DirectoryDatastore(tmp_path / "ds", "h1"), Libvirt()
    workers, nobody = Workers(), cast(Any, None)
    datastore.root.mkdir()
    datastore.initialise()
    datastore.replace_text("vms/u1/domain.xml", XML)
    vm_file.create(datastore, "u1", {**VmRecord("u1", "vm1").to_json(), "power": "on"})
    datastore.create_once("vms/u1/owner/0000001.json", {"host": "h9", "boot_id": "gone"})
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", datastore.root, paths=Paths(tmp_path))
    ctx = AgentContext(config, "boot", datastore, nobody, cast(Any, libvirt), workers, nobody)
    operations = Operations("h1", workers, tmp_path / "operations")
    operations.load()
    vms = Vms(ctx, operations)
    return Host(datastore, libvirt, Service(ctx, vms, operations), vms)


REFUSED = FtkvmError("FTKVM-106", host="h1", detail="no")


def test_each_failure_is_counted_until_a_start_works(host: Host) -> None:
    host.libvirt.fails = REFUSED
    for attempt in (1, 2):
        assert host.start(attempt)["state"] == "failed"
        assert host.counted() == attempt
    host.libvirt.fails = None
    assert host.start(3)["state"] == "done" and host.libvirt.created
    assert host.counted() == 0
    assert host.datastore.list("restarts") == []


def test_one_that_failed_before_its_claim_is_counted_too(host: Host) -> None:
    host.datastore.replace_text("vms/u1/domain.xml", XML.replace("</domain>", "<devices><nothing>"))
    assert host.start(1)["error"]["code"] == "FTKVM-108"
    assert host.vms.owner("u1") == (1, "h9")
    host.datastore.replace_text("vms/u1/domain.xml", XML)
    assert host.counted() == 1


def test_an_attempt_that_a_lost_host_had_begun_does_not_begin_the_count_anew(host: Host) -> None:
    host.libvirt.fails = REFUSED
    host.start(2)
    host.vms.claim(host.vms.find("u1"), host.vms.owner("u1")[0], "restarted")
    assert host.counted() == 2


def test_an_operators_start_is_a_later_word(host: Host) -> None:
    host.libvirt.fails = REFUSED
    host.start(2)
    host.vms.claim(host.vms.find("u1"), host.vms.owner("u1")[0], "started")
    assert host.counted() == 0


def test_what_does_not_count_is_not_noted(host: Host) -> None:
    """Somebody else was faster; and a start that no coordinator counts."""
    host.libvirt.fails = FtkvmError("FTKVM-103", vm="vm1", host="h2")
    host.start(1)
    assert host.counted() == 0
    host.libvirt.fails = REFUSED
    host.start(0)
    assert host.counted() == 0


def test_a_damaged_count_is_named_and_the_vm_is_not_left_alone(host: Host) -> None:
    host.datastore.replace_text(path_of("u1"), "{")
    read = HaStore(host.datastore, "host2", "boot2").read_vms({})
    assert read.corrupt == (path_of("u1"),)
    assert [(vm.uuid, vm.failed_attempts) for vm in read.vms] == [("u1", 0)]
    assert host.datastore.read_text(path_of("u1")) == "{"


def test_it_leaves_with_its_vm(host: Host) -> None:
    host.libvirt.fails = REFUSED
    host.start(1)
    host.vms.unregister("u1")
    assert host.datastore.list("restarts") == []
