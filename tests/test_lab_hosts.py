"""The lab's hosts and faults, for real. The tests use a host of their own, so that a running lab is not disturbed."""

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, faults, lab, names, netns, network, operator
from ftkvm.lab.host import Host
from ftkvm.lab.system import mounts_below, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NAME = "host9"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if not lab.RECORD.exists():
        lab.up(3, None, print)
    spare = Host(NAME)
    spare.remove()
    spare.prepare_disk([NAME], operator.prepare_key())
    spare.boot(names.IMAGES / lab.record().image, None)
    spare.wait_ready()
    yield spare
    spare.remove()
    assert not spare.cgroup.path.exists()
    assert not network.exists(names.netns(NAME))
    assert not mounts_below(spare.paths.base)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    monkeypatch.setattr(lab, "host", lambda name: host)


def refused(code: str, act: object, *words: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        act(*words)  # type: ignore[operator]
    assert caught.value.code == code
    assert caught.value.remedy


def test_a_host_is_a_healthy_debian_with_its_own_identity(host: Host) -> None:
    assert host.run(["systemctl", "is-system-running", "--wait"]).strip() == "running"
    assert host.run(["hostname"]).strip() == NAME
    uuid = host.run(["virsh", "capabilities"]).split("<uuid>")[1].split("<")[0]
    assert uuid.replace("-", "") == host.run(["cat", "/etc/machine-id"]).strip()
    assert "10.77.1.19" in host.run(["ip", "addr", "show", "ft0"])


def test_a_power_loss_is_silent_and_the_disk_survives_it(host: Host) -> None:
    host.run(["sh", "-c", "echo kept > /etc/kept; sync; echo gone > /run/gone"])
    boot_id = host.run(["cat", "/proc/sys/kernel/random/boot_id"])
    with netns.connect(names.CLIENT_NS, names.host_address(NAME, "management"), 22) as sock:
        sock.recv(100)
        faults.crash(NAME)
        assert host.state == "off"
        sock.settimeout(1)
        with pytest.raises(TimeoutError):  # neither an end nor a reset arrives
            sock.recv(100)
    refused("FTKVM-721", faults.crash, NAME)
    faults.start(NAME)
    assert host.run(["cat", "/etc/kept"]).strip() == "kept"
    assert not host.succeeds(["test", "-e", "/run/gone"])
    assert host.run(["cat", "/proc/sys/kernel/random/boot_id"]) != boot_id
    refused("FTKVM-721", faults.start, NAME)


def test_a_frozen_host_stands_still_and_goes_on(host: Host) -> None:
    faults.freeze(NAME)
    refused("FTKVM-721", faults.freeze, NAME)
    with pytest.raises(OSError), netns.connect(names.CLIENT_NS, names.host_address(NAME, "management"), 22, 1) as sock:
        sock.recv(10)  # the kernel accepts, nobody speaks
    faults.thaw(NAME)
    assert host.ready()
    refused("FTKVM-721", faults.thaw, NAME)


def test_one_network_is_cut_and_the_others_are_not(host: Host) -> None:
    faults.cut(NAME, "ft")
    assert [n for n in names.NETWORKS if not network.port_up(NAME, n)] == ["ft"]
    assert host.ready()
    faults.heal(NAME, "ft")
    assert network.port_up(NAME, "ft")
    refused("FTKVM-707", faults.cut, NAME, "wireless")


def test_storage_hangs_fails_and_comes_back_for_this_host_alone(host: Host) -> None:
    mark = names.DATASTORE / "lab-test"
    mark.write_text("x")
    try:
        faults.storage(NAME, "hang")
        refused("FTKVM-724", faults.storage, NAME, "hang")
        started = time.monotonic()
        assert not host.succeeds(["timeout", "1", "cat", f"{names.DATASTORE_MOUNT}/lab-test"])
        assert time.monotonic() - started > 0.9
        assert mark.read_text() == "x"
        faults.storage(NAME, "ok")
        assert host.run(["cat", f"{names.DATASTORE_MOUNT}/lab-test"]) == "x"
        faults.storage(NAME, "fail")
        done = subprocess.run(
            host.enter_command(["cat", f"{names.DATASTORE_MOUNT}/lab-test"]),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert "not connected" in done.stderr
        faults.storage(NAME, "ok")
        assert host.run(["cat", f"{names.DATASTORE_MOUNT}/lab-test"]) == "x"
    finally:
        mark.unlink()


def test_two_hosts_cannot_both_create_a_link(host: Host) -> None:
    place = f"{names.DATASTORE_MOUNT}/lab-link"
    host.run(["sh", "-c", f"rm -rf {place}; mkdir {place}; echo a > {place}/mine"])
    (names.DATASTORE / "lab-link/theirs").write_text("b")
    os.link(names.DATASTORE / "lab-link/theirs", names.DATASTORE / "lab-link/winner")
    assert not host.succeeds(["ln", f"{place}/mine", f"{place}/winner"])
    assert host.run(["cat", f"{place}/winner"]) == "b"
    host.run(["rm", "-r", place])


def test_a_daemon_is_killed_and_an_unknown_one_is_refused(host: Host) -> None:
    assert len(faults.kill(NAME, "virtlogd")) == 1
    refused("FTKVM-725", faults.kill, NAME, "nonesuch")
    refused("FTKVM-725", faults.kill, NAME, "qemu:nonesuch")


PET = "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('/dev/watchdog'); s.send(b'{}')"


def test_a_watchdog_ends_a_frozen_host_unless_it_is_stopped_with_it(host: Host) -> None:
    host.run(["python3", "-c", PET.format("pet 1500")])
    faults.freeze(NAME, watchdog_too=True)
    time.sleep(2.5)
    assert host.frozen
    faults.thaw(NAME)
    assert devices.watchdog_state(NAME) == "armed (1500 ms)"
    host.run(["python3", "-c", PET.format("pet 1500")])
    faults.freeze(NAME)
    wait_for("the watchdog to end the host", lambda: not host.running, 10)
    faults.start(NAME)
    assert devices.watchdog_state(NAME) == "idle"


def test_the_power_switch_can_be_asked_from_a_host(host: Host) -> None:
    def fence(action: str, plug: str) -> str:
        asked = f"printf 'action={action}\\nplug={plug}\\n' | fence_ftkvm_lab; echo $?"
        return host.run(["sh", "-c", asked]).strip()

    assert fence("status", NAME) == "0"
    assert fence("status", "host99") == "1"
    assert fence("off", "../host1") == "1"
    assert host.running
