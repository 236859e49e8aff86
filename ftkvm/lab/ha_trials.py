"""The HA trials: one fault each, on a cluster with default times, to the point where all is well again."""

import contextlib
import os
import signal
import time

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, faults
from ftkvm.lab.client import CounterClient
from ftkvm.lab.ha_ground import Ground, HaOutcome, late_or_disordered
from ftkvm.lab.ha_stage import HaStage
from ftkvm.lab.ha_watch import on_disk
from ftkvm.lab.host import Host
from ftkvm.lab.system import wait_for

RESTART_S = 20.0
RESTART_OF_COORDINATOR_S = 25.0
ISOLATION_S = (12.0, 16.0)
"""Not heard for 12 s, then a ping that may take 1 s; the last beat may be 1 s old when the cable is pulled, turns
come each second, and what the host writes then is seen a moment later."""

HA_NETWORKS = ("management",)
"""The default of `ha.networks`: the others stay whole when a host is cut off."""

SHUTDOWN_S = 60.0
"""An emulated guest's way down, with its host's processor shared by many."""

POWER_OFF_S = 5.0
"""From the host's finding to the end of its last QEMU: SIGKILL, one after the other, on a busy machine."""

FREEZE_S = 60.0
LEAVE_ON_S = 45.0
"""Three lease times: whoever wants to take over would have."""


def bystander(stage: HaStage) -> str:
    """The host with the most kinds of VMs that does not coordinate."""
    others = [name for name in stage.hosts if name != stage.coordinator()]
    return max(others, key=lambda name: (len({vm.priority for vm in stage.owned_by(name)}), len(stage.owned_by(name))))


def crash(ground: Ground, *, coordinator: bool = False) -> HaOutcome:
    """Silent power loss of a host: its VMs are started elsewhere, the important ones first, each once."""
    stage = ground.stage
    host = str(stage.coordinator()) if coordinator else bystander(stage)
    if not stage.owned_by(host):
        stage.ftkvm("vm", "migrate", stage.vms[0].name, "--to", host)
    with ground.trial("crash-coordinator" if coordinator else "crash", host) as outcome:
        Host(host).power_off()
        ground.wait_restarted(outcome)
        outcome.wrong += late_or_disordered(outcome, RESTART_OF_COORDINATOR_S if coordinator else RESTART_S)
        stage.boot(host)
        stage.wait_well()
        ground.wait_answered(outcome)
    return outcome


def isolated(ground: Ground, response: str = "shutdown") -> HaOutcome:
    """A host is cut off the networks that carry heartbeats. Its VMs end there and start elsewhere; or are left on.

    :param response: of all its VMs, `ha.isolation_response`; afterwards they have the default again
    """
    stage = ground.stage
    host = bystander(stage)
    others = [name for name in stage.hosts if name != host]
    mine = stage.owned_by(host) if response != "shutdown" else []
    for vm in mine:
        stage.ftkvm("vm", "set", vm.name, f"ha.isolation_response={response}")
    with ground.trial("isolated" if response == "shutdown" else f"isolated-{response}", host) as outcome:
        stage.links(host, HA_NETWORKS, up=False)
        try:
            _note_isolation(stage, outcome)
            if response == "leave-on":
                time.sleep(max(0.0, outcome.at + LEAVE_ON_S - time.time()))
                outcome.wrong += _moved(ground, outcome)
            else:
                ground.wait_restarted(outcome, SHUTDOWN_S + 30)
                _note_releases(ground, outcome)
                _ended_first(ground, outcome)
            if response == "power-off":
                outcome.wrong += _slow_to_end(outcome)
            outcome.why = _why(stage, host, others)
            if "datastore" not in outcome.why:
                outcome.wrong.append(f"the reason does not speak of the datastore: {outcome.why}")
        finally:
            stage.links(host, HA_NETWORKS, up=True)
        stage.wait_well()
        ground.wait_answered(outcome)
    for vm in mine:
        stage.ftkvm("vm", "set", vm.name, "ha.isolation_response=shutdown")
    return outcome


def _slow_to_end(outcome: HaOutcome) -> list[str]:
    """A power-off does not wait for guests: their QEMUs were gone within seconds of the host's own finding."""
    limit_s = outcome.figures.get("isolated_s", 0.0) + POWER_OFF_S
    left: dict[str, float] = outcome.figures["qemu_last_seen_s"]
    return [f"{vm} was still on after {at} s, not off by {limit_s:.1f} s" for vm, at in left.items() if at > limit_s]


