"""The health of this host, looked at every two seconds in the background, so that asking for it never waits."""

import logging
import threading
import time

from ftkvm import __version__
from ftkvm.adapters.hardware import bridges, hardware, machine_id
from ftkvm.agent import storage
from ftkvm.agent.context import AgentContext
from ftkvm.catalogue import FtkvmError
from ftkvm.core.versions import dotted
from ftkvm.ports import DatastoreError, Json

log = logging.getLogger(__name__)


class Health:
    """Versions, libvirt, datastore, number of running domains; :meth:`refresh` looks, :meth:`current` tells at once."""

    def __init__(self, ctx: AgentContext) -> None:
        self._ctx = ctx
        self._lock = threading.Lock()
        self._last: Json = {}
        self._at = float("-inf")
        self._hardware = _hardware()
        self._machine_id = machine_id()

    def current(self) -> Json:
        """What the last look found; ``age_ms`` says how long ago that was, ``error`` why the host cannot take a VM."""
        with self._lock:
            known, at = dict(self._last), self._at
        base = {"host": self._ctx.host, "boot_id": self._ctx.boot_id, "machine_id": self._machine_id,
                "ftkvm": __version__}  # fmt: skip
        if not known:
            starting = FtkvmError("FTKVM-202", host=self._ctx.host, detail="its agent is just starting")
            return {**base, "age_ms": None, "error": starting.to_json()}
        return {**base, **known, "age_ms": int((time.monotonic() - at) * 1000)}

    def refresh(self) -> None:
        """Look; bounded by the time-outs of libvirt and of the datastore. Never raises."""
        there = sorted(bridges(self._ctx.config.vm_bridges))
        found: Json = {"libvirt": None, "qemu": None, "vms": 0, "error": None, "bridges": there, **self._hardware}
        try:
            versions = self._ctx.libvirt.versions()
            found.update(libvirt=dotted(versions.libvirt), qemu=dotted(versions.qemu))
            self._ctx.libvirt.require_versions()
            found["vms"] = sum(1 for info in self._ctx.libvirt.domains() if info.active)
        except FtkvmError as error:
            found["error"] = error.to_json()
        trouble = self._datastore_trouble()
        found["datastore"] = storage.state_word(trouble)
        if trouble is not None and found["error"] is None:
            found["error"] = trouble.to_json()
        with self._lock:
            before, self._last, self._at = self._last, found, time.monotonic()
        if before.get("error") != found["error"]:
            log.warning("health: %s", (found["error"] or {}).get("text", "all well"))

    def _datastore_trouble(self) -> DatastoreError | None:
        try:
            storage.require_writable(self._ctx)
        except DatastoreError as error:
            return error
        return None


def _hardware() -> Json:
    """All processors and memory of this host; nothing if the kernel does not tell (it is not reckoned with then)."""
    try:
        found = hardware()
    except (OSError, ValueError) as error:
        log.error("what this host has is not known: %s", error)
        return {}
    return {"cpu_mhz": found.cpu_mhz, "memory_mb": found.memory_mb}
