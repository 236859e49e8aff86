"""FT turned on straight after a start: an emulated guest is let boot first, so that the second copy is a good one.

Without the wait the copy follows the boot, keeps QEMU's translations of code that is gone, and the guest resets itself
once that copy is live (seen twice in four). Two minutes, so with ``FTKVM_FULL=1`` only (`make long`); in CI test_trust
enables straight after a start, and its failover shows whether the copy is a good one.
"""

import time
from collections.abc import Iterator

import pytest

from ftkvm.agent.fitness import BOOTS_S
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest

from .seat import Seat, seated

pytestmark = [pytest.mark.lab, pytest.mark.long]

VM = "e1"
BOOT_S = 150
SETTLES_S = 8


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host52", "host53") as made:
        made.add_all_hosts()
        yield made


@pytest.fixture(scope="module")
def guest(seat: Seat) -> Guest:
    return seat.guest(VM)


def resets(seat: Seat) -> list[str]:
    """What the agents have noted of resets of the guest."""
    found = [host.run(["journalctl", "-u", "ftkvm-agent", "--no-pager", "-o", "cat"]) for host in seat.hosts]
    return [line for text in found for line in text.splitlines() if f"{VM}: RESET" in line]


def survives(seat: Seat, guest: Guest) -> None:
    """The primary's QEMU is killed; the guest goes on, on the client's connection, and is not reset."""
    pair = seat.wait_protected(VM)
    primary = seat.host(str(seat.vm(VM)["host"]))
    before = resets(seat)
    with CounterClient(guest.address) as client:
        time.sleep(2)
        primary.run(["sh", "-c", f"kill -9 $(cat /run/libvirt/qemu/{VM}.pid)"])
        time.sleep(SETTLES_S)
        last = client.last
        time.sleep(2)
        assert client.last > last, seat.logs()
        assert (client.broken, client.gaps) == (None, 0)
    assert seat.vm(VM)["host"] == seat.other(primary.name).name
    assert resets(seat) == before
    seat.wait_protected(VM, pair["epoch"])


def test_enable_straight_after_the_start(seat: Seat, guest: Guest) -> None:
    seat.ok("vm", "start", VM, "--host", seat.hosts[0].name)
    began = time.monotonic()
    said = seat.run("enable", VM, timeout_s=BOOT_S)
    assert said.status == 0, said.err
    print(f"enabled after {time.monotonic() - began:.1f} s: {said.err}")
    assert f"VM {VM} may still boot: its second copy is made in " in said.err
    wait_for_guest(guest.address, BOOT_S)
    survives(seat, guest)


def test_turned_on_while_it_is_off_and_started(seat: Seat, guest: Guest) -> None:
    seat.ok("turn-off", VM)
    seat.ok("vm", "stop", VM, "--force")
    seat.ok("enable", VM)
    seat.ok("vm", "start", VM, "--host", seat.hosts[0].name)
    began = time.monotonic()
    seat.wait_vm(VM, "waits for its boot", lambda seen: "FTKVM-154" in str((seen.get("pair") or {}).get("cause")), 10)
    seat.wait_protected(VM, 0, BOOT_S)
    took_s = time.monotonic() - began
    print(f"protected after {took_s:.1f} s")
    assert took_s > BOOTS_S - 2
    wait_for_guest(guest.address, BOOT_S)
    survives(seat, guest)
