"""What a client on the VM network sees: streams that must not break, gaps measured, who emits a guest's frames.

Everything here runs in threads of the caller's process; only the sockets live in the client's name space.
All times are of this machine's monotonic clock.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from ftkvm.lab import names, netns

COUNTER, ECHO, LEDGER, SINK, SOURCE, CONTROL = 7001, 7002, 7003, 7004, 7005, 7006
PROBE_EVERY_S = 0.010
CONNECT_S = 60
"""A connection to a protected VM opens at its next checkpoint: half a second of the hosts, which may be slow."""


class Stream(threading.Thread):
    """One TCP connection to the guest for its whole life: it is never made anew, that is the point."""

    def __init__(self, address: str, port: int, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.sock = netns.connect(names.CLIENT_NS, address, port, CONNECT_S)
        self.broken: str | None = None
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._longest_s = 0.0

    def _arrived(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._longest_s = max(self._longest_s, now - self._last)
            self._last = now

    def longest_pause_ms(self) -> float:
        """The longest silence since the start or the last `mark`, one that still lasts included."""
        with self._lock:
            return 1000 * max(self._longest_s, time.monotonic() - self._last)

    def mark(self) -> None:
        """Begins a new window for `longest_pause_ms`."""
        with self._lock:
            self._longest_s = 0.0

    def run(self) -> None:
        self.sock.settimeout(0.2)
        try:
            self.work()
        except OSError as error:
            if not self._ending.is_set():
                self.broken = f"{type(error).__name__}: {error}"

    def work(self) -> None:
        raise NotImplementedError

    def lines(self) -> "_Lines":
        return _Lines(self.sock, self._ending)

    def close(self) -> None:
        """Ends thread and connection."""
        self._ending.set()
        if self.is_alive():
            self.join(5)
        self.sock.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Lines:
    """Lines of a connection; ends when asked to stop, raises ConnectionError when the other side ends."""

    def __init__(self, sock: socket.socket, stop: threading.Event) -> None:
        self._sock = sock
        self._ending = stop
        self._rest = b""

    def next(self) -> bytes | None:
        """The next line, or None once the thread was told to stop."""
        while b"\n" not in self._rest:
            if self._ending.is_set():
                return None
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise ConnectionError("the guest ended the connection")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line


class CounterClient(Stream):
    """Reads the guest's counter; each number must be the one before plus one."""

    def __init__(self, address: str) -> None:
        super().__init__(address, COUNTER, "counter")
        self.last = 0
        self.gaps = 0

    def work(self) -> None:
        lines = self.lines()
        while (line := lines.next()) is not None:
            number = int(line)
            self.gaps += number != self.last + 1
            self.last = number
            self._arrived()


class GapProbe(Stream):
    """Sends a numbered line every ``every_s`` and measures the silence between the echoes."""

    def __init__(self, address: str, every_s: float = PROBE_EVERY_S) -> None:
        super().__init__(address, ECHO, "gap-probe")
        self._every_s = every_s
        self.sent = 0
        self.received = 0
        self.wrong = 0
        self.round_trip_ms: list[float] = []
        self._sent_at: dict[int, float] = {}

    def work(self) -> None:
        rest, waiting = b"", b""
        due = time.monotonic()
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= due:
                due = max(due + self._every_s, now)
                self.sent += 1
                self._sent_at[self.sent] = now
                waiting += b"%d\n" % self.sent
            if waiting:
                with contextlib.suppress(BlockingIOError, TimeoutError):  # a silent guest: the kernel's buffer is full
                    waiting = waiting[self.sock.send(waiting, socket.MSG_DONTWAIT) :]
            self.sock.settimeout(max(due - time.monotonic(), 0.0005))
            try:
                data = self.sock.recv(65536)
            except (TimeoutError, BlockingIOError):
                continue
            if not data:
                raise ConnectionError("the guest ended the connection")
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                self._echoed(int(line))

    def _echoed(self, number: int) -> None:
        self.received += 1
        self.wrong += number != self.received
        self.round_trip_ms.append(1000 * (time.monotonic() - self._sent_at.pop(number, time.monotonic())))
        self._arrived()


