"""Maintenance of the hosts of a pair (issue 4): both kinds of copies leave, and none when there is nowhere to go. And
both hosts of a pair lose power: HA starts the VM on the third (HA-02).

Three and a half minutes, so with ``FTKVM_FULL=1`` only (`make long`); test_life has both kinds of copies leaving in CI.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from ftkvm.lab import ledger
from ftkvm.lab.client import CounterClient, LedgerClient, wait_for_guest
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.system import wait_for

from .seat import Seat, seated

pytestmark = [pytest.mark.lab, pytest.mark.long]
VM = "mnt1"


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host41", "host42", "host43") as made:
        made.add_all_hosts()
        yield made


@pytest.fixture(scope="module")
def guest(seat: Seat) -> Guest:
    """Protected, and its services answer."""
    made = seat.guest(VM)
    seat.ok("vm", "start", VM, "--host", seat.hosts[0].name)
    wait_for_guest(made.address)
    seat.ok("enable", VM)
    seat.wait_protected(VM)
    return made


@pytest.fixture
def counter(guest: Guest) -> Iterator[CounterClient]:
    with CounterClient(guest.address) as made:
        yield made


def goes_on(counter: CounterClient) -> None:
    """The counter's connection brings new numbers, and left none out."""
    beyond = counter.last + 20
    wait_for(f"the counter to pass {beyond}", lambda: counter.last > beyond, 30)
    assert (counter.broken, counter.gaps) == (None, 0)


def resting(seat: Seat) -> list[str]:
    return [row["name"] for row in seat.ok("host", "list") if row["maintenance"]]


def domains(seat: Seat) -> dict[str, str]:
    return {host.name: host.run(["virsh", "list", "--uuid", "--id"]) for host in seat.hosts}


def test_without_a_third_host_nothing_is_touched(seat: Seat, counter: CounterClient) -> None:
    before = seat.wait_protected(VM)
    third = seat.other(before["host"], before["secondary_host"]).name
    seat.ok("host", "maintenance", "enter", third)
    there = domains(seat)
    for side in ("host", "secondary_host"):
        said = seat.run("host", "maintenance", "enter", before[side])
        assert (said.code, resting(seat)) == ("FTKVM-665", [third])
        assert f"{third}: maintenance" in said.out["error"]["cause"] and said.out["error"]["remedy"]
        now = seat.wait_protected(VM)
        assert [now[key] for key in ("host", "secondary_host", "epoch")] == [
            before[key] for key in ("host", "secondary_host", "epoch")]  # fmt: skip
    assert domains(seat) == there
    goes_on(counter)
    seat.ok("host", "maintenance", "exit", third)


def test_what_check_says_of_a_host_that_rests_and_of_ha_that_is_off(seat: Seat, guest: Guest) -> None:
    """And why a processor runs no guests, if that is so: a warning, since the cluster allows emulation."""
    before = seat.wait_protected(VM)
    third = seat.other(before["host"], before["secondary_host"])
    seat.ok("host", "maintenance", "enter", third.name)
    found = {each["code"]: each["severity"] for each in seat.run("check", "host", third.name).out["findings"]}
    assert found["FTKVM-659"] == "error"
    if not third.succeeds(["grep", "-qwE", "vmx|svm", "/proc/cpuinfo"]):
        (why,) = set(found) & {"FTKVM-221", "FTKVM-222", "FTKVM-223", "FTKVM-224"}
        print("why its processor runs no guests:", why)
        assert (found[why], found["FTKVM-225"]) == ("warning", "warning")
    assert seat.run("check", "host", third.name).status == 1
    seat.ok("host", "maintenance", "exit", third.name)
    assert "FTKVM-659" not in {each["code"] for each in seat.run("check", "host", third.name).out["findings"]}
    seat.ok("cluster", "set", "ha.enabled=off")
    report = seat.run("check", "cluster").out
    assert {each["code"]: each["severity"] for each in report["findings"]}["FTKVM-231"] == "warning"
    seat.ok("cluster", "set", "ha.enabled=on")
    assert "FTKVM-231" not in {each["code"] for each in seat.run("check", "cluster").out["findings"]}


@pytest.mark.parametrize(("side", "what"), [("host", "primary"), ("secondary_host", "secondary")])
def test_each_kind_of_copy_leaves(seat: Seat, counter: CounterClient, side: str, what: str) -> None:
    before = seat.wait_protected(VM)
    said = seat.run("host", "maintenance", "enter", before[side], timeout_s=180)
    assert said.status == 0, said.err
    moves: list[dict[str, Any]] = said.out["result"]["moves"]
    assert [(move["vm"], move["what"]) for move in moves] == [(VM, what)]
    assert 0 < moves[0]["unprotected_s"] < 120
    after = seat.wait_protected(VM, before["epoch"])
    assert before[side] not in (after["host"], after["secondary_host"])
    assert VM not in seat.host(before[side]).run(["virsh", "list", "--all", "--name"]).split()
    goes_on(counter)
    seat.ok("host", "maintenance", "exit", before[side])
    pause_ms = counter.longest_pause_ms()
    print(f"the {what} leaves: unprotected for {moves[0]['unprotected_s']} s, the client paused {pause_ms:.0f} ms")


def test_both_hosts_of_the_pair_are_lost(seat: Seat, guest: Guest) -> None:
    """HA starts the VM on the third host with every record that was acknowledged, and it is protected again."""
    before = seat.wait_protected(VM)
    third = seat.other(before["host"], before["secondary_host"]).name
    with LedgerClient(guest.address) as records:
        wait_for("acknowledged records", lambda: len(records.acknowledged) > 100, 60)
        seat.crash(before["host"], before["secondary_host"])
    seat.wait_vm(VM, f"runs on {third}", lambda seen: seen["host"] == third and seen["state"] == "running", 120)
    wait_for_guest(guest.address)
    seat.power_on(before["host"], before["secondary_host"])
    assert seat.wait_protected(VM, before["epoch"], 120)["host"] == third
    seat.ok("turn-off", VM)
    seat.ok("vm", "stop", VM)
    found = ledger.verify(seat.host(third), guest.disk, records.acknowledged)
    assert (found.lost, found.doubled, found.wrong) == ((), (), ())
    print(f"both hosts lost: {found.acknowledged} acknowledged records, all there once")
