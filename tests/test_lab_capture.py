"""What the lab's capture hears: a wrong ear would call a failover two copies that live, or not see them."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from keeper_world import needs_netns

from ftkvm.lab import client, looks, netns
from ftkvm.lab.system import run

pytestmark = needs_netns

SPACE = f"ftlab-ears{os.getpid()}"
SPEAKER = bytes.fromhex("525400aabbcc")
FRAME = b"\xff" * 6 + SPEAKER + b"\x08\x00" + bytes(50)


@pytest.fixture
def two_cables() -> Iterator[None]:
    """A network name space with two cables, both ends of each in it."""
    run(["ip", "netns", "add", SPACE])
    try:
        for one, other in (("loud", "loud-end"), ("still", "still-end")):
            run(["ip", "-n", SPACE, "link", "add", one, "type", "veth", "peer", "name", other])
            run(["ip", "-n", SPACE, "link", "set", one, "up"])
            run(["ip", "-n", SPACE, "link", "set", other, "up"])
        yield
    finally:
        run(["ip", "netns", "del", SPACE])


def _spoken(sock: socket.socket) -> int:
    """How many frames of the speaker's this socket has heard."""
    heard = 0
    while True:
        try:
            heard += sock.recv(64)[6:12] == SPEAKER
        except BlockingIOError:
            return heard


def test_a_port_is_never_told_of_what_another_said(two_cables: None) -> None:
    """A socket made for one cable while the other is full of frames: the very moment a host comes back in."""
    ended = threading.Event()
    with netns.inside(SPACE):
        mouth, ear = client.listen("loud-end"), client.listen("loud")

        def talk() -> None:
            while not ended.is_set():
                mouth.send(FRAME)

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        try:
            strangers = 0
            for _ in range(100):
                with client.listen("still") as sock:
                    strangers += _spoken(sock)
        finally:
            ended.set()
            talker.join(5)
    with mouth, ear:
        assert _spoken(ear) > 0
        assert strangers == 0


# ------------------------------------------------------------------------------------------ what late frames were


def tcp(sequence: int, payload: int, acknowledged: int = 99, flags: int = 0x18) -> bytes:
    """An Ethernet frame with a TCP segment from port 7 to port 4000, as far as the capture keeps it."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = bytes([0x45, 0]) + (40 + payload).to_bytes(2) + bytes(5) + bytes([6]) + bytes(10)
    ports = (7).to_bytes(2) + (4000).to_bytes(2)
    return ethernet + ip + ports + sequence.to_bytes(4) + acknowledged.to_bytes(4) + bytes([0x50, flags]) + bytes(6)


def test_a_frame_is_told_as_far_as_its_sequence_numbers() -> None:
    assert client.summary(tcp(1000, 5)) == "tcp 7>4000 seq 1000 ack 99 len 5 flags 0x18"
    assert client.summary(bytes(12) + b"\x08\x06" + bytes(28)) == "0x0806"
    assert client.summary(tcp(1000, 5)[:40]) == "0x0800"


def test_who_still_spoke_and_what_it_was() -> None:
    old = client.Emission(frames=3, first=1.0, last=9.5, kinds={0x800: 3})
    old.recent.extend(client.Frame(at, tcp(number, 5), again=at > 9) for at, number in ((1, 10), (8, 15), (9.5, 15)))
    new = client.Emission(frames=1, first=9.0, last=20.0, kinds={0x800: 1})
    (said,) = looks.overlaps({"host1": old, "host2": new})
    assert said.startswith("host1 still spoke 500 ms after host2 began (kinds ['0x800'])")
    assert said.endswith(": 500.0 ms tcp 7>4000 seq 15 ack 99 len 5 flags 0x18 again")
    assert looks.late_frames({"host2": new, "host1": old}) == [
        "500.0 ms tcp 7>4000 seq 15 ack 99 len 5 flags 0x18 again"
    ]
    old.last = 8.0
    assert looks.overlaps({"host1": old, "host2": new}) == []


def test_of_a_host_that_stood_still_only_what_is_new_counts() -> None:
    old = client.Emission(frames=3, first=1.0, last=9.5, last_news=8.0)
    new = client.Emission(frames=1, first=9.0, last=20.0, last_news=20.0)
    both = {"host1": old, "host2": new}
    assert looks.overlaps(both) and looks.overlaps(both, "host2")
    assert looks.overlaps(both, "host1") == []
    old.last_news = 9.5
    assert looks.overlaps(both, "host1")


def test_what_had_been_said_and_what_had_not() -> None:
    """A repetition, whole or in part, is old; another byte, another acknowledgement, a reset, or no TCP is news."""
    said = client.Said()
    assert not said.again(tcp(10, 5))
    for known in (tcp(10, 5), tcp(12, 3), tcp(15, 0), tcp(10, 5, 90)):
        assert said.again(known)
    for new in (tcp(10, 6), tcp(16, 0, 100), tcp(16, 0, 100, client._RST), tcp(1, 0, 0, client._SYN), bytes(54)):
        assert not said.again(new)
    assert not said.again(tcp(7, 1)) and said.again(tcp(7, 1))


def test_sequence_numbers_begin_again() -> None:
    said = client.Said()
    assert not said.again(tcp(0xFFFFFFFE, 1)) and not said.again(tcp(0xFFFFFFFF, 4))
    assert said.again(tcp(1, 2)) and said.again(tcp(0xFFFFFFFF, 1))
    assert not said.again(tcp(3, 1))
