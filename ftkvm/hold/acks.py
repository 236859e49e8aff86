"""Which TCP frames of the primary say more than the secondary knows. Pure: every time is an argument.

colo-compare compares payload. It lets a segment without payload out as soon as the secondary has sent *any* packet of
that connection, and a segment with the same payload whatever it acknowledges (QEMU 11.1, net/colo-compare.c,
``colo_compare_tcp``, ``colo_mark_tcp_pkt``). A client that was told "I have these bytes" never sends them again: if the
copy that goes on has not got them, the connection hangs for ever. So a frame that colo-compare has let out waits here
until what it says beyond its payload is known to be true of the copy that may have to go on:

==============  ==================================================================================================
acknowledgement the secondary's guest has sent that number, or a later one, since it loaded its last checkpoint; or
                the primary's guest had sent it before the STOP of a checkpoint (then it is in the loaded state)
FIN             the secondary's guest has sent a FIN at the same sequence number; or covered by a checkpoint
RST             the secondary's guest has sent a RST on that connection; or covered by a checkpoint
==============  ==================================================================================================

While a bare acknowledgement waits, the client is told what both copies have: for each number that the secondary sends
meanwhile, a copy of the frame that waits leaves with that number in it (``frames.with_ack``). Else nobody would ever
resend what the secondary alone has lost (what came while a checkpoint took it back; what its slower guest had no buffer
for): three repeated numbers are what makes a TCP resend.

Numbers are compared modulo 2^32. Window updates, duplicate acknowledgements with SACK and keepalives repeat a number
that is known already, and pass. (SACK promises nothing: the sender keeps what is not acknowledged cumulatively.)

*At a checkpoint the secondary forgets.* It may have been ahead of the primary, and the checkpoint takes it back: what
arrives while the primary stands still goes to both, the secondary may take it yet, and is then set to a state without
it. So what its frames told counts until the checkpoint only, which begins a new generation. The boundary must lie where
the secondary stands still: after all it sent in its old state, before the first it sends in the new one. QEMU has no
event for that, but colo-compare lets out all it has when the secondary has *received* the checkpoint, which it then
loads. So at STOP the proxy puts a *mark* into colo-compare (a frame of its own that nothing matches). When it comes
out, the proxy takes in what has come from the secondary until then, and begins the new generation (``checkpoint``).
A mark never leaves the proxy. Should it come out late, the boundary is RESUME: later than need be, which is as safe.

*Which acknowledgements a checkpoint covers* is asked with the times of ``cover``: ``sent`` stamps what the guest sent
after it was read, so it is never taken for older than it is. Per connection a few stamps are kept (``Flow.sent``);
leaving one out only makes a later one count, so it can cover less and never more.

A connection that is not known (too many of them, idle for long, older than the pair) lets nothing through until the
secondary speaks on it or a checkpoint covers it. That is what colo-compare asks of it too.
"""

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ftkvm.hold import frames, mark
from ftkvm.hold.cover import Held

FLOWS = 8192
"""Connections in one generation of the table; twice as many are known at most."""
AGE_US = 300_000_000
"""A connection on which nothing was sent for one to two of these is forgotten."""
STAMPS = 16
STAMP_EVERY_US = 1000

FIN, SYN, RST, ACK = 0x01, frames.SYN, 0x04, 0x10
_SEGMENT = struct.Struct("!IIBB")
"""From 4 bytes into the TCP header: sequence, acknowledgement, length of the header (upper half), flags."""


def ahead(a: int, b: int) -> bool:
    """Whether sequence number ``a`` lies after ``b``, modulo 2^32."""
    return 0 < (a - b) & 0xFFFFFFFF < 0x80000000


