"""The hold proxy as a process, with real unix sockets at all its ends: this test plays QEMU, byte by byte.

Prints its throughput (``-s``).
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkvm.hold import mark
from ftkvm.hold.frames import HEADER
from ftkvm.hold.proxy import still_registered
from ftkvm.hold.status import HoldStatus, NicStatus, fetch

VNET = 12
ENDS = ("tx", "compare_in", "compare_out", "rx", "secondary_in")


def frame(ethertype: int, content: bytes = b"") -> bytes:
    payload = bytes(VNET) + bytes(12) + ethertype.to_bytes(2, "big") + content.ljust(46, b"\0")
    return HEADER.pack(len(payload), VNET) + payload


class Qemu:
    """QEMU's ends: a monitor that listens, five sockets per NIC that connect, and the secondary's, which listen."""

    def __init__(self, directory: Path, mode: str, nics: int = 1) -> None:
        self.directory = directory
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "monitor"))
        listener.listen(1)
        self.config = directory / "hold.json"
        secondaries = [socket.create_server(("127.0.0.1", 0)) for _ in range(nics)]
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in secondaries]
        names = {end: [str(directory / f"{end}{nic}") for nic in range(nics)] for end in ENDS}
        self.config.write_text(
            json.dumps(
                {
                    "uuid": "u",
                    "monitor": str(directory / "monitor"),
                    "mode": mode,
                    "status": str(directory / "status"),
                    "nics": [
                        {
                            "id": f"net{nic}",
                            "mac": "52:54:00:00:00:01",
                            "secondary": addresses[nic],
                            **{end: names[end][nic] for end in ENDS},
                        }
                        for nic in range(nics)
                    ],
                }
            )
        )
        self.process = subprocess.Popen([sys.executable, "-m", "ftkvm.hold", str(self.config)])
        listener.settimeout(10)
        self.monitor, _ = listener.accept()
        listener.close()
        self.monitor.settimeout(5)
        self.commands = self.monitor.makefile("rb")
        self.say({"QMP": {"version": {}, "capabilities": ["oob"]}})
        assert self.next_command()["execute"] == "qmp_capabilities"
        self.say({"return": {}, "id": 0})
        self.ends: dict[str, socket.socket] = {}
        for nic, each in enumerate(secondaries):
            each.settimeout(5)
            self.ends[f"secondary{nic}"], _ = each.accept()
            self.ends[f"secondary{nic}"].settimeout(5)
            each.close()
        for nic in range(nics):
            for end in ENDS:
                sock = self.ends[f"{end}{nic}"] = socket.socket(socket.AF_UNIX)
                sock.settimeout(5)
                sock.connect(str(directory / f"{end}{nic}"))

    def say(self, doc: dict[str, object]) -> None:
        self.monitor.sendall(json.dumps(doc).encode() + b"\r\n")

    def next_command(self) -> dict[str, object]:
        return dict(json.loads(self.commands.readline()))

    def event(self, name: str, at: float | None = None) -> None:
        seconds, fraction = divmod(time.time() if at is None else at, 1)
        self.say({"event": name, "timestamp": {"seconds": int(seconds), "microseconds": int(fraction * 1e6)}})

    def stop(self, status: str = "colo", at: float | None = None) -> None:
        self.event("STOP", at)
        command = self.next_command()
        assert command["execute"] == "query-status"
        self.say({"return": {"status": status, "running": False}, "id": command["id"]})

    def checkpoint(self) -> None:
        self.stop()
        self.event("RESUME")

    def read(self, end: str, size: int) -> bytes:
        data = b""
        while len(data) < size:
            got = self.ends[end].recv(size - len(data))
            assert got, f"{end} was closed"
            data += got
        return data

    def mark(self, nic: int = 0) -> int:
        """What the proxy put into colo-compare at the last STOP; let out as QEMU does."""
        sent = self.read(f"compare_in{nic}", mark.SIZE)
        number = mark.number_of(bytearray(sent), 0, len(sent))
        assert number is not None
        self.ends[f"compare_out{nic}"].sendall(sent)
        return number

    def silent(self, end: str, seconds: float = 0.1) -> bool:
        self.ends[end].settimeout(seconds)
        try:
            return not self.ends[end].recv(1)
        except TimeoutError:
            return True
        finally:
            self.ends[end].settimeout(5)

    def status(self) -> HoldStatus:
        return fetch(self.directory / "status", timeout_s=5)

    def nic(self, name: str = "net0") -> NicStatus:
        return self.status().nics[name]

    def close(self) -> int:
        for sock in [*self.ends.values(), self.monitor]:
            sock.close()
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def qemu(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Qemu]:
    qemu = Qemu(tmp_path, getattr(request, "param", "hold"), nics=2 if "two_nics" in request.node.name else 1)
    yield qemu
    if qemu.process.poll() is None:
        assert qemu.close() == 0


def test_ipv4_is_compared_and_comes_out_unchanged(qemu: Qemu) -> None:
    sent = frame(0x0800, b"one") + frame(0x0800, b"two" * 400)
    qemu.ends["tx0"].sendall(sent)
    assert qemu.read("compare_in0", len(sent)) == sent
    assert qemu.silent("rx0")
    qemu.ends["compare_out0"].sendall(sent)
    assert qemu.read("rx0", len(sent)) == sent
    assert (qemu.nic().compared, qemu.nic().held, qemu.nic().bytes_tx) == (2, 0, len(sent))


SYN = bytes([0x45, *bytes(8), 6, *bytes(23), 0x12])
"""IPv4 and TCP headers up to the flags SYN and ACK."""


def test_a_connection_waits_for_a_checkpoint_that_is_asked_for_at_once(qemu: Qemu) -> None:
    opening, other = frame(0x0800, SYN), frame(0x0800, b"one")
    qemu.ends["tx0"].sendall(opening + other + opening)
    command = qemu.next_command()
    assert command["execute"] == "query-migrate-parameters"  # once for both
    qemu.say({"return": {"x-checkpoint-delay": 700}, "id": command["id"]})
    command = qemu.next_command()
    assert command["execute"] == "migrate-set-parameters"
    assert command["arguments"] == {"x-checkpoint-delay": 700}  # to what it is: that alone begins a checkpoint
    qemu.say({"return": {}, "id": command["id"]})
    assert qemu.read("compare_in0", len(other)) == other
    assert qemu.silent("rx0")
    qemu.event("STOP")
    command = qemu.next_command()
    qemu.say({"return": {"status": "colo", "running": False}, "id": command["id"]})
    qemu.event("RESUME")
    assert qemu.read("rx0", 2 * len(opening)) == 2 * opening
    qemu.checkpoint()  # nothing waits: the interval is left alone


ACK_7 = bytes([0x45, 0, 0, 40, *bytes(5), 6, *bytes(22), 7, 0x50, 0x10, *bytes(6)])
"""IPv4 and TCP headers of a bare acknowledgement of 7."""


def test_the_secondarys_frames_reach_colo_compare_unchanged(qemu: Qemu) -> None:
    sent = frame(0x0800, b"one") + frame(0x0806) + frame(0x0800, b"two" * 400)
    for number in range(0, len(sent), 100):
        qemu.ends["secondary0"].sendall(sent[number : number + 100])
    assert qemu.read("secondary_in0", len(sent)) == sent
    assert qemu.silent("rx0") and qemu.nic().secondary == 3
    qemu.ends["secondary0"].close()
    assert qemu.ends["secondary_in0"].recv(1) == b""  # colo-compare sees the end


def test_an_acknowledgement_waits_for_the_secondarys(qemu: Qemu) -> None:
    acknowledgement = frame(0x0800, ACK_7)
    qemu.ends["tx0"].sendall(acknowledgement)
    assert qemu.read("compare_in0", len(acknowledgement)) == acknowledgement
    qemu.ends["compare_out0"].sendall(acknowledgement)
    assert qemu.silent("rx0", 0.01)
    assert (qemu.nic().ahead, qemu.nic().ahead_frames_now) == (1, 1)
    qemu.ends["secondary0"].sendall(acknowledgement)
    assert qemu.read("rx0", len(acknowledgement)) == acknowledgement
    assert (qemu.nic().ahead, qemu.nic().ahead_frames_now) == (1, 0)


def test_a_mark_that_comes_out_covers_acknowledgements_before_resume(qemu: Qemu) -> None:
    acknowledgement, other = frame(0x0800, ACK_7), frame(0x0806)
    qemu.ends["tx0"].sendall(acknowledgement + other)
    qemu.read("compare_in0", len(acknowledgement))
    time.sleep(0.01)
    qemu.stop()
    qemu.ends["compare_out0"].sendall(acknowledgement)
    assert qemu.silent("rx0", 0.01)
    qemu.mark()
    assert qemu.read("rx0", len(acknowledgement)) == acknowledgement
    assert qemu.silent("rx0")  # ARP waits for RESUME as ever
    qemu.event("RESUME")
    assert qemu.read("rx0", len(other)) == other
    assert qemu.nic().unmarked == 0


def test_what_the_secondary_said_before_the_mark_is_forgotten(qemu: Qemu) -> None:
    acknowledgement = frame(0x0800, ACK_7)
    qemu.ends["secondary0"].sendall(acknowledgement)
    assert qemu.read("secondary_in0", len(acknowledgement))
    qemu.stop()
    qemu.mark()
    time.sleep(0.05)
    qemu.ends["compare_out0"].sendall(acknowledgement)
    assert qemu.silent("rx0", 0.01)
    qemu.ends["secondary0"].sendall(acknowledgement)  # in its new state
    assert qemu.read("rx0", len(acknowledgement)) == acknowledgement


def test_a_checkpoint_without_its_mark_is_one_at_resume(qemu: Qemu) -> None:
    acknowledgement = frame(0x0800, ACK_7)
    qemu.ends["tx0"].sendall(acknowledgement)
    qemu.read("compare_in0", len(acknowledgement))
    qemu.ends["compare_out0"].sendall(acknowledgement)
    time.sleep(0.01)
    qemu.stop()
    qemu.event("RESUME")
    assert qemu.read("rx0", len(acknowledgement)) == acknowledgement
    assert qemu.nic().unmarked == 1
    qemu.mark()  # late: of no meaning any more
    qemu.ends["compare_out0"].sendall(acknowledgement)
    assert qemu.read("rx0", len(acknowledgement)) == acknowledgement


def test_a_checkpoint_is_asked_for_when_the_secondary_does_not_catch_up(qemu: Qemu) -> None:
    qemu.ends["compare_out0"].sendall(frame(0x0800, ACK_7))
    assert qemu.next_command()["execute"] == "query-migrate-parameters"


def test_after_the_exit_nothing_that_is_ahead_leaves(qemu: Qemu) -> None:
    qemu.ends["compare_out0"].sendall(frame(0x0800, ACK_7))
    assert qemu.silent("rx0", 0.01)
    qemu.event("COLO_EXIT")
    assert qemu.silent("rx0", 0.05)
    qemu.ends["compare_out0"].sendall(frame(0x0800, ACK_7))
    assert qemu.silent("rx0", 0.05)
    assert (qemu.nic().dropped, qemu.nic().ahead_frames_now) == (2, 0)


def test_a_frame_in_single_bytes_arrives_whole(qemu: Qemu) -> None:
    sent = frame(0x0800, b"slow")
    for number in range(len(sent)):
        qemu.ends["tx0"].sendall(sent[number : number + 1])
        qemu.ends["compare_out0"].sendall(sent[number : number + 1])
    assert qemu.read("compare_in0", len(sent)) == sent
    assert qemu.read("rx0", len(sent)) == sent


def test_what_is_not_compared_waits_for_its_checkpoint(qemu: Qemu) -> None:
    first, second = frame(0x86DD, b"before"), frame(0x0806, b"after")
    qemu.ends["tx0"].sendall(first)
    assert qemu.silent("rx0")
    time.sleep(0.01)
    qemu.stop()
    qemu.ends["tx0"].sendall(second)
    assert qemu.silent("rx0")  # STOP alone releases nothing
    qemu.event("RESUME")
    assert qemu.read("rx0", len(first)) == first
    assert qemu.silent("rx0")
    qemu.checkpoint()
    assert qemu.read("rx0", len(second)) == second
    assert [qemu.mark(), qemu.mark()] == [1, 2]  # nothing else was given to colo-compare
    assert qemu.silent("compare_in0") and qemu.silent("rx0")
    assert (qemu.nic().held, qemu.nic().released, qemu.nic().held_frames_now) == (2, 2, 0)


def test_a_stop_stamped_before_the_frame_does_not_cover_it(qemu: Qemu) -> None:
    """QEMU's event was long under way: what counts is when it was stamped, not when it was read."""
    stopped_at = time.time()
    time.sleep(0.05)
    qemu.ends["tx0"].sendall(frame(0x0806))
    time.sleep(0.05)
    qemu.stop(at=stopped_at)
    qemu.event("RESUME")
    assert qemu.silent("rx0")


