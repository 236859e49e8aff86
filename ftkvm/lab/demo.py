"""``make demo``: a host dies silently; the client of its VM notices a short pause and nothing else.

:mod:`ftkvm.lab.kvm` tells it of hosts that are virtual machines. Where those are emulated, their clocks go slower
(:mod:`ftkvm.lab.vm.dilation`), and all figures are in their time, those that the client took too.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import faults, lab, ledger, names
from ftkvm.lab.client import Capture, CounterClient, GapProbe, LedgerClient, wait_for_guest
from ftkvm.lab.guest import domain
from ftkvm.lab.stage import Stage

VM = "vm1"
REPORT = Path("build/demo.json")
HOSTS = 3
GUEST_MEMORY_MIB = 192
PROTECT_TIMEOUT_S = 60
REPROTECT_TIMEOUT_S = 90
STREAM_S = 5.0
"""How long the client streams before and after each event, in the hosts' time."""


@dataclass
class Story:
    """Tells what happens, with the time since the start, and keeps the figures for the report."""

    report: Path
    time_dilation: float = 1.0
    """Seconds here for each of the hosts; figures are in theirs."""
    stream_s: float = STREAM_S
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def chapter(self, text: str) -> None:
        print(f"\n== {text}", flush=True)

    def note(self, **figures: Any) -> None:
        self.figures.update(figures)

    def stream(self) -> None:
        """Lets the client stream, before and after each event."""
        time.sleep(self.stream_s * self.time_dilation)

    def pause_ms(self, stream: CounterClient | GapProbe | LedgerClient) -> float:
        """The longest pause since the last mark, in the hosts' time."""
        return round(stream.longest_pause_ms() / self.time_dilation, 1)

    def since_s(self, moment_s: float) -> float:
        """Since then (monotonic clock), in the hosts' time."""
        return round((time.monotonic() - moment_s) / self.time_dilation, 2)

    def round_trip_ms(self, probe: GapProbe) -> float:
        """The median, in the hosts' time."""
        return round(median(probe.round_trip_ms) / self.time_dilation, 2) if probe.round_trip_ms else 0.0

    def write(self) -> None:
        """Writes the report, also of a run that failed half-way."""
        self.note(total_s=round(time.monotonic() - self.started, 1))
        self.report.parent.mkdir(exist_ok=True)
        self.report.write_text(json.dumps(self.figures, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Clients:
    """All that hangs on the VM: three connections made once, and a look at the switch."""

    counter: CounterClient
    probe: GapProbe
    records: LedgerClient
    capture: Capture

    def mark(self) -> None:
        for each in (self.counter, self.probe, self.records):
            each.mark()
        self.capture.mark()

    def broken(self) -> list[str]:
        return [f"{e.name}: {e.broken}" for e in (self.counter, self.probe, self.records) if e.broken]

    def wait_progress(self, timeout_s: float) -> None:
        """Waits until each connection has carried something new."""
        before = (self.counter.last, self.probe.received, len(self.records.acknowledged))
        deadline = time.monotonic() + timeout_s
        while True:
            now = (self.counter.last, self.probe.received, len(self.records.acknowledged))
            if all(n > b for n, b in zip(now, before, strict=True)):
                return
            if self.broken() or time.monotonic() > deadline:
                raise FtkvmError("FTKVM-727", vm=VM, timeout_s=f"{timeout_s:.0f}", detail="; ".join(self.broken()))
            time.sleep(0.01)


def play(stage: Stage, story: Story) -> None:
    """The story on a stage of bare hosts that run."""
    story.chapter(f"A cluster of {len(stage.hosts)} hosts, prepared over SSH")
    stage.create_cluster(story.say)
    guest = make_vm(stage, story)
    with (
        CounterClient(guest.address) as counter,
        GapProbe(guest.address) as probe,
        LedgerClient(guest.address, every_s=0.01) as records,
        Capture(list(stage.hosts)) as capture,
    ):
        clients = Clients(counter, probe, records, capture)
        lose_a_host(stage, story, clients, guest)
        acknowledged = end_streams(story, clients)
    prove(stage, story, acknowledged)


def lose_a_host(stage: Stage, story: Story, clients: Clients, guest: domain.Guest) -> None:
    """FT on, the primary's host dies, protected again, the host is back."""
    protect(stage, story, clients, lambda: stage.ftkvm("enable", VM))
    lose_primary(stage, story, clients, guest)


def lose_primary(stage: Stage, story: Story, clients: Clients, guest: domain.Guest) -> None:
    """The host of a protected VM's primary dies, the VM is protected again, the host is back."""
    loss = _crash(stage, story, clients)
    if len(stage.hosts) > 2:
        _protected_again(stage, story, clients, guest, loss)
        _repair(stage, story, clients, loss.host)
    else:  # nobody is left to take a new secondary
        _repair(stage, story, clients, loss.host)
        _protected_again(stage, story, clients, guest, loss)


def end_streams(story: Story, clients: Clients) -> list[int]:
    """How the connections fared, into the report; the numbers of the records that were acknowledged."""
    story.note(
        connection_survived=not clients.broken(),
        counter_gaps=clients.counter.gaps,
        counter_last=clients.counter.last,
        records_refused=len(clients.records.refused),
        broken=clients.broken(),
    )
    clients.records.close()
    return list(clients.records.acknowledged)


def make_vm(stage: Stage, story: Story) -> domain.Guest:
    """A VM that is registered, runs and answers."""
    story.chapter(f"A VM: {VM}")
    first = stage.host(stage.hosts[0])
    guest = domain.create(VM, first, "1G", GUEST_MEMORY_MIB, 1, stage.datastore)
    story.note(kvm=domain.kvm_state())
    story.say(
        f"guests are {'run by KVM' if domain.kvm_state() == 'yes' else 'emulated; KVM here: ' + domain.kvm_state()}"
    )
    stage.ftkvm("vm", "register", VM, "--host", first.name)
    stage.ftkvm("vm", "start", VM, "--host", first.name)
    story.say(f"{VM} answers at {guest.address} after {wait_for_guest(guest.address, 60 * stage.patience):.1f} s")
    return guest


def protect(stage: Stage, story: Story, clients: Clients, enable: Callable[[], object]) -> None:
    """FT is turned on by ``enable`` while the clients stream; what they saw of it."""
    story.chapter("A client streams; fault tolerance is turned on")
    story.stream()
    story.note(
        unprotected_round_trip_ms=story.round_trip_ms(clients.probe), unprotected_pause_ms=story.pause_ms(clients.probe)
    )
    clients.mark()
    started = time.monotonic()
    enable()
    pair = stage.wait_protected(VM, PROTECT_TIMEOUT_S)
    command_s = story.since_s(started)
    story.note(protect_s=pair["protect"]["protect_s"], enable_command_s=command_s)
    clients.wait_progress(10 * stage.patience)
    story.note(protect_pause_ms=story.pause_ms(clients.probe))
    booting = "" if story.figures["kvm"] == "yes" else ": an emulated guest that was just started is let boot first"
    story.say(
        f"protected in {story.figures['protect_s']} s (the command took {command_s} s{booting}): primary on "
        f"{pair['host']}, secondary on {pair['secondary_host']}; the client's longest pause meanwhile was "
        f"{story.figures['protect_pause_ms']} ms"
    )
    clients.probe.round_trip_ms.clear()
    clients.mark()
    story.stream()
    story.note(
        protected_round_trip_ms=story.round_trip_ms(clients.probe), protected_pause_ms=story.pause_ms(clients.probe)
    )
    story.say(
        f"round trip {story.figures['unprotected_round_trip_ms']} ms before, "
        f"{story.figures['protected_round_trip_ms']} ms now"
    )


@dataclass(frozen=True)
class Loss:
    """A host that was lost, in which epoch of its VM's pair, and when (monotonic clock)."""

    host: str
    epoch: int
    at_s: float


def _crash(stage: Stage, story: Story, clients: Clients) -> Loss:
    pair = stage.pair(VM)
    dead, epoch = str(pair["host"]), int(pair["epoch"])
    story.chapter(f"{dead}, where {VM} runs, loses its power")
    clients.mark()
    loss = Loss(dead, epoch, time.monotonic())
    faults.crash(dead)
    clients.wait_progress(30 * stage.patience)
    story.note(client_gap_ms=story.pause_ms(clients.probe), counter_gap_ms=story.pause_ms(clients.counter))
    story.say(f"the client goes on, on the same connections, after {story.figures['client_gap_ms']} ms")
    return loss


def _protected_again(stage: Stage, story: Story, clients: Clients, guest: domain.Guest, loss: Loss) -> None:
    after = stage.wait_protected(VM, REPROTECT_TIMEOUT_S, after_epoch=loss.epoch)
    failover = after.get("last_failover") or {}
    story.note(
        reprotect_s=story.since_s(loss.at_s),
        promote_ms=failover.get("promote_ms"),
        failover=failover,
        reprotect_pause_ms=story.pause_ms(clients.probe),
    )
    story.say(
        f"promoted on {after['host']} in {failover.get('promote_ms')} ms; protected again on "
        f"{after['secondary_host']}, {story.figures['reprotect_s']} s after the loss"
    )
    emitters = {
        host: e.frames
        for host, e in clients.capture.emitters(guest.mac).items()
        if e.last > loss.at_s + story.time_dilation
    }
    story.note(emitters_after_crash=emitters)
    story.say(f"frames of {VM} on the switch since, by host: {emitters}")


def _repair(stage: Stage, story: Story, clients: Clients, dead: str) -> None:
    story.chapter(f"{dead} gets its power back")
    started = time.monotonic()
    faults.start(dead)
    story.say(f"{dead} has booted")
    stage.wait_usable(dead)
    story.note(host_back_s=story.since_s(started))
    story.say(f"{dead} is a usable host of the cluster again after {story.figures['host_back_s']} s")
    story.stream()
    clients.wait_progress(10 * stage.patience)


def prove(stage: Stage, story: Story, acknowledged: list[int]) -> None:
    """With FT and the VM off: each acknowledged record once on its disk, the image clean."""
    story.chapter("The proof on the disk")
    stage.ftkvm("turn-off", VM)
    host = str(stage.vm_status(VM)["host"])
    disk = stage.disk_of(VM, host)
    stage.ftkvm("vm", "stop", VM)
    verdict = ledger.verify(stage.host(host), disk, acknowledged)
    ledger.image_check(stage.host(host), disk)
    story.note(
        acknowledged_records=verdict.acknowledged,
        lost_records=len(verdict.lost),
        doubled_records=len(verdict.doubled),
        wrong_records=len(verdict.wrong),
        image_check="clean",
    )
    story.say(
        f"{verdict.acknowledged} records were acknowledged: {len(verdict.lost)} lost, {len(verdict.doubled)} "
        f"doubled, {len(verdict.wrong)} wrong; the image check is clean"
    )


def judge(figures: dict[str, Any]) -> list[str]:
    """What of a finished run is not as promised; empty when all is."""
    wrong = [
        key
        for key in ("counter_gaps", "lost_records", "doubled_records", "wrong_records", "records_refused")
        if figures.get(key) != 0
    ]
    if figures.get("connection_survived") is not True:
        wrong.append("connection_survived")
    if len(figures.get("emitters_after_crash", {})) != 1:
        wrong.append("emitters_after_crash")
    return wrong


def told(
    story: Story, tell: Callable[[], None], more: Callable[[dict[str, Any]], list[str]] = lambda _figures: []
) -> int:
    """Runs the story and writes the report, however it ends; 0 when everything held, what ``more`` judges too."""
    story.note(machine={"cpus": os.cpu_count(), "kernel": platform.release(), "arch": platform.machine()})
    try:
        tell()
    except FtkvmError as error:
        story.note(error=error.to_json())
        story.say(f"{error}\n  cause:  {error.cause}\n  remedy: {error.remedy}")
        return error.message.exit_status
    finally:
        story.write()
    wrong = judge(story.figures) + more(story.figures)
    story.chapter("Not as promised: " + ", ".join(wrong) if wrong else "All held")
    print(f"Figures: {story.report}   The lab is still up (`ftkvm lab status`); `ftkvm lab down` removes it.")
    return 1 if wrong else 0


def main() -> int:
    """A lab from nothing, the story, the report; 0 when everything held."""
    story = Story(REPORT)

    def tell() -> None:
        story.chapter("The lab")
        lab.down(story.say)
        lab.up(HOSTS, None, story.say)
        story.note(lab_s=round(time.monotonic() - story.started, 1))
        play(Stage(tuple(names.host_names(HOSTS))), story)

    return told(story, tell)


if __name__ == "__main__":
    sys.exit(main())
