"""The cluster at a glance (``ftkvm cluster status``): every host's own word on HA, put together."""

from typing import Any

from ftkvm.agent.cluster_settings import ClusterSettings
from ftkvm.agent.context import AgentContext
from ftkvm.agent.gather import Answers, gather
from ftkvm.agent.service import Places, Service
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.settings import vm_settings
from ftkvm.ports import Json

_RECENT = 10
_RESTARTS = ("restarted", "restart", "restart-failed", "restart-unknown")


class ClusterView:
    """Asks all hosts and says what they say; only one that does not answer is judged, by the coordinator's view."""

    def __init__(self, ctx: AgentContext, service: Service, settings: ClusterSettings) -> None:
        self._ctx = ctx
        self._service = service
        self._settings = settings

    def status(self) -> Json:
        """Validity, advanced runtime info, coordinator, hosts with role and state, VMs, what waits, last events."""
        said = gather(self._ctx, "/v1/local/ha")
        places = self._service.places()
        health = gather(self._ctx, "/v1/health")
        validity = self._settings.validate(places, health)
        coordinator, term = _coordinator(said)
        views = _views(said, coordinator)
        events = _events(said)
        return {
            "cluster": self._ctx.cluster.current().cluster,
            "coordinator": coordinator,
            "term": term,
            "validity": validity,
            "hosts": [self._host(entry, said, views) for entry in self._service.hosts.all(health)],
            "vms": self._vms(events, places),
            "waiting": _waiting(said, coordinator),
            "events": events[-_RECENT:],
        }

    def _host(self, entry: Json, said: Answers, views: dict[str, Json]) -> Json:
        name = str(entry["name"])
        mine = said.get(name)
        view = views.get(name)
        status: Any = mine.get("status") if isinstance(mine, dict) else None
        state, why = ("live", "") if status else ("silent", "it does not answer")
        if status and status["isolated"]:
            state, why = "isolated", "it hears nobody, and no isolation address answers"
        elif status and not status["datastore_ok"]:
            state, why = "no-storage", "its heartbeat cannot be written"
        elif status is None and view is not None:
            state, why = str(view["state"]), str(view["why"])
        elif entry.get("maintenance"):
            state, why = "maintenance", ""
        return {
            "name": name,
            "role": status["role"] if status else None,
            "state": state,
            "why": why or (entry.get("error") or {}).get("text", ""),
            "maintenance": bool(entry.get("maintenance")),
            "watchdog_ms": mine.get("watchdog_ms") if isinstance(mine, dict) else None,
            "fence": bool(self._ctx.cluster.hosts()[name].fence) if name in self._ctx.cluster.hosts() else False,
            "vms": entry.get("vms"),
            "datastore": entry.get("datastore"),
        }

    def _vms(self, events: list[Json], places: Places) -> list[Json]:
        settings = self._ctx.cluster.current().settings
        records = {record.uuid: record for record in self._service.vms.records()}
        found = []
        for entry in self._service.list_vms(places):
            record = records.get(str(entry["uuid"]))
            values = vm_settings(settings, record.ha if record is not None else {})
            last = [event for event in events if event["event"] in _RESTARTS and event.get("vm") == entry["name"]]
            priority = str(values.priority)
            protection = "FT" if entry["ft"] else "none" if priority == "disabled" else "HA"
            found.append({**entry, "restart_priority": priority, "protection": protection,
                          "isolation_response": str(values.isolation_response),
                          "last_restart": last[-1] if last else None})  # fmt: skip
        return found


def _coordinator(said: Answers) -> tuple[str | None, int]:
    """Who holds the newest lease that anybody has read."""
    best: tuple[int, str | None] = (0, None)
    for answer in said.values():
        status = answer.get("status") if not isinstance(answer, FtkvmError) else None
        if status and int(status["term"]) > best[0]:
            best = (int(status["term"]), status["coordinator"])
    return best[1], best[0]


def _views(said: Answers, coordinator: str | None) -> dict[str, Json]:
    """What the coordinator makes of the others; without it, what anybody who watches does."""
    found: dict[str, Json] = {}
    for name, answer in sorted(said.items(), key=lambda item: item[0] == coordinator):
        status = answer.get("status") if not isinstance(answer, FtkvmError) else None
        for view in status["hosts"] if status else []:
            found[str(view["host"])] = {**view, "by": name}
    return found


def _waiting(said: Answers, coordinator: str | None) -> list[Json]:
    answer = said.get(coordinator or "")
    status = answer.get("status") if isinstance(answer, dict) else None
    return list(status["waiting"]) if status else []


def _events(said: Answers) -> list[Json]:
    """The hosts' last events, oldest first."""
    found: list[Json] = []
    for name, answer in said.items():
        if not isinstance(answer, FtkvmError):
            found += [{**event, "by": name} for event in answer.get("events", [])]
    return sorted(found, key=lambda event: float(event.get("at") or 0))
