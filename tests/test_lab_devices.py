"""The lab's watchdogs: when one fires, what it takes for a pet; and the power switch, as a VM reaches it."""

import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftkvm.lab import devices, fence_agent, names, record
from ftkvm.lab.watchdogs import Countdown, EmulatedDevice


def petted(*words: tuple[float, str]) -> Countdown:
    made = Countdown()
    for at_s, text in words:
        made.said(text, at_s)
    return made


@pytest.mark.parametrize(
    ("said", "at_s", "fires"),
    [
        ([], 1e9, False),
        ([(0, "pet 5000\n")], 4.999, False),
        ([(0, "pet 5000\n")], 5.0, True),
        ([(0, "pet 5000\n"), (4, "pet 5000\n")], 8.999, False),
        ([(0, "pet 5000\n"), (4, "pet 5000\n")], 9.0, True),
        ([(0, "pet 5000\n"), (1, "disarm\n")], 1e9, False),
        ([(0, "pet 5000\n"), (4, "pet x\n")], 5.0, True),
        ([(0, "pet 5000\n"), (4, "")], 5.0, True),
    ],
)
def test_it_fires_when_it_is_not_petted(said: list[tuple[float, str]], at_s: float, fires: bool) -> None:
    assert petted(*said).expired(at_s) is fires


def test_stopped_with_its_machine_it_begins_anew() -> None:
    watchdog = petted((0, "pet 5000\n"))
    watchdog.stand_still(60)
    assert not watchdog.expired(64.9)
    assert watchdog.expired(65)


@contextmanager
def qemu(path: Path, *events: str) -> Iterator[None]:
    """A monitor that tells of these events in one breath with its first answer, and ends when the block does."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)

        def talk() -> None:
            connection, _address = listening.accept()
            with connection:
                connection.sendall(b'{"QMP": {}}\n')
                connection.recv(1000)
                said = [{"return": {}}, *({"event": name, "data": {}} for name in events)]
                connection.sendall("".join(f"{json.dumps(each)}\n" for each in said).encode())
                done.wait(20)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
    path.unlink()


@pytest.mark.parametrize(
    ("events", "times"), [((), 0), (("RESET",), 0), (("WATCHDOG",), 1), (("RESET", "WATCHDOG", "RESET"), 1)]
)
def test_a_vms_watchdog_fires_once_when_its_qemu_says_so(tmp_path: Path, events: tuple[str, ...], times: int) -> None:
    path = tmp_path / "events.sock"
    watchdog = EmulatedDevice(path)
    assert watchdog.source() is None  # there is no QEMU yet
    fired = []
    with qemu(path, *events):
        for _turn in range(3):
            source = watchdog.source()
            assert source is not None
            if select.select([source], [], [], 0.1)[0]:
                watchdog.hear()
            fired.append(watchdog.fired(0, False))
    watchdog.hear()
    assert watchdog.source() is None  # it has ended
    assert fired.count(True) == times


def ask(address: tuple[str, int], action: str, plug: str) -> int:
    words = {"action": action, "plug": plug, "ip": address[0], "ipport": address[1]}
    text = "".join(f"{key}={value}\n" for key, value in words.items())
    command = [sys.executable, str(devices.FENCE_AGENT)]
    return subprocess.run(command, input=text, text=True, capture_output=True, check=False).returncode


def test_every_hosts_process_is_the_one_power_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two that listen, one that ends: who asks is answered by the other."""
    there = tmp_path / "lab.json"
    there.write_text(json.dumps({"hosts": 1, "memory_mib": None, "image": "x", "hosts_as": "vms"}))
    monkeypatch.setattr(record, "RECORD", there)
    monkeypatch.setattr(names, "PREFIX", "ftlabnone-")  # nor does the machine's own lab have it
    monkeypatch.setattr(names, "CLIENT_NS", None)
    monkeypatch.setattr(names, "client_address", lambda network: "127.0.0.1")
    monkeypatch.setattr(names, "POWER_SWITCH_PORT", free_port())
    address = "127.0.0.1", names.POWER_SWITCH_PORT
    monkeypatch.setattr(names, "HOSTS", tmp_path)
    both = [devices.Devices("host1", vm=True), devices.Devices("host2", vm=True)]
    both[0].switch.close()
    both[1].switch.setblocking(True)
    answering = threading.Thread(target=lambda: [both[1]._asked() for _each in range(3)], daemon=True)
    answering.start()
    assert ask(address, "status", "host1") == 2  # off: it has never run
    assert ask(address, "status", "host2") == 1  # of another lab
    assert ask(address, "off", "../host1") == 1
    answering.join()
    both[1].switch.close()
    assert ask(address, "status", "host1") == 1


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_the_agent_in_a_vm_knows_where_the_switch_is() -> None:
    """It is one file in the host, without anything of ours."""
    known = fence_agent.DEFAULT_IP, fence_agent.DEFAULT_PORT
    assert known == (names.client_address("management"), names.POWER_SWITCH_PORT)
    assert f"{devices.INSIDE}/fence.sock" == fence_agent.DEFAULT_SOCKET
