"""``make kvm``: the demo's story, faults and reboots on hosts that are virtual machines, their guests run by KVM.

What containers cannot show: hardware virtualisation, a kernel of each host's own that dies or stands still with it,
disks that lose what was not synced. One client connection and one ledger go through everything but the reboots.
Figures, in the hosts' time, are in build/kvm.json: the keys of build/demo.json, and ``faults`` and ``reboots``.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkvm.lab import demo, faults, kvm_trials, lab, names, soak, trials
from ftkvm.lab.client import CONNECT_S, CONTROL, CounterClient, ask
from ftkvm.lab.demo import Story
from ftkvm.lab.guest.domain import Guest
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


def play(stage: Stage, story: Story, kinds: Sequence[str], reboots: int) -> None:
    """Everything, on a stage of hosts that run and are in no cluster yet."""
    story.chapter(f"A cluster of {len(stage.hosts)} hosts, prepared over SSH")
    stage.create_cluster(story.say)
    guest = demo.make_vm(stage, story)
    with soak.streaming(stage, guest, story.say, 1) as this:
        demo.lose_a_host(stage, story, this.clients, guest)
        if lab.record().nfs and reboots > 1:
            try_alone(this, story)
        strike(this, story, kinds)
        acknowledged = demo.end_streams(story, this.clients)
    if reboots:
        reboot_protected(stage, story, guest, reboots)
    demo.prove(stage, story, acknowledged)


def strike(this: trials.Round, story: Story, kinds: Sequence[str]) -> None:
    """One fault after the other, into the report as they come."""
    for number, kind in enumerate(kinds, 1):
        story.chapter(f"Fault {number} of {len(kinds)}: {kind}")
        this.run(kind)
        story.note(faults=[asdict(each) for each in this.outcomes], by_fault=soak.summary(this.outcomes))


def try_alone(this: trials.Round, story: Story) -> None:
    """The datastore's server goes away and comes back; then a host with an ordinary VM stands still."""
    stage, pair = this.stage, this.wait_protected(0)
    story.chapter(
        "The datastore's server is stopped, then a host stands still; beside the protected VM an ordinary one"
    )
    third = next(name for name in stage.hosts if name not in (pair["host"], pair["secondary_host"]))
    other = kvm_trials.ordinary_vm(stage, "vm2", third, story.say)
    made = [kvm_trials.nfs_gone(this, other, story.say)]
    story.note(trials=[asdict(each) for each in made])
    made.append(kvm_trials.host_frozen(stage, other, story.say))
    story.note(trials=[asdict(each) for each in made])
    this.wait_protected(0)
    stage.ftkvm("vm", "stop", other.name, "--force")


def reboot_protected(stage: Stage, story: Story, guest: Guest, count: int) -> None:
    """A guest that reboots stays protected (FT-19), and the copy that has followed it through all of that is sound."""
    story.chapter(f"The guest reboots {count} times while it is protected")
    seen: dict[str, Any] = {"count": count, "epoch": int(stage.wait_protected(guest.name, 90)["epoch"])}
    before = soundness(guest)
    for number in range(1, count + 1):
        trials.reboot(guest, stage.patience)
        story.say(f"reboot {number}: it answers, up for {soundness(guest)['uptime']} s")
    pair = stage.wait_protected(guest.name, 90)
    seen |= {"epochs_ended": int(pair["epoch"]) - seen["epoch"], "before": before, "after": soundness(guest)}
    with CounterClient(guest.address) as counter:
        time.sleep(SOUND_AFTER_S * stage.time_dilation)
        faults.kill(str(pair["host"]), f"qemu:{guest.name}")
        after = stage.wait_protected(guest.name, 90, after_epoch=int(pair["epoch"]))
        last = counter.last
        time.sleep(SOUND_AFTER_S * stage.time_dilation)
        seen |= {
            "counted_on": counter.last > last and not counter.gaps and not counter.broken,
            "promoted_on": after["host"],
            "promoted": soundness(guest),
        }
    story.note(reboots=seen)
    story.say(f"the copy that took over on {after['host']}: {seen['promoted']}; the connection counts on: "
              f"{seen['counted_on']}")  # fmt: skip


def soundness(guest: Guest) -> dict[str, int]:
    """What the guest's own kernel says: ``tainted`` is not 0 once it has had an oops; ``uptime`` in its seconds."""
    words = ask(guest.address, CONTROL, "sound", CONNECT_S).split()
    return {name: int(value) for name, value in zip(words[1::2], words[2::2], strict=True)}


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
    parser.add_argument("--short", action="store_true", help="two hosts, a crash, a reboot, a kill: what CI runs")
    parser.add_argument("--faults", type=int, metavar="N", help="only the first N of them")
    parser.add_argument("--time-dilation", type=float, help="how much slower the hosts' clocks go")
    parser.add_argument("--storage", choices=["virtiofs", "nfs"], help="the hosts' datastore (default: virtiofs)")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """A lab of VMs from nothing, everything, the report; 0 when all held."""
    asked = options_of(words)
    count, kinds, reboots = (2, FAULTS[:0], 1) if asked.short else (3, FAULTS[: asked.faults], REBOOTS)
    story = Story(REPORT, stream_s=SHORT_STREAM_S) if asked.short else Story(REPORT)

    def tell() -> None:
        story.chapter("The lab")
        lab.down(story.say)
        lab.up(count, None, story.say, lab.VMS, asked.time_dilation, asked.storage == "nfs")
        story.time_dilation = lab.record().time_dilation
        story.note(hosts_as=lab.VMS, hosts=count, storage=lab.record().storage, time_dilation=story.time_dilation)
        story.note(lab_s=round(time.monotonic() - story.started, 1))
        story.say(f"a second of the hosts takes {story.time_dilation:g} s here; all figures are in the hosts' time")
        play(Stage(tuple(names.host_names(count)), time_dilation=story.time_dilation), story, kinds, reboots)

    return demo.told(story, tell, judge)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
