"""The gate in the kernel, seen by frames: from a VM's bridge port to the LAN, through a real bridge and keeper."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_world import TAP, UUID, Traffic, World, inside, ip, needs_netns, until, world

from ftkvm.keeper.model import PairSpec

pytestmark = needs_netns


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.add_vm_network()
        yield made


@pytest.fixture
def traffic(hosts: World) -> Iterator[Traffic]:
    made = Traffic(hosts)
    yield made
    made.close()


def solo(hosts: World) -> None:
    hosts.client("a").set_pair(PairSpec(UUID, "vm1", 7, "solo", None, (TAP,), "running"))


def test_solo_is_open_when_the_answer_comes_and_a_secondary_shut(hosts: World, traffic: Traffic) -> None:
    hosts.start("a")
    until(lambda: traffic.flows(0.05))  # a port nobody protects is free
    for _ in range(10):
        hosts.pair("a", "secondary")
        shut = time.monotonic()
        time.sleep(0.05)
        solo(hosts)
        opened = time.monotonic()
        until(lambda: any(sent > opened for sent in traffic.arrived))  # noqa: B023
        assert not [sent for sent in traffic.arrived if shut < sent < opened - 0.02]
        assert min(sent for sent in traffic.arrived if sent > opened) == min(s for s in traffic.sent if s > opened)
    hosts.client("a").drop_pair(UUID)
    assert traffic.flows()


def test_a_stopped_keepers_gate_shuts_within_a_second(hosts: World, traffic: Traffic) -> None:
    hosts.start("a")
    solo(hosts)
    until(lambda: traffic.flows(0.05))
    seen = []
    for _ in range(3):
        began = time.monotonic()
        hosts.signal("a", signal.SIGSTOP)
        time.sleep(1.3)
        seen.append(traffic.last() - began)
        assert not traffic.flows()
        hosts.signal("a", signal.SIGCONT)
        until(lambda: traffic.flows(0.05), 1)
    print("\nkeeper stopped, last frame after " + ", ".join(f"{1000 * one:.0f}" for one in seen) + " ms")
    assert max(seen) <= 1.0


def test_a_primarys_gate_follows_its_peers_word(hosts: World, traffic: Traffic) -> None:
    hosts.protected()
    until(lambda: traffic.flows(0.05))
    began = time.monotonic()
    hosts.signal("b", signal.SIGSTOP)
    time.sleep(1)
    print(f"\npeer's keeper stopped, last frame after {1000 * (traffic.last() - began):.0f} ms")
    assert traffic.last() - began <= 0.6
    hosts.signal("b", signal.SIGCONT)
    until(lambda: traffic.flows(0.05), 1)
    began = time.monotonic()
    hosts.pair("b", "solo", won=7)
    time.sleep(0.3)
    print(f"peer says it won, last frame after {1000 * (traffic.last() - began):.0f} ms")
    assert traffic.last() - began < 0.1


def test_a_restart_of_the_keeper_loses_no_frame(hosts: World, traffic: Traffic) -> None:
    """The gate outlives its keeper for as long as a restart takes; on a busy machine a single one may take longer."""
    hosts.protected()
    until(lambda: traffic.flows(0.05))
    gaps = []
    for _ in range(5):
        began = time.monotonic()
        hosts.signal("a", signal.SIGKILL)
        hosts.keepers["a"].wait()
        hosts.start("a")
        until(lambda: hosts.gate("a") == "open")
        time.sleep(0.2)
        gaps.append(traffic.longest_gap(began))
    print("\nfive restarts, longest gaps " + ", ".join(f"{1000 * gap:.0f}" for gap in gaps) + " ms")
    assert min(gaps) < 0.1


def test_a_thawed_host_stays_shut(hosts: World, traffic: Traffic) -> None:
    """Frozen as primary; meanwhile the peer wins and goes live. From the thaw on, not one frame leaves."""
    hosts.protected()
    until(lambda: traffic.flows(0.05))
    hosts.signal("a", signal.SIGSTOP)
    time.sleep(1.2)
    hosts.pair("b", "solo", won=7)
    thawed = time.monotonic()
    hosts.signal("a", signal.SIGCONT)
    time.sleep(1)
    assert traffic.last() < thawed and hosts.gate("a") == "closed"


def test_the_host_itself_is_protected_too(hosts: World, traffic: Traffic) -> None:
    """Frames from the port to the bridge's own address are gated as well (the host's stack is a neighbour as any)."""
    ip("-n", hosts.netns("a"), "addr", "add", "10.232.0.9/24", "dev", "vmbr")
    hosts.start("a")
    hosts.pair("a", "secondary")

    def answer() -> str:
        sock = inside(hosts.netns("vm"), lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        sock.settimeout(0.5)
        with sock:
            try:
                sock.connect(("10.232.0.9", 9))
            except OSError as error:
                return type(error).__name__
        return "connected"

    assert answer() == "TimeoutError"
    solo(hosts)
    until(lambda: answer() == "ConnectionRefusedError", 10)  # its kernel answers
