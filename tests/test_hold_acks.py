"""What may leave of that which colo-compare has let out: frames as they are on the wire, and a property over histories.

Frames have real layouts: virtio-net header, Ethernet, IPv4, TCP with the timestamp option Linux always sends.
"""

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkvm.hold import acks, frames, mark
from ftkvm.hold.acks import ACK, FIN, FLOWS, RST, SYN, Acks, ahead
from ftkvm.hold.cover import Held
from ftkvm.hold.frames import HEADER

GUEST, CLIENT = bytes([10, 77, 3, 101]), bytes([10, 77, 3, 250])
TIMESTAMPS = bytes([1, 1, 8, 10]) + bytes(8)
ROOM = 1 << 20


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), computed in full."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(
    ack: int,
    flags: int = ACK,
    *,
    sequence: int = 1000,
    payload: bytes = b"",
    port: int = 40000,
    options: bytes = b"",
    pad: int = 0,
    vnet: bytes = bytes(12),
) -> bytes:
    """One TCP segment from the guest's port 7004 to a client's ``port``, as QEMU's filters hand it on."""
    header = 20 + len(TIMESTAMPS)
    tcp = struct.pack("!HHIIBBHHH", 7004, port, sequence % 2**32, ack % 2**32, header // 4 << 4, flags, 500, 0, 0)
    tcp += TIMESTAMPS + payload
    pseudo = GUEST + CLIENT + struct.pack("!BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + checksum(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
    length = 20 + len(options) + len(tcp)
    ip = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, length, 7, 0x4000, 64, 6, 0) + GUEST + CLIENT + options
    frame = vnet + bytes(12) + b"\x08\x00" + ip + tcp + bytes(pad)
    return HEADER.pack(len(frame), len(vnet)) + frame


@dataclass
class Way:
    """An ``Acks`` with what left it."""

    acks: Acks = field(default_factory=lambda: Acks(ROOM))
    left: list[bytes] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def let_go(self, held: Held) -> None:
        self.left.append(held.data)

    def sent(self, frame: bytes, at_us: int) -> None:
        self.acks.sent(bytearray(frame), 0, len(frame), at_us)

    def echoed(self, frame: bytes, now_us: int = 0) -> None:
        assert self.acks.echoed(bytearray(frame), len(frame), now_us, self.let_go)[0] == len(frame)

    def out(self, frame: bytes, at_us: int = 0) -> bool:
        """Whether it leaves at once."""
        buffer = bytearray(frame)
        sieved = self.acks.sieve(buffer, len(buffer), at_us, self.marks.append)
        assert sieved.used == len(frame)
        self.left += [bytes(buffer[start:end]) for start, end in sieved.spans]
        return sieved.spans == [(0, len(frame))]

    def checkpoint(self, covered_us: int) -> None:
        self.acks.checkpoint(covered_us, self.let_go)


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.mark.parametrize("options", [b"", bytes(8)])
@pytest.mark.parametrize("payload", [b"", b"answer"])
def test_an_acknowledgement_waits_for_the_secondary(way: Way, options: bytes, payload: bytes) -> None:
    frame = segment(5000, payload=payload, options=options)
    way.sent(frame, 10)
    assert not way.out(frame)
    way.echoed(segment(4999, port=40001))  # another connection
    assert way.left == []
    way.echoed(segment(5000, options=options))
    assert way.left == [frame]
    assert (way.acks.frames, way.acks.bytes) == (0, 0)
    assert way.out(frame)


def test_neighbours_leave_as_one_span_and_what_waits_is_left_out(way: Way) -> None:
    way.echoed(segment(100))
    good, late = segment(100), segment(101)
    stream = bytearray(good + good + late + good)
    sieved = way.acks.sieve(stream, len(stream), 0, way.marks.append)
    size = len(good)
    assert sieved.spans == [(0, 2 * size), (3 * size, 4 * size)]
    assert (sieved.kept, sieved.dropped, way.acks.frames) == (1, 0, 1)


def test_the_stamp_decides_what_a_checkpoint_covers(way: Way) -> None:
    for ack, at_us in ((100, 1000), (200, 2000), (300, 3000)):
        way.sent(segment(ack), at_us)
        way.out(segment(ack))
    way.checkpoint(2001)
    assert way.left == [segment(100), segment(200)]
    way.checkpoint(3000)
    assert len(way.left) == 2  # strictly before
    way.checkpoint(3001)
    assert len(way.left) == 3


def test_after_a_checkpoint_the_secondary_knows_the_primarys_state_only(way: Way) -> None:
    way.sent(segment(100), 10)
    way.echoed(segment(900))  # it is ahead, and is taken back
    way.checkpoint(20)
    assert way.out(segment(100))
    assert not way.out(segment(900))


def test_numbers_wrap(way: Way) -> None:
    way.echoed(segment(2**32 - 10))
    assert way.out(segment(2**32 - 10))
    assert not way.out(segment(5))
    way.echoed(segment(6))
    assert way.left[-1] == segment(5)
    assert way.out(segment(2**32 - 10))
    assert ahead(5, 2**32 - 10) and not ahead(2**32 - 10, 5) and not ahead(7, 7)


def test_what_repeats_a_number_passes(way: Way) -> None:
    """Window updates, duplicate acknowledgements and keepalives (an old sequence number) say nothing new."""
    way.sent(segment(700), 1)
    way.checkpoint(2)
    for frame in (segment(700), segment(700, sequence=999), segment(650), segment(700, payload=b"data")):
        assert way.out(frame)


def test_an_unknown_connection_waits(way: Way) -> None:
    assert not way.out(segment(1))
    way.checkpoint(50)  # nothing is known of it to be covered
    assert way.left == []
    way.sent(segment(1), 60)
    way.checkpoint(70)
    assert way.left == [segment(1)]


@pytest.mark.parametrize("flags", [FIN | ACK, RST, RST | ACK])
def test_an_end_of_the_connection_waits_for_the_secondarys(way: Way, flags: int) -> None:
    way.echoed(segment(100))
    frame = segment(100, flags)
    way.sent(frame, 10)
    assert not way.out(frame)
    way.echoed(segment(100))
    assert way.left == []
    way.echoed(segment(100, flags))
    assert way.left == [frame]


@pytest.mark.parametrize("flags", [FIN | ACK, RST, RST | ACK])
def test_an_end_of_the_connection_is_covered_by_a_checkpoint(way: Way, flags: int) -> None:
    frame = segment(100, flags, payload=b"bye" if flags & FIN else b"")
    way.sent(frame, 10)
    assert not way.out(frame)
    way.checkpoint(10)
    assert way.left == []
    way.checkpoint(11)
    assert way.left == [frame]
    assert way.out(frame)  # sent once more


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_an_end_that_the_secondary_told_counts_until_the_checkpoint(way: Way, flags: int) -> None:
    way.echoed(segment(100, flags))
    way.checkpoint(1)
    way.echoed(segment(100))
    assert not way.out(segment(100, flags))


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_an_end_of_the_connection_before_is_none_of_this_one(way: Way, flags: int) -> None:
    end = segment(100, flags)
    way.sent(end, 10)
    way.checkpoint(20)
    way.echoed(end)
    assert way.out(end)
    way.sent(segment(77, SYN | ACK), 30)
    way.echoed(segment(100))
    assert not way.out(end)
    way.sent(end, 40)
    way.checkpoint(41)
    assert way.left == [end, end]


def test_a_fin_elsewhere_in_the_stream_is_another(way: Way) -> None:
    way.echoed(segment(100, FIN | ACK, sequence=1000, payload=b"short"))
    assert not way.out(segment(100, FIN | ACK, sequence=1000, payload=b"shorter"))
    assert way.out(segment(100, FIN | ACK, sequence=1003, payload=b"rt"))  # the same end in other pieces


def test_padding_is_no_payload(way: Way) -> None:
    way.echoed(segment(100, FIN | ACK))
    assert way.out(segment(100, FIN | ACK, pad=6))


def test_a_reset_of_the_secondary_acknowledges_nothing(way: Way) -> None:
    way.echoed(segment(5000, RST | ACK))
    assert not way.out(segment(5000))


def test_a_new_connection_with_the_same_ports_begins_anew(way: Way) -> None:
    way.sent(segment(2**31), 10)
    way.checkpoint(20)
    way.echoed(segment(2**31))
    way.sent(segment(77, SYN | ACK), 30)
    assert not way.out(segment(78))
    way.checkpoint(40)
    assert way.out(segment(77))
    way.echoed(segment(78))
    assert way.left[-2:] == [segment(78), segment(77)] or segment(78) in way.left


def test_the_client_is_told_what_both_have(way: Way) -> None:
    """The secondary has a hole: its repeated numbers reach the client, which sends again."""
    for generation, vnet in enumerate((bytes(12), bytes([1, 1]) + bytes(10), b"")):
        way.checkpoint(generation)
        way.left.clear()
        frame = segment(9000, vnet=vnet)
        assert not way.out(frame)
        for _ in range(3):
            way.echoed(segment(0x12345678))
        assert not ahead(9000, 0x12345678)  # it is ahead there: nothing to tell
        assert way.left == [frame]


@pytest.mark.parametrize("number", [8000, 1, 2**32 - 1, 0xFFFF0000])
def test_a_told_number_has_a_right_checksum(way: Way, number: int) -> None:
    frame = segment(number + 1000)
    assert not way.out(frame)
    for _ in range(3):
        way.echoed(segment(number))
    assert way.left == [segment(number)] * 3  # `segment` computes the checksum in full
    assert way.acks.frames == 1


def test_a_checksum_still_to_be_made_is_left_alone(way: Way) -> None:
    vnet = bytes([frames.NEEDS_CHECKSUM]) + bytes(11)
    frame = segment(9000, vnet=vnet)
    way.out(frame)
    way.echoed(segment(8000))
    (told,) = way.left
    at = HEADER.size + 12 + 14 + 20
    assert told[at + 8 : at + 12] == (8000).to_bytes(4, "big")
    assert told[: at + 8] + told[at + 12 :] == frame[: at + 8] + frame[at + 12 :]


def test_payload_is_never_told_twice(way: Way) -> None:
    way.out(segment(9000, payload=b"data"))
    way.echoed(segment(8000))
    assert way.left == []


def test_the_table_is_bounded_and_forgets_safely(way: Way) -> None:
    way.echoed(segment(100, port=1))
    waiting = segment(200, port=1)
    assert not way.out(waiting)
    for number in range(2 * FLOWS + 10):
        way.echoed(segment(1, port=2 + number % 60000, sequence=number).replace(GUEST, struct.pack("!I", number)))
    assert len(way.acks._young) + len(way.acks._old) <= 2 * FLOWS
    assert not way.out(segment(100, port=2))  # forgotten
    way.echoed(segment(200, port=1))
    assert way.left == [waiting]  # what waits is never forgotten


def test_old_connections_are_forgotten(way: Way) -> None:
    way.echoed(segment(100))
    for _ in range(3):
        way.checkpoint(acks.AGE_US * 2)
        way.checkpoint(acks.AGE_US * 4)
        way.checkpoint(acks.AGE_US * 6)
    assert not way.acks._young and not way.acks._old


def test_what_waits_is_bounded() -> None:
    frame = segment(100, payload=bytes(400))
    way = Way(Acks(2 * len(frame)))
    sieved = way.acks.sieve(bytearray(frame * 3), 3 * len(frame), 5, way.marks.append)
    assert (sieved.spans, sieved.kept, sieved.dropped) == ([], 2, 1)
    assert way.acks.oldest_age_us(25) == 20
    assert way.acks.drop_all() == 2
    assert (way.acks.bytes, way.acks.frames, way.acks.oldest_age_us(25)) == (0, 0, 0)


def test_stuck_is_without_progress(way: Way) -> None:
    way.out(segment(500), at_us=1000)
    assert way.acks.stuck_us(5000) == 4000
    way.echoed(segment(300), now_us=4500)
    assert way.acks.stuck_us(5000) == 500
    way.echoed(segment(300), now_us=4900)
    assert way.acks.stuck_us(5000) == 500


def test_marks_are_told_and_never_leave(way: Way) -> None:
    udp = segment(1).replace(b"\x40\x06", b"\x40\x11")
    stream = bytearray(udp + mark.build(7) + udp + mark.build(8))
    sieved = way.acks.sieve(stream, len(stream), 0, way.marks.append)
    assert way.marks == [7, 8]
    size = len(udp)
    assert sieved.spans == [(0, size), (size + mark.SIZE, 2 * size + mark.SIZE)]
    assert sieved.used == len(stream)
    runs, used = frames.split(bytearray(mark.build(7)), mark.SIZE, "hold")
    assert ([run.way for run in runs], used) == ([frames.Way.COMPARE], mark.SIZE)


# ------------------------------------------------------------------------------------------------- the property

BASES = st.sampled_from([0, 1000, 2**31 - 50, 2**32 - 60])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["sent", "echoed", "out", "checkpoint"]),
        st.integers(0, 120),
        st.integers(0, 1),
        st.sampled_from([b"", b"payload"]),
    ),
    max_size=60,
)


