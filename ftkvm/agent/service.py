"""What the cluster can be asked through any agent: finds where a VM runs, and hands the work to the agent there."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ftkvm.adapters.power import AGENT_NAME
from ftkvm.agent import ft_checks
from ftkvm.agent.admission import Admission
from ftkvm.agent.attempts import forget_failed, note_failed
from ftkvm.agent.changed import read_again
from ftkvm.agent.configuration import publish
from ftkvm.agent.context import AgentContext
from ftkvm.agent.convert import Converting, planned, require_not_wanted
from ftkvm.agent.evacuation import Evacuation, listed
from ftkvm.agent.failovers import history_of
from ftkvm.agent.gather import Answers, gather
from ftkvm.agent.migrate import Migration
from ftkvm.agent.operations import Operation, Operations
from ftkvm.agent.placing import hosts_facts
from ftkvm.agent.records import PairStore
from ftkvm.agent.removal import last_boot
from ftkvm.agent.storage import bounded
from ftkvm.agent.vms import Pairs, VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostEntry
from ftkvm.core.checks.mend import on_new_images
from ftkvm.core.ha.model import OwnerWhy, Role
from ftkvm.core.ha.settings import in_force, kept_empty
from ftkvm.core.move import choose
from ftkvm.core.placement import HostFacts
from ftkvm.core.states import FtReason, FtState, StateRow, row_of
from ftkvm.ports import CorruptFile, DatastoreError, Json, Progress

log = logging.getLogger(__name__)
_HAND_OVER_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Places:
    """Where VMs run: per VM's UUID its copies as (host, entry), and the hosts that do not answer."""

    copies: dict[str, list[tuple[str, Json]]]
    silent: dict[str, FtkvmError]

    def main(self, uuid: str) -> tuple[str, Json] | None:
        """The copy that is not a secondary: (host, entry), or None."""
        copies = [copy for copy in self.copies.get(uuid, []) if copy[1]["role"] not in ("secondary", "incoming")]
        return min(copies, key=lambda copy: copy[1]["role"] != "primary", default=None)


