"""How HA ends VMs: real processes that look like QEMUs, a real directory, the real Doer."""

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.qemus import Qemus
from ftkvm.agent.ha.actions import Actions
from ftkvm.agent.ha.beats import BeatTable
from ftkvm.agent.ha.doer import Doer
from ftkvm.agent.ha.guard import now_ms
from ftkvm.agent.ha.store import HaStore, VmsRead
from ftkvm.agent.workers import Workers
from ftkvm.core.ha.model import Ended, OwnerWhy, Result, StopVm
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Json

UUID = "0f0f0f0f-1111-2222-3333-444444444444"


@dataclass
class FakeWorld:
    """A host whose guests do not heed their power button."""

    host: str = "host1"
    starts: bool = False
    pressed: threading.Event = field(default_factory=threading.Event)

    def settings(self) -> Mapping[str, Any]:
        return {}

    def addresses(self, host: str) -> Mapping[str, str]:
        return {}

    def fence(self, host: str) -> Mapping[str, str]:
        return {}

    def start_here(self, uuid: str, request: Json) -> Json:
        raise AssertionError(uuid)

    def operation(self, name: str) -> Json:
        raise AssertionError(name)

    def starting(self, uuid: str) -> bool:
        return self.starts

    def shutdown(self, uuid: str, timeout_s: float) -> None:
        self.pressed.set()

    def vms_read(self, read: VmsRead) -> None:
        raise AssertionError(read)


class NoPeers:
    """Nobody is called."""

    def call(self, host: str, method: str, path: str, body: Json | None, timeout_s: float) -> Json:
        raise AssertionError(host)


@dataclass
class Bench:
    world: FakeWorld
    store: HaStore
    actions: Actions
    doer: Doer
    qemu: "subprocess.Popen[bytes]"

    def stop(self, *, power_off: bool, owner: int | None = None) -> None:
        self.doer.begin(StopVm(UUID, power_off, 60_000, OwnerWhy.RELEASED, "isolated", owner), now_ms())

    def ended(self, count: int) -> list[Ended]:
        """So many ends, within 10 s."""
        found: list[Ended] = []
        deadline = time.monotonic() + 10
        while len(found) < count and time.monotonic() < deadline:
            found += [done.ended for done in self.doer.ends(now_ms())]
            time.sleep(0.02)
        return found


def begin_qemu(directory: Path) -> "subprocess.Popen[bytes]":
    """A process with the name and the words of a QEMU, which waits for its end."""
    program = directory / "qemu-system-none"
    program.write_text("#!/bin/sh\nread -r line\n")
    program.chmod(0o755)
    words = [str(program), "-name", "guest=vm1", "-uuid", UUID]
    return subprocess.Popen(words, stdin=subprocess.PIPE)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    datastore = DirectoryDatastore(tmp_path / "shared", "host1")
    datastore.root.mkdir()
    datastore.initialise()
    datastore.create_once(f"vms/{UUID}/owner/0000001.json", {"host": "host1", "boot_id": "boot1", "at": 0.0})
    world, store, qemus = FakeWorld(), HaStore(datastore, "host1", "boot1"), Qemus()
    actions = Actions(world, store, BeatTable("host1", BeatKeys(0, bytes(32)), 1), NoPeers(), qemus)
    qemu = begin_qemu(tmp_path)
    deadline = time.monotonic() + 5
    while UUID not in qemus.look() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert UUID in qemus.look()
    yield Bench(world, store, actions, Doer(actions.job, lambda: None, Workers()), qemu)
    qemu.kill()
    qemu.communicate()


def test_a_switch_off_does_not_wait_for_a_guest_that_is_shutting_down(bench: Bench) -> None:
    bench.stop(power_off=False)
    assert bench.world.pressed.wait(5)
    bench.stop(power_off=True)
    assert [ended.result for ended in bench.ended(2)] == [Result.OK, Result.OK]
    assert bench.qemu.wait(1) != 0
    assert (bench.store.owner(UUID).number, bench.store.owner(UUID).host) == (2, None)  # released once
    assert bench.actions.stopping == set()


def test_of_two_shutdowns_at_once_one_is_begun(bench: Bench) -> None:
    bench.stop(power_off=False)
    bench.stop(power_off=False)
    assert [(ended.result, ended.code) for ended in bench.ended(1)] == [(Result.FAILED, "FTKVM-620")]
    assert bench.actions.stopping == {UUID}
    bench.stop(power_off=True)
    bench.ended(2)


def test_a_start_that_is_under_way_keeps_its_owner_file(bench: Bench) -> None:
    """The QEMU before it is ended, late; what comes now is not what was to be released."""
    bench.world.starts = True
    bench.stop(power_off=True)
    [ended] = bench.ended(1)
    assert ended.result is Result.OK
    assert bench.qemu.wait(1) != 0
    assert (bench.store.owner(UUID).number, bench.store.owner(UUID).host) == (1, "host1")


def test_a_vm_that_runs_again_is_neither_ended_nor_released_for_what_was_read_of_it(bench: Bench) -> None:
    bench.stop(power_off=True, owner=1)
    [ended] = bench.ended(1)
    assert ended.value == "runs again"
    assert bench.qemu.poll() is None
    assert bench.store.owner(UUID).number == 1