@dataclass(slots=True)
class Flow:
    """One TCP connection, from the guest's side. ``*_generation``: when the secondary told it."""

    sent: list[tuple[int, int]] = field(default_factory=list)
    """(stamp, acknowledgement) of the primary's guest that no checkpoint covers yet, oldest first."""
    covered: int | None = None
    """The highest acknowledgement in the state that the secondary loaded last."""
    echoed: int = 0
    echoed_generation: int = -1
    progress_us: int = 0
    """When the secondary last acknowledged something new."""
    fin_end: int = 0
    fin_us: int | None = None
    """The FIN the primary's guest has sent: the sequence number it ends at, and the stamp of the first."""
    rst_us: int | None = None
    echoed_fin_end: int = 0
    echoed_fin_generation: int = -1
    echoed_rst_generation: int = -1
    held: deque[tuple[int, int, int, Held]] = field(default_factory=deque)
    """What waits, in the order it came: acknowledgement, flags, end of its sequence, frame."""

    def note_sent(self, ack: int, at_us: int) -> None:
        """The primary's guest has acknowledged ``ack``; it was read at ``at_us``."""
        sent = self.sent
        if sent:
            if not ahead(ack, sent[-1][1]):
                return
            if sent[-1][0] == at_us or (len(sent) > 1 and at_us - sent[-2][0] < STAMP_EVERY_US):
                sent[-1] = (at_us, ack)
                return
            if len(sent) >= STAMPS:
                del sent[1:-1:2]
        elif self.covered is not None and not ahead(ack, self.covered):
            return
        sent.append((at_us, ack))

    def opened(self, at_us: int, ack: int | None) -> None:
        """The guest sent a SYN: numbers of an earlier connection with these ports mean nothing any more."""
        self.sent = [] if ack is None else [(at_us, ack)]
        self.covered = self.fin_us = self.rst_us = None
        self.echoed_generation = self.echoed_fin_generation = self.echoed_rst_generation = -1


@dataclass(frozen=True, slots=True)
class Sieved:
    """Spans of the buffer that may leave, bytes that are whole frames, and frames that wait or had no room."""

    spans: list[tuple[int, int]]
    used: int
    kept: int
    dropped: int


