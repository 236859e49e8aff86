"""Work that may hang, in daemon threads with a bounded number and a bounded wait.

A thread in a hung system call (storage, a dead socket) cannot be ended, and a pool would wait for it when the process
ends. So: one daemon thread per piece of work, no more than ``limit`` at once, and the caller waits only so long.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from ftkvm.ports import WorkTimeout

T = TypeVar("T")
log = logging.getLogger(__name__)


class Workers:
    """Starts work in threads of its own."""

    def __init__(self, limit: int = 128) -> None:
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Any]] = {}

    def submit(self, work: Callable[[], T], name: str) -> Future[T]:
        """Start ``work`` in a thread of its own; exceptions go into the future.

        :raises WorkTimeout: ``limit`` pieces of work are under way and none ended within a second
        """
        if not self._slots.acquire(timeout=1.0):
            raise WorkTimeout("FTKVM-902", what=name, seconds="1 (no free worker)")
        future: Future[T] = Future()
        threading.Thread(target=self._run, args=(work, future), name=f"w:{name}"[:40], daemon=True).start()
        return future

    def run(self, work: Callable[[], T], timeout_s: float, name: str) -> T:
        """Run ``work`` in a worker and wait for it at most ``timeout_s``.

        :raises WorkTimeout: it has not ended; it may still take effect: query, then go on
        """
        future = self.submit(work, name)
        try:
            return future.result(timeout_s)
        except FutureTimeout as error:
            if future.done():  # the work itself raised a TimeoutError
                raise
            raise WorkTimeout("FTKVM-902", what=name, seconds=timeout_s) from error

    def run_alone(self, work: Callable[[], T], timeout_s: float, name: str) -> T:
        """As :meth:`run`, but never two of one ``name`` at once: storage that hangs must not eat up all workers.

        :raises WorkTimeout: it, or an earlier one of that name, has not ended
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                before = self._under_way.get(name)
                if before is None or before.done():
                    mine = self.submit(work, name)
                    self._under_way[name] = mine
                    break
            wait([before], max(0.0, deadline - time.monotonic()))
            if not before.done():
                raise WorkTimeout("FTKVM-902", what=name, seconds=timeout_s)
        try:
            return mine.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout as error:
            if mine.done():
                raise
            raise WorkTimeout("FTKVM-902", what=name, seconds=timeout_s) from error

    def _run(self, work: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_running_or_notify_cancel()
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._slots.release()
