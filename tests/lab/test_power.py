"""FT VMs switched off and on, by their operator, by their guest and by fate: started again, every write is there.

"Fate" is the loss of all copies at once, in the middle of an operation, or of the winner before it is an ordinary VM.
The VM has no system on its disk: what a guest would write is written into its running device by hand, 64 KiB of one
pattern each time, which QEMU handles like the guest's own writes.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ftkvm.lab import faults
from ftkvm.lab.client import CONTROL, ask, wait_for_guest
from ftkvm.lab.host import Host
from ftkvm.lab.looks import hmp

from .disk import DEVICE, Disk, image_of, qmp
from .seat import Seat, seated

pytestmark = pytest.mark.lab

FAULT_POINT = "/run/ftkvm/stop-after-step"
VM = "p1"
PATIENCE_S = 90


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host31", "host32", "host33") as made:
        made.add_all_hosts()
        made.ok("cluster", "set", "ha.enabled=off")  # here the operator starts what is lost; the last test is HA's
        made.define(made.hosts[0], VM, size="1G")
        made.ok("vm", "register", VM, "--host", made.hosts[0].name)
        made.ok("vm", "start", VM, "--host", made.hosts[0].name)
        assert made.run("enable", VM).status == 0
        yield made


@pytest.fixture(scope="module")
def disk(seat: Seat) -> Disk:
    return Disk(seat, VM)


def kill(host: Host) -> None:
    for pid in faults.qemu_pids(host, VM):
        os.kill(pid, signal.SIGKILL)


def start_and_check(seat: Seat, disk: Disk, *words: str) -> None:
    said = seat.run("vm", "start", VM, *words)
    assert said.status == 0, said.err + seat.logs()
    disk.check()


def wait_off(seat: Seat, vm: str = VM) -> dict[str, Any]:
    """Off, as the cluster says it; and no QEMU is left."""
    seen = seat.wait_vm(vm, "off", lambda entry: entry["state"] == "off", PATIENCE_S)
    deadline = time.monotonic() + 10
    while any(host.running and faults.qemu_pids(host, vm) for host in seat.hosts):
        assert time.monotonic() < deadline, "a QEMU is left"
        time.sleep(0.1)
    return dict(seen)


def reason(seat: Seat, epoch: int, vm: str = VM) -> str:
    """Why an epoch ended, as its winner file says."""
    return str(json.loads((seat.metadata(vm) / f"epoch-{epoch:04d}.winner").read_text())["reason"])


def cut_off_after(host: Host, step: str) -> None:
    host.run(["sh", "-c", f"echo {step} > {FAULT_POINT}"])


def wait_cut_off(host: Host) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while host.succeeds(["test", "-e", FAULT_POINT]):
        assert time.monotonic() < deadline, "the agent was never cut off there"
        time.sleep(0.1)


def protected(seat: Seat, after_epoch: int = 0) -> dict[str, Any]:
    return seat.wait_protected(VM, after_epoch, PATIENCE_S)


def test_stop_force_ends_both_copies(seat: Seat, disk: Disk) -> None:
    pair = protected(seat)
    disk.write(seat.host(pair["host"]))
    assert seat.run("vm", "stop", VM, "--force").status == 0
    seen = wait_off(seat)
    assert seen["pair"]["shown_as"] == "Not protected: VM not running"
    assert reason(seat, pair["epoch"]) == "powered-off"
    start_and_check(seat, disk)
    protected(seat, pair["epoch"])


def test_all_copies_lost_at_once(seat: Seat, disk: Disk) -> None:
    """Nobody had won: not started while a host that may have a copy is silent; then from the primary's images."""
    pair = protected(seat)
    both = (pair["host"], pair["secondary_host"])
    disk.write(seat.host(pair["host"]))
    seat.crash(*both)
    assert seat.run("vm", "start", VM).code == "FTKVM-109"
    seat.power_on(*both)
    epoch = max(int(path.name[6:-5]) for path in seat.metadata(VM).glob("epoch-*.pair"))
    start_and_check(seat, disk)
    assert epoch > pair["epoch"] or reason(seat, epoch) == "cold-restart"
    protected(seat, epoch)


