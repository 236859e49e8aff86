"""The cluster's VMs: their definitions on the datastore, and the copies that run on this host."""

import json
import logging
import time
import xml.etree.ElementTree as ET
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from ftkvm.agent import attempts, numbered, vm_file
from ftkvm.agent.cold_start import ColdStart
from ftkvm.agent.context import AgentContext
from ftkvm.agent.guarded import require_guard
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.operations import Operations
from ftkvm.agent.power import note_power, try_power
from ftkvm.agent.records import PairStore
from ftkvm.agent.storage import bounded, require_writable
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks import model
from ftkvm.core.checks.domain import Rules, VmFacts, changed_images
from ftkvm.core.checks.vm import CHECKS
from ftkvm.core.pair import Winner
from ftkvm.core.reasons import Reason
from ftkvm.engine.shape import plain_xml
from ftkvm.ports import CorruptFile, Datastore, DatastoreError, Json, Progress

if TYPE_CHECKING:  # libvirt's binding exists on hosts only
    from ftkvm.adapters.libvirt import DomainInfo

log = logging.getLogger(__name__)
_LIST_TIMEOUT_S = 0.7
_FORGET_TIMEOUT_S = 20.0
_NOTHING_RUNS = frozenset({"FTKVM-106", "FTKVM-107", "FTKVM-111", "FTKVM-115", "FTKVM-118", "FTKVM-172", "FTKVM-174",
                           "FTKVM-331"})  # fmt: skip
"""Errors of a start after which certainly neither QEMU nor qemu-img works on the images."""
_BUSY = {"start": "starting", "prepare": "preparing", "enable": "preparing"}
"""Operations that keep everybody else from a VM that has no QEMU, and how that is shown."""


class Pairs(Protocol):
    """What this part needs of the PairManager."""

    def enable(self, vm_uuid: str, secondary: str | None, progress: Progress) -> None: ...
    @property
    def life(self) -> "Life": ...
    def turn_off(self, vm_uuid: str, progress: Progress, *, disable: bool = False) -> None: ...
    def power_off(self, vm_uuid: str) -> bool: ...
    def starting(self, vm_uuid: str, name: str) -> AbstractContextManager[None]: ...
    def started(self, vm_uuid: str) -> None: ...
    def status(self, vm_uuid: str | None) -> list[dict[str, Any]]: ...
    def has_secondary(self, vm_uuid: str) -> bool: ...


class Life(Protocol):
    """What an operator does with a protected VM; see :class:`ftkvm.agent.pair_life.PairLife`."""

    def test_failover(self, vm_uuid: str, progress: Progress) -> Json: ...
    def test_restart_secondary(self, vm_uuid: str, progress: Progress) -> Json: ...
    def move_secondary(self, vm_uuid: str, to: str | None, progress: Progress) -> Json: ...
    def move(self, vm_uuid: str, to: str | None, progress: Progress) -> Json: ...


class Monitor(Protocol):
    """What this part needs of the VmMonitor."""

    def status(self, uuid: str) -> Json | None: ...


@dataclass(frozen=True)
class VmRecord:
    """A registered VM, as its record says (:mod:`ftkvm.agent.vm_file`)."""

    uuid: str
    name: str
    ft_enabled: bool = False
    ft_settings: dict[str, Any] = field(default_factory=dict)
    ha: dict[str, Any] = field(default_factory=dict)
    """Its own HA settings (HA-19): kept while it is in the cluster."""
    ft_disabled: bool = False
    """FT was disabled by hand: it runs as any other VM, and `ftkvm enable` takes up what was kept."""
    ft_place: str | None = None
    """The host of the secondary when FT was disabled."""

    @classmethod
    def from_json(cls, document: Json) -> "VmRecord":
        ft = document.get("ft", {})
        settings = dict(ft.get("settings", {}))
        ha = dict(document.get("ha") or {})
        enabled, kept = bool(ft.get("enabled", False)), ft.get("disabled")
        return cls(
            str(document["uuid"]), str(document["name"]), enabled, settings, ha,
            ft_disabled=not enabled and kept is not None, ft_place=(kept or {}).get("secondary"),
        )  # fmt: skip

    def to_json(self) -> Json:
        return {"uuid": self.uuid, "name": self.name,
                "ft": {"enabled": self.ft_enabled, "settings": self.ft_settings}, "ha": self.ha}  # fmt: skip


