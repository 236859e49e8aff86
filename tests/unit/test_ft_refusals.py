"""Refusals of the guide's tables that need neither a lab nor QEMU."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.checks import Checks
from ftkvm.agent.cluster import ClusterReader, commit_config
from ftkvm.agent.context import AgentContext
from ftkvm.agent.operations import Operations
from ftkvm.agent.prepare import Prepare
from ftkvm.agent.service import Service
from ftkvm.agent.vms import Vms
from ftkvm.agent.waits import await_done, require_short
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.engine.shape import as_if_never_a_secondary
from ftkvm.ports import Json

SUITABLE = Path(__file__).parents[1] / "checks/vm/plain-q35.xml"


@dataclass
class MadeUpPeers:
    """The only host runs these."""

    running: list[Json] = field(default_factory=list)

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        return {"vms": self.running}


@pytest.fixture
def peers() -> MadeUpPeers:
    return MadeUpPeers()


@pytest.fixture
def service(tmp_path: Path, peers: MadeUpPeers) -> Service:
    """An agent whose datastore has one VM with FT on and a damaged definition."""
    (tmp_path / "ds").mkdir()
    datastore = DirectoryDatastore(tmp_path / "ds", "h1")
    datastore.initialise()
    hosts = {"h1": HostEntry("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1")}
    assert commit_config(datastore, ClusterConfig(1, "lab", hosts, {}))
    datastore.replace("vms/u1/vm.json", {"uuid": "u1", "name": "vm1", "ft": {"enabled": True}})
    datastore.replace_text("vms/u1/domain.xml", "<domain><name>vm1</na")
    workers = Workers()
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", tmp_path / "ds", paths=Paths(tmp_path))
    reader = ClusterReader(datastore, workers, tmp_path / "cache.json")
    ctx = AgentContext(config, "boot", datastore, peers, cast(Any, None), workers, reader)
    operations = Operations("h1", workers, tmp_path / "operations")
    return Service(ctx, Vms(ctx, operations), operations)


def test_a_vm_with_ft_stays_in_the_cluster(service: Service) -> None:
    with pytest.raises(FtkvmError) as caught:
        service.unregister("vm1", "h1")
    assert caught.value.code == "FTKVM-110"
    assert service.vms.find("vm1").ft_enabled


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_host_with_a_copy_stays_in_the_cluster(service: Service, peers: MadeUpPeers, role: str) -> None:
    peers.running.append({"uuid": "u1", "name": "vm1", "state": "running", "role": role})
    with pytest.raises(FtkvmError) as caught:
        service.hosts.remove("h1", dead=False)
    assert caught.value.code == "FTKVM-214"
    assert "vm1" in caught.value.text
    assert "h1" in service.vms._ctx.cluster.hosts()


@dataclass
class OnlyTheSecondary:
    """The PairManager of a secondary's host, as far as nothing of it may be called but this."""

    here: bool = True

    def has_secondary(self, vm_uuid: str) -> bool:
        return self.here