class LedgerClient(Stream):
    """Writes numbered records; ``window``: so many are on their way at once (1: each after the one before)."""

    def __init__(self, address: str, first: int = 1, every_s: float = 0.005, window: int = 1) -> None:
        super().__init__(address, LEDGER, "ledger")
        self.acknowledged: list[int] = []
        self.refused: list[str] = []
        self._first = first
        self._every_s = every_s
        self._window = window

    def work(self) -> None:
        lines = self.lines()
        number = following = self._first
        while not self._ending.is_set():
            while following < number + self._window:
                self.sock.sendall(b"REC %d %s\n" % (following, text_of(following).encode()))
                following += 1
            answer = lines.next()
            if answer is None:
                return
            if answer == b"ACK %d" % number:
                self.acknowledged.append(number)
            else:
                self.refused.append(answer.decode(errors="replace"))
            self._arrived()
            number += 1
            time.sleep(self._every_s)


def text_of(number: int) -> str:
    """The text a record must have: it tells a record from another's."""
    return f"record-{number}-{number * 2654435761 % 2**32:08x}"


def ask(address: str, port: int, line: str, timeout_s: float = 5) -> str:
    """One line to a service of the guest on a connection of its own, and its one-line answer. Raises OSError."""
    with netns.connect(names.CLIENT_NS, address, port, timeout_s) as sock:
        sock.sendall(line.encode() + b"\n")
        return sock.makefile().readline().strip()


def wait_for_guest(address: str, timeout_s: float = 60) -> float:
    """Waits until the guest's echo answers; returns the seconds waited. Raises TimeoutError.

    More patient each time: a protected guest on slow hosts takes seconds to open a connection.
    """
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        try:
            if ask(address, ECHO, "are you there", 1 + waited / 4) == "are you there":
                return time.monotonic() - started
        except OSError:
            pass
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"no answer from {address} in {timeout_s:.0f} s")
        time.sleep(0.1)


_ETH_P_ALL = 3


RECENT = 64
"""Frames of a guest out of one host that are remembered."""


@dataclass
class Emission:
    """Frames with a guest's source address that came out of one host."""

    frames: int = 0
    arp_replies: int = 0
    first: float = 0.0
    last: float = 0.0
    kinds: dict[int, int] = field(default_factory=dict)
    """Frames by EtherType."""
    recent: deque["Frame"] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The newest ones."""
    last_news: float = 0.0
    """When it last said what nobody had said before it, see :class:`Said`."""

    def since(self, moment: float) -> list[str]:
        """What the newest frames after a moment (monotonic clock) were: milliseconds after it, and a summary."""
        return [
            f"{1000 * (each.at - moment):.1f} ms {summary(each.head)}{' again' if each.again else ''}"
            for each in list(self.recent)
            if each.at > moment
        ]


class Frame(NamedTuple):
    """A frame that was heard: when (monotonic clock), its first bytes as far as TCP's sequence numbers, and whether
    all that it says had been said."""

    at: float
    head: bytes
    again: bool


class Segment(NamedTuple):
    """What a frame says of a TCP stream over IPv4."""

    peer_address: bytes
    port: int
    peer: int
    sequence: int
    acknowledged: int
    length: int
    flags: int


_FIN, _SYN, _RST = 1, 2, 4


def segment(frame: bytes) -> Segment | None:
    """The TCP segment in a frame's first 54 bytes; None when it holds none (or one behind IP options)."""
    if frame[12:14] != b"\x08\0" or len(frame) < 54 or frame[23] != 6 or frame[14] != 0x45:
        return None
    total, port, peer = (int.from_bytes(frame[at : at + 2]) for at in (16, 34, 36))
    sequence, acknowledged = int.from_bytes(frame[38:42]), int.from_bytes(frame[42:46])
    return Segment(frame[30:34], port, peer, sequence, acknowledged, total - 20 - 4 * (frame[46] >> 4), frame[47])


def summary(frame: bytes) -> str:
    """A frame's protocol; of TCP over IPv4 also port, sequence numbers, length and flags."""
    if (tcp := segment(frame)) is None:
        return f"0x{frame[12:14].hex()}"
    numbers = f"seq {tcp.sequence} ack {tcp.acknowledged} len {tcp.length} flags 0x{tcp.flags:02x}"
    return f"tcp {tcp.port}>{tcp.peer} {numbers}"


