"""Starting again after every copy is gone: which images are the newest, with the real qemu-img and a real directory."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ftkvm.adapters import images
from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cold_start import ColdStart
from ftkvm.agent.context import AgentContext
from ftkvm.agent.records import CopyPlace, OperationDoc, PairDoc, PairStore
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.core.facts import PairRecord, Role, Winner
from ftkvm.core.newest import DiskPlan, Papers, plan_disk, side_that_went_on
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason

UUID = "6d0e42bc-5bd1-4a6b-9d55-b2f6f2a9c0de"
SIZE = 4 << 20


def io(image: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    return subprocess.run(["qemu-io", *words, image], capture_output=True, text=True, check=True).stdout


def holds(image: str, pattern: int, where: str) -> bool:
    return "failed" not in io(image, f"read -P {pattern} {where} 64k")


@dataclass
class World:
    """A VM ``v1`` with one disk, below a datastore."""

    directory: Path
    store: PairStore
    cold: ColdStart

    @property
    def base(self) -> str:
        return str(self.directory / "v1.qcow2")

    def overlay(self, epoch: int, side: str, below: str) -> str:
        path = f"{self.base}.ft-{epoch}-{side}.qcow2"
        images.create_overlay(path, below, "qcow2")
        return path

    def scratch(self, epoch: int, side: str) -> str:
        path = f"{self.base}.ft-{epoch}-{side}.qcow2"
        images.create_empty(path, SIZE)
        return path

    def pair(self, epoch: int, p: str, s: str) -> None:
        self.store.create(PairDoc(UUID, "v1", epoch, CopyPlace("a", {"vda": p}), CopyPlace("b", {"vda": s})))

    def start(self) -> str:
        return self.cold.images(lambda *_: None)["vda"]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("v1.qcow2*"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    datastore = DirectoryDatastore(tmp_path, "c")
    datastore.initialise()
    store = PairStore(datastore, UUID)
    base = tmp_path / "v1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), str(SIZE)], check=True)
    xml = (f"<domain><devices><disk type='file' device='disk'><source file='{base}'/><target dev='vda'/></disk>"
           "</devices></domain>")  # fmt: skip

    def call(host: str, *_: object, **__: object) -> None:
        raise FtkvmError("FTKVM-202", host=host, detail="dead")

    peers = SimpleNamespace(call=call)
    ctx = SimpleNamespace(host="c", boot_id="boot", workers=Workers(), datastore=datastore, peers=peers)
    return World(tmp_path, store, ColdStart(cast(AgentContext, ctx), "v1", store, xml))


def code_of(work: Any) -> str:
    with pytest.raises(FtkvmError) as raised:
        work()
    return raised.value.code


def test_a_vm_that_never_was_in_a_pair(world: World) -> None:
    assert world.start() == world.base
    world.overlay(1, "p", world.base)
    assert code_of(world.start) == "FTKVM-115"


def test_a_snapshot_taken_past_us_is_not_started_below(world: World) -> None:
    snapshot = str(world.directory / "v1.s1")
    images.create_overlay(snapshot, world.base, "qcow2")
    os.utime(world.base, (100, 100))
    assert code_of(world.start) == "FTKVM-115"
    Path(snapshot).unlink()
    assert world.start() == world.base


def test_a_recorded_image_that_was_pulled_is_still_the_newest(world: World) -> None:
    """`virsh blockpull` while the pair was whole: its overlay has no backing file any more, and all of the disk."""
    primary, secondary = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    io(primary, "write -P 7 0 64k")
    subprocess.run(["qemu-img", "rebase", "-b", "", primary], check=True)
    world.pair(1, primary, secondary)
    world.store.arbitrate(1, "a", "boot", Reason.PEER_SILENT)
    assert world.start() == primary


def test_an_undecided_epoch_is_won_for_its_primary_only_when_told_to(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.pair(1, p, s)
    assert code_of(world.start) == "FTKVM-111"
    assert code_of(lambda: world.cold.end_epoch(2, "a")) == "FTKVM-118"
    assert code_of(lambda: world.cold.end_epoch(1, "b")) == "FTKVM-118"
    world.cold.end_epoch(1, "a")
    assert world.store.winner(1) == Winner("a", Reason.COLD_RESTART)
    assert world.start() == p


def test_a_secondary_that_had_won_keeps_its_epoch(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.pair(1, p, s)
    world.store.arbitrate(1, "b", "boot-b", Reason.PEER_SILENT)
    with pytest.raises(FtkvmError, match="FTKVM-118"):  # it may be live: whoever starts the VM looks again
        world.cold.end_epoch(1, "a")
    assert world.start() == s


@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_winner_that_had_not_committed_its_active_disk(world: World, again: int) -> None:
    """S has the dead primary's writes since the checkpoint; hidden what was there before; active the winner's own."""
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    hidden, active = world.scratch(1, "h"), world.scratch(1, "a")
    io(s, "write -P 1 0 64k", "write -P 1 1M 64k", "write -P 9 2M 64k")  # at 2M: from the primary, never its own
    io(hidden, "write -P 1 2M 64k")
    io(active, "write -P 2 1M 64k", "write -P 2 3M 64k")
    world.pair(1, p, s)
    world.store.arbitrate(1, "b", "boot-b", Reason.PEER_SILENT)
    if again:  # an earlier start was cut off: in the middle of it, or before it had deleted the hidden disk
        subprocess.run(["qemu-img", "rebase", "-u", "-b", s, "-F", "qcow2", hidden], check=True)
        subprocess.run(["qemu-img", "rebase", "-u", "-b", hidden, "-F", "qcow2", active], check=True)
        if again == 2:
            images.commit(active, s)
            images.remove(active)
    assert world.start() == s
    assert [holds(s, pattern, where) for pattern, where in ((1, "0"), (2, "1M"), (1, "2M"), (2, "3M"))] == [True] * 4
    assert not Path(active).exists()


def test_a_committed_active_disk_is_gone_and_the_image_counts(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    io(s, "write -P 5 0 64k")
    world.pair(1, p, s)
    world.store.arbitrate(1, "b", "boot-b", Reason.PEER_SILENT)
    assert world.start() == s
    assert holds(s, 5, "0")


@pytest.mark.parametrize("reason", sorted(NOBODY_GOES_LIVE))
def test_where_nobody_goes_live_the_primary_counts(world: World, reason: Reason) -> None:
    """Also when the secondary's host wrote the file: its scratch disks are then of no use."""
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.scratch(1, "h")
    io(world.scratch(1, "a"), "write -P 2 0 64k")
    world.pair(1, p, s)
    world.store.arbitrate(1, "b", "boot-b", reason)
    assert world.start() == p
    assert side_that_went_on(PairRecord(1, "a", "b"), Winner("b", reason)) is Role.PRIMARY


