"""Bounded waiting of the plan that makes a secondary."""

import time
from collections.abc import Callable

from ftkvm.catalogue import FtkvmError


def await_done(
    vm: str, what: str, done: Callable[[], bool], timeout_s: float, interval_s: float, meanwhile: Callable[[], None]
) -> None:
    """Wait until ``done``; ``meanwhile`` is called after each look and may raise to give up.

    :raises FtkvmError: FTKVM-513, not within the time
    """
    deadline = time.monotonic() + timeout_s
    while not done():
        meanwhile()
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-513", vm=vm, what=what, seconds=round(timeout_s, 1))
        time.sleep(interval_s)


def require_short(vm: str, stopped_at: float, limit_s: float) -> None:
    """A VM that stands still since ``stopped_at`` (monotonic) may go on into lockstep.

    :raises FtkvmError: FTKVM-511, it has stood still for longer than the limit
    """
    if time.monotonic() - stopped_at > limit_s:
        raise FtkvmError("FTKVM-511", vm=vm, seconds=limit_s)
