"""What is shown of a VM after every step of its life with FT: the guide's table 3-2, requirement FT-09."""

import contextlib
from collections.abc import Iterator

import pytest

from ftkvm.core.states import FtReason, FtState
from ftkvm.lab import trials
from ftkvm.lab.client import CONTROL, ask, wait_for_guest
from ftkvm.lab.guest.domain import Guest

from .seat import Seat, joined

pytestmark = pytest.mark.lab

VM = "s1"
PATIENCE_S = 90.0
OFF = (FtState.OFF, FtReason.NONE)
PROTECTED = (FtState.PROTECTED, FtReason.NONE)
STARTING, NEED_SECONDARY, DISABLED, NOT_RUNNING = (
    (FtState.NOT_PROTECTED, reason)
    for reason in (FtReason.STARTING, FtReason.NEED_SECONDARY, FtReason.DISABLED, FtReason.VM_NOT_RUNNING)
)


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with joined(tmp_path_factory.mktemp("seat"), "host23", "host24", "host25") as made:
        yield made


@pytest.fixture(scope="module")
def guest(seat: Seat) -> Guest:
    return seat.guest(VM)


def shown(seat: Seat) -> tuple[str, str]:
    """State and reason, as ``ftkvm status`` says them now."""
    seen = seat.vm(VM)
    pair = seen.get("pair")
    return (pair["state"], pair["reason"]) if pair else OFF if seen and not seen["ft"] else ("", "nobody tells")


def protected(seat: Seat, guest: Guest) -> None:
    """Wait until it is, and its guest serves."""
    comes(seat, PROTECTED)
    try:
        wait_for_guest(guest.address)
    except TimeoutError as error:
        pytest.fail(f"{error}\n{seat.vm(VM)}\n{seat.logs(60)}")


def comes(seat: Seat, wanted: tuple[str, str]) -> None:
    """Wait until that is shown; what may be shown on the way there is *Starting* and nothing else."""
    last = shown(seat)
    for _try in range(int(PATIENCE_S)):
        if last == wanted:
            return
        assert last in (STARTING, NEED_SECONDARY, ("", "nobody tells")), last
        last = shown(seat)
    pytest.fail(f"{wanted}: not within some {PATIENCE_S} s, last {last}\n{seat.logs()}")


def test_with_the_vm_off(seat: Seat, guest: Guest) -> None:
    """FT-02: turned on and off again while the VM is off, then started with it."""
    assert shown(seat) == OFF
    seat.ok("enable", VM)
    assert shown(seat) == NOT_RUNNING
    seat.ok("turn-off", VM)
    assert shown(seat) == OFF
    seat.ok("enable", VM)
    seat.ok("vm", "start", VM, "--host", seat.hosts[0].name)
    protected(seat, guest)


def test_disabled_and_enabled_again(seat: Seat, guest: Guest) -> None:
    """FT-08; while the second copy is made it is *Starting*."""
    seat.ok("disable", VM)
    assert shown(seat) == DISABLED
    with seat.waiting_after("memory", "enable", VM) as ended:
        assert shown(seat) == STARTING
    assert ended[0].status == 0, ended[0].err
    assert shown(seat) == PROTECTED


def test_a_reboot(seat: Seat, guest: Guest) -> None:
    """FT-19: the pair stays; an emulated guest's second copy is made anew."""
    trials.reboot(guest)
    protected(seat, guest)


def test_a_guest_that_powers_itself_off(seat: Seat, guest: Guest) -> None:
    """FT-19: *VM not running*; protected again after its start."""
    with contextlib.suppress(OSError):  # it may be off before its answer is covered
        ask(guest.address, CONTROL, "poweroff", timeout_s=2.0)
    seat.wait_vm(VM, "off", lambda seen: seen["state"] == "off", PATIENCE_S)
    assert shown(seat) == NOT_RUNNING
    seat.ok("vm", "start", VM)
    protected(seat, guest)


@pytest.mark.parametrize("words", [
    ("test", "restart-secondary", VM), ("vm", "migrate", VM, "--secondary"), ("test", "failover", VM),
])  # fmt: skip
def test_moved_and_tried(seat: Seat, guest: Guest, words: tuple[str, ...]) -> None:
    """FT-15, FT-18: each ends protected, in a later epoch."""
    before = seat.vm(VM)["pair"]["epoch"]
    seat.ok(*words)
    comes(seat, PROTECTED)
    assert seat.vm(VM)["pair"]["epoch"] > before


def test_the_primary_moves(seat: Seat, guest: Guest) -> None:
    pair = seat.vm(VM)["pair"]
    seat.ok("vm", "migrate", VM, "--to", seat.other(pair["host"], pair["secondary_host"]).name)
    comes(seat, PROTECTED)


def test_no_host_for_a_second_copy(seat: Seat, guest: Guest) -> None:
    """FT-05: *Need secondary VM*, with the reason; tried again when a host comes."""
    pair = seat.vm(VM)["pair"]
    third = seat.other(pair["host"], pair["secondary_host"]).name
    seat.ok("host", "maintenance", "enter", third)
    seat.crash(pair["secondary_host"])

    def alone(seen: dict[str, object]) -> bool:
        found = seen["pair"]
        return isinstance(found, dict) and (found["state"], found["reason"]) == NEED_SECONDARY and bool(found["cause"])

    seen = seat.wait_vm(VM, "needs a secondary, and says why", alone, PATIENCE_S)
    assert third in str(seen["pair"]["cause"])
    seat.ok("host", "maintenance", "exit", third)
    comes(seat, PROTECTED)
    seat.power_on(pair["secondary_host"])


def test_stopped_and_turned_off(seat: Seat, guest: Guest) -> None:
    seat.ok("vm", "stop", VM, "--force")
    seat.wait_vm(VM, "off", lambda seen: seen["state"] == "off", PATIENCE_S)
    assert shown(seat) == NOT_RUNNING
    seat.ok("turn-off", VM)
    assert shown(seat) == OFF
