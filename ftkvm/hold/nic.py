"""One NIC's four sockets: whole frames in, whole frames out, never blocking and never beyond a bound.

Why QEMU cannot deadlock against the proxy: QEMU's main thread writes ``tx`` and reads ``rx``, its compare thread reads
``compare_in`` and writes ``compare_out``, and its writes block. ``compare_out`` is always read, so the compare thread
waits for nobody. ``tx`` is not read while ``compare_in`` is behind *and moves*: then the compare thread is slow, and
the main thread waits for it as it would without a proxy. If ``compare_in`` does not move for ``STUCK_US`` (colo-compare
is being removed, or hangs), ``tx`` is read on. Whatever cannot be sent and has no room is dropped, as a network drops
it; both copies of the guest then send it again.

``secondary_in`` carries the secondary guest's frames, which come over TCP, on to colo-compare; on their way they tell
how far that guest is (``acks``). Nobody waits for them: while colo-compare is behind they are not read.
"""

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ftkvm.hold import frames, mark
from ftkvm.hold.acks import Acks
from ftkvm.hold.cover import Held, HoldQueue
from ftkvm.hold.frames import Mode, Way

BUFFER_BYTES = 1 << 20
BEHIND_BYTES = 4 << 20
STUCK_US = 50_000
BACKLOG_LIMIT_BYTES = 32 << 20
HOLD_LIMIT_BYTES = 16 << 20
ASK_AFTER_US = 60_000
"""A frame that says more than the secondary knows waits so long without any progress there; then a checkpoint is asked
for."""
_SO_SNDBUFFORCE = 32
_SOCKET_BYTES = 1 << 20
_CHUNKS_AT_ONCE = 64
_TLS_RECORD_BYTES = 16 << 10


@dataclass(slots=True)
class Counters:
    """In frames, except ``bytes_tx``: bytes the guest sent. ``ahead``: colo-compare let them out, ``acks`` did not.

    ``unmarked``: checkpoints, those whose mark was not back before RESUME.
    """

    compared: int = 0
    held: int = 0
    released: int = 0
    passed: int = 0
    dropped: int = 0
    bytes_tx: int = 0
    ahead: int = 0
    secondary: int = 0
    unmarked: int = 0


