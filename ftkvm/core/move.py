"""Which host can take a VM that runs on another one now (live migration, HA-16, HA-24). Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from ftkvm.core.checks.domain import bridges
from ftkvm.core.facts import DatastoreState
from ftkvm.core.placement import HostFacts

Check = tuple[str, Callable[[HostFacts, HostFacts], bool]]
CHECKS: tuple[Check, ...] = (
    ("it does not answer", lambda target, source: target.alive),
    ("it is in maintenance", lambda target, source: not target.maintenance),
    ("its datastore is not well", lambda target, source: target.datastore is DatastoreState.OK),
    ("its QEMU is older", lambda target, source: _version(target.qemu_version) >= _version(source.qemu_version)),
    ("its CPU differs", lambda target, source: target.cpu == source.cpu),
)


def local_files(xml: str, datastore: Path) -> list[str]:
    """Disks, CD-ROMs and floppies of a VM that another host would not find."""
    found = []
    for disk in ET.fromstring(xml).iterfind("./devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        name = target.get("dev", "?") if target is not None else "?"
        file = source.get("file") if source is not None else None
        if source is not None and not (file and Path(file).is_relative_to(datastore)):
            found.append(f"disk {name} is not a file on the datastore")
    return found


def choose(facts: list[HostFacts], source: str, xml: str) -> tuple[str | None, dict[str, list[str]]]:
    """The host with the most free memory that can take a VM (or None), and why the others cannot."""
    names = {host.name: host for host in facts if host.name != source}
    why = {name: refusals(facts, source, name, xml) for name in names}
    fitting = [names[name] for name, reasons in why.items() if not reasons]
    best = min(fitting, key=lambda host: (-host.free_memory_mb, host.name), default=None)
    return (best.name if best else None), {name: reasons for name, reasons in why.items() if reasons}


def refusals(facts: list[HostFacts], source: str, target: str, xml: str) -> list[str]:
    """Why a host cannot take a VM that runs on another; empty if it can."""
    known = {host.name: host for host in facts}
    there, here = known.get(target), known.get(source)
    if there is None or here is None or not there.alive:
        return ["it does not answer"]
    found = [text for text, fits in CHECKS if not fits(there, here)]
    root = ET.fromstring(xml)
    wanted = bridges(root)
    if not wanted <= there.bridges:
        found.append(f"it lacks the bridge {', '.join(sorted(wanted - there.bridges))}")
    memory_mb = _memory_mb(root)
    if there.free_memory_mb < memory_mb:
        found.append(f"{there.free_memory_mb} MB of memory are free, {memory_mb} are needed")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _memory_mb(root: ET.Element) -> int:
    text = root.findtext("./currentMemory") or root.findtext("./memory") or "0"
    return int(text) // 1024
