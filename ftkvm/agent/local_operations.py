"""What this host is asked to do with the VMs that run here, or shall run here: checked, then begun as an operation."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from ftkvm.agent import ft_checks
from ftkvm.agent.admission import Admission
from ftkvm.agent.attempts import forget_failed, note_failed
from ftkvm.agent.changed import read_again
from ftkvm.agent.context import AgentContext
from ftkvm.agent.convert import Converting, planned, require_not_wanted
from ftkvm.agent.evacuation import Evacuation
from ftkvm.agent.migrate import Migration
from ftkvm.agent.operations import Operation, Operations
from ftkvm.agent.placing import hosts_facts
from ftkvm.agent.records import PairStore
from ftkvm.agent.storage import bounded
from ftkvm.agent.vms import Pairs, VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.mend import on_new_images
from ftkvm.core.ha.model import OwnerWhy
from ftkvm.core.ha.settings import kept_empty
from ftkvm.core.move import choose
from ftkvm.core.placement import HostFacts
from ftkvm.ports import Json, Progress

log = logging.getLogger(__name__)


class LocalOperations:
    """All but ``obstacles`` and ``settings_changed`` begin an operation, or do their work at once (``register``).

    What needs the whole cluster is asked of it: ``require_off`` (a VM has no copy anywhere), ``move_secondary`` (of a
    VM whose primary is elsewhere) and ``operation`` (one that runs anywhere).
    """

    def __init__(
        self,
        ctx: AgentContext,
        vms: Vms,
        operations: Operations,
        admission: Admission,
        *,
        require_off: Callable[[VmRecord], None],
        move_secondary: Callable[[str], Json],
        operation: Callable[[str], Json],
    ) -> None:
        self._ctx = ctx
        self._vms = vms
        self._operations = operations
        self._admission = admission
        self._require_off = require_off
        self._evacuation = Evacuation(
            ctx, vms,
            migration=lambda record, facts: self._migration(record, None, facts),
            begin=lambda record: self._begin_migration(record, None),
            move_secondary=move_secondary,
            operation=operation,
        )  # fmt: skip

    def register(self, domain: str) -> Json:
        """Take over a domain of this host; one that runs brings its load into the cluster.

        :raises FtkvmError: FTKVM-104, 105, 113, and FTKVM-630 … 632
        """
        info = self._ctx.libvirt.find(domain)
        if info.active:
            self._admission.require_arrival(info.uuid, info.name, self._ctx.host)
        return self._vms.register(domain).to_json()

    def start(
        self,
        uuid: str,
        owner: int,
        *,
        why: str = "started",
        cold_epoch: int | None = None,
        cold_winner: str | None = None,
        attempt: int = 0,
    ) -> Json:
        """Begin to start a VM here; see :meth:`Vms.start`. ``attempt``: HA's n-th, noted if it fails.

        safety: HA starts a VM that was in a pair only when the pair's record names the boots of both its hosts and the
        owner file of that moment (``core.ha.lost``). A record of an older version does not: a host that had been
        booted once looked like one that had lost its copy, and a VM ran twice (seen in the lab). Such a one is started
        by an operator's `vm start`, which asks every host.

        :raises FtkvmError: FTKVM-119; the operation fails with FTKVM-630 … 633 too
        """
        record = self._vms.find(uuid)

        def work(progress: Progress) -> None:
            if why != OwnerWhy.RESTARTED:  # admission control never refuses HA
                self._admission.require_start(record, self._ctx.host)
            try:
                if why == OwnerWhy.RESTARTED and self._vms.has_old_pair_record(record):
                    raise FtkvmError("FTKVM-119", vm=record.name)
                self._vms.start(record, owner, progress, why=why, cold_epoch=cold_epoch, cold_winner=cold_winner)
            except FtkvmError as error:
                note_failed(self._ctx, uuid, attempt, error, asked=owner, newest=lambda: self._vms.owner(uuid)[0])
                raise
            forget_failed(self._ctx, uuid)

        return asdict(self._operations.start("start", record.name, uuid, work))

    def stop(self, uuid: str, *, force: bool, timeout_s: float) -> Json:
        """Begin to stop a VM here."""
        record = self._operated(uuid)
        operation = self._operations.start(
            "stop", record.name, uuid,
            lambda progress: self._vms.stop(record, force=force, timeout_s=timeout_s, progress=progress),
        )  # fmt: skip
        return asdict(operation)

    def enable(self, uuid: str, secondary: str | None) -> Json:
        """Check everything that can be checked without touching anything, then begin to protect a VM that runs here."""
        record, pairs = self._operated(uuid), self._pairs()
        running = self._operations.running(uuid)
        if running is not None:
            raise FtkvmError("FTKVM-501", vm=record.name, operation=running.kind)
        if record.ft_enabled:
            raise FtkvmError("FTKVM-401", vm=record.name)
        info = self._ctx.libvirt.domain(uuid)
        if info is None and secondary is None:
            return self._enable_stopped(record)
        if info is None or info.state != "running":
            raise FtkvmError("FTKVM-102", vm=record.name)
        if secondary == self._ctx.host:
            raise FtkvmError("FTKVM-403", vm=record.name, host=secondary)
        ft_checks.require_ready(self._ctx)
        ft_checks.require_suitable(self._ctx, record)
        chosen = self._place_of_secondary(record, secondary)
        self._admission.require_protect(record, chosen)
        operation = self._operations.start(
            "enable", record.name, uuid, lambda progress: pairs.enable(uuid, chosen, progress)
        )
        return asdict(operation)

    def _place_of_secondary(self, record: VmRecord, wanted: str | None) -> str | None:
        """The host for the secondary: the operator's, else the one kept by `disable` if it can, else any that can."""
        kept = record.ft_place if record.ft_disabled and wanted is None else None
        if kept is not None and kept != self._ctx.host:
            try:
                return ft_checks.require_secondary(self._ctx, record, kept)
            except FtkvmError as error:
                log.info("%s: the secondary's old place cannot take it: %s", record.name, error)
        return ft_checks.require_secondary(self._ctx, record, wanted)

    def _enable_stopped(self, record: VmRecord) -> Json:
        """Turn FT on for a VM that runs nowhere (FT-02): checked now, and again when it is started; then protected.

        Disks that FT refuses for their image only are converted first (FT-17).
        """
        ft_checks.require_ready(self._ctx)
        xml = self._vms.definition(record.uuid)
        todo = planned(self._ctx, record, xml, ft_checks.rules_of(self._ctx, record))
        new_xml = on_new_images(xml, todo).xml
        ft_checks.require_suitable(self._ctx, record, new_xml)
        owner, _host = self._vms.owner(record.uuid)  # before looking: a start in between then takes the next number
        if todo:
            self._require_off(record)
            require_not_wanted(self._ctx, record)

        def work(progress: Progress) -> Json | None:
            converted = None
            if todo:
                kept = Converting(self._ctx, self._vms, record, todo).run(owner, xml, new_xml, progress, discard=False)
                converted = {"converted": [str(each) for each in todo], "kept": kept}
            progress(1, 1, "FT is on; the secondary is made when the VM is started")
            store = PairStore(self._ctx.datastore, record.uuid)
            bounded(self._ctx, lambda: store.set_ft_enabled(True), f"vms/{record.uuid}")
            return converted

        return asdict(self._operations.start("enable", record.name, record.uuid, work))

    def turn_off(self, uuid: str, *, disable: bool = False) -> Json:
        """Begin to turn FT off, or to disable it."""
        record, pairs = self._operated(uuid), self._pairs()

        def work(progress: Progress) -> None:
            if record.ft_disabled and not cut_off(self._ctx, record):  # no pair is left: only the wish is
                store = PairStore(self._ctx.datastore, uuid)
                bounded(self._ctx, lambda: store.set_ft_off(None), f"vms/{uuid}")
                return
            pairs.turn_off(uuid, progress, disable=disable)

        return asdict(self._operations.start("disable" if disable else "turn-off", record.name, uuid, work))

    def test(self, uuid: str, what: Literal["failover", "restart-secondary"]) -> Json:
        """Begin a test of the pair whose primary is here."""
        record, life = self._operated(uuid), self._pairs().life
        run = life.test_failover if what == "failover" else life.test_restart_secondary
        return asdict(self._operations.start(f"test-{what}", record.name, uuid, lambda progress: run(uuid, progress)))

    def move_secondary(self, uuid: str, to: str | None) -> Json:
        """Begin to move the secondary of the VM whose primary is here."""
        record, life = self._operated(uuid), self._pairs().life
        operation = self._operations.start(
            "move-secondary", record.name, uuid, lambda progress: life.move_secondary(uuid, to, progress)
        )
        return asdict(operation)

    def migrate(self, uuid: str, to: str | None) -> Json:
        """Begin to move a VM that runs here to another host."""
        return asdict(self._begin_migration(self._operated(uuid), to))

    def _begin_migration(self, record: VmRecord, to: str | None) -> Operation:
        running = self._operations.running(record.uuid)
        if running is not None:
            raise FtkvmError("FTKVM-501", vm=record.name, operation=running.kind)
        if record.ft_enabled:
            life = self._pairs().life
            return self._operations.start(
                "migrate", record.name, record.uuid, lambda progress: life.move(record.uuid, to, progress)
            )
        migration = self._migration(record, to)
        return self._operations.start("migrate", record.name, record.uuid, migration.run)

    def _migration(self, record: VmRecord, to: str | None, facts: list[HostFacts] | None = None) -> Migration:
        """The live migration of an ordinary VM, with its target chosen and everything checked that can be beforehand.

        ``facts``: of the hosts, if they were just asked.

        :raises FtkvmError: FTKVM-655 no host can take it, and what :meth:`Migration.require` and admission raise
        """
        target = to
        if target is None:
            xml = self._ctx.libvirt.xml(record.uuid)
            kept = kept_empty(self._ctx.cluster.current().settings)
            there = hosts_facts(self._ctx) if facts is None else facts
            target, why = choose([each for each in there if each.name != kept], self._ctx.host, xml)
            if target is None:
                reasons = "; ".join(f"{host}: {', '.join(each)}" for host, each in why.items())
                raise FtkvmError("FTKVM-655", vm=record.name, reasons=reasons or "this is the only host")
        migration = Migration(self._ctx, self._vms, record, target)
        migration.require()
        self._admission.require_migration(record, target)
        return migration

    def obstacles(self) -> Json:
        """What would keep this host from being emptied: per VM why it has nowhere to go."""
        return {"obstacles": self._evacuation.obstacles()}

    def evacuate(self) -> Json:
        """Begin to move all VMs off this host, which is marked for maintenance."""
        host = self._ctx.host
        return asdict(self._operations.start("evacuate", host, f"host:{host}", self._evacuation.run))

    def settings_changed(self, uuid: str) -> Json:
        """Somebody changed a VM's settings: this host's parts read them now."""
        return read_again(self._ctx, uuid)

    def _operated(self, uuid: str) -> VmRecord:
        """A VM that this host was asked to operate.

        safety: a secondary is no VM of its own; stopped or moved like one, it would be lost to the pair, or its epoch
        ended, while the primary goes on.

        :raises FtkvmError: FTKVM-530 only the VM's secondary is here (FT-08)
        """
        record, pairs = self._vms.find(uuid), self._vms.pairs
        if pairs is not None and pairs.has_secondary(uuid):
            raise FtkvmError("FTKVM-530", vm=record.name, host=self._ctx.host)
        return record

    def _pairs(self) -> Pairs:
        pairs = self._vms.pairs
        if pairs is None:
            raise FtkvmError("FTKVM-202", host=self._ctx.host, detail="its agent is just starting")
        return pairs


def cut_off(ctx: AgentContext, record: VmRecord) -> bool:
    """Whether an operation on the pair was begun and never ended."""
    store = PairStore(ctx.datastore, record.uuid)
    return bounded(ctx, store.operation, f"ft/{record.uuid}") is not None


__all__ = ["LocalOperations", "cut_off"]
