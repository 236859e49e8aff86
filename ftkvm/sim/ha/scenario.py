"""Scenarios: a directory with a cluster, a script and the log that has to come of it, line by line.

``cluster.toml`` describes the cluster (:func:`_shape`), ``script.txt`` has lines ``SECONDS WHAT WHOM [for SECONDS]``,
``expected.log`` is compared exactly. ``kind`` in ``cluster.toml`` chooses another player: sums of admission, settings
or VM monitoring (``sums``), who may join, who takes a VM (``hosts``): those need no cluster.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha import model as m
from ftkvm.sim.ha import sums
from ftkvm.sim.ha.faults import FAULTS, Fault, apply
from ftkvm.sim.ha.qemu import Violation
from ftkvm.sim.ha.world import GATEWAY, Shape, World

RUN_S = 90
_KEYS = frozenset(
    (
        "kind", "hosts", "vms", "networks", "watchdogs", "fences", "drift", "seed", "run_s", "settings", "vm",
        "host_memory_mb", "vm_memory_mb", "isolation_response", "failover_host",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One directory."""

    name: str
    cluster: dict[str, Any]
    script: tuple[str, ...]
    expected: tuple[str, ...]


def load(path: Path) -> Scenario:
    """Read a scenario.

    :raises FtkvmError: something is missing or is not understood
    """
    try:
        cluster = tomllib.loads((path / "cluster.toml").read_text())
        script = tuple(line for line in (path / "script.txt").read_text().splitlines() if line and line[0] != "#")
        log = path / "expected.log"
        expected = tuple(log.read_text().splitlines()) if log.exists() else ()
    except (OSError, ValueError) as error:
        raise FtkvmError("FTKVM-905", scenario=str(path), detail=str(error)) from error
    return Scenario(path.name, cluster, script, expected)


def play(scenario: Scenario) -> list[str]:
    """The log that comes of it.

    :raises FtkvmError: the cluster or the script is not understood
    """
    kind = scenario.cluster.get("kind", "cluster")
    try:
        if kind != "cluster":
            return list(sums.PLAYERS[kind](scenario.cluster, scenario.script))
        return list(_play(scenario))
    except (KeyError, ValueError, TypeError) as error:
        raise FtkvmError("FTKVM-905", scenario=scenario.name, detail=f"{type(error).__name__}: {error}") from error


def faults(script: tuple[str, ...]) -> list[Fault]:
    """The script's lines.

    :raises ValueError: one is not understood
    """
    found = []
    for line in script:
        at, what, whom, *rest = line.split()
        if what not in FAULTS or (rest and (len(rest) != 2 or rest[0] != "for")):
            raise ValueError(f"not understood: {line!r}")
        found.append(Fault(round(float(at) * 1000), what, whom, round(float(rest[1]) * 1000) if rest else 0))
    return found


def world_of(cluster: dict[str, Any]) -> World:
    """The cluster as the file describes it, before anything happens.

    :raises ValueError: a word in it is not known
    """
    unknown = set(cluster) - _KEYS
    if unknown:
        raise ValueError(f"cluster.toml has unknown {', '.join(sorted(unknown))}")
    world = World(int(cluster.get("seed", 1)), _shape(cluster))
    for host in world.hosts.values():
        host.memory_mb = int(cluster.get("host_memory_mb", host.memory_mb))
    response = m.IsolationResponse(cluster.get("isolation_response", "shutdown"))
    vms = world.storage.files.vms
    for uuid, vm in list(vms.items()):
        own = dict(cluster.get("vm", {}).get(uuid, {}))
        vms[uuid] = replace(
            vm,
            priority=m.Priority(own.get("priority", vm.priority)),
            isolation_response=m.IsolationResponse(own.get("isolation_response", response)),
            bridges=frozenset(own.get("bridges", ())),
        )
        if "secondary" in own:
            world.pairs.make(uuid, world.hosts[own["secondary"]])
    return world


def _shape(cluster: dict[str, Any]) -> Shape:
    settings = {"isolation_addresses": (GATEWAY,), **cluster.get("settings", {})}
    settings["isolation_addresses"] = tuple(settings["isolation_addresses"])
    dogs = cluster.get("watchdogs", True)
    return Shape(
        int(cluster.get("hosts", 3)), int(cluster.get("vms", 6)), tuple(cluster.get("networks", ("management",))),
        dogs if isinstance(dogs, bool) else tuple(dogs), tuple(cluster.get("fences", ())),
        float(cluster.get("drift", 0.0)), m.HaSettings(**settings), int(cluster.get("vm_memory_mb", 512)),
        cluster.get("failover_host"),
    )  # fmt: skip


def _play(scenario: Scenario) -> Iterator[str]:
    world = world_of(scenario.cluster)
    script = faults(scenario.script)
    apply(world, script)
    broken = ""
    try:
        world.clock.run_until(round(float(scenario.cluster.get("run_s", RUN_S)) * 1000))
    except Violation as violation:
        broken = f"VIOLATION: {violation}"
    said = [(at, f"{host:4} {event.kind}: {event.text}") for at, host, event in world.log]
    done = [(fault.at_ms, f"!    {fault.what} {fault.whom}") for fault in script]
    undone = [(f.at_ms + f.for_ms, f"!    end of {f.what} {f.whom}") for f in script if f.for_ms]
    for at, text in sorted([*done, *undone, *said], key=lambda each: each[0]):
        yield f"{at / 1000:8.3f} {text}"
    yield from world.summary()
    if broken:
        yield broken