def test_the_winner_dies_before_its_active_disk_is_committed(seat: Seat, disk: Disk) -> None:
    """128 MB that the secondary wrote since the last checkpoint: to commit them takes a while after the failover."""
    pair = protected(seat)
    first, second = seat.host(pair["host"]), seat.host(pair["secondary_host"])
    disk.write(first)
    for pid in first.unit_pids("ftkvm-agent.service"):  # it would shorten the interval again
        os.kill(pid, signal.SIGSTOP)
    qmp(first, VM, "migrate-set-parameters", **{"x-checkpoint-delay": 30000})
    time.sleep(1.0)
    hmp(second, VM, f'qemu-io -d {DEVICE} "write -P 0x5a 512M 128M"')
    kill(first)
    deadline = time.monotonic() + PATIENCE_S
    while not any(node["drv"] == "mirror_top" for node in qmp(second, VM, "query-named-block-nodes", flat=True)):
        assert time.monotonic() < deadline, "not promoted"
    seat.crash(second.name, first.name)
    seat.power_on(second.name, first.name)
    start_and_check(seat, disk, "--host", first.name)
    read = ["qemu-io", "-U", "-r", "-c", "read -P 0x5a 512M 128M", image_of(seat, VM)]
    assert "ailed" not in first.run(read, timeout_s=60)
    protected(seat, pair["epoch"])


def test_a_promotion_waits_for_the_commit(seat: Seat, disk: Disk) -> None:
    """The same with a winner that lives: nothing of the 128 MB is lost when the pair is taken out of its QEMU."""
    pair = protected(seat)
    first, second = seat.host(pair["host"]), seat.host(pair["secondary_host"])
    for pid in first.unit_pids("ftkvm-agent.service"):
        os.kill(pid, signal.SIGSTOP)
    qmp(first, VM, "migrate-set-parameters", **{"x-checkpoint-delay": 30000})
    time.sleep(1.0)
    hmp(second, VM, f'qemu-io -d {DEVICE} "write -P 0x6b 512M 128M"')
    kill(first)
    for pid in first.unit_pids("ftkvm-agent.service"):
        os.kill(pid, signal.SIGCONT)
    protected(seat, pair["epoch"])
    read = ["qemu-io", "-U", "-r", "-c", "read -P 0x6b 512M 128M", image_of(seat, VM)]
    assert "ailed" not in second.run(read, timeout_s=60)
    disk.check()


@pytest.mark.parametrize("step", ["mirror", "record"])
def test_making_a_secondary_is_lost_together_with_the_vm(seat: Seat, disk: Disk, step: str) -> None:
    pair = protected(seat)
    home, away = seat.host(pair["host"]), seat.host(pair["secondary_host"])
    cut_off_after(home, step)
    kill(away)  # a new secondary is made now
    wait_cut_off(home)
    if step == "mirror":  # later the guest stands still
        disk.write(home)
    seat.crash(home.name)
    seat.power_on(home.name)
    wait_off(seat)
    start_and_check(seat, disk, "--host", away.name)
    protected(seat, pair["epoch"])


@pytest.mark.parametrize("step", ["win", "merge"])
def test_a_turn_off_is_lost_together_with_the_vm(seat: Seat, disk: Disk, step: str) -> None:
    """The VM starts again elsewhere, and FT is off there in the end; or it stays off, and is turned off again."""
    pair = protected(seat)
    home = seat.host(pair["host"])
    cut_off_after(home, step)
    said = seat.run("turn-off", VM, timeout_s=PATIENCE_S)
    assert said.status != 0
    seat.crash(home.name)
    seat.power_on(home.name)
    if step == "merge":
        again = seat.run("turn-off", VM)
        assert again.status == 0 or again.code == "FTKVM-402", again.err  # an agent back in time had carried it on
    start_and_check(seat, disk, "--host", pair["secondary_host"])
    journal = seat.metadata(VM) / "operation.json"
    seat.wait_vm(VM, "FT off", lambda entry: not entry["ft"] and not journal.exists(), PATIENCE_S)
    assert sorted(path.name for path in (seat.datastore / "images").glob("*.ft-*")) == []
    assert image_of(seat, VM) == f"{seat.inside}/images/{VM}.qcow2"
    disk.check()
    assert seat.run("enable", VM).status == 0


