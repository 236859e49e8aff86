"""The daemons run confined, as `host add` sets them up, and a pair lives on them: made, taken over, made again."""

from collections.abc import Iterator

import pytest

from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.host import Host

from .seat import Seat, joined

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with joined(tmp_path_factory.mktemp("seat"), "host23", "host24") as made:
        yield made


def confinement(host: Host, unit: str) -> tuple[str, str, bool]:
    """NoNewPrivs and Seccomp of its process as the kernel tells them; whether it sees the host's own mounts."""
    pid = host.run(["systemctl", "show", "-p", "MainPID", "--value", unit]).strip()
    status = host.run(["grep", "-E", "^(NoNewPrivs|Seccomp):", f"/proc/{pid}/status"]).split()
    mounts = host.run(["readlink", f"/proc/{pid}/ns/mnt", "/proc/1/ns/mnt"]).split()
    return status[1], status[3], mounts[0] == mounts[1]


def refused(host: Host) -> str:
    """What the daemons of the host logged of things that they may not do."""
    words = [
        "journalctl",
        "-q",
        "-b",
        "-o",
        "cat",
        "-u",
        "ftkvm-*",
        "--grep",
        "not permitted|PermissionError",
        "-n",
        "20",
    ]
    return host.run(["sh", "-c", '"$@" || true', "sh", *words]).strip()


def test_a_pair_lives_on_confined_daemons(seat: Seat) -> None:
    guest = seat.guest("c1")
    seat.ok("vm", "start", "c1", "--host", seat.hosts[0].name)
    wait_for_guest(guest.address)
    with CounterClient(guest.address) as client:
        seat.ok("enable", "c1")
        pair = seat.wait_protected("c1")
        hold = f"ftkvm-hold@{seat.vm('c1')['uuid']}.service"
        home = seat.host(seat.vm("c1")["host"])
        assert confinement(home, hold) == ("1", "2", True)
        for host in seat.hosts:
            for unit in ("ftkvm-agent.service", "ftkvm-keeper.service"):
                assert confinement(host, unit) == ("1", "2", True)
        home.kill("qemu:c1")
        seat.wait_protected("c1", after_epoch=pair["epoch"])
        assert (client.broken, client.gaps) == (None, 0)
    assert [refused(host) for host in seat.hosts] == ["", ""]
    seat.ok("turn-off", "c1")
