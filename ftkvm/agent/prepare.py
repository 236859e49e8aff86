"""``ftkvm vm prepare``: mends a VM's definition for FT, or shows what it would do."""

from ftkvm.agent import ft_checks
from ftkvm.agent.context import AgentContext
from ftkvm.agent.service import Service
from ftkvm.agent.storage import bounded, require_writable
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.mend import mend
from ftkvm.ports import Json


class Prepare:
    """The entry point; may be asked of any agent, since the definition is on the datastore."""

    def __init__(self, ctx: AgentContext, service: Service) -> None:
        self._ctx, self._service = ctx, service

    def prepare(self, name: str, *, dry_run: bool) -> Json:
        """Mend what can be mended mechanically; what is left is in ``report``. A dry run may be asked of one that runs.

        Should somebody start the VM in the same moment, it runs as it was, and its next start is from the new
        definition: nothing that is mended touches a disk that is written.

        :raises FtkvmError: FTKVM-101, 108, FTKVM-110 FT is on, FTKVM-135 it is not off, FTKVM-109 that is not known
        """
        record = self._service.vms.find(name)
        xml = self._service.vms.definition(record.uuid)
        mended = mend(xml, ft_checks.rules_of(self._ctx))
        if mended.changes and not dry_run:
            if record.ft_enabled:
                raise FtkvmError("FTKVM-110", vm=record.name, action="changing its definition")
            self._service.require_off(record)
            require_writable(self._ctx)
            path = f"vms/{record.uuid}/domain.xml"
            bounded(self._ctx, lambda: self._ctx.datastore.replace_text(path, mended.xml), path)
        report = ft_checks.look_at_vm(self._ctx, record, mended.xml)
        return {"vm": record.name, "dry_run": dry_run, "changes": list(mended.changes),
                "difference": mended.difference, "report": report.to_json()}  # fmt: skip
