"""Carries the HA machine's actions out in workers, and brings their ends back: each once, in bounded time."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.model import Action, Ended, Result
from ftkvm.ports import PeerUnknown, WorkTimeout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """How an action is done. ``alone``: never two of that name at once; one that hangs must not pile up."""

    work: Callable[[], object]
    timeout_ms: int
    alone: str


@dataclass
class _UnderWay:
    action: Action
    job: Job
    began_ms: int
    future: Future[Any]
    told: bool = False


@dataclass(frozen=True)
class Done:
    """An end, and when the action was begun."""

    ended: Ended
    began_ms: int


class Doer:
    """``plan`` says how an action is done, ``wake`` is called (from a worker) when one has ended."""

    def __init__(self, plan: Callable[[Action], Job], wake: Callable[[], None], workers: Workers) -> None:
        self._plan = plan
        self._wake = wake
        self._workers = workers
        self._lock = threading.Lock()
        self._under_way: list[_UnderWay] = []
        self._refused: list[Done] = []

    def begin(self, action: Action, now: int) -> None:
        """Start an action; never waits for it."""
        job = self._plan(action)
        with self._lock:
            busy = any(each.job.alone == job.alone and not each.future.done() for each in self._under_way)
        if busy:
            error = FtkvmError("FTKVM-620", what=job.alone)
            self._refused.append(Done(Ended(action, Result.FAILED, None, error.code, str(error)), now))
            return
        try:
            future = self._workers.submit(job.work, f"ha: {job.alone}")
        except WorkTimeout as timeout:
            self._refused.append(Done(Ended(action, Result.FAILED, None, timeout.code, str(timeout)), now))
            return
        with self._lock:
            self._under_way.append(_UnderWay(action, job, now, future))
        future.add_done_callback(lambda _future: self._wake())

    def busy(self, alone: str) -> bool:
        """Whether work of that name is under way, also when its end was told as unknown already."""
        with self._lock:
            return any(each.job.alone == alone and not each.future.done() for each in self._under_way)

    def ends(self, now: int) -> list[Done]:
        """What ended, or has not in its time, since this was last asked. What ends after that is not told again."""
        found, self._refused = self._refused, []
        with self._lock:
            for each in self._under_way:
                if each.told:
                    continue
                if each.future.done():
                    each.told = True
                    found.append(Done(_ended(each.action, each.future), each.began_ms))
                elif now - each.began_ms > each.job.timeout_ms:
                    each.told = True
                    late = FtkvmError("FTKVM-902", what=each.job.alone, seconds=each.job.timeout_ms / 1000)
                    found.append(Done(Ended(each.action, Result.UNKNOWN, None, late.code, str(late)), each.began_ms))
            self._under_way = [each for each in self._under_way if not (each.told and each.future.done())]
        return found


def _ended(action: Action, future: "Future[Any]") -> Ended:
    error = future.exception()
    if error is None:
        return Ended(action, Result.OK, future.result())
    if isinstance(error, (WorkTimeout, PeerUnknown)):
        return Ended(action, Result.UNKNOWN, None, error.code, str(error))
    if isinstance(error, FtkvmError):
        return Ended(action, Result.FAILED, None, error.code, str(error))
    log.error("%s", action, exc_info=error)
    return Ended(action, Result.FAILED, None, "FTKVM-900", f"{type(error).__name__}: {error}")
