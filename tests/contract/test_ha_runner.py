"""The HA runner with real threads, a real directory and a watchdog's socket; the machine is a plain one that beats."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.watchdog import find_watchdog
from ftkvm.agent.ha.doer import Doer, Job
from ftkvm.agent.ha.guard import Guard
from ftkvm.agent.ha.history import History
from ftkvm.agent.ha.runner import HaRunner, Surroundings
from ftkvm.agent.ha.store import HaStore
from ftkvm.agent.workers import Workers
from ftkvm.core.ha.model import (
    Action,
    Beats,
    Cluster,
    Event,
    HaSettings,
    Heartbeat,
    LocalVm,
    PetWatchdog,
    ReadHeartbeats,
    Result,
    Role,
    Seen,
    Status,
    Turn,
    WriteHeartbeat,
)  # fmt: skip
from ftkvm.ports import Json
from tests.contract.test_ha_guard import FakeDog

STOP_AFTER_MS = 1500
CLUSTER = Cluster(("host1",), settings=HaSettings(interval_ms=200, stop_after_ms=STOP_AFTER_MS))


@dataclass
class Beating:
    """Writes and reads each turn, pets while its last good write is young; remembers what it saw."""

    seen: list[Seen] = field(default_factory=list)
    fails: int = 0

    def start(self, seen: Seen) -> Turn:
        return self.turn((0, 0), seen)

    def turn(self, state: object, seen: Seen) -> Turn:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a machine that fails")
        assert isinstance(state, tuple)
        counter, good_ms = state
        self.seen.append(seen)
        for ended in seen.ended:
            if isinstance(ended.action, WriteHeartbeat) and ended.result is Result.OK:
                good_ms = seen.now_ms
        beat = Heartbeat("host1", "boot1", counter + 1, watchdog_ms=seen.watchdog_ms, stop_after_ms=STOP_AFTER_MS)
        pet: tuple[Action, ...] = (PetWatchdog(),) if seen.now_ms - good_ms < STOP_AFTER_MS else ()
        event = Event("turn", "the first", detail={"n": 1})
        status = Status(Role.PRIMARY, None, 0, False, True, (), ())
        actions = (*pet, WriteHeartbeat(beat), ReadHeartbeats())
        return Turn((counter + 1, good_ms), actions, (event,) if counter == 0 else (), status)


class HangingDatastore(DirectoryDatastore):
    """Hangs on command, as storage does: calls wait until it answers again."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "host1")
        self.answers = threading.Event()
        self.answers.set()

    def replace(self, path: str, document: Json) -> None:
        self.answers.wait()
        super().replace(path, document)


@dataclass
class Bench:
    runner: HaRunner
    machine: Beating
    datastore: HangingDatastore
    dog: FakeDog
    local: list[LocalVm]
    store: HaStore

    def heartbeat(self) -> Heartbeat | None:
        return self.store.read_heartbeats().heartbeats.get("host1")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    dog = FakeDog(tmp_path / "dog")
    datastore = HangingDatastore(tmp_path / "shared")
    datastore.root.mkdir()
    datastore.initialise()
    store = HaStore(datastore, "host1", "boot1")
    machine, local = Beating(), [LocalVm("u1")]

    def job(action: Action) -> Job:
        if isinstance(action, WriteHeartbeat):
            return Job(lambda: store.write_heartbeat(action.heartbeat), 600, "write heartbeat")
        return Job(store.read_heartbeats, 600, "read heartbeats")

    history = History(datastore, "host1")
    history.start()
    runner = HaRunner(
        machine,
        Surroundings("host1", "boot1", lambda: CLUSTER, dict, lambda: tuple(local), lambda _local: Beats({})),
        lambda wake: Doer(job, wake, Workers()),
        Guard(find_watchdog(str(tmp_path / "dog")), tmp_path / "state.json", lambda: None),
        history,
        lambda: False,
    )
    runner.start()
    yield Bench(runner, machine, datastore, dog, local, store)
    datastore.answers.set()
    runner.stop()


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def armed_heartbeat(bench: Bench) -> bool:
    found = bench.heartbeat()
    return found is not None and found.watchdog_ms == CLUSTER.settings.watchdog_ms


def test_it_beats_arms_the_watchdog_and_says_so(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    first = bench.heartbeat()
    assert first is not None
    assert within(3, lambda: (bench.heartbeat() or first).counter > first.counter + 2)
    assert bench.runner.guarded
    assert bench.runner.turning
    status = bench.runner.status()
    assert status["status"]["role"] == "primary"
    assert status["events"][0]["event"] == "turn"
    assert within(3, lambda: bench.datastore.read_text("history/host1.jsonl") is not None)
    assert any(ended.result is Result.OK and isinstance(ended.action, ReadHeartbeats)
               for seen in bench.machine.seen for ended in seen.ended)  # fmt: skip


def test_while_the_datastore_hangs_turns_go_on_and_nothing_piles_up_and_pets_end_in_time(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    bench.datastore.answers.clear()
    hung = time.monotonic()
    bench.dog.lines()
    turns = len(bench.machine.seen)
    assert within(5, lambda: not bench.runner.guarded)
    assert time.monotonic() - hung <= STOP_AFTER_MS / 1000 + 0.7
    bench.dog.lines()
    threads = threading.active_count()
    time.sleep(1.5)
    assert bench.dog.lines() == []  # not put off any more, and not disarmed: a VM is here
    assert threading.active_count() <= threads + 1
    assert len(bench.machine.seen) > turns + 8
    ends = [ended for seen in bench.machine.seen for ended in seen.ended if isinstance(ended.action, WriteHeartbeat)]
    assert [ended.result for ended in ends].count(Result.UNKNOWN) == 1
    assert ends[-1].result is Result.FAILED
    assert ends[-1].code == "FTKVM-620"
    bench.datastore.answers.set()
    assert within(3, lambda: bench.runner.guarded)


def test_a_host_without_the_datastore_and_without_vms_is_not_ended(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    bench.datastore.answers.clear()
    bench.local.clear()
    assert within(5, lambda: not bench.runner.guarded)
    assert within(3, lambda: "disarm\n" in bench.dog.lines())
    assert within(3, lambda: bench.machine.seen[-1].watchdog_ms == 0)


def test_an_end_by_a_signal_says_that_nothing_guards_this_host_and_only_then_disarms(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    bench.dog.lines()
    bench.runner.stop()
    last = bench.heartbeat()
    assert last is not None
    assert last.watchdog_ms == 0
    assert bench.dog.lines()[-1] == "disarm\n"
    time.sleep(0.5)
    assert bench.heartbeat() == last


def test_an_end_while_the_datastore_hangs_leaves_the_watchdog_armed(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    bench.datastore.answers.clear()
    time.sleep(0.3)
    bench.dog.lines()
    bench.runner.stop()
    assert "disarm\n" not in bench.dog.lines()


def test_a_machine_that_fails_begins_anew(bench: Bench) -> None:
    assert within(5, lambda: armed_heartbeat(bench))
    bench.machine.fails = 2
    turns = len(bench.machine.seen)
    assert within(5, lambda: len(bench.machine.seen) > turns + 3)
    assert bench.runner.guarded
    assert replace(bench.heartbeat() or Heartbeat("", "", 0), counter=0).host == "host1"
