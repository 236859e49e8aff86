"""Where a test can end or hold the agent in the middle of an operation: after each step of its plan."""

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from .context import AgentContext

log = logging.getLogger(__name__)

FAULT_POINT = "stop-after-step"
WAIT_POINT = "wait-after-step"
WAIT_POINT_S = 60.0


def fault_point(ctx: AgentContext, step: str) -> None:
    """For tests of interruption: root may leave a step's name in /run/ftkvm/stop-after-step; the agent dies there."""
    path: Path = ctx.config.paths.run / FAULT_POINT
    with contextlib.suppress(OSError):
        if path.read_text().strip() == step:
            path.unlink()
            log.warning("fault point: killed after step %s", step)
            os.kill(os.getpid(), signal.SIGKILL)
    _wait_point(ctx.config.paths.run / WAIT_POINT, step)


def _wait_point(path: Path, step: str) -> None:
    """The same with a wait instead: until the file is gone, at most a minute; ``….reached`` tells that it waits."""
    with contextlib.suppress(OSError):
        if path.read_text().strip() != step:
            return
        reached = path.with_name(path.name + ".reached")
        reached.touch()
        log.warning("wait point: waiting after step %s", step)
        deadline = time.monotonic() + WAIT_POINT_S
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        reached.unlink(missing_ok=True)


__all__ = ["fault_point"]
