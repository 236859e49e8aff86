"""The ground HA trials stand on: the stage, all that watches it, and what must hold after any of them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import ledger, looks
from ftkvm.lab.client import Capture
from ftkvm.lab.ha_stage import PRIORITIES, START_TIMEOUT_S, HaStage, HaVm
from ftkvm.lab.ha_watch import Census, Records, answers
from ftkvm.lab.host import Host
from ftkvm.lab.trials import Say

RESTARTED_S = 90.0
"""How long restarts are waited for. Not a promise: those are in the trials."""


@dataclass
class HaOutcome:
    """What one trial came to; ``wrong`` names all that did not hold. Times are seconds since the fault."""

    trial: str
    host: str
    coordinator: str
    vms: dict[str, str]
    """The VMs that ran on the host, with their priority."""
    commanded_s: dict[str, float] = field(default_factory=dict)
    """When the coordinator told a host to start the VM, by its history."""
    claimed_s: dict[str, float] = field(default_factory=dict)
    """When that host took the VM, by its owner file."""
    seen_s: dict[str, float] = field(default_factory=dict)
    """When its QEMU was first seen there."""
    answered_s: dict[str, float] = field(default_factory=dict)
    """When its guest answered again, as far as that was waited for."""
    figures: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    events: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    at: float = 0.0
    owners: dict[str, int] = field(default_factory=dict)
    """Numbers of the VMs' owner files before the fault."""

    def struck(self) -> None:
        """The fault has just been done, or is about to be: all times count from here."""
        self.at = time.time()

    def since(self, at: float) -> float:
        return round(at - self.at, 2)


