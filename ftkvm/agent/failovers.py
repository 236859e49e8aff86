"""Every failover of a VM, read from the histories on the datastore: it survives the hosts that wrote it (FT-23)."""

from ftkvm.agent.context import AgentContext
from ftkvm.agent.storage import bounded
from ftkvm.core.failovers import failovers
from ftkvm.ports import CorruptFile, Datastore, Json

_READ_S = 10.0
"""Two files of at most 4 MiB per host."""


def history_of(ctx: AgentContext, vm: str, uuid: str) -> Json:
    """A VM's failovers, oldest first, with what could not be read.

    :raises DatastoreError: FTKVM-301 … 306, the datastore does not answer
    """
    return bounded(ctx, lambda: read(ctx.datastore, vm, uuid), f"history of {vm}", _READ_S)


def read(datastore: Datastore, vm: str, uuid: str) -> Json:
    """As :func:`history_of`, in this thread. A damaged file stops only what is in it."""
    texts: dict[str, str] = {}
    unreadable: list[str] = []
    for name in datastore.list("history"):
        try:
            texts[name] = datastore.read_text(f"history/{name}") or ""
        except CorruptFile as error:
            unreadable.append(f"history/{name}: {error.text}")
    found, damaged = failovers(texts, vm, uuid)
    unreadable += [f"history/{name}: {lines} damaged lines" for name, lines in damaged.items()]
    return {"vm": vm, "uuid": uuid, "failovers": found, "unreadable": unreadable}