@dataclass
class Truth:
    """What the secondary is known to have of one connection, told in the plainest way."""

    sent: list[tuple[int, int]] = field(default_factory=list)
    echoed: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)

    def has(self, ack: int, base: int) -> bool:
        known = [(each - base) % 2**32 for each in [*self.echoed, *self.covered]]
        return (ack - base) % 2**32 <= max(known, default=-1)

    def checkpoint(self, covered_us: int) -> None:
        self.covered += [ack for at_us, ack in self.sent if at_us < covered_us]
        self.echoed.clear()


def _acks_of(data: bytes) -> list[tuple[int, int]]:
    """(client's port, acknowledgement) of each frame."""
    found = []
    for _begin, _end, _ip, tcp in frames.walk(bytearray(data), 0, len(data)):
        found.append((int.from_bytes(data[tcp + 2 : tcp + 4], "big"), int.from_bytes(data[tcp + 8 : tcp + 12], "big")))
    return found


@settings(max_examples=200, deadline=None)
@given(BASES, STEPS)
def test_no_number_ahead_of_the_secondary_and_uncovered_ever_leaves(
    base: int, steps: list[tuple[str, int, int, bytes]]
) -> None:
    way, truths = Way(), {40000: Truth(), 40001: Truth()}
    highest = dict.fromkeys(truths, 0)
    looked, now_us = 0, 0
    for what, number, which, payload in steps:
        now_us += 400
        port = 40000 + which
        if what == "sent":  # a guest's acknowledgements never go back
            highest[port] = max(highest[port], number)
            number = highest[port]
        frame = segment(base + number, payload=payload, port=port)
        match what:
            case "sent":
                truths[port].sent.append((now_us, (base + number) % 2**32))
                way.sent(frame, now_us)
            case "echoed":
                truths[port].echoed.append((base + number) % 2**32)
                way.echoed(frame, now_us)
            case "out":
                way.out(frame, now_us)
            case "checkpoint":
                covered_us = now_us - 13 * number
                for truth in truths.values():
                    truth.checkpoint(covered_us)
                way.checkpoint(covered_us)
        for data in way.left[looked:]:
            for left_port, ack in _acks_of(data):
                assert truths[left_port].has(ack, base)
        looked = len(way.left)
    for port in truths:  # and nothing that was sent waits for ever
        way.sent(segment(base + 200, port=port), now_us)
    way.checkpoint(now_us + 1)
    assert way.acks.frames == 0
