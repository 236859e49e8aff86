"""Every operation's plan, disturbed after each of its steps by something other than the death of its own agent.

Issue 2, item 6, from the other sides: the plan waits after a step, something is killed, restarted or loses power, the
plan goes on. What must follow: the VM runs once, every write it was told is done is there, and the pair is protected or
cleanly gone; while the VM's host lives, its QEMU is the same process throughout. The steps are taken from the plans.

CI takes a sample, drawn by ``FTKVM_SEED``; ``FTKVM_FULL=1`` (`make long`) takes every case.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ftkvm.agent import steps
from ftkvm.lab.host import Host

from .conftest import FULL, SEED
from .disk import Disk, images, qmp
from .seat import Seat, seated

pytestmark = pytest.mark.lab

VM = "d1"
PATIENCE_S = 90


def _kill_agent(host: Host) -> None:
    for pid in host.unit_pids("ftkvm-agent.service"):
        os.kill(pid, signal.SIGKILL)


def _restart_libvirtd(host: Host) -> None:
    host.run(["systemctl", "restart", "libvirtd.service"], timeout_s=60)


Damage = Callable[[Host, Host], None]
#: What happens while the plan waits: to the VM's host, or to the other one.
DAMAGES: dict[str, Damage] = {
    "other-agent-killed": lambda _here, there: _kill_agent(there),
    "libvirtd-restarted": lambda here, _there: _restart_libvirtd(here),
    "other-libvirtd-restarted": lambda _here, there: _restart_libvirtd(there),
    "other-host-lost": lambda _here, there: there.power_off(),
    "host-lost": lambda here, _there: here.power_off(),
}
PLANS = {"enable": steps.PROTECT, "turn-off": steps.TURN_OFF}
ALL = [(plan, step, damage) for plan, names in PLANS.items() for step in names for damage in DAMAGES]


def _sample() -> list[tuple[str, str, str]]:
    """One case for each damage."""
    if FULL:
        return ALL
    draw = random.Random(SEED)
    return [draw.choice([case for case in ALL if case[2] == damage]) for damage in DAMAGES]


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host15", "host16") as made:
        made.add_all_hosts()
        made.define(made.hosts[0], VM, size="1G")
        made.ok("vm", "register", VM, "--host", made.hosts[0].name)
        made.ok("vm", "start", VM, "--host", made.hosts[0].name)
        yield made


@pytest.fixture(scope="module")
def disk(seat: Seat) -> Disk:
    return Disk(seat, VM)


def running_on(seat: Seat, patience_s: float = 5.0) -> list[str]:
    """Hosts on which a copy of the VM runs for itself: not paused, and no secondary.

    A primary stands still at each checkpoint: nobody is believed to run only after some seconds of looking.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = []
        for host in seat.hosts:
            if host.running and host.run(["sh", "-c", f"virsh domstate {VM} 2>/dev/null || true"]).strip() == "running":
                mode = qmp(host, VM, "query-colo-status")["mode"]
                found += [host.name] if mode != "secondary" else []
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def settled(seat: Seat) -> dict[str, Any]:
    """The VM's status once nothing moves any more: runs and is protected, or runs with FT off, or is off."""

    def still(entry: dict[str, Any]) -> bool:
        pair = entry.get("pair") or {}
        if pair.get("operation") or (seat.metadata(VM) / "operation.json").exists():
            return entry["state"] == "off"
        if entry["state"] == "running":
            return not entry["ft"] or pair.get("state") == "protected"
        return bool(entry["state"] == "off")

    return dict(seat.wait_vm(VM, "settled", still, PATIENCE_S))


def back_to_plain(seat: Seat) -> None:
    """The VM runs on the first host, without FT and without a trace of it."""
    here, there = seat.hosts
    if settled(seat)["ft"]:
        said = seat.run("turn-off", VM, timeout_s=PATIENCE_S)
        assert said.status == 0, said.err + seat.logs()
    if seat.vm(VM)["state"] == "running" and seat.vm(VM)["host"] != here.name:
        seat.ok("vm", "stop", VM, "--force")
    if seat.vm(VM)["state"] == "off":
        seat.ok("vm", "start", VM, "--host", here.name)
    assert running_on(seat) == [here.name]
    nodes = [node["node-name"] for node in qmp(here, VM, "query-named-block-nodes", flat=True)]
    objects = [entry["name"] for entry in qmp(here, VM, "qom-list", path="/objects")]
    channels = [entry["label"] for entry in qmp(here, VM, "query-chardev")]
    assert not [name for name in (*nodes, *objects, *channels) if name.startswith("ft-")]
    assert images(seat) == [f"{VM}.qcow2"]
    assert VM not in there.run(["virsh", "-q", "list", "--all"])


def qemu_pid(host: Host) -> str:
    return host.run(["cat", f"/run/libvirt/qemu/{VM}.pid"]).strip()


@pytest.mark.parametrize(("plan", "step", "damage"), _sample())
def test_disturbed(seat: Seat, disk: Disk, plan: str, step: str, damage: str) -> None:
    here, there = seat.hosts
    if seat.vm(VM)["ft"] or seat.vm(VM)["host"] != here.name:
        back_to_plain(seat)  # the case before this one ended red
    pid = qemu_pid(here)
    if plan == "turn-off":
        assert seat.run("enable", VM).status == 0
        seat.wait_protected(VM, 0, PATIENCE_S)
    disk.write(here)
    with seat.waiting_after(step, plan, VM, timeout_s=PATIENCE_S) as said:
        DAMAGES[damage](here, there)
    lost = [host.name for host in seat.hosts if not host.running]
    if lost:
        seat.power_on(*lost)
    seat.wait_hosts()
    entry = settled(seat)
    print(
        plan,
        step,
        damage,
        "->",
        [each.code or "done" for each in said],
        json.dumps((entry.get("pair") or {}).get("last_failover")),
    )
    runs = entry["state"] == "running"
    assert len(running_on(seat, 5.0 if runs else 0.0)) == int(runs)
    if here.name not in lost:
        assert (entry["state"], entry["host"]) == ("running", here.name)
        assert qemu_pid(here) == pid
    elif entry["state"] == "off":
        started = seat.run("vm", "start", VM)
        assert started.status == 0, started.err + seat.logs()
    disk.check()
    back_to_plain(seat)
    disk.check()