def test_a_resume_without_stop_and_a_suspend_release_nothing(qemu: Qemu) -> None:
    qemu.ends["tx0"].sendall(frame(0x86DD))
    time.sleep(0.01)
    qemu.event("RESUME")
    assert qemu.silent("rx0")
    qemu.stop("paused")
    time.sleep(0.05)
    qemu.event("RESUME")
    assert qemu.silent("rx0")
    qemu.checkpoint()
    assert not qemu.silent("rx0")


def test_colo_exit_drops_what_waits(qemu: Qemu) -> None:
    qemu.ends["tx0"].sendall(frame(0x86DD))
    time.sleep(0.01)
    qemu.stop()
    qemu.event("COLO_EXIT")
    qemu.event("RESUME")
    assert qemu.silent("rx0")
    assert qemu.status().exited and qemu.nic().dropped == 1
    sent = frame(0x0800)  # what colo-compare lets out is still carried
    qemu.ends["compare_out0"].sendall(sent)
    assert qemu.read("rx0", len(sent)) == sent


@pytest.mark.parametrize("qemu", ["block"], indirect=True)
def test_block_drops_all_but_arp(qemu: Qemu) -> None:
    arp = frame(0x0806)
    qemu.ends["tx0"].sendall(frame(0x86DD) + arp + frame(0x8100) + frame(0x88CC))
    time.sleep(0.05)
    qemu.checkpoint()
    assert qemu.read("rx0", len(arp)) == arp
    assert qemu.silent("rx0") and qemu.nic().dropped == 3


