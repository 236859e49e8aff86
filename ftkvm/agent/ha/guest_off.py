"""Tells a guest that switched itself off from a QEMU that crashed, by libvirt's lifecycle events.

Off by the guest's own will is what is wanted: it stays off. A crash is not: HA starts the VM again.
"""

import logging
import subprocess
from collections.abc import Callable, Collection

log = logging.getLogger(__name__)
_SHUTDOWN_BY_HOST = 2  # VIR_DOMAIN_EVENT_SHUTDOWN_HOST: SIGTERM to QEMU, no will of the guest's
_STOPPED_SHUTDOWN = 0  # VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN
_KEPT = 500


def host_goes_down() -> bool:
    """Whether this host is shutting down: its guests are then asked to, and shall run again afterwards."""
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=2.0, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"


class GuestOff:
    """``stopping``: VMs that HA or somebody else on this host is ending now, whose end says nothing."""

    def __init__(self, switched_off: Callable[[str], None], stopping: Callable[[], Collection[str]]) -> None:
        self._switched_off = switched_off
        self._stopping = stopping
        self._shutdowns: dict[str, int] = {}

    def event(self, uuid: str, event: str, detail: int) -> None:
        """Take one lifecycle event in, in their order; ``switched_off(uuid)`` if it was the guest's own will."""
        if event in ("started", "resumed"):
            self._shutdowns.pop(uuid, None)
        elif event == "shutdown":
            if uuid in self._stopping():
                return
            self._shutdowns[uuid] = detail
            if len(self._shutdowns) > _KEPT:
                self._shutdowns.pop(next(iter(self._shutdowns)))
        elif event == "stopped":
            how = self._shutdowns.pop(uuid, None)
            if detail != _STOPPED_SHUTDOWN or how is None or how == _SHUTDOWN_BY_HOST or uuid in self._stopping():
                return
            self._switched_off(uuid)
