"""The secondary's frames over real TLS, and the channel that is shut down when a handshake hangs."""

import select
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from ftkvm.adapters.pki import Authority, write_private
from ftkvm.agent.channel import shut_down_after
from ftkvm.core.trust import Role
from ftkvm.hold.frames import HEADER
from ftkvm.hold.nic import Nic

VNET, FRAMES, TIMEOUT_S = 12, 300, 10.0


def frame(number: int) -> bytes:
    """As QEMU's redirector frames it: two lengths, a virtio header, an Ethernet frame (ARP: nothing compares it)."""
    payload = bytes(VNET + 12) + (0x0806).to_bytes(2, "big") + number.to_bytes(4, "big") + bytes(1000)
    return HEADER.pack(len(payload), VNET) + payload


def tls_pair(directory: Path) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """The two ends of one connection: who reads, and who writes."""
    authority = Authority.create("test")
    issued = authority.issue("qemu", ("127.0.0.1",), role=Role.HOST)
    for name, content in (("ca", authority.certificate), ("crt", issued.certificate), ("key", issued.key)):
        write_private(directory / name, content)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "crt", directory / "key")
    client = ssl.create_default_context(cafile=str(directory / "ca"))
    accepted: list[ssl.SSLSocket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        accept = lambda: accepted.append(server.wrap_socket(listener.accept()[0], server_side=True))  # noqa: E731
        thread = threading.Thread(target=accept)
        thread.start()
        plain = socket.create_connection(listener.getsockname(), TIMEOUT_S)
        reading = client.wrap_socket(plain, server_hostname="127.0.0.1")
        thread.join(TIMEOUT_S)
    reading.setblocking(False)
    return reading, accepted[0]


def test_frames_that_come_in_three_records_each_all_arrive(tmp_path: Path) -> None:
    """Whatever the records' edges: nothing stays in the TLS layer, where a selector does not see it."""
    reading, writing = tls_pair(tmp_path)
    wanted = [frame(number) for number in range(FRAMES)]

    def write() -> None:
        for each in wanted:
            for part in (each[:4], each[4:9], each[9:]):
                writing.sendall(part)
        writing.close()

    into, compare = socket.socketpair()
    compare.settimeout(TIMEOUT_S)
    nic = Nic("net0", "hold")
    nic.secondary_in.connected(into)
    thread = threading.Thread(target=write)
    got = bytearray()
    with reading, into, compare:
        thread.start()
        while True:
            assert select.select([reading], [], [], TIMEOUT_S)[0], f"{len(got)} bytes, then nothing any more"
            if nic.from_secondary(reading) is False:
                break
            while select.select([compare], [], [], 0)[0]:
                got += compare.recv(1 << 20)
        thread.join(TIMEOUT_S)
    assert bytes(got) == b"".join(wanted)
    assert nic.counters.secondary == FRAMES


def test_a_channel_is_shut_down_for_whoever_has_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.fromfd(ours.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as qemus:
        qemus.settimeout(TIMEOUT_S)
        begun = time.monotonic()
        with shut_down_after(ours, 0.05):
            assert qemus.recv(1) == b""  # as a handshake that is never answered
        assert time.monotonic() - begun >= 0.05


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_a_channel_whose_handshake_is_over_is_left_alone(pause_s: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with shut_down_after(ours, 0.05):
            pass
        time.sleep(pause_s)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"
