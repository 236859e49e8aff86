"""Whether another host is reached over the FT network, as its pairs would (FT-20)."""

import socket
from collections.abc import Collection
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial

from ..catalogue import FtkvmError
from .context import AgentContext

CONNECT_TIMEOUT_S = 1.0


def unreached(ctx: AgentContext, host: str) -> FtkvmError | None:
    """FTKVM-405 if ``host`` is not reached from our FT address at its FT address; a connection is made and closed."""
    entry = ctx.cluster.host(host)
    try:
        socket.create_connection((entry.ft, entry.api_port), CONNECT_TIMEOUT_S, (ctx.config.ft, 0)).close()
    except OSError as error:
        return FtkvmError("FTKVM-405", host=host, address=entry.ft, detail=str(error) or type(error).__name__)
    return None


def reached(ctx: AgentContext, hosts: Collection[str]) -> frozenset[str]:
    """Those of ``hosts`` that are reached; all are tried at once, so it takes no longer than one."""
    asked = {host: ctx.workers.submit(partial(unreached, ctx, host), f"FT network to {host}") for host in hosts}
    found = set()
    for host, future in asked.items():
        try:
            if future.result(2 * CONNECT_TIMEOUT_S) is None:
                found.add(host)
        except (FutureTimeout, FtkvmError):  # it does not answer, or has left the cluster
            continue
    return frozenset(found)
