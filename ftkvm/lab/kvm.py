"""``make kvm``: from bare machines by the README's commands to a protected VM; then a lost host, faults, reboots.

What containers cannot show: Debian's own packages, hardware virtualisation, a kernel of each host's own that dies or
stands still with it, disks that lose what was not synced, NFS. One client connection and one ledger go through
everything but the reboots and the last trial. Figures, in the hosts' time, are in build/kvm.json: the keys of
build/demo.json, and ``commands`` (the README's, with the seconds that each took here), ``trials``, ``faults`` and
``reboots``.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import demo, faults, kvm_trials, lab, looks, names, real_hosts, soak, trials
from ftkvm.lab.client import CounterClient, wait_for_guest
from ftkvm.lab.demo import Story
from ftkvm.lab.guest import domain
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.real_hosts import Seat
from ftkvm.lab.stage import Stage

REPORT = Path("build/kvm.json")
FAULTS = (
    "crash-primary", "kill-primary", "freeze-primary", "cut-ft", "crash-secondary",
    "kill-primary", "freeze-secondary", "cut-ft-and-management", "crash-primary", "kill-secondary",
)  # fmt: skip
"""Issue 5's ten: power losses, a whole host that stands still (its kernel, too), cables of the FT network, QEMUs."""
REBOOTS = 10
SOUND_AFTER_S = 3.0
SHORT_STREAM_S = 2.0


def play(stage: Stage, story: Story, kinds: Sequence[str], trial: bool, reboots: int, go_on: bool = False) -> None:
    """Everything, on a stage of hosts that run and are in no cluster yet; to go on: on one whose VM is protected."""
    begin = _known if go_on else _bare if lab.record().bare else _prepared
    guest, first = begin(stage, story)
    with soak.streaming(stage, guest, story.say, 1) as this:
        first(this)
        other = try_alone(this, story) if trial else None
        strike(this, story, kinds)
        acknowledged = demo.end_streams(story, this.clients)
    if reboots:
        reboot_protected(stage, story, guest, reboots)
    if other is not None:
        lose_the_datastore(stage, story, guest, other)
    demo.prove(stage, story, acknowledged)


def _prepared(stage: Stage, story: Story) -> tuple[Guest, Callable[[trials.Round], None]]:
    """A cluster of hosts that have their packages, and a VM; then FT is turned on, and a host lost."""
    story.chapter(f"A cluster of {len(stage.hosts)} hosts, prepared over SSH")
    stage.create_cluster(story.say)
    guest = demo.make_vm(stage, story)
    return guest, lambda this: demo.lose_a_host(stage, story, this.clients, guest)


def _bare(stage: Stage, story: Story) -> tuple[Guest, Callable[[trials.Round], None]]:
    """The same by the README's commands, those for the stage's hosts."""
    lines = real_hosts.commands(real_hosts.README.read_text(), stage.hosts)
    before, enable, then = real_hosts.phases(lines)
    story.chapter("The README's commands for real hosts, on bare ones")
    guest, seat = real_hosts.prepare_seat(stage), Seat(stage, story.say)
    domain.remember(guest)
    for line in before:
        seat.type(line)
        story.note(**seat.figures())
    _note_kvm(stage, story, guest)
    waited_s = wait_for_guest(guest.address, 60 * stage.patience)
    story.say(f"{guest.name} answers at {guest.address}, {waited_s:.1f} s later; run by KVM: {story.figures['kvm']}")

    def first(this: trials.Round) -> None:
        demo.protect(stage, story, this.clients, lambda: seat.type(enable))
        for line in then:
            seat.type(line)
        story.note(**seat.figures())
        story.say(f"from bare machines to a protected VM: {story.figures['commands_s']} s of commands here")
        demo.lose_primary(stage, story, this.clients, guest)

    return guest, first


def _known(stage: Stage, story: Story) -> tuple[Guest, Callable[[trials.Round], None]]:
    """The VM of a run before; with a host lost once more the report is whole."""
    guest = domain.guests().get(demo.VM)
    if guest is None:
        raise FtkvmError("FTKVM-726", vm=demo.VM)
    stage.wait_protected(guest.name, demo.REPROTECT_TIMEOUT_S)
    _note_kvm(stage, story, guest)
    return guest, lambda this: demo.lose_primary(stage, story, this.clients, guest)


