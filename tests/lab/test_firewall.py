"""Hosts whose firewall lets in nothing but SSH become hosts of a cluster, and a pair lives on them (OP-01, OP-02)."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.host import Host
from hostprep.firewall import COMMAND, parse
from hostprep.openings import POLICY

from .seat import Seat, seated

pytestmark = pytest.mark.lab

BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
UFW = "ufw allow 22/tcp && ufw allow from 10.77.0.0/24 to any port 7446 proto tcp && ufw --force enable"
FIREWALLD = (
    "systemd-run -q --unit=firewalld-of-test firewalld --nofork --nopid"
    " && for i in $(seq 100); do firewall-cmd -q --state && exit 0; sleep 0.1; done; exit 1"
)


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host27", "host28") as made:
        for host, begin in zip(made.hosts, (UFW, FIREWALLD), strict=True):
            host.run(["sh", "-c", begin], timeout_s=60)
        yield made


def rules(host: Host) -> tuple[str, frozenset[str]]:
    found = parse(host.run(["sh", "-c", f"{COMMAND}; true"]))
    return found.manager, found.rules


def removed(seat: Seat, host: Host) -> Any:
    """Removes it, once the other is a primary host of HA's again (it was added just now)."""
    deadline = time.monotonic() + 60
    while True:
        said = seat.run("host", "remove", host.name, "--address", seat.address(host))
        if said.code != "FTKVM-244" or time.monotonic() > deadline:
            assert said.status == 0, said.err
            return said.out
        time.sleep(1)


def test_a_pair_lives_behind_firewalls(seat: Seat) -> None:
    before = [rules(host) for host in seat.hosts]
    assert [manager for manager, _rules in before] == ["ufw", "firewalld"]
    for host in seat.hosts:
        said = seat.add_host(host)
        assert (said.status, any("let in by" in step for step in said.out["steps"])) == (0, True), said.err
        bridged = host.succeeds(["grep", "-qx", "1", BRIDGED])
        assert ("FTKVM-756" in [each["code"] for each in said.out["warnings"]]) is bridged
        host.run(["sh", "-c", f"[ ! -e {BRIDGED} ] || echo 0 > {BRIDGED}"])
        assert seat.add_host(host).out["steps"] == []
    seat.wait_hosts()
    guest = seat.guest("f1")
    seat.ok("vm", "start", "f1", "--host", seat.hosts[0].name)
    wait_for_guest(guest.address)
    with CounterClient(guest.address) as client:
        seat.ok("enable", "f1")
        pair = seat.wait_protected("f1")
        seat.host(seat.vm("f1")["host"]).kill("qemu:f1")
        seat.wait_protected("f1", after_epoch=pair["epoch"])
        assert (client.broken, client.gaps) == (None, 0)
    seat.ok("turn-off", "f1")
    seat.ok("vm", "stop", "f1")
    for host, found in zip(seat.hosts, before, strict=True):
        assert removed(seat, host)["taken_back"]["ran"]
        assert (rules(host), host.succeeds(["test", "-e", POLICY])) == (found, False)
        assert seat.add_host(host).status == 0  # the last host of a cluster cannot be removed
