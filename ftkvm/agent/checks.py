"""``ftkvm check``: what would refuse a VM, a host or the cluster, looked at now; nothing is changed.

The checks are those that enable, power-on and placement ask, so what is said here is what happens there.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

from ftkvm.agent import ft_checks, placing
from ftkvm.agent.context import AgentContext
from ftkvm.agent.service import Service
from ftkvm.agent.vms import VmRecord
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.model import Finding, Result
from ftkvm.core.placement import VmNeeds
from ftkvm.ports import Json

_TIMEOUT_S = 20.0


class Checks:
    """The entry points. ``*_here`` look at this host; the others may be asked of any agent."""

    def __init__(self, ctx: AgentContext, service: Service) -> None:
        self._ctx, self._service = ctx, service

    def vm(self, name: str, *, for_ft: bool) -> Json:
        """A VM: looked at on the host it runs on; if it is off, by its definition.

        :raises FtkvmError: FTKVM-101, FTKVM-108 its definition is no XML, or a host or the storage is silent
        """
        record = self._service.vms.find(name)
        main = self._service.places().main(record.uuid)
        if main is None or main[0] == self._ctx.host:
            return self.vm_here(record.uuid, for_ft=for_ft)
        path = f"/v1/local/check/vm/{record.uuid}?for_ft={for_ft}"
        return self._ctx.peers.call(main[0], "GET", path, None, _TIMEOUT_S)

    def vm_here(self, uuid: str, *, for_ft: bool) -> Json:
        """A VM that runs here, or nowhere."""
        record = self._service.vms.find(uuid)
        info = self._ctx.libvirt.domain(uuid)
        running = info is not None and info.active
        xml = self._ctx.libvirt.xml(uuid) if running else self._service.vms.definition(uuid)
        report = ft_checks.look_at_vm(self._ctx, record, xml, for_ft=for_ft)
        if for_ft and running and not record.ft_enabled:
            report = replace(report, results=report.results + self._hosts_for(record, xml))
        return {**report.to_json(), "running": running, "for_ft": for_ft}

    def _hosts_for(self, record: VmRecord, xml: str) -> tuple[Result, ...]:
        """Whether a pair could be made now: this host, and one for the secondary."""
        root = ET.fromstring(xml)
        memory_kib = int(root.findtext("memory") or 0)  # of a running domain libvirt writes KiB
        needs = VmNeeds(record.name, self._ctx.host, memory_kib // 1024, placing.bridges(xml))
        return (
            _asked("this-host", "the host it runs on can be a primary's", lambda: ft_checks.require_ready(self._ctx)),
            _asked("ft-network", "a second host answers on the FT network",
                   lambda: ft_checks.require_secondary(self._ctx, record, None)),
            _asked("second-host", "a second host fits", lambda: placing.choose_for(self._ctx, needs, None)),
        )  # fmt: skip


def _asked(name: str, title: str, ask: Callable[[], object]) -> Result:
    try:
        ask()
    except FtkvmError as error:
        params = {key: str(value) for key, value in error.params.items()}
        return Result(name, title, (Finding(error.code, params),))
    return Result(name, title, ())