class Said:
    """How far a guest's TCP streams have got on the wire, whichever host carried them.

    A frame that a network held back says *again* what is known: the client has had it, or has it from the copy that
    took over. A second copy that lives goes on from where the first one stopped, and says what nobody had said.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[bytes, int, int], tuple[int, int]] = {}

    def again(self, frame: bytes) -> bool:
        """Whether it has nothing new; what it has is said from now on. What is not TCP is always new."""
        if (tcp := segment(frame)) is None:
            return False
        stream = (tcp.peer_address, tcp.port, tcp.peer)
        end = tcp.sequence + tcp.length + bool(tcp.flags & _SYN) + bool(tcp.flags & _FIN)
        known = None if tcp.flags & _SYN else self._ends.get(stream)
        if known is None:
            self._ends[stream] = end, tcp.acknowledged
            return False
        further = [max(0, _ahead(now, was)) for now, was in zip((end, tcp.acknowledged), known, strict=True)]
        self._ends[stream] = known[0] + further[0], known[1] + further[1]
        return not any(further) and not tcp.flags & _RST


def _ahead(one: int, other: int) -> int:
    """How far one sequence number is ahead of another; they begin again after 2**32 (RFC 9293)."""
    return (one - other + (1 << 31)) % (1 << 32) - (1 << 31)


def listen(port: str) -> socket.socket:
    """A socket that hears what passes one interface of this network name space, and nothing of any other.

    It is made deaf (protocol 0) and told the protocol with the interface: made with a protocol it would hear *every*
    interface until it is bound, and frames of one host would be taken for those of another (packet(7)).
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((port, _ETH_P_ALL))
    sock.setblocking(False)
    return sock


class Capture:
    """Watches the switch's port to each host and says which host emits frames of a guest's address."""

    _OUTGOING = 4  # PACKET_OUTGOING: what the switch sends *to* the host

    def __init__(self, hosts: list[str]) -> None:
        self._frames: dict[str, dict[str, Emission]] = {}
        self._said: dict[str, Said] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._hosts = hosts
        self._ending = threading.Event()
        self._open: dict[str, tuple[int, socket.socket]] = {}
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)

    def __enter__(self) -> "Capture":
        self._follow_ports()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(5)
        for _, sock in self._open.values():
            sock.close()
        self._selector.close()

    def _follow_ports(self) -> None:
        """Opens a socket per port; again when a host's power cycle has made the port anew."""
        with netns.inside(names.SWITCH_NS):
            for host in self._hosts:
                port = names.port(host, "vm")
                try:
                    index = socket.if_nametoindex(port)
                except OSError:
                    continue  # its host is off
                known = self._open.get(host)
                if known and known[0] == index:
                    continue
                if known:
                    self._selector.unregister(known[1])
                    known[1].close()
                sock = listen(port)
                self._selector.register(sock, selectors.EVENT_READ, host)
                self._open[host] = (index, sock)

    def _work(self) -> None:
        follow_at = 0.0
        while not self._ending.is_set():
            if time.monotonic() > follow_at:
                self._follow_ports()
                follow_at = time.monotonic() + 0.5
            for key, _ in self._selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                self._drain(sock, str(key.data))

    def _drain(self, sock: socket.socket, host: str) -> None:
        for _ in range(200):
            try:
                frame, origin = sock.recvfrom(64)
            except OSError:  # nothing more, or the port is down
                return
            if origin[2] != self._OUTGOING and len(frame) >= 14:
                self._note(host, frame)

    def _note(self, host: str, frame: bytes) -> None:
        mac, kind, now = frame[6:12].hex(":"), int.from_bytes(frame[12:14]), time.monotonic()
        with self._lock:
            emission = self._frames.setdefault(mac, {}).setdefault(host, Emission(first=now))
            emission.frames += 1
            emission.last = now
            emission.kinds[kind] = emission.kinds.get(kind, 0) + 1
            again = self._said.setdefault(mac, Said()).again(frame)
            emission.recent.append(Frame(now, frame[:54], again))
            if not again:
                emission.last_news = now
            emission.arp_replies += kind == 0x0806 and frame[20:22] == b"\0\2"

    def emitters(self, mac: str) -> dict[str, Emission]:
        """What each host emitted in the name of a guest since the start or the last `mark`."""
        with self._lock:
            return dict(self._frames.get(mac, {}))

    def mark(self) -> None:
        """Forgets who has spoken; how far the streams have got is known on."""
        with self._lock:
            self._frames.clear()
