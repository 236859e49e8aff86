"""Scenarios that need no cluster: admission's sums, the cluster's settings, VM monitoring. Production code."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ftkvm.core.ha import admission, budget, settings, vm_monitor
from ftkvm.core.ha.capacity import HostRoom, Load, Rules, reckon
from ftkvm.core.ha.model import Priority
from ftkvm.core.ha.setting import BadSetting
from ftkvm.core.ha.whatif import what_if
from ftkvm.sim.ha.hosts import joining, migration

Player = Callable[[dict[str, Any], tuple[str, ...]], Iterator[str]]


def _admission(cluster: dict[str, Any], script: tuple[str, ...]) -> Iterator[str]:
    """Lines: ``show``, ``start NAME HOST CPU MEMORY``, ``move NAME HOST``, ``reserve NAME CPU MEMORY``, ``lose HOST…``,
    ``bad HOST WHY``, ``control on|off``."""
    hosts = [HostRoom(each["name"], each["cpu_mhz"], each["memory_mb"]) for each in cluster["host"]]
    loads = [Load(**{"uuid": each["name"], **each, "priority": Priority(each.get("priority", "medium"))})
             for each in cluster["load"]]  # fmt: skip
    rules = Rules(**cluster.get("rules", {}))
    for line in script:
        yield f"> {line}"
        word, *rest = line.split()
        if word == "show":
            slots = reckon(hosts, loads, rules)
            counts = f"total {slots.total}, used {slots.used}, available {slots.available}"
            yield f"slots: {counts}, {slots.capacity} tolerated"
            yield f"slots: {slots.slot}; powered on {slots.powered_on}, hosts {slots.hosts}, good {slots.good_hosts}"
            yield f"percentage: {admission.percentage(hosts, loads, rules)}"
            validity = admission.validity(hosts, loads, rules)
            yield f"cluster is {validity.state}: {'; '.join(validity.reasons) or 'no reason'}"
            if rules.failover_host:
                spare = admission.failover(hosts, loads, rules)
                yield f"failover host is {spare.colour}: {spare.why}"
        elif word == "lose":
            result = what_if(hosts, loads, rules, rest)
            for each in result.outcomes:
                yield f"{each.vm}: {each.what} on {each.host or 'no host'} {'; '.join(each.why.values())}".rstrip()
        elif word == "bad":
            hosts = [replace(each, why_not=rest[1]) if each.name == rest[0] else each for each in hosts]
        elif word == "control":
            rules = replace(rules, control=rest[0] == "on")
        else:
            after = _changed(word, rest, loads)
            verdict = admission.admit(hosts, loads, after, rules)
            yield f"{'refused: ' + verdict.refused if verdict.refused else 'admitted'}: {verdict.sum}"
            loads = loads if verdict.refused else after


def _changed(word: str, rest: list[str], loads: list[Load]) -> list[Load]:
    if word == "start":
        name, host, cpu, memory = rest
        return [*loads, Load(name, name, host, int(cpu), int(memory))]
    if word == "move":
        return [replace(each, host=rest[1]) if each.name == rest[0] else each for each in loads]
    if word == "reserve":
        cpu_mhz, memory_mb = int(rest[1]), int(rest[2])
        return [replace(e, cpu_mhz=cpu_mhz, memory_mb=memory_mb) if e.name == rest[0] else e for e in loads]
    raise ValueError(f"not understood: {word}")


def _settings(cluster: dict[str, Any], script: tuple[str, ...]) -> Iterator[str]:
    """Lines ``NAME VALUE``: each set beside those of ``[settings]``, kept if nothing breaks."""
    now = dict(cluster.get("settings", {}))
    for line in script:
        name, value = line.split(maxsplit=1)
        yield f"> {line}"
        try:
            wished = {**now, name: _value(value)}
            budget.check(wished)
        except BadSetting as error:
            yield f"refused: {error}"
        else:
            now = wished
            machine = settings.ha_settings(now)
            yield (
                f"kept: failure {machine.failure_ms} ms, isolation {machine.isolation_ms} ms, interval "
                f"{machine.interval_ms} ms, lease {machine.lease_ms} ms, shutdown {machine.shutdown_timeout_ms} ms, "
                f"addresses {', '.join(machine.isolation_addresses) or 'none'}; "
                f"restart within {budget.restart_ms(now)} ms"
            )


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else text


def _vm_monitor(cluster: dict[str, Any], script: tuple[str, ...]) -> Iterator[str]:
    """Lines ``SECONDS BEAT REQUESTS``: a look each; a reset is done at once and counted."""
    watched: vm_monitor.Watched | None = None
    monitoring = settings.Monitoring(**cluster["monitoring"])
    resets: list[int] = []
    for line in script:
        at, beat, requests = line.split()
        now_ms = round(float(at) * 1000)
        io = vm_monitor.Io(int(requests), 0, 0)
        look = vm_monitor.Look(now_ms, now_ms, "life", 0, vm_monitor.Beat(beat), io)
        watched, found = vm_monitor.judge(watched, look, monitoring, resets)
        yield f"{now_ms / 1000:10.1f} {found.state} ({found.resets} resets): {found.why}"
        if found.reset:
            resets.append(now_ms)
            watched = vm_monitor.after_reset(watched, now_ms)
            yield f"{now_ms / 1000:10.1f} reset"


PLAYERS: dict[str, Player] = {
    "admission": _admission,
    "settings": _settings,
    "vm-monitor": _vm_monitor,
    "joining": joining,
    "migration": migration,
}
