"""VM monitoring in the agent: what is done about a guest that hangs, on a fake of libvirt and a real directory."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.guest_figures import Life, counters, life
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha_vm_monitor import VmMonitor
from ftkvm.agent.operations import Operations
from ftkvm.agent.stalls import STALL_MS, Stalls
from ftkvm.agent.vm_resets import SCREENSHOTS_KEPT, ResetStore
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostConfig, Paths
from ftkvm.core.ha.model import Event
from ftkvm.core.ha.settings import Monitoring
from ftkvm.core.ha.vm_monitor import Beat, Io
from ftkvm.ports import Json, WorkTimeout

PNG = b"\x89PNG\r\n\x1a\n..."
CUSTOM = Monitoring(True, 10, 0, 3, 3600, 10)


class FakeGuests:
    """Guests of which all answer, until one hangs."""

    def __init__(self) -> None:
        self.hangs = False
        self.wakes_for_the_last_question = False
        self.moves: Io | None = Io(1, 1, 1)
        self.pressed = 0
        self.refusal: FtkvmError | None = None
        self.screen = True

    def ping(self, uuid: str, timeout_s: int) -> Beat:
        return Beat.SILENT if self.hangs else Beat.ANSWERED

    def io(self) -> dict[str, Io | None]:
        return {"u1": self.moves}

    def screenshot(self, uuid: str) -> bytes:
        if self.wakes_for_the_last_question:
            self.hangs = False
        if not self.screen:
            raise FtkvmError("FTKVM-142", vm=uuid, detail="no video device")
        return PNG

    def reset(self, uuid: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.pressed += 1
        self.hangs = False


class World:
    """One host with one VM, and a clock that is set."""

    def __init__(self, root: Path) -> None:
        self.now_ms = 1_000_000
        self.guests = FakeGuests()
        self.monitoring_is: Monitoring | None = CUSTOM
        self.entry: Json = {"uuid": "u1", "name": "vm1", "role": "solo", "state": "running"}
        self.obstacle_is = ""
        self.forgotten: list[str] = []
        self.events: list[Event] = []
        self.datastore = DirectoryDatastore(root, "host1")
        self.datastore.initialise()
        workers = Workers()
        config = HostConfig("host1", "10.0.0.1", "10.1.0.1", "10.2.0.1", root, paths=Paths(root))
        nobody = cast(Any, None)
        self.context = AgentContext(config, "boot", self.datastore, nobody, nobody, workers, nobody)
        self.operations = Operations("host1", workers, root / "operations")
        self.operations.load()
        self.lives = root / "vm-monitor.json"
        self.monitor = self.agent()

    def agent(self) -> VmMonitor:
        """A new process of the agent."""
        return VmMonitor(
            "host1", self.guests, ResetStore(self.context), self, self.operations, self.lives, 2,
            lambda: self.now_ms, lambda: 1_700_000_000 + self.now_ms / 1000,
        )  # fmt: skip

    def copies(self) -> list[Json]:
        return [self.entry]

    def monitoring(self, uuid: str) -> Monitoring | None:
        return self.monitoring_is

    def obstacle(self, entry: Json) -> str:
        return self.obstacle_is

    def life(self, name: str) -> Life | None:
        return Life("1-1", 0)

    def forget(self, uuid: str) -> None:
        self.forgotten.append(uuid)

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def turns(self, seconds: int) -> None:
        """A turn each second, which is shorter than a stall."""
        for _second in range(seconds):
            self.now_ms += 1000
            self.monitor.turn()
            self.settle()

    def settle(self) -> None:
        deadline = time.monotonic() + 5
        while self.operations.running("u1") and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.operations.running("u1") is None

    def status(self) -> Json:
        found = self.monitor.status("u1")
        assert found is not None
        return found

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.turns(5)
    assert made.status()["state"] == "well"
    return made


def hang(world: World, seconds: int = 13) -> None:
    world.guests.hangs = True
    world.turns(seconds)


def test_a_guest_that_hangs_is_reset_with_picture_and_record(world: World) -> None:
    hang(world)
    assert world.guests.pressed == 1
    last = world.status()["last_reset"]
    assert (last["host"], last["outcome"]) == ("host1", "done")
    assert Path(last["screenshot"]).read_bytes() == PNG
    assert world.status()["resets_in_window"] == 1
    assert world.kinds() == ["vm-reset"]
    assert "reset 1 of 3" in world.events[0].text


def test_the_fourth_hang_is_left_alone_and_says_so_once(world: World) -> None:
    for _time in range(3):
        hang(world)
        world.turns(5)
    assert world.guests.pressed == 3
    hang(world, 100)
    assert world.guests.pressed == 3
    status = world.status()
    assert (status["state"], status["resets_in_window"]) == ("left-alone", 3)
    assert status["error"]["code"] == "FTKVM-140"
    assert world.kinds().count("vm-left-alone") == 1


def test_the_count_outlives_the_agent(world: World) -> None:
    for _time in range(3):
        hang(world)
        world.turns(5)
    world.monitor = world.agent()
    world.turns(3)
    hang(world, 50)
    assert (world.guests.pressed, world.status()["state"]) == (3, "left-alone")


def test_a_guest_that_hung_before_the_agent_was_restarted_is_reset(world: World) -> None:
    world.guests.hangs = True
    world.monitor = world.agent()
    world.turns(13)
    assert world.guests.pressed == 1


def test_the_agents_own_sleep_is_not_the_guests_silence(world: World) -> None:
    world.guests.hangs = True
    for _time in range(20):
        world.now_ms += STALL_MS + 1
        world.monitor.turn()
        world.settle()
    assert world.guests.pressed == 0
    assert "stood still" in world.status()["why"]


def test_without_a_picture_it_is_reset_all_the_same(world: World) -> None:
    world.guests.screen = False
    hang(world)
    assert world.guests.pressed == 1
    assert world.status()["last_reset"]["screenshot"] is None
    assert "no video device" in world.events[0].text


def test_one_that_answers_the_last_question_is_not_reset(world: World) -> None:
    world.guests.wakes_for_the_last_question = True
    hang(world)
    assert world.guests.pressed == 0
    assert world.datastore.read_json("vms/u1/resets.json") is None


def test_what_cannot_be_recorded_is_not_done(world: World, tmp_path: Path) -> None:
    vms = tmp_path / ".ftkvm/vms"
    vms.mkdir()
    (vms / "u1").write_text("in the way")
    hang(world, 60)
    assert world.guests.pressed == 0
    assert world.status()["error"]["code"] == "FTKVM-143"
    assert 1 <= world.kinds().count("vm-reset-failed") <= 2  # a try each half minute
    (vms / "u1").unlink()
    world.turns(40)
    assert world.guests.pressed == 1


def test_a_corrupt_record_is_left_alone_and_nothing_is_reset(world: World) -> None:
    world.datastore.replace_text("vms/u1/resets.json", "{")
    hang(world, 40)
    assert world.guests.pressed == 0
    assert "resets.json" in world.status()["error"]["text"]
    assert world.datastore.read_text("vms/u1/resets.json") == "{"


def test_a_reset_of_unknown_outcome_counts_and_a_refused_one_does_not(world: World) -> None:
    world.guests.refusal = FtkvmError("FTKVM-106", host="host1", detail="no")
    hang(world)
    assert (world.status()["resets_in_window"], world.status()["error"]["code"]) == (0, "FTKVM-141")
    world.guests.refusal = WorkTimeout("FTKVM-902", what="reset", seconds=10)
    world.turns(35)
    assert world.status()["resets_in_window"] == 1


def test_nothing_happens_to_a_vm_beside_another_operation(world: World) -> None:
    world.obstacle_is = "migrate is under way"
    hang(world, 60)
    assert (world.guests.pressed, world.status()["state"]) == (0, "not-judged")


@pytest.mark.parametrize("role", ["secondary", "incoming"])
def test_only_the_main_copy_is_looked_at(world: World, role: str) -> None:
    world.entry["role"] = role
    hang(world, 60)
    assert (world.guests.pressed, world.monitor.status("u1")) == (0, None)


def test_the_primary_of_a_pair_is_reset(world: World) -> None:
    world.entry["role"] = "primary"
    hang(world)
    assert world.guests.pressed == 1


def test_a_reboot_from_inside_gives_the_minimum_uptime_anew(world: World) -> None:
    world.monitoring_is = replace(CUSTOM, min_uptime_s=60)
    world.monitor.on_lifecycle("u1", "reset", 0)
    hang(world, 59)
    assert (world.guests.pressed, world.status()["state"]) == (0, "settling")
    world.turns(5)
    assert world.guests.pressed == 1


def test_off_is_off(world: World) -> None:
    world.monitoring_is = replace(CUSTOM, enabled=False)
    hang(world, 60)
    assert (world.guests.pressed, world.status()["state"]) == (0, "off")


def test_pictures_are_bounded(world: World) -> None:
    store = ResetStore(world.context)
    for at in range(SCREENSHOTS_KEPT + 3):
        store.keep_screenshot("u1", PNG, 1_700_000_000 + at)
    names = world.datastore.list("vms/u1/screenshots")
    assert (len(names), names[0]) == (SCREENSHOTS_KEPT, "20231114T221323Z-host1.png")


def test_counters_are_summed_and_a_busy_qemus_are_not_known() -> None:
    row = {"block.count": 2, "block.0.rd.reqs": 1, "block.0.wr.reqs": 2, "block.1.rd.reqs": 4, "net.count": 2,
           "net.0.tx.pkts": 10, "net.0.rx.pkts": 1, "net.1.tx.pkts": 20, "net.1.rx.pkts": 2}  # fmt: skip
    assert counters(row) == Io(7, 30, 3)
    assert counters({"block.count": 1, "block.0.name": "vda", "net.count": 0}) is None
    assert counters({"block.count": 0}) == Io(0, 0, 0)
    assert counters({}) is None


def test_the_life_of_a_process_is_its_start(tmp_path: Path) -> None:
    (tmp_path / "vm1.pid").write_text("self")
    assert life("vm1", tmp_path) is None
    (tmp_path / "vm1.pid").write_text(Path("/proc/self/stat").read_text().split()[0])
    found = life("vm1", tmp_path)
    assert found is not None
    assert 0 < time.monotonic() * 1000 - found.born_ms < 3_600_000
    assert life("vm2", tmp_path) is None


def test_stalls_are_noticed() -> None:
    now = [0]
    stalls = Stalls(lambda: now[0])
    now[0] = STALL_MS
    assert not stalls.since(0)
    now[0] = 2 * STALL_MS + 1
    assert stalls.since(STALL_MS)
    assert not stalls.since(now[0])


def test_resets_that_another_host_made_meanwhile_count(world: World) -> None:
    resets = [{"at": 1_700_000_000 + number, "host": "host2", "why": "hung"} for number in range(3)]
    world.datastore.replace("vms/u1/resets.json", {"resets": resets})
    hang(world, 20)
    assert world.guests.pressed == 0
    assert world.status()["state"] == "left-alone"


def test_settings_that_were_changed_are_read_anew(world: World) -> None:
    world.monitor.settings_changed("u1")
    assert world.forgotten == ["u1"]
