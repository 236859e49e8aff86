"""Reads the ledger off a guest's disk image while the VM is off, and compares it with what was acknowledged."""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ftkvm.lab import datastore, names
from ftkvm.lab.base import LabHost
from ftkvm.lab.client import LEDGER, ask, text_of

SECTOR = 512
BLOCK_SECTORS = 128
SPAN = 20_000
"""Clients that come one after another begin their numbers this far apart."""

_HEAD = struct.Struct("<8sQII")


@dataclass(frozen=True)
class Entry:
    """A valid record found on a disk."""

    number: int
    times: int
    """How often this number was written: more than once means that a request was executed twice."""
    text: str


@dataclass(frozen=True)
class Verdict:
    """The comparison of a disk with what a client was told."""

    acknowledged: int
    on_disk: int
    lost: tuple[int, ...]
    """Acknowledged, but not on the disk."""
    doubled: tuple[int, ...]
    wrong: tuple[int, ...]
    """On the disk with another text than was sent."""

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def parse(raw: bytes, first: int = 0) -> dict[int, Entry]:
    """The valid records in raw sectors, the first of which is sector ``first``."""
    found = {}
    for at in range(0, len(raw) - SECTOR + 1, SECTOR):
        sector = raw[at : at + SECTOR]
        magic, number, times, length = _HEAD.unpack_from(sector)
        (crc,) = struct.unpack_from("<I", sector, SECTOR - 4)
        if magic == b"FTLEDGER" and number == first + at // SECTOR and crc == zlib.crc32(sector[:-4]):
            text = sector[_HEAD.size : _HEAD.size + length].decode(errors="replace")
            found[number] = Entry(number, times, text)
    return found


def read_disk(host: LabHost, image: str, first: int, end: int) -> dict[int, Entry]:
    """The records in sectors ``first`` to ``end`` of an image chain, read on a host (its paths are the host's).

    Read in blocks: sector by sector through the datastore takes seconds.
    """
    name = f"ledger-{host.name}.raw"
    skip = first // BLOCK_SECTORS
    try:
        host.run(
            [
                "qemu-img",
                "dd",
                "-U",
                "-O",
                "raw",
                f"if={image}",
                f"of={names.DATASTORE_MOUNT}/{name}",
                f"bs={SECTOR * BLOCK_SECTORS}",
                f"skip={skip}",
                f"count={end // BLOCK_SECTORS + 1}",  # from the start of the disk, unlike dd's
            ],
            timeout_s=120,
        )
        return parse(datastore.of_lab().read(name).get(name, b""), skip * BLOCK_SECTORS)
    finally:
        datastore.of_lab().remove(name)


def verify(host: LabHost, image: str, acknowledged: Iterable[int]) -> Verdict:
    """Compares an image chain with the acknowledged numbers. The VM must be off: else the end may be missing."""
    told = sorted(set(acknowledged))
    found = read_disk(host, image, min(told, default=0), max(told, default=0) + 1000)
    entries = {n: e for n, e in found.items() if told and n >= told[0]}  # an earlier client's are not ours to judge
    return Verdict(
        acknowledged=len(told),
        on_disk=len(entries),
        lost=tuple(n for n in told if n not in entries),
        doubled=tuple(n for n, e in entries.items() if e.times > 1),
        wrong=tuple(n for n, e in entries.items() if e.text != text_of(n)),
    )


def next_free(address: str) -> int:
    """The first number of a span that no client before has used (asked of the guest). Raises OSError."""
    first = 1
    while not ask(address, LEDGER, f"READ {first}", 30).startswith("NONE"):
        first += SPAN
    return first


def image_check(host: LabHost, image: str) -> str:
    """``qemu-img check`` of an image; its words. FTKVM-709 if it finds anything wrong."""
    return host.run(["qemu-img", "check", image], timeout_s=120)
