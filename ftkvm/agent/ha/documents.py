"""The HA machine's files on the datastore as JSON, there and back. A document that is not understood is corrupt."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ftkvm.core.checks import domain
from ftkvm.core.ha.model import Heartbeat, HostMode, Lease, Owner, OwnerWhy, Roles
from ftkvm.ports import CorruptFile, Json

T = TypeVar("T")


def understood(path: str, document: Json, decode: Callable[[Json], T]) -> T:
    """What ``decode`` makes of a document.

    :raises CorruptFile: FTKVM-305, a field is missing or makes no sense
    """
    try:
        return decode(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile("FTKVM-305", path=path, detail=f"{type(error).__name__}: {error}") from error


def heartbeat_to_json(heartbeat: Heartbeat, at: float) -> Json:
    """``at``: the host's wall clock, for people only."""
    return {
        "host": heartbeat.host, "boot_id": heartbeat.boot_id, "counter": heartbeat.counter,
        "mode": str(heartbeat.mode), "watchdog_ms": heartbeat.watchdog_ms, "stop_after_ms": heartbeat.stop_after_ms,
        "at": at,
    }  # fmt: skip


def heartbeat(document: Json) -> Heartbeat:
    return Heartbeat(
        str(document["host"]), str(document["boot_id"]), int(document["counter"]), HostMode(document["mode"]),
        int(document["watchdog_ms"]), int(document["stop_after_ms"]),
    )  # fmt: skip


def lease_to_json(lease: Lease, at: float) -> Json:
    return {"term": lease.term, "host": lease.host, "boot_id": lease.boot_id, "at": at}


def lease(document: Json) -> Lease:
    host = document["host"]
    return Lease(int(document["term"]), None if host is None else str(host), str(document["boot_id"]))


def roles_to_json(roles: Roles, at: float) -> Json:
    return {"number": roles.number, "primaries": list(roles.primaries), "at": at}


def roles(document: Json) -> Roles:
    primaries = document["primaries"]
    if not isinstance(primaries, list):
        raise ValueError("primaries is no list")
    return Roles(int(document["number"]), tuple(str(host) for host in primaries))


def owner(number: int, document: Json) -> Owner:
    """An owner file; those written before HA have no ``why``."""
    host = document.get("host")
    why = document.get("why") or (OwnerWhy.STARTED if host else OwnerWhy.STOPPED)
    return Owner(number, str(host) if host else None, str(document["boot_id"]), OwnerWhy(why))


@dataclass(frozen=True)
class Definition:
    """What placement needs of a domain's XML: memory in MiB, number of CPUs, bridges, files of its disks."""

    memory_mb: int
    cpus: int
    bridges: frozenset[str]
    disks: Mapping[str, str]


def definition(path: str, xml: str) -> Definition:
    """Read a domain's XML.

    :raises CorruptFile: FTKVM-305
    """
    try:
        root = ET.fromstring(xml)
        memory_mb = domain.memory_mb(root)
        assert memory_mb, "it tells no memory"
        cpus = int(root.findtext("vcpu") or 1)
    except (ET.ParseError, AssertionError, ValueError) as error:
        raise CorruptFile("FTKVM-305", path=path, detail=f"no domain definition: {error!r}") from error
    return Definition(memory_mb, cpus, domain.bridges(root), domain.disk_files(xml))


def power(vm: Mapping[str, Any], newest: Owner) -> bool:
    """What is wanted: the word in its record, or for a VM from before it, whether somebody owns the VM."""
    word = vm.get("power")
    if word is None:
        return newest.host is not None and newest.why is not OwnerWhy.PREPARING
    if word not in ("on", "off"):
        raise ValueError(f"power is {word!r}, not on or off")
    return bool(word == "on")