@dataclass
class Ground:
    """The stage with its watchers; `trial` brackets each trial."""

    stage: HaStage
    census: Census
    capture: Capture
    say: Say
    records: dict[str, Records]
    outcomes: list[HaOutcome] = field(default_factory=list)

    def serve(self, vms: Sequence[HaVm]) -> None:
        """Wait until guests answer, and have each write records. FTKVM-727 names those that do not."""
        missing, deadline = list(vms), time.monotonic() + START_TIMEOUT_S
        while missing := [vm for vm in missing if not answers(vm.guest.address)]:
            if time.monotonic() > deadline:
                detail = f"{', '.join(vm.name for vm in missing)} of the HA trials are silent"
                raise FtkvmError("FTKVM-727", vm=missing[0].name, timeout_s=f"{START_TIMEOUT_S:.0f}", detail=detail)
            time.sleep(0.5)
        for vm in vms:
            self.records[vm.name].begin()

    @contextmanager
    def trial(self, name: str, host: str = "") -> Iterator[HaOutcome]:
        """A trial on a cluster that is well; afterwards all that must hold is checked, also when it broke off.

        :param host: the one the fault is done to; its VMs are looked at. Empty: all VMs
        """
        self.stage.wait_well()
        vms = self.stage.owned_by(host) if host else list(self.stage.vms)
        self.serve(vms)
        time.sleep(2.0)
        made = HaOutcome(name, host, str(self.stage.coordinator()), {vm.name: vm.priority for vm in vms})
        made.owners = {vm.name: int(self.stage.owner(vm)["number"]) for vm in vms}
        self.say(f"{name}: {host or 'all hosts'}, which runs {made.vms}; {made.coordinator} coordinates")
        self.outcomes.append(made)
        self.census.doubles()
        self.capture.mark()
        made.struck()
        try:
            yield made
        finally:
            for vm in vms:
                self.records[vm.name].end()
            self._check(made)
        self._tell(made)

    def vms(self, outcome: HaOutcome) -> list[HaVm]:
        """The VMs of a trial, the highest priority first."""
        mine = [vm for vm in self.stage.vms if vm.name in outcome.vms]
        return sorted(mine, key=lambda vm: (PRIORITIES.index(vm.priority), vm.name))

    # -- waiting -----------------------------------------------------------------------------------------------

    def taken(self, outcome: HaOutcome, vm: HaVm) -> dict[str, Any]:
        """The owner file with which another host took the VM since the fault; empty until then."""
        later = [each for each in self.stage.owners(vm) if each["number"] > outcome.owners[vm.name]]
        return next((each for each in later if each.get("host") not in (None, outcome.host)), {})

    def wait_restarted(self, outcome: HaOutcome, timeout_s: float = RESTARTED_S) -> None:
        """Until each VM of the trial has a QEMU elsewhere; notes the times. What is late is wrong."""
        deadline = time.monotonic() + timeout_s
        vms = self.vms(outcome)
        while missing := [vm for vm in vms if not self._restarted(outcome, vm)]:
            if time.monotonic() > deadline:
                outcome.wrong += [f"{vm.name} was not restarted within {timeout_s:.0f} s" for vm in missing]
                break
            time.sleep(0.1)
        self.note_commands(outcome)

    def _restarted(self, outcome: HaOutcome, vm: HaVm) -> bool:
        owner = self.taken(outcome, vm)
        if not owner:
            return False
        outcome.claimed_s[vm.name] = outcome.since(owner["at"])
        seen = [each for each in self.census.sightings(vm.name, outcome.at) if each.host == owner["host"]]
        if seen:
            outcome.seen_s[vm.name] = outcome.since(seen[0].first)
        return bool(seen)

    def note_commands(self, outcome: HaOutcome) -> None:
        """When starts were commanded, by the coordinators' histories (which are written a moment later)."""
        named = {vm.guest.uuid: vm.name for vm in self.vms(outcome)}
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            for event in self.stage.history(outcome.at):
                vm = named.get(event.get("vm", ""))
                if event["event"] == "restart" and vm is not None:
                    outcome.commanded_s.setdefault(vm, outcome.since(event["at"]))
            if set(outcome.commanded_s) >= set(outcome.claimed_s):
                return
            time.sleep(0.3)

    def wait_answered(self, outcome: HaOutcome, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until the guests of the trial answer; guests are emulated, so this says nothing about HA."""
        deadline = time.monotonic() + timeout_s
        vms = self.vms(outcome)
        while missing := [vm for vm in vms if vm.name not in outcome.answered_s]:
            for vm in missing:
                if answers(vm.guest.address):
                    outcome.answered_s[vm.name] = outcome.since(time.time())
            if time.monotonic() > deadline:
                outcome.wrong += [f"the guest of {vm.name} does not answer" for vm in missing]
                return
            time.sleep(0.3)

    # -- checking ----------------------------------------------------------------------------------------------

    def overlaps(self, vms: Sequence[HaVm]) -> list[str]:
        """Of which VMs two hosts spoke on the wire at the same time, since the capture's last mark."""
        found = [(vm, looks.overlaps(self.capture.emitters(vm.guest.mac))) for vm in vms]
        return [f"{vm.name}: {text}" for vm, texts in found for text in texts]

    def _check(self, outcome: HaOutcome) -> None:
        """Whatever happened: never two of a VM, on the wire or in the process list."""
        outcome.wrong += self.census.doubles() + self.overlaps(self.stage.vms)
        outcome.figures["census_longest_s"] = round(self.census.longest_s, 2)
        outcome.events = [
            f"{outcome.since(event['at']):.2f} {event['by']}: {event['event']}: {event['text']}"
            for event in self.stage.history(outcome.at)
        ]

    def _tell(self, outcome: HaOutcome) -> None:
        wrong = f"  WRONG: {'; '.join(outcome.wrong)}" if outcome.wrong else ""
        self.say(f"  commanded {outcome.commanded_s}, taken {outcome.claimed_s}, figures {outcome.figures}{wrong}")

    def prove(self) -> dict[str, Any]:
        """With all VMs off: every acknowledged record on its disk once, and the images clean."""
        figures: dict[str, Any] = {"acknowledged": 0, "lost": 0, "doubled": 0, "wrong": 0}
        for vm in self.stage.vms:
            self.records[vm.name].end()
            self.stage.ftkvm("vm", "stop", vm.name, "--force")
        host = Host(next(name for name in self.stage.hosts if Host(name).ready()))
        for vm in self.stage.vms:
            told = self.records[vm.name].acknowledged
            verdict = ledger.verify(host, vm.guest.disk, told)
            figures["acknowledged"] += verdict.acknowledged
            figures["lost"] += len(verdict.lost)
            figures["doubled"] += len(verdict.doubled)
            figures["wrong"] += len(verdict.wrong)
            ledger.image_check(host, vm.guest.disk)
        return {**figures, "image_check": "clean"}


@contextmanager
def watched(stage: HaStage, say: Say) -> Iterator[Ground]:
    """The ground on a stage."""
    with ExitStack() as stack:
        census = stack.enter_context(Census(stage.hosts, [vm.name for vm in stage.vms]))
        capture = stack.enter_context(Capture(list(stage.hosts)))
        ground = Ground(stage, census, capture, say, {vm.name: Records(vm.guest.address) for vm in stage.vms})
        try:
            yield ground
        finally:
            for each in ground.records.values():
                each.end()


def late_or_disordered(outcome: HaOutcome, limit_s: float) -> list[str]:
    """Starts that were commanded late, not at all by any history, or before one of higher priority."""
    wrong = []
    if set(outcome.commanded_s) != set(outcome.vms):
        wrong.append(f"the history has restarts of {sorted(outcome.commanded_s)} only")
    when = {**outcome.claimed_s, **outcome.commanded_s}
    wrong += [f"{vm} was commanded {at} s after the fault" for vm, at in when.items() if at > limit_s]
    by_time = sorted(when, key=lambda vm: (when[vm], PRIORITIES.index(outcome.vms[vm])))
    ranks = [PRIORITIES.index(outcome.vms[vm]) for vm in by_time]
    if ranks != sorted(ranks):
        wrong.append(f"out of order: {[(vm, outcome.vms[vm], when[vm]) for vm in by_time]}")
    return wrong


def judged(outcomes: Sequence[HaOutcome]) -> list[str]:
    """All that did not hold."""
    return [f"{each.trial} of {each.host}: {text}" for each in outcomes for text in each.wrong]


def as_json(outcome: HaOutcome) -> dict[str, Any]:
    return asdict(outcome)
