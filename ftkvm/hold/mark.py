"""A frame of the proxy's own that colo-compare lets out at the next checkpoint, and not before (see ``acks``). Pure.

It is an untagged IPv4 packet of a protocol for experiments (RFC 3692: 253), from and to no address, on a connection
that no guest has. The guest never sees it, and it never leaves the proxy.
"""

from ftkvm.hold.frames import HEADER

VNET_HEADER = 12
_BODY = b"ftkvm hold mark "
_NUMBER_BYTES = 8
_IP = bytes([0x45, 0, 0, 20 + len(_BODY) + _NUMBER_BYTES, 0, 0, 0, 0, 1, 253]) + bytes(10)
_PAYLOAD = bytes(VNET_HEADER) + bytes(12) + b"\x08\x00" + _IP + _BODY
_PREFIX = HEADER.pack(len(_PAYLOAD) + _NUMBER_BYTES, VNET_HEADER) + _PAYLOAD
SIZE = len(_PREFIX) + _NUMBER_BYTES


def build(number: int) -> bytes:
    """The mark of one STOP, as QEMU takes it."""
    return _PREFIX + number.to_bytes(_NUMBER_BYTES, "big")


def number_of(buffer: bytearray, start: int, end: int) -> int | None:
    """Which mark the frame in ``buffer[start:end]`` is; None: it is none."""
    if end - start != SIZE or not buffer.startswith(_PREFIX, start):
        return None
    return int.from_bytes(buffer[end - _NUMBER_BYTES : end], "big")