@pytest.mark.parametrize("qemu", ["allow"], indirect=True)
def test_allow_passes_at_once(qemu: Qemu) -> None:
    sent = frame(0x86DD) + frame(0x0806)
    qemu.ends["tx0"].sendall(sent)
    assert qemu.read("rx0", len(sent)) == sent
    assert qemu.nic().passed == 2


def test_two_nics_do_not_mix(qemu: Qemu) -> None:
    one, two = frame(0x0800, b"1"), frame(0x86DD, b"2")
    qemu.ends["tx0"].sendall(one)
    qemu.ends["tx1"].sendall(two)
    assert qemu.read("compare_in0", len(one)) == one
    time.sleep(0.05)
    qemu.checkpoint()
    assert qemu.read("rx1", len(two)) == two
    assert qemu.mark(0) == qemu.mark(1)
    assert qemu.silent("rx0", 0.05) and qemu.silent("compare_in1", 0.05)


def test_held_and_compared_frames_stay_whole_on_a_slow_wire(qemu: Qemu) -> None:
    """rx is not read while both sources write: afterwards every frame is there, none torn by another."""
    held = [frame(0x86DD, number.to_bytes(4, "big") * 300) for number in range(2000)]
    compared = [frame(0x0800, number.to_bytes(4, "big") * 300) for number in range(4000)]
    for sent in held:
        qemu.ends["tx0"].sendall(sent)
    time.sleep(0.2)
    half = len(compared) // 2
    qemu.ends["compare_out0"].sendall(b"".join(compared[:half]))
    qemu.checkpoint()
    qemu.ends["compare_out0"].sendall(b"".join(compared[half:]))
    got: list[bytes] = []
    for _ in range(len(held) + len(compared)):
        header = qemu.read("rx0", HEADER.size)
        got.append(header + qemu.read("rx0", HEADER.unpack(header)[0]))
    kinds: dict[bytes, list[bytes]] = {b"\x08\x00": [], b"\x86\xdd": []}
    for one in got:
        kinds[one[HEADER.size + VNET + 12 :][:2]].append(one)
    assert kinds[b"\x86\xdd"] == held and kinds[b"\x08\x00"] == compared