class Acks:
    """The connections of one NIC, and what waits of them. At most ``limit_bytes`` wait; times are microseconds."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._young: dict[bytes, Flow] = {}
        self._old: dict[bytes, Flow] = {}
        self._holding: dict[bytes, Flow] = {}
        self._generation = 0
        self._covered_us = self._aged_us = 0
        self.bytes = 0
        self.frames = 0

    # -- what is seen ------------------------------------------------------------------------------------------

    def sent(self, buffer: bytearray, start: int, end: int, at_us: int) -> None:
        """The primary's guest sent the frames in ``buffer[start:end]``; they were read at ``at_us``."""
        for _begin, stop, ip, tcp in frames.walk(buffer, start, end):
            if not tcp:
                continue
            sequence, ack, offset, flags = _SEGMENT.unpack_from(buffer, tcp + 4)
            flow = self._flow(frames.flow_key(buffer, ip, tcp))
            if flags & SYN:
                flow.opened(at_us, ack if flags & ACK else None)
                continue
            if flags & ACK:
                flow.note_sent(ack, at_us)
            if flags & RST and flow.rst_us is None:
                flow.rst_us = at_us
            if flags & FIN:
                fin_end = frames.sequence_end(buffer, ip, tcp, stop, sequence, offset)
                if flow.fin_us is None or flow.fin_end != fin_end:
                    flow.fin_us, flow.fin_end = at_us, fin_end

    def echoed(self, buffer: bytearray, length: int, now_us: int, release: Callable[[Held], None]) -> tuple[int, int]:
        """The secondary's guest sent these frames: ``release`` is called with each that need not wait any more.

        Returns how many bytes are whole frames, and how many frames those are.
        """
        used = count = 0
        generation = self._generation
        for _begin, stop, ip, tcp in frames.walk(buffer, 0, length):
            used, count = stop, count + 1
            if not tcp:
                continue
            sequence, ack, offset, flags = _SEGMENT.unpack_from(buffer, tcp + 4)
            if flags & SYN:
                continue  # a connection opens by a checkpoint; this one's numbers may be another's
            key = frames.flow_key(buffer, ip, tcp)
            flow = self._flow(key)
            if flags & RST:  # its acknowledgement may be of bytes that nobody has taken
                flow.echoed_rst_generation = generation
            elif flags & ACK:
                if flow.echoed_generation != generation or ahead(ack, flow.echoed):
                    flow.echoed, flow.echoed_generation, flow.progress_us = ack, generation, now_us
                if flags & FIN:
                    flow.echoed_fin_end = frames.sequence_end(buffer, ip, tcp, stop, sequence, offset)
                    flow.echoed_fin_generation = generation
            if flow.held:
                self._release(key, flow, release)
                if flags & ACK and not flags & RST:
                    _tell_both(flow, ack, release)
        return used, count

    def checkpoint(self, covered_us: int, release: Callable[[Held], None]) -> None:
        """A checkpoint covers what was stamped before ``covered_us``; all else the secondary has forgotten."""
        self._covered_us = covered_us
        self._generation += 1
        for key, flow in list(self._holding.items()):
            self._release(key, flow, release)
        if covered_us - self._aged_us > AGE_US:
            self._age()
            self._aged_us = covered_us

    # -- what may leave ----------------------------------------------------------------------------------------

    def sieve(self, buffer: bytearray, length: int, at_us: int, marked: Callable[[int], None]) -> Sieved:
        """Takes what colo-compare has let out, and keeps what has to wait; ``marked`` is called for each mark in it."""
        spans: list[tuple[int, int]] = []
        begin = used = kept = dropped = 0
        for start, stop, ip, tcp in frames.walk(buffer, 0, length):
            used = stop
            if tcp:
                sequence, ack, offset, flags = _SEGMENT.unpack_from(buffer, tcp + 4)
                key = frames.flow_key(buffer, ip, tcp)
                flow = self._flow(key)
                end = frames.sequence_end(buffer, ip, tcp, stop, sequence, offset) if flags & FIN else 0
                if self._may_leave(flow, ack, flags, end):
                    continue
                if self.bytes + stop - start > self._limit_bytes:
                    dropped += 1
                else:
                    self._hold(key, flow, (ack, flags, end, Held(at_us, 1, bytes(buffer[start:stop]))))
                    kept += 1
            else:
                number = mark.number_of(buffer, start, stop)
                if number is None:
                    continue
                marked(number)
            if start > begin:
                spans.append((begin, start))
            begin = stop
        if used > begin:
            spans.append((begin, used))
        return Sieved(spans, used, kept, dropped)

    def _hold(self, key: bytes, flow: Flow, entry: tuple[int, int, int, Held]) -> None:
        flow.held.append(entry)
        self._holding[key] = flow
        self.bytes += len(entry[3].data)
        self.frames += 1

    def drop_all(self) -> int:
        """Forget what waits; returns how many frames that were."""
        dropped = self.frames
        for flow in self._holding.values():
            flow.held.clear()
        self._holding.clear()
        self.bytes = self.frames = 0
        return dropped

    def oldest_age_us(self, now_us: int) -> int:
        """How long the frame that has waited longest has waited."""
        return max((now_us - flow.held[0][3].at_us for flow in self._holding.values()), default=0)

    def stuck_us(self, now_us: int) -> int:
        """How long a frame has waited while the secondary acknowledged nothing new on its connection, at most."""
        flows = self._holding.values()
        return max((now_us - max(flow.held[0][3].at_us, flow.progress_us) for flow in flows), default=0)

    # -- the rules ---------------------------------------------------------------------------------------------

    def _may_leave(self, flow: Flow, ack: int, flags: int, end: int) -> bool:
        if flags & RST:
            return flow.echoed_rst_generation == self._generation or self._is_covered(flow.rst_us)
        if flags & FIN:
            echoed = flow.echoed_fin_generation == self._generation and flow.echoed_fin_end == end
            if not echoed and not (flow.fin_end == end and self._is_covered(flow.fin_us)):
                return False
        if not flags & ACK:
            return True
        if flow.echoed_generation == self._generation and not ahead(ack, flow.echoed):
            return True
        sent = flow.sent
        while sent and sent[0][0] < self._covered_us:
            flow.covered = sent.pop(0)[1]
        return flow.covered is not None and not ahead(ack, flow.covered)

    def _is_covered(self, stamp_us: int | None) -> bool:
        return stamp_us is not None and stamp_us < self._covered_us

    def _release(self, key: bytes, flow: Flow, release: Callable[[Held], None]) -> None:
        while flow.held:
            ack, flags, end, held = flow.held[0]
            if not self._may_leave(flow, ack, flags, end):
                return
            flow.held.popleft()
            self.bytes -= len(held.data)
            self.frames -= 1
            release(held)
        self._holding.pop(key, None)

    # -- the table ---------------------------------------------------------------------------------------------

    def _flow(self, key: bytes) -> Flow:
        flow = self._young.get(key)
        if flow is None:
            flow = self._old.pop(key, None) or self._holding.get(key) or Flow()
            if len(self._young) >= FLOWS:
                self._age()
            self._young[key] = flow
        return flow

    def _age(self) -> None:
        self._old, self._young = self._young, {}


def _tell_both(flow: Flow, ack: int, release: Callable[[Held], None]) -> None:
    """The secondary has got as far as ``ack``, the primary further: that much both have, and the client may know it."""
    if not flow.held or flow.echoed != ack:
        return
    primary, flags, _end, held = flow.held[0]
    if flags & (FIN | RST) or not flags & ACK or not ahead(primary, ack):
        return
    told = frames.with_ack(held.data, ack)
    if told is not None:
        release(Held(held.at_us, 1, told))
