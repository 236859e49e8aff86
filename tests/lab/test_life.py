"""What an operator does with a protected VM (FT-02, FT-08, FT-15, FT-16, FT-18), its clients connected throughout."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import faults, operator, soak, trials
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage
from ftkvm.lab.trials import Outcome, Round

from .conftest import SEED

pytestmark = pytest.mark.lab

ONE_CHECKPOINT_S = 5.0
LOCKSTEP_PATIENCE_S = 60.0
"""Shown is the median of the last ten checkpoints, so six slow ones have to come first."""


@pytest.fixture(scope="module")
def vm(stage: Stage) -> Iterator[Round]:
    """A protected VM of its own, with clients."""
    guest = soak.make_vm(stage, "life1", "1G", print)
    try:
        soak.protect(stage, guest.name)
        with soak.streaming(stage, guest, print, SEED) as this:
            yield this
    finally:
        trials.destroy(stage, guest.name)


def told(stage: Stage, *words: str, timeout_s: int = 180) -> dict[str, Any]:
    """The JSON answer of a command."""
    return dict(json.loads(stage.ftkvm(*words, "--output", "json", timeout_s=timeout_s)))


def refused(stage: Stage, *words: str) -> str:
    """What a command says that must fail."""
    with pytest.raises(FtkvmError) as caught:
        stage.ftkvm(*words)
    return str(caught.value)


def sound(vm: Round, what: str, pair: dict[str, Any]) -> dict[str, Any]:
    """Protected again in a later epoch, and everything that must hold after any fault holds; its pair now."""
    after = vm.wait_protected(int(pair["epoch"]))
    outcome = Outcome(what, int(pair["epoch"]), str(pair["host"]), str(pair["secondary_host"]))
    vm.wait_served()
    vm.check(outcome, after)
    assert not outcome.wrong
    return after


def test_failover_is_tried_and_measured(vm: Round) -> None:
    """FT-18: the secondary takes over; predicted and measured gap; protected again."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    said = told(vm.stage, "test", "failover", vm.vm)["result"]
    assert (said["from"], said["to"]) == (before["host"], before["secondary_host"])
    assert 0 < said["predicted_gap_ms"] < 60_000
    assert 0 < said["measured_gap_ms"] < 60_000
    assert said["reprotect_s"] is not None
    after = sound(vm, "test failover", before)
    assert after["host"] == before["secondary_host"]
    print(said)


def test_what_the_secondary_takes_is_shown(vm: Round) -> None:
    """FT-10: its CPU in MHz and memory in MB, as of at most 20 s ago."""
    deadline = time.monotonic() + 40
    while (pair := vm.wait_protected(0))["secondary_cpu_mhz"] is None and time.monotonic() < deadline:
        time.sleep(1.0)
    assert pair["secondary_cpu_mhz"] > 0, pair
    assert pair["secondary_memory_mb"] > 100, pair


def test_the_secondary_is_restarted(vm: Round) -> None:
    """FT-18: the primary goes on where it is; a new secondary is made."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    said = told(vm.stage, "test", "restart-secondary", vm.vm)["result"]
    assert said["unprotected_s"] is not None
    after = sound(vm, "test restart-secondary", before)
    assert after["host"] == before["host"]
    print(said)


def test_the_secondary_moves(vm: Round) -> None:
    """FT-15: to the third host, by name; refused where it is, and where the primary is."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    third = next(name for name in vm.stage.hosts if name not in (before["host"], before["secondary_host"]))
    move = ("vm", "migrate", vm.vm, "--secondary", "--to")
    assert "FTKVM-408" in refused(vm.stage, *move, str(before["secondary_host"]))
    assert "FTKVM-403" in refused(vm.stage, *move, str(before["host"]))
    assert vm.wait_protected(0)["epoch"] == before["epoch"]
    said = told(vm.stage, *move, third)["result"]
    after = sound(vm, "move secondary", before)
    assert (after["host"], after["secondary_host"]) == (before["host"], third)
    print(said)


