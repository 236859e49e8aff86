"""VM monitoring on real hosts and guests (issue 3, "What must be seen" 5), with short intervals."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftkvm.lab import names
from ftkvm.lab.client import CONTROL, CounterClient, ask, wait_for_guest
from ftkvm.lab.guest import domain
from ftkvm.lab.guest.domain import Guest

from .pictures import measure
from .seat import Seat, seated

pytestmark = pytest.mark.lab

FAILURE_S, MIN_UPTIME_S = 10, 20
BOOT_S = 300
"""Waited for a guest at most: it boots in 8 s, and in minutes when others keep this machine busy."""

SETTINGS = ("ha.vm_monitoring=on", "ha.vm_monitoring_sensitivity=custom", f"ha.vm_failure_interval_s={FAILURE_S}",
            f"ha.vm_min_uptime_s={MIN_UPTIME_S}", f"das.iostatsInterval={FAILURE_S}")  # fmt: skip
TEXT_SCREEN = (720, 400)


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host41", "host42") as made:
        made.add_all_hosts()
        made.ok("cluster", "set", *SETTINGS)
        yield made


def started(seat: Seat, name: str, number: int) -> Guest:
    """A VM that runs and answers, on the first host."""
    host = seat.hosts[0]
    made = Guest(name, f"5d0c2a8e-30a1-4a54-9a3e-7f3f4b1f0{number}", number, f"{seat.inside}/images/{name}.qcow2")
    host.run(["mkdir", "-p", f"{seat.inside}/images"])
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", made.disk, "64M"])
    xml = domain.domain_xml(made, domain.install_files(), 160, 1, domain.kvm_works(host))
    host.run(["virsh", "define", "/dev/stdin"], text_in=xml)
    seat.ok("vm", "register", name, "--host", host.name)
    seat.ok("vm", "start", name, "--host", host.name)
    boot_s = wait_for_guest(made.address, BOOT_S)
    # a guest that boots does no I/O and has no agent: the minimum uptime must be longer, however busy this machine is
    uptime_s = min(max(MIN_UPTIME_S, int(2.5 * boot_s)), BOOT_S)
    seat.ok("cluster", "set", f"ha.vm_min_uptime_s={uptime_s}")
    return made


def vm(seat: Seat, guest: Guest) -> dict[str, Any]:
    """What ``ftkvm status`` says of the VM, its monitoring and its pair."""
    (found,) = (entry for entry in seat.ok("status")["vms"] if entry["name"] == guest.name)
    return {**found, "monitoring": found["monitoring"] or {}, "pair": found["pair"] or {}}


def eventually(seat: Seat, guest: Guest, wanted: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while not wanted(found := vm(seat, guest)):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def hang(guest: Guest) -> None:
    assert ask(guest.address, CONTROL, "hang all") == "OK"


def more_resets_than(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found["monitoring"].get("resets_in_window", 0) > number


def kept(reset: dict[str, Any]) -> Path:
    """The picture of a reset, as this machine finds it."""
    inside = Path(reset["screenshot"]).relative_to(names.DATASTORE_MOUNT)
    return names.DATASTORE / inside


def test_hangs_are_reset_with_a_picture_and_the_fourth_is_left_alone(seat: Seat) -> None:
    guest = started(seat, "monitored", 252)
    eventually(seat, guest, lambda found: found["monitoring"].get("state") == "well", BOOT_S)

    with CounterClient(guest.address) as counter:  # only the agent hangs: no reason to reset
        assert ask(guest.address, CONTROL, "hang agent") == "OK"
        eventually(seat, guest, lambda found: found["monitoring"]["state"] == "silent", 6 * FAILURE_S)
        time.sleep(FAILURE_S / 2)
        assert vm(seat, guest)["monitoring"]["resets_in_window"] == 0
        assert counter.gaps == 0
        assert counter.broken is None
    assert ask(guest.address, CONTROL, "wake agent") == "OK"
    eventually(seat, guest, lambda found: found["monitoring"]["state"] == "well", BOOT_S)

    resets = 0
    while resets < 3:  # on a busy machine a guest may also be reset because it takes too long to boot
        hang(guest)
        found = eventually(seat, guest, more_resets_than(resets), BOOT_S)
        wait_for_guest(guest.address, BOOT_S)  # it would not answer without a reset
        resets = found["monitoring"]["resets_in_window"]
    hang(guest)
    found = eventually(seat, guest, lambda found: found["monitoring"]["state"] == "left-alone", BOOT_S)["monitoring"]
    assert (found["resets_in_window"], found["error"]["code"]) == (3, "FTKVM-140")
    assert "left alone" in found["error"]["text"]
    time.sleep(2 * FAILURE_S)
    assert vm(seat, guest)["monitoring"]["resets_in_window"] == 3

    pictures = sorted(kept(found["last_reset"]).parent.iterdir())
    assert len(pictures) == 3
    for picture in pictures:
        width, height, bytes_used = measure(picture)
        assert (width, height) == TEXT_SCREEN
        assert bytes_used > 2  # the panic is on it
    seat.ok("vm", "stop", "--force", guest.name)


def test_a_protected_vm_that_hangs_is_reset_and_stays_a_pair(seat: Seat) -> None:
    guest = started(seat, "monitored-pair", 253)
    seat.ok("enable", guest.name)

    def protected(found: dict[str, Any]) -> bool:
        return found["pair"].get("state") == "protected" and found["monitoring"].get("state") == "well"

    before = eventually(seat, guest, protected, BOOT_S)
    hang(guest)
    eventually(seat, guest, more_resets_than(0), BOOT_S)
    wait_for_guest(guest.address, BOOT_S)
    after = eventually(
        seat, guest, protected, 2 * BOOT_S
    )  # under emulation a new secondary is made once the guest has booted
    assert after["host"] == before["host"]
