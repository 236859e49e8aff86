"""Faults against a protected VM, one at a time: strike, wait until protected again, check what must hold.

`strikes` has the kinds of fault, one function each; `Round.run` does the rest, the same for all: nothing acknowledged
lost, nothing twice, no gap in a stream, one host at a time that speaks for the VM.
"""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.client import AgentClient
from ftkvm.cli.hosts import host_trouble
from ftkvm.home import Home
from ftkvm.lab import faults, ledger, looks, names, netns, strikes
from ftkvm.lab.client import CONNECT_S, CONTROL, PROBE_EVERY_S, CounterClient, GapProbe, ask, wait_for_guest
from ftkvm.lab.demo import Clients
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.stage import Stage

PROGRESS_TIMEOUT_S = 60.0
PROTECTED_TIMEOUT_S = 90.0
HOST_BACK_TIMEOUT_S = 60.0
QUIET_S = 1.0
"""How long the network is watched after a fault to see who still speaks for the VM."""

MAX_DEPTH = 4
"""Images in a disk's chain that a protect may lead to (core.chain.ChainLimits)."""

Say = Callable[[str], None]


class PauseProbe(GapProbe):
    """A gap probe that also remembers each pause of note, so that one strike can have several."""

    NOTED_S = 0.05

    def __init__(self, address: str, every_s: float = PROBE_EVERY_S) -> None:
        super().__init__(address, every_s)
        self.pauses: list[tuple[float, float]] = []
        """When each began, and its length in seconds."""

    def _arrived(self) -> None:
        began, now = self._last, time.monotonic()
        if now - began > self.NOTED_S:
            self.pauses.append((began, now - began))
        super()._arrived()

    def worst_ms(self, since: float, until: float) -> float:
        """The longest pause that touches the time from ``since`` to ``until``."""
        touching = [length for began, length in list(self.pauses) if began < until and began + length > since]
        return round(1000 * max(touching, default=0.0), 1)


@dataclass
class Outcome:
    """What one strike did; ``wrong`` names all that did not hold."""

    fault: str
    epoch: int
    primary: str
    secondary: str
    gap_ms: float = 0.0
    """The client's longest pause from the strike until it was served again."""
    longest_ms: float = 0.0
    """The same until protected again: re-protecting included."""
    promote_ms: float | None = None
    cause: str | None = None
    protect_s: float | None = None
    protected_after_s: float = 0.0
    round_trip_ms: float = 0.0
    depth: int = 0
    late_frames: list[str] = field(default_factory=list)
    """What the host that lost still said after the other had begun: frames that its stopped kernel had in hand."""
    wrong: list[str] = field(default_factory=list)


class Eyes:
    """Asks the cluster for its state without a process for each question: two cores are not many."""

    def __init__(self, stage: Stage) -> None:
        self._client = AgentClient(Home(stage.home))
        self._timeout_s = 5.0 * stage.patience

    def status(self, vm: str) -> dict[str, Any]:
        """What the cluster says of the VM now; empty when nobody can say."""
        try:
            with netns.inside(names.CLIENT_NS):
                found = self._client.call("GET", f"/v1/status?vm={vm}", timeout_s=self._timeout_s)["vms"]
        except FtkvmError:
            return {}
        return dict(found[0]) if found else {}

    def host_troubles(self, wanted: tuple[str, ...]) -> dict[str, str]:
        """Hosts that are of no use now, and why."""
        try:
            with netns.inside(names.CLIENT_NS):
                rows = {
                    row["name"]: row
                    for row in self._client.call("GET", "/v1/hosts", timeout_s=self._timeout_s)["hosts"]
                }
        except FtkvmError as error:
            return dict.fromkeys(wanted, str(error))
        return {name: str(rows.get(name)) for name in wanted if name not in rows or host_trouble(rows[name])}


