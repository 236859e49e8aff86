"""The record of a VM's resets on the datastore: it outlives agents and hosts, and limits how often a VM is reset.

``vms/<uuid>/resets.json`` is written before each reset and again after it; ``vms/<uuid>/screenshots/`` keeps what the
console showed. Only the host that runs the VM writes either.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ftkvm.agent.context import AgentContext
from ftkvm.agent.storage import bounded
from ftkvm.ports import Datastore, Json

RESETS_KEPT = 200
SCREENSHOTS_KEPT = 10
BEGUN, DONE, FAILED = "begun", "done", "failed"


@dataclass(frozen=True)
class Reset:
    """One reset. ``at``: seconds since the epoch; ``outcome``: begun (it may have happened), done, failed (refused)."""

    at: float
    host: str
    why: str
    screenshot: str | None = None
    outcome: str = BEGUN

    @classmethod
    def from_json(cls, document: Json) -> "Reset":
        return cls(
            float(document["at"]),
            str(document["host"]),
            str(document["why"]),
            document.get("screenshot"),
            str(document.get("outcome", BEGUN)),
        )


def counted_ms(resets: Sequence[Reset]) -> list[int]:
    """When the VM was reset, or may have been, in milliseconds since the epoch."""
    return [int(reset.at * 1000) for reset in resets if reset.outcome != FAILED]


class ResetStore:
    """The resets of VMs. All calls are bounded; they raise what the datastore raises."""

    def __init__(self, ctx: AgentContext) -> None:
        self._ctx = ctx

    @property
    def _datastore(self) -> Datastore:
        return self._ctx.datastore

    def load(self, uuid: str) -> list[Reset]:
        """All that are on record, oldest first."""
        path = _path(uuid)
        document = bounded(self._ctx, lambda: self._datastore.read_json(path), path)
        return [Reset.from_json(each) for each in (document or {}).get("resets", [])]

    def add(self, uuid: str, reset: Reset) -> None:
        """Put a reset on record, before it is done."""
        self._write(uuid, [*self.load(uuid), reset])

    def settle(self, uuid: str, reset: Reset, outcome: str) -> None:
        """Note what became of it."""
        before = self.load(uuid)
        self._write(uuid, [replace(each, outcome=outcome) if each.at == reset.at else each for each in before])

    def keep_screenshot(self, uuid: str, picture: bytes, at: float) -> str:
        """Keep a picture, and the newest few of the earlier ones; returns its path as an operator finds it."""
        directory = f"vms/{uuid}/screenshots"
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}-{self._ctx.host}.png"

        def keep() -> None:
            self._datastore.replace_bytes(f"{directory}/{name}", picture)
            for old in self._datastore.list(directory)[:-SCREENSHOTS_KEPT]:
                self._datastore.remove(f"{directory}/{old}")

        bounded(self._ctx, keep, directory)
        return str(self._ctx.config.datastore / ".ftkvm" / directory / name)

    def _write(self, uuid: str, resets: Sequence[Reset]) -> None:
        path = _path(uuid)
        document: Json = {"resets": [asdict(each) for each in resets[-RESETS_KEPT:]]}
        bounded(self._ctx, lambda: self._datastore.replace(path, document), path)


def _path(uuid: str) -> str:
    return f"vms/{uuid}/resets.json"
