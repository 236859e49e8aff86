"""What the secondary copy of a VM takes of its host, for people (FT-10): CPU in MHz and memory in MB.

The secondary's host tells running totals when it is asked; the primary's asks now and then and reckons the difference,
so that no answer waits for a second look.
"""

import time
from dataclasses import dataclass

import psutil

from ..adapters.host_view import own_mhz
from ..ports import Json

ASK_EVERY_S = 10.0


def usage_of(pid: int | None) -> Json:
    """Running totals of a QEMU here: CPU seconds, the processor's clock (0: not known), memory; empty if it is gone."""
    try:
        process = psutil.Process(pid) if pid is not None else None
        if process is None:
            return {}
        times = process.cpu_times()
        return {"cpu_s": times.user + times.system, "mhz": own_mhz(), "memory_mb": process.memory_info().rss >> 20}
    except psutil.Error:
        return {}


@dataclass
class CopyUsage:
    """The last two looks at one secondary."""

    asked_at: float | None = None
    _epoch: int | None = None
    _cpu_s: float | None = None
    _looked_at: float = 0.0
    cpu_mhz: int | None = None
    memory_mb: int | None = None

    def due(self, now: float) -> bool:
        """Whether to ask again; notes that it is done."""
        if self.asked_at is not None and now - self.asked_at < ASK_EVERY_S:
            return False
        self.asked_at = now
        return True

    def take(self, said: Json, now: float | None = None) -> None:
        """An answer of the secondary's host: what :func:`usage_of` gives, and the epoch of its copy."""
        at, usage = time.monotonic() if now is None else now, said.get("usage") or {}
        if not usage:
            self._cpu_s = self.cpu_mhz = self.memory_mb = None
            return
        cpu_s, elapsed_s = float(usage["cpu_s"]), at - self._looked_at
        same = self._cpu_s is not None and said.get("epoch") == self._epoch and elapsed_s > 0
        if same and self._cpu_s is not None and usage["mhz"]:
            self.cpu_mhz = round((cpu_s - self._cpu_s) / elapsed_s * int(usage["mhz"]))
        elif not same:
            self.cpu_mhz = None
        self.memory_mb = int(usage["memory_mb"])
        self._epoch, self._cpu_s, self._looked_at = said.get("epoch"), cpu_s, at

    def to_json(self) -> Json:
        return {"secondary_cpu_mhz": self.cpu_mhz, "secondary_memory_mb": self.memory_mb}
