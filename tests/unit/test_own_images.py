"""Images on the hosts' own disks (ft.disks=copy): which are the newest, who may start from them, when they go."""

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
from ftkvm.agent.own_images import (
    define_on,
    make_room,
    remove_lost,
    require_own_images,
    room,
    stale_on,
    whole_copies,
)
from ftkvm.agent.records import CopyPlace, OperationDoc, PairDoc, PairStore
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.core.facts import PairRecord, Role, Winner
from ftkvm.core.newest import DiskPlan, Papers, home, plan_copied, still_meant
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason
from ftkvm.engine.shape import Disk

UUID = "6d0e42bc-5bd1-4a6b-9d55-b2f6f2a9c0de"
SIZE = 4 << 20


@dataclass
class World:
    """Hosts a and b, each with a directory of its own; both call it by the same name, as hosts' own disks are called.

    The name is a symbolic link: :meth:`on` makes it point at one host's directory.
    """

    directory: Path
    datastore: DirectoryDatastore
    store: PairStore

    @property
    def own(self) -> Path:
        return self.directory / "own"

    @property
    def base(self) -> str:
        return str(self.own / "v1.qcow2")

    def secondary(self, epoch: int, side: str = "s") -> str:
        return f"{self.base}.ft-{epoch}-{side}.qcow2"

    def on(self, host: str) -> ColdStart:
        """A start on a host, which sees its own directory."""
        self.own.unlink(missing_ok=True)
        self.own.symlink_to(self.directory / host)
        text = self.datastore.read_text(f"vms/{UUID}/domain.xml") or ""
        return ColdStart(self.ctx(host), "v1", self.store, text)

    def ctx(self, host: str) -> AgentContext:
        def call(asked: str, *_: object, **__: object) -> None:
            raise FtkvmError("FTKVM-202", host=asked, detail="dead")

        peers = SimpleNamespace(call=call)
        made = SimpleNamespace(host=host, boot_id="boot", workers=Workers(), datastore=self.datastore, peers=peers)
        return cast(AgentContext, made)

    def image(self, host: str, path: str, pattern: int) -> None:
        at = str(self.directory / host / Path(path).name)
        images.create_empty(at, SIZE)
        subprocess.run(["qemu-io", "-c", f"write -P {pattern} 0 64k", at], capture_output=True, check=True)

    def pair(self, epoch: int, primary: tuple[str, str], secondary: tuple[str, str], winner: str | None = None,
             reason: Reason = Reason.PEER_SILENT) -> None:  # fmt: skip
        places = (CopyPlace(primary[0], {"vda": primary[1]}), CopyPlace(secondary[0], {"vda": secondary[1]}))
        self.store.create(PairDoc(UUID, "v1", epoch, *places, copied=True))
        if winner is not None:
            self.store.arbitrate(epoch, winner, "boot", reason)

    def start(self, host: str) -> str:
        cold = self.on(host)
        cold.require_home(None)
        return cold.images(lambda *_: None)["vda"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "ds").mkdir()
    for host in "abc":
        (tmp_path / host).mkdir()
    datastore = DirectoryDatastore(tmp_path / "ds", "a")
    datastore.initialise()
    made = World(tmp_path, datastore, PairStore(datastore, UUID))
    xml = (f"<domain><devices><disk type='file' device='disk'><driver type='qcow2'/><source file='{made.base}'/>"
           "<target dev='vda'/></disk></devices></domain>")  # fmt: skip
    datastore.replace_text(f"vms/{UUID}/domain.xml", xml)
    made.image("a", made.base, 1)
    return made


def code_of(work: Any) -> str:
    with pytest.raises(FtkvmError) as raised:
        work()
    return raised.value.code


# ------------------------------------------------------------------------------------------------------ cold start


def test_a_vm_that_never_was_in_a_pair_has_no_home(world: World) -> None:
    assert world.on("b").home() is None
    assert world.start("a") == world.base


def test_after_a_failover_only_the_winners_image_counts_and_only_on_its_host(world: World) -> None:
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    for host in "ac":
        assert code_of(lambda host=host: world.start(host)) == "FTKVM-172"
        assert code_of(lambda host=host: world.on(host).images(lambda *_: None)) == "FTKVM-172"
    assert world.start("b") == world.secondary(1)


def test_a_newest_image_that_is_gone_is_never_replaced_by_an_older_one(world: World) -> None:
    world.image("b", world.base, 9)  # whatever lies there under the user's name
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    assert code_of(lambda: world.start("b")) == "FTKVM-174"


def test_the_primary_that_went_on_keeps_its_image(world: World) -> None:
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="a")
    assert world.start("a") == world.base
    assert code_of(lambda: world.start("b")) == "FTKVM-172"