OPERATIONS: dict[str, Callable[[Service], Json]] = {
    "enable": lambda service: service.here.enable("u1", None),
    "disable": lambda service: service.here.turn_off("u1", disable=True),
    "turn off": lambda service: service.here.turn_off("u1"),
    "test failover": lambda service: service.here.test("u1", "failover"),
    "test restart-secondary": lambda service: service.here.test("u1", "restart-secondary"),
    "move secondary": lambda service: service.here.move_secondary("u1", None),
    "migrate": lambda service: service.here.migrate("u1", None),
    "stop": lambda service: service.here.stop("u1", force=True, timeout_s=1.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_secondary_is_not_operated(service: Service, name: str) -> None:
    """FT-08. And nothing is begun: no operation, no note that the VM shall be off."""
    service.vms._ctx.extras["pairs"] = OnlyTheSecondary()
    with pytest.raises(FtkvmError) as caught:
        OPERATIONS[name](service)
    assert (caught.value.code, caught.value.params) == ("FTKVM-530", {"vm": "vm1", "host": "h1"})
    assert service.operations.all_running() == []
    assert service.vms._ctx.datastore.list("vms/u1") == ["domain.xml", "vm.json"]


class NothingRuns:
    """libvirt of a host without a domain."""

    def domain(self, uuid: str) -> None:
        return None


@pytest.fixture
def checks(service: Service) -> Checks:
    """`ftkvm check`, asked of this host; nothing of a host's health is needed for a VM."""
    ctx = replace(service.vms._ctx, libvirt=cast(Any, NothingRuns()))
    return Checks(ctx, service, cast(Any, None))


def test_a_definition_that_is_damaged(checks: Checks) -> None:
    with pytest.raises(FtkvmError) as caught:
        checks.vm("vm1", for_ft=True)
    assert caught.value.code == "FTKVM-108"


@pytest.mark.parametrize(("cluster", "vm", "told"), [
    ({}, {}, False), ({}, {"ha.restart_priority": "disabled"}, True), ({"ha.enabled": False}, {}, True)])  # fmt: skip
def test_a_vm_that_ha_does_not_restart(checks: Checks, cluster: Json, vm: Json, told: bool) -> None:
    """A warning, FTKVM-133: the pair does not need it to go on."""
    datastore = checks._ctx.datastore
    now = checks._ctx.cluster.current(fresh=True)
    assert commit_config(datastore, replace(now, version=2, settings=cluster))
    checks._ctx.cluster.current(fresh=True)
    datastore.replace("vms/u2/vm.json", {"uuid": "u2", "name": "vm2", "ha": vm})
    datastore.replace_text(
        "vms/u2/domain.xml", SUITABLE.read_text().replace("/srv/ft", str(checks._ctx.config.datastore))
    )
    said = checks.vm("vm2", for_ft=True)
    assert [(each["code"], each["severity"]) for each in said["findings"]] == [("FTKVM-133", "warning")] * told
    assert said["compliant"]


def test_a_secondary_that_does_not_come_in_time() -> None:
    looks: list[int] = []
    with pytest.raises(FtkvmError) as caught:
        await_done("vm1", "first checkpoint on the secondary", lambda: False, 0.05, 0.01, lambda: looks.append(1))
    assert caught.value.code == "FTKVM-513"
    assert "first checkpoint" in caught.value.text
    assert len(looks) > 2
    await_done("vm1", "it", lambda: True, 0.0, 0.01, lambda: looks.append(1))


def test_a_vm_that_would_stand_still_too_long() -> None:
    require_short("vm1", time.monotonic() - 0.5, 1.0)
    with pytest.raises(FtkvmError) as caught:
        require_short("vm1", time.monotonic() - 2.0, 1.0)
    assert caught.value.code == "FTKVM-511"


GOOD = "<domain type='kvm'><name>vm2</name><devices><sound model='ac97'/></devices></domain>"


def test_prepare_changes_only_the_definition_of_a_vm_that_is_off(service: Service, peers: MadeUpPeers) -> None:
    datastore = service.vms._ctx.datastore
    datastore.replace("vms/u2/vm.json", {"uuid": "u2", "name": "vm2"})
    datastore.replace_text("vms/u2/domain.xml", GOOD)
    prepare = Prepare(service.vms._ctx, service)
    assert prepare.prepare("vm2", dry_run=True)["changes"] == ["sound ac97: removed"]
    assert datastore.read_text("vms/u2/domain.xml") == GOOD
    peers.running.append({"uuid": "u2", "name": "vm2", "state": "running", "role": "solo"})
    with pytest.raises(FtkvmError) as caught:
        prepare.prepare("vm2", dry_run=False)
    assert caught.value.code == "FTKVM-135"
    assert datastore.read_text("vms/u2/domain.xml") == GOOD
    peers.running.clear()
    done = prepare.prepare("vm2", dry_run=False)
    assert "sound" not in (datastore.read_text("vms/u2/domain.xml") or "")
    assert done["report"]["compliant"] and "-    <sound" in done["difference"]
    assert prepare.prepare("vm2", dry_run=False)["changes"] == []


def test_a_promoted_vm_is_not_refused_for_what_ftkvm_itself_put_into_its_definition() -> None:
    """Its QEMU was started as a secondary, with our -incoming; an operator's own arguments are still found."""
    head = "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>v</name>"
    ours = "<qemu:arg value='-incoming'/><qemu:arg value='defer'/>"
    assert "commandline" not in as_if_never_a_secondary(f"{head}<qemu:commandline>{ours}</qemu:commandline></domain>")
    theirs = f"{head}<qemu:commandline>{ours}<qemu:arg value='-s'/></qemu:commandline></domain>"
    assert "-s" in as_if_never_a_secondary(theirs)
    assert "-incoming" not in as_if_never_a_secondary(theirs)
