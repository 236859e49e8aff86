"""The lab as a whole: up, down, status. Everything is idempotent and mends what a killed run left."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import image, names, network, operator, preflight
from ftkvm.lab.base import LabHost
from ftkvm.lab.host import Host
from ftkvm.lab.system import cgroup2_root, exclusive, mounts_below, run
from ftkvm.lab.vm import layer
from ftkvm.lab.vm.host import VmHost

RECORD = names.STATE / "lab.json"
CONTAINERS, VMS = "containers", "vms"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What `up` was asked for; a host's disk belongs to one image."""

    hosts: int
    memory_mib: int | None
    image: str
    hosts_as: str = "containers"
    """Or ``vms``."""


def record() -> Record:
    """The lab that is up (or was, before the machine restarted); FTKVM-720 if there is none."""
    if not RECORD.exists():
        raise FtkvmError("FTKVM-720")
    return Record(**json.loads(RECORD.read_text()))


def _make(name: str, hosts_as: str) -> LabHost:
    return VmHost(name) if hosts_as == VMS else Host(name)


def hosts() -> list[LabHost]:
    """The hosts of the lab."""
    return [_make(name, record().hosts_as) for name in names.host_names(record().hosts)]


def host(name: str) -> LabHost:
    """A host by name, also one that a test has made beside the lab's; FTKVM-723 with the names that exist."""
    known = names.host_names(record().hosts)
    beside = [path.name for path in names.HOSTS.glob("host*") if (path / "disk").is_dir()]
    if name not in {*known, *beside}:
        raise FtkvmError("FTKVM-723", host=name, known=", ".join(known))
    return _make(name, record().hosts_as)


def up(count: int, memory_mib: int | None, progress: Progress, hosts_as: str | None = None) -> None:
    """Makes the lab, or brings back what of it is not running. Hosts that run are left alone.

    :param hosts_as: ``containers`` or ``vms``; None: as it is, containers if there is no lab yet
    :raises FtkvmError: FTKVM-740, the lab stands on hosts of the other kind
    """
    if not 1 <= count <= names.MAX_HOSTS:
        raise FtkvmError("FTKVM-706", count=count, maximum=names.MAX_HOSTS)
    kind = _kind(hosts_as)
    preflight.check(vms=kind == VMS)
    names.STATE.mkdir(parents=True, exist_ok=True)
    with exclusive(names.LOCK, "the lab's lock"):
        root = _image(kind, progress)
        if RECORD.exists():
            count = max(count, record().hosts)
        RECORD.write_text(json.dumps(asdict(Record(count, memory_mib, root.name, kind))))
        everyone = hosts()
        _network_and_seat(everyone, progress)
        _boot(everyone, root, memory_mib, progress)
    progress("lab is up")


def _kind(wanted: str | None) -> str:
    there = record().hosts_as if RECORD.exists() else None
    if there and wanted and there != wanted:
        raise FtkvmError("FTKVM-740", there=there, wanted=wanted)
    return wanted or there or CONTAINERS


def _image(hosts_as: str, progress: Progress) -> Path:
    """The image the lab already stands on, or the present recipe's."""
    if RECORD.exists():
        mine = names.IMAGES / record().image
        if mine.exists():
            return mine
    root = image.ensure_image(progress)
    return layer.ensure_image(root, progress) if hosts_as == VMS else root


def _network_and_seat(everyone: Sequence[LabHost], progress: Progress) -> None:
    progress("networks")
    names.DATASTORE.mkdir(parents=True, exist_ok=True)
    network.make_switches()
    network.make_client()
    key = operator.prepare_key()
    all_names = [each.name for each in everyone]
    for each in everyone:
        each.prepare_disk(all_names, key)
        each.write_hosts_file(all_names)
    operator.write_known_hosts(everyone)


def _boot(everyone: Sequence[LabHost], root: Path, memory_mib: int | None, progress: Progress) -> None:
    def start(each: LabHost) -> None:
        if not each.running:
            each.boot(root, memory_mib)
        elif each.frozen:
            return
        each.wait_ready()
        progress(f"{each.name} is running ({names.host_address(each.name, 'management')})")

    with ThreadPoolExecutor(len(everyone)) as pool:
        for future in [pool.submit(start, each) for each in everyone]:
            future.result()


def down(progress: Progress, images: bool = False) -> None:
    """Removes the lab: found by prefix and directory, not by record, so it also mends what a killed run left."""
    preflight.check_root()
    names.STATE.mkdir(parents=True, exist_ok=True)
    with exclusive(names.LOCK, "the lab's lock"):
        for name in _leftover_hosts():
            progress(f"removing {name}")
            Host(name).remove()
        for namespace in network.namespaces():
            run(["ip", "netns", "del", namespace])
        for etc in names.NETNS_ETC.glob(f"{names.PREFIX}*") if names.NETNS_ETC.exists() else []:
            shutil.rmtree(etc)
        for point in mounts_below(names.HOSTS):
            run(["umount", "-l", str(point)])
        for directory in (names.HOSTS, names.DATASTORE, names.OPERATOR, *([names.IMAGES] if images else [])):
            if directory.exists():
                image.remove_tree(directory)
        for file in (RECORD, names.STATE / "guests.json"):
            file.unlink(missing_ok=True)
    progress("lab is down")


def _leftover_hosts() -> list[str]:
    """Hosts of which anything is there: a directory, a control group, a name space."""
    found = {p.name for p in names.HOSTS.glob("host*")} if names.HOSTS.exists() else set()
    found |= {n.removeprefix(names.PREFIX) for n in network.namespaces()}
    groups = cgroup2_root()
    found |= {p.name.removeprefix(names.PREFIX) for p in groups.glob(f"{names.PREFIX}host*")} if groups else set()
    return sorted(n for n in found if n.startswith("host"))


def status() -> dict[str, object]:
    """What is there, read from the machine."""
    there = record()
    rows: list[dict[str, object]] = []
    for each in hosts():
        links = {n: "up" if network.port_up(each.name, n) else "cut" for n in names.NETWORKS}
        rows.append(
            {
                "name": each.name,
                "state": each.state,
                "addresses": {n: names.host_address(each.name, n) for n in names.HOST_NETWORKS},
                "links": links,
                "storage": storage_state(each),
                "watchdog": each.watchdog_state() if each.running else "-",
            }
        )
    return {
        "hosts_as": there.hosts_as,
        "image": there.image,
        "memory_mib": there.memory_mib,
        "datastore": str(names.DATASTORE),
        "operator_home": str(names.OPERATOR),
        "hosts": rows,
    }


def storage_state(each: LabHost) -> str:
    """``ok``, ``hung``, ``failed`` for a running host, else ``-``."""
    if not each.running:
        return "-"
    pids = each.storage_pids()
    if not pids:
        return "failed"
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return "failed"
        if fields[0] in "Tt":
            return "hung"
    return "ok"