class Outlet:
    """Sends whole frames into one socket; keeps what the socket does not take yet."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.closed = False
        self.backlog_bytes = 0
        self.moved_us = 0
        self._backlog: deque[memoryview] = deque()

    def connected(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self.socket = sock

    def close(self) -> None:
        """QEMU closed its end: what was kept for it, and all that comes, is dropped."""
        self.closed = True
        self._backlog.clear()
        self.backlog_bytes = 0

    def send(self, data: memoryview) -> bool:
        """Send or keep ``data`` (whole frames; copied if kept); False if it was dropped for want of room."""
        sent = 0
        if self.closed:
            return False
        if not self._backlog:
            sent = self._try([data])
            if sent == len(data):
                return True
        if self.backlog_bytes + len(data) - sent > BACKLOG_LIMIT_BYTES and sent == 0:
            return False
        rest = memoryview(bytes(data[sent:]))
        self._backlog.append(rest)
        self.backlog_bytes += len(rest)
        return True

    def flush(self) -> None:
        """Send on from the backlog, as far as the socket takes it."""
        while self._backlog:
            chunks = [self._backlog[index] for index in range(min(len(self._backlog), _CHUNKS_AT_ONCE))]
            sent = self._try(chunks)
            self.backlog_bytes -= sent
            complete = sent == sum(map(len, chunks))
            while sent:
                first = self._backlog[0]
                if len(first) > sent:
                    self._backlog[0] = first[sent:]
                    break
                sent -= len(first)
                self._backlog.popleft()
            if not complete:
                return

    def _try(self, chunks: list[memoryview]) -> int:
        if self.socket is None:
            return 0
        try:
            sent = self.socket.sendmsg(chunks)
            self.moved_us = mono_us()
            return sent
        except BlockingIOError:
            return 0
        except OSError:  # QEMU closed its end; the reading side will see that
            return sum(map(len, chunks))


class Nic:
    """The way of one NIC's frames. ``cover`` decides when ``release`` is called; see the module's docstring."""

    def __init__(self, name: str, mode: Mode) -> None:
        self.name = name
        self.mode: Mode = mode
        self.counters = Counters()
        self.queue = HoldQueue(HOLD_LIMIT_BYTES)
        self.wants_checkpoint = False
        """A frame is held that somebody waits for: set here, cleared by who asked for the checkpoint."""
        self.acks = Acks(HOLD_LIMIT_BYTES)
        self.exited = False
        self._received = 0
        self.compare_in, self.rx, self.secondary_in = Outlet(), Outlet(), Outlet()
        self._tx, self._tx_filled = bytearray(BUFFER_BYTES), 0
        self._out, self._out_filled = bytearray(BUFFER_BYTES), 0
        self._secondary, self._secondary_filled = bytearray(BUFFER_BYTES), 0

    @property
    def outlets(self) -> tuple[Outlet, ...]:
        """All ways out of the proxy, to QEMU."""
        return self.compare_in, self.rx, self.secondary_in

    def wants_tx(self) -> bool:
        """Whether ``tx`` should be read now (see the module's docstring)."""
        connected = self.compare_in.socket is not None and self.rx.socket is not None
        behind = self.compare_in.backlog_bytes > BEHIND_BYTES
        return connected and not (behind and mono_us() - self.compare_in.moved_us < STUCK_US)

    def wants_secondary(self) -> bool:
        """Whether the secondary's frames should be read now."""
        return self.secondary_in.socket is not None and self.secondary_in.backlog_bytes <= BEHIND_BYTES

    def from_guest(self, sock: socket.socket) -> bool:
        """Read ``tx`` once and send each run its way; False at the end of the stream. Raises FramingError."""
        view = memoryview(self._tx)
        count = _receive(sock, view[self._tx_filled :])
        if count is None:
            return True
        self._tx_filled += count
        runs, used = frames.split(self._tx, self._tx_filled, self.mode)
        if runs:
            at_us = mono_us()  # after the read: a stamp is never earlier than the frame
            for run in runs:
                if run.way in (Way.COMPARE, Way.OPEN):
                    self.acks.sent(self._tx, run.start, run.end, at_us)
                self._send(run, view[run.start : run.end], at_us)
            self.counters.bytes_tx += used
            _move_to_front(view, used, self._tx_filled)
            self._tx_filled -= used
        return count > 0

    def _send(self, run: frames.Run, data: memoryview, at_us: int) -> None:
        counters = self.counters
        if run.way is Way.COMPARE:
            kept = self.compare_in.send(data)
            counters.compared += run.frames if kept else 0
        elif run.way in (Way.HOLD, Way.OPEN):
            self.wants_checkpoint = self.wants_checkpoint or run.way is Way.OPEN
            kept = self.queue.add(at_us, run.frames, bytes(data))
            counters.held += run.frames if kept else 0
        elif run.way is Way.PASS:
            kept = self.rx.send(data)
            counters.passed += run.frames if kept else 0
        else:
            kept = False
        counters.dropped += 0 if kept else run.frames

    def from_secondary(self, sock: socket.socket) -> bool | None:
        """Read the secondary's frames once, note how far it is, pass them on to colo-compare.

        False at their end, None if nothing waits. Raises FramingError.
        """
        view = memoryview(self._secondary)
        count = _receive(sock, view[self._secondary_filled :])
        if count is None:
            return None
        self._secondary_filled += count
        used, number = self.acks.echoed(self._secondary, self._secondary_filled, mono_us(), self._let_go)
        if used:
            self.counters.secondary += number
            if not self.secondary_in.send(view[:used]):
                self.counters.dropped += number
            _move_to_front(view, used, self._secondary_filled)
            self._secondary_filled -= used
        return count > 0

    def from_compare(self, sock: socket.socket, marked: Callable[[int], None]) -> bool:
        """Read ``compare_out`` once and pass on what may leave; False at its end. Raises FramingError.

        ``marked(number)``: a mark of that STOP was among it.
        """
        view = memoryview(self._out)
        count = _receive(sock, view[self._out_filled :])
        if count is None:
            return True
        self._out_filled += count
        sieved = self.acks.sieve(self._out, self._out_filled, mono_us(), marked)
        for start, end in sieved.spans:
            if not self.rx.send(view[start:end]):
                self.counters.dropped += 1  # at least: how many frames that were is not counted on this way
        self.counters.ahead += sieved.kept
        self.counters.dropped += sieved.dropped
        if self.exited:
            self.counters.dropped += self.acks.drop_all()
        if sieved.used:
            _move_to_front(view, sieved.used, self._out_filled)
            self._out_filled -= sieved.used
        return count > 0

    def mark(self, number: int) -> None:
        """The guest was stopped: have colo-compare tell when the secondary has received its state."""
        if self.secondary_in.socket is not None and not self.exited:
            self.compare_in.send(memoryview(mark.build(number)))

    def received(self, number: int, covered_us: int) -> None:
        """The secondary has received the state of that STOP, made at ``covered_us``, and stands still or has loaded it.

        The caller has taken in what it sent before.
        """
        self._received = number
        self.acks.checkpoint(covered_us, self._let_go)

    def loaded(self, number: int, covered_us: int) -> None:
        """RESUME: a checkpoint covers what was stamped before ``covered_us``, for certain."""
        if self._received != number:
            self.received(number, covered_us)
            self.counters.unmarked += 1
        for held in self.queue.release(covered_us):
            kept = self.rx.send(memoryview(held.data))
            self.counters.released += held.frames if kept else 0
            self.counters.dropped += 0 if kept else held.frames

    def _let_go(self, held: Held) -> None:
        if not self.rx.send(memoryview(held.data)):
            self.counters.dropped += held.frames

    def look_at_waiting(self, now_us: int) -> None:
        """Ask for a checkpoint when the secondary takes long to catch up."""
        if self.acks.frames and not self.exited and self.acks.stuck_us(now_us) >= ASK_AFTER_US:
            self.wants_checkpoint = True

    def drop_held(self) -> None:
        """COLO is over: no checkpoint will cover what waits, and the secondary will say nothing more."""
        self.exited = True
        self.counters.dropped += self.queue.drop_all() + self.acks.drop_all()


def mono_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the clock frames are stamped with."""
    return time.monotonic_ns() // 1000


def _receive(sock: socket.socket, room: memoryview) -> int | None:
    """Bytes read, 0 at the end of the stream, None if nothing waits.

    Over TLS one read gives one record, and QEMU makes three of a frame: all that are here are taken. There is room for
    a whole record before each read, so none is left half read where a selector does not see it.
    """
    filled = 0
    try:
        while True:
            count = sock.recv_into(room[filled:])
            filled += count
            if not (count and isinstance(sock, ssl.SSLSocket) and len(room) - filled >= _TLS_RECORD_BYTES):
                return filled
    except (BlockingIOError, ssl.SSLWantReadError):
        return filled or None
    except OSError:
        return filled  # the next read tells the end again


def _move_to_front(view: memoryview, used: int, filled: int) -> None:
    if used < filled:
        view[: filled - used] = bytes(view[used:filled])
