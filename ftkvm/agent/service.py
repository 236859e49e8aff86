"""What the cluster can be asked through any agent: finds where a VM runs, and hands the work to the agent there."""

from dataclasses import asdict, dataclass
from typing import Any

from ftkvm.agent.admission import Admission
from ftkvm.agent.context import AgentContext
from ftkvm.agent.failovers import history_of
from ftkvm.agent.gather import gather
from ftkvm.agent.hosts import HAND_OVER_TIMEOUT_S, Hosts
from ftkvm.agent.local_operations import LocalOperations, cut_off
from ftkvm.agent.operations import Operations
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.states import FtReason, FtState, StateRow, row_of
from ftkvm.ports import CorruptFile, DatastoreError, Json


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
    """The entry points of the API that may be asked of any agent; ``here`` has those that act on this host."""

    def __init__(self, ctx: AgentContext, vms: Vms, operations: Operations) -> None:
        self._ctx = ctx
        self.vms = vms
        self.operations = operations
        self.admission = Admission(ctx, vms, self.places, self._may_run)
        self.hosts = Hosts(ctx)
        self.here = LocalOperations(
            ctx, vms, operations, self.admission,
            require_off=self.require_off,
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
        if host is not None and self.hosts.known(host)[1].maintenance:
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
        return self._ctx.peers.call(target, "POST", f"/v1/local/vms/{record.uuid}/start", body, HAND_OVER_TIMEOUT_S)

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
        if not record.ft_enabled and not record.ft_disabled and not cut_off(self._ctx, record):
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

    # helpers

    def _at_main(self, record: VmRecord, action: str, body: Json, *, also_off: bool = False) -> Json:
        places = self.places()
        main = places.main(record.uuid)
        if main is None:
            self._require_known(record, places)
            if not also_off:
                raise FtkvmError("FTKVM-102", vm=record.name)
        target = main[0] if main else self._home(record) or self._ctx.host
        return self._ctx.peers.call(target, "POST", f"/v1/local/vms/{record.uuid}/{action}", body, HAND_OVER_TIMEOUT_S)

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
