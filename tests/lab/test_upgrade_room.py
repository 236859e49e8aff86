"""The rolling upgrade of two hosts, which is not begun without the room for every step (HA-24).

A minute and a half, so with ``FTKVM_FULL=1`` only (`make long`); test_life upgrades three hosts in CI.
"""

import time
from collections.abc import Iterator

import psutil
import pytest

from ftkvm.lab.client import CounterClient, wait_for_guest

from .seat import Seat, seated

pytestmark = [pytest.mark.lab, pytest.mark.long]

VM, LARGE = "u1", "large"
UPGRADE = ("cluster", "upgrade-plan", "--upgrade-minutes", "0.2")


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host57", "host58") as made:
        made.add_all_hosts()
        made.ok("cluster", "set", "ha.admission_control=off")
        yield made


def large(seat: Seat) -> None:
    """A VM on the second host that takes so much of it that the first one could not hold it beside its own."""
    two = seat.hosts[1]
    seat.define(two, LARGE)
    room_mb = psutil.virtual_memory().total >> 20  # the lab's hosts are containers: each has all of it
    two.run(["virsh", "-q", "setmaxmem", LARGE, f"{room_mb - 600}M", "--config"])
    seat.ok("vm", "register", LARGE, "--host", two.name)
    seat.ok("vm", "start", LARGE, "--host", two.name)


def test_two_hosts_are_upgraded_once_there_is_room(seat: Seat) -> None:
    one = seat.hosts[0]
    guest = seat.guest(VM)
    seat.ok("vm", "start", VM, "--host", one.name)
    seat.ok("enable", VM)
    pair = seat.wait_protected(VM)
    wait_for_guest(guest.address)
    large(seat)
    with seat.unchanged():
        said = seat.run(*UPGRADE, "--execute", "--yes")
    assert said.code == "FTKVM-666", said.err
    print(said.out["error"]["text"])
    assert f"VM {LARGE}: {one.name}: " in said.err and " MB are left, " in said.err
    assert seat.wait_protected(VM)["epoch"] == pair["epoch"]
    seat.ok("vm", "stop", LARGE, "--force")
    with CounterClient(guest.address) as client:
        time.sleep(1)
        done = seat.run(*UPGRADE, "--execute", "--yes", timeout_s=300)
        assert done.status == 0, done.err + seat.logs()
        assert (client.broken, client.gaps) == (None, 0)
    assert done.out["done"] == len(done.out["steps"])
    print(f"predicted {done.out['predicted_s']}, measured {done.out['measured_s']}")
    assert 0 < done.out["measured_s"][VM] < 120
    seat.wait_protected(VM, pair["epoch"])