class Service:
    """The entry points of the API. ``*_here`` act on this host; the others may be asked of any agent."""

    def __init__(self, ctx: AgentContext, vms: Vms, operations: Operations) -> None:
        self._ctx = ctx
        self.vms = vms
        self.operations = operations
        self.admission = Admission(ctx, vms, self.places, self._may_run)
        self._evacuation = Evacuation(
            ctx, vms,
            migration=lambda record, facts: self._migration(record, None, facts),
            begin=lambda record: self._begin_migration(record, None),
            move_secondary=lambda name: self.move_secondary(name, None),
            operation=self.operation,
        )  # fmt: skip

    # what is there

    def places(self) -> Places:
        """Ask all hosts which VMs they run."""
        copies: dict[str, list[tuple[str, Json]]] = {}
        silent: dict[str, FtkvmError] = {}
        for host, answer in gather(self._ctx, "/v1/local/vms").items():
            if isinstance(answer, FtkvmError):
                silent[host] = answer
                continue
            for entry in answer["vms"]:
                copies.setdefault(str(entry["uuid"]), []).append((host, entry))
        return Places(copies, silent)

    def list_vms(self, places: Places | None = None) -> list[Json]:
        """All registered VMs: where the main copy runs, and whether FT is on. ``places``: if just asked."""
        places = places or self.places()
        return [self._vm_entry(record, places) for record in self.vms.records()]

    def _vm_entry(self, record: VmRecord, places: Places) -> Json:
        main = places.main(record.uuid)
        state = str(main[1]["state"]) if main else ("unknown" if self._may_run(record, places) else "off")
        return {"name": record.name, "uuid": record.uuid, "host": main[0] if main else None, "state": state,
                "ft": record.ft_enabled, "ft_disabled": record.ft_disabled,
                "monitoring": main[1].get("monitoring") if main else None}  # fmt: skip

    def hosts(self, health: Answers | None = None) -> list[Json]:
        """All hosts with their health, or why they do not answer. ``health``: their answers, if just asked."""
        answers = health if health is not None else gather(self._ctx, "/v1/health")
        found = []
        for name, entry in sorted(self._ctx.cluster.hosts().items()):
            answer = answers.get(name) or FtkvmError("FTKVM-202", host=name, detail="not asked")
            known = {"error": answer.to_json(), "answers": False} if isinstance(answer, FtkvmError) else answer
            shown = {**entry.to_json(), "fence": entry.fence.get("agent")}  # its keys hold passwords
            found.append({"name": name, "answers": True, **shown, **known})
        return found

    def status(self, name: str | None) -> Json:
        """VMs with their pairs' state, as the primary's host tells it, and the hosts that do not answer."""
        records = [self.vms.find(name)] if name is not None else self.vms.records()
        places = self.places()
        answers = gather(self._ctx, "/v1/local/status")
        pairs: dict[str, list[dict[str, Any]]] = {}
        for answer in answers.values():
            for entry in answer["pairs"] if not isinstance(answer, FtkvmError) else []:
                pairs.setdefault(str(entry["uuid"]), []).append(entry)
        vms = []
        for record in records:
            said = sorted(pairs.get(record.uuid, []), key=lambda entry: entry.get("role") == "secondary")
            entry = self._vm_entry(record, places)
            pair = said[0] if said else _without_pair(entry, record)
            vms.append({**entry, "pair": {**pair, **_row(DISABLED)} if pair and record.ft_disabled else pair})
        silent = {host: error.to_json() for host, error in places.silent.items()}
        return {"cluster": self._ctx.cluster.current().cluster, "vms": vms, "silent_hosts": silent}

    def remove_host(self, name: str, *, dead: bool) -> Json:
        """Take a host out of the configuration.

        safety: a host that does not answer may still run VMs; only the operator's word (``dead``) lets it go, and from
        then on its VMs are started elsewhere: by HA, or by hand. The word is noted with the boot it was said of.

        :raises FtkvmError: FTKVM-201, FTKVM-202 it does not answer, FTKVM-214 it runs VMs, FTKVM-243/244 the last one,
            FTKVM-264 it is not dead
        """
        config, hosts, boot_id = self._removal(name, dead=dead)
        removed = {**config.removed, name: boot_id} if boot_id else config.removed
        return {"host": name, "version": publish(self._ctx, config, hosts=hosts, removed=removed).version}

    def may_remove_host(self, name: str, *, dead: bool) -> Json:
        """What :meth:`remove_host` would say, or raise; nothing is changed."""
        config, _hosts, _boot_id = self._removal(name, dead=dead)
        return {"host": name, "version": config.version + 1}

    def _removal(self, name: str, *, dead: bool) -> tuple[ClusterConfig, dict[str, HostEntry], str]:
        """The configuration, the hosts that would be left, and the boot of which the operator says that it is over."""
        self._ctx.cluster.host(name)
        answer = gather(self._ctx, "/v1/local/vms", hosts=[name])[name]
        if isinstance(answer, FtkvmError) and not dead:
            raise answer
        if not isinstance(answer, FtkvmError) and answer["vms"]:
            raise FtkvmError("FTKVM-214", host=name, vms=", ".join(str(vm["name"]) for vm in answer["vms"]))
        config = self._ctx.cluster.current(fresh=True)
        hosts = {key: entry for key, entry in config.hosts.items() if key != name}
        self._require_others(name, config, sorted(hosts))
        return config, hosts, last_boot(self._ctx, name) if isinstance(answer, FtkvmError) else ""

    def _require_others(self, name: str, config: ClusterConfig, others: list[str]) -> None:
        """Somebody is left, and while HA is on one of them is a primary host, that others can join through (HA-01)."""
        if not others:
            raise FtkvmError("FTKVM-243", host=name)
        if not in_force(config.settings)["ha.enabled"]:
            return
        roles = []
        for answer in gather(self._ctx, "/v1/local/ha", hosts=others).values():
            status = None if isinstance(answer, FtkvmError) else answer.get("status")
            roles.append(status["role"] if status else None)
        if not {Role.PRIMARY, Role.COORDINATOR} & set(roles):
            raise FtkvmError("FTKVM-244", host=name, others=", ".join(others))

    def set_fence(self, name: str, parameters: dict[str, str]) -> Json:
        """Set a host's power fencing device, or take it away (no parameters).

        :raises FtkvmError: FTKVM-201, FTKVM-605 no agent's name, FTKVM-606
        """
        if parameters and not AGENT_NAME.fullmatch(parameters.get("agent", "")):
            raise FtkvmError("FTKVM-605", option="agent", detail="the name of a program of fence-agents is needed")
        config, entry = self._known_host(name)
        hosts = {**config.hosts, name: replace(entry, fence=parameters)}
        version = publish(self._ctx, config, hosts=hosts).version
        return {"host": name, "agent": parameters.get("agent"), "keys": sorted(parameters), "version": version}

    # VMs

    def register(self, domain: str, host: str | None) -> Json:
        """Take over a domain; without ``host``, from the only host that has it.

        :raises FtkvmError: FTKVM-104, 105, 113, 201; FTKVM-630 … 632 for one that runs
        """
        target = host or self._ctx.host
        self._ctx.cluster.host(target)
        return self._ctx.peers.call(target, "POST", "/v1/local/vms/register", {"domain": domain}, 30.0)

    def start(self, name: str, host: str | None) -> Json:
        """Start a VM on ``host``, or on the one with the fewest VMs; returns the operation.

        :raises FtkvmError: FTKVM-103 runs already, FTKVM-109 may run on a host that does not answer, FTKVM-111, and
            FTKVM-630 … 633 the room kept for restarts would be used up
        """
        record = self.vms.find(name)
        if host is not None and self._known_host(host)[1].maintenance:
            raise FtkvmError("FTKVM-659", host=host)
        number, _owner = self.vms.owner(record.uuid)  # before looking: a start in between then takes the next number
        places = self.places()
        copies = {place for place, _entry in places.copies.get(record.uuid, [])}
        if copies - self.vms.waiting_for_nobody(record):
            raise FtkvmError("FTKVM-103", vm=record.name, host=min(copies))
        self._require_known(record, places)
        if host in places.silent:
            raise places.silent[host]
        # Both hosts of an epoch that has no winner answered, and have no copy: else this had been refused above.
        cold_epoch, cold_winner = self.vms.undecided_epoch(record) or (None, None)
        target = host or self.vms.home(record, cold_winner) or self.admission.place(record, self._well(), places)
        self.admission.require_start(record, target, places)
        body = {"owner": number, "cold_epoch": cold_epoch, "cold_winner": cold_winner}
        return self._ctx.peers.call(target, "POST", f"/v1/local/vms/{record.uuid}/start", body, _HAND_OVER_TIMEOUT_S)

    def stop(self, name: str, *, force: bool, timeout_s: float) -> Json:
        """Shut a VM down, or switch it off; returns the operation.

        :raises FtkvmError: FTKVM-102 not running
        """
        record = self.vms.find(name)
        body = {"force": force, "timeout_s": timeout_s}
        return self._at_main(record, "stop", body)

    def migrate(self, name: str, to: str | None) -> Json:
        """Move a running VM to another host, live; a protected one by a failover to it. Returns the operation.

        :raises FtkvmError: FTKVM-102, FTKVM-650/651/655 the host cannot take it; with FT: FTKVM-406, FTKVM-409
        """
        record = self.vms.find(name)
        if to is not None:
            self._ctx.cluster.host(to)
        return self._at_main(record, "migrate", {"to": to})

    def unregister(self, name: str, host: str) -> Json:
        """Give a VM that is off back to a host's libvirt: the cluster forgets it and its settings (HA-19).

        :raises FtkvmError: FTKVM-660 it is not off, FTKVM-110 FT is on, FTKVM-109 it may run on a silent host
        """
        record = self.vms.find(name)
        self._ctx.cluster.host(host)
        if record.ft_enabled or record.ft_disabled:
            raise FtkvmError("FTKVM-110", vm=record.name, action="unregistering it")
        places = self.places()
        if record.uuid in places.copies:
            raise FtkvmError("FTKVM-660", vm=record.name, state=places.copies[record.uuid][0][1]["state"])
        self._require_known(record, places)
        return self._ctx.peers.call(host, "POST", f"/v1/local/vms/{record.uuid}/unregister", {}, 30.0)

    def require_off(self, record: VmRecord) -> None:
        """A VM has no copy anywhere.

        :raises FtkvmError: FTKVM-135 it has, FTKVM-109 it may have, on a host that does not answer
        """
        places = self.places()
        if record.uuid in places.copies:
            raise FtkvmError("FTKVM-135", vm=record.name, state=places.copies[record.uuid][0][1]["state"])
        self._require_known(record, places)

    def maintenance(self, name: str, *, on: bool) -> Json:
        """Mark a host for maintenance and move its VMs off (the operation is returned), or bring it back.

        :raises FtkvmError: FTKVM-201, FTKVM-657 it is not in maintenance, FTKVM-202 it does not answer, FTKVM-606,
            FTKVM-665 a VM of it has nowhere to go: nothing is changed
        """
        config, entry = self._known_host(name)
        if on:
            self._require_evacuable(name)
        if not on and not entry.maintenance:
            raise FtkvmError("FTKVM-657", host=name)
        if entry.maintenance != on:
            publish(self._ctx, config, hosts={**config.hosts, name: replace(entry, maintenance=on)})
        if not on:
            return {"host": name, "maintenance": False}
        return self._ctx.peers.call(name, "POST", "/v1/local/evacuate", {}, _HAND_OVER_TIMEOUT_S)

    def _require_evacuable(self, name: str) -> None:
        try:
            found = self._ctx.peers.call(name, "GET", "/v1/local/evacuation", None, _HAND_OVER_TIMEOUT_S)["obstacles"]
        except FtkvmError as error:
            if error.code != "FTKVM-901":
                raise
            log.info("%s has an older agent, and is not asked what keeps it from being emptied: %s", name, error)
            return
        if found:
            raise FtkvmError("FTKVM-665", host=name, vms=", ".join(found), reasons=listed(found))

    def _known_host(self, name: str) -> tuple[ClusterConfig, HostEntry]:
        """The configuration as the datastore has it now, and a host of it.

        :raises FtkvmError: FTKVM-201
        """
        config = self._ctx.cluster.current(fresh=True)
        entry = config.hosts.get(name)
        if entry is None:
            raise FtkvmError("FTKVM-201", host=name)
        return config, entry

    def enable(self, name: str, secondary: str | None) -> Json:
        """Turn FT on, or on again after `disable`; returns the operation. A VM that is off is protected when it starts.

        :raises FtkvmError: FTKVM-401 on already, and what the primary's host finds
        """
        record = self.vms.find(name)
        if secondary is not None:
            self._ctx.cluster.host(secondary)
        return self._at_main(record, "ft/enable", {"secondary": secondary}, also_off=secondary is None)

    def failovers(self, name: str) -> Json:
        """Every failover of a VM that the histories have (FT-23).

        :raises FtkvmError: FTKVM-101, FTKVM-301 … 306
        """
        record = self.vms.find(name)
        return history_of(self._ctx, record.name, record.uuid)

    def turn_off(self, name: str) -> Json:
        """Turn FT off; returns the operation. If no copy runs, the host asked cleans up. One cut off is carried on.

        :raises FtkvmError: FTKVM-402 not on
        """
        record = self.vms.find(name)
        if not record.ft_enabled and not record.ft_disabled and not self._cut_off(record):
            raise FtkvmError("FTKVM-402", vm=record.name)
        return self._at_main(record, "ft/turn-off", {}, also_off=True)

    def disable(self, name: str) -> Json:
        """Stop protecting, but keep the secondary's place and the settings for `enable` (FT-08); returns the operation.

        :raises FtkvmError: FTKVM-402 not on, FTKVM-410 disabled already
        """
        record = self.vms.find(name)
        if record.ft_disabled:
            raise FtkvmError("FTKVM-410", vm=record.name)
        if not record.ft_enabled:
            raise FtkvmError("FTKVM-402", vm=record.name)
        return self._at_main(record, "ft/disable", {}, also_off=True)

    def test(self, name: str, what: str) -> Json:
        """Try a failover, or the restart of the secondary (FT-18); returns the operation, which has the times.

        :raises FtkvmError: FTKVM-402 FT is not on, FTKVM-406 not protected now
        """
        return self._at_main(self._with_ft(name), f"ft/test-{what}", {})

    def move_secondary(self, name: str, to: str | None) -> Json:
        """Make the secondary anew on another host (FT-15); returns the operation.

        :raises FtkvmError: FTKVM-402, FTKVM-406, and what the primary's host finds
        """
        record = self._with_ft(name)
        if to is not None:
            self._ctx.cluster.host(to)
        return self._at_main(record, "ft/move-secondary", {"to": to})

    def _with_ft(self, name: str) -> VmRecord:
        record = self.vms.find(name)
        if not record.ft_enabled:
            raise FtkvmError("FTKVM-402", vm=record.name)
        return record

    def _cut_off(self, record: VmRecord) -> bool:
        """Whether an operation on the pair was begun and never ended."""
        store = PairStore(self._ctx.datastore, record.uuid)
        return bounded(self._ctx, store.operation, f"ft/{record.uuid}") is not None

    def operation(self, name: str) -> Json:
        """One operation, wherever it runs.

        :raises FtkvmError: FTKVM-502, and what is raised when its host does not answer
        """
        host = name.rpartition(".")[0]
        if host == self._ctx.host:
            return asdict(self.operations.get(name))
        if host not in self._ctx.cluster.hosts():
            raise FtkvmError("FTKVM-502", operation=name)
        return self._ctx.peers.call(host, "GET", f"/v1/operations/{name}", None, 3.0)

    # on this host

    def register_here(self, domain: str) -> Json:
        """Take over a domain of this host; one that runs brings its load into the cluster.

        :raises FtkvmError: FTKVM-104, 105, 113, and FTKVM-630 … 632
        """
        info = self._ctx.libvirt.find(domain)
        if info.active:
            self.admission.require_arrival(info.uuid, info.name, self._ctx.host)
        return self.vms.register(domain).to_json()

    def start_here(
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
        record = self.vms.find(uuid)

        def work(progress: Progress) -> None:
            if why != OwnerWhy.RESTARTED:  # admission control never refuses HA
                self.admission.require_start(record, self._ctx.host)
            try:
                if why == OwnerWhy.RESTARTED and self.vms.has_old_pair_record(record):
                    raise FtkvmError("FTKVM-119", vm=record.name)
                self.vms.start(record, owner, progress, why=why, cold_epoch=cold_epoch, cold_winner=cold_winner)
            except FtkvmError as error:
                note_failed(self._ctx, uuid, attempt, error, asked=owner, newest=lambda: self.vms.owner(uuid)[0])
                raise
            forget_failed(self._ctx, uuid)

        return asdict(self.operations.start("start", record.name, uuid, work))

    def stop_here(self, uuid: str, *, force: bool, timeout_s: float) -> Json:
        """Begin to stop a VM here."""
        record = self._operated_here(uuid)
        operation = self.operations.start(
            "stop", record.name, uuid,
            lambda progress: self.vms.stop(record, force=force, timeout_s=timeout_s, progress=progress),
        )  # fmt: skip
        return asdict(operation)

    def enable_here(self, uuid: str, secondary: str | None) -> Json:
        """Check everything that can be checked without touching anything, then begin to protect a VM that runs here."""
        record, pairs = self._operated_here(uuid), self._pairs()
        running = self.operations.running(uuid)
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
        self.admission.require_protect(record, chosen)
        operation = self.operations.start(
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
        xml = self.vms.definition(record.uuid)
        todo = planned(self._ctx, record, xml, ft_checks.rules_of(self._ctx, record))
        new_xml = on_new_images(xml, todo).xml
        ft_checks.require_suitable(self._ctx, record, new_xml)
        owner, _host = self.vms.owner(record.uuid)  # before looking: a start in between then takes the next number
        if todo:
            self.require_off(record)
            require_not_wanted(self._ctx, record)

        def work(progress: Progress) -> Json | None:
            converted = None
            if todo:
                kept = Converting(self._ctx, self.vms, record, todo).run(owner, xml, new_xml, progress, discard=False)
                converted = {"converted": [str(each) for each in todo], "kept": kept}
            progress(1, 1, "FT is on; the secondary is made when the VM is started")
            store = PairStore(self._ctx.datastore, record.uuid)
            bounded(self._ctx, lambda: store.set_ft_enabled(True), f"vms/{record.uuid}")
            return converted

        return asdict(self.operations.start("enable", record.name, record.uuid, work))

    def turn_off_here(self, uuid: str, *, disable: bool = False) -> Json:
        """Begin to turn FT off, or to disable it."""
        record, pairs = self._operated_here(uuid), self._pairs()

        def work(progress: Progress) -> None:
            if record.ft_disabled and not self._cut_off(record):  # no pair is left: only the wish is
                store = PairStore(self._ctx.datastore, uuid)
                bounded(self._ctx, lambda: store.set_ft_off(None), f"vms/{uuid}")
                return
            pairs.turn_off(uuid, progress, disable=disable)

        return asdict(self.operations.start("disable" if disable else "turn-off", record.name, uuid, work))

    def test_here(self, uuid: str, what: Literal["failover", "restart-secondary"]) -> Json:
        """Begin a test of the pair whose primary is here."""
        record, life = self._operated_here(uuid), self._pairs().life
        run = life.test_failover if what == "failover" else life.test_restart_secondary
        return asdict(self.operations.start(f"test-{what}", record.name, uuid, lambda progress: run(uuid, progress)))

    def move_secondary_here(self, uuid: str, to: str | None) -> Json:
        """Begin to move the secondary of the VM whose primary is here."""
        record, life = self._operated_here(uuid), self._pairs().life
        operation = self.operations.start(
            "move-secondary", record.name, uuid, lambda progress: life.move_secondary(uuid, to, progress)
        )
        return asdict(operation)

    def migrate_here(self, uuid: str, to: str | None) -> Json:
        """Begin to move a VM that runs here to another host."""
        return asdict(self._begin_migration(self._operated_here(uuid), to))

    def _begin_migration(self, record: VmRecord, to: str | None) -> Operation:
        running = self.operations.running(record.uuid)
        if running is not None:
            raise FtkvmError("FTKVM-501", vm=record.name, operation=running.kind)
        if record.ft_enabled:
            life = self._pairs().life
            return self.operations.start(
                "migrate", record.name, record.uuid, lambda progress: life.move(record.uuid, to, progress)
            )
        migration = self._migration(record, to)
        return self.operations.start("migrate", record.name, record.uuid, migration.run)

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
        migration = Migration(self._ctx, self.vms, record, target)
        migration.require()
        self.admission.require_migration(record, target)
        return migration

    def obstacles_here(self) -> Json:
        """What would keep this host from being emptied: per VM why it has nowhere to go."""
        return {"obstacles": self._evacuation.obstacles()}

    def evacuate_here(self) -> Json:
        """Begin to move all VMs off this host, which is marked for maintenance."""
        host = self._ctx.host
        return asdict(self.operations.start("evacuate", host, f"host:{host}", self._evacuation.run))

    def settings_changed_here(self, uuid: str) -> Json:
        """Somebody changed a VM's settings: this host's parts read them now."""
        return read_again(self._ctx, uuid)

    # helpers

    def _operated_here(self, uuid: str) -> VmRecord:
        """A VM that this host was asked to operate.

        safety: a secondary is no VM of its own; stopped or moved like one, it would be lost to the pair, or its epoch
        ended, while the primary goes on.

        :raises FtkvmError: FTKVM-530 only the VM's secondary is here (FT-08)
        """
        record, pairs = self.vms.find(uuid), self.vms.pairs
        if pairs is not None and pairs.has_secondary(uuid):
            raise FtkvmError("FTKVM-530", vm=record.name, host=self._ctx.host)
        return record

    def _pairs(self) -> Pairs:
        pairs = self.vms.pairs
        if pairs is None:
            raise FtkvmError("FTKVM-202", host=self._ctx.host, detail="its agent is just starting")
        return pairs

    def _at_main(self, record: VmRecord, action: str, body: Json, *, also_off: bool = False) -> Json:
        places = self.places()
        main = places.main(record.uuid)
        if main is None:
            self._require_known(record, places)
            if not also_off:
                raise FtkvmError("FTKVM-102", vm=record.name)
        target = main[0] if main else self._home(record) or self._ctx.host
        return self._ctx.peers.call(target, "POST", f"/v1/local/vms/{record.uuid}/{action}", body, _HAND_OVER_TIMEOUT_S)

    def _home(self, record: VmRecord) -> str | None:
        """The host that has the disks of a VM that is off, if it is only one; an undecided epoch's primary has them."""
        _epoch, primary = self.vms.undecided_epoch(record) or (None, None)
        return self.vms.home(record, primary)

    def _may_run(self, record: VmRecord, places: Places) -> set[str]:
        """Hosts that do not answer and could have a copy: the last owner, and the hosts of its pairs."""
        if not places.silent:
            return set()
        try:
            return set(places.silent) & self.vms.possible_hosts(record)
        except (DatastoreError, CorruptFile):  # nothing is known, so any of them may
            return set(places.silent)

    def _require_known(self, record: VmRecord, places: Places) -> None:
        unknown = self._may_run(record, places)
        if unknown:
            raise FtkvmError("FTKVM-109", vm=record.name, hosts=", ".join(sorted(unknown)))

    def _well(self) -> dict[str, int]:
        """The hosts that answer and can take a VM, with the number of VMs they run."""
        answers = gather(self._ctx, "/v1/health")
        resting = {name for name, entry in self._ctx.cluster.current(fresh=True).hosts.items() if entry.maintenance}
        well = {
            host: answer
            for host, answer in answers.items()
            if isinstance(answer, dict) and not answer["error"] and host not in resting
        }
        if not well:
            raise FtkvmError("FTKVM-202", host=", ".join(sorted(answers)), detail="no host is well: `ftkvm host list`")
        return {host: int(answer.get("vms", 0)) for host, answer in well.items()}


OFF = row_of(FtState.NOT_PROTECTED, FtReason.VM_NOT_RUNNING)
DISABLED = row_of(FtState.NOT_PROTECTED, FtReason.DISABLED)


def _row(row: StateRow) -> Json:
    return {"state": str(row.state), "reason": str(row.reason), "shown_as": row.shown_as}


def _without_pair(entry: Json, record: VmRecord) -> Json | None:
    """What to show as the pair of a VM that runs nowhere with FT on, or is disabled; None when nothing is known."""
    if not record.ft_disabled and (not entry["ft"] or entry["state"] != "off"):
        return None
    return {
        "vm": entry["name"],
        "uuid": entry["uuid"],
        **_row(DISABLED if record.ft_disabled else OFF),
        "cause": None,
        "host": None,
        "secondary_host": None,
        "epoch": 0,
        "operation": None,
        "warnings": [],
    }
