"""Empties this host for its maintenance: looks first whether every VM has somewhere to go, then moves one by one.

A pair's copy leaves like this: the other copy goes on (a primary that leaves fails over to it), and a new secondary is
made on a third host. If there is none, the pair would be left with one copy: refused before anything is touched.
"""

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ftkvm.agent.context import AgentContext
from ftkvm.agent.migrate import MIGRATE_TIMEOUT_S, Migration
from ftkvm.agent.operations import Operation
from ftkvm.agent.placing import hosts_facts, no_place, with_room
from ftkvm.agent.records import PairDoc, PairStore
from ftkvm.agent.storage import bounded
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.domain import memory_mb
from ftkvm.core.ha.settings import kept_empty
from ftkvm.core.pair import Winner
from ftkvm.core.placement import MEMORY_FACTOR, HostFacts, VmNeeds, choose_secondary
from ftkvm.ports import Json, Progress

_LOOK_S = 0.2


class Evacuation:
    """``migration``: a live migration with its target chosen and checked; the others begin and ask for operations."""

    def __init__(
        self, ctx: AgentContext, vms: Vms, *,
        migration: Callable[[VmRecord, list[HostFacts]], Migration],
        begin: Callable[[VmRecord], Operation],
        move_secondary: Callable[[str], Json],
        operation: Callable[[str], Json],
    ) -> None:  # fmt: skip
        self._ctx, self._vms = ctx, vms
        self._migration, self._begin, self._move_secondary, self._operation = (
            migration,
            begin,
            move_secondary,
            operation,
        )

    def obstacles(self) -> dict[str, str]:
        """Per VM with a copy here that has nowhere to go: why. Looks at all of them together, and changes nothing.

        :raises FtkvmError: FTKVM-30x the datastore does not answer
        """
        todo, found = self._copies()
        facts = {host.name: host for host in hosts_facts(self._ctx)}
        for record, _entry in todo:
            try:
                host, memory_mb = self._place(record, list(facts.values()))
            except FtkvmError as error:
                found[record.name] = error.text
            else:
                there = facts[host]
                facts[host] = replace(there, free_memory_mb=there.free_memory_mb - memory_mb)
        return found

    def run(self, progress: Progress) -> Json:
        """Move all; what it took. One that cannot be moved does not keep the others.

        :raises FtkvmError: FTKVM-658 some are still here
        """
        todo, failed = self._copies()
        moves: list[Json] = []
        for number, (record, entry) in enumerate(todo, 1):
            secondary = record.ft_enabled and entry["role"] == "secondary"
            what = f"moving {'the secondary of ' if secondary else ''}{record.name}"
            progress(number, len(todo), what)

            def tell(text: str, number: int = number, what: str = what) -> None:
                progress(number, len(todo), f"{what}: {text}")

            try:
                if record.ft_enabled:  # again: the place that was there before the others moved may be taken
                    self._third_host(record, hosts_facts(self._ctx))
                moves.append(self._move_off(record, tell, secondary=secondary))
            except FtkvmError as error:
                failed[record.name] = error.text
        if failed:
            raise FtkvmError("FTKVM-658", host=self._ctx.host, vms=", ".join(failed), reasons=listed(failed))
        return {"moves": moves}

    def _copies(self) -> tuple[list[tuple[VmRecord, Json]], dict[str, str]]:
        """The cluster's VMs with a copy here, and why others are not known to be ours or not."""
        known = {record.uuid: record for record in self._vms.records()}
        local = self._vms.local()
        unread = [(entry, self._vms.corrupt.get(str(entry["uuid"]))) for entry in local]
        failed = {str(entry["name"]): error.text for entry, error in unread if error is not None}
        return [(known[entry["uuid"]], entry) for entry in local if entry["uuid"] in known], failed

    def _place(self, record: VmRecord, facts: list[HostFacts]) -> tuple[str, int]:
        """Where a copy would go, and the MB it needs there.

        :raises FtkvmError: it can go nowhere, or not now
        """
        if record.ft_enabled:
            return self._third_host(record, facts)
        return self._migration(record, facts).target, memory_mb(ET.fromstring(self._vms.definition(record.uuid)))

    def _third_host(self, record: VmRecord, facts: list[HostFacts]) -> tuple[str, int]:
        """The host for the new secondary of a pair that loses its copy here, as the agent of the other one will choose.

        :raises FtkvmError: FTKVM-404, FTKVM-156 there is none, FTKVM-406 it is not one of a pair that stands
        """
        store = PairStore(self._ctx.datastore, record.uuid)
        pair, decided = bounded(self._ctx, lambda: _newest(store), f"ft/{record.uuid}")
        ours = self._ctx.host
        if pair is None or decided or ours not in (pair.primary.host, pair.secondary.host):
            raise FtkvmError("FTKVM-406", vm=record.name, shown="there is no pair that stands")
        xml = self._vms.definition(record.uuid)
        needs = VmNeeds.of(record.name, pair.peer_of(ours).host, xml)
        if pair.copied:
            own = pair.primary if pair.primary.host == ours else pair.secondary
            needs, facts = with_room(self._ctx, store, needs, facts, own.disks.values())
        kept = kept_empty(self._ctx.cluster.current().settings)
        choice = choose_secondary(facts, needs, [ours, *([kept] if kept else [])])
        if choice.host is None:
            raise no_place(needs, {name: why for name, why in choice.refusals.items() if name != ours}, facts)
        return choice.host, needs.memory_mb * MEMORY_FACTOR

    def _move_off(self, record: VmRecord, tell: Callable[[str], None], *, secondary: bool) -> Json:
        """Migrate a VM off this host and wait for it: an ordinary one live, a primary by failover, a secondary anew."""
        begun = self._move_secondary(record.name) if secondary else asdict(self._begin(record))
        deadline = time.monotonic() + MIGRATE_TIMEOUT_S + 60.0
        while (now := self._operation(str(begun["id"])))["state"] == "running":
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-902", what=f"migration of {record.name}", seconds=MIGRATE_TIMEOUT_S)
            tell(str(now["text"]))
            time.sleep(_LOOK_S)
        if now["error"]:
            raise FtkvmError.from_json(now["error"])
        what = "secondary" if secondary else "primary" if record.ft_enabled else "live"
        return {"vm": record.name, "what": what, "unprotected_s": unprotected_s(what, now["result"] or {})}


def unprotected_s(what: str, result: dict[str, Any]) -> float | None:
    """How long a pair had one copy while the other left, as its operation measured it; None: not known, or no pair."""
    seconds = result.get({"secondary": "unprotected_s", "primary": "reprotect_s"}.get(what, ""))
    return None if seconds is None else float(seconds)


def listed(reasons: dict[str, str]) -> str:
    """VMs with their reasons, for a message."""
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


def _newest(store: PairStore) -> tuple[PairDoc | None, bool]:
    pair = store.latest()
    return pair, pair is not None and isinstance(store.winner(pair.epoch), Winner)
