"""The documents of FT pairs on the datastore, typed: pair records, winners, the journal of a running operation.

Everything that decides who may run a VM is here and nowhere else; docs/safety.md argues from these files alone.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..catalogue import FtkvmError
from ..core.pair import PairRecord as CoreRecord
from ..core.pair import Winner, WinnerAbsent, WinnerState
from ..core.reasons import Reason
from . import numbered, vm_file

EPOCH_FILE = re.compile(r"^epoch-(\d{4,})\.pair$")


class DatastorePort(Protocol):
    """The part of ports.Datastore that is used here; see there for the meaning of each call."""

    def read_json(self, path: str) -> dict[str, Any] | None: ...
    def create_once(self, path: str, doc: dict[str, Any]) -> dict[str, Any]: ...
    def replace(self, path: str, doc: dict[str, Any]) -> None: ...
    def remove(self, path: str) -> None: ...
    def list(self, path: str) -> list[str]: ...
    def append_line(self, path: str, doc: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class CopyPlace:
    """One copy of a VM: its host, its images by disk target, and which boot of the host runs it.

    ``machine``: its devices (``engine.machine``), to see whether somebody changes them; empty: not noted.
    """

    host: str
    disks: dict[str, str]
    boot_id: str = ""
    machine: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"host": self.host, "disks": self.disks, "boot_id": self.boot_id, "machine": list(self.machine)}

    @classmethod
    def from_json(cls, doc: dict[str, Any]) -> "CopyPlace":
        return cls(doc["host"], dict(doc["disks"]), str(doc.get("boot_id", "")), tuple(doc.get("machine", ())))


@dataclass(frozen=True)
class PairDoc:
    """``epoch-N.pair``: who is primary, who secondary, with which images. Written before any output is released.

    ``owner``: the number of the VM's owner file at that moment, which names the primary's host. While it is the newest,
    this epoch says who may run the VM; a later one was written by the epoch's winner or after its end, and says it
    itself. None: written by a version that did not note it.
    ``copied``: each side's images are whole ones on its own host's disks (``ft.disks=copy``), nowhere else.
    ``encrypted``: the channels between the two were opened with TLS.
    """

    uuid: str
    vm: str
    epoch: int
    primary: CopyPlace
    secondary: CopyPlace
    owner: int | None = None
    copied: bool = False
    encrypted: bool = False

    def core(self) -> CoreRecord:
        return CoreRecord(self.epoch, self.primary.host, self.secondary.host)

    def peer_of(self, host: str) -> CopyPlace:
        return self.secondary if host == self.primary.host else self.primary

    def to_json(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "vm": self.vm,
            "epoch": self.epoch,
            "primary": self.primary.to_json(),
            "secondary": self.secondary.to_json(),
            "owner": self.owner,
            "copied": self.copied,
            "encrypted": self.encrypted,
        }

    @classmethod
    def from_json(cls, doc: dict[str, Any]) -> "PairDoc":
        primary, secondary = (CopyPlace.from_json(doc[side]) for side in ("primary", "secondary"))
        return cls(doc["uuid"], doc["vm"], int(doc["epoch"]), primary, secondary, doc.get("owner"),
                   bool(doc.get("copied", False)), bool(doc.get("encrypted", False)))  # fmt: skip


@dataclass
class OperationDoc:
    """``operation.json``: what is being done to a VM, how far it is, and what an undo must know.

    ``steps`` are the names of the steps *begun*; whether the last one took effect is for an observation to say.
    """

    kind: str
    host: str
    boot_id: str
    epoch: int
    secondary: str | None = None
    steps: list[str] = field(default_factory=list)
    primary_disks: dict[str, str] = field(default_factory=dict)
    secondary_disks: dict[str, str] = field(default_factory=dict)
    original_disks: dict[str, str] = field(default_factory=dict)
    undoing: bool = False
    copied: bool = False  # of a protect: as in PairDoc
    disabled: dict[str, Any] | None = None  # of a turn-off that is a `disable`: what it keeps

    @property
    def own_images(self) -> list[str]:
        """The images that only the secondary's host has, and has to remove itself."""
        return list(self.secondary_disks.values()) if self.copied else []

    def is_protect_after(self, epoch: int) -> bool:
        """A protect whose pair was not recorded; ``epoch``: the newest that is, or 0."""
        return self.kind == "protect" and self.epoch > epoch

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, doc: dict[str, Any]) -> "OperationDoc":
        return cls(**{name: doc[name] for name in cls.__dataclass_fields__ if name in doc})


