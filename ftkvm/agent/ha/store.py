"""What the HA machine reads and writes on the datastore. Calls block as long as that does: run them in workers."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ftkvm.agent import attempts, numbered, vm_file
from ftkvm.agent.ha import documents
from ftkvm.agent.ha.documents import Definition, understood
from ftkvm.agent.ha.settings import needed_memory_mb
from ftkvm.agent.power import write_power
from ftkvm.core.ha.model import (
    FtEpoch,
    Heartbeat,
    HeartbeatsRead,
    Lease,
    Owner,
    OwnerWhy,
    Roles,
    Vm,
)
from ftkvm.core.ha.settings import VmSettings, vm_settings
from ftkvm.core.newest import home, still_meant
from ftkvm.core.pair import PairRecord, Winner
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason
from ftkvm.ports import CorruptFile, Datastore, Json

_PAIR = re.compile(r"epoch-(\d{4,})\.pair")
NOBODY = Owner(0, None, "")


class SignedDatastore(Datastore, Protocol):
    """A datastore that can tell whether a file has changed without reading it."""

    def signature(self, path: str) -> object | None:
        """Something that differs whenever the file was replaced; None if there is no such file."""
        ...


@dataclass(frozen=True)
class VmsRead:
    """All VMs that could be read; ``corrupt`` names the files that were not understood.

    The VMs of those below ``vms/`` and ``ft/`` are left out.
    """

    vms: tuple[Vm, ...]
    corrupt: tuple[str, ...]


@dataclass
class _Known:
    """A VM as last read, with what tells that its files are still the same."""

    signatures: tuple[object, ...]
    path: str
    document: Json
    definition: Definition
    owner: Owner


class HaStore:
    """One per agent. Unchanged files are not read again, so a look at 1280 VMs is mostly directory listings."""

    def __init__(self, datastore: SignedDatastore, host: str, boot_id: str) -> None:
        self._datastore = datastore
        self._host = host
        self._boot_id = boot_id
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._numbered: dict[str, Json] = {}

    # hosts

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Replace this host's heartbeat, durably."""
        self._datastore.replace(f"hosts/{self._host}/ha.json", documents.heartbeat_to_json(heartbeat, time.time()))

    def read_heartbeats(self) -> HeartbeatsRead:
        """All heartbeats, the newest lease and the newest roles; corrupt ones are named and left out.

        safety: a corrupt newest lease is named, and the answer then has no lease at all: who goes on to claim one
        finds the corrupt file in its way, so nobody acts as coordinator over it.
        """
        corrupt: list[str] = []
        heartbeats = {}
        for host in self._datastore.list("hosts"):
            path = f"hosts/{host}/ha.json"
            try:
                document = self._datastore.read_json(path)
                if document is not None:
                    heartbeats[host] = understood(path, document, documents.heartbeat)
            except CorruptFile:
                corrupt.append(path)
        lease = self._newest("leases/coordinator", corrupt)
        roles = self._newest("roles", corrupt)
        return HeartbeatsRead(
            heartbeats,
            documents.lease(lease) if lease else None,
            documents.roles(roles) if roles else None,
            tuple(corrupt),
        )

    def _newest(self, directory: str, corrupt: list[str]) -> Json | None:
        """The document with the highest number; read once, for it never changes."""
        number = numbered.newest(self._datastore.list(directory))
        if not number:
            return None
        path = numbered.path_of(directory, number)
        if path not in self._numbered:
            try:
                document = self._datastore.read_json(path)
                if document is None:
                    return None
                understood(path, document, documents.lease if directory.startswith("leases") else documents.roles)
            except CorruptFile:
                corrupt.append(path)
                return None
            self._numbered = {key: value for key, value in self._numbered.items() if not key.startswith(directory)}
            self._numbered[path] = document
        return self._numbered[path]

    def claim_lease(self, lease: Lease) -> Lease:
        """Create the lease of a term, or find who has it."""
        path = numbered.path_of("leases/coordinator", lease.term)
        there = self._datastore.create_once(path, documents.lease_to_json(lease, time.time()))
        return understood(path, there, documents.lease)

    def claim_roles(self, roles: Roles) -> Roles:
        """Create the roles of a number, or find what they are."""
        path = numbered.path_of("roles", roles.number)
        there = self._datastore.create_once(path, documents.roles_to_json(roles, time.time()))
        return understood(path, there, documents.roles)

    # VMs

    def read_vms(self, settings: Mapping[str, Any]) -> VmsRead:
        """All registered VMs by UUID, with the settings in force for each (``settings``: the cluster's)."""
        with self._lock:
            return self._read_vms(settings)

    def _read_vms(self, settings: Mapping[str, Any]) -> VmsRead:
        vms: list[Vm] = []
        corrupt: list[str] = []
        uuids = self._datastore.list("vms")
        with_epochs = frozenset(self._datastore.list("ft"))
        failed = frozenset(self._datastore.list(attempts.DIRECTORY))
        plain = vm_settings(settings, {})
        for uuid in uuids:
            try:
                vm = self._vm(uuid, settings, plain, with_epochs)
            except CorruptFile as error:
                corrupt.append(str(error.params.get("path", f"vms/{uuid}")))
                continue
            if vm is not None:
                vms.append(self._with_attempts(vm, corrupt) if f"{uuid}.json" in failed else vm)
        for gone in set(self._known) - set(uuids):
            del self._known[gone]
        return VmsRead(tuple(vms), tuple(corrupt))

    def _vm(self, uuid: str, settings: Mapping[str, Any], plain: VmSettings, with_epochs: frozenset[str]) -> Vm | None:
        """``plain``: what is in force for a VM without values of its own; ``with_epochs``: VMs that were in a pair."""
        known = self._look(uuid)
        if known is None:
            return None
        path, document, defined = known.path, known.document, known.definition
        ft_enabled = bool(understood(path, document, lambda doc: doc.get("ft", {}).get("enabled", False)))
        own = understood(path, document, lambda doc: dict(doc.get("ha", {})))
        values = vm_settings(settings, own) if own else plain
        return Vm(
            uuid=uuid,
            name=understood(path, document, lambda doc: str(doc["name"])),
            power=understood(path, document, lambda doc: documents.power(doc, known.owner)),
            owner=known.owner,
            priority=values.priority,
            isolation_response=values.isolation_response,
            cpu_mhz=values.cpu_mhz,
            memory_mb=needed_memory_mb(values, settings, defined, ft=ft_enabled),
            bridges=defined.bridges,
            ft=self._ft_epoch(uuid, defined.disks) if uuid in with_epochs else None,
            protected=ft_enabled,
        )

    def _with_attempts(self, vm: Vm, corrupt: list[str]) -> Vm:
        """With the count of failed attempts, if that still holds. One that is damaged begins anew."""
        try:
            found = attempts.read_failed(self._datastore, vm.uuid)
        except CorruptFile:
            corrupt.append(attempts.path_of(vm.uuid))
            return vm
        holds = found is not None and found.holds(vm.owner)
        return replace(vm, failed_attempts=found.attempts) if found is not None and holds else vm

    def _look(self, uuid: str) -> _Known | None:
        paths = (vm_file.newest_path(self._datastore, uuid), f"vms/{uuid}/domain.xml")
        number = self._owner_number(uuid)
        signatures = (*((path, self._datastore.signature(path)) for path in paths), number)
        known = self._known.get(uuid)
        if known is not None and known.signatures == signatures:
            return known
        document, xml = self._datastore.read_json(paths[0]), self._datastore.read_text(paths[1])
        if document is None or xml is None:  # being registered, or leaving
            return None
        defined = documents.definition(paths[1], xml)
        known = _Known(signatures, paths[0], document, defined, self._owner_at(uuid, number))
        self._known[uuid] = known
        return known

    def _ft_epoch(self, uuid: str, disks: Mapping[str, str]) -> FtEpoch | None:
        """The newest epoch; its winner is asked for each time, for it is decided once, at any time."""
        epochs = [int(m.group(1)) for m in map(_PAIR.fullmatch, self._datastore.list(f"ft/{uuid}")) if m]
        if not epochs:
            return None
        path = f"ft/{uuid}/epoch-{max(epochs):04d}"
        pair, winner = self._datastore.read_json(f"{path}.pair"), self._datastore.read_json(f"{path}.winner")

        def decode(document: Json) -> FtEpoch:
            won = winner or {}
            return FtEpoch(
                epoch=max(epochs),
                primary=str(document["primary"]["host"]),
                secondary=str(document["secondary"]["host"]),
                winner=str(won["host"]) if winner is not None else None,
                primary_boot_id=str(document["primary"].get("boot_id", "")),
                secondary_boot_id=str(document["secondary"].get("boot_id", "")),
                winner_boot_id=str(won.get("boot_id", "")),
                owner=document.get("owner"),
                nobody=str(won.get("reason")) in NOBODY_GOES_LIVE,
                home=_home(document, winner, disks) if document.get("copied") else None,
            )

        return understood(f"{path}.pair", pair or {}, decode)

    # owners

    def _owner_number(self, uuid: str) -> int:
        return numbered.newest(self._datastore.list(f"vms/{uuid}/owner"))

    def _owner_at(self, uuid: str, number: int) -> Owner:
        if number == 0:
            return NOBODY
        path = numbered.path_of(f"vms/{uuid}/owner", number)
        document = self._datastore.read_json(path)
        return understood(path, document or {}, lambda doc: documents.owner(number, doc))

    def owner(self, uuid: str) -> Owner:
        """The newest owner, from the datastore now."""
        return self._owner_at(uuid, self._owner_number(uuid))

    def release(
        self, uuid: str, why: OwnerWhy, reason: str, number: int | None = None, *, comes_here: Callable[[], bool]
    ) -> bool:
        """Note that nobody runs the VM any more; False if it was not ours, runs here, or somebody took it meanwhile.

        safety: ``comes_here`` is asked after the owner was read, so a start that this owner file belongs to is seen: it
        was begun before its claim and is under way until its QEMU is here. A later one needs the number that is taken
        here, and only one gets it. Without this a slow end of a VM released the start that came after it.

        :param number: the owner number this is about; any that is ours, if None
        :param comes_here: whether a start is under way here or, asked after that, a QEMU of it is here
        """
        newest = self.owner(uuid)
        if newest.host != self._host or number not in (None, newest.number) or comes_here():
            return False
        path = numbered.path_of(f"vms/{uuid}/owner", newest.number + 1)
        nobody = {"host": None, "boot_id": self._boot_id, "why": str(why), "reason": reason, "at": time.time()}
        there = self._datastore.create_once(path, nobody)
        return all(there.get(key) == value for key, value in nobody.items())

    def set_power(self, uuid: str, *, on: bool) -> None:
        """Note what is wanted of the VM. A VM that is not registered has nothing to note it in."""
        write_power(self._datastore, uuid, on=on)


def _home(pair: Json, winner: Json | None, disks: Mapping[str, str]) -> str | None:
    """As ``core.newest.home``; an epoch that nobody has won would be won for its primary (``lost``).

    None: the VM has other ``disks`` (target → file) by now.
    """
    if not still_meant(disks, pair["primary"]["disks"]):
        return None
    record = PairRecord(int(pair["epoch"]), str(pair["primary"]["host"]), str(pair["secondary"]["host"]))
    if winner is None:
        return record.primary
    return home(record, Winner(str(winner["host"]), Reason(winner["reason"])))
