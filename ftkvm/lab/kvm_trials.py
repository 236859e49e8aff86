"""Trials that need hosts with kernels of their own (``make kvm``): a host stands still, a datastore goes away.

What is judged is what is to be seen from outside: the wire, the datastore's own files, the disk.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import datastore, faults, ledger, looks, names
from ftkvm.lab.client import Capture, wait_for_guest
from ftkvm.lab.guest import domain
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.ha_watch import Records, answers, on_disk
from ftkvm.lab.stage import Stage
from ftkvm.lab.system import wait_for
from ftkvm.lab.trials import Round

FREEZE_S = 60.0
GONE_S = 20.0
BEFORE_S = 5.0
"""All in the hosts' time."""
RESTARTED_S = 60.0
BACK_S = 120.0
READ_S = 5.0
"""In which every agent has read a change of the configuration (agent/cluster.py)."""
PATIENT = {"das.failuredetectiontime": 60_000, "ha.lease_ms": 60_000, "ha.stop_after_ms": 40_000}
"""HA's times for a datastore that may be gone for half a minute, as that of an NFS server that fails over."""
MEMORY_MIB = 96

Say = Callable[[str], None]


@dataclass
class Trial:
    """What one came to, times in seconds of the hosts since the fault; ``wrong`` names all that did not hold."""

    trial: str
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Since:
    """A moment, and how long ago it was in the hosts' time."""

    stage: Stage
    at: float = field(default_factory=time.monotonic)

    def s(self) -> float:
        return self.stage.hosts_s(time.monotonic() - self.at)

    def wait_until(self, seconds: float) -> None:
        self.stage.sleep(seconds, self.at)


def tried(name: str, trial: Callable[[], Trial], say: Say) -> Trial:
    """What a trial came to; one that went no further is wrong with its reason, and the story goes on."""
    try:
        return trial()
    except (FtkvmError, OSError) as error:
        made = Trial(name, wrong=[f"it went no further: {error}"])
        _tell(made, say)
        return made


def ordinary_vm(stage: Stage, name: str, host: str, say: Say) -> Guest:
    """A VM without FT, which HA restarts; it runs on ``host`` and answers."""
    guest = domain.create(name, stage.host(host), "1G", MEMORY_MIB, 1, stage.datastore)
    stage.ftkvm("vm", "register", name, "--host", host)
    stage.ftkvm("vm", "start", name, "--host", host)
    say(f"{name} answers at {guest.address} after {wait_for_guest(guest.address, 60 * stage.patience):.0f} s")
    return guest


def owner(guest: Guest) -> str | None:
    """Which host has an ordinary VM, by its newest owner file."""
    files = datastore.of_lab().read(f".ftkvm/vms/{guest.uuid}/owner/[0-9]*.json")
    return json.loads(files[max(files)]).get("host") if files else None


def host_frozen(stage: Stage, guest: Guest, say: Say) -> Trial:
    """A whole host, kernel and all, stands still for 60 s: its watchdog ends it, and then its VM is started elsewhere.

    Records sent to its guest meanwhile lie in a network card; were the host to run on, they would be written to a disk
    that somebody else has by then.
    """
    made, host = Trial("host-frozen"), str(owner(guest))
    say(f"{host}, which runs {guest.name}, stands still for {FREEZE_S:.0f} s")
    records = Records(guest.address, ledger.next_free(guest.address))
    records.begin()
    stage.sleep(BEFORE_S)
    with Capture(list(stage.hosts)) as capture:
        faults.freeze(host)
        since = Since(stage)
        sent = records.flood()
        _noted(made, "watchdog_s", since, lambda: not stage.host(host).running, 30)
        _noted(made, "restarted_s", since, lambda: owner(guest) not in (host, None), RESTARTED_S)
        _noted(made, "answered_s", since, lambda: answers(guest.address), RESTARTED_S)
        if stage.host(host).running:
            since.wait_until(FREEZE_S)
            made.wrong.append(f"{host} still runs")
            faults.thaw(host)
        made.wrong += looks.overlaps(capture.emitters(guest.mac))
    acknowledged = records.end()
    late = [number for number in sent if on_disk(guest.address, number)]
    missing = [number for number in acknowledged if not on_disk(guest.address, number)]
    made.figures |= {"acknowledged": len(acknowledged), "lost": len(missing), "sent_while_frozen": len(sent)}
    if late or missing:
        made.wrong.append(f"records {late} came from the frozen host, {missing} are lost")
    if not stage.host(host).running:
        faults.start(host)
    stage.wait_usable(host)
    _tell(made, say)
    return made


def nfs_gone(this: Round, other: Guest, say: Say) -> Trial:
    """The NFS server is stopped for 20 s under a protected VM and an ordinary one, in a cluster that waits longer than
    that: all stands still, nobody is ended, and on the same connections everything goes on."""
    _reconsider(this.stage, PATIENT)
    try:
        made = _nfs_gone(this, other, say)
    finally:
        _reconsider(this.stage, dict.fromkeys(PATIENT))
    _tell(made, say)
    return made


