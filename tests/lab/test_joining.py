"""Who joins a cluster, and a host that leaves it dead, on real hosts (HA-01, HA-20)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ftkvm.lab import names, network
from ftkvm.lab.host import Host

from .seat import Said, Seat, seated

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with seated(tmp_path_factory.mktemp("seat"), "host72", "host73") as made:
        assert made.add_host(made.hosts[0]).status == 0
        yield made


def refused(said: Said, code: str) -> None:
    assert said.code == code, said.err
    assert "Cause:" in said.err
    assert "Remedy:" in said.err


@contextmanager
def instead_of(host: Host, path: str, text: str) -> Iterator[None]:
    """``path`` says something else for a while."""
    host.run(["sh", "-c", f"printf '{text}' > /tmp/instead; chmod 755 /tmp/instead; mount --bind /tmp/instead {path}"])
    try:
        yield
    finally:
        host.run(["umount", path])


def cables(host: Host, *, up: bool) -> None:
    """Of all networks of the hosts: agents reach each other over the FT network too. The datastore stays."""
    for each in names.HOST_NETWORKS:
        network.set_port(host.name, each, up)


def until(what: str, holds: Callable[[], Any], timeout_s: float = 40) -> float:
    """Wait for it; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.3)
    return time.monotonic() - began


def test_another_qemu(seat: Seat) -> None:
    _one, two = seat.hosts
    text = "#!/bin/sh\\necho QEMU emulator version 12.3.4\\n"
    with seat.unchanged(), instead_of(two, "/usr/bin/qemu-system-x86_64", text):
        said = seat.add_host(two)
    refused(said, "FTKVM-261")
    assert "QEMU 12.3.4" in said.err and f"{seat.hosts[0].name} 11." in said.err


def test_a_clone(seat: Seat) -> None:
    one, two = seat.hosts
    there = one.run(["cat", "/etc/machine-id"]).strip()
    with seat.unchanged(), instead_of(two, "/etc/machine-id", there + "\\n"):
        refused(seat.add_host(two), "FTKVM-263")


def test_one_machine_under_two_names(seat: Seat) -> None:
    one, _two = seat.hosts
    with seat.unchanged():
        refused(seat.run("host", "add", "other", "--address", seat.address(one)), "FTKVM-242")


def test_a_host_that_leaves_dead_has_its_vms_restarted(seat: Seat) -> None:
    """`vm set` is told to its host; cut off it is not dead; switched off and removed, its VM runs on the other."""
    one, two = seat.hosts
    assert seat.add_host(two).status == 0
    seat.define(two, "v1")
    seat.ok("vm", "register", "v1", "--host", two.name)
    until("both well", lambda: all(not entry.get("error") for entry in seat.ok("host", "list")))
    seat.ok("vm", "start", "v1", "--host", two.name)
    assert two.name in seat.ok("vm", "set", "v1", "ha.isolation_response=leave-on")["told"]
    cables(two, up=False)
    try:
        until("it is silent", lambda: not {e["name"]: e["answers"] for e in seat.ok("host", "list")}[two.name])
        refused(seat.run("host", "remove", two.name, "--dead"), "FTKVM-264")
    finally:
        cables(two, up=True)
    two.power_off()
    seat.ok("host", "remove", two.name, "--dead")
    took_s = until("v1 runs elsewhere", lambda: seat.vm("v1").get("host") == one.name)
    print(f"v1 runs on {one.name} {took_s:.1f} s after its host was removed")
