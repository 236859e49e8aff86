"""The beat key is changed under a protected VM, which never notices; a host that left knows nothing that counts."""

import time
from collections.abc import Iterator

import pytest

from ftkvm.home import Home
from ftkvm.keeper.keys import BeatKeys
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest

from .seat import Seat, joined

pytestmark = pytest.mark.lab
UNITS = ("ftkvm-agent", "ftkvm-keeper")


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with joined(tmp_path_factory.mktemp("seat"), "host17", "host18", "host19") as made:
        yield made


@pytest.fixture(scope="module")
def protected(seat: Seat) -> Guest:
    guest = seat.guest("k1")
    seat.ok("vm", "start", "k1", "--host", seat.hosts[0].name)
    wait_for_guest(guest.address)
    assert seat.run("enable", "k1", "--secondary", seat.hosts[1].name).status == 0
    seat.wait_protected("k1")
    return guest


def keys_on(seat: Seat, *names: str) -> dict[str, BeatKeys]:
    return {name: BeatKeys.parse(seat.host(name).run(["cat", "/etc/ftkvm/beat.key"])) for name in names}


def started(seat: Seat, *names: str) -> list[str]:
    asked = ["systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", *UNITS]
    return [seat.host(name).run(asked) for name in names]


def last_words(seat: Seat, name: str) -> str:
    return seat.host(name).run(["journalctl", "-u", "ftkvm-agent", "-o", "cat", "--no-pager", "-n", "200"])


def test_a_change_under_a_protected_vm(seat: Seat, protected: Guest) -> None:
    """No epoch ends, no process is restarted, the client sees no pause; every host uses the same new key."""
    names = [host.name for host in seat.hosts]
    epoch, before = seat.wait_protected("k1")["epoch"], keys_on(seat, *names)
    since = started(seat, *names)
    with CounterClient(protected.address) as client:
        client.mark()
        for number in (3, 6, 9):
            assert seat.ok("cert", "rotate-beats")["number"] == number
        time.sleep(3)
        assert client.longest_pause_ms() < 2000
        assert (client.broken, client.gaps) == (None, 0)
    after = keys_on(seat, *names)
    assert set(after.values()) == {Home(seat.home / "ftkvm").beat_keys()}
    assert not {keys.signing for keys in before.values()} & {keys.signing for keys in after.values()}
    assert seat.wait_protected("k1")["epoch"] == epoch
    assert started(seat, *names) == since
    assert "FTKVM-339" not in {each["code"] for each in seat.run("check", "cluster").out["findings"]}


def test_a_host_that_is_removed_knows_no_key_that_counts_and_is_told_none(seat: Seat, protected: Guest) -> None:
    """It goes on running, as somebody's who kept it would: it learns that there are new keys, and is refused them."""
    pair, out = seat.wait_protected("k1"), seat.hosts[2].name
    stay = [host.name for host in seat.hosts[:2]]
    said = seat.ok("host", "remove", out, "--keep-files")
    assert said["beat_keys"]["finished"], said
    time.sleep(45)  # it looks for newer keys every 30 s
    known, now = keys_on(seat, out)[out], keys_on(seat, *stay)
    assert len(set(now.values())) == 1
    assert not {key for keys in now.values() for key in keys.all()} & set(known.all())
    assert f"FTKVM-323: {out} (host) is refused" in last_words(seat, out)
    assert seat.wait_protected("k1")["epoch"] == pair["epoch"]


def test_a_silent_host_is_waited_for_and_after_a_power_loss_it_has_what_it_said(seat: Seat, protected: Guest) -> None:
    """The change waits while a host is off; the VM is taken over meanwhile; then the change goes on."""
    pair = seat.wait_protected("k1")
    primary = seat.vm("k1")["host"]
    other = seat.other(primary, seat.hosts[2].name)
    before = keys_on(seat, primary, other.name)
    with CounterClient(protected.address) as client:
        seat.crash(primary)
        assert seat.run("cert", "rotate-beats").code == "FTKVM-339"
        assert keys_on(seat, other.name)[other.name].signing == before[primary].signing
        last = client.last
        time.sleep(4)
        assert client.last > last
        seat.power_on(primary)
        assert keys_on(seat, primary)[primary] == before[primary]
        seat.wait_protected("k1", after_epoch=pair["epoch"], timeout_s=120)
        epoch = seat.wait_protected("k1")["epoch"]
        assert seat.ok("cert", "rotate-beats")["finished"]
        time.sleep(3)
        assert seat.wait_protected("k1")["epoch"] == epoch
        assert (client.broken, client.gaps) == (None, 0)
    now = keys_on(seat, primary, other.name)
    assert len(set(now.values())) == 1
    assert not set(now[primary].all()) & set(before[primary].all())