def _nfs_gone(this: Round, other: Guest, say: Say) -> Trial:
    made, stage = Trial("nfs-gone"), this.stage
    epoch = int(this.wait_protected(0)["epoch"])
    say(f"the NFS server is stopped for {GONE_S:.0f} s; hosts wait {PATIENT['ha.stop_after_ms'] / 1000:.0f} s for it")
    this.clients.mark()
    this.clients.capture.mark()
    since = Since(stage)
    _without_server(stage, since, made)
    this.wait_served()
    made.figures["served_s"] = since.s()
    pair = this.wait_protected(0)
    made.figures |= {"protected_s": since.s(), "epochs_ended": int(pair["epoch"]) - epoch}
    _noted(made, "other_answered_s", since, lambda: answers(other.address), RESTARTED_S * 2)
    made.wrong += [f"{host} was ended" for host in stage.hosts if not stage.host(host).running]
    for number in range(epoch, int(pair["epoch"])):
        made.wrong += looks.only_one_winner(stage, this.guest, number)
    made.wrong += _twice(stage, [this.guest, other], this.clients.capture)
    made.wrong += this.clients.broken()
    made.wrong += this.read_ledger(str(pair["host"]))[1]
    return made


def nfs_gone_for_too_long(stage: Stage, guests: list[Guest], say: Say) -> Trial:
    """The same with HA's times as they are by default: hosts with VMs are ended by their watchdogs, as a host must be
    that cannot know whether others have taken its VMs. They boot again, as a watchdog's reset has them do, and every VM
    runs again, once, with all records that were acknowledged."""
    made = Trial("nfs-gone-for-too-long")
    records = [Records(guest.address, ledger.next_free(guest.address)) for guest in guests]
    for each in records:
        each.begin()
    stage.sleep(BEFORE_S)
    say(f"the NFS server is stopped for {GONE_S:.0f} s, longer than hosts wait by default")
    with Capture(list(stage.hosts)) as capture:
        since = Since(stage)
        _without_server(stage, since, made)
        acknowledged = [each.end() for each in records]
        ended = [host for host in stage.hosts if not stage.host(host).running]
        made.figures["ended_by_watchdog"] = ended
        say(f"  ended by their watchdogs: {', '.join(ended) or 'none'}; they boot again")
        for host in ended:
            faults.start(host)
        for guest in guests:
            _noted(made, f"{guest.name}_answered_s", since, partial(answers, guest.address), BACK_S)
        for host in ended:
            stage.wait_usable(host, BACK_S)
        made.figures["hosts_usable_s"] = since.s()
        made.wrong += _twice(stage, guests, capture)
    for guest, mine in zip(guests, acknowledged, strict=True):
        lost = [number for number in mine if not on_disk(guest.address, number)]
        made.figures[f"{guest.name}_records"] = len(mine)
        made.wrong += [f"{guest.name} lost records {lost}"] if lost else []
    _tell(made, say)
    return made


def _without_server(stage: Stage, since: Since, made: Trial) -> None:
    """Stops the NFS server, and starts it again when its time is over."""
    box = stage.host(names.STORAGE)
    box.run(["systemctl", "stop", "nfs-server"])
    try:
        since.wait_until(GONE_S)
    finally:
        box.run(["systemctl", "start", "nfs-server"])
        made.figures["gone_s"] = since.s()


def _reconsider(stage: Stage, settings: Mapping[str, int | None]) -> None:
    """Other times for HA, which takes them when it is switched off and on; None: the default."""
    stage.ftkvm("cluster", "set", "ha.enabled=off")
    stage.ftkvm("cluster", "set", *(f"{name}={'' if value is None else value}" for name, value in settings.items()))
    stage.ftkvm("cluster", "set", "ha.enabled=on")
    stage.sleep(READ_S)


def _tell(made: Trial, say: Say) -> None:
    say(f"  {made.figures}{'  WRONG: ' + '; '.join(made.wrong) if made.wrong else ''}")


def _noted(made: Trial, name: str, since: Since, holds: Callable[[], bool], limit_s: float) -> None:
    """When something came true; that it did not within so many seconds of the hosts is wrong."""
    with contextlib.suppress(FtkvmError):
        wait_for(name, holds, limit_s * since.stage.patience, 0.2)
        made.figures[name] = since.s()
        return
    made.wrong.append(f"{name}: not within {limit_s:.0f} s")


def _twice(stage: Stage, guests: list[Guest], capture: Capture) -> list[str]:
    """VMs for which two hosts spoke at the same time, or which run for themselves on two."""
    found = [f"{guest.name}: {text}" for guest in guests for text in looks.overlaps(capture.emitters(guest.mac))]
    for guest in guests:
        running = [name for name in stage.hosts if looks.runs_for_itself(stage.host(name), guest.name)]
        if len(running) != 1:
            found.append(f"{guest.name} runs for itself on {running}")
    return found