def _note_isolation(stage: HaStage, outcome: HaOutcome) -> None:
    """When the host said on the datastore that it is isolated."""
    with contextlib.suppress(FtkvmError):
        wait_for("isolation", lambda: stage.heartbeat(outcome.host).get("mode") == "isolated", 40, 0.05)
        outcome.figures["isolated_s"] = outcome.since(time.time())
    found = outcome.figures.get("isolated_s")
    if found is None or not ISOLATION_S[0] <= found <= ISOLATION_S[1]:
        outcome.wrong.append(f"{outcome.host} found itself isolated after {found} s, not within {ISOLATION_S}")


def _note_releases(ground: Ground, outcome: HaOutcome) -> None:
    """Owners were given up by the host itself, because it is isolated, before anybody else took them."""
    released = {}
    for vm in ground.vms(outcome):
        first = next(each for each in ground.stage.owners(vm) if each["number"] == outcome.owners[vm.name] + 1)
        if first.get("host") is None and first.get("why") == "released":
            released[vm.name] = outcome.since(first["at"])
        else:
            outcome.wrong.append(f"{vm.name} was taken by {first.get('host')} and not released first: {first}")
    outcome.figures["released_s"] = released


def _moved(ground: Ground, outcome: HaOutcome) -> list[str]:
    """VMs of the trial that are not where they were, or no longer run."""
    wrong = []
    for vm in ground.vms(outcome):
        now = ground.stage.owner(vm)
        if (now["number"], now.get("host")) != (outcome.owners[vm.name], outcome.host):
            wrong.append(f"{vm.name} was on {outcome.host} and is now {now}")
        where = {each.host for each in ground.census.sightings(vm.name, time.time() - 3)}
        if where != {outcome.host}:
            wrong.append(f"{vm.name} has a QEMU on {sorted(where)}")
    return wrong


def _why(stage: HaStage, host: str, others: list[str]) -> str:
    """What the others make of a host; the coordinator's words if it says any."""
    for name in sorted(others, key=lambda each: each != stage.coordinator()):
        state, why = stage.view(host, name)
        if state:
            return f"{state}: {why}"
    return ""


def storage_lost(ground: Ground, how: str) -> HaOutcome:
    """The datastore hangs (or fails) on one host: its VMs end there before others start them."""
    stage = ground.stage
    host = bystander(stage)
    with ground.trial(f"storage-{how}", host) as outcome:
        faults.storage(host, how)
        ground.wait_restarted(outcome)
        _ended_first(ground, outcome)
        if Host(host).running:
            faults.storage(host, "ok")
        else:
            outcome.figures["ended_by_watchdog"] = True
            stage.boot(host)
        stage.wait_well()
        ground.wait_answered(outcome)
    return outcome


def _ended_first(ground: Ground, outcome: HaOutcome) -> None:
    """The host's QEMUs were gone before another host took the VM (not merely before its QEMU ran)."""
    left = {}
    for vm in ground.vms(outcome):
        taken = ground.taken(outcome, vm)
        mine = [each for each in ground.census.sightings(vm.name, outcome.at) if each.host == outcome.host]
        last = max((each.last for each in mine), default=outcome.at)
        left[vm.name] = outcome.since(last)
        if taken and last > taken["at"]:
            outcome.wrong.append(f"{vm.name} still had a QEMU on {outcome.host} when {taken['host']} took it")
    outcome.figures["qemu_last_seen_s"] = left


