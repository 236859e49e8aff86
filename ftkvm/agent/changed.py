"""A VM's settings were changed: the hosts that act by them are told, so that they read them now and not in a while."""

from concurrent.futures import TimeoutError as FutureTimeout
from typing import Protocol, cast

from ftkvm.agent.context import AgentContext
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import Json

_TELL_TIMEOUT_S = 2.0


class Reader(Protocol):
    """A part of the agent that acts by VMs' settings: ``ha``, ``vm_monitor``, ``pairs``."""

    def settings_changed(self, uuid: str) -> None:
        """They have been written; read them again now. Never waits."""
        ...


class HasStatus(Protocol):
    """What is asked of the HA part."""

    def status(self) -> Json: ...


def read_again(ctx: AgentContext, uuid: str) -> Json:
    """Have all parts of this agent read a VM's settings."""
    for name in ("ha", "vm_monitor", "pairs"):
        part = cast(Reader | None, ctx.extras.get(name))
        if part is not None:
            part.settings_changed(uuid)
    return {"host": ctx.host}


def coordinator(ctx: AgentContext) -> set[str]:
    """The host that restarts VMs, as this host knows it."""
    ha = cast(HasStatus | None, ctx.extras.get("ha"))
    known = (ha.status().get("status") or {}).get("coordinator") if ha is not None else None
    return {str(known)} if known else set()


def tell_hosts(ctx: AgentContext, uuid: str, hosts: set[str]) -> Json:
    """Tell these hosts, all at once: ``told``, and ``not_told``: those read the settings at their next look."""
    futures = {
        host: ctx.workers.submit(
            lambda host=host: ctx.peers.call(  # type: ignore[misc]
                host, "POST", f"/v1/local/vms/{uuid}/settings-changed", {}, _TELL_TIMEOUT_S
            ),
            f"tell {host}",
        )
        for host in sorted(hosts & set(ctx.cluster.hosts()))
    }
    told, missed = [], []
    for host, future in futures.items():
        try:
            future.result(2 * _TELL_TIMEOUT_S)
            told.append(host)
        except (FtkvmError, FutureTimeout):
            missed.append(host)
    return {"told": told, "not_told": missed}
