"""The cluster's beat keys: one that beats are signed with, and while it is changed a second one that counts as well.

A host that was removed knows the key. It is changed in three steps, each taken by *every* host before the next begins
(``ftkvm/cli/beat_keys.py`` goes them), so that at any moment each host accepts what each other one signs:

    number % 3   signs with   accepts besides
    0            old          -                everything is as always
    1            old          new              all accept the new key; nobody uses it
    2            new          old              all use the new key; beats under way still count
    0            new          -                the old key is worth nothing

The number only grows. Standard library only: the keeper uses it.
"""

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ftkvm.keeper import beat as codec

LEAST_BYTES = 32


@dataclass(frozen=True)
class BeatKeys:
    """One state of the keys. They are in no ``repr``, so in no log."""

    number: int
    signing: bytes = field(repr=False)
    accepted: bytes | None = field(default=None, repr=False)
    """Counts besides; None: only the one that is signed with."""

    def __post_init__(self) -> None:
        """:raises ValueError: not one of the states above"""
        for key in self.all():
            if len(key) < LEAST_BYTES:
                raise ValueError(f"a beat key of fewer than {LEAST_BYTES} bytes")
        if self.number < 0 or (self.accepted is None) != self.settled or self.accepted == self.signing:
            raise ValueError(f"not the keys of number {self.number}")

    @classmethod
    def parse(cls, text: str) -> "BeatKeys":
        """The keys in a file's text. One that was never changed is the key alone, as ever.

        :raises ValueError: there are none in it; an empty one would be a key that everybody knows
        """
        lines = text.split("\n")
        if not lines[0].startswith("number "):
            return cls(0, bytes.fromhex(text.strip()))
        if lines[-1]:
            raise ValueError("its last line has no end")
        named = dict(line.split(" ") for line in lines[:-1])
        if not {"number", "sign"} <= set(named) <= {"number", "sign", "accept"} or len(named) != len(lines) - 1:
            raise ValueError("it has other lines than number, sign and accept")
        accepted = bytes.fromhex(named["accept"]) if "accept" in named else None
        return cls(int(named["number"]), bytes.fromhex(named["sign"]), accepted)

    def text(self) -> str:
        """The file's text; the same keys give the same."""
        if not self.number:
            return f"{self.signing.hex()}\n"
        more = f"accept {self.accepted.hex()}\n" if self.accepted is not None else ""
        return f"number {self.number}\nsign {self.signing.hex()}\n{more}"

    @property
    def settled(self) -> bool:
        """No change is under way."""
        return self.number % 3 == 0

    def all(self) -> Iterator[bytes]:
        """Every key that counts, the one that is signed with first."""
        yield self.signing
        if self.accepted is not None:
            yield self.accepted

    # the three steps

    def offered(self, new: bytes) -> "BeatKeys":
        """The new key counts besides."""
        return BeatKeys(self.number + 1, self.signing, new)

    def advanced(self) -> "BeatKeys":
        """The next step of a change under way."""
        if self.number % 3 == 1 and self.accepted is not None:
            return BeatKeys(self.number + 1, self.accepted, self.signing)
        if self.number % 3 == 2:
            return BeatKeys(self.number + 1, self.signing)
        raise ValueError("no change is under way")

    def require_after(self, before: "BeatKeys") -> bool:
        """Whether these are newer than ``before``; the same ones are not, and are fine.

        safety: whoever still has those of before must be understood, and understand. So keys that are more than a step
        ahead are not taken, whatever is told from outside.

        :raises ValueError: older ones, others of the same number, or more than a step ahead
        """
        if self.number < before.number:
            raise ValueError(f"number {self.number} is older than {before.number}, which is in use")
        if self.number == before.number and not hmac.compare_digest(self.text(), before.text()):
            raise ValueError(f"they are others than those in use, of the same number {self.number}")
        if self.signing not in before.all() or before.signing not in self.all():
            raise ValueError(f"number {self.number} is more than a step after {before.number}, which is in use")
        return self.number > before.number

    # beats

    def encode(self, seq: int, echo: int, raw_body: bytes, magic: bytes = codec.MAGIC) -> bytes:
        """A beat signed with the key in use."""
        return codec.encode(self.signing, seq, echo, raw_body, magic)

    def decode(self, data: bytes, magic: bytes = codec.MAGIC) -> codec.Beat | None:
        """The beat if it is authentic by any key that counts, else None."""
        beat = codec.decode(self.signing, data, magic)
        if beat is None and self.accepted is not None:
            beat = codec.decode(self.accepted, data, magic)
        return beat


def load(path: Path) -> BeatKeys:
    """The keys in a host's file.

    :raises OSError, ValueError: it is not there, or damaged; the message of the latter has its name
    """
    try:
        return BeatKeys.parse(path.read_text())
    except ValueError as error:
        detail = "it is empty" if not path.stat().st_size else str(error)
        raise ValueError(f"{path}: {detail}") from None
