"""Every operation's plan, cut off after each of its steps by the death of the agent that runs it (issue 2, item 6).

The steps are taken from the plans themselves. What must follow: the VM is protected, or as it was before, and nothing
is left behind; the VM's QEMU is the same process throughout.

CI takes the first, the last and a step between of each plan; ``FTKVM_FULL=1`` (`make long`) takes them all.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ftkvm.agent import steps
from ftkvm.lab.host import Host

from .conftest import FULL, SEED
from .seat import Seat, seated

pytestmark = pytest.mark.lab

VM = "v1"
FAULT_POINT = "/run/ftkvm/stop-after-step"


def _sample(plan: Sequence[str]) -> Sequence[str]:
    """What a plan begins and ends with, and a step between."""
    if FULL:
        return plan
    return [plan[0], random.Random(SEED).choice(plan[1:-1]), plan[-1]]


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host13", "host14") as made:
        made.add_all_hosts()
        made.define(made.hosts[0], VM)
        made.ok("vm", "register", VM, "--host", made.hosts[0].name)
        made.ok("vm", "start", VM, "--host", made.hosts[0].name)
        yield made


def pair(seat: Seat) -> dict[str, Any]:
    """The pair as ``ftkvm status`` shows it; empty while the agent starts."""
    said = seat.run("status", VM)
    if said.status != 0 or not said.out.get("vms"):
        return {}
    vm = said.out["vms"][0]
    return dict(vm.get("pair") or ({} if vm["ft"] else {"state": "off"}))


def wait_for(seat: Seat, what: str, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    seen: dict[str, Any] = {}
    while time.monotonic() < deadline:
        seen = pair(seat)
        if seen and not seen.get("operation") and condition(seen):
            return
        time.sleep(0.3)
    logs = seat.hosts[0].run(["journalctl", "-u", "ftkvm-agent", "-n", "40", "--no-pager"])
    pytest.fail(f"{what}: not within {timeout_s} s; last seen: {json.dumps(seen)}\n{logs}")


def protected(seen: dict[str, Any]) -> bool:
    return bool(seen.get("state") == "protected")


def off(seen: dict[str, Any]) -> bool:
    return bool(seen.get("state") == "off")


def qmp(host: Host, command: str, **arguments: Any) -> Any:
    text = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(host.run(["virsh", "qemu-monitor-command", VM, text]))["return"]


def qemu_pid(host: Host) -> str:
    return host.run(["cat", f"/run/libvirt/qemu/{VM}.pid"]).strip()


def assert_plain(seat: Seat) -> None:
    """Nothing of a pair is left: not in QEMU, not on the datastore, not on the other host."""
    here, there = seat.hosts
    nodes = [node["node-name"] for node in qmp(here, "query-named-block-nodes", flat=True)]
    objects = [entry["name"] for entry in qmp(here, "qom-list", path="/objects")]
    channels = [entry["label"] for entry in qmp(here, "query-chardev")]
    assert not [name for name in (*nodes, *objects, *channels) if name.startswith("ft-")]
    assert qmp(here, "query-status")["running"]
    assert [path.name for path in sorted((seat.datastore / "images").iterdir())] == [f"{VM}.qcow2"]
    assert f"{seat.inside}/images/{VM}.qcow2" in here.run(["virsh", "domblklist", VM])
    assert VM not in there.run(["virsh", "-q", "list", "--all"])
    assert here.run(["sh", "-c", "ls /run/ftkvm/pairs /run/ftkvm/hold"]).split() in (
        ["/run/ftkvm/hold:", "/run/ftkvm/pairs:"], [])  # fmt: skip


@pytest.mark.parametrize("step", _sample(steps.PROTECT))
def test_protect_cut_off_after(seat: Seat, step: str) -> None:
    here = seat.hosts[0]
    pid = qemu_pid(here)
    here.run(["sh", "-c", f"echo {step} > {FAULT_POINT}"])
    seat.run("enable", VM)
    assert here.succeeds(["test", "!", "-e", FAULT_POINT]), "the agent was never cut off there"
    wait_for(seat, f"protected after a cut at {step}", protected)
    assert qmp(here, "query-colo-status")["mode"] == "primary"
    assert seat.run("turn-off", VM).status == 0
    wait_for(seat, "off again", off)
    assert_plain(seat)
    assert qemu_pid(here) == pid


@pytest.mark.parametrize("step", _sample(steps.TURN_OFF))
def test_turn_off_cut_off_after(seat: Seat, step: str) -> None:
    here = seat.hosts[0]
    pid = qemu_pid(here)
    assert seat.run("enable", VM).status == 0
    wait_for(seat, "protected", protected)
    here.run(["sh", "-c", f"echo {step} > {FAULT_POINT}"])
    seat.run("turn-off", VM)
    assert here.succeeds(["test", "!", "-e", FAULT_POINT]), "the agent was never cut off there"
    wait_for(seat, f"off after a cut at {step}", off)
    assert_plain(seat)
    assert qemu_pid(here) == pid
