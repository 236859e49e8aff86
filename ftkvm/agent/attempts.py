"""How often HA has tried in vain to start a VM: ``restarts/<uuid>.json``, noted by the host that tried (HA-02).

A coordinator that comes later goes on with the count. It holds while the VM's newest owner file is the one that was
the newest when the last attempt had failed, or the claim of HA's next attempt: a start that works removes it. Any other
start or stop since then is a later word.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.storage import bounded
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.model import Owner, OwnerWhy
from ftkvm.core.ha.restart import counts
from ftkvm.ports import Datastore, Json

log = logging.getLogger(__name__)
DIRECTORY = "restarts"
_CLAIM_AND_RELEASE = 2


@dataclass(frozen=True)
class Failed:
    """``attempts`` failed; the newest owner file then had the number ``owner``."""

    attempts: int
    owner: int

    def holds(self, newest: Owner) -> bool:
        """Whether nothing but a further attempt has come after it."""
        next_try = newest.number == self.owner + 1 and newest.why is OwnerWhy.RESTARTED
        return newest.number == self.owner or next_try


def path_of(uuid: str) -> str:
    """The file that holds a VM's count."""
    return f"{DIRECTORY}/{uuid}.json"


def read_failed(datastore: Datastore, uuid: str) -> Failed | None:
    """What was noted, if anything. Blocks.

    :raises CorruptFile: FTKVM-305
    """
    document = datastore.read_json(path_of(uuid))
    return understood(path_of(uuid), document, _failed) if document is not None else None


def note_failed(
    ctx: AgentContext, uuid: str, attempt: int, error: FtkvmError, *, asked: int, newest: Callable[[], int]
) -> None:
    """The start that HA asked for here has failed as its ``attempt``-th one, if that is one that counts.

    ``asked``: the owner number that it named; ``newest``: finds that of the newest owner file. If that is neither
    this start's claim nor its release, others have gone on meanwhile. A note that cannot be written is lost: the
    coordinator that asked hears of the failure anyway.
    """
    if not attempt or not counts(error.code):
        return
    try:
        owner = newest()
        if owner > asked + _CLAIM_AND_RELEASE:
            return
        document: Json = {"attempts": attempt, "owner": owner, "host": ctx.host, "why": str(error), "at": time.time()}
        bounded(ctx, lambda: ctx.datastore.replace(path_of(uuid), document), path_of(uuid))
    except FtkvmError as lost:
        log.warning("%s: %s; attempt %d is not noted", uuid, lost, attempt)


def forget_failed(ctx: AgentContext, uuid: str) -> None:
    """The VM runs; what failed before counts no more."""
    try:
        bounded(ctx, lambda: ctx.datastore.remove(path_of(uuid)), path_of(uuid))
    except FtkvmError as error:
        log.info("%s: %s; the note of its failed attempts stays", uuid, error)


def _failed(document: Json) -> Failed:
    return Failed(int(document["attempts"]), int(document["owner"]))