def test_a_protect_that_was_lost_with_its_vm(world: World) -> None:
    """Its overlay has the newest writes, and goes into what was below; the new secondary's images go."""
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.pair(1, p, s)
    world.store.arbitrate(1, "a", "boot-a", Reason.COLO_EXIT)
    begun, new = world.overlay(2, "p", p), world.overlay(2, "s", p)
    io(begun, "write -P 3 0 64k")
    world.store.save_operation(OperationDoc("protect", "a", "boot-a", 2, "b", ["freeze"], {"vda": begun},
                                            {"vda": new}, {"vda": p}))  # fmt: skip
    assert world.start() == p
    assert holds(p, 3, "0")
    assert world.store.operation() is None
    assert world.files() == ["v1.qcow2", "v1.qcow2.ft-1-p.qcow2", "v1.qcow2.ft-1-s.qcow2"]


def test_an_overlay_that_was_only_just_being_created(world: World) -> None:
    begun = f"{world.base}.ft-1-p.qcow2"
    Path(begun).touch()
    world.store.save_operation(OperationDoc("protect", "a", "boot-a", 1, "b", ["freeze"], {"vda": begun},
                                            {}, {"vda": world.base}))  # fmt: skip
    assert world.start() == world.base


def test_a_recorded_pair_makes_the_journal_of_its_protect_void(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    io(p, "write -P 4 0 64k")
    world.pair(1, p, s)
    world.store.arbitrate(1, "b", "boot-b", Reason.PEER_SILENT)
    world.store.save_operation(OperationDoc("protect", "a", "boot-a", 1, "b", ["record"], {"vda": p}, {"vda": s},
                                            {"vda": world.base}))  # fmt: skip
    assert world.start() == s
    assert world.store.operation() is None
    assert Path(s).exists()


def test_a_turn_off_that_was_lost_with_its_vm_becomes_this_hosts(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.pair(1, p, s)
    world.store.arbitrate(1, "a", "boot-a", Reason.TURN_OFF)
    world.store.save_operation(OperationDoc("turn-off", "a", "boot-a", 1))
    assert world.start() == p
    journal = world.store.operation()
    assert journal is not None
    assert (journal.kind, journal.host, journal.boot_id) == ("turn-off", "c", "boot")
    images.remove(p)  # merged; the death came before the others were deleted
    assert world.start() == world.base


def test_an_overlay_of_a_newer_epoch_that_no_journal_explains(world: World) -> None:
    p, s = world.overlay(1, "p", world.base), world.overlay(1, "s", world.base)
    world.pair(1, p, s)
    world.store.arbitrate(1, "a", "boot-a", Reason.COLO_EXIT)
    world.overlay(2, "p", p)
    assert code_of(world.start) == "FTKVM-115"


def test_merged_first_means_the_users_image() -> None:
    """Neither the overlay that was begun nor the last one is there: both were merged."""
    papers = Papers({"vda": "b.ft-2-p.qcow2"}, {"vda": "b.ft-1-p.qcow2"}, Role.PRIMARY, 1)
    assert plan_disk("vda", "b", papers, lambda _path: False) == DiskPlan("b")
    assert plan_disk("vda", "b", papers, lambda path: "ft-2" in path) == DiskPlan("b", fold="b.ft-2-p.qcow2")
    assert plan_disk("vdb", "c", papers, lambda _path: True) == DiskPlan("c")