class PairStore:
    """Reads and writes the documents of one VM. Calls block as long as the datastore does."""

    def __init__(self, datastore: DatastorePort, uuid: str) -> None:
        self._datastore = datastore
        self.uuid = uuid
        self._directory = f"ft/{uuid}"

    def epochs(self) -> list[int]:
        """All epochs that have a pair record, ascending."""
        found = [EPOCH_FILE.match(name) for name in self._datastore.list(self._directory)]
        return sorted(int(match.group(1)) for match in found if match)

    def pair(self, epoch: int) -> PairDoc | None:
        doc = self._datastore.read_json(f"{self._directory}/epoch-{epoch:04d}.pair")
        return PairDoc.from_json(doc) if doc is not None else None

    def latest(self) -> PairDoc | None:
        """The pair record of the highest epoch."""
        epochs = self.epochs()
        return self.pair(epochs[-1]) if epochs else None

    def create(self, pair: PairDoc) -> PairDoc:
        """Write the record of a new epoch; the answer is what is there afterwards, which may be another's."""
        return PairDoc.from_json(
            self._datastore.create_once(f"{self._directory}/epoch-{pair.epoch:04d}.pair", pair.to_json())
        )

    def winner(self, epoch: int) -> WinnerState:
        doc = self._datastore.read_json(f"{self._directory}/epoch-{epoch:04d}.winner")
        return _winner(doc) if doc is not None else WinnerAbsent()

    def arbitrate(self, epoch: int, host: str, boot_id: str, reason: Reason) -> Winner:
        """Try to win an epoch. The winner is who the file names when read back, whatever link() said."""
        doc = self._datastore.create_once(
            f"{self._directory}/epoch-{epoch:04d}.winner",
            {"epoch": epoch, "host": host, "boot_id": boot_id, "reason": str(reason), "at": time.time()},
        )
        return _winner(doc)

    def own(self, host: str, boot_id: str) -> int:
        """Note in the VM's owner files that it runs here, unless the newest says so already; the newest's number.

        safety: to be called only where this host is the one that runs the VM, and no epoch is open: by the primary
        before it records a pair. Whoever asks may have stood still for long (a datastore that hung) and lost the VM
        meanwhile: an owner file of another host that is newer than the last pair's record is a later start's word, and
        is not written over. Of two calls at once one writes.

        :raises FtkvmError: FTKVM-103 somebody else took it meanwhile
        """
        number, newest = self._newest_owner()
        if newest is not None and (newest.get("host"), newest.get("boot_id")) == (host, boot_id):
            return number
        pair = self.latest()
        known = pair.owner if pair is not None else 0
        other = newest.get("host") if newest is not None else None
        if other not in (None, host) and known is not None and number > known:
            raise FtkvmError("FTKVM-103", vm=self.uuid, host=other)
        return self._take(number + 1, host, boot_id)

    def own_as_winner(self, epoch: int, host: str, boot_id: str) -> int:
        """Note that the winner of an epoch runs the VM: from now on the owner file says so, not the epoch.

        Also for a primary that went on and owned the VM before; may be repeated.

        safety: a compare-and-swap from the owner file that the epoch's record names, however late it is carried out: a
        start of the VM elsewhere takes that same next number. Called after the keeper was told that this copy is alone,
        so that HA ends it with this host's heartbeat, as it does with the VM of any owner.

        :raises FtkvmError: FTKVM-103 somebody else took it meanwhile
        """
        pair = self.pair(epoch)
        if pair is None or pair.owner is None:  # of an older version: HA starts nothing by its word
            return self.own(host, boot_id)
        return self._take(pair.owner + 1, host, boot_id)

    def _take(self, number: int, host: str, boot_id: str) -> int:
        mine = {"host": host, "boot_id": boot_id, "why": "failover", "at": time.time()}
        there = self._datastore.create_once(self._owner_file(number), mine)
        if (there.get("host"), there.get("boot_id")) != (host, boot_id):
            raise FtkvmError("FTKVM-103", vm=self.uuid, host=there.get("host"))
        return number

    def _newest_owner(self) -> tuple[int, dict[str, Any] | None]:
        number = numbered.newest(self._datastore.list(self._owners))
        return number, self._datastore.read_json(self._owner_file(number)) if number else None

    @property
    def _owners(self) -> str:
        return f"vms/{self.uuid}/owner"

    def _owner_file(self, number: int) -> str:
        return numbered.path_of(self._owners, number)

    def operation(self) -> OperationDoc | None:
        doc = self._datastore.read_json(f"{self._directory}/operation.json")
        return OperationDoc.from_json(doc) if doc is not None else None

    def save_operation(self, operation: OperationDoc) -> None:
        self._datastore.replace(f"{self._directory}/operation.json", operation.to_json())

    def clear_operation(self) -> None:
        self._datastore.remove(f"{self._directory}/operation.json")

    def vm(self) -> dict[str, Any] | None:
        """The VM's record (:mod:`ftkvm.agent.vm_file`)."""
        return vm_file.read(self._datastore, self.uuid)

    def set_ft_enabled(self, enabled: bool) -> None:
        """Record whether the operator wants FT for this VM; what `disable` kept is left as it is.

        :raises FtkvmError: FTKVM-101 it was unregistered, FTKVM-260
        """
        self._alter(lambda doc: {**doc, "ft": {**doc.get("ft", {}), "enabled": enabled}})

    def set_ft_off(self, kept: dict[str, Any] | None) -> None:
        """Record that FT is off; ``kept``: it is only disabled, and this is what `enable` shall find again.

        :raises FtkvmError: FTKVM-101 it was unregistered, FTKVM-260
        """

        def off(doc: dict[str, Any]) -> dict[str, Any]:
            ft = {key: value for key, value in doc.get("ft", {}).items() if key != "disabled"}
            return {**doc, "ft": {**ft, "enabled": False, **({} if kept is None else {"disabled": kept})}}

        self._alter(off)

    def set_settings(self, before: vm_file.Versioned, ft: dict[str, Any], ha: dict[str, Any]) -> bool:
        """Replace the FT and HA settings of this VM, both at once; False if its record is not ``before`` any more."""
        doc = before.document
        after = {**doc, "ft": {**doc.get("ft", {}), "settings": ft}, "ha": ha}
        return vm_file.swap(self._datastore, self.uuid, before, after)

    def _alter(self, alter: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        if not vm_file.change(self._datastore, self.uuid, alter):
            raise FtkvmError("FTKVM-101", vm=self.uuid)

    def last_failover(self) -> dict[str, Any] | None:
        return self._datastore.read_json(f"{self._directory}/last-failover.json")

    def save_failover(self, doc: dict[str, Any]) -> None:
        self._datastore.replace(f"{self._directory}/last-failover.json", doc)


def _winner(doc: dict[str, Any]) -> Winner:
    return Winner(doc["host"], Reason(doc["reason"]))
