"""Who listens on the FT or the migration network reads nothing of a VM: seen on the wire, beside the plain channels."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftkvm.lab import channels, names
from ftkvm.lab.client import CounterClient, LedgerClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.system import wait_for

from .seat import Seat, joined

pytestmark = pytest.mark.lab

ON_DISK, IN_FRAMES = b"FTLEDGER", b"REC "
"""What a sector of the guest's ledger begins with, and what the client's requests begin with."""
RECORDS = 100


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with joined(tmp_path_factory.mktemp("seat"), "host21", "host22") as made:
        yield made


@pytest.fixture(scope="module")
def guest(seat: Seat) -> Guest:
    made = seat.guest("e1")
    seat.ok("vm", "start", "e1", "--host", seat.hosts[0].name)
    wait_for_guest(made.address)
    return made


class Wire:
    """What went over a host's NIC of one network while it was listened to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def carried(self, *words: bytes) -> set[bytes]:
        """Which of ``words`` could be read."""
        content = self._path.read_bytes()
        return {word for word in words if word in content}


@contextmanager
def listening(seat: Seat, network: str, directory: Path) -> Iterator[Wire]:
    """Listen as somebody would who has got at the switch. What tcpdump missed fails the test."""
    path = directory / f"{network}.pcap"
    port = names.port(seat.hosts[0].name, network)
    command = ["tcpdump", "-i", port, "-s", "0", "-B", "65536", "-U", "-w", str(path), "tcp"]
    listener = subprocess.Popen(
        ["ip", "netns", "exec", names.SWITCH_NS, *command], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        wait_for("tcpdump", path.exists, 10)
        time.sleep(0.5)
        yield Wire(path)
    finally:
        listener.send_signal(signal.SIGINT)
        _out, told = listener.communicate(timeout=20)
    assert "\n0 packets dropped by kernel" in told, told


def write_records(guest: Guest, first: int) -> None:
    """Have the guest take requests and write them to its disk; all are acknowledged."""
    with LedgerClient(guest.address, first) as ledger:
        wait_for(f"{RECORDS} records", lambda: len(ledger.acknowledged) >= RECORDS, 60)
        assert (ledger.refused, ledger.broken) == ([], None)


def unencrypted(seat: Seat) -> str:
    """What ``check cluster`` says of channels that can be read."""
    report = seat.run("check", "cluster").out
    return " ".join(str(each["text"]) for each in report["findings"] if each["code"] == "FTKVM-340")


def keys_left(seat: Seat) -> list[str]:
    """Files with a pair's key."""
    look = ["find", "/var/lib/libvirt/qemu", "/run/ftkvm", "-name", "keys.psk*", "-o", "-name", "*.key*"]
    return [line for host in seat.hosts for line in host.run(look).splitlines()]


def test_a_pair_in_plain_can_be_read(seat: Seat, guest: Guest, tmp_path: Path) -> None:
    """The measure of the next test: so it looks where nothing is encrypted."""
    seat.ok("cluster", "set", "ft.encryption=off")
    assert "ft network" in unencrypted(seat)
    with listening(seat, "ft", tmp_path) as wire:
        seat.ok("enable", "e1")
        assert seat.wait_protected("e1")["encrypted"] is False
        write_records(guest, 1)
    assert wire.carried(ON_DISK, IN_FRAMES) == {ON_DISK, IN_FRAMES}
    seat.ok("turn-off", "e1")


def test_an_encrypted_pair_cannot(seat: Seat, guest: Guest, tmp_path: Path) -> None:
    """From before it is made until after a failover and the next pair; no key lies about afterwards."""
    seat.ok("cluster", "set", "ft.encryption=on")
    assert "ft network" not in unencrypted(seat)
    with CounterClient(guest.address) as client:
        with listening(seat, "ft", tmp_path) as wire:
            seat.ok("enable", "e1")
            pair = seat.wait_protected("e1")
            assert pair["encrypted"] is True
            write_records(guest, 20_001)
            home = seat.host(seat.vm("e1")["host"])
            home.kill("qemu:e1")
            assert seat.wait_protected("e1", after_epoch=pair["epoch"])["encrypted"] is True
            write_records(guest, 40_001)
        assert (client.broken, client.gaps) == (None, 0)
    assert wire.carried(ON_DISK, IN_FRAMES) == set()
    wait_for("the keys' files to go", lambda: not keys_left(seat), 10)
    seat.ok("turn-off", "e1")


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_memory_of_a_migration(seat: Seat, guest: Guest, tmp_path: Path, encrypted: bool) -> None:
    """In plain the requests and records that are in it can be read, encrypted they cannot."""
    seat.ok("cluster", "set", f"migration.encryption={'on' if encrypted else 'off'}")
    assert ("migration network" in unencrypted(seat)) is not encrypted
    write_records(guest, 80_001 if encrypted else 60_001)
    home = seat.vm("e1")["host"]
    with CounterClient(guest.address) as client, listening(seat, "migration", tmp_path) as wire:
        seat.ok("vm", "migrate", "e1", "--to", seat.other(home).name)
        beyond = client.last + 20
        wait_for("the counter", lambda: client.last > beyond, 30)
        assert (client.broken, client.gaps) == (None, 0)
    assert wire.carried(ON_DISK) == (set() if encrypted else {ON_DISK})


@pytest.mark.usefixtures("seat")
def test_a_handshake_that_nobody_answers_stops_the_guest_no_longer_than_we_wait(tmp_path: Path) -> None:
    """A real QEMU: its `migrate` hangs, guest and all, until the agent shuts the socket down (`yank` does not help)."""
    stood_still_s = channels.unanswered(tmp_path, 1.0)
    assert 0.9 < stood_still_s < 5.0
