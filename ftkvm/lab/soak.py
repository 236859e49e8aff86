"""``python -m ftkvm.lab.soak``: faults in a row on one client connection and one ledger; figures in build/soak.json.

Works on the lab as it is: three hosts that are one cluster, or bare ones, of which it makes a cluster first.
"""

import argparse
import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.home import Home
from ftkvm.lab import lab, ledger, looks, names, strikes, trials
from ftkvm.lab.client import PROBE_EVERY_S, Capture, CounterClient, LedgerClient, wait_for_guest
from ftkvm.lab.demo import Clients
from ftkvm.lab.guest import domain
from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage
from ftkvm.lab.trials import Outcome, PauseProbe, Round, Say

REPORT = Path("build/soak.json")
HOSTS = tuple(names.host_names(3))


def make_stage(say: Say) -> Stage:
    """The lab with its first three hosts as one cluster; what is there is used, with the agent of this very tree.

    Hosts that are all off were left by an earlier boot of this machine, or by a run that broke off; of a cluster of
    theirs only the papers are left. Everything then begins afresh.
    """
    if lab.RECORD.exists() and not any(Host(name).running for name in HOSTS):
        say("the hosts are off: a cluster of theirs is forgotten")
        forget(HOSTS)
    if not lab.RECORD.exists() or any(not Host(name).running for name in HOSTS):
        lab.up(len(HOSTS), None, say)
    stage = Stage(HOSTS)
    if not (names.OPERATOR / "cluster.json").exists():
        stage.create_cluster(say)
        return stage
    missing = set(HOSTS) - set(Home(stage.home).load().hosts)
    if missing:
        raise FtkvmError("FTKVM-710", what=f"{', '.join(sorted(missing))} to be in the cluster", timeout_s="0")
    for name in HOSTS:  # after `ftkvm lab up` their agents may still be starting, and be of another tree
        stage.wait_usable(name)
    stage.add_hosts(say)
    return stage


def forget(hosts: Sequence[str]) -> None:
    """Remove the lab's main hosts with their disks, their cluster, its VMs, and the operator's papers of it."""
    for name in hosts:
        Host(name).remove()
    for path in (p for p in names.OPERATOR.glob("*") if p.is_file()):
        path.unlink()
    for directory in (names.DATASTORE / ".ftkvm", names.DATASTORE / "images"):
        shutil.rmtree(directory, ignore_errors=True)
    domain.RECORD.unlink(missing_ok=True)


def make_vm(stage: Stage, name: str, disk_size: str, say: Say) -> domain.Guest:
    """A VM that runs and answers; one of that name that is there is used."""
    first = stage.host(stage.hosts[0])
    guest = domain.guests().get(name) or domain.create(name, first, disk_size, 192, 1, stage.datastore)
    status = stage.vm_status(name)
    if not status:
        stage.ftkvm("vm", "register", name, "--host", first.name)
        status = stage.vm_status(name)
    if not status.get("host"):
        stage.ftkvm("vm", "start", name)
    say(f"{name} answers at {guest.address} after {wait_for_guest(guest.address, 60 * stage.patience):.1f} s")
    return guest


def protect(stage: Stage, name: str) -> dict[str, Any]:
    """Turns FT on if it is off; the times: the plan's own, and the command's as the operator sees it."""
    started = time.monotonic()
    if not stage.vm_status(name).get("ft"):
        stage.ftkvm("enable", name)
    pair = stage.wait_protected(name, trials.PROTECTED_TIMEOUT_S)
    plan = pair.get("protect") or {}
    return {"command_s": round(time.monotonic() - started, 2), "protect_s": plan.get("protect_s"), "steps": plan}


@contextmanager
def streaming(stage: Stage, guest: domain.Guest, say: Say, seed: int) -> Iterator[Round]:
    """The connections that everything hangs on, made once."""
    with ExitStack() as stack:
        counter = stack.enter_context(CounterClient(guest.address))
        slow = stage.time_dilation  # what the guest is asked for in a second of its own stays the same
        probe = stack.enter_context(PauseProbe(guest.address, PROBE_EVERY_S * slow))
        first = ledger.next_free(guest.address)
        records = stack.enter_context(LedgerClient(guest.address, first=first, every_s=0.02 * slow))
        capture = stack.enter_context(Capture(list(stage.hosts)))
        this = Round(stage, guest, Clients(counter, probe, records, capture), say, random.Random(seed))
        try:
            yield this
        finally:
            for each in this.newcomers:
                each.close()


