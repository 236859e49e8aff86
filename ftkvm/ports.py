"""The few protocols behind which things block or lie, with the errors they raise.

Callers depend on these, never on the adapters; ``ftkvm/adapters`` holds the real ones.

    FtkvmError
    ├── CorruptFile            a datastore file cannot be parsed, or is of a newer format
    ├── DatastoreError         the datastore refused: full, read-only
    │   └── DatastoreUnreachable   it does not answer with data: not mounted, not connected, I/O error
    ├── WorkTimeout            a bounded call did not end in time: its outcome is unknown
    ├── PeerUnreachable        no connection: the request was not sent and had no effect
    └── PeerUnknown            the request was sent and no answer came: its outcome is unknown
"""

from collections.abc import Callable
from typing import Any, Protocol

from ftkvm.catalogue import FtkvmError

Json = dict[str, Any]
"""A JSON document: an object at the top."""


class CorruptFile(FtkvmError):
    """A file on the datastore cannot be parsed; it is named and never taken for an empty state."""


class DatastoreError(FtkvmError):
    """The datastore answered, and refused (FTKVM-303 read-only, FTKVM-304 full)."""


class DatastoreUnreachable(DatastoreError):
    """The datastore gives no data (FTKVM-301 not mounted, FTKVM-302 I/O failure): nothing is known of it."""


class WorkTimeout(FtkvmError):
    """A call in a worker did not end in time. It may still take effect later: query, then go on."""


class PeerUnreachable(FtkvmError):
    """No connection to a host's agent could be made: the request was never sent."""


class PeerUnknown(FtkvmError):
    """A request was sent to a host's agent and no answer came: what became of it is unknown."""


class Datastore(Protocol):
    """Small JSON documents on the directory all hosts share; paths are relative to its ``.ftkvm``.

    Every call blocks for as long as the storage hangs: run it in a worker with a time-out. All of them raise
    :class:`DatastoreUnreachable` when the storage does not give data, :class:`DatastoreError` when it refuses.
    """

    def read_json(self, path: str) -> Json | None:
        """The document, or None if there is no such file.

        :raises CorruptFile: it cannot be parsed, or its format is newer than this program
        """
        ...

    def create_once(self, path: str, document: Json) -> Json:
        """Create the file unless it exists, and return the document that *is there* (read back).

        The caller compares: a reply of ``link()`` can be lost, so its return code is never trusted.
        """
        ...

    def replace(self, path: str, document: Json) -> None:
        """Write the document, replacing what was there, atomically and durably."""
        ...

    def remove(self, path: str) -> None:
        """Remove the file; no such file is not an error."""
        ...

    def list(self, path: str) -> list[str]:
        """Sorted names in a directory; a directory that does not exist is empty."""
        ...

    def append_line(self, path: str, document: Json) -> None:
        """Append one document as a line (histories: one writer per file)."""
        ...

    def read_text(self, path: str) -> str | None:
        """The text of a file (domain XML), or None if there is no such file."""
        ...

    def replace_text(self, path: str, text: str) -> None:
        """As :meth:`replace`, for plain text."""
        ...

    def replace_bytes(self, path: str, data: bytes) -> None:
        """As :meth:`replace`, for anything else (pictures)."""
        ...


class Peers(Protocol):
    """The other hosts' agents, over HTTPS with certificates on both sides."""

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        """Send one request to a host's agent (also to our own) and return the JSON object it answers.

        :raises FtkvmError: the agent answered with that message (it had the request and refused or failed)
        :raises PeerUnreachable: no connection; no effect
        :raises PeerUnknown: no answer in time; unknown effect
        """
        ...


Progress = Callable[[int, int, str], None]
"""``progress(step, of, text)``: called by a long operation as it goes on."""