def test_nobody_reads_and_qemu_is_not_blocked_for_ever(qemu: Qemu) -> None:
    """compare_in and rx are stuck, both writers go on: the proxy drops, as a network does, and stays within bounds."""
    big = frame(0x0800, bytes(60000))
    for end in ("compare_out0", "tx0"):
        for _ in range(900):  # 54 MB, more than all buffers
            qemu.ends[end].sendall(big)
    assert qemu.nic().dropped > 0
    assert qemu.nic().backlog_bytes < 80 << 20
    assert int(Path(f"/proc/{qemu.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") < 160 << 20


def test_a_stream_out_of_step_ends_the_proxy(qemu: Qemu) -> None:
    qemu.ends["tx0"].sendall(b"\xff" * 100)
    assert qemu.process.wait(5) == 1


def test_it_ends_when_qemu_does(qemu: Qemu) -> None:
    assert qemu.close() == 0
    assert not (qemu.directory / "tx0").exists() and not (qemu.directory / "status").exists()


@pytest.mark.parametrize("size", [60000, 1500])
def test_throughput(qemu: Qemu, size: int) -> None:
    """The whole way, tx → compare_in and compare_out → rx, with two readers and one writer on this machine."""
    total = 200_000_000 if size > 9000 else 60_000_000
    chunk = frame(0x0800, bytes(size)) * (1_000_000 // size)
    count = total // len(chunk)

    def echo() -> None:  # colo-compare that lets everything out
        view = memoryview(bytearray(1 << 20))
        left = count * len(chunk)
        while left:
            got = qemu.ends["compare_in0"].recv_into(view)
            qemu.ends["compare_out0"].sendall(view[:got])
            left -= got

    arrived = threading.Semaphore(8)  # a window of 8 MB, as TCP has one

    def drain() -> None:
        view = memoryview(bytearray(1 << 20))
        got = 0
        while got < count * len(chunk):
            before, got = got, got + qemu.ends["rx0"].recv_into(view)
            for _ in range(got // len(chunk) - before // len(chunk)):
                arrived.release()

    threads = [threading.Thread(target=echo), threading.Thread(target=drain)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for _ in range(count):
        assert arrived.acquire(timeout=10)
        qemu.ends["tx0"].sendall(chunk)
    for thread in threads:
        thread.join(30)
    megabytes_per_s = count * len(chunk) / 1e6 / (time.monotonic() - began)
    print(f"\nframes of {size} bytes: {megabytes_per_s:.0f} MB/s")
    assert qemu.nic().dropped == 0
    assert megabytes_per_s > 30  # far below what is seen: the machine may be busy


def test_an_event_of_a_socket_that_an_earlier_one_closed_is_passed_over() -> None:
    first, second = socket.socketpair()
    with selectors.DefaultSelector() as selector, second:
        selector.register(first, selectors.EVENT_READ)
        second.send(b"x")
        ((key, _mask),) = selector.select(1.0)
        assert still_registered(selector, key)
        selector.unregister(first)
        first.close()
        assert not still_registered(selector, key)
