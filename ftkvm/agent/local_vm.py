"""One VM on this host, as the FT code sees it: its domain, its QEMU process, its monitors. Asks, never remembers."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.domains import Domains
from ..adapters.qemus import LastQemu
from ..adapters.qmp import Monitor, MonitorError, MonitorGone, MonitorTimeout
from ..core.facts import without_monitor
from ..core.pair import QemuState
from ..engine import graph
from ..engine.primary import HoldSockets
from ..engine.shape import Shape, parse_shape
from . import monitors
from .context import AgentContext

log = logging.getLogger(__name__)

PID_DIRECTORY = Path("/run/libvirt/qemu")
OBSERVE_TIMEOUT_S = 0.4


@dataclass(frozen=True)
class QemuView:
    """What QEMU said of itself at one moment."""

    state: QemuState
    colo_running: bool = False


class LocalVm:
    """The domain ``uuid`` on this host, and our own monitor in it."""

    def __init__(
        self,
        ctx: AgentContext,
        uuid: str,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._ctx = ctx
        self.domains = Domains(ctx.libvirt)
        self.uuid = uuid
        self.name = name
        self._heard = on_event
        self.job_error: str | None = None
        """Why the last block job of this QEMU that failed did (BLOCK_JOB_COMPLETED); libvirt does not pass it on."""
        self._on_closed = on_closed
        self._monitor: Monitor | None = None
        self._shape: Shape | None = None
        self._pid: int | None = None
        self._monitored_pid: int | None = None
        self.process = LastQemu(uuid)
        """The process that the monitor was last opened in."""
        self._connecting = threading.Lock()

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "BLOCK_JOB_COMPLETED" and event.get("data", {}).get("error"):
            self.job_error = str(event["data"]["error"])
        self._heard(event)

    # -- the process ---------------------------------------------------------------------------------------

    def pid(self) -> int | None:
        """QEMU's process id, proved by its command line; None when there is no such process."""
        if self._pid is not None and _is_qemu_of(self._pid, self.uuid):
            return self._pid
        try:
            candidate = int((PID_DIRECTORY / f"{self.name}.pid").read_text())
        except (OSError, ValueError):
            candidate = 0
        self._pid = candidate if candidate and _is_qemu_of(candidate, self.uuid) else _find_qemu(self.uuid)
        return self._pid

    def kill(self, timeout_s: float = 2.0) -> bool:
        """SIGKILL this VM's QEMU; True when it is gone, False when it still dies (a hung disk write holds it).

        safety: after the signal no instruction of QEMU runs any more; what may still reach the datastore is a write
        already handed to the kernel, into this copy's own overlay.
        """
        pid = self.pid()
        if pid is None:
            return True
        log.warning("%s: SIGKILL to QEMU %d", self.name, pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not _is_qemu_of(pid, self.uuid):
                self.drop_monitor()
                return True
            time.sleep(0.005)
        return False

    # -- monitors ------------------------------------------------------------------------------------------

    def directory(self) -> Path:
        """libvirt's directory of this domain (our sockets lie there)."""
        listing = sorted(monitors.LIBVIRT_STATE.glob(f"domain-*-{self.name[:20]}"))
        if len(listing) == 1:
            return listing[0]
        return monitors.domain_directory(self.domains.domain_id(self.uuid), self.name)

    def monitor(self, *, create: bool = False) -> Monitor:
        """The open FT monitor; with ``create`` it is added to the domain first when it is not there.

        :raises MonitorGone, MonitorTimeout: no QEMU, or it does not answer
        """
        with self._connecting:  # QEMU serves one client per monitor: a second connection would hang
            if self._monitor is not None and not self._monitor.closed:
                return self._monitor
            directory = self.directory()
            path = monitors.socket_path(directory, "ft")
            if create:
                monitors.ensure_monitors(self.domains, self.uuid, directory)
            elif not Path(path).exists():
                raise MonitorGone(f"{path}: no such monitor")
            self._monitor = Monitor.connect(path, self._on_event, self._on_closed, 2.0)
            self._monitored_pid = self.pid()
            self.process.note()
            return self._monitor

    def drop_monitor(self) -> None:
        """Forget the connection; the next use opens a new one."""
        monitor, self._monitor = self._monitor, None
        self._shape = None
        if monitor is not None:
            monitor.close()

    def shape(self, *, fresh: bool = False) -> Shape:
        """Disks and NICs of the running domain, from libvirt's live XML."""
        if self._shape is None or fresh:
            self._shape = parse_shape(self.domains.xml(self.uuid))
        return self._shape

    def hold_sockets(self, shape: Shape) -> dict[str, HoldSockets]:
        """The hold proxy's sockets by NIC alias."""
        directory = self.directory()
        return {nic.alias: HoldSockets.under(directory, nic) for nic in shape.nics}

    # -- observation ---------------------------------------------------------------------------------------

    def observe(self) -> QemuView:
        """What this host's QEMU is in a pair; never waits longer than a second."""
        if self.pid() is None:
            self.drop_monitor()
            return QemuView(QemuState.ABSENT)
        try:
            return self._ask()
        except (MonitorGone, OSError):
            self.drop_monitor()
            return self._without_monitor()
        except MonitorTimeout:
            return QemuView(QemuState.HUNG)
        except (MonitorError, graph.EngineError) as error:
            log.warning("%s: %s", self.name, error)
            return QemuView(QemuState.HUNG)

    def _without_monitor(self) -> QemuView:
        return QemuView(without_monitor(self.pid(), self._monitored_pid))

    def _ask(self) -> QemuView:
        # The run state first: a copy that leaves inmigrate between the two questions is then called loading, while
        # the other way round it would look like one that has left COLO.
        monitor = self.monitor()
        status = monitor.execute("query-status", timeout_s=OBSERVE_TIMEOUT_S)["status"]
        mode = graph.colo_mode(monitor, OBSERVE_TIMEOUT_S)
        if mode == "primary":
            return QemuView(QemuState.PRIMARY, True)
        if status == "inmigrate":
            return QemuView(QemuState.SECONDARY_LOADING)
        if mode == "secondary":
            return QemuView(QemuState.SECONDARY_LOADED, True)
        names = monitor.execute("query-named-block-nodes", {"flat": True}, timeout_s=OBSERVE_TIMEOUT_S)
        present = {node["node-name"]: node["drv"] for node in names}
        ours = [name for name in present if name.startswith(("ft-q-", "ft-r-", "ft-hid-"))]
        if not ours:
            return QemuView(QemuState.PLAIN)
        if any(name.startswith("ft-hid-") for name in present):
            return QemuView(QemuState.SECONDARY_LOADED)
        return QemuView(QemuState.PRIMARY)


def _is_qemu_of(pid: int, uuid: str) -> bool:
    """Whether ``pid`` is a living QEMU whose command line names ``uuid`` (a zombie's is empty)."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return uuid.encode() in line and b"qemu" in line.split(b"\0", 1)[0]


def _find_qemu(uuid: str) -> int | None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_qemu_of(int(entry.name), uuid):
            return int(entry.name)
    return None


def systemctl(*arguments: str, timeout_s: float = 5.0) -> None:
    """Run systemctl. :raises RuntimeError: it failed or did not end in time"""
    try:
        done = subprocess.run(("systemctl", *arguments), capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"systemctl {' '.join(arguments)}: no end within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")


__all__ = ["LocalVm", "QemuView", "systemctl"]
