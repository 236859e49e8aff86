"""``ftkvm vm prepare``: mends a VM's definition and disks for FT, or shows what it would do."""

from dataclasses import asdict

from ftkvm.agent import ft_checks
from ftkvm.agent.context import AgentContext
from ftkvm.agent.convert import Converting, planned, require_not_wanted
from ftkvm.agent.service import Service
from ftkvm.agent.storage import bounded, require_writable
from ftkvm.agent.vms import VmRecord
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.convert import Conversion
from ftkvm.core.checks.mend import Mended, mend
from ftkvm.ports import Json, Progress

_HAND_OVER_TIMEOUT_S = 20.0


class Prepare:
    """The entry points. The definition is on the datastore, so any agent may be asked; images of one host, that one."""

    def __init__(self, ctx: AgentContext, service: Service) -> None:
        self._ctx, self._service = ctx, service

    def prepare(self, name: str, *, dry_run: bool, discard: bool = False, host: str | None = None) -> Json:
        """Mend what can be mended mechanically; what is left is in ``report``. A dry run may be asked of one that runs.

        If disks are to be converted that is an ``operation``, whose result is the rest of the answer. ``discard``:
        delete the old images then. ``host``: where the images are, if they are not on the datastore.

        Should somebody start the VM in the same moment, it runs as it was, and its next start is from the new
        definition; its disks are another matter (:mod:`ftkvm.agent.convert`).

        :raises FtkvmError: FTKVM-101, 108, 201, FTKVM-110 FT is on, FTKVM-135 it is not off, FTKVM-109 nobody knows
        """
        record = self._service.vms.find(name)
        if host is None or host == self._ctx.host:
            return self.prepare_here(record.uuid, dry_run=dry_run, discard=discard)
        self._ctx.cluster.host(host)
        path, body = f"/v1/local/vms/{record.uuid}/prepare", {"dry_run": dry_run, "discard": discard}
        return self._ctx.peers.call(host, "POST", path, body, _HAND_OVER_TIMEOUT_S)

    def prepare_here(self, uuid: str, *, dry_run: bool, discard: bool = False) -> Json:
        """As :meth:`prepare`, with the images that this host sees."""
        record = self._service.vms.find(uuid)
        xml, rules = self._service.vms.definition(record.uuid), ft_checks.rules_of(self._ctx, record)
        todo = planned(self._ctx, record, xml, rules)
        mended = mend(xml, rules, todo)
        if mended.changes and not dry_run:
            if record.ft_enabled:
                raise FtkvmError("FTKVM-110", vm=record.name, action="changing its definition")
            if todo:
                return self._convert(record, todo, xml, mended, discard=discard)
            self._service.require_off(record)
            require_writable(self._ctx)
            path = f"vms/{record.uuid}/domain.xml"
            bounded(self._ctx, lambda: self._ctx.datastore.replace_text(path, mended.xml), path)
        return self._answer(record, mended, dry_run=dry_run)

    def _convert(
        self, record: VmRecord, todo: tuple[Conversion, ...], xml: str, mended: Mended, *, discard: bool
    ) -> Json:
        owner, _host = self._service.vms.owner(record.uuid)  # before looking: a start in between then takes the next
        self._service.require_off(record)
        require_not_wanted(self._ctx, record)
        require_writable(self._ctx)
        converting = Converting(self._ctx, self._service.vms, record, todo)

        def work(progress: Progress) -> Json:
            kept = converting.run(owner, xml, mended.xml, progress, discard=discard)
            return {**self._answer(record, mended, dry_run=False), "kept": kept}

        operation = self._service.operations.start("prepare", record.name, record.uuid, work)
        return {**self._answer(record, mended, dry_run=False), "operation": asdict(operation)}

    def _answer(self, record: VmRecord, mended: Mended, *, dry_run: bool) -> Json:
        report = ft_checks.look_at_vm(self._ctx, record, mended.xml)
        return {"vm": record.name, "dry_run": dry_run, "changes": list(mended.changes), "kept": [],
                "operation": None, "difference": mended.difference, "report": report.to_json()}  # fmt: skip
