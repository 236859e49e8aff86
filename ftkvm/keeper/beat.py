"""The beat: one authenticated UDP datagram, and the ICMP echo that goes beside it. Pure codecs.

    4 s   magic "FKB1"
    8 B   seq       grows with every beat of this host, over restarts too (see ``first_seq``)
    8 B   echo      the newest seq received from the addressee, 0 for none
    …     body      JSON: who, to whom, boot id, datastore, the pairs the two hosts share
    32 B  HMAC-SHA256 over all of it with the cluster's beat key (``keys.py``)

The body changes only when something happens, so both ends keep the encoded one: a steady beat costs a pack and an HMAC.
"""

import hmac
import json
import struct
from dataclasses import dataclass
from typing import Any

from ftkvm.keeper.model import DatastoreState, PairSpec, Said

MAGIC = b"FKB1"
HEADER = struct.Struct("!4sQQ")
MAC_BYTES = 32
MAX_BEAT_BYTES = 60_000
ICMP = struct.Struct("!BBHHH")
PING_BODY = struct.Struct("!8sQ")
ECHO_REQUEST, ECHO_REPLY = 8, 0


@dataclass(frozen=True)
class Body:
    """What a beat says, apart from its numbers."""

    host: str
    to: str
    boot_id: str
    datastore: DatastoreState
    pairs: dict[str, Said]

    def said(self, uuid: str) -> Said:
        """What it says about one pair; a pair it does not name is one its sender does not know."""
        return self.pairs.get(uuid) or Said(self.host, self.boot_id, self.datastore)


@dataclass(frozen=True)
class Beat:
    seq: int
    echo: int
    raw_body: bytes


def first_seq(wall_ms: int, random_20_bits: int) -> int:
    """A start above every seq an earlier keeper of this host used: it sends less than 4 million beats a second."""
    return (wall_ms << 22) | random_20_bits


def encode_body(host: str, to: str, boot_id: str, datastore: DatastoreState, pairs: list[PairSpec]) -> bytes:
    said = {p.uuid: [p.epoch, p.role, p.qemu, p.won_epoch] for p in pairs}
    # Beside the pairs, not among them: a keeper of the version before takes four values for a pair and no more.
    intervals = {p.uuid: p.interval_ms for p in pairs if p.interval_ms is not None}
    doc = {"host": host, "to": to, "boot_id": boot_id, "datastore": datastore, "pairs": said, "intervals": intervals}
    body = json.dumps(doc, separators=(",", ":")).encode()
    if len(body) > MAX_BEAT_BYTES:
        raise ValueError(f"{len(pairs)} pairs with {to} do not fit into one beat")
    return body


def decode_body(raw: bytes) -> Body:
    """Raises ValueError on anything that is not a body (an authentic beat of another version, say)."""
    try:
        doc: dict[str, Any] = json.loads(raw)
        host, boot_id, datastore = doc["host"], doc["boot_id"], doc["datastore"]
        intervals = doc.get("intervals", {})
        pairs = {}
        for uuid, (epoch, role, qemu, won) in doc["pairs"].items():
            about = {"epoch": epoch, "role": role, "qemu": qemu, "won_epoch": won, "interval_ms": intervals.get(uuid)}
            pairs[uuid] = Said.from_json({"host": host, "boot_id": boot_id, "datastore": datastore, **about})
        return Body(host, doc["to"], boot_id, datastore, pairs)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a beat: {error!r}") from None


def encode(key: bytes, seq: int, echo: int, raw_body: bytes, magic: bytes = MAGIC) -> bytes:
    """A beat; ``magic`` tells the keepers' from the agents' (ftkvm.agent.ha.beats), which have another body."""
    data = HEADER.pack(magic, seq, echo) + raw_body
    return data + hmac.digest(key, data, "sha256")


def decode(key: bytes, data: bytes, magic: bytes = MAGIC) -> Beat | None:
    """The beat if it is authentic, else None."""
    if len(data) < HEADER.size + MAC_BYTES or not data.startswith(magic):
        return None
    if not hmac.compare_digest(hmac.digest(key, data[:-MAC_BYTES], "sha256"), data[-MAC_BYTES:]):
        return None
    _, seq, echo = HEADER.unpack_from(data)
    return Beat(seq, echo, data[HEADER.size : -MAC_BYTES])


def _checksum(data: bytes) -> int:
    even = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def encode_ping(ident: int, number: int, token: bytes, now_ms: int, size: int = 0) -> bytes:
    """An ICMP echo request that carries when it was sent (our monotonic clock) and a token nobody else knows.

    ``size``: bytes that it has at least, filled up with zeros.
    """
    body = PING_BODY.pack(token, now_ms).ljust(size - ICMP.size, b"\0")
    empty = ICMP.pack(ECHO_REQUEST, 0, 0, ident, number & 0xFFFF) + body
    return ICMP.pack(ECHO_REQUEST, 0, _checksum(empty), ident, number & 0xFFFF) + body


def decode_ping(packet: bytes, ident: int, token: bytes) -> int | None:
    """When the echo request was sent that this IPv4 packet answers, in ms; None if it is no answer to ours."""
    start = (packet[0] & 0xF) * 4 if packet else 0
    if len(packet) < start + ICMP.size + PING_BODY.size:
        return None
    kind, _, _, its_ident, _ = ICMP.unpack_from(packet, start)
    its_token, at_ms = PING_BODY.unpack_from(packet, start + ICMP.size)
    ours = kind == ECHO_REPLY and its_ident == ident and its_token == token
    return int(at_ms) if ours else None
