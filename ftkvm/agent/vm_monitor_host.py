"""What VM monitoring needs of its host: which VMs run here, their settings, what keeps one from being judged."""

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ftkvm.adapters import guests
from ftkvm.adapters.guest_figures import Life, life
from ftkvm.agent import vm_file
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha_vm_monitor import VmMonitor
from ftkvm.agent.operations import Operations
from ftkvm.agent.storage import bounded
from ftkvm.agent.vm_resets import ResetStore
from ftkvm.agent.vms import Vms
from ftkvm.core.ha.model import Event
from ftkvm.core.ha.settings import Monitoring, in_force, vm_settings
from ftkvm.ports import CorruptFile, DatastoreError, Json

if TYPE_CHECKING:
    from ftkvm.agent.ha.part import HaPart

log = logging.getLogger(__name__)
_READ_EVERY_S = 5.0
_READ_TIMEOUT_S = 0.7


def make_vm_monitor(ctx: AgentContext, vms: Vms, operations: Operations) -> VmMonitor:
    """The monitor of this host's VMs, on real guests."""
    return VmMonitor(
        ctx.host,
        guests.Guests(ctx.host),
        ResetStore(ctx),
        HostSurroundings(ctx, vms, operations),
        operations,
        ctx.config.paths.run / "vm-monitor.json",
        guests.AT_ONCE,
    )


class HostSurroundings:
    """:class:`ftkvm.agent.ha_vm_monitor.Surroundings` of a real host."""

    def __init__(self, ctx: AgentContext, vms: Vms, operations: Operations) -> None:
        self._ctx = ctx
        self._vms = vms
        self._operations = operations
        self._known: dict[str, tuple[float, Json | None]] = {}

    def copies(self) -> list[Json]:
        """The domains that run here. :raises FtkvmError: libvirt is away"""
        return self._vms.local()

    def monitoring(self, uuid: str) -> Monitoring | None:
        """What is in force for a VM; None if it is not registered, or that is not known yet."""
        document = self._document(uuid)
        if document is None:
            return None
        settings = self._ctx.cluster.current().settings
        found = vm_settings(settings, dict(document.get("ha") or {})).monitoring
        return found if in_force(settings)["ha.enabled"] else replace(found, enabled=False)

    def forget(self, uuid: str) -> None:
        """What is known of a VM is old."""
        self._known.pop(uuid, None)

    def _document(self, uuid: str) -> Json | None:
        read_at, document = self._known.get(uuid, (float("-inf"), None))
        if time.monotonic() - read_at < _READ_EVERY_S:
            return document
        try:
            document = bounded(
                self._ctx, lambda: vm_file.read(self._ctx.datastore, uuid), f"vms/{uuid}/record", _READ_TIMEOUT_S
            )
        except (DatastoreError, CorruptFile) as error:
            log.warning("%s; going on with the settings known", error)
        self._known[uuid] = (time.monotonic(), document)
        return document

    def obstacle(self, entry: Json) -> str:
        """Why the VM must not be judged now, or nothing."""
        uuid = str(entry["uuid"])
        operation = self._operations.running(uuid)
        if operation is not None:
            return f"{operation.kind} is under way"
        pairs: list[dict[str, Any]] = self._vms.pair_status(uuid)
        if any(pair.get("operation") or pair.get("reason") == "starting" for pair in pairs):
            return "a secondary is being made"
        # a protected VM is paused at each checkpoint, in libvirt's eyes too: that is not an operator's pause
        if entry["role"] != "primary" and entry["state"] != "running":
            return f"it is {entry['state']}"
        return ""

    def life(self, name: str) -> Life | None:
        """The VM's QEMU process."""
        return life(name)

    def tell(self, event: Event) -> None:
        """Into the journal, and to the host's history; never waits."""
        part = cast("HaPart | None", self._ctx.extras.get("ha"))
        if part is not None:
            part.history.tell(event)
            return
        log.warning("%s: %s", event.kind, event.text)
        document: Json = {"at": time.time(), "by": self._ctx.host, "event": event.kind, "text": event.text,
                          "host": event.host, "vm": event.vm, "detail": dict(event.detail)}  # fmt: skip
        path = f"history/{self._ctx.host}.jsonl"
        self._ctx.workers.submit(lambda: self._ctx.datastore.append_line(path, document), "history")
