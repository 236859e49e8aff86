"""Disks of a VM that is off are converted (FT-17): real qemu-img, a real directory as the datastore."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.cluster import ClusterReader, commit_config
from ftkvm.agent.context import AgentContext
from ftkvm.agent.convert import Converting, planned
from ftkvm.agent.operations import Operations
from ftkvm.agent.power import note_power
from ftkvm.agent.prepare import Prepare
from ftkvm.agent.service import Service
from ftkvm.agent.vms import Vms
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.core.checks.domain import Rules
from ftkvm.core.checks.mend import on_new_images
from ftkvm.ports import Json

XML = """<domain type='kvm'><name>vm1</name><devices><disk type='file' device='disk'>
<driver name='qemu' type='vmdk' cache='none'/><source file='{}'/><target dev='vda' bus='virtio'/></disk></devices>
</domain>"""
SIZE = 24 << 20


class NoDomains:
    """A libvirt that has nothing."""

    def domains(self) -> list[object]:
        return []

    def domain(self, _uuid: str) -> None:
        return None

    def require_versions(self) -> None: ...


class NoPairs:
    """A PairManager that has nothing."""

    def status(self, _uuid: str | None) -> list[Json]:
        return []

    def has_secondary(self, _uuid: str) -> bool:
        return False


@dataclass
class OneHost:
    """The only host of the cluster, asked as if over the network."""

    vms: list[Vms] = field(default_factory=list)

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        assert (host, method, path) == ("h1", "GET", "/v1/local/vms")
        return {"vms": self.vms[0].local()}


class Ground:
    """A cluster of one host with one VM, off, whose disk is a vmdk image with something in it."""

    def __init__(self, directory: Path, *, fresh: bool = True) -> None:
        root = directory / "ds"
        self.disk, self.image, self.root = root / "d.vmdk", root / "d.qcow2", root
        self.datastore = DirectoryDatastore(root, "h1")
        self.xml = XML.format(self.disk)
        if fresh:
            root.mkdir()
            self._fill(directory)
        workers, peers = Workers(), OneHost()
        config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", root, paths=Paths(directory))
        reader = ClusterReader(self.datastore, workers, directory / "cache.json")
        libvirt = cast(Any, NoDomains())
        self.ctx = AgentContext(config, "boot", self.datastore, peers, libvirt, workers, reader)
        self.ctx.extras["pairs"] = NoPairs()
        operations = Operations("h1", workers, directory / "operations")
        operations.load()
        self.vms = Vms(self.ctx, operations)
        peers.vms.append(self.vms)
        self.service = Service(self.ctx, self.vms, operations)
        self.prepare = Prepare(self.ctx, self.service)

    def _fill(self, directory: Path) -> None:
        self.datastore.initialise()
        hosts = {"h1": HostEntry("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1")}
        assert commit_config(self.datastore, ClusterConfig(1, "lab", hosts, {}))
        vm_file.create(self.datastore, "u1", {"uuid": "u1", "name": "vm1"})
        self.datastore.replace_text("vms/u1/domain.xml", self.xml)
        raw = directory / "raw"
        raw.write_bytes(b"".join(bytes([number % 251]) * 4096 for number in range(SIZE // 4096)))
        subprocess.run(["qemu-img", "convert", "-O", "vmdk", raw, self.disk], check=True)

    def converting(self, free_bytes: int = 1 << 40) -> Callable[..., list[str]]:
        """The run that `prepare` would begin."""
        record = self.vms.find("vm1")
        todo = planned(self.ctx, record, self.xml, Rules(datastore=str(self.root)))
        run = Converting(self.ctx, self.vms, record, todo, lambda _directory: free_bytes).run
        new_xml = on_new_images(self.xml, todo).xml
        return lambda progress, owner=0, discard=False: run(owner, self.xml, new_xml, progress, discard=discard)

    def ended(self, operation: Json) -> Json:
        deadline = time.monotonic() + 30
        while (now := self.service.operation(operation["id"]))["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return now

    def definition(self) -> str:
        return self.datastore.read_text("vms/u1/domain.xml") or ""

    def owners(self) -> list[tuple[str | None, str]]:
        names = self.datastore.list("vms/u1/owner")
        documents = [self.datastore.read_json(f"vms/u1/owner/{name}") or {} for name in names]
        return [(each["host"], each["why"]) for each in documents]

    def files(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.name != ".ftkvm"}

    def assert_converted(self) -> None:
        assert str(self.image) in self.definition() and "vmdk" not in self.definition()
        assert subprocess.run(["qemu-img", "compare", "-q", self.disk, self.image]).returncode == 0
        assert self.files() == {"d.vmdk", "d.qcow2"}
        assert self.datastore.read_json("vms/u1/prepare.json") is None

    def assert_as_before(self) -> None:
        assert self.definition() == self.xml
        assert self.files() == {"d.vmdk"}


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def nothing(_step: int, _steps: int, _text: str) -> None: ...


def test_prepare_converts_a_disk_and_shows_how_far_it_is(ground: Ground) -> None:
    dry = ground.prepare.prepare("vm1", dry_run=True)
    assert dry["changes"] == [f"disk vda: {ground.disk} (vmdk) converted to {ground.image} (qcow2)"]
    assert dry["report"]["compliant"] and dry["operation"] is None
    ground.assert_as_before()
    ended = ground.ended(ground.prepare.prepare("vm1", dry_run=False)["operation"])
    assert ended["state"] == "done", ended["error"]
    assert ended["text"] == "converting disk vda: 100 %"
    assert ended["result"]["kept"] == [str(ground.disk)] and ended["result"]["report"]["compliant"]
    assert ground.owners() == [("h1", "preparing"), (None, "stopped")]
    ground.assert_converted()
    assert ground.prepare.prepare("vm1", dry_run=False)["changes"] == []


def test_enable_of_a_vm_that_is_off_converts_first(ground: Ground) -> None:
    ended = ground.ended(ground.service.here.enable("u1", None))
    assert ended["state"] == "done", ended["error"]
    assert ended["result"]["kept"] == [str(ground.disk)]
    ground.assert_converted()
    assert ground.vms.find("vm1").ft_enabled


def test_the_old_image_goes_when_it_is_told(ground: Ground) -> None:
    assert ground.converting()(nothing, discard=True) == []
    assert ground.files() == {"d.qcow2"}


def test_nobody_starts_it_meanwhile(ground: Ground) -> None:
    """Who read the owner before finds its number taken; who reads it later finds the VM busy."""
    record, seen = ground.vms.find("vm1"), []
    ended = []

    def meanwhile(step: int, steps: int, text: str) -> None:
        with pytest.raises(FtkvmError) as late:
            ground.vms.claim(record, 0)
        with pytest.raises(FtkvmError) as busy:
            ground.service.start("vm1", None)
        seen.append((late.value.code, busy.value.code, ground.vms.local()[0]["state"]))

    run = ground.converting()
    operation = ground.service.operations.start("prepare", "vm1", "u1", lambda _told: {"kept": run(meanwhile)})
    ended.append(ground.ended({"id": operation.id}))
    assert ended[0]["state"] == "done", ended[0]["error"]
    assert set(seen) == {("FTKVM-103", "FTKVM-103", "preparing")}
    ground.assert_converted()
    assert ground.vms.local() == []


def test_a_vm_that_was_started_before_is_left_alone(ground: Ground) -> None:
    ground.datastore.create_once("vms/u1/owner/0000001.json", {"host": "h2", "boot_id": "b", "why": "started"})
    with pytest.raises(FtkvmError) as caught:
        ground.converting()(nothing)
    assert caught.value.code == "FTKVM-103"
    ground.assert_as_before()


@pytest.mark.parametrize("what", ["owner", "definition", "name"])
def test_what_somebody_else_changed_meanwhile_stays(ground: Ground, what: str) -> None:
    def meanwhile(step: int, steps: int, text: str) -> None:
        if not text.endswith("100 %"):
            return
        if what == "owner":
            ground.datastore.create_once("vms/u1/owner/0000002.json", {"host": "h2", "boot_id": "b", "why": "started"})
        elif what == "definition":
            ground.datastore.replace_text("vms/u1/domain.xml", ground.xml.replace("vda", "vdb"))
        else:
            ground.image.write_text("somebody's")

    with pytest.raises(FtkvmError) as caught:
        ground.converting()(meanwhile)
    assert caught.value.code == "FTKVM-171"
    assert str(ground.disk) in ground.definition()
    if what == "name":
        assert ground.image.read_text() == "somebody's"
    else:
        assert ground.files() == {"d.vmdk"}


def test_an_image_that_cannot_be_read(ground: Ground) -> None:
    ground.disk.write_bytes(b"KDMV" + b"\xff" * 4096)
    with pytest.raises(FtkvmError) as caught:
        ground.converting()(nothing)
    assert caught.value.code == "FTKVM-331"
    ground.assert_as_before()
    assert ground.owners()[-1] == (None, "stopped")


def test_a_place_that_cannot_be_made_is_told_with_its_name(ground: Ground) -> None:
    local = ground.root.parent / "d.vmdk"
    ground.disk.rename(local)
    ground.xml = XML.format(local)
    ground.datastore.replace_text("vms/u1/domain.xml", ground.xml)
    (ground.root / "images").write_text("a file where the directory would be")
    with pytest.raises(FtkvmError) as caught:
        ground.converting()(nothing)
    assert caught.value.code == "FTKVM-302" and f"{ground.root}/images" in caught.value.text
    assert ground.definition() == ground.xml and ground.owners()[-1] == (None, "stopped")


def test_too_little_room(ground: Ground) -> None:
    with pytest.raises(FtkvmError) as caught:
        ground.converting(free_bytes=SIZE // 2)(nothing)
    assert caught.value.code == "FTKVM-170"
    assert "12 MiB free" in caught.value.text
    ground.assert_as_before()


def test_a_vm_that_ha_is_about_to_start_is_not_converted(ground: Ground) -> None:
    note_power(ground.ctx, "u1", on=True)
    for attempt in (
        lambda: ground.prepare.prepare("vm1", dry_run=False),
        lambda: ground.service.here.enable("u1", None),
    ):
        with pytest.raises(FtkvmError) as caught:
            attempt()
        assert caught.value.code == "FTKVM-135"
    ground.assert_as_before()


def test_a_run_that_is_killed_leaves_a_file_that_the_next_removes(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    killed = subprocess.run([sys.executable, __file__, str(tmp_path)], timeout=60)
    assert killed.returncode == 9
    assert ground.definition() == ground.xml
    assert ground.files() == {"d.vmdk", "d.qcow2.u1.converting"}
    ended = ground.ended(ground.prepare.prepare("vm1", dry_run=False)["operation"])
    assert ended["state"] == "done", ended["error"]
    ground.assert_converted()


def test_a_run_that_is_killed_between_names_and_definition_leaves_nothing_either(ground: Ground) -> None:
    """The image has its name, and no definition names it: the next run makes it anew. Somebody's own file stays."""
    ground.image.write_text("whole, but in no definition")
    (ground.root / "d.qcow2.u1.converting").hardlink_to(ground.image)
    (ground.root / "e.qcow2").write_text("somebody's")
    (ground.root / "e.qcow2.u1.converting").write_text("half")
    names = [str(ground.image), str(ground.root / "e.qcow2")]
    ground.datastore.replace("vms/u1/prepare.json", {"host": "h1", "images": names})
    ground.converting()(nothing)
    assert str(ground.image) not in ground.definition()  # the name was taken when this run was planned
    assert ground.files() == {"d.vmdk", "d-1.qcow2", "e.qcow2"}
    assert subprocess.run(["qemu-img", "compare", "-q", ground.disk, ground.root / "d-1.qcow2"]).returncode == 0


if __name__ == "__main__":
    import os

    Ground(Path(sys.argv[1]), fresh=False).converting()(
        lambda _step, _steps, text: os._exit(9) if not text.endswith(" 0 %") else None
    )
