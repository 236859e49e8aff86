"""Versions of QEMU and libvirt."""

from collections.abc import Iterable

MINIMUM_QEMU = (11, 1, 0)
MINIMUM_LIBVIRT = (11, 0, 0)


def dotted(version: Iterable[int]) -> str:
    """A version as people write it."""
    return ".".join(str(part) for part in version)


_SERIES = {"ftkvm": 2, "QEMU": 2, "libvirt": 1}
"""How many of a version's leading numbers make its series. A QEMU's machine types come with each x.y."""


def alike(what: str, one: str, other: str) -> bool:
    """Whether hosts with these two versions can be in one cluster: they are of one series."""
    first, second = (version.split(".")[: _SERIES[what]] for version in (one, other))
    return first == second


def too_old(qemu: tuple[int, ...], libvirt: tuple[int, ...]) -> str | None:
    """The message's code if one of them is older than what the agent relies on: FTKVM-207 QEMU, FTKVM-208 libvirt."""
    if qemu < MINIMUM_QEMU:
        return "FTKVM-207"
    return "FTKVM-208" if libvirt < MINIMUM_LIBVIRT else None
