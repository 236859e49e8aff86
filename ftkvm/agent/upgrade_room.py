"""Whether the steps of a rolling upgrade have room, on the hosts and with the VMs of now."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from ftkvm.agent.admission import Admission
from ftkvm.agent.context import AgentContext
from ftkvm.agent.placing import hosts_facts
from ftkvm.agent.vms import Vms
from ftkvm.core.checks.domain import memory_mb
from ftkvm.core.ha.capacity import Load
from ftkvm.core.ha.settings import kept_empty
from ftkvm.core.upgrade import UpgradeStep
from ftkvm.core.upgrade_room import HostAt, VmAt, capacity_mb, shortages
from ftkvm.ports import Json


class UpgradeRoom:
    """The entry point of ``ftkvm cluster upgrade-plan`` for its sums."""

    def __init__(self, ctx: AgentContext, vms: Vms, admission: Admission) -> None:
        self._ctx, self._vms, self._admission = ctx, vms, admission

    def look(self, steps: Sequence[UpgradeStep]) -> Json:
        """What will not fit, by the number of its step.

        :raises FtkvmError: FTKVM-108 a definition is not understood, FTKVM-30x the datastore does not answer
        """
        now = self._admission.now()
        free = {facts.name: facts.free_memory_mb for facts in hosts_facts(self._ctx) if facts.alive}
        kept = kept_empty(now.config.settings)
        vms = self._running(now.loads)
        hosts = []
        for host in now.hosts:
            resting = now.config.hosts[host.name].maintenance
            why_not = "the failover host, which is kept empty" if host.name == kept else "" if resting else host.why_not
            has = capacity_mb(host.memory_mb, free.get(host.name), vms, host.name)
            hosts.append(HostAt(host.name, has, resting, why_not))
        found = shortages(steps, hosts, vms)
        return {"short": [{"number": each.number, "vm": each.vm, "text": str(each)} for each in found]}

    def _running(self, loads: Sequence[Load]) -> list[VmAt]:
        mains = {load.uuid: load for load in loads if load.role != "secondary" and load.host}
        seconds = {load.uuid: load.host for load in loads if load.role == "secondary"}
        found = []
        for uuid, load in mains.items():
            needs = memory_mb(ET.fromstring(self._vms.definition(uuid)))
            found.append(VmAt(load.name, needs, str(load.host), seconds.get(uuid)))
        return found
