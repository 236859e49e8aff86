"""What the lab's capture hears: a wrong ear would call a failover two copies that live, or not see them."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from keeper_world import needs_netns

from ftkvm.lab import client, netns
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
