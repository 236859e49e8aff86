"""Datastore calls with a bounded wait, and what state the datastore is in for this host."""

from collections.abc import Callable
from typing import TypeVar

from ftkvm.agent.context import AgentContext
from ftkvm.ports import DatastoreError, DatastoreUnreachable, WorkTimeout

T = TypeVar("T")
STORAGE_TIMEOUT_S = 4.0
PAIR_TIMEOUT_S = 10.0


def bounded(ctx: AgentContext, work: Callable[[], T], what: str, timeout_s: float = STORAGE_TIMEOUT_S) -> T:
    """Run datastore work in a worker.

    :raises DatastoreUnreachable: FTKVM-306, it has not ended; a write may still take effect
    """
    try:
        return ctx.workers.run_alone(work, timeout_s, f"datastore: {what}")
    except WorkTimeout as error:
        raise DatastoreUnreachable("FTKVM-306", host=ctx.host, path=what) from error


def patiently(ctx: AgentContext, work: Callable[[], T], what: str) -> T:
    """Run work on a pair's documents or images in a worker: an operation under way waits longer than who only asks.

    :raises WorkTimeout: it has not ended; it may still take effect
    """
    return ctx.workers.run(work, PAIR_TIMEOUT_S, what)


def require_writable(ctx: AgentContext) -> None:
    """Prove that this host can write to the datastore now.

    :raises DatastoreError: FTKVM-301 … 306, what is wrong
    """
    path = f"hosts/{ctx.host}/probe"
    bounded(ctx, lambda: ctx.datastore.replace(path, {"boot_id": ctx.boot_id}), path)


def state_word(error: DatastoreError | None) -> str:
    """One word for what :func:`require_writable` found: ok, hung, not mounted, failed, read-only, full."""
    words = {"FTKVM-301": "not mounted", "FTKVM-303": "read-only", "FTKVM-304": "full", "FTKVM-306": "hung"}
    return "ok" if error is None else words.get(error.code, "failed")