def test_there_and_back_again(world: World) -> None:
    """The stale images of the first epoch lie beside the newest ones of the third, on the same host."""
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    world.pair(2, ("b", world.secondary(1)), ("a", world.secondary(2)), winner="a")
    world.image("a", world.secondary(2), 3)
    world.image("b", world.secondary(1), 2)
    assert world.start("a") == world.secondary(2)
    assert code_of(lambda: world.start("b")) == "FTKVM-172"


@pytest.mark.parametrize("reason", sorted(NOBODY_GOES_LIVE))
def test_when_nobody_went_on_the_primarys_counts_whoever_wrote_the_file(world: World, reason: Reason) -> None:
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b", reason=reason)
    assert world.start("a") == world.base
    assert code_of(lambda: world.start("b")) == "FTKVM-172"


def test_an_undecided_epoch_is_ended_by_its_primarys_host_only(world: World) -> None:
    """Another host could not start it then, and the secondary could not go live any more."""
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)))
    assert code_of(lambda: world.on("a").require_home(None)) == "FTKVM-111"
    assert code_of(lambda: world.on("b").require_home("a")) == "FTKVM-172"
    world.on("a").require_home("a")
    world.on("a").end_epoch(1, "a")
    assert world.start("a") == world.base


def test_what_a_promoted_copy_had_not_written_back_is_written_back(world: World) -> None:
    world.image("b", world.secondary(1), 2)
    images.create_empty(str(world.directory / "b" / Path(world.secondary(1, "h")).name), SIZE)
    world.image("b", world.secondary(1, "a"), 5)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    assert world.start("b") == world.secondary(1)
    said = subprocess.run(["qemu-io", "-c", "read -P 5 0 64k", world.secondary(1)], capture_output=True, text=True)
    assert "failed" not in said.stdout
    assert not Path(world.secondary(1, "a")).exists()


def test_a_protect_that_was_cut_off_changes_nothing(world: World) -> None:
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="a")
    journal = OperationDoc("protect", "a", "boot", 2, "c", ["freeze", "images", "secondary", "mirror"],
                           {"vda": world.base}, {"vda": world.secondary(2)}, {"vda": world.base})  # fmt: skip
    journal.copied = True
    world.store.save_operation(journal)
    world.image("c", world.secondary(2), 4)
    assert code_of(lambda: world.start("c")) == "FTKVM-172"
    assert world.start("a") == world.base
    assert world.store.operation() is None


def test_other_disks_in_the_definition_are_the_operators_word(world: World) -> None:
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    moved = str(world.directory / "ds" / "v1.qcow2")
    images.create_empty(moved, SIZE)
    define_on(world.ctx("a"), UUID, {"vda": moved})
    assert world.on("c").home() is None
    assert world.start("c") == moved


def test_after_turning_off_the_definition_names_the_newest(world: World) -> None:
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    define_on(world.ctx("b"), UUID, {"vda": world.secondary(1)})
    assert world.secondary(1) in world.on("b").definition
    assert world.start("b") == world.secondary(1)
    assert code_of(lambda: world.start("a")) == "FTKVM-172"


# ------------------------------------------------------------------------------------------------- what may go


def test_a_copy_that_lost_or_never_was_one_goes(world: World) -> None:
    world.on("b")
    world.image("b", world.secondary(1), 2)
    world.image("b", world.secondary(1, "a"), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="a")
    assert remove_lost(world.store, "b", 1, [world.secondary(1)]) == [world.secondary(1)]
    world.image("b", world.secondary(2), 2)
    assert remove_lost(world.store, "b", 2, [world.secondary(2)]) == [world.secondary(2)]
    assert list((world.directory / "b").iterdir()) == []


@pytest.mark.parametrize("winner", [None, "b"])
def test_a_copy_that_won_or_may_win_stays(world: World, winner: str | None) -> None:
    world.on("b")
    world.image("b", world.secondary(1), 2)
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner=winner)
    assert remove_lost(world.store, "b", 1, [world.secondary(1)]) == []
    assert Path(world.secondary(1)).exists()


def test_only_secondaries_of_that_very_epoch_go(world: World) -> None:
    world.on("b")
    for path in (world.base, world.secondary(3), world.secondary(1, "p")):
        world.image("b", path, 2)
    assert remove_lost(world.store, "b", 1, [world.base, world.secondary(3), world.secondary(1, "p")]) == []
    assert len(list((world.directory / "b").iterdir())) == 3