def test_the_primary_moves(vm: Round) -> None:
    """FT-15: to the host that has no copy; never onto the secondary's."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    third = next(name for name in vm.stage.hosts if name not in (before["host"], before["secondary_host"]))
    assert "FTKVM-409" in refused(vm.stage, "vm", "migrate", vm.vm, "--to", str(before["secondary_host"]))
    assert "FTKVM-650" in refused(vm.stage, "vm", "migrate", vm.vm, "--to", str(before["host"]))
    said = told(vm.stage, "vm", "migrate", vm.vm, "--to", third)["result"]
    after = sound(vm, "move primary", {**before, "epoch": int(before["epoch"]) + 1})
    assert after["host"] == third
    print(said)


def test_maintenance_clears_a_host_of_both_kinds_of_copies(vm: Round) -> None:
    """The primary's host, then the secondary's: the VM is elsewhere and protected, its connections alive."""
    for side in ("host", "secondary_host"):
        before = vm.wait_protected(0)
        vm.clients.mark()
        host = str(before[side])
        vm.stage.ftkvm("host", "maintenance", "enter", host, timeout_s=180)
        try:
            after = sound(vm, f"maintenance of the {side}", before)
            assert host not in (after["host"], after["secondary_host"])
        finally:
            vm.stage.ftkvm("host", "maintenance", "exit", host)


def test_disabled_and_enabled(vm: Round) -> None:
    """FT-08: *Disabled* keeps the secondary's place; `enable` protects again there."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    vm.stage.ftkvm("disable", vm.vm, timeout_s=180)
    status = vm.stage.vm_status(vm.vm)
    assert (status["pair"]["shown_as"], status["host"]) == ("Not protected: Disabled", before["host"])
    vm.wait_served()
    assert "FTKVM-410" in refused(vm.stage, "disable", vm.vm)
    assert "FTKVM-402" in refused(vm.stage, "test", "failover", vm.vm)
    said = told(vm.stage, "enable", vm.vm)
    assert said["pair"]["secondary_host"] == before["secondary_host"]
    sound(vm, "disable and enable", before)


