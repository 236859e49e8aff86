"""Issue 2's bad input, on real hosts: each with its code, its cause and its remedy, and nothing changed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftkvm.lab import names, network
from ftkvm.lab.host import Host

from .seat import Said, Seat, seated

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host8", "host9") as made:
        yield made


@pytest.fixture(scope="module")
def one(seat: Seat) -> Host:
    """The host the VM runs on."""
    return seat.hosts[0]


@pytest.fixture(scope="module")
def two(seat: Seat) -> Host:
    return seat.hosts[1]


@pytest.fixture(scope="module")
def vm(seat: Seat, one: Host, two: Host) -> str:
    """A VM that runs on ``one``; both hosts in the cluster."""
    seat.add_all_hosts()
    seat.define(one, "v1")
    seat.ok("vm", "register", "v1", "--host", one.name)
    seat.ok("vm", "start", "v1", "--host", one.name)
    eventually(lambda: all(not entry.get("error") for entry in seat.ok("host", "list")))
    return "v1"


def eventually(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.2)


def refused(said: Said, code: str, status: int = 1) -> None:
    assert (said.code, said.status) == (code, status), said.err
    assert "Cause:" in said.err
    assert "Remedy:" in said.err


# ---------------------------------------------------------------------------------------------- hosts, before any


def test_unknown_host_key(seat: Seat, one: Host, tmp_path: Path) -> None:
    with seat.unchanged():
        refused(seat.add_host(one, "--known-hosts", str(tmp_path / "none")), "FTKVM-203", 4)


def test_wrong_host_key(seat: Seat, one: Host, two: Host, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text(f"{seat.address(one)} {two.host_key()}\n")
    with seat.unchanged():
        refused(seat.add_host(one, "--known-hosts", str(tmp_path / "wrong")), "FTKVM-204", 4)


def test_a_host_that_is_not_there(seat: Seat) -> None:
    refused(seat.run("host", "add", "nobody", "--address", "10.77.0.99"), "FTKVM-210", 4)


def test_a_dry_run_changes_nothing(seat: Seat, one: Host) -> None:
    with seat.unchanged():
        said = seat.add_host(one, "--dry-run")
        assert said.status == 0
        assert len(said.out["steps"]) > 5


def test_datastore_not_mounted(seat: Seat, one: Host) -> None:
    one.run(["systemctl", "stop", names.DATASTORE_UNIT])
    one.succeeds(["umount", "-l", names.DATASTORE_MOUNT])
    try:
        refused(seat.add_host(one), "FTKVM-301", 6)
    finally:
        one.run(["systemctl", "start", names.DATASTORE_UNIT])


@pytest.mark.parametrize(("prepare", "code"), [
    ("dd if=/dev/zero of={}/fill bs=4k 2>/dev/null; true", "FTKVM-304"),
    ("mount -o remount,ro {}", "FTKVM-303"),
])  # fmt: skip
def test_datastore_that_takes_nothing(seat: Seat, one: Host, prepare: str, code: str) -> None:
    one.run(["mount", "-t", "tmpfs", "-o", "size=64k", "test", seat.inside])
    one.run(["sh", "-c", prepare.format(seat.inside)])
    try:
        refused(seat.add_host(one), code, 6)
    finally:
        one.run(["umount", seat.inside])


def test_old_qemu(seat: Seat, one: Host) -> None:
    binary = "/usr/bin/qemu-system-x86_64"
    one.run(
        [
            "sh",
            "-c",
            "printf '#!/bin/sh\\necho QEMU emulator version 10.0.6\\n' > /tmp/q; chmod +x /tmp/q;"
            f" mount --bind /tmp/q {binary}",
        ]
    )
    try:
        with seat.unchanged():
            refused(seat.add_host(one), "FTKVM-207")
    finally:
        one.run(["umount", binary])


def test_no_ft_network(seat: Seat, one: Host) -> None:
    nic = names.NETWORKS["ft"].nic
    address = f"{names.host_address(one.name, 'ft')}/24"
    one.run(["ip", "addr", "del", address, "dev", nic])
    try:
        with seat.unchanged():
            refused(seat.add_host(one), "FTKVM-212")
    finally:
        one.run(["ip", "addr", "add", address, "dev", nic])


def test_no_bridge(seat: Seat, one: Host) -> None:
    one.run(["ip", "link", "set", "br-vm", "name", "br-other"])
    try:
        with seat.unchanged():
            refused(seat.add_host(one), "FTKVM-213")
    finally:
        one.run(["ip", "link", "set", "br-other", "name", "br-vm"])
        one.run(["ip", "link", "set", "br-vm", "up"])


def test_a_host_whose_agent_cannot_start_is_left_as_it_was(seat: Seat, one: Host) -> None:
    taken = "import socket,time; s=socket.create_server(('0.0.0.0',7443)); time.sleep(60)"
    one.run(["systemd-run", "-q", "--unit=taken", "python3", "-c", taken])
    try:
        with seat.unchanged():
            refused(seat.add_host(one), "FTKVM-209")
    finally:
        one.run(["systemctl", "stop", "taken"])


# --------------------------------------------------------------------------------------------- with a cluster


def test_a_second_preparation_changes_nothing(seat: Seat, vm: str, one: Host) -> None:
    assert seat.add_host(one).status == 0
    with seat.unchanged():
        assert seat.add_host(one).out["steps"] == []


@pytest.mark.parametrize(("words", "code"), [
    (("vm", "start", "nope"), "FTKVM-101"), (("vm", "stop", "nope"), "FTKVM-101"), (("enable", "nope"), "FTKVM-101"),
    (("turn-off", "nope"), "FTKVM-101"), (("status", "nope"), "FTKVM-101"),
    (("enable", "v1", "--secondary", "nope"), "FTKVM-201"), (("vm", "start", "v1", "--host", "nope"), "FTKVM-201"),
    (("vm", "register", "x", "--host", "nope"), "FTKVM-201"), (("host", "remove", "nope"), "FTKVM-201"),
    (("vm", "register", "nope", "--host", "host8"), "FTKVM-104"),
])  # fmt: skip
def test_unknown_names(seat: Seat, vm: str, words: tuple[str, ...], code: str) -> None:
    with seat.unchanged():
        refused(seat.run(*words), code, 3)


@pytest.mark.parametrize(("words", "code"), [
    (("enable", "v1", "--secondary", "host8"), "FTKVM-403"), (("turn-off", "v1"), "FTKVM-402"),
    (("vm", "start", "v1"), "FTKVM-103"), (("vm", "register", "v1", "--host", "host8"), "FTKVM-105"),
    (("host", "remove", "host8"), "FTKVM-214"),
])  # fmt: skip
def test_not_now(seat: Seat, vm: str, words: tuple[str, ...], code: str) -> None:
    with seat.unchanged():
        refused(seat.run(*words), code)


def test_vm_not_running(seat: Seat, vm: str, two: Host) -> None:
    seat.define(two, "v2")
    seat.ok("vm", "register", "v2", "--host", two.name)
    with seat.unchanged():
        refused(seat.run("enable", "v2", "--secondary", two.name), "FTKVM-102")  # without a host it is turned on: FT-02
        refused(seat.run("vm", "migrate", "v2"), "FTKVM-102")
        refused(seat.run("vm", "stop", "v2"), "FTKVM-102")


def test_image_locked(seat: Seat, vm: str, two: Host) -> None:
    seat.define(two, "v3")
    seat.ok("vm", "register", "v3", "--host", two.name)
    two.run(["systemd-run", "-q", "--unit=locker", "qemu-io", "-c", "sleep 30000", f"{seat.inside}/images/v3.qcow2"])
    time.sleep(0.5)
    try:
        refused(seat.run("vm", "start", "v3", "--host", two.name), "FTKVM-107")
        assert [entry["state"] for entry in seat.ok("vm", "list") if entry["name"] == "v3"] == ["off"]
    finally:
        two.run(["systemctl", "kill", "-s", "KILL", "locker"])


def test_unsupported_nic_back_end(seat: Seat, vm: str, two: Host) -> None:
    seat.define(two, "v4", driver="")
    seat.ok("vm", "register", "v4", "--host", two.name)
    seat.ok("vm", "start", "v4", "--host", two.name)
    with seat.unchanged():
        refused(seat.run("enable", "v4"), "FTKVM-120")
    seat.ok("vm", "stop", "v4", "--force")


@pytest.mark.parametrize("name", ["", "host9"])
def test_ft_network_cut(seat: Seat, vm: str, two: Host, name: str) -> None:
    network.set_port(two.name, "ft", up=False)
    words = ("enable", vm, *(("--secondary", name) if name else ()))
    try:
        with seat.unchanged():
            refused(seat.run(*words), "FTKVM-405" if name else "FTKVM-404")
    finally:
        network.set_port(two.name, "ft", up=True)


def test_ft_network_that_loses_large_frames(seat: Seat, vm: str, one: Host, two: Host) -> None:
    """The hosts' NICs are set to 9000, the switch is not: connections are made, and then stand still."""
    words = [["ip", "link", "set", names.NETWORKS["ft"].nic, "mtu", mtu] for mtu in ("1500", "9000")]
    for host in (one, two):
        host.run(words[1])
    try:
        with seat.unchanged():
            refused(seat.run("enable", vm, "--secondary", two.name), "FTKVM-750")
            refused(seat.run("enable", vm), "FTKVM-404")
        found = seat.run("check", "cluster").out["findings"]
        lost = [each["params"] for each in found if each["code"] == "FTKVM-750"]
        assert lost == [{"host": one.name, "other": two.name, "network": "ft", "mtu": "9000"}]
    finally:
        for host in (one, two):
            host.run(words[0])