def test_stale_is_what_an_ended_epoch_left_on_that_host_and_not_the_users_image(world: World) -> None:
    world.pair(1, ("a", world.base), ("b", world.secondary(1)), winner="b")
    world.pair(2, ("b", world.secondary(1)), ("a", world.secondary(2)), winner="a")
    world.pair(3, ("a", world.secondary(2)), ("c", world.secondary(3)))
    assert stale_on(world.store, "b", [world.secondary(2)]) == [world.secondary(1)]
    assert stale_on(world.store, "b", [world.secondary(1)]) == []  # two names of one directory
    assert stale_on(world.store, "a", []) == [world.secondary(2)]
    assert stale_on(world.store, "c", []) == []  # that epoch has not ended


def test_room_for_a_whole_copy(world: World) -> None:
    world.on("b")
    world.image("b", world.secondary(1), 2)
    make_room("v1", "b", {"vda": world.secondary(2)}, {"vda": SIZE}, [world.secondary(1)])
    assert not Path(world.secondary(1)).exists()
    with pytest.raises(FtkvmError, match="MiB free"):
        make_room("v1", "b", {"vda": world.secondary(2)}, {"vda": 1 << 60}, [])
    with pytest.raises(FtkvmError, match="no directory"):
        make_room("v1", "b", {"vda": "/nowhere/v.ft-1-s.qcow2"}, {"vda": 1}, [])


def test_what_is_free_counts_what_goes_first(world: World) -> None:
    """Only images that we named: nobody makes room by naming somebody else's file."""
    world.on("b")
    other = world.own / "other.qcow2"
    for path in (world.secondary(1), world.secondary(1, "a"), world.secondary(1, "h"), str(other)):
        images.create_empty(path, SIZE)
        subprocess.run(["qemu-io", "-c", "write -P 1 0 1M", path], capture_output=True, check=True)
    directory = str(world.own)
    plain = room([directory])[directory]
    more = room([directory], [world.secondary(1), world.secondary(7), str(other)])[directory]
    assert plain is not None and more is not None and plain.device == more.device
    assert 3 << 20 <= more.free_bytes - plain.free_bytes < 4 << 20
    assert room(["/nowhere", world.secondary(1)]) == {"/nowhere": None, world.secondary(1): None}


def test_whole_copies_are_as_large_as_the_disks(world: World) -> None:
    world.on("a")
    images.create_empty(world.base, SIZE)
    (world.own / "more").mkdir()
    for name in ("x", "y"):
        images.create_empty(str(world.own / "more" / name), 2 * SIZE)
    found = whole_copies([world.base, str(world.own / "more/x"), str(world.own / "more/y")])
    assert found == {str(world.own): SIZE, str(world.own / "more"): 4 * SIZE}


@pytest.mark.parametrize(("source", "is_own"), [("/var/lib/vm/a.qcow2", True), ("/srv/ft/a.qcow2", False), ("", False),
                                                ("/srv/x/../ft/a.qcow2", False)])  # fmt: skip
def test_whole_copies_are_made_of_the_hosts_own_files_only(source: str, is_own: bool) -> None:
    disks = [Disk("vda", "virtio-disk0", source, "qcow2")]
    if is_own:
        require_own_images("/srv/ft", "v1", disks)
    else:
        assert code_of(lambda: require_own_images("/srv/ft", "v1", disks)) == "FTKVM-173"


# ------------------------------------------------------------------------------------------------------------ pure


def test_home_follows_the_side_that_went_on() -> None:
    record = PairRecord(3, "a", "b")
    assert home(record, Winner("a", Reason.PEER_SILENT)) == "a"
    assert home(record, Winner("b", Reason.PEER_SILENT)) == "b"
    assert home(record, Winner("b", Reason.GUEST_SHUTDOWN)) == "a"


def test_plans_of_whole_images() -> None:
    last = "/v.ft-1-s.qcow2"
    papers = Papers({}, {"vda": last}, Role.SECONDARY, 1, copied=True)
    assert plan_copied("vda", papers, {last}.__contains__) == DiskPlan(last)
    both = {last, "/v.ft-1-a.qcow2"}
    assert plan_copied("vda", papers, both.__contains__) == DiskPlan(last, settle=last)
    assert plan_copied("vda", papers, {"/v"}.__contains__) is None
    assert plan_copied("vdb", papers, both.__contains__) is None


def test_a_definition_that_names_other_disks() -> None:
    assert still_meant({"vda": "/v"}, {"vda": "/v.ft-7-s.qcow2"})
    assert still_meant({"vda": "/v.ft-7-s.qcow2"}, {"vda": "/v"})
    assert not still_meant({"vda": "/w"}, {"vda": "/v.ft-7-s.qcow2"})
    assert not still_meant({}, {"vda": "/v"})