def agent_frozen(ground: Ground) -> HaOutcome:
    """Every process of the agent is stopped, also those systemd starts anew: the watchdog ends the host."""
    stage = ground.stage
    host = bystander(stage)
    with ground.trial("agent-frozen", host) as outcome:
        while Host(host).running and time.time() < outcome.at + 30:
            for pid in Host(host).unit_pids("ftkvm-agent.service"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
        _host_ended(outcome)
        ground.wait_restarted(outcome)
        _ended_first(ground, outcome)
        stage.boot(host)
        stage.wait_well()
        ground.wait_answered(outcome)
    return outcome


def _host_ended(outcome: HaOutcome) -> None:
    """The watchdog took the host's power."""
    with contextlib.suppress(FtkvmError):
        wait_for("its end", lambda: not Host(outcome.host).running, 30, 0.05)
        outcome.figures["host_ended_s"] = outcome.since(time.time())
    if "host_ended_s" not in outcome.figures:
        outcome.wrong.append(f"{outcome.host} still runs")


def host_frozen(ground: Ground, host: str = "") -> HaOutcome:
    """Every process of the host stands still for 60 s: its watchdog or its fence device ends it before others start.

    Records sent to its guests meanwhile lie in their network cards; were the host to run on, they would be written.
    """
    stage = ground.stage
    host = host or bystander(stage)
    armed = int(stage.heartbeat(host)["watchdog_ms"]) > 0
    with ground.trial("host-frozen-watchdog" if armed else "host-frozen-fence", host) as outcome:
        Host(host).cgroup.freeze(True)
        sent = {vm.name: ground.records[vm.name].flood() for vm in ground.vms(outcome)}
        _host_ended(outcome)
        ground.wait_restarted(outcome)
        _ended_first(ground, outcome)
        time.sleep(max(0.0, outcome.at + FREEZE_S - time.time()))
        if Host(host).running:
            Host(host).cgroup.freeze(False)
            outcome.wrong.append(f"{host} was thawed and ran on")
            time.sleep(5.0)
        stage.boot(host)
        stage.wait_well()
        ground.wait_answered(outcome)
        for vm in ground.vms(outcome):
            if late := [number for number in sent[vm.name] if on_disk(vm.guest.address, number)]:
                outcome.wrong.append(f"records {late} reached the disk of {vm.name} from the frozen host")
    return outcome


def host_frozen_unsafe(ground: Ground, host: str) -> HaOutcome:
    """The same with neither: nobody takes its VMs, and the status says why. Thawed, it goes on or gives them up."""
    stage = ground.stage
    others = [name for name in stage.hosts if name != host]
    with ground.trial("host-frozen-unsafe", host) as outcome:
        Host(host).cgroup.freeze(True)
        try:
            time.sleep(FREEZE_S)
            outcome.wrong += _moved(ground, outcome)
            outcome.why = _why(stage, host, others)
            if not any(word in outcome.why for word in ("watchdog", "fence")):
                outcome.wrong.append(f"the reason does not name what is missing: {outcome.why}")
        finally:
            Host(host).cgroup.freeze(False)
        stage.wait_well()
        ground.wait_answered(outcome)
    return outcome


def rearm(stage: HaStage, host: str, *, watchdog: bool, fence: bool) -> None:
    """Give a host these devices, by a power cycle and another ``host add``; it ends with two VMs."""
    for each in stage.owned_by(host):
        stage.ftkvm("vm", "migrate", each.name, "--to", next(name for name in stage.hosts if name != host))
    if watchdog:
        devices.absent(host).unlink(missing_ok=True)
    else:
        devices.absent(host).touch()
    keys = ["agent=fence_ftkvm_lab", f"plug={host}"] if fence else ["none"]
    stage.ftkvm("host", "fence", host, *keys)
    Host(host).power_off()
    stage.boot(host)
    stage.add_host(host)
    stage.wait_well()
    for vm in stage.vms[:2]:
        stage.ftkvm("vm", "migrate", vm.name, "--to", host)


def maintenance(ground: Ground) -> HaOutcome:
    """A host is emptied by live migration, with its VMs' clients connected; then it takes VMs again."""
    stage = ground.stage
    host = bystander(stage)
    with contextlib.ExitStack() as stack, ground.trial("maintenance", host) as outcome:
        counters = {vm.name: stack.enter_context(CounterClient(vm.guest.address)) for vm in ground.vms(outcome)}
        stage.ftkvm("host", "maintenance", "enter", host, timeout_s=300)
        outcome.figures["emptied_s"] = outcome.since(time.time())
        if left := stage.owned_by(host):
            outcome.wrong.append(f"{[vm.name for vm in left]} are left on {host}")
        _counters_live(outcome, counters)
        stage.ftkvm("host", "maintenance", "exit", host)
        outcome.wrong += ground.overlaps(ground.vms(outcome))
        ground.capture.mark()  # one of them goes back now, and its first host speaks for it again
        back = ground.vms(outcome)[0]
        stage.ftkvm("vm", "migrate", back.name, "--to", host)
        if stage.owner(back).get("host") != host:
            outcome.wrong.append(f"{host} does not take VMs again: {stage.owner(back)}")
        _counters_live(outcome, counters)
        ground.census.doubles()  # a migration has two QEMUs by its nature; the wire tells which one runs
        stage.wait_well()
    return outcome


def _counters_live(outcome: HaOutcome, counters: dict[str, CounterClient]) -> None:
    """Each connection brings new numbers, and none is missing."""
    for name, counter in counters.items():
        beyond = counter.last + 5
        with contextlib.suppress(FtkvmError):
            wait_for(f"{name} to count on", lambda: counter.last >= beyond, 30)  # noqa: B023
        if counter.broken or counter.gaps or counter.last < beyond:
            outcome.wrong.append(f"the connection to {name}: {counter.broken or 'stuck'}, {counter.gaps} gaps")
