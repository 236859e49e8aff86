"""Whether another host is reached over the FT network, as its pairs would (FT-20), and with frames of the full size."""

import logging
import socket
from collections.abc import Collection
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial

from ..adapters import host_view, pings
from ..catalogue import FtkvmError
from .context import AgentContext

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 1.0


def unreached(ctx: AgentContext, host: str) -> FtkvmError | None:
    """FTKVM-405 if ``host`` is not reached from our FT address at its FT address; a connection is made and closed.

    FTKVM-750 if it is, and full frames get lost on the way: a pair would be connected, and stand still at once.
    """
    entry = ctx.cluster.host(host)
    try:
        socket.create_connection((entry.ft, entry.api_port), CONNECT_TIMEOUT_S, (ctx.config.ft, 0)).close()
    except OSError as error:
        return FtkvmError("FTKVM-405", host=host, address=entry.ft, detail=str(error) or type(error).__name__)
    if host in frames_lost(ctx, "ft", [host]):
        return FtkvmError("FTKVM-750", host=ctx.host, other=host, network="ft", mtu=_mtu(ctx.config.ft))
    return None


def frames_lost(ctx: AgentContext, network: str, hosts: Collection[str]) -> frozenset[str]:
    """Those of ``hosts`` that answer on the network, but not to a frame as large as our NIC's MTU; tried for 0.8 s."""
    source = str(getattr(ctx.config, network))
    mtu = _mtu(source)
    addresses = {str(getattr(ctx.cluster.host(host), network)): host for host in hosts}
    if not mtu:
        return frozenset()  # no NIC has our address: FTKVM-227 tells
    try:
        return frozenset(addresses[address] for address in pings.stuck(source, addresses, mtu))
    except OSError as error:
        log.warning("frames of the %s network were not tried: %s", network, error)
        return frozenset()


def _mtu(address: str) -> int:
    """Of the NIC that has it, in bytes; 0 if none has."""
    link = host_view.links({"it": address}).get("it")
    return int(link["mtu"]) if link is not None else 0


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