@dataclass
class Round:
    """One client, one ledger, one VM, and the strikes they go through."""

    stage: Stage
    guest: Guest
    clients: Clients
    say: Say
    chance: random.Random
    outcomes: list[Outcome] = field(default_factory=list)
    newcomers: list[CounterClient] = field(default_factory=list)
    """Connections opened just before a strike; each has to live through that failover and the next."""
    eyes: Eyes = field(init=False)

    def __post_init__(self) -> None:
        self.eyes = Eyes(self.stage)

    @property
    def vm(self) -> str:
        return self.guest.name

    def _worst_ms(self, since: float, until: float) -> float:
        return round(self._probe().worst_ms(since, until) / self.stage.time_dilation, 1)

    def run(self, fault: str) -> Outcome:
        """One strike of a kind, to its end. What did not hold is in the outcome; FTKVM-7xx when it went no further."""
        pair = self.wait_protected(0)
        outcome = Outcome(fault, int(pair["epoch"]), str(pair["host"]), str(pair["secondary_host"]))
        self.outcomes.append(outcome)
        self.say(f"{fault}: epoch {outcome.epoch}, primary {outcome.primary}, secondary {outcome.secondary}")
        self._newcomer()
        self.clients.mark()
        at = time.monotonic()
        mend = strikes.FAULTS[fault](self, pair)
        with strikes.Mending(mend) as mending:
            served = self.wait_served()
            if fault in strikes.NEEDS_MENDING:
                mending.now()
            after = self.wait_protected(outcome.epoch)
            outcome.protected_after_s = self.stage.hosts_s(time.monotonic() - at)
        outcome.gap_ms = self._worst_ms(at, max(served, at + 0.3 * self.stage.time_dilation))
        outcome.longest_ms = self._worst_ms(at, time.monotonic())
        self._figures(outcome, after)
        self._wait_hosts()
        self.check(outcome, after)
        self._tell(outcome)
        return outcome

    def _newcomer(self) -> None:
        while len(self.newcomers) >= 2:
            self.newcomers.pop(0).close()
        self.newcomers.append(CounterClient(self.guest.address))
        self.newcomers[-1].start()

    def _newcomers_wrong(self) -> list[str]:
        """Those that are broken or carry nothing any more; waits a while for slow ones."""
        before = [each.last for each in self.newcomers]
        deadline = time.monotonic() + 5.0 * self.stage.patience
        while time.monotonic() < deadline:
            if all(each.last > was for each, was in zip(self.newcomers, before, strict=True)):
                break
            time.sleep(0.05)
        ages = range(len(self.newcomers), 0, -1)
        return [
            f"a connection opened {age} strikes ago is {each.broken or 'stuck'}, {each.gaps} gaps"
            for each, was, age in zip(self.newcomers, before, ages, strict=True)
            if each.broken or each.last == was or each.gaps
        ]

    def _probe(self) -> PauseProbe:
        assert isinstance(self.clients.probe, PauseProbe)
        return self.clients.probe

    def _figures(self, outcome: Outcome, after: dict[str, Any]) -> None:
        failover = after.get("last_failover") or {}
        outcome.promote_ms = failover.get("promote_ms")
        outcome.cause = failover.get("reason")
        outcome.protect_s = (after.get("protect") or {}).get("protect_s")

    def _tell(self, outcome: Outcome) -> None:
        wrong = f"  late: {'; '.join(outcome.late_frames)}" if outcome.late_frames else ""
        wrong += f"  WRONG: {'; '.join(outcome.wrong)}" if outcome.wrong else ""
        self.say(
            f"  gap {outcome.gap_ms} ms, longest {outcome.longest_ms} ms, promote {outcome.promote_ms} ms "
            f"({outcome.cause}), protected again after {outcome.protected_after_s} s{wrong}"
        )

    # -- waiting -----------------------------------------------------------------------------------------------

    def _carried(self) -> dict[str, int]:
        clients = self.clients
        return {
            "counter": clients.counter.last,
            "probe": clients.probe.received,
            "ledger": len(clients.records.acknowledged),
        }

    def wait_served(self) -> float:
        """Waits until each connection has carried something new; when. FTKVM-727 with those that have not."""
        limit_s = PROGRESS_TIMEOUT_S * self.stage.patience
        before, began = self._carried(), time.monotonic()
        while stuck := [name for name, number in self._carried().items() if number == before[name]]:
            if self.clients.broken() or time.monotonic() > began + limit_s:
                detail = f"stuck: {', '.join(stuck)}; carried {self._carried()}; broken: {self.clients.broken()}"
                raise FtkvmError("FTKVM-727", vm=self.vm, timeout_s=f"{limit_s:.0f}", detail=detail)
            time.sleep(0.01)
        return time.monotonic()

    def wait_protected(self, after_epoch: int) -> dict[str, Any]:
        """Waits until the VM is protected in a later epoch; its pair. FTKVM-710 with what was seen instead."""
        limit_s = PROTECTED_TIMEOUT_S * self.stage.patience
        deadline = time.monotonic() + limit_s
        seen = ""
        while True:
            status = self.eyes.status(self.vm)
            pair = dict(status.get("pair") or {})
            if pair.get("state") == "protected" and int(pair["epoch"]) > after_epoch:
                return pair
            now = f"{pair.get('shown_as') or status.get('state')}, epoch {pair.get('epoch')}: {pair.get('cause')}"
            if now != seen:
                seen = now
            if time.monotonic() > deadline:
                what = f"{self.vm} to be protected after epoch {after_epoch} (it is: {seen})"
                raise FtkvmError("FTKVM-710", what=what, timeout_s=f"{limit_s:.0f}")
            time.sleep(0.2)

    def _wait_hosts(self) -> None:
        """Until every host is of use again."""
        limit_s = HOST_BACK_TIMEOUT_S * self.stage.patience
        deadline = time.monotonic() + limit_s
        while trouble := self.eyes.host_troubles(self.stage.hosts):
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-710", what=f"the hosts to be usable ({trouble})", timeout_s=f"{limit_s:.0f}")
            time.sleep(0.5)

    # -- checking ----------------------------------------------------------------------------------------------

    def check(self, outcome: Outcome, pair: dict[str, Any]) -> None:
        """All that must hold after any fault."""
        wrong = outcome.wrong
        wrong += self.clients.broken()
        wrong += self._newcomers_wrong()
        if self.clients.counter.gaps:
            wrong.append(f"{self.clients.counter.gaps} gaps in the counter")
        if self.clients.probe.wrong or self.clients.records.refused:
            wrong.append(f"{self.clients.probe.wrong} wrong echoes, refused: {self.clients.records.refused[:3]}")
        emitters = self.clients.capture.emitters(self.guest.mac)
        outcome.late_frames = looks.late_frames(emitters)
        stood_still = outcome.fault == "freeze-primary" and self.stage.host(outcome.primary).own_kernel
        wrong += looks.overlaps(emitters, outcome.primary if stood_still else None)
        wrong += self._only_speaker(str(pair["host"]))
        wrong += self._only_runner(str(pair["host"]))
        outcome.round_trip_ms = self._round_trip()
        self._ledger(outcome, str(pair["host"]))

    def _only_speaker(self, host: str) -> list[str]:
        self.clients.capture.mark()
        self.stage.sleep(QUIET_S)
        speaking = set(self.clients.capture.emitters(self.guest.mac))
        return [] if speaking == {host} else [f"frames come from {sorted(speaking)}, the VM runs on {host}"]

    def _only_runner(self, host: str) -> list[str]:
        running = [name for name in self.stage.hosts if looks.runs_for_itself(self.stage.host(name), self.vm)]
        return [] if running == [host] else [f"copies that run for themselves: {running}, the VM runs on {host}"]

    def _round_trip(self) -> float:
        self.clients.probe.round_trip_ms.clear()
        self.stage.sleep(QUIET_S)
        taken = sorted(self.clients.probe.round_trip_ms)
        return self.stage.hosts_s(taken[len(taken) // 2]) if taken else -1.0

    def _ledger(self, outcome: Outcome, host: str) -> None:
        disk, wrong = self.read_ledger(host)
        outcome.wrong += wrong
        outcome.depth = len(looks.chain(self.stage.host(host), disk))
        if outcome.depth > MAX_DEPTH:
            outcome.wrong.append(f"chain of {outcome.depth} images")

    def read_ledger(self, host: str) -> tuple[str, list[str]]:
        """The records acknowledged so far, read from the images below the VM that runs on ``host``: the topmost image,
        and what is wrong."""
        acknowledged = list(self.clients.records.acknowledged)
        for _ in range(2):  # the VM writes while its images are read: a table half read shows a loss that is none
            disk = self.stage.disk_of(self.vm, host)
            verdict = ledger.verify(self.stage.host(host), disk, acknowledged)
            if verdict.good:
                break
            time.sleep(1.0)
        bad = {"lost": verdict.lost[:5], "doubled": verdict.doubled[:5], "wrong": verdict.wrong[:5]}
        return disk, [] if verdict.good else [f"ledger of {verdict.acknowledged}: {bad}"]


# --------------------------------------------------------------------------------------------- both sides alive


def hung_on_both(this: Round) -> Outcome:
    """FT network cut while the datastore hangs on both sides: nobody may go live until it answers, then exactly one."""
    pair = this.wait_protected(0)
    first, second = str(pair["host"]), str(pair["secondary_host"])
    outcome = Outcome("cut-with-storage-hung-on-both", int(pair["epoch"]), first, second)
    this.outcomes.append(outcome)
    this.say(f"{outcome.fault}: epoch {outcome.epoch}, {first} and {second}")
    this.clients.mark()
    at = time.monotonic()
    for name in (first, second):
        faults.storage(name, "hang")
    faults.cut(first, "ft")
    try:
        this.stage.sleep(strikes.HANG_S)
        outcome.wrong += _nobody_live(this, outcome)
    finally:
        for name in (first, second):
            faults.storage(name, "ok")
        faults.heal(first, "ft")
    this.wait_served()
    after = this.wait_protected(outcome.epoch)
    outcome.protected_after_s = this.stage.hosts_s(time.monotonic() - at)
    outcome.gap_ms = outcome.longest_ms = this._worst_ms(at, time.monotonic())
    this._figures(outcome, after)
    this._wait_hosts()
    if len(looks.winners(this.stage, this.guest, outcome.epoch)) != 1:
        outcome.wrong.append("not exactly one winner file")
    this.check(outcome, after)
    this._tell(outcome)
    return outcome


def _nobody_live(this: Round, outcome: Outcome) -> list[str]:
    """While the datastore hangs: no winner file, and nothing of the guest on the wire from the second host."""
    wrong = [
        f"a winner with the datastore hung: {winner}" for winner in looks.winners(this.stage, this.guest, outcome.epoch)
    ]
    this.clients.capture.mark()
    this.stage.sleep(QUIET_S)
    speaking = set(this.clients.capture.emitters(this.guest.mac))
    if outcome.secondary in speaking:
        wrong.append(f"{outcome.secondary} speaks without having won")
    return wrong


def reboot(guest: Guest, patience: float = 1.0) -> None:
    """Has the guest reboot, and waits until it answers again."""
    with contextlib.suppress(OSError):  # it may be gone before it has answered
        ask(guest.address, CONTROL, "reboot", CONNECT_S)
    time.sleep(1.0)
    wait_for_guest(guest.address, 60 * patience)


def destroy(stage: Stage, vm: str) -> None:
    """Stops a VM whatever state it is in, for a test that ends."""
    for words in (("turn-off", vm), ("vm", "stop", vm, "--force")):
        with contextlib.suppress(FtkvmError, subprocess.SubprocessError):
            stage.ftkvm(*words)
