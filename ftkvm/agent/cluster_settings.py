"""Settings of the cluster and of its VMs: shown, changed (all or none), checked; and what a loss of hosts would do."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ftkvm.agent import vm_file
from ftkvm.agent.admission import Admission, Now, room_of
from ftkvm.agent.changed import coordinator, tell_hosts
from ftkvm.agent.configuration import publish
from ftkvm.agent.context import AgentContext
from ftkvm.agent.gather import Answers
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.records import PairStore
from ftkvm.agent.storage import bounded
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core import ft_settings
from ftkvm.core.ha import admission as rules_of
from ftkvm.core.ha import budget, capacity, settings, whatif
from ftkvm.core.ha.setting import BadSetting, Kind, Setting, Value
from ftkvm.ports import CorruptFile, DatastoreError, Json

if TYPE_CHECKING:
    from ftkvm.agent.service import Places

log = logging.getLogger(__name__)
_ATTEMPTS = 16


class ClusterSettings:
    """The entry points of ``ftkvm cluster show|set|validate|what-if`` and ``ftkvm vm show|set``."""

    def __init__(self, ctx: AgentContext, vms: Vms, admission: Admission) -> None:
        self._ctx, self._vms, self._admission = ctx, vms, admission

    # the cluster's

    def show(self) -> Json:
        """Every setting with its value, default, range, meaning, and when a change applies."""
        config = self._ctx.cluster.current(fresh=True)
        given = config.settings
        now, force = settings.values(given), settings.in_force(given)
        rows = [_row(each, now[name], name in given, force[name]) for name, each in settings.SETTINGS.items()]
        return {"cluster": config.cluster, "version": config.version, "settings": rows}

    def change(self, words: Mapping[str, str], version: int | None) -> Json:
        """Change settings; all or none. ``version``: refuse unless the configuration is still that one.

        Two who write at the same time cannot overwrite each other: each writes the next version, which is created
        once; the other one is told.

        :raises FtkvmError: FTKVM-634 a bad name or value, FTKVM-635 a sum, FTKVM-606/636 somebody else was faster
        """
        config = self._ctx.cluster.current(fresh=True)
        if version is not None and version != config.version:
            raise FtkvmError("FTKVM-636", there=config.version, expected=version)
        try:
            changed = settings.change(config.settings, words)
        except BadSetting as error:
            raise FtkvmError("FTKVM-634", name=error.name, detail=error.detail) from error
        try:
            budget.check(changed)
        except BadSetting as error:
            raise FtkvmError("FTKVM-635", name=error.name, detail=error.detail) from error
        self._require_hosts(changed, words, config.hosts)
        if changed != config.settings:
            publish(self._ctx, config, settings=changed)
        return {**self.show(), "changed": sorted(map(settings.cluster_name, words))}

    def _require_hosts(self, changed: Mapping[str, Any], words: Mapping[str, str], hosts: Mapping[str, object]) -> None:
        for name in map(settings.cluster_name, words):
            host = changed.get(name)
            if settings.SETTINGS[name].kind is Kind.HOST and host and host not in hosts:
                raise FtkvmError("FTKVM-634", name=name, detail=f"there is no host {host} in the cluster")

    # what it comes to

    def validate(self, places: "Places | None" = None, health: Answers | None = None) -> Json:
        """Validity with reasons, the figures of the policy, and what is wrong with the settings (HA-13, HA-14).

        :param places: which VMs run where, if the caller has just asked
        :param health: the hosts' health, likewise
        """
        now = self._admission.now(places, health=health)
        given = now.config.settings
        validity = rules_of.validity(now.hosts, now.loads, now.rules)
        slots = capacity.reckon(now.hosts, now.loads, now.rules)
        share = rules_of.percentage(now.hosts, now.loads, now.rules)
        problems = [str(each) for each in settings.problems(given)]
        records = self._vms.records()
        problems += [f"the VM is left alone: {error.text}" for error in self._vms.corrupt.values()]
        for record in records:
            problems += [f"{record.name}: {each}" for each in settings.vm_problems(record.ha)]
        return {
            "cluster": now.config.cluster,
            "version": now.config.version,
            "validity": str(validity.state),
            "reasons": list(validity.reasons),
            "ha": now.rules.ha,
            "admission_control": now.rules.control,
            "policy": now.rules.policy,
            "runtime": _slots_json(slots),
            "percentage": _share_json(share),
            "failover_host": asdict(rules_of.failover(now.hosts, now.loads, now.rules)),
            "hosts": room_of(now),
            "restart_within_ms": budget.restart_ms(given),
            "breaches": [str(each) for each in budget.breaches(given)],
            "problems": problems,
            "waiting": _waiting(given),
            "warnings": _warnings(given, now),
        }

    def what_if(self, lose: Sequence[str]) -> Json:
        """What the loss of hosts would do, with each policy.

        :raises FtkvmError: FTKVM-201
        """
        for host in lose:
            self._ctx.cluster.host(host)
        now = self._admission.now(bridges=True)
        found = whatif.what_if(now.hosts, now.loads, now.rules, lose)
        return {
            "lost": list(found.lost),
            "runtime": _slots_json(found.slots),
            "vms": [asdict(each) for each in found.outcomes],
            "stranded": [each.vm for each in found.stranded],
            "policies": [asdict(each) for each in found.policies],
            "hosts": room_of(now),
        }

    # a VM's

    def show_vm(self, name: str) -> Json:
        """A VM's FT and HA settings."""
        return self._show_vm(self._vms.find(name))

    def _show_vm(self, record: VmRecord) -> Json:
        cluster = self._ctx.cluster.current(fresh=True).settings
        ft, ha = ft_settings.effective(record.ft_settings), settings.vm_values(cluster, record.ha)
        defaults = settings.vm_values(cluster, {})
        rows: list[Json] = [
            {**asdict(each), "allowed": each.allowed, "unit": "", "value": ft[each.name],
             "is_default": each.name not in record.ft_settings}
            for each in ft_settings.SETTINGS.values()
        ]  # fmt: skip
        for each in settings.VM_SETTINGS.values():
            row = _row(each, ha[each.name], each.name in record.ha, ha[each.name])
            rows.append({**row, "default": each.show(defaults[each.name])})
        return {"vm": record.name, "uuid": record.uuid, "settings": rows}

    def change_vm(self, name: str, words: Mapping[str, str]) -> Json:
        """Change a VM's FT (ft.*) and HA (ha.*) settings; all or none.

        If somebody else changes the VM at the same time, everything is looked at again as it is then. The hosts that
        act by the settings are told (``told``); one that does not answer (``not_told``) reads them in half a minute.

        :raises FtkvmError: FTKVM-114, FTKVM-637 a bad name or value, FTKVM-630 … 633 a reservation is too high,
            FTKVM-139 FT is on, and all memory is reserved (FT-11), FTKVM-260 others were faster each time
        """
        uuid = self._vms.find(name).uuid
        what = f"vms/{uuid}/record"
        for _attempt in range(_ATTEMPTS):
            before = bounded(self._ctx, lambda: vm_file.read_versioned(self._ctx.datastore, uuid), what)
            if before is None:
                raise FtkvmError("FTKVM-101", vm=name)
            path = vm_file.record_path(uuid, before.number)
            record = understood(path, before.document, VmRecord.from_json)
            changed = self._changed(record, words)
            store = PairStore(self._ctx.datastore, uuid)
            write = partial(store.set_settings, before, changed.ft_settings, changed.ha)
            if bounded(self._ctx, write, what):
                return {**self._show_vm(changed), **self._tell(changed)}
        raise FtkvmError("FTKVM-260", vm=name)

    def _tell(self, record: VmRecord) -> Json:
        """Have it take effect at once: on the hosts that may run the VM, and on the one that would restart it."""
        try:
            hosts = self._vms.possible_hosts(record)
        except (DatastoreError, CorruptFile) as error:  # it is written all the same
            log.warning("%s: %s; its host is not told of its new settings", record.name, error)
            hosts = set()
        return tell_hosts(self._ctx, record.uuid, hosts | coordinator(self._ctx))

    def _changed(self, record: VmRecord, words: Mapping[str, str]) -> VmRecord:
        ha_words = {key: text for key, text in words.items() if key.startswith("ha.")}
        ft_words = {key: text for key, text in words.items() if key not in ha_words}
        try:
            ft = ft_settings.change(record.ft_settings, ft_words)
        except ft_settings.BadSetting as error:
            raise FtkvmError("FTKVM-114", vm=record.name, name=error.name, detail=error.detail) from error
        if record.ft_enabled and _differs(record.ft_settings, ft, "ft.disks"):
            detail = "FT is on, and the pair's images are where they are; `ftkvm turn-off` first"
            raise FtkvmError("FTKVM-114", vm=record.name, name="ft.disks", detail=detail)
        try:
            ha = settings.change_vm(record.ha, ha_words)
            budget.check_vm(settings.vm_values(self._ctx.cluster.current(fresh=True).settings, ha))
        except BadSetting as error:
            raise FtkvmError("FTKVM-637", vm=record.name, name=error.name, detail=error.detail) from error
        if record.ft_enabled and "ha.memory_reservation_mb" in ha_words:
            raise FtkvmError("FTKVM-139", vm=record.name)
        changed = replace(record, ft_settings=ft, ha=ha)
        if ha_words.keys() & {"ha.cpu_reservation_mhz", "ha.memory_reservation_mb"}:
            self._admission.require_reservation(record, changed)
        return changed


