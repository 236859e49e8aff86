"""Who may ask an agent for what: certificates, their roles, and the reason why one is refused. Pure.

A certificate's role is the OU of its subject. Time here is the wall clock, since certificates are dated by it; nothing
that decides whether a host lives depends on this module (docs/security.md).
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from ftkvm.catalogue import FtkvmError

DAY_S = 86_400.0
ALARM_DAYS = 60
"""Days before its end from which on a certificate is complained about; ``host add`` renews one that is this old."""


class Role(StrEnum):
    """What a certificate's holder may do. The operators' roles include each other, in this order; HOST is apart."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"
    HOST = "host"


_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMINISTRATOR: 2}


@dataclass(frozen=True)
class Identity:
    """What a certificate of our authority says. Times are seconds of the wall clock (UTC); ``serial`` is hex."""

    name: str
    role: Role
    serial: str
    not_before: float
    not_after: float

    def days_left(self, now_s: float) -> int:
        """Whole days until it ends; negative when it has ended."""
        return int((self.not_after - now_s) // DAY_S)


def require_valid(identity: Identity, revoked: frozenset[str], now_s: float) -> None:
    """The certificate counts now.

    :raises FtkvmError: FTKVM-322 expired (or not valid yet), FTKVM-323 revoked
    """
    if identity.serial in revoked:
        raise FtkvmError("FTKVM-323", who=identity.name, role=identity.role, serial=identity.serial)
    if not identity.not_before <= now_s < identity.not_after:
        ended = int((now_s - identity.not_after) // DAY_S)
        when = f"ended {ended} days ago" if now_s >= identity.not_after else "begins in the future"
        raise FtkvmError("FTKVM-322", who=identity.name, role=identity.role, when=when)


_OPERATORS = re.compile(r"/v1/vms(/.*)?|/v1/hosts/[^/]+/maintenance")
_VIEWERS_POST = re.compile(r"/v1/cluster/(what-if|upgrade-room)")
_BETWEEN_HOSTS = re.compile(r"/v1/(local|peer)(/.*)?")


def needed_role(method: str, path: str) -> Role:
    """The least role that may do this. What is not known needs an administrator.

    Agents forward what an operator asked of them to the host it concerns, by paths of their own: those, and with them
    the secondaries, no operator addresses directly (OP-04). Reading them changes nothing.
    """
    reading = method in ("GET", "HEAD")
    if _BETWEEN_HOSTS.fullmatch(path):
        return Role.ADMINISTRATOR if reading else Role.HOST
    if reading or _VIEWERS_POST.fullmatch(path):
        return Role.VIEWER
    return Role.OPERATOR if _OPERATORS.fullmatch(path) else Role.ADMINISTRATOR


def may(role: Role, method: str, path: str) -> bool:
    """Whether a role allows it: a host reads everything and uses what is between hosts, nothing else."""
    needed = needed_role(method, path)
    if role is Role.HOST:
        return needed is Role.HOST or method in ("GET", "HEAD")
    return needed is not Role.HOST and _RANK[role] >= _RANK[needed]


def require_may(identity: Identity, method: str, path: str) -> None:
    """:raises FtkvmError: FTKVM-325"""
    if not may(identity.role, method, path):
        needed = needed_role(method, path)
        raise FtkvmError("FTKVM-325", who=identity.name, role=identity.role, what=f"{method} {path}", needed=needed)
