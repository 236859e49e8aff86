"""Versions of QEMU and libvirt."""

from collections.abc import Iterable


def dotted(version: Iterable[int]) -> str:
    """A version as people write it."""
    return ".".join(str(part) for part in version)
