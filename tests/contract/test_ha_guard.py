"""The watchdog's socket protocol, until when it is put off, and across an agent that dies."""

import socket
import stat
import time
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.power import power_off
from ftkvm.adapters.watchdog import NoWatchdog, find_watchdog
from ftkvm.agent.ha.guard import Bridge, Guard, bridge, now_ms, read_state
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import WorkTimeout


class FakeDog:
    """The other end: what arrived."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def lines(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(100).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def dog(tmp_path: Path) -> FakeDog:
    return FakeDog(tmp_path / "dog")


def guard_of(tmp_path: Path) -> Guard:
    return Guard(find_watchdog(str(tmp_path / "dog")), tmp_path / "state.json", lambda: None)


def test_the_first_good_heartbeat_arms_it_and_only_until_its_time_it_is_put_off(tmp_path: Path, dog: FakeDog) -> None:
    guard = guard_of(tmp_path)
    assert guard.watchdog_ms == 0
    assert not guard.pet()
    assert dog.lines() == []
    guard.extend(now_ms() + 150, 5000)
    assert guard.watchdog_ms == 5000
    assert guard.pet()
    assert dog.lines() == ["pet 5000\n", "pet 5000\n"]
    time.sleep(0.2)
    assert not guard.pet()
    assert dog.lines() == []
    guard.extend(now_ms() - 1, 5000)  # a write that took too long gives no time either
    assert not guard.pet()
    assert dog.lines() == []
    guard.disarm()
    assert dog.lines() == ["disarm\n"]
    assert guard.watchdog_ms == 0


def test_a_new_agent_puts_it_off_at_once_but_no_longer_than_the_old_one_could(tmp_path: Path, dog: FakeDog) -> None:
    guard_of(tmp_path).extend(now_ms() + 1200, 5000)
    dog.lines()
    new = Bridge(find_watchdog(str(tmp_path / "dog")), tmp_path / "state.json", lambda: None)
    new.start()
    assert dog.lines() == ["pet 5000\n"]
    time.sleep(2.0)
    assert 1 <= len(dog.lines()) <= 3
    third = Bridge(find_watchdog(str(tmp_path / "dog")), tmp_path / "state.json", lambda: None)
    third.start()
    assert dog.lines() == []


def test_a_new_agent_that_takes_long_to_start_beats_meanwhile(tmp_path: Path, dog: FakeDog) -> None:
    shared = DirectoryDatastore(tmp_path / "shared", "host1")
    shared.root.mkdir()
    shared.initialise()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    beat = {"host": "host1", "boot_id": boot, "counter": 7, "mode": "live", "watchdog_ms": 5000, "stop_after_ms": 1500}
    shared.replace("hosts/host1/ha.json", beat)
    (tmp_path / "agent.toml").write_text(
        f'[host]\nname = "host1"\n[datastore]\npath = "{shared.root}"\n[watchdog]\ndevice = "{tmp_path / "dog"}"\n'
    )
    guard_of(tmp_path).extend(now_ms() + 1500, 5000)
    (tmp_path / "state.json").rename(tmp_path / "watchdog.json")
    new = bridge(tmp_path / "agent.toml", tmp_path)
    new.start()
    time.sleep(3.0)
    dog.lines()
    time.sleep(1.1)
    assert dog.lines() != []
    there = shared.read_json("hosts/host1/ha.json") or {}
    assert there["counter"] >= 10
    assert there["watchdog_ms"] == 5000
    shared.replace("hosts/host1/ha.json", {**beat, "boot_id": "another"})  # not ours to go on with
    time.sleep(2.2)
    dog.lines()
    time.sleep(1.1)
    assert dog.lines() == []
    new.hand_over()


def test_a_disarmed_watchdog_is_not_armed_by_a_new_agent(tmp_path: Path, dog: FakeDog) -> None:
    guard = guard_of(tmp_path)
    guard.extend(now_ms() + 9000, 5000)
    guard.disarm()
    dog.lines()
    (tmp_path / "agent.toml").write_text(f'[watchdog]\ndevice = "{tmp_path / "dog"}"\n')
    (tmp_path / "state.json").rename(tmp_path / "watchdog.json")
    new = bridge(tmp_path / "agent.toml", tmp_path)
    new.start()
    assert dog.lines() == []
    assert read_state(tmp_path / "watchdog.json").until_ms > now_ms()


def test_what_is_no_watchdog_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("", str(tmp_path / "missing"), str(tmp_path / "file")):
        found = find_watchdog(path)
        assert isinstance(found, NoWatchdog)
        assert not found.pet()
        assert found.timeout_ms == 0


# power fencing, with a program of the fence-agents' convention

AGENT = """#!/bin/sh
read first; read second; read third
echo "$first $second $third" >> {log}
case "$second $third" in
  *action=off*) {off};;
  *action=status*) {status};;
esac
"""


def fence_agent(directory: Path, off: str, status: str) -> Path:
    path = directory / "fence_test"
    path.write_text(AGENT.format(log=directory / "log", off=off, status=status))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return directory


PARAMETERS = {"agent": "fence_test", "ip": "10.0.0.1", "plug": "host2"}


def test_off_and_seen_off(tmp_path: Path) -> None:
    power_off("host2", PARAMETERS, fence_agent(tmp_path, "exit 0", "exit 2"))
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == ["ip=10.0.0.1 plug=host2 action=off", "ip=10.0.0.1 plug=host2 action=status"]


def test_off_and_still_on_is_a_failure(tmp_path: Path) -> None:
    directory = fence_agent(tmp_path, "exit 0", "echo it is on >&2; exit 0")
    with pytest.raises(FtkvmError, match="it is on") as caught:
        power_off("host2", PARAMETERS, directory)
    assert caught.value.code == "FTKVM-623"


@pytest.mark.parametrize("agent", ["fence_missing", "../../bin/sh", "reboot", ""])
def test_what_is_no_fence_agent_is_refused(tmp_path: Path, agent: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        power_off("host2", {"agent": agent}, tmp_path)
    assert caught.value.code == "FTKVM-623"


def test_one_that_does_not_end_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    directory = fence_agent(tmp_path, "exec sleep 60", "exit 2")
    began = time.monotonic()
    with pytest.raises(WorkTimeout) as caught:
        power_off("host2", PARAMETERS, directory, off_timeout_s=0.5)
    assert caught.value.code == "FTKVM-624"
    assert time.monotonic() - began < 5
    assert "action=off" in (tmp_path / "log").read_text()