def prove(stage: Stage, guest: domain.Guest, acknowledged: Sequence[int]) -> dict[str, Any]:
    """The proof with the VM off: every acknowledged record on the disk once, the images clean, the chain short."""
    stage.ftkvm("turn-off", guest.name)
    host = stage.host(str(stage.vm_status(guest.name)["host"]))
    disk = stage.disk_of(guest.name, host.name)
    stage.ftkvm("vm", "stop", guest.name)
    verdict = ledger.verify(host, disk, acknowledged)
    images = looks.chain(host, disk)
    for image in images:
        ledger.image_check(host, image)
    return {
        "acknowledged_records": verdict.acknowledged,
        "lost_records": len(verdict.lost),
        "doubled_records": len(verdict.doubled),
        "wrong_records": len(verdict.wrong),
        "image_check": "clean",
        "images_at_the_end": len(images),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of some figures."""
    return {"count": len(values), "median": round(median(values), 1), "min": min(values), "max": max(values)}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures by kind of fault."""
    by_kind: dict[str, Any] = {}
    for kind in sorted({each.fault for each in outcomes}):
        mine = [each for each in outcomes if each.fault == kind and each.protected_after_s]
        if mine:
            by_kind[kind] = {
                "gap_ms": spread([each.gap_ms for each in mine]),
                "promote_ms": spread([each.promote_ms for each in mine if each.promote_ms is not None] or [-1]),
                "protected_after_s": spread([each.protected_after_s for each in mine]),
                "plan_s": spread([each.protect_s for each in mine if each.protect_s is not None] or [-1]),
            }
    return by_kind


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load_1min": os.getloadavg()[0],
        "kvm": domain.kvm_state(),
    }


def soak(options: argparse.Namespace, report: dict[str, Any], say: Say) -> None:
    """Everything, into ``report`` as it comes, so that a run that breaks off leaves its figures too."""
    stage = make_stage(say)
    guest = make_vm(stage, options.vm, options.disk_size, say)
    report["protect"] = protect(stage, guest.name)
    say(f"protected: {report['protect']}")
    kinds = strikes.draw(options.faults, options.seed, options.only)
    kinds += ["crash-primary"] * options.crashes + ["kill-primary"] * options.kills
    with streaming(stage, guest, say, options.seed) as this:
        outcomes = this.outcomes
        try:
            for number, fault in enumerate(kinds, 1):
                say(f"-- {number} of {len(kinds)}")
                this.run(fault)
            if options.both_hung:
                trials.hung_on_both(this)
        finally:
            report["outcomes"] = [asdict(each) for each in outcomes]
            report["by_fault"] = summary(outcomes)
            report["counter"] = {"gaps": this.clients.counter.gaps, "last": this.clients.counter.last}
            report["broken"] = this.clients.broken()
        this.clients.records.close()
        acknowledged = list(this.clients.records.acknowledged)
    if not options.keep:
        report["proof"] = prove(stage, guest, acknowledged)


def judge(report: dict[str, Any]) -> list[str]:
    """What did not hold; figures are reported, never judged."""
    wrong = [f"{each['fault']}: {text}" for each in report.get("outcomes", []) for text in each["wrong"]]
    wrong += report.get("broken", [])
    proof = report.get("proof", {})
    wrong += [key for key in ("lost_records", "doubled_records", "wrong_records") if proof.get(key)]
    return wrong + ([str(report["error"])] if "error" in report else [])


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ftkvm.lab.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=30, help="random faults in a row")
    parser.add_argument("--crashes", type=int, default=20, help="silent crashes of the primary's host after them")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of the primary's QEMU after those")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=sorted(strikes.FAULTS), help="draw from these kinds")
    parser.add_argument("--vm", default="vm1")
    parser.add_argument("--disk-size", default="1G")
    parser.add_argument("--both-hung", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action="store_true", help="leave the VM running and protected: no proof with it off")
    parser.add_argument("--report", type=Path, default=REPORT)
    return parser.parse_args(words)


def reported(
    path: Path, report: dict[str, Any], work: Callable[[Say], None], judge: Callable[[dict[str, Any]], list[str]]
) -> int:
    """Runs ``work``, which fills ``report``, and writes that to ``path`` however it ends; 0 when everything held."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    try:
        work(say)
    except FtkvmError as error:
        report["error"] = error.to_json()
        say(f"{error}\n  cause:  {error.cause}\n  remedy: {error.remedy}")
    finally:
        report["total_s"] = round(time.monotonic() - started, 1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    wrong = judge(report)
    say("not as promised:\n  " + "\n  ".join(wrong) if wrong else "all held")
    print(f"Figures: {path}")
    return 1 if wrong else 0


def main(words: Sequence[str]) -> int:
    """0 when everything held."""
    options = options_of(words)
    report: dict[str, Any] = {"seed": options.seed, "disk_size": options.disk_size, "machine": machine()}
    return reported(options.report, report, lambda say: soak(options, report, say), judge)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
