"""A winner whose overlays could not be written back: what is said of it, and when it is tried again."""

from ..catalogue import FtkvmError
from ..core.patience import Backoff
from ..engine.writeback import WriteBackFailed


class WriteBackTrouble:
    """Of one VM. The guest runs meanwhile, on all its images; only a new secondary has to wait."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._backoff = Backoff()
        self.error: FtkvmError | None = None

    def waits(self, now: float) -> bool:
        """Whether it is too early to try again; ``now``: monotonic seconds."""
        return self.error is not None and not self._backoff.due(now)

    def failed(self, failure: WriteBackFailed, now: float) -> bool:
        """True the first time since it was last well."""
        first = self.error is None
        self._backoff.failed(now)
        self.error = FtkvmError("FTKVM-145", vm=self._vm, disk=failure.target, detail=failure.detail)
        return first

    def mended(self) -> bool:
        """All is written back. True when it had failed before."""
        before, self.error = self.error, None
        self._backoff = Backoff()
        return before is not None