class Vms:
    """Registered VMs, and what this host does with them."""

    def __init__(self, ctx: AgentContext, operations: Operations) -> None:
        self._ctx = ctx
        self._operations = operations
        self._last: list[VmRecord] | None = None
        self.corrupt: dict[str, CorruptFile] = {}
        """By UUID, the VMs whose record could not be read at the last look, and why."""

    # definitions

    def records(self) -> list[VmRecord]:
        """All registered VMs by name; the last known ones if the datastore does not answer.

        Those whose record cannot be read are in ``corrupt`` instead: nothing is done with them, the others go on.

        :raises DatastoreError: it does not answer, and has not since the agent was started
        """
        try:
            self._last, corrupt = bounded(self._ctx, lambda: read_records(self._ctx.datastore), "vms", _LIST_TIMEOUT_S)
            for uuid in corrupt.keys() - self.corrupt.keys():
                log.error("VM %s is left alone: %s", uuid, corrupt[uuid])
            self.corrupt = corrupt
        except DatastoreError as error:
            if self._last is None:
                raise
            log.warning("%s; going on with the VMs known", error)
        return self._last

    def find(self, name_or_uuid: str) -> VmRecord:
        """One VM by name or UUID.

        :raises FtkvmError: FTKVM-101; FTKVM-305 perhaps it is the one whose record cannot be read
        """
        for record in self.records():
            if name_or_uuid in (record.name, record.uuid):
                return record
        self._require_all_read()
        raise FtkvmError("FTKVM-101", vm=name_or_uuid)

    def _require_all_read(self) -> None:
        for error in self.corrupt.values():
            raise error

    def register(self, domain: str) -> VmRecord:
        """Take over a domain of this host's libvirt: its definition goes to the datastore, libvirt's own is dropped.

        A host that comes back can then never start a stale copy. Interrupted anywhere, it can simply be run again.

        :raises FtkvmError: FTKVM-104 no such domain, FTKVM-105 name or UUID taken, FTKVM-113 saved state, FTKVM-305 a
            record cannot be read: the name may be taken in it
        """
        info = self._ctx.libvirt.find(domain)
        record = VmRecord(info.uuid, info.name)
        others = self.records()
        self._require_all_read()
        for other in others:
            again = other.uuid == info.uuid and other.name == info.name and info.persistent
            if not again and (other.uuid == info.uuid or other.name == info.name):
                raise FtkvmError("FTKVM-105", vm=info.name)
        if self._ctx.libvirt.has_managed_save(info.uuid):
            raise FtkvmError("FTKVM-113", domain=info.name)
        xml = self._ctx.libvirt.xml(info.uuid, inactive=True)
        require_writable(self._ctx)
        bounded(self._ctx, lambda: self._store(record, xml), f"vms/{info.uuid}")
        if info.active:  # a host that runs it and falls silent must be known as one that may run it
            self.claim(record, self.owner(record.uuid)[0])
        if info.persistent:
            self._ctx.libvirt.undefine(info.uuid)
        return record

    def _store(self, record: VmRecord, xml: str) -> None:
        self._ctx.datastore.replace_text(f"vms/{record.uuid}/domain.xml", xml)
        there = VmRecord.from_json(vm_file.create(self._ctx.datastore, record.uuid, record.to_json()))
        if there.name != record.name:
            raise FtkvmError("FTKVM-105", vm=record.name)

    def definition(self, uuid: str) -> str:
        """The domain XML a VM is started from.

        :raises FtkvmError: FTKVM-108, missing or not XML
        """
        path = f"vms/{uuid}/domain.xml"
        xml = bounded(self._ctx, lambda: self._ctx.datastore.read_text(path), path)
        try:
            ET.fromstring(xml or "")
        except ET.ParseError as error:
            raise FtkvmError("FTKVM-108", vm=uuid, detail=str(error)) from error
        return xml or ""

    def unregister(self, uuid: str) -> VmRecord:
        """Define the VM in this host's libvirt, then forget it, its settings and its resets.

        Interrupted anywhere, it can be run again.

        :raises FtkvmError: FTKVM-101, FTKVM-106 libvirt refuses the definition
        """
        record = self.find(uuid)
        self._ctx.libvirt.define(self.definition(uuid))

        def forget() -> None:
            datastore = self._ctx.datastore
            for part in ("owner", "screenshots"):
                for name in datastore.list(f"vms/{uuid}/{part}"):
                    datastore.remove(f"vms/{uuid}/{part}/{name}")
            for name in ("resets.json", "prepare.json"):
                datastore.remove(f"vms/{uuid}/{name}")
            datastore.remove(attempts.path_of(uuid))
            datastore.remove(f"vms/{uuid}/domain.xml")
            vm_file.forget(datastore, uuid)

        bounded(self._ctx, forget, f"vms/{uuid}", _FORGET_TIMEOUT_S)
        return record

    # copies on this host

    def local(self) -> list[Json]:
        """All domains that have a QEMU on this host, or are being started or converted here; registered or not.

        safety: nothing is left out because the datastore does not answer. Who asks may start a VM that is not in this
        list somewhere else.
        """
        ours = {str(entry["uuid"]): entry for entry in self.pair_status(None)}  # it tells of main copies only
        coming = {path.stem for path in (self._ctx.config.paths.run / "incoming").glob("*.json")}
        found: dict[str, Json] = {}
        entry: Json
        for info in self._ctx.libvirt.domains():
            if info.active:
                role = "primary" if info.uuid in ours else self._role(info)
                state = info.state
                if state == "paused" and info.uuid in coming:
                    role = "incoming"  # a live migration's other end: not a copy that runs
                elif state == "paused" and ours.get(info.uuid, {}).get("state") == "protected":
                    state = "running"  # it stands in a checkpoint, many times a second
                found[info.uuid] = {"uuid": info.uuid, "name": info.name, "state": state, "role": role}
        for operation in self._operations.all_running():
            if operation.kind in _BUSY and operation.uuid not in found:
                entry = {"uuid": operation.uuid, "name": operation.vm, "state": _BUSY[operation.kind], "role": "solo"}
                found[operation.uuid] = entry
        monitor = cast(Monitor | None, self._ctx.extras.get("vm_monitor"))
        if monitor is not None:
            for uuid, entry in found.items():
                entry["monitoring"] = monitor.status(uuid)
        return sorted(found.values(), key=lambda entry: str(entry["name"]))

    def _role(self, info: "DomainInfo") -> str:
        """primary, secondary or solo, by what the keeper was told; a copy still being made is a paused domain."""
        try:
            role = json.loads((self._ctx.config.paths.run / "pairs" / f"{info.uuid}.json").read_text()).get("role")
        except (OSError, ValueError):
            role = None
        if role in ("primary", "secondary", "solo"):
            return str(role)
        protected = any(record.uuid == info.uuid and record.ft_enabled for record in self._last or [])
        return "secondary" if protected and info.state == "paused" else "solo"

    def pair_status(self, uuid: str | None) -> list[dict[str, Any]]:
        """What the PairManager of this host says of its pairs; nothing while there is none."""
        pairs = self.pairs
        return pairs.status(uuid) if pairs is not None else []

    @property
    def pairs(self) -> Pairs | None:
        """The PairManager, once it runs."""
        return cast(Pairs | None, self._ctx.extras.get("pairs"))

    def start(
        self,
        record: VmRecord,
        expected_owner: int,
        progress: Progress,
        *,
        why: str = "started",
        cold_epoch: int | None = None,
        cold_winner: str | None = None,
    ) -> None:
        """Start the VM on this host.

        ``expected_owner`` is the number of the newest owner file the caller saw when it made sure that the VM runs
        nowhere; the next number is created once, so of two starters at the same time one goes on. ``why``: an
        operator does it (``started``), or HA (``restarted``). ``cold_epoch``: the caller also knows that no copy of
        this undecided epoch is left, and ``cold_winner`` is its primary's host.

        :raises FtkvmError: FTKVM-103 somebody else started it meanwhile, FTKVM-106/107 libvirt refused,
            FTKVM-129/132 it is none that runs here, FTKVM-111/115/118 which images are the last is not decided,
            FTKVM-172/174 they are not here,
            FTKVM-622 this host cannot guard it now
        """
        progress(1, 3, f"taking the VM for {self._ctx.host}")
        require_guard(self._ctx, record.name)
        self._ctx.libvirt.require_versions()
        xml = self.definition(record.uuid)
        facts = VmFacts.of(xml, Rules(datastore=str(self._ctx.config.datastore)))
        model.require(model.run(record.name, CHECKS, facts, for_ft=False, vm=record.name))
        cold = ColdStart(self._ctx, record.name, PairStore(self._ctx.datastore, record.uuid), xml)
        cold.require_home(cold_winner)
        if why == "started":
            note_power(self._ctx, record.uuid, on=True)
        cold.end_epoch(cold_epoch, cold_winner)  # before the owner file, which is the later word of the two
        self.claim(record, expected_owner, why)
        progress(2, 3, "finding its newest images")
        try:
            xml = plain_xml(xml, changed_images(xml, cold.images(progress)))
            progress(3, 3, "starting QEMU")
            pairs = self.pairs
            with pairs.starting(record.uuid, record.name) if pairs is not None else nullcontext():
                self._create(record, xml)
        except FtkvmError as error:
            if error.code in _NOTHING_RUNS:
                self._not_started(record, why)
            raise
        if pairs is not None:
            pairs.started(record.uuid)

    def _create(self, record: VmRecord, xml: str) -> None:
        try:
            self._ctx.libvirt.create(xml)
        except FtkvmError as error:
            if error.code == "FTKVM-107":
                raise FtkvmError("FTKVM-107", vm=record.name, detail=error.params.get("detail", "")) from error
            raise

    def _not_started(self, record: VmRecord, why: str) -> None:
        """Take back what a start has noted: an operator's counts as not wanted, HA's may be tried elsewhere.

        safety: libvirt also refuses what runs here already (the end of an earlier start was lost). That VM stays ours;
        released, it would be started on another host as well. Who cannot be asked releases nothing.
        """
        domain = self._ctx.libvirt.domain(record.uuid)
        if domain is not None and domain.active:
            return
        if why == "started":
            try_power(self._ctx, record.uuid, on=False)
        self.let_go(record, "stopped" if why == "started" else "released")

    def waiting_for_nobody(self, record: VmRecord) -> set[str]:
        """The host of a copy that a cut-off protect left waiting: its start ends it (``cold_start``)."""
        store = PairStore(self._ctx.datastore, record.uuid)

        def read() -> set[str]:
            journal, pair = store.operation(), store.latest()
            unrecorded = journal is not None and journal.is_protect_after(pair.epoch if pair else 0)
            return {journal.secondary} if journal is not None and unrecorded and journal.secondary else set()

        return bounded(self._ctx, read, f"ft/{record.uuid}")

    def undecided_epoch(self, record: VmRecord) -> tuple[int, str] | None:
        """(number, primary's host) of the newest epoch while nobody has won it."""
        store = PairStore(self._ctx.datastore, record.uuid)

        def read() -> tuple[int, str] | None:
            pair = store.latest()
            if pair is None or isinstance(store.winner(pair.epoch), Winner):
                return None
            return pair.epoch, pair.primary.host

        return bounded(self._ctx, read, f"ft/{record.uuid}")

    def owner(self, uuid: str) -> tuple[int, str | None]:
        """(number, host) of the newest owner file; (0, None) if it was never started by the cluster."""

        def read() -> tuple[int, str | None]:
            owners = f"vms/{uuid}/owner"
            number = numbered.newest(self._ctx.datastore.list(owners))
            if not number:
                return 0, None
            document = self._ctx.datastore.read_json(numbered.path_of(owners, number))
            host = document.get("host") if document else None
            return number, str(host) if host else None

        return bounded(self._ctx, read, f"vms/{uuid}/owner")

    def possible_hosts(self, record: VmRecord) -> set[str]:
        """Hosts that may have a live copy as far as the datastore tells.

        safety: the newest epoch says it (its winner, or both its hosts while it has none) as long as no owner file is
        newer than the one its record names. A copy of a decided epoch on another host cannot go live any more (its
        agent finds the winner's file). Later owner files are written by the epoch's winner, or by a start after its
        end. A record that names no owner file (of an older version) counts while FT is on.
        """
        number, owner = self.owner(record.uuid)
        hosts = {owner} if owner else set()
        store = PairStore(self._ctx.datastore, record.uuid)

        def of_the_pair() -> set[str]:
            pair = store.latest()
            if pair is None:
                return set()
            known = pair.owner
            if number > known if known is not None else (number > 0 and not record.ft_enabled):
                return set()
            winner = store.winner(pair.epoch)
            if isinstance(winner, Winner):  # after a cold restart only the owner file speaks
                return set() if winner.reason is Reason.COLD_RESTART else {winner.host}
            return {pair.primary.host, pair.secondary.host}

        return hosts | bounded(self._ctx, of_the_pair, f"ft/{record.uuid}")

    def home(self, record: VmRecord, cold_winner: str | None = None) -> str | None:
        """The only host a VM that is off may be started on (``ft.disks=copy``); None: any. See :class:`ColdStart`."""
        store = PairStore(self._ctx.datastore, record.uuid)
        return ColdStart(self._ctx, record.name, store, self.definition(record.uuid)).home(cold_winner)

    def has_old_pair_record(self, record: VmRecord) -> bool:
        """Whether the VM's newest pair was recorded by a version that did not note boots and owner."""
        pair = bounded(self._ctx, PairStore(self._ctx.datastore, record.uuid).latest, f"ft/{record.uuid}")
        return pair is not None and pair.owner is None

    def claim(self, record: VmRecord, expected: int, why: str = "started") -> None:
        """Take the owner file after number ``expected`` for this host.

        :raises FtkvmError: FTKVM-103, somebody else has it
        """
        mine = {"host": self._ctx.host, "boot_id": self._ctx.boot_id, "why": why, "at": time.time()}
        path = numbered.path_of(f"vms/{record.uuid}/owner", expected + 1)
        there = bounded(self._ctx, lambda: self._ctx.datastore.create_once(path, mine), path)
        if any(there.get(key) != value for key, value in mine.items()):
            raise FtkvmError("FTKVM-103", vm=record.name, host=there.get("host"))

    def stop(self, record: VmRecord, *, force: bool, timeout_s: float, progress: Progress) -> None:
        """Shut the VM down, or switch it off (``force``, or when it has not shut down in time and has no pair).

        :raises FtkvmError: FTKVM-112 not down in time while FT is on; FTKVM-116/117 switching off a pair
        """
        try_power(self._ctx, record.uuid, on=False)  # first: if this host is lost meanwhile, it stays off
        if not force:
            progress(1, 2, f"shutting down (up to {timeout_s:.0f} s)")
            self._ctx.libvirt.shutdown(record.uuid)
            if self._gone_within(record.uuid, timeout_s):
                self._release(record)
                return
            if record.ft_enabled:  # killing one copy would only make the other take over
                try_power(self._ctx, record.uuid, on=True)
                raise FtkvmError("FTKVM-112", vm=record.name, seconds=timeout_s)
        progress(2, 2, "switching off")
        pairs = self.pairs
        if pairs is None or not pairs.power_off(record.uuid):
            self._ctx.libvirt.destroy(record.uuid)
        self._release(record)

    def _release(self, record: VmRecord, why: str = "stopped") -> None:
        """Note that nobody runs the VM any more, so that it can be started while this host does not answer."""
        if not record.ft_enabled:  # else the pair's own records say who may have a copy
            self.let_go(record, why)

    def let_go(self, record: VmRecord, why: str) -> None:
        """Note that nobody has the VM any more, if this host has it."""

        def write(number: int) -> None:
            nobody = {"host": None, "boot_id": self._ctx.boot_id, "why": why, "at": time.time()}
            self._ctx.datastore.create_once(numbered.path_of(f"vms/{record.uuid}/owner", number + 1), nobody)

        try:
            number, owner = self.owner(record.uuid)
            if owner != self._ctx.host:  # HA took it over meanwhile: without an owner it could be started twice
                return
            bounded(self._ctx, lambda: write(number), f"vms/{record.uuid}/owner")
        except DatastoreError as error:
            log.warning("%s; the VM is off, and the datastore still names this host", error)

    def _gone_within(self, uuid: str, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            info = self._ctx.libvirt.domain(uuid)
            if info is None or not info.active:
                return True
            time.sleep(0.3)
        return False


def read_records(datastore: Datastore) -> tuple[list[VmRecord], dict[str, CorruptFile]]:
    """All registered VMs by name, and why the record of others cannot be read, by UUID. Blocks."""
    found, corrupt = [], {}
    for uuid in datastore.list("vms"):
        try:
            record = vm_file.read_versioned(datastore, uuid)
            if record is not None:  # else it is being registered, or leaving
                path = vm_file.record_path(uuid, record.number)
                found.append(understood(path, record.document, VmRecord.from_json))
        except CorruptFile as error:
            corrupt[uuid] = error
    return sorted(found, key=lambda record: record.name), corrupt
