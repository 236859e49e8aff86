"""What is to be seen of a protected VM from outside: on the wire, on its hosts, on the datastore."""

import itertools
import json
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import datastore, names
from ftkvm.lab.base import LabHost
from ftkvm.lab.client import Emission
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.stage import Stage


def overlaps(emitters: dict[str, Emission]) -> list[str]:
    """Hosts whose frames of one guest are mixed in time: two copies that answer."""
    by_time = sorted(emitters.items(), key=lambda item: item[1].first)
    wrong = []
    for (early, before), (late, after) in itertools.pairwise(by_time):
        if before.last > after.first:
            theirs = "; ".join(before.since(after.first))
            wrong.append(
                f"{early} still spoke {1000 * (before.last - after.first):.0f} ms after {late} began "
                f"(kinds {sorted(map(hex, before.kinds))}): {theirs}"
            )
    return wrong


def runs_for_itself(host: LabHost, vm: str) -> bool:
    """Whether a QEMU of the VM on this host answers to its guest's clients: it runs and is no COLO secondary."""
    if not host.running or not host.qemu_pids(vm):
        return False
    ask = ["virsh", "qemu-monitor-command", vm, '{"execute":"query-colo-status"}']
    try:
        mode = json.loads(host.run(ask, timeout_s=10))["return"]["mode"]
    except (FtkvmError, ValueError, KeyError):
        return bool(host.qemu_pids(vm))  # it cannot be asked: as bad as one that runs
    return bool(mode != "secondary")


def chain(host: LabHost, image: str) -> list[str]:
    """The images of a disk, topmost first."""
    said = host.run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", image], timeout_s=30)
    return [str(each["filename"]) for each in json.loads(said)]


def winners(stage: Stage, guest: Guest, epoch: int) -> list[dict[str, Any]]:
    """The winner files of an epoch (there can be one at most: read as they lie on the datastore)."""
    relative = stage.datastore.removeprefix(names.DATASTORE_MOUNT).strip("/")
    found = datastore.of_lab().read(f"{relative}/.ftkvm/ft/{guest.uuid}/epoch-{epoch:04d}.winner".lstrip("/"))
    return [json.loads(content) for content in found.values()]


def only_one_winner(stage: Stage, guest: Guest, epoch: int) -> list[str]:
    """Every epoch that ended has exactly one winner file."""
    won = winners(stage, guest, epoch)
    if len(won) != 1:
        return [f"{len(won)} winner files of epoch {epoch}"]
    return []