def _row(setting: Setting, value: Value, given: bool, force: Value) -> Json:
    return {
        "name": setting.name, "value": setting.show(value), "default": setting.show(setting.default),
        "unit": setting.unit, "allowed": setting.allowed, "applies": str(setting.applies), "meaning": setting.meaning,
        "is_default": not given, "in_force": setting.show(force), "waits": force != value,
    }  # fmt: skip


def _slots_json(slots: capacity.Slots) -> Json:
    """The advanced runtime info (HA-13)."""
    return {
        "slot_cpu_mhz": slots.slot.size.cpu_mhz, "slot_memory_mb": slots.slot.size.memory_mb,
        "slot_cpu_set_by": list(slots.slot.cpu_by), "slot_memory_set_by": list(slots.slot.memory_by),
        "slot_cpu_uncapped_mhz": slots.slot.cpu_max, "slot_memory_uncapped_mb": slots.slot.memory_max,
        "slots_per_host": dict(slots.per_host), "total_slots": slots.total, "used_slots": slots.used,
        "available_slots": slots.available, "powered_on_vms": slots.powered_on, "hosts": slots.hosts,
        "good_hosts": slots.good_hosts, "current_failover_capacity": slots.capacity,
        "configured_failover_capacity": slots.configured, "fragmented": slots.fragmented,
        "sum": rules_of.slots_sum(slots),
    }  # fmt: skip