@contextmanager
def hung(seat: Seat, host: Host) -> Iterator[None]:
    """The host's datastore hangs. After 8 s HA's guard would end the host's ordinary VMs: see ``slow_guard``."""
    pids = host.unit_pids(names.DATASTORE_UNIT)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: all(not entry.get("error") for entry in seat.ok("host", "list")))


@contextmanager
def slow_guard(seat: Seat) -> Iterator[None]:
    """Inside, a host whose datastore hangs ends its VMs after 50 s only. The times count from HA's next beginning."""
    slow = {"das.failuredetectiontime": "70000", "ha.lease_ms": "60000", "ha.stop_after_ms": "50000"}
    try:
        seat.ok("cluster", "set", "ha.enabled=off", *(f"{name}={value}" for name, value in slow.items()))
        seat.ok("cluster", "set", "ha.enabled=on")
        beats = [seat.datastore / ".ftkvm/hosts" / host.name / "ha.json" for host in seat.hosts]
        # a host promises in its heartbeat what it goes by; one that has not read the change yet cannot once it hangs
        eventually(lambda: all(json.loads(path.read_text())["stop_after_ms"] == 50_000 for path in beats))
        yield
    finally:
        seat.ok("cluster", "set", "ha.enabled=off", *(f"{name}=" for name in slow))
        seat.ok("cluster", "set", "ha.enabled=on")


