"""Certificates on real hosts: renewed, expired and revoked under a protected VM, which never notices."""

import time
from collections.abc import Iterator

import pytest

from ftkvm.adapters.pki import identity_of
from ftkvm.core.trust import Role
from ftkvm.home import Home
from ftkvm.lab import lab as labs
from ftkvm.lab import names
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest

from .seat import Seat, seated

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host8", "host9") as made:
        yield made


@pytest.fixture(scope="module")
def protected(seat: Seat) -> Guest:
    seat.add_all_hosts()
    seat.wait_hosts()
    guest = seat.guest("t1")
    seat.ok("vm", "start", "t1", "--host", seat.hosts[0].name)
    said = seat.run("enable", "t1")  # straight after the start; the failover below shows whether the copy is good
    assert (said.status, "t1 may still boot: its second copy is made in" in said.err) == (0, True), said.err
    seat.wait_protected("t1")
    wait_for_guest(guest.address)
    return guest


def home_of(seat: Seat) -> Home:
    return Home(seat.home / "ftkvm")


def serials(seat: Seat) -> dict[str, str]:
    said = seat.ok("cert", "list")["hosts"]
    return {host: str(answer.get("serial") or answer["error"]) for host, answer in said.items()}


def findings(seat: Seat) -> set[str]:
    report = seat.run("check", "cluster")
    return {each["code"] for each in report.out["findings"]}


def let_expire(seat: Seat) -> None:
    """Both hosts get certificates whose last day was the day before yesterday, as if nobody had renewed them."""
    for host in seat.hosts:
        entry = home_of(seat).load().entry(host.name)
        addresses = (entry.management, entry.ft)
        pair = home_of(seat).authority().issue(host.name, addresses, role=Role.HOST, days=-1)
        for name, content in (("host.key", pair.key), ("host.crt", pair.certificate)):
            host.run(["sh", "-c", f"umask 077; cat > /etc/ftkvm/pki/{name}"], text_in=content.decode())


def restored(seat: Seat, name: str, condition: str) -> None:
    """Wait until a host of the cluster says what it should."""
    deadline = time.monotonic() + 20
    while condition not in str(seat.run("cert", "list").out["hosts"].get(name)):
        assert time.monotonic() < deadline, seat.run("cert", "list").out["hosts"]
        time.sleep(0.5)


def test_renewal_under_a_protected_vm(seat: Seat, protected: Guest) -> None:
    """New keys on both hosts; no epoch ends, no process is restarted, nothing is said to be wrong."""
    epoch, before = seat.wait_protected("t1")["epoch"], serials(seat)
    started = [_started(seat, host.name) for host in seat.hosts]
    seat.ok("cert", "renew", "--all")
    after = serials(seat)
    assert set(before) == set(after)
    assert not set(before.values()) & set(after.values())
    assert seat.wait_protected("t1")["epoch"] == epoch
    assert [_started(seat, host.name) for host in seat.hosts] == started
    assert not findings(seat) & {"FTKVM-329", "FTKVM-335", "FTKVM-336"}


def _started(seat: Seat, name: str) -> str:
    asked = ["systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", "ftkvm-agent", "ftkvm-keeper"]
    return seat.host(name).run(asked)


def test_expired_certificates_end_no_pair_and_a_failover_still_works(seat: Seat, protected: Guest) -> None:
    """Every certificate has ended: agents refuse each other and the operator is refused, the pair goes on beating.

    Then the primary's host loses its power, and the secondary takes over on the client's connection.
    """
    pair = seat.wait_protected("t1")
    primary = seat.host(seat.vm("t1")["host"])
    other = seat.other(primary.name)
    with CounterClient(protected.address) as client:
        let_expire(seat)
        for host in seat.hosts:
            restored(seat, host.name, "expired")
        client.mark()
        time.sleep(5)
        assert client.longest_pause_ms() < 2000
        assert seat.run("status", "t1").code == "FTKVM-607"  # nobody whose certificate counts
        records = seat.datastore / ".ftkvm/ft"
        assert not list(records.rglob(f"epoch-{pair['epoch']:04d}.winner*"))  # nobody thought that the other was lost
        seat.crash(primary.name)
        time.sleep(4)
        before = client.last
        time.sleep(2)
        assert client.last > before
        assert (client.broken, client.gaps) == (None, 0)
        assert seat.add_host(other).status == 0  # over SSH: a new certificate
        restored(seat, other.name, "serial")
        assert seat.vm("t1")["host"] == other.name
        primary.boot(names.IMAGES / labs.record().image, None)
        primary.wait_ready()
        assert seat.add_host(primary).status == 0
        seat.wait_hosts()
        seat.wait_protected("t1", after_epoch=pair["epoch"], timeout_s=90)
        assert (client.broken, client.gaps) == (None, 0)


def test_a_revoked_host_is_refused_with_the_reason(seat: Seat, protected: Guest) -> None:
    """The pair it is in goes on; a new one is not made with it; a new certificate makes it a host again."""
    pair = seat.wait_protected("t1")
    away = seat.other(seat.vm("t1")["host"])
    told = seat.ok("cert", "revoke", away.name)
    assert told["not_told"] == [away.name]  # already refused; it finds the list on the datastore
    assert told["revoked"]
    restored(seat, away.name, "revoked")
    time.sleep(3)
    assert seat.vm("t1")["pair"]["epoch"] == pair["epoch"]
    said = seat.run("vm", "migrate", "t1", "--secondary", "--to", away.name)
    assert said.status != 0
    assert "FTKVM-321" in findings(seat)
    assert seat.add_host(away).status == 0
    seat.wait_hosts()
    assert identity_of(away.run(["cat", "/etc/ftkvm/pki/host.crt"]).encode()).serial not in told["revoked"]
    assert seat.wait_protected("t1")["epoch"] >= pair["epoch"]