def _share_json(share: rules_of.Percentage) -> Json:
    cpu, memory = share.available
    return {
        "cpu_free_percent": share.cpu.free_percent, "memory_free_percent": share.memory.free_percent,
        "configured_percent": share.configured, "cpu_available_percent": cpu, "memory_available_percent": memory,
        "holds": share.holds, "sum": str(share),
    }  # fmt: skip


def _waiting(given: Mapping[str, Any]) -> list[str]:
    """Settings that wait for HA to be switched off and on."""
    now, force = settings.values(given), settings.in_force(given)
    known = settings.SETTINGS
    return [f"{name}: {known[name].show(force[name]) or 'none'} is in force, {known[name].show(value) or 'none'} waits "
            "until HA was switched off and on" for name, value in now.items() if force[name] != value]  # fmt: skip


def _warnings(given: Mapping[str, Any], now: Now) -> list[str]:
    force, found = settings.in_force(given), []
    if not settings.ha_settings(given, "gateway").isolation_addresses:
        found.append(
            "no isolation address (das.usedefaultisolationaddress is off): a host that is cut off finds out only "
            "by the others' heartbeats on the datastore"
        )
    if len(settings.ha_networks(given)) < 2:
        found.append(f"heartbeats go over one network only ({force['ha.networks']}): its failure isolates hosts")
    if not now.rules.control and now.rules.ha:
        found.append("admission control is off: there may be no room to restart the VMs of a failed host")
    if not force["ha.host_monitoring"]:
        found.append("host monitoring is off: nothing is restarted, nothing responds to isolation")
    return found


def _differs(before: Mapping[str, object], after: Mapping[str, object], name: str) -> bool:
    return ft_settings.effective(before)[name] != ft_settings.effective(after)[name]