def test_datastore_hung_on_the_primary(seat: Seat, vm: str, one: Host) -> None:
    with slow_guard(seat):
        with hung(seat, one):
            refused(seat.run("enable", vm), "FTKVM-306", 6)
        with hung(seat, one):
            entry = next(entry for entry in seat.ok("vm", "list") if entry["name"] == vm)
            assert (entry["state"], entry["host"]) == ("running", one.name)
        with hung(seat, one):
            said = seat.run("vm", "start", vm)  # the agent that answers may be the one whose datastore hangs
            assert (said.code, said.status) in (("FTKVM-103", 1), ("FTKVM-306", 6)), said.err


def test_agents_and_libvirtd_restarted(seat: Seat, vm: str, one: Host) -> None:
    before = one.run(["sh", "-c", f"cat /run/libvirt/qemu/{vm}.pid"])
    one.run(["systemctl", "restart", "libvirtd"])
    one.run(["systemctl", "kill", "-s", "KILL", "ftkvm-agent"])
    eventually(lambda: any(e["name"] == vm and e["host"] == one.name for e in seat.ok("vm", "list")))
    assert one.run(["sh", "-c", f"cat /run/libvirt/qemu/{vm}.pid"]) == before


def test_enable_twice_and_at_once(seat: Seat, vm: str, one: Host, two: Host) -> None:
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _number: seat.run("enable", vm), range(2)))
    assert sorted(each.status for each in said) == [0, 1], [each.err for each in said]
    loser = next(each for each in said if each.status)
    refused(loser, loser.code)
    assert loser.code in ("FTKVM-501", "FTKVM-401")
    refused(seat.run("enable", vm), "FTKVM-401")
    assert next(e for e in seat.ok("status")["vms"] if e["name"] == vm)["pair"]["secondary_host"] == two.name
    seat.ok("turn-off", vm)
    assert not any(e["role"] == "secondary" for e in _local(seat, two))


def _local(seat: Seat, host: Host) -> list[dict[str, str]]:
    listed = host.run(["virsh", "list", "--name"]).split()
    return [{"name": name, "role": "secondary"} for name in listed if name == "v1"]


def test_a_host_that_does_not_answer(seat: Seat, vm: str, one: Host, two: Host) -> None:
    """Last: it costs the second host."""
    if not any(entry["name"] == "v2" for entry in seat.ok("vm", "list")):  # when it runs alone
        seat.define(one, "v2")
        seat.ok("vm", "register", "v2", "--host", one.name)
    two.power_off()
    begun = time.monotonic()
    refused(seat.run("enable", vm, "--secondary", two.name), "FTKVM-202", 4)
    refused(seat.run("enable", vm), "FTKVM-404")
    refused(seat.run("vm", "start", "v2", "--host", two.name), "FTKVM-202", 4)
    hosts = {entry["name"]: entry["answers"] for entry in seat.ok("host", "list")}
    assert hosts == {"host8": True, "host9": False}
    assert time.monotonic() - begun < 25
