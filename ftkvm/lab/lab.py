"""The lab as a whole: up, down, status. Everything is idempotent and mends what a killed run left."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, image, names, network, operator, preflight
from ftkvm.lab.base import LabHost
from ftkvm.lab.host import Host
from ftkvm.lab.record import RECORD as RECORD
from ftkvm.lab.record import Record, standing
from ftkvm.lab.record import record as record
from ftkvm.lab.system import cgroup2_root, exclusive, mounts_below, run
from ftkvm.lab.vm import bare as bare_image
from ftkvm.lab.vm import dilation, layer, mirror
from ftkvm.lab.vm.bare import BareHost
from ftkvm.lab.vm.host import VmHost
from ftkvm.lab.vm.machine import accelerator
from ftkvm.lab.vm.nfs import NfsHost, StorageBox

CONTAINERS, VMS = "containers", "vms"
Progress = Callable[[str], None]


def _make(name: str, there: Record) -> LabHost:
    if name == names.STORAGE:
        return StorageBox(name)
    if there.hosts_as != VMS:
        return Host(name)
    return BareHost(name) if there.bare else NfsHost(name) if there.nfs else VmHost(name)


def hosts() -> list[LabHost]:
    """The hosts of the lab."""
    return [_make(name, record()) for name in names.host_names(record().hosts)]


def machines() -> list[LabHost]:
    """The hosts, and before them the storage VM if there is one."""
    return [*([StorageBox(names.STORAGE)] if record().nfs else []), *hosts()]


def host(name: str) -> LabHost:
    """A host by name, also one that a test has made beside the lab's; FTKVM-723 with the names that exist."""
    known = [each.name for each in machines()]
    beside = [path.name for path in names.HOSTS.glob("host*") if (path / "disk").is_dir()]
    if name not in {*known, *beside}:
        raise FtkvmError("FTKVM-723", host=name, known=", ".join(known))
    return _make(name, record())


def up(
    count: int, memory_mib: int | None, progress: Progress, hosts_as: str | None = None,
    time_dilation: float | None = None, nfs: bool | None = None, bare: bool = False,
) -> None:  # fmt: skip
    """Makes the lab, or brings back what of it is not running. Hosts that run are left alone.

    :param hosts_as: ``containers`` or ``vms``; None: as it is, containers if there is no lab yet
    :param time_dilation: how much slower the hosts' clocks go (VMs only); None: as it is, or what this machine needs
    :param nfs: the datastore is a storage VM's, over NFS (VMs only); None: as it is, or this machine's directory
    :param bare: hosts as Debian's installer leaves them, for a lab that is made now (VMs only); their datastore is NFS
    :raises FtkvmError: FTKVM-740, the lab stands on hosts of the other kind; 743 or with clocks of another pace; 745 or
        with the other datastore; 742, 744 containers have this machine's clock, and no NFS
    """
    if not 1 <= count <= names.MAX_HOSTS:
        raise FtkvmError("FTKVM-706", count=count, maximum=names.MAX_HOSTS)
    kind = _kind(hosts_as, bare)
    pace = _pace(kind, time_dilation)
    nfs = _over_nfs(kind, True if bare else nfs)
    preflight.check(vms=kind == VMS)
    names.STATE.mkdir(parents=True, exist_ok=True)
    with exclusive(names.LOCK, "the lab's lock"):
        root = _image(kind, progress)
        if there := standing():
            count = max(count, there.hosts)
        Record(count, memory_mib, root.name, kind, pace, nfs, _bare(root, bare, progress)).write()
        everyone = machines()
        _network_and_seat(everyone, progress)
        _boot(everyone, root, memory_mib, progress)
    progress("lab is up")


def _kind(wanted: str | None, bare: bool) -> str:
    there = standing()
    if bare and there and not there.bare:
        raise FtkvmError("FTKVM-740", there=f"{there.hosts_as}, prepared", wanted="bare")
    if there and wanted and there.hosts_as != wanted:
        raise FtkvmError("FTKVM-740", there=there.hosts_as, wanted=wanted)
    kind = wanted or (there.hosts_as if there else CONTAINERS)
    if bare and kind != VMS:
        raise FtkvmError("FTKVM-605", option="--bare", detail="containers are made of a prepared image: --hosts-as vms")
    return kind


def _pace(kind: str, wanted: float | None) -> float:
    if kind != VMS:
        if wanted not in (None, 1.0):
            raise FtkvmError("FTKVM-742")
        return 1.0
    there = standing()
    if there and wanted and there.time_dilation != wanted:
        raise FtkvmError("FTKVM-743", there=f"{there.time_dilation:g}", wanted=f"{wanted:g}")
    return there.time_dilation if there else wanted or dilation.default(accelerator(Path("/proc/cpuinfo").read_text()))


def _over_nfs(kind: str, wanted: bool | None) -> bool:
    if wanted and kind != VMS:
        raise FtkvmError("FTKVM-744")
    there = standing()
    if there and wanted is not None and there.nfs != wanted:
        raise FtkvmError("FTKVM-745", there=there.storage, wanted="nfs" if wanted else "virtiofs")
    return there.nfs if there else bool(wanted)


def _bare(root: Path, wanted: bool, progress: Progress) -> str:
    """The bare image's name, if the lab's hosts are bare."""
    there = standing()
    return there.bare if there else bare_image.ensure_image(root, progress) if wanted else ""


def _image(hosts_as: str, progress: Progress) -> Path:
    """The image the lab already stands on, or the present recipe's."""
    if there := standing():
        mine = names.IMAGES / there.image
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
    if bare := record().bare:
        mirror.begin(bare_image.packages(bare))


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
        mirror.end()
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
    found = {p.name for p in names.HOSTS.iterdir()} if names.HOSTS.exists() else set()
    found |= {n.removeprefix(names.PREFIX) for n in network.namespaces()}
    groups = cgroup2_root()
    found |= {p.name.removeprefix(names.PREFIX) for p in groups.glob(f"{names.PREFIX}*")} if groups else set()
    return sorted(n for n in found if n.startswith("host") or n == names.STORAGE)


def status() -> dict[str, object]:
    """What is there, read from the machine."""
    there = record()
    rows: list[dict[str, object]] = []
    for each in machines():
        links = {n: "up" if network.port_up(each.name, n) else "cut" for n in names.NETWORKS}
        rows.append(
            {
                "name": each.name,
                "state": each.state,
                "addresses": {n: names.host_address(each.name, n) for n in names.HOST_NETWORKS},
                "links": links,
                "storage": storage_state(each),
                "watchdog": each.watchdog_state() if each.running else "fired" if devices.fired(each.name) else "-",
            }
        )
    return {
        "hosts_as": there.hosts_as,
        "time_dilation": there.time_dilation,
        "image": there.image,
        "bare": bool(there.bare),
        "memory_mib": there.memory_mib,
        "storage": there.storage,
        "datastore": names.export() if there.nfs else str(names.DATASTORE),
        "operator_home": str(names.OPERATOR),
        "hosts": rows,
    }


def storage_state(each: LabHost) -> str:
    """``ok``, ``hung``, ``failed`` for a running host, else ``-``."""
    return each.storage_state() if each.running else "-"
