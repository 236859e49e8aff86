"""A VM's record on the datastore: its name, what is wanted of it (power, FT), and its own settings.

``vms/<uuid>/record/0000012.json`` is its twelfth version; the newest counts. A version is created once and never
changed, so every change is a compare-and-swap: of two that were made from the same version one gets the next number,
and the other is made again from that. Versions before this form kept one file, ``vms/<uuid>/vm.json``: it is read as
long as there is no numbered one, and never written.

Calls block as long as the datastore does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..catalogue import FtkvmError
from ..ports import Json
from . import numbered
from .ha.documents import understood

_ATTEMPTS = 64
_SWEEPS = 16


class RecordFiles(Protocol):
    """The part of ports.Datastore that is used here."""

    def read_json(self, path: str) -> Json | None: ...
    def create_once(self, path: str, document: Json, /) -> Json: ...
    def remove(self, path: str) -> None: ...
    def list(self, path: str) -> list[str]: ...


@dataclass(frozen=True)
class Versioned:
    """A record as it was read; ``number`` 0: from the file of older versions."""

    number: int
    document: Json


def old_path(uuid: str) -> str:
    """Where older versions kept the record."""
    return f"vms/{uuid}/vm.json"


def record_path(uuid: str, number: int) -> str:
    """The file of one version; 0 is the file of older versions."""
    return numbered.path_of(_directory(uuid), number) if number else old_path(uuid)


def newest_path(datastore: RecordFiles, uuid: str) -> str:
    """The file that counts now; there may be none."""
    return record_path(uuid, numbered.newest(datastore.list(_directory(uuid))))


def read(datastore: RecordFiles, uuid: str) -> Json | None:
    """The newest record; None if the VM is not registered.

    :raises CorruptFile: FTKVM-305; an older one is never taken for it
    """
    found = read_versioned(datastore, uuid)
    return found.document if found is not None else None


def read_versioned(datastore: RecordFiles, uuid: str) -> Versioned | None:
    """As :func:`read`, with the number that :func:`swap` needs."""
    number = numbered.newest(datastore.list(_directory(uuid)))
    document = datastore.read_json(record_path(uuid, number))
    return Versioned(number, document) if document is not None else None


def create(datastore: RecordFiles, uuid: str, document: Json) -> Json:
    """Register: write the first version unless there is a record; the one that is there afterwards."""
    there = read(datastore, uuid)
    return there if there is not None else datastore.create_once(record_path(uuid, 1), document)


def swap(datastore: RecordFiles, uuid: str, before: Versioned, after: Json) -> bool:
    """Write ``after`` as the version that follows ``before``; False if that is not the newest any more.

    safety: an older version is never removed but with all of them, by :func:`forget`. So if ``before`` is gone once
    ours is there, the VM was unregistered in between, and ours is taken back: it must not register the VM again. If
    it is still there, ``forget`` has not yet passed it, and takes ours too.
    """
    if after == before.document:
        return True
    path = record_path(uuid, before.number + 1)
    there = datastore.create_once(path, after)
    if {key: there.get(key) for key in after} != after:
        return False
    if datastore.read_json(record_path(uuid, before.number)) is None:
        datastore.remove(path)
        return False
    return True


def change(datastore: RecordFiles, uuid: str, alter: Callable[[Json], Json]) -> bool:
    """Apply ``alter`` to the newest record, and again to each that somebody else wrote first.

    ``alter`` returns a new document and says only what it wants, so that it can be applied to any version.

    :return: False if the VM is not registered
    :raises FtkvmError: FTKVM-260 others were faster each time; nothing of it was written
    :raises CorruptFile: FTKVM-305, also one that says something we cannot understand: it is left as it is
    """
    for _attempt in range(_ATTEMPTS):
        before = read_versioned(datastore, uuid)
        if before is None:
            return False
        understood(record_path(uuid, before.number), before.document, _parts)
        if swap(datastore, uuid, before, alter(before.document)):
            return True
    raise FtkvmError("FTKVM-260", vm=uuid)


def forget(datastore: RecordFiles, uuid: str) -> None:
    """Remove every version, the newest last: what is interrupted leaves the VM as it was.

    :raises FtkvmError: FTKVM-260 somebody writes it all the time
    """
    datastore.remove(old_path(uuid))
    for _sweep in range(_SWEEPS):  # a change that was under way may have come after the look
        there = sorted(numbered.numbers(datastore.list(_directory(uuid))))
        if not there:
            return
        for number in there:
            datastore.remove(record_path(uuid, number))
    raise FtkvmError("FTKVM-260", vm=uuid)


def _parts(document: Json) -> tuple[str, Json, Json]:
    """What every record has."""
    return str(document["name"]), dict(document.get("ft", {})), dict(document.get("ha") or {})


def _directory(uuid: str) -> str:
    return f"vms/{uuid}/record"
