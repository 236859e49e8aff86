"""The shared directory: small JSON documents that appear whole or not at all, on any file system with atomic
``link()`` and ``rename()`` (NFS, CephFS, GFS2, a FUSE mount)."""

import contextlib
import errno
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ftkvm.adapters.local_file import sync_directory
from ftkvm.ports import CorruptFile, DatastoreError, DatastoreUnreachable, Json

FORMAT = 1
"""The format this program writes, and the newest it reads."""

LINES_LIMIT_BYTES = 4 << 20
"""A file of lines (a host's history) that is longer is put aside, and a new one begun."""

_UNREACHABLE = {
    errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ECONNABORTED, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EREMOTEIO,
    errno.ESHUTDOWN, errno.EPIPE,
}  # fmt: skip
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_sequence = itertools.count()


class DirectoryDatastore:
    """:class:`ftkvm.ports.Datastore` over a directory; ``host`` only names this host in messages.

    ``ROOT/.ftkvm`` is made by :meth:`initialise` when the cluster is created. Where it is missing the file system is
    not mounted: an empty mount point must never look like an empty cluster.
    """

    def __init__(self, root: Path, host: str = "this host") -> None:
        self.root = root
        self._host = host
        self._base = root / ".ftkvm"

    def initialise(self) -> None:
        """Make ``.ftkvm`` if it is not there. The caller has made sure that the datastore is mounted."""
        with self._errors("."):
            self._base.mkdir(mode=0o755, exist_ok=True)
            sync_directory(self.root)

    def read_json(self, path: str) -> Json | None:
        text = self.read_text(path)
        return None if text is None else parse_document(path, text)

    def read_text(self, path: str) -> str | None:
        with self._errors(path):
            try:
                return self._at(path).read_text()
            except (FileNotFoundError, NotADirectoryError):
                self._require_mounted()
                return None
            except UnicodeDecodeError as error:
                raise CorruptFile("FTKVM-305", path=path, detail=str(error)) from error

    def create_once(self, path: str, document: Json) -> Json:
        first = self.read_json(path)
        if first is not None:  # a loser must learn who won even where nothing can be written any more
            return first
        with self._errors(path):
            target = self._at(path)
            self._require_mounted()
            temporary = self._write_temporary(target, _encode(document).encode())
            try:
                # safety: what link() returns is not looked at. A lost reply turns success into EEXIST on NFS; who
                # created the file is decided by reading it back, below.
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, target)
                sync_directory(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
        there = self.read_json(path)
        if there is None:
            raise DatastoreUnreachable("FTKVM-302", host=self._host, path=path, detail="a file just created is gone")
        return there

    def replace(self, path: str, document: Json) -> None:
        self.replace_text(path, _encode(document))

    def replace_text(self, path: str, text: str) -> None:
        self.replace_bytes(path, text.encode())

    def replace_bytes(self, path: str, data: bytes) -> None:
        with self._errors(path):
            target = self._at(path)
            self._require_mounted()
            temporary = self._write_temporary(target, data)
            try:
                temporary.replace(target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            sync_directory(target.parent)

    def remove(self, path: str) -> None:
        with self._errors(path):
            target = self._at(path)
            self._require_mounted()
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
                sync_directory(target.parent)

    def list(self, path: str) -> list[str]:
        with self._errors(path):
            try:
                return sorted(entry.name for entry in self._at(path).iterdir() if not entry.name.startswith("."))
            except FileNotFoundError:
                self._require_mounted()
                return []

    def signature(self, path: str) -> tuple[int, int, int] | None:
        """Something that differs whenever the file was replaced (a new inode each time); None if there is none."""
        with self._errors(path):
            try:
                found = self._at(path).stat()
            except (FileNotFoundError, NotADirectoryError):
                self._require_mounted()
                return None
            return found.st_ino, found.st_mtime_ns, found.st_size

    def append_line(self, path: str, document: Json) -> None:
        line = json.dumps({"format": FORMAT, **document}, separators=(",", ":")) + "\n"
        with self._errors(path):
            target = self._at(path)
            self._require_mounted()
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if target.stat().st_size > LINES_LIMIT_BYTES:  # the one before that is given up
                    target.replace(target.with_suffix(f".1{target.suffix}"))
            descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        """A complete, durable file beside the target, under a name nobody else uses and :meth:`list` does not show."""
        target.parent.mkdir(parents=True, exist_ok=True)
        unique = f"{self._host}.{os.getpid()}.{threading.get_ident()}.{next(_sequence)}".replace("/", "_")
        temporary = target.parent / f".{target.name}.{unique}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _at(self, path: str) -> Path:
        """Where a file of ours lies, without a symbolic link on the way: we make none, and agents are root.

        :raises CorruptFile: FTKVM-334, somebody planted one
        """
        at = self.root
        for part in (self._base.name, *Path(path).parts):
            at = at / part
            if at.is_symlink():
                raise CorruptFile("FTKVM-334", path=at)
        return at

    def _require_mounted(self) -> None:
        self._base.stat()  # not is_dir(): that turns a dead file system into a "no"

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Tell the ways a file system fails apart."""
        try:
            yield
        except OSError as error:
            shown = self._base / path
            detail = f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, '?')})"
            if error.errno in _READ_ONLY:
                raise DatastoreError("FTKVM-303", host=self._host, path=shown) from error
            if error.errno in _FULL:
                raise DatastoreError("FTKVM-304", host=self._host, path=shown) from error
            if error.errno == errno.ENOENT:
                raise DatastoreUnreachable("FTKVM-301", host=self._host, path=self.root) from error
            # safety: an error we do not know says nothing about the content, so it is never taken for an answer
            if error.errno not in _UNREACHABLE:
                detail += ", unforeseen"
            raise DatastoreUnreachable("FTKVM-302", host=self._host, path=shown, detail=detail) from error


def parse_document(path: str, text: str) -> Json:
    """The document in a file's text.

    :raises CorruptFile: FTKVM-305, it is none, or of a newer format
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CorruptFile("FTKVM-305", path=path, detail=str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise CorruptFile("FTKVM-305", path=path, detail="no JSON object with a format number")
    if document["format"] > FORMAT:
        raise CorruptFile("FTKVM-305", path=path, detail=f"format {document['format']}, known up to {FORMAT}")
    return document


def _encode(document: Json) -> str:
    return json.dumps({"format": FORMAT, **document}, indent=1, sort_keys=True) + "\n"