def test_ha_restarts_it_when_both_hosts_are_lost(seat: Seat, disk: Disk) -> None:
    """Nobody had won, and the third host is alone: it restarts the VM from the primary's disk, once (issue 3)."""
    pair = protected(seat)
    seat.ok("cluster", "set", "ha.enabled=on")
    try:
        disk.write(seat.host(pair["host"]))
        third = seat.other(pair["host"], pair["secondary_host"])
        seat.crash(pair["host"], pair["secondary_host"])
        seen = seat.wait_vm(VM, "restarted", lambda entry: entry["state"] == "running", PATIENCE_S)
        assert seen["host"] == third.name
        epochs = sorted(path.name for path in seat.metadata(VM).glob("epoch-*.pair"))
        assert reason(seat, int(epochs[-1][6:-5])) == "cold-restart" or int(epochs[-1][6:-5]) > pair["epoch"]
        disk.check()
        seat.power_on(pair["host"], pair["secondary_host"])
        after = protected(seat, pair["epoch"])
        assert after["host"] == third.name
        running = [host.name for host in seat.hosts if faults.qemu_pids(host, VM)]
        assert sorted(running) == sorted([after["host"], after["secondary_host"]])
        disk.check()
    finally:
        seat.ok("cluster", "set", "ha.enabled=off")


def test_ha_restarts_a_winner_that_is_lost_before_it_has_a_new_secondary(seat: Seat, disk: Disk) -> None:
    """The epoch was decided; the owner file and the winner's file name the boot that must be gone."""
    pair = protected(seat)
    first, second = seat.host(pair["host"]), seat.host(pair["secondary_host"])
    third = seat.other(first.name, second.name)
    seat.ok("cluster", "set", "ha.enabled=on")
    try:
        cut_off_after(second, "freeze")  # the winner's re-protect dies at its first step
        disk.write(first)
        time.sleep(3.0)  # a checkpoint covers it: no guest on the second host makes this write itself
        seat.crash(first.name)
        wait_cut_off(second)
        seat.crash(second.name)
        seen = seat.wait_vm(VM, "restarted", lambda entry: entry["state"] == "running", PATIENCE_S)
        assert seen["host"] == third.name
        disk.check()
        seat.power_on(first.name, second.name)
        protected(seat, pair["epoch"])
        disk.check()
    finally:
        seat.ok("cluster", "set", "ha.enabled=off")


def test_ha_restarts_it_when_nobody_could_win(seat: Seat, disk: Disk) -> None:
    """The primary's QEMU dies, and the secondary's host before it has won; both hosts live in the end: the first one,
    which saw its copy end, ends the epoch after a minute."""
    pair = protected(seat)
    first, second = seat.host(pair["host"]), seat.host(pair["secondary_host"])
    seat.ok("cluster", "set", "ha.enabled=on")
    try:
        disk.write(first)
        time.sleep(3.0)  # a checkpoint covers it: no guest on the second host makes this write itself
        pids = faults.qemu_pids(first, VM)
        second.freeze(watchdog_too=True)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        seat.crash(second.name)
        seat.power_on(second.name)
        seen = seat.wait_vm(VM, "restarted", lambda entry: entry["state"] == "running", 2 * PATIENCE_S)
        assert reason(seat, pair["epoch"]) == "cold-restart"
        running = [host.name for host in seat.hosts if faults.qemu_pids(host, VM)]
        assert seen["host"] in running
        disk.check()
        protected(seat, pair["epoch"])
        disk.check()
    finally:
        seat.ok("cluster", "set", "ha.enabled=off")


def test_a_guest_that_powers_itself_off_is_off_and_starts_again(seat: Seat) -> None:
    """Both copies off and none promoted, ten times out of ten (FT-19, issue 4)."""
    guest = seat.guest("p2")
    seat.ok("vm", "start", guest.name)
    wait_for_guest(guest.address, PATIENCE_S)
    assert seat.run("enable", guest.name).status == 0
    epoch = 0
    for _ in range(10):
        pair = seat.wait_protected(guest.name, epoch, PATIENCE_S)
        epoch = pair["epoch"]
        wait_for_guest(guest.address, PATIENCE_S)
        with contextlib.suppress(OSError):  # it may be off before its answer is covered
            ask(guest.address, CONTROL, "poweroff", timeout_s=2.0)
        seen = wait_off(seat, guest.name)
        assert seen["pair"]["shown_as"] == "Not protected: VM not running"
        assert reason(seat, epoch, guest.name) == "guest-shutdown", seat.logs()
        assert seat.run("vm", "start", guest.name).status == 0
        wait_for_guest(guest.address, PATIENCE_S)
    seat.ok("vm", "stop", guest.name, "--force")
    assert wait_off(seat, guest.name)["state"] == "off"
