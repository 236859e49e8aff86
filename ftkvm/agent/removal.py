"""Taking a host out that does not answer: by the operator's word that it is off, unless its heartbeat moves."""

import time

from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha import documents
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.storage import bounded
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.model import Heartbeat

_WATCH_S = 3.0
_LOOK_S = 0.25


def last_boot(ctx: AgentContext, host: str) -> str:
    """Which boot of a silent host is over: that of its last heartbeat on the datastore; empty if it never wrote one.

    safety: what that boot ran may be started elsewhere from then on. So its heartbeat is watched for some intervals: a
    host that writes it is not off, it is cut off, and its VMs run.

    :raises FtkvmError: FTKVM-264 its heartbeat moves, FTKVM-305 it is not understood, FTKVM-30x
    """
    before = _heartbeat(ctx, host)
    if before is None:
        return ""
    deadline = time.monotonic() + _WATCH_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        if _heartbeat(ctx, host) != before:
            raise FtkvmError("FTKVM-264", host=host)
    return before.boot_id


def _heartbeat(ctx: AgentContext, host: str) -> Heartbeat | None:
    path = f"hosts/{host}/ha.json"
    document = bounded(ctx, lambda: ctx.datastore.read_json(path), path)
    return understood(path, document, documents.heartbeat) if document is not None else None
