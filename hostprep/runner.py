"""Where commands are run."""

from typing import Protocol

from hostprep.ssh import Result


class Runner(Protocol):
    """A host: :class:`hostprep.ssh.Session`."""

    @property
    def host(self) -> str: ...

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result: ...