def _note_kvm(stage: Stage, story: Story, guest: Guest) -> None:
    host = stage.host(str(stage.vm_status(guest.name)["host"]))
    story.note(kvm="yes" if domain.run_by_kvm(guest.name, host) else "no")


def strike(this: trials.Round, story: Story, kinds: Sequence[str]) -> None:
    """One fault after the other, into the report as they come."""
    for number, kind in enumerate(kinds, 1):
        story.chapter(f"Fault {number} of {len(kinds)}: {kind}")
        this.run(kind)
        story.note(faults=[asdict(each) for each in this.outcomes], by_fault=soak.summary(this.outcomes))


def try_alone(this: trials.Round, story: Story) -> Guest:
    """The datastore's server goes away and comes back; then a host with an ordinary VM, which is returned, stands
    still."""
    stage, pair = this.stage, this.wait_protected(0)
    story.chapter(
        "The datastore's server is stopped, then a host stands still; beside the protected VM an ordinary one"
    )
    third = next(name for name in stage.hosts if name not in (pair["host"], pair["secondary_host"]))
    other = kvm_trials.ordinary_vm(stage, "vm2", third, story.say)
    made = [kvm_trials.tried("nfs-gone", partial(kvm_trials.nfs_gone, this, other, story.say), story.say)]
    story.note(trials=[asdict(each) for each in made])
    made += [kvm_trials.tried("host-frozen", partial(kvm_trials.host_frozen, stage, other, story.say), story.say)]
    story.note(trials=[asdict(each) for each in made])
    this.wait_protected(0)
    stage.ftkvm("vm", "stop", other.name, "--force")
    return other


def lose_the_datastore(stage: Stage, story: Story, guest: Guest, other: Guest) -> None:
    """At last no connection hangs on anything: the server is gone for longer than hosts wait."""
    story.chapter("The datastore's server is gone for longer than hosts wait")
    stage.ftkvm("vm", "start", other.name)
    wait_for_guest(other.address, 60 * stage.patience)
    last = partial(kvm_trials.nfs_gone_for_too_long, stage, [guest, other], story.say)
    made = kvm_trials.tried("nfs-gone-for-too-long", last, story.say)
    story.note(trials=[*story.figures["trials"], asdict(made)])
    stage.wait_protected(guest.name, demo.REPROTECT_TIMEOUT_S)
    stage.ftkvm("vm", "stop", other.name, "--force")


def reboot_protected(stage: Stage, story: Story, guest: Guest, count: int) -> None:
    """A guest that reboots stays protected (FT-19), and the copy that has followed it through all of that is sound."""
    story.chapter(f"The guest reboots {count} times while it is protected")
    seen: dict[str, Any] = {"count": count, "epoch": int(stage.wait_protected(guest.name, 90)["epoch"])}
    before = looks.soundness(guest)
    for number in range(1, count + 1):
        trials.reboot(guest, stage.patience)
        story.say(f"reboot {number}: it answers, up for {looks.soundness(guest)['uptime']} s")
    pair = stage.wait_protected(guest.name, 90)
    seen |= {"epochs_ended": int(pair["epoch"]) - seen["epoch"], "before": before, "after": looks.soundness(guest)}
    with CounterClient(guest.address) as counter:
        stage.sleep(SOUND_AFTER_S)
        faults.kill(str(pair["host"]), f"qemu:{guest.name}")
        after = stage.wait_protected(guest.name, 90, after_epoch=int(pair["epoch"]))
        last = counter.last
        stage.sleep(SOUND_AFTER_S)
        seen |= {
            "counted_on": counter.last > last and not counter.gaps and not counter.broken,
            "promoted_on": after["host"],
            "promoted": looks.soundness(guest),
        }
    story.note(reboots=seen)
    story.say(f"the copy that took over on {after['host']}: {seen['promoted']}; the connection counts on: "
              f"{seen['counted_on']}")  # fmt: skip


