"""The key of an epoch's channels, where QEMU reads it: a file in libvirt's own directory of the domain.

There QEMU may read under any user and AppArmor profile, and libvirt removes it with the domain. It is needed only while
the channels are opened, and taken away then. It means nothing after a power loss, when its QEMU is gone: no disk is
waited for while a pair is made.
"""

import secrets
from pathlib import Path

from ..adapters.local_file import replace_volatile
from ..engine.credentials import KEY_FILE, file_text


def new() -> str:
    """32 random bytes, hexadecimal."""
    return secrets.token_hex(32)


def place(directory: Path, key: str) -> None:
    """Write the key's file into ``directory``; the directory's owner, and nobody else, may read it."""
    replace_volatile(directory / KEY_FILE, file_text(key).encode(), like=directory)


def forget(directory: Path) -> None:
    """Take the file away, if it is there."""
    (directory / KEY_FILE).unlink(missing_ok=True)
