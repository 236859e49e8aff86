"""Long actions on VMs: one at a time per VM, in a worker, with progress that can be asked for, also after a restart."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import Json, Progress

log = logging.getLogger(__name__)
_KEPT = 200


@dataclass(frozen=True)
class Operation:
    """One action on one VM. ``state`` is running, done, failed or interrupted; times in seconds since the epoch."""

    id: str
    kind: str
    host: str
    vm: str
    uuid: str
    state: str
    step: int
    steps: int
    text: str
    error: Json | None
    started_at: float
    ended_at: float | None = None
    result: Json | None = None
    """What it found out, of an operation that measures something."""


class Operations:
    """The operations this agent runs or ran since the host's boot; a copy of each lies under /run/ftkvm/operations."""

    def __init__(self, host: str, workers: Workers, directory: Path) -> None:
        self._host = host
        self._workers = workers
        self._directory = directory
        self._lock = threading.Lock()
        self._known: dict[str, Operation] = {}

    def load(self) -> None:
        """Read the operations of earlier processes; those that were running are interrupted now."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._directory.glob("*.json")):
            try:
                operation = Operation(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                log.warning("%s: %s", path, error)
                continue
            if operation.state == "running":
                error_ = FtkvmError("FTKVM-504", action=operation.kind, vm=operation.vm, host=self._host)
                operation = replace(operation, state="interrupted", error=error_.to_json(), ended_at=time.time())
                self._write(operation)
            self._known[operation.id] = operation

    def start(self, kind: str, vm: str, uuid: str, work: Callable[[Progress], Json | None]) -> Operation:
        """Run ``work(progress)`` in a worker; what it returns is the operation's result.

        :raises FtkvmError: FTKVM-501, another operation runs on this VM here
        """
        with self._lock:
            other = self.running(uuid)
            if other is not None:
                raise FtkvmError("FTKVM-501", vm=vm, operation=other.kind)
            name = f"{self._host}.{secrets.token_hex(6)}"
            operation = Operation(name, kind, self._host, vm, uuid, "running", 0, 0, "begun", None, time.time())
            self._keep(operation)
        self._workers.submit(lambda: self._run(operation.id, work), f"{kind} {vm}")
        return operation

    def running(self, uuid: str) -> Operation | None:
        """The operation under way on a VM, if there is one."""
        return next((op for op in list(self._known.values()) if op.uuid == uuid and op.state == "running"), None)

    def all_running(self) -> list[Operation]:
        """The operations under way on this host."""
        return [op for op in list(self._known.values()) if op.state == "running"]

    def get(self, operation_id: str) -> Operation:
        """One operation.

        :raises FtkvmError: FTKVM-502, unknown
        """
        try:
            return self._known[operation_id]
        except KeyError:
            raise FtkvmError("FTKVM-502", operation=operation_id) from None

    def _run(self, name: str, work: Callable[[Progress], Json | None]) -> None:
        def progress(step: int, steps: int, text: str) -> None:
            with self._lock:
                self._keep(replace(self._known[name], step=step, steps=steps, text=text))

        try:
            result = work(progress)
        except FtkvmError as error:
            self._end(name, "failed", error)
        except Exception as error:
            log.exception("operation %s", name)
            self._end(name, "failed", FtkvmError("FTKVM-900", detail=f"{type(error).__name__}: {error}"))
        else:
            self._end(name, "done", None, result)

    def _end(self, name: str, state: str, error: FtkvmError | None, result: Json | None = None) -> None:
        with self._lock:
            operation = self._known[name]
            log.info("%s of %s: %s%s", operation.kind, operation.vm, state, f": {error}" if error else "")
            said = error.to_json() if error else None
            self._keep(replace(operation, state=state, error=said, ended_at=time.time(), result=result))

    def _keep(self, operation: Operation) -> None:
        self._write(operation)  # first: what somebody was told must be what an agent after this one finds
        self._known[operation.id] = operation
        for name in [name for name, op in self._known.items() if op.state != "running"][:-_KEPT]:
            del self._known[name]
            (self._directory / f"{name}.json").unlink(missing_ok=True)

    def _write(self, operation: Operation) -> None:
        path = self._directory / f"{operation.id}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(operation)))
        temporary.replace(path)
