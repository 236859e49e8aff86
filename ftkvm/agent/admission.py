"""Admission control on the running cluster: what hosts have and VMs ask for now, and what is refused for it."""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ftkvm.agent.context import AgentContext
from ftkvm.agent.gather import Answers, gather
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig
from ftkvm.core.checks import domain
from ftkvm.core.ha.admission import Refused, admit, refused_there
from ftkvm.core.ha.capacity import HOST_MEMORY_MB, OVERHEAD_MB, HostRoom, Load, Rules, unreserved
from ftkvm.core.ha.settings import VmSettings, all_vm_settings, vm_settings
from ftkvm.ports import DatastoreError, PeerUnreachable

if TYPE_CHECKING:
    from ftkvm.agent.service import Places

log = logging.getLogger(__name__)
_CODES = {
    Refused.HOST_FAILURES: "FTKVM-630", Refused.PERCENTAGE: "FTKVM-631", Refused.FAILOVER_HOST: "FTKVM-632",
    Refused.HOST_FULL: "FTKVM-633",
}  # fmt: skip


@dataclass(frozen=True)
class Now:
    """The cluster at one moment."""

    config: ClusterConfig
    rules: Rules
    hosts: list[HostRoom]
    loads: list[Load]


class Admission:
    """``places``: asks all hosts which VMs they run; ``may_run``: the silent hosts that may run a VM."""

    def __init__(
        self, ctx: AgentContext, vms: Vms, places: Callable[[], "Places"],
        may_run: Callable[[VmRecord, "Places"], set[str]],
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._vms = vms
        self._places = places
        self._may_run = may_run

    def now(self, places: "Places | None" = None, *, health: Answers | None = None, bridges: bool = False) -> Now:
        """What is there. ``places``, ``health``: the hosts' answers, if the caller has just asked. ``bridges``: also
        which bridges the VMs need, which takes reading their definitions."""
        config = self._ctx.cluster.current(fresh=True)
        places = places or self._places()
        records = {record.uuid: record for record in self._vms.records()}
        settings = all_vm_settings(config.settings, {uuid: record.ha for uuid, record in records.items()})
        loads = []
        for uuid, copies in places.copies.items():
            if uuid in records:  # a domain that is not ours is not restarted, and needs no room elsewhere
                roles = [(host, str(entry["role"])) for host, entry in copies if entry["role"] != "incoming"]
                loads += [self._load(records[uuid], settings[uuid], host, role, bridges) for host, role in roles]
        for uuid in (records.keys() - places.copies.keys()) if places.silent else ():
            lost = sorted(self._may_run(records[uuid], places))
            loads += [self._load(records[uuid], settings[uuid], host, "solo", bridges) for host in lost[:1]]
        return Now(config, Rules.of(config.settings), self._hosts(config, health), loads)

    def _hosts(self, config: ClusterConfig, health: Answers | None) -> list[HostRoom]:
        answers = health if health is not None else gather(self._ctx, "/v1/health", hosts=sorted(config.hosts))
        found = []
        for name, entry in sorted(config.hosts.items()):
            said = answers.get(name) or PeerUnreachable("FTKVM-202", host=name, detail="not asked")
            if isinstance(said, FtkvmError):
                found.append(HostRoom(name, 0, 0, "it does not answer"))
                continue
            why = "in maintenance" if entry.maintenance else str((said["error"] or {}).get("text", ""))
            cpu, memory = int(said.get("cpu_mhz") or 0), int(said.get("memory_mb") or 0)
            if not why and not (cpu and memory):
                why = "it does not say what it has"
            free = max(0, memory - HOST_MEMORY_MB)
            found.append(HostRoom(name, cpu, free, why, frozenset(said.get("bridges") or ())))
        return found

    def _load(self, record: VmRecord, values: VmSettings, host: str | None, role: str, bridges: bool) -> Load:
        xml = self._definition(record) if record.ft_enabled or bridges else None
        memory, overhead = values.memory_mb, OVERHEAD_MB
        if record.ft_enabled and xml is not None:
            memory = domain.memory_mb(xml)
            overhead += memory if role == "secondary" else 0  # it holds the checkpoint that is being loaded as well
        needs = domain.bridges(xml) if bridges and xml is not None else frozenset()
        return Load(record.uuid, record.name, host, values.cpu_mhz, memory, overhead, role, values.priority, needs)

    def _definition(self, record: VmRecord) -> ET.Element | None:
        try:
            return ET.fromstring(self._vms.definition(record.uuid))
        except (FtkvmError, DatastoreError) as error:
            log.warning("%s: reckoned without its definition: %s", record.name, error)
            return None

    # what may be refused

    def place(self, record: VmRecord, well: dict[str, int], places: "Places") -> str:
        """The host for a VM that is started: never the failover host, one with its reservation free, fewest VMs.

        :param well: hosts that can take a VM, with the number of VMs they run
        :raises FtkvmError: FTKVM-632, 633 none can
        """
        now = self.now(places)
        values = vm_settings(now.config.settings, record.ha)
        refusals = []
        for host in sorted(well, key=lambda name: (well[name], name)):
            one = self._load(record, values, host, "solo", False)
            verdict = refused_there(now.hosts, [*now.loads, one], one, now.rules)
            if verdict is None:
                return host
            refusals.append(verdict)
        raise FtkvmError(_CODES[refusals[0].refused or Refused.HOST_FULL], action="start", vm=record.name,
                         detail="; ".join(each.sum for each in refusals))  # fmt: skip

    def require_start(self, record: VmRecord, host: str, places: "Places | None" = None) -> None:
        """Refuse a start that uses up the room that is kept; with FT on, its secondary counts too.

        Asked before a start is begun, and again by its host once it is under way there. Others see a start that is
        under way as a load, so of two at the same moment the one that asks later counts the other: never both pass.
        Both may be refused; then one of them works when it is tried again.

        :raises FtkvmError: FTKVM-630 … 633
        """
        now = self.now(places)
        now = replace(now, loads=[load for load in now.loads if load.uuid != record.uuid])
        values = vm_settings(now.config.settings, record.ha)
        more = [self._load(record, values, host, "primary" if record.ft_enabled else "solo", False)]
        if record.ft_enabled:
            more.append(self._load(record, values, None, "secondary", False))
        self._require(now, [*now.loads, *more], "start", record.name)

    def require_arrival(self, uuid: str, name: str, host: str) -> None:
        """Refuse to take over a domain that runs already.

        :raises FtkvmError: FTKVM-630 … 632
        """
        now = self.now()
        values = vm_settings(now.config.settings, {})
        one = self._load(VmRecord(uuid, name), values, host, "solo", False)
        self._require(now, [*(load for load in now.loads if load.uuid != uuid), one], "register (running)", name)

    def require_migration(self, record: VmRecord, target: str) -> None:
        """Refuse to move a VM onto the failover host, or where its reservation is not free.

        :raises FtkvmError: FTKVM-630 … 633
        """
        now = self.now()
        moved = [replace(load, host=target) if load.uuid == record.uuid and load.role != "secondary" else load
                 for load in now.loads]  # fmt: skip
        self._require(now, moved, f"migrate to {target}", record.name)

    def require_protect(self, record: VmRecord, secondary: str | None) -> None:
        """Refuse FT when its reservation (the whole memory) and the secondary use up the room that is kept.

        :raises FtkvmError: FTKVM-630 … 633
        """
        now = self.now()
        values = vm_settings(now.config.settings, record.ha)
        with_ft = replace(record, ft_enabled=True)
        mine = [load for load in now.loads if load.uuid == record.uuid]
        others = [load for load in now.loads if load.uuid != record.uuid]
        pair = [self._load(with_ft, values, mine[0].host if mine else None, "primary", False),
                self._load(with_ft, values, secondary, "secondary", False)]  # fmt: skip
        self._require(now, [*others, *pair], "enable FT", record.name)

    def require_reservation(self, record: VmRecord, changed: VmRecord) -> None:
        """Refuse to raise a running VM's reservation beyond what is there.

        :raises FtkvmError: FTKVM-630 … 633
        """
        now = self.now()
        values = vm_settings(now.config.settings, changed.ha)
        after = [self._load(changed, values, load.host, load.role, False) if load.uuid == record.uuid else load
                 for load in now.loads]  # fmt: skip
        if after != now.loads:
            self._require(now, after, "raise the reservation", record.name)

    def _require(self, now: Now, after: list[Load], action: str, vm: str) -> None:
        verdict = admit(now.hosts, now.loads, after, now.rules)
        if verdict.refused is not None:
            log.info("%s of %s refused: %s", action, vm, verdict.sum)
            raise FtkvmError(_CODES[verdict.refused], action=action, vm=vm, detail=verdict.sum)
        log.info("%s of %s admitted: %s", action, vm, verdict.sum)


def room_of(now: Now) -> dict[str, dict[str, int | str]]:
    """Each host with what it has and what is unreserved, for people."""
    found: dict[str, dict[str, int | str]] = {}
    for host in now.hosts:
        left = unreserved(host, now.loads, replace(now.rules, vm_cpu_min=0))
        found[host.name] = {"cpu_mhz": host.cpu_mhz, "memory_mb": host.memory_mb, "free_cpu_mhz": left.cpu_mhz,
                            "free_memory_mb": left.memory_mb, "why_not": host.why_not}  # fmt: skip
    return found
