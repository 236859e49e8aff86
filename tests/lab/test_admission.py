"""Admission control, settings and what-if on a real cluster (HA-09 … HA-14, HA-18, HA-19, HA-26, HA-27)."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ftkvm.lab.host import Host

from .seat import Said, Seat, seated

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host71", "host72") as made:
        made.add_all_hosts()
        for name in ("v1", "v2"):
            made.define(made.hosts[0], name)
            made.ok("vm", "register", name, "--host", made.hosts[0].name)
        eventually(lambda: all(not entry.get("error") for entry in made.ok("host", "list")))
        yield made


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.3)


def refused(said: Said, code: str, status: int, *words: str) -> None:
    assert (said.code, said.status) == (code, status), said.err
    text = said.out["error"]["text"]
    assert all(word in text for word in words), text


def setting(answer: Any, name: str) -> dict[str, Any]:
    return next(dict(each) for each in answer["settings"] if each["name"] == name)


@pytest.fixture
def put_back(seat: Seat) -> Iterator[None]:
    yield
    words = (
        "ha.admission_control",
        "ha.admission_policy",
        "ha.host_failures",
        "ha.reserved_percent",
        "ha.failover_host",
    )
    seat.ok("cluster", "set", *(f"{word}=" for word in words))
    for name in ("v1", "v2"):
        seat.run("vm", "stop", name, "--force")


def test_settings_are_shown_changed_and_wait(seat: Seat) -> None:
    before = seat.ok("cluster", "show")
    assert setting(before, "das.failuredetectiontime") == {
        "name": "das.failuredetectiontime", "value": "15000", "default": "15000", "unit": "ms",
        "allowed": "3000…300000",
        "applies": "when HA is switched off and on",
        "is_default": True, "in_force": "15000", "waits": False,
        "meaning": setting(before, "das.failuredetectiontime")["meaning"],
    }  # fmt: skip
    after = seat.ok("cluster", "set", "das.failedetectiontime=20000", "das.isolationaddress2=10.77.1.1")
    assert after["version"] == before["version"] + 1
    assert after["changed"] == ["das.failuredetectiontime", "das.isolationaddress2"]
    row = setting(after, "das.failuredetectiontime")
    assert (row["value"], row["in_force"], row["waits"]) == ("20000", "15000", True)
    assert any("20000 waits" in text for text in seat.ok("cluster", "validate")["waiting"])
    seat.ok("cluster", "set", "ha.enabled=off")
    on = seat.ok("cluster", "set", "ha.enabled=on")
    assert setting(on, "das.failuredetectiontime")["in_force"] == "20000"
    assert not seat.ok("cluster", "validate")["waiting"]


def test_bad_settings_change_nothing(seat: Seat) -> None:
    version = seat.ok("cluster", "show")["version"]
    for words, code, said in (
        (("ha.host_failures=5",), "FTKVM-634", "5 is not in 1…4"),
        (("ha.host_failures=2", "das.vmCpuMinMHz=many"), "FTKVM-634", "not a whole number"),
        (("ha.failover_host=nobody",), "FTKVM-634", "no host nobody"),
        (("ha.nonsense=1",), "FTKVM-634", "no such setting"),
        (("ha.stop_after_ms=10000",), "FTKVM-635", "10000 + ha.watchdog_ms 5000 + margin 1000 = 16000 is above"),
        (("ha.admission_policy=failover-host",), "FTKVM-635", "needs ha.failover_host"),
    ):
        refused(seat.run("cluster", "set", *words), code, 2, said)
    assert seat.ok("cluster", "show")["version"] == version


def test_two_writers_do_not_overwrite_each_other(seat: Seat) -> None:
    version = seat.ok("cluster", "show")["version"]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(
            lambda word: seat.run("cluster", "set", word, "--if-version", str(version)),
            ["ha.max_attempts=7", "ha.retry_most_ms=90000"],
        ))  # fmt: skip
    loser = next(each for each in said if each.status)
    assert [each.status for each in said].count(0) == 1 and loser.code in ("FTKVM-606", "FTKVM-636"), loser.err
    now = seat.ok("cluster", "show")
    taken = [setting(now, name)["is_default"] for name in ("ha.max_attempts", "ha.retry_most_ms")]
    assert sorted(taken) == [False, True] and now["version"] == version + 1


def test_host_failures(seat: Seat, put_back: None) -> None:
    one = seat.hosts[0].name
    seat.ok("vm", "start", "v1")
    seat.ok("cluster", "set", "ha.host_failures=2")
    refused(seat.run("vm", "start", "v2", "--host", one), "FTKVM-630", 1, "256 MHz", "1 host failures are tolerated, 2")
    found = seat.run("cluster", "validate")
    assert found.status == 1 and found.out["validity"] == "invalid" and "2 are to be" in found.out["reasons"][0]
    seat.ok("cluster", "set", "ha.admission_control=off")
    seat.ok("vm", "start", "v2", "--host", one)
    assert seat.ok("cluster", "validate")["validity"] == "valid"


def test_percentage_and_reservations(seat: Seat, put_back: None) -> None:
    seat.ok("cluster", "set", "ha.admission_policy=percentage", "ha.reserved_percent=50")
    hosts = seat.ok("cluster", "validate")["hosts"]
    most = min(each["memory_mb"] for each in hosts.values())
    seat.ok("vm", "start", "v1")
    raised = seat.ok("vm", "set", "v1", f"ha.memory_reservation_mb={most - 300}", "ha.restart_priority=high")
    assert setting(raised, "ha.restart_priority")["value"] == "high"
    refused(
        seat.run("vm", "set", "v1", f"ha.memory_reservation_mb={most}"), "FTKVM-633", 1, f"has 0 MHz, {most + 64} MB"
    )
    seat.ok("vm", "set", "v2", "ha.memory_reservation_mb=1000")
    refused(seat.run("vm", "start", "v2"), "FTKVM-631", 1, "kept: 50 %", "memory (")
    seat.ok("cluster", "set", "ha.reserved_percent=10")
    assert seat.ok("vm", "start", "v2")["host"] != place(seat, "v1")  # v1's host has no 1064 MB unreserved
    seat.ok("vm", "set", "v1", "ha.memory_reservation_mb=", "ha.restart_priority=")
    seat.ok("vm", "set", "v2", "ha.memory_reservation_mb=")
    refused(seat.run("vm", "set", "v1", "ha.restart_priority=soon", "ft.checkpoint_max_ms=900"), "FTKVM-637", 2, "soon")
    assert setting(seat.ok("vm", "show", "v1"), "ft.checkpoint_max_ms")["is_default"]


def place(seat: Seat, name: str) -> str:
    return next(str(each["host"]) for each in seat.ok("vm", "list") if each["name"] == name)


def test_failover_host_and_what_if(seat: Seat, put_back: None) -> None:
    one, two = (host.name for host in seat.hosts)
    seat.ok("vm", "start", "v1", "--host", one)
    seat.ok("cluster", "set", "ha.admission_policy=failover-host", f"ha.failover_host={two}")
    refused(seat.run("vm", "start", "v2", "--host", two), "FTKVM-632", 1, f"{two} is the failover host")
    assert seat.ok("vm", "start", "v2")["host"] == one
    assert seat.ok("cluster", "validate")["failover_host"]["colour"] == "green"
    refused(seat.run("vm", "migrate", "v1", "--to", two), "FTKVM-632", 1)
    found = seat.ok("cluster", "what-if", "--lose", one)
    assert {(each["vm"], each["host"], each["what"]) for each in found["vms"]} == {
        ("v1", two, "restarted"), ("v2", two, "restarted")}  # fmt: skip
    assert found["runtime"]["slot_cpu_set_by"] == ["v1", "v2"]
    views = {each["policy"]: each for each in found["policies"]}
    assert views["failover-host"]["in_force"] and views["failover-host"]["promised"]
    both = seat.ok("cluster", "what-if", "--lose", one, "--lose", two)
    assert sorted(both["stranded"]) == ["v1", "v2"]
    refused(seat.run("cluster", "what-if", "--lose", "nobody"), "FTKVM-201", 3)


def test_a_lost_host_leaves_no_room(seat: Seat, put_back: None) -> None:
    """Last: it costs the second host."""
    two: Host = seat.hosts[1]
    two.power_off()
    eventually(lambda: seat.run("cluster", "validate").out["hosts"][two.name]["why_not"] != "")
    refused(seat.run("vm", "start", "v1"), "FTKVM-630", 1, "0 host failures are tolerated, 1 are to be")
    seat.ok("cluster", "set", "ha.admission_control=off")
    seat.ok("vm", "start", "v1")
