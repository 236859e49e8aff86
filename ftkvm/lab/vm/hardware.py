"""What of a host's hardware differs from the other hosts', from its next boot on.

``cpu``: a CPU of QEMU's (``EPYC``, ``max,-svm``), or features for or against the usual one (``-avx2``, ``+la57,-svm``).
``kernel``: more words for its kernel's command line. They belong here because the lab is also the boot loader, and
because ``clearcpuid=svm`` is the nearest thing to a firmware that keeps virtualisation off: an emulated CPU has no
MSR VM_CR (what is written to it is not there when it is read), while the kernel then hides the same flag.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names

_PLAIN = re.compile(r"[\w.,:=+ -]*")


@dataclass(frozen=True)
class Hardware:
    """Empty: as every host's."""

    cpu: str = ""
    kernel: str = ""

    def cpu_beside(self, usual: str) -> str:
        """What QEMU is told where the usual CPU would be ``usual``."""
        return f"{usual},{self.cpu}" if self.cpu.startswith(("+", "-")) else self.cpu or usual


PARTS = tuple(asdict(Hardware()))


def _file(host: str) -> Path:
    return names.HOSTS / host / "hardware.json"


def read(host: str) -> Hardware:
    """A host's; the usual one if nothing was said of it."""
    file = _file(host)
    return Hardware(**json.loads(file.read_text())) if file.exists() else Hardware()


def change(host: str, parts: Mapping[str, str]) -> Hardware:
    """Takes the named parts over and leaves the others; an empty one is the usual again.

    :raises FtkvmError: FTKVM-707, no such part; 749, QEMU would not take it for one word
    """
    for name, value in parts.items():
        if name not in PARTS:
            raise FtkvmError("FTKVM-707", what=name, kind="part of the hardware", known=", ".join(PARTS))
        if not _PLAIN.fullmatch(value) or (name == "cpu" and " " in value):
            raise FtkvmError("FTKVM-749", part=name, value=value)
    changed = replace(read(host), **parts)
    _file(host).write_text(json.dumps(asdict(changed)))
    return changed
