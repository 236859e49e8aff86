"""The lab as a whole: up, down, status. Everything is idempotent and mends what a killed run left."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, image, names, network, operator, preflight
from ftkvm.lab.host import Host
from ftkvm.lab.system import cgroup2_root, exclusive, mounts_below, run

RECORD = names.STATE / "lab.json"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What `up` was asked for; a host's disk belongs to one image."""

    hosts: int
    memory_mib: int | None
    image: str


def record() -> Record:
    """The lab that is up (or was, before the machine restarted); FTKVM-720 if there is none."""
    if not RECORD.exists():
        raise FtkvmError("FTKVM-720")
    return Record(**json.loads(RECORD.read_text()))


def hosts() -> list[Host]:
    """The hosts of the lab."""
    return [Host(name) for name in names.host_names(record().hosts)]


def host(name: str) -> Host:
    """A host by name, also one that a test has made beside the lab's; FTKVM-723 with the names that exist."""
    known = names.host_names(record().hosts)
    beside = [path.name for path in names.HOSTS.glob("host*") if (path / "disk").is_dir()]
    if name not in {*known, *beside}:
        raise FtkvmError("FTKVM-723", host=name, known=", ".join(known))
    return Host(name)


def up(count: int, memory_mib: int | None, progress: Progress) -> None:
    """Makes the lab, or brings back what of it is not running. Hosts that run are left alone."""
    if not 1 <= count <= names.MAX_HOSTS:
        raise FtkvmError("FTKVM-706", count=count, maximum=names.MAX_HOSTS)
    preflight.check()
    names.STATE.mkdir(parents=True, exist_ok=True)
    with exclusive(names.LOCK, "the lab's lock"):
        root = _image(progress)
        if RECORD.exists():
            count = max(count, record().hosts)
        RECORD.write_text(json.dumps(asdict(Record(count, memory_mib, root.name))))
        _network_and_seat(count, progress)
        _boot([Host(name) for name in names.host_names(count)], root, memory_mib, progress)
    progress("lab is up")


def _image(progress: Progress) -> Path:
    """The image the lab already stands on, or the present recipe's."""
    if RECORD.exists():
        mine = names.IMAGES / record().image
        if mine.exists():
            return mine
    return image.ensure_image(progress)


def _network_and_seat(count: int, progress: Progress) -> None:
    progress("networks")
    names.DATASTORE.mkdir(parents=True, exist_ok=True)
    network.make_switches()
    network.make_client()
    key = operator.prepare_key()
    all_names = names.host_names(count)
    everyone = [Host(name) for name in all_names]
    for each in everyone:
        each.prepare_disk(all_names, key)
        each.write_hosts_file(all_names)
    operator.write_known_hosts(everyone)


def _boot(everyone: Sequence[Host], root: Path, memory_mib: int | None, progress: Progress) -> None:
    def start(each: Host) -> None:
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
                "watchdog": devices.watchdog_state(each.name) if each.running else "-",
            }
        )
    return {
        "image": there.image,
        "memory_mib": there.memory_mib,
        "datastore": str(names.DATASTORE),
        "operator_home": str(names.OPERATOR),
        "hosts": rows,
    }


def storage_state(each: Host) -> str:
    """``ok``, ``hung``, ``failed`` for a running host, else ``-``."""
    if not each.running:
        return "-"
    pids = each.unit_pids(names.DATASTORE_UNIT)
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