def test_all_hosts_are_upgraded_one_after_the_other(vm: Round) -> None:
    """HA-24: the plan changes nothing; cut off after a step, it goes on; the unprotected time is told and measured."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    upgrade = ("cluster", "upgrade-plan", "--upgrade-minutes", "0.2")
    vm.stage.ftkvm(*upgrade, "--forget")  # what a run of this test that broke off has left
    planned = told(vm.stage, *upgrade)
    assert vm.wait_protected(0)["epoch"] == before["epoch"]
    assert sorted(step["subject"] for step in planned["steps"] if step["do"] == "upgrade") == sorted(vm.stage.hosts)
    assert planned["predicted_s"][vm.vm] > 0
    cut_off_after(vm, "upgrade", *upgrade, "--execute", "--yes")
    assert "FTKVM-662" in refused(vm.stage, *upgrade)
    said = told(vm.stage, *upgrade, "--execute", "--yes", timeout_s=240)
    assert said["done"] == len(said["steps"])
    print(f"unprotected: predicted {said['predicted_s']}, measured {said['measured_s']}")
    assert 0 < said["measured_s"][vm.vm] < 120
    rows = json.loads(vm.stage.ftkvm("host", "list", "--output", "json"))
    assert [row["maintenance"] for row in rows] == [False] * 3
    # Moved away and back: its first and last frames lie around others'.
    if vm.wait_protected(0)["host"] == before["host"]:
        vm.clients.capture.mark()
    sound(vm, "upgrade", before)


def cut_off_after(vm: Round, word: str, *words: str) -> None:
    """Runs a command, and kills it as soon as it says that it begins the step after the first one called ``word``."""
    command = operator.command([sys.executable, "-m", "ftkvm.cli", *words])
    environment = {**vm.stage.environment(), "FTKVM_HOME": str(vm.stage.home)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        said: list[str] = []
        for line in run.stderr:
            said.append(line)
            if f": {word}" in "".join(said[:-1]) and line.startswith("upgrade: ") and f": {word}" not in line:
                run.kill()
                break
    assert run.returncode == -signal.SIGKILL, said


ASKED_MS = 2000
"""Between checkpoints, while the second copy is slowed. An epoch ends after three times that without one; red begins
2 s beyond it: so a busy machine may take more than a second longer than it should, and nothing ends. And it has 2 s
to stop the second copy after one checkpoint, before the next is due."""
STANDS_STILL_S = {"yellow": 3.0, "red": 4.3}


def test_a_slow_secondary_slows_the_primary_and_is_shown(vm: Round) -> None:
    """FT-14: its QEMU stands still most of the time. The lockstep interval grows with it, its colour tells how far, and
    no epoch ends."""
    before = vm.wait_protected(0)
    vm.clients.mark()
    asked = ("ft.checkpoint_min_ms", "ft.checkpoint_max_ms")
    vm.stage.ftkvm("vm", "set", vm.vm, *(f"{name}={ASKED_MS}" for name in asked))
    lockstep_comes_to(vm, "green")
    for shade, stands_still_s in STANDS_STILL_S.items():
        with slowed(vm, before, stands_still_s):
            lockstep_comes_to(vm, shade)
    vm.stage.ftkvm("vm", "set", vm.vm, *(f"{name}=" for name in asked))
    lockstep_comes_to(vm, "green")
    assert vm.wait_protected(0)["epoch"] == before["epoch"]
    vm.wait_served()


@contextmanager
def slowed(vm: Round, pair: dict[str, Any], stands_still_s: float) -> Iterator[None]:
    """Inside, the second copy's QEMU runs for one checkpoint at a time and stands still in between.

    In a thread of its own: how long an operator's command takes must not make it stand still for longer.
    """
    pids = faults.qemu_pids(Host(str(pair["secondary_host"])), vm.vm)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            done = checkpoints(vm)
            with frozen(pids):
                over.wait(stands_still_s)
            deadline = time.monotonic() + ONE_CHECKPOINT_S
            while checkpoints(vm) <= done and time.monotonic() < deadline:
                time.sleep(0.01)

    thread = threading.Thread(target=work, name="slowed")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(stands_still_s + 2 * ONE_CHECKPOINT_S)
        assert not thread.is_alive()


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Inside, these processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def checkpoints(vm: Round) -> int:
    """Of the pair so far; 0 while nobody can say."""
    return int((vm.eyes.status(vm.vm).get("pair") or {}).get("checkpoints") or 0)


def lockstep_comes_to(vm: Round, shade: str) -> None:
    """Waits until the operator sees the lockstep interval in that colour, the epoch being the same throughout.

    A primary that waits for its second copy in the middle of a checkpoint answers nobody, so at times none is shown.
    """
    epoch, seen = int(vm.wait_protected(0)["epoch"]), list[tuple[str, float]]()
    deadline = time.monotonic() + LOCKSTEP_PATIENCE_S
    while not seen or seen[-1][0] != shade:
        assert time.monotonic() < deadline, f"not {shade}: {seen}"
        if pair := vm.stage.pair(vm.vm):
            assert pair["epoch"] == epoch, f"before {shade}: {seen}, then {pair['last_failover']}"
            seen.append((pair["lockstep"], pair["lockstep_interval_s"]))
    print(f"lockstep: {seen}")


def test_turned_on_while_it_is_off(vm: Round) -> None:
    """FT-02: *VM not running*, then protected after its start."""
    vm.clients.records.close()
    proof = soak.prove(vm.stage, vm.guest, list(vm.clients.records.acknowledged))
    assert (proof["lost_records"], proof["doubled_records"], proof["wrong_records"]) == (0, 0, 0)
    vm.stage.ftkvm("enable", vm.vm)
    assert vm.stage.vm_status(vm.vm)["pair"]["shown_as"] == "Not protected: VM not running"
    vm.stage.ftkvm("vm", "start", vm.vm)
    wait_for_guest(vm.guest.address)
    vm.stage.wait_protected(vm.vm, trials.PROTECTED_TIMEOUT_S)
    outlives_a_failover(vm)


def test_turned_on_as_soon_as_it_is_started(vm: Round) -> None:
    """A second copy that followed the boot of an emulated guest reset itself after the failover (two times in four)."""
    vm.stage.ftkvm("turn-off", vm.vm)
    vm.stage.ftkvm("vm", "stop", vm.vm, "--force")
    vm.stage.ftkvm("vm", "start", vm.vm)
    vm.stage.ftkvm("enable", vm.vm)
    outlives_a_failover(vm)


def outlives_a_failover(vm: Round) -> None:
    """A connection made now goes on, seconds after the primary's QEMU is killed."""
    pair = vm.stage.wait_protected(vm.vm, trials.PROTECTED_TIMEOUT_S)
    with CounterClient(vm.guest.address) as counter:
        faults.kill(str(pair["host"]), f"qemu:{vm.vm}")
        vm.stage.wait_protected(vm.vm, trials.PROTECTED_TIMEOUT_S, after_epoch=int(pair["epoch"]))
        before = counter.last
        time.sleep(3.0)
        assert (counter.broken, counter.gaps) == (None, 0)
        assert counter.last > before
