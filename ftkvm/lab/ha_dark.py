"""The HA trials in which all hosts lose power at once: what ran runs again, the important VMs first, each once."""

import contextlib
import time

from ftkvm.catalogue import FtkvmError
from ftkvm.lab.ha_ground import Ground, HaOutcome, late_or_disordered
from ftkvm.lab.ha_stage import HaVm
from ftkvm.lab.host import Host
from ftkvm.lab.system import wait_for

DARK_S = 5.0
RUNNING_S = 150.0
"""How long the VMs are waited for once power is back; a lost coordinator's lease and its host's own boot are in it."""


def dark(ground: Ground, *, coordinator_dies: bool = False) -> HaOutcome:
    """Power loss of every host, then power again. Times count from when the hosts answer.

    :param coordinator_dies: the coordinator's host loses power once more as soon as it has had one VM started
    """
    stage = ground.stage
    with ground.trial("dark-coordinator" if coordinator_dies else "dark") as outcome:
        for name in stage.hosts:
            Host(name).power_off()
        time.sleep(DARK_S)
        outcome.struck()
        stage.boot(*stage.hosts)
        lost = _end_the_coordinator(ground, outcome) if coordinator_dies else ""
        _wait_running(ground, outcome, lost)
        ground.note_commands(outcome)
        if not coordinator_dies:
            outcome.wrong += late_or_disordered(outcome, RUNNING_S)
        if lost:
            stage.boot(lost)
        stage.wait_well()
        ground.wait_answered(outcome)
    return outcome


def _end_the_coordinator(ground: Ground, outcome: HaOutcome) -> str:
    """The host that coordinates, ended when the first VM has been taken; its name, empty when none ever was."""
    stage = ground.stage

    def begun() -> bool:
        return any(ground.taken(outcome, vm) for vm in ground.vms(outcome))

    with contextlib.suppress(FtkvmError):
        wait_for("the first VM to be taken", begun, RUNNING_S, 0.02)
    lost = stage.coordinator() or ""
    if not begun() or not lost:
        outcome.wrong.append("no VM was taken by anybody")
        return ""
    outcome.coordinator = lost
    outcome.figures["coordinator_ended_s"] = outcome.since(time.time())
    outcome.figures["taken_before"] = [vm.name for vm in ground.vms(outcome) if ground.taken(outcome, vm)]
    Host(lost).power_off()
    return lost


def _wait_running(ground: Ground, outcome: HaOutcome, lost: str) -> None:
    """Until each VM has a QEMU on the host its newest owner file names."""

    def where(vm: HaVm) -> str:
        owner = ground.stage.owner(vm)
        host = str(owner.get("host") or "")
        if int(owner["number"]) <= outcome.owners[vm.name] or host in ("", lost):
            return ""
        outcome.claimed_s[vm.name] = outcome.since(owner["at"])
        seen = [each for each in ground.census.sightings(vm.name, owner["at"] - 1) if each.host == host]
        if seen:
            outcome.seen_s[vm.name] = outcome.since(seen[0].first)
        return host if seen else ""

    vms = ground.vms(outcome)
    with contextlib.suppress(FtkvmError):
        wait_for("all VMs to run", lambda: all(where(vm) for vm in vms), RUNNING_S, 0.2)
    outcome.wrong += [f"{vm.name} does not run: {ground.stage.owner(vm)}" for vm in vms if not where(vm)]
