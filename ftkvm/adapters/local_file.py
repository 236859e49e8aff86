"""Files of this machine that appear whole or not at all, also when it loses its power. Standard library only.

A file renamed into its place before its content is on the disk comes back *empty* after a power loss (seen: a private
key, a minute after it was written; ext4 syncs by itself only what replaces an older file). So: content, sync, name,
sync of the directory.

What lies under ``/run`` is gone at a power loss anyway and needs no sync: it is written beside its place and renamed,
which is enough for a process that dies (``agent/operations.py``, ``agent/migrate.py``, ``agent/ha/guard.py``,
``keeper/store.py`` …). A sync there would cost nothing (tmpfs); that it is not asked for says that nothing in the fast
paths may ever wait for a disk. ``tests/unit/test_local_files.py`` has the list of all who write files past this module.
"""

import errno
import os
from pathlib import Path


def replace_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Have ``path`` hold ``content``: after a power loss it is the file of before or this one. Waits for the disk.

    It never exists with wider rights than ``mode``.

    :raises OSError: it is not written; whether it has its name is not known if the last step failed
    """
    temporary = _write_beside(path, content, mode, like=None, sync=True)
    temporary.replace(path)
    sync_directory(path.parent)


def replace_volatile(path: Path, content: bytes, mode: int = 0o600, *, like: Path | None = None) -> None:
    """The same for a file that means nothing after a power loss: no disk is waited for.

    :param like: whose owner it gets; ours if None
    """
    _write_beside(path, content, mode, like=like, sync=False).replace(path)


def rename_durably(source: Path, target: Path) -> None:
    """Give a file that is on the disk its name, and return when that is on the disk as well."""
    source.replace(target)
    sync_directory(target.parent)


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there: it does not come back with the power."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and those above it that are missing; their names are on the disk as well."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    for each in reversed(missing):
        sync_directory(each.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some FUSE file systems cannot
            raise
    finally:
        os.close(descriptor)


def _write_beside(path: Path, content: bytes, mode: int, *, like: Path | None, sync: bool) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if like is not None:
            owner = like.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    return temporary
