"""QEMU's framing on a filter's socket, and which frames colo-compare compares. Pure, and fast enough for a NIC.

With ``vnet_hdr_support`` a frame is: payload length (4 bytes, big endian), length of the virtio-net header (4 bytes,
big endian), payload = that header and the Ethernet frame. Frames are handled as spans of the buffer they came in, so
a run of neighbours that go the same way is sent on without being copied or looked at again.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

HEADER = struct.Struct("!II")
MAX_PAYLOAD = 4096 + 65536
"""QEMU's NET_BUFSIZE: a longer frame is a stream out of step."""
ETHERNET_HEADER = 14
IPV4, ARP, IPV6, VLAN = 0x0800, 0x0806, 0x86DD, 0x8100
TCP, SYN = 6, 0x02
NEEDS_CHECKSUM = 0x01
"""VIRTIO_NET_HDR_F_NEEDS_CSUM, in the first byte of the virtio-net header."""
NO_TYPE = -1
"""In place of an Ethernet type: the frame is too short to have one."""

Mode = Literal["hold", "block", "allow"]


class Way(Enum):
    """Where a frame the guest sent goes."""

    COMPARE = "compare"
    HOLD = "hold"
    OPEN = "open"
    """Held as well, and worth a checkpoint at once: the frame opens a TCP connection."""
    PASS = "pass"
    DROP = "drop"


class FramingError(Exception):
    """The stream is out of step; nothing after this point can be understood."""


def way_of(ethertype: int, mode: Mode) -> Way:
    """Untagged IPv4 is compared. ARP alone may not be blocked: without it no IPv4 flows."""
    if ethertype == IPV4:
        return Way.COMPARE
    if mode == "allow":
        # safety: the operator chose that these leave uncompared (status warns): after a failover the other side may
        # have seen packets that the surviving copy never sent.
        return Way.PASS
    if mode == "block" and ethertype != ARP:
        return Way.DROP
    return Way.HOLD


def tcp_header(buffer: bytearray, ip: int, end: int) -> int:
    """Where the TCP header of the IPv4 packet at ``ip`` begins; 0: it has none, or not a whole one."""
    if end - ip < 40 or buffer[ip + 9] != TCP or buffer[ip + 7] or buffer[ip + 6] & 0x1F:
        return 0
    tcp = ip + 4 * (buffer[ip] & 0x0F)
    return tcp if tcp + 20 <= end else 0


def opens_connection(buffer: bytearray, ip: int, end: int) -> bool:
    """Whether the IPv4 packet at ``ip`` is a TCP segment with SYN.

    The two copies choose different initial sequence numbers, so such a frame is released by a checkpoint only: after it
    the secondary has the primary's numbers, and the connection lives on whichever copy goes on, also after a second
    failover. (QEMU's filter-rewriter translates instead; the next secondary's rewriter knows nothing of the offset.)
    """
    tcp = tcp_header(buffer, ip, end)
    return bool(tcp and buffer[tcp + 13] & SYN)


def flow_key(buffer: bytearray, ip: int, tcp: int) -> bytes:
    """The connection a segment belongs to: source, destination, both ports."""
    if tcp - ip == 20:
        return bytes(buffer[ip + 12 : ip + 24])
    return bytes(buffer[ip + 12 : ip + 20]) + bytes(buffer[tcp : tcp + 4])


def sequence_end(buffer: bytearray, ip: int, tcp: int, end: int, sequence: int, offset: int) -> int:
    """The sequence number after the segment's payload (a FIN not counted); ``offset``: the header's length byte.

    The IP header says how long the packet is: a short frame may be padded. (0: longer than it can say.)
    """
    total = buffer[ip + 2] << 8 | buffer[ip + 3]
    stop = ip + total if total else end
    return (sequence + stop - tcp - 4 * (offset >> 4)) & 0xFFFFFFFF


def with_ack(frame: bytes, ack: int) -> bytes | None:
    """A copy of a TCP frame without payload that acknowledges ``ack`` instead; None if it carries payload.

    The checksum is kept right (RFC 1624), unless the virtio-net header says that it is still to be made: then the field
    holds a sum of addresses and lengths only.
    """
    _payload, vnet = HEADER.unpack_from(frame)
    ip = HEADER.size + vnet + ETHERNET_HEADER
    made = bytearray(frame)
    tcp = tcp_header(made, ip, len(made))
    if not tcp or sequence_end(made, ip, tcp, len(made), 0, made[tcp + 12]):
        return None
    old = made[tcp + 8 : tcp + 12]
    new = ack.to_bytes(4, "big")
    made[tcp + 8 : tcp + 12] = new
    if not (vnet and made[HEADER.size] & NEEDS_CHECKSUM):
        total = ~int.from_bytes(made[tcp + 16 : tcp + 18], "big") & 0xFFFF
        for at in (0, 2):
            total += (~int.from_bytes(old[at : at + 2], "big") & 0xFFFF) + int.from_bytes(new[at : at + 2], "big")
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        made[tcp + 16 : tcp + 18] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(made)


def walk(buffer: bytearray, position: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Each whole frame in ``buffer[position:length]``: begin, end, and where its IPv4 and TCP headers begin (0: none).

    Raises FramingError.
    """
    header_size, unpack = HEADER.size, HEADER.unpack_from
    while length - position >= header_size:
        payload, vnet = unpack(buffer, position)
        if payload > MAX_PAYLOAD or vnet > payload:
            raise FramingError(f"a frame of {payload} bytes with a header of {vnet}")
        end = position + header_size + payload
        if end > length:
            return
        ip = position + header_size + vnet + ETHERNET_HEADER
        tcp = 0
        if ip < end and buffer[ip - 2] == 8 and buffer[ip - 1] == 0:
            tcp = tcp_header(buffer, ip, end)
        yield position, end, ip, tcp
        position = end


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring frames that go the same way: bytes ``start`` to ``end`` of the buffer."""

    way: Way
    start: int
    end: int
    frames: int


def split(buffer: bytearray, length: int, mode: Mode) -> tuple[list[Run], int]:
    """The runs of whole frames in the first ``length`` bytes, and how many bytes they are. Raises FramingError."""
    runs: list[Run] = []
    position = run_start = run_frames = 0
    run_way: Way | None = None
    ways: dict[int, Way] = {IPV4: Way.COMPARE}
    header_size, unpack = HEADER.size, HEADER.unpack_from
    while length - position >= header_size:
        payload, vnet = unpack(buffer, position)
        if payload > MAX_PAYLOAD or vnet > payload:
            raise FramingError(f"a frame of {payload} bytes with a header of {vnet}")
        end = position + header_size + payload
        if end > length:
            break
        kind = position + header_size + vnet + 12
        ethertype = buffer[kind] << 8 | buffer[kind + 1] if payload - vnet >= ETHERNET_HEADER else NO_TYPE
        way = ways.get(ethertype) or ways.setdefault(ethertype, way_of(ethertype, mode))
        if ethertype == IPV4 and opens_connection(buffer, kind + 2, end):
            way = Way.OPEN
        if way is not run_way:
            if run_way is not None:
                runs.append(Run(run_way, run_start, position, run_frames))
            run_way, run_start, run_frames = way, position, 0
        run_frames += 1
        position = end
    if run_way is not None:
        runs.append(Run(run_way, run_start, position, run_frames))
    return runs, position
