"""Is this file a picture? Reads PNG as its specification says, without help of what wrote it."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        assert zlib.crc32(kind + body) == crc, f"chunk {kind!r} is damaged"
        yield kind, body
        at += 12 + length


def measure(path: Path) -> tuple[int, int, int]:
    """Width, height, and how many different bytes its pixels have (an empty screen has one or two).

    :raises AssertionError: not a whole PNG picture
    """
    data = path.read_bytes()
    assert data.startswith(_SIGNATURE), "not PNG"
    chunks = list(_chunks(data))
    assert (chunks[0][0], chunks[-1][0]) == (b"IHDR", b"IEND")
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[0][1])
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    row = 1 + (width * depth * _CHANNELS[colour] + 7) // 8
    assert len(pixels) == row * height, "rows are missing"
    return width, height, len(set(pixels))
