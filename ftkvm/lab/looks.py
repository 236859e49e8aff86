"""What is to be seen of a protected VM from outside: on the wire, on its hosts, on the datastore."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import datastore, names
from ftkvm.lab.base import LabHost
from ftkvm.lab.client import CONNECT_S, CONTROL, Emission, ask
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.stage import Stage


def overlaps(emitters: dict[str, Emission], stood_still: str | None = None) -> list[str]:
    """Hosts whose frames of one guest are mixed in time: two copies that answer.

    :param stood_still: a host whose kernel was stopped and let go again. What that had in hand leaves it then, past its
        gates and whatever its agent does. Safety: a pair lets nothing out that its other copy would not say as well
        (colo-compare), so the one that took over has said it or says it, and a client takes it for a duplicate (RFC
        9293, 3.10.7.4). A copy that lived would say what nobody has said; of this host only that counts.
    """
    wrong = []
    for (early, before), (late, after) in _successions(emitters):
        last = before.last_news if early == stood_still else before.last
        if last > after.first:
            theirs = "; ".join(before.since(after.first))
            wrong.append(
                f"{early} still spoke {1000 * (last - after.first):.0f} ms after {late} began "
                f"(kinds {sorted(map(hex, before.kinds))}): {theirs}"
            )
    return wrong


def late_frames(emitters: dict[str, Emission]) -> list[str]:
    """What hosts still said after the next one had begun, as far back as a capture keeps frames."""
    return [text for (_, before), (_, after) in _successions(emitters) for text in before.since(after.first)]


def _successions(emitters: dict[str, Emission]) -> Iterable[tuple[tuple[str, Emission], tuple[str, Emission]]]:
    """Each host that spoke, with the one that began next."""
    return itertools.pairwise(sorted(emitters.items(), key=lambda item: item[1].first))


def runs_for_itself(host: LabHost, vm: str) -> bool:
    """Whether a QEMU of the VM on this host answers to its guest's clients: it runs, and neither is a COLO secondary
    nor waits for the memory of one that it is to become (``inmigrate``: its guest has not begun)."""
    if not host.running or not host.qemu_pids(vm):
        return False

    def ask(command: str) -> dict[str, Any]:
        said = host.run(["virsh", "qemu-monitor-command", vm, json.dumps({"execute": command})], timeout_s=10)
        return dict(json.loads(said)["return"])

    try:
        # in this order: what waits now can be a secondary next, and not the other way round
        waits = ask("query-status")["status"] == "inmigrate"
        return not (waits or ask("query-colo-status")["mode"] == "secondary")
    except (FtkvmError, ValueError, KeyError):
        return bool(host.qemu_pids(vm))  # it cannot be asked: as bad as one that runs


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


def soundness(guest: Guest, timeout_s: float = CONNECT_S) -> dict[str, int]:
    """What the guest's own kernel says: ``tainted`` is not 0 once it has had an oops; ``uptime`` in its seconds.

    :raises OSError: it does not answer
    """
    words = ask(guest.address, CONTROL, "sound", timeout_s).split()
    return {name: int(value) for name, value in zip(words[1::2], words[2::2], strict=True)}


def hmp(host: LabHost, vm: str, line: str, timeout_s: float = 90) -> str:
    """One line of QEMU's human monitor; FTKVM-709 when it does not answer."""
    return host.run(["virsh", "qemu-monitor-command", "--hmp", vm, line], timeout_s=timeout_s)


SCREEN = 0xB8000, 25, 80
"""VGA's text memory (address, lines, columns): two bytes a character, the second its colour."""


def inside(host: LabHost, guest: Guest) -> str:
    """What a guest that seems to hang shows: its kernel's word, registers, virtio queues, screen.

    Emulated guests die of QEMU's stale translations now and then (docs/engine-notes.md); a fault of ours looks the
    same to a client. An oops on the screen, or a processor that waits (HLT=1) beside a queue whose entries nobody
    takes, tells one from the other.
    """

    def ask_monitor(line: str) -> str:
        try:
            return hmp(host, guest.name, line, 20)
        except FtkvmError as error:
            return error.text

    try:
        told = [str(soundness(guest, 5))]
    except OSError as error:
        told = [f"no answer: {error}"]
    told += map(ask_monitor, ("info status", "info registers", "info network"))
    for device in ask_monitor("info virtio").split():
        if device.startswith("/machine/"):
            told += (ask_monitor(f"info virtio-queue-status {device} {queue}") for queue in (0, 1))
    address, lines, columns = SCREEN
    return "\n".join([*told, screen_of(ask_monitor(f"xp /{2 * lines * columns}xb {address:#x}"), columns)])


def screen_of(dump: str, columns: int) -> str:
    """The text in a dump of VGA's text memory by HMP's ``xp``; a dump that is none comes back as it is."""
    cells = [byte for line in dump.splitlines() for byte in line.partition(":")[2].split()]
    try:
        text = "".join(chr(int(cell, 16)) for cell in cells[::2])
    except ValueError:
        return dump
    rows = (text[at : at + columns].replace("\0", " ").rstrip() for at in range(0, len(text), columns))
    return "\n".join(row for row in rows if row) or dump