def show_the_ground(stage: Stage, say: Callable[[str], None]) -> None:
    """When the story goes no further: when each host has booted, and what the guest shows.

    Emulated processors that run KVM fail now and then, and take their host or its guest with them (docs/lab.md): such
    a host has one boot more than the story tells of.
    """
    guest, runs_on = domain.guests().get(demo.VM), stage.vm_status(demo.VM).get("host")
    for name in stage.hosts:
        host = stage.host(name)
        try:
            say(f"{name}'s boots:\n{host.run(['journalctl', '--list-boots', '--no-pager'])}")
            if guest and runs_on == name:
                say(f"{guest.name} on {name}:\n{looks.inside(host, guest)}")
        except FtkvmError as error:
            say(f"{name}: {error}")


def judge(figures: dict[str, Any]) -> list[str]:
    """What is not as promised, beside what :func:`demo.judge` finds."""
    wrong = [f"{each['fault']}: {text}" for each in figures.get("faults", []) for text in each["wrong"]]
    wrong += [f"{each['trial']}: {text}" for each in figures.get("trials", []) for text in each["wrong"]]
    if figures.get("kvm") != "yes":
        wrong.append("kvm: the guests were not run by it")
    reboots = figures.get("reboots")
    if reboots and not (reboots["counted_on"] and reboots["epochs_ended"] == 0):
        wrong.append(f"reboots: {reboots['epochs_ended']} epochs ended, counted on: {reboots['counted_on']}")
    if reboots and reboots["promoted"]["tainted"] != reboots["before"]["tainted"]:
        wrong.append(f"reboots: the copy that took over has had an oops ({reboots['promoted']})")
    return wrong


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ftkvm.lab.kvm", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="two prepared hosts, a crash, a reboot, a kill: CI's form")
    parser.add_argument("--prepared", action="store_true", help="hosts that have their packages, in place of bare ones")
    parser.add_argument(
        "--storage", choices=["virtiofs", "nfs"], default="nfs", help="of prepared hosts (default: nfs)"
    )
    parser.add_argument("--hosts", type=int, choices=[2, 3], default=3)
    parser.add_argument("--go-on", action="store_true", help="on the lab of a run before, where vm1 is protected")
    parser.add_argument("--no-trials", action="store_true", help="no server that is stopped, no host that stands still")
    parser.add_argument("--faults", type=int, metavar="N", default=len(FAULTS), help="only the first N of them")
    parser.add_argument("--reboots", type=int, metavar="N", default=REBOOTS)
    parser.add_argument("--time-dilation", type=float, help="how much slower the hosts' clocks go")
    asked = parser.parse_args(words)
    if asked.short:
        vars(asked).update(prepared=True, storage="virtiofs", hosts=2, no_trials=True, faults=0, reboots=1)
    if asked.storage == "virtiofs" and not asked.prepared:
        parser.error("the datastore of bare hosts is NFS: --storage virtiofs needs --prepared")
    return asked


def main(words: Sequence[str]) -> int:
    """A lab of VMs from nothing, everything, the report; 0 when all held."""
    asked = options_of(words)
    story = Story(REPORT, stream_s=SHORT_STREAM_S) if asked.short else Story(REPORT)

    def tell() -> None:
        story.chapter("The lab")
        if not asked.go_on:
            lab.down(story.say)
            nfs = asked.storage == "nfs"
            lab.up(asked.hosts, None, story.say, lab.VMS, asked.time_dilation, nfs, bare=not asked.prepared)
        there = lab.record()
        story.time_dilation = there.time_dilation
        story.note(
            hosts_as=there.hosts_as, hosts=there.hosts, bare=bool(there.bare), storage=there.storage,
            time_dilation=story.time_dilation, lab_s=round(time.monotonic() - story.started, 1),
        )  # fmt: skip
        story.say(f"a second of the hosts takes {story.time_dilation:g} s here; all figures are in the hosts' time")
        stage = Stage(tuple(names.host_names(there.hosts)), time_dilation=story.time_dilation)
        trial = there.nfs and there.hosts > 2 and not asked.no_trials  # the ordinary VM's host is the third
        try:
            play(stage, story, FAULTS[: asked.faults], trial, asked.reboots, asked.go_on)
        except FtkvmError:
            show_the_ground(stage, story.say)
            raise

    return demo.told(story, tell, judge)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
