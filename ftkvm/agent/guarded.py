"""Whether this host may take a VM now: its HA heartbeat is on the datastore, and it would stop the VM in time."""

from typing import Protocol, cast

from ..catalogue import FtkvmError
from .context import AgentContext


class HasGuard(Protocol):
    """What is needed of the HA part."""

    @property
    def guarded(self) -> bool: ...


def require_guard(ctx: AgentContext, vm: str) -> None:
    """Refuse while HA could not stop the VM in time.

    safety: others count a host's VMs as ended some seconds after its last heartbeat on the datastore, or when its
    heartbeat names a later boot. A VM, or a copy of one, that begins before this boot's first heartbeat was written, or
    later than this host looks after that, would not be.

    :raises FtkvmError: FTKVM-622
    """
    guard = cast(HasGuard | None, ctx.extras.get("ha"))
    if guard is not None and not guard.guarded:
        raise FtkvmError("FTKVM-622", vm=vm, host=ctx.host)
