"""``python -m ftkvm.lab.ha_soak``: the HA trials in a row, with default times; figures in build/ha-soak.json.

Makes a cluster of its own beside the lab's main hosts, and removes it at the end.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ftkvm.lab import ha_dark, ha_trials, soak
from ftkvm.lab.ha_ground import Ground, HaOutcome, as_json, judged, watched
from ftkvm.lab.ha_stage import staged
from ftkvm.lab.trials import Say

REPORT = Path("build/ha-soak.json")
Trial = Callable[[Ground], HaOutcome]


def _frozen(trial: Callable[[Ground, str], HaOutcome], *, fence: bool) -> Trial:
    """A trial on a host without a watchdog, which has one again afterwards."""

    def run_it(ground: Ground) -> HaOutcome:
        host = ha_trials.bystander(ground.stage)
        ha_trials.rearm(ground.stage, host, watchdog=False, fence=fence)
        try:
            return trial(ground, host)
        finally:
            ha_trials.rearm(ground.stage, host, watchdog=True, fence=False)

    return run_it


TRIALS: dict[str, Trial] = {
    "crash": ha_trials.crash,
    "crash-coordinator": lambda ground: ha_trials.crash(ground, coordinator=True),
    "isolated": ha_trials.isolated,
    "isolated-power-off": lambda ground: ha_trials.isolated(ground, "power-off"),
    "isolated-leave-on": lambda ground: ha_trials.isolated(ground, "leave-on"),
    "storage-hang": lambda ground: ha_trials.storage_lost(ground, "hang"),
    "storage-fail": lambda ground: ha_trials.storage_lost(ground, "fail"),
    "agent-frozen": ha_trials.agent_frozen,
    "host-frozen-watchdog": ha_trials.host_frozen,
    "host-frozen-fence": _frozen(ha_trials.host_frozen, fence=True),
    "host-frozen-unsafe": _frozen(ha_trials.host_frozen_unsafe, fence=False),
    "maintenance": ha_trials.maintenance,
    "dark": ha_dark.dark,
    "dark-coordinator": lambda ground: ha_dark.dark(ground, coordinator_dies=True),
}


def summary(outcomes: Sequence[HaOutcome]) -> dict[str, Any]:
    """By kind of trial: when the first and the last start was commanded, taken and seen, over all its runs."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(each.trial for each in outcomes):
        mine = [each for each in outcomes if each.trial == kind]
        figures: dict[str, Any] = {"runs": len(mine), "wrong": sum(bool(each.wrong) for each in mine)}
        for what in ("commanded_s", "claimed_s", "seen_s", "answered_s"):
            times = [getattr(each, what).values() for each in mine if getattr(each, what)]
            if times:
                figures[f"first_{what}"] = soak.spread([min(each) for each in times])
                figures[f"last_{what}"] = soak.spread([max(each) for each in times])
        found[kind] = figures
    return found


def run(options: argparse.Namespace, report: dict[str, Any], say: Say) -> None:
    """Everything, into ``report`` as it comes, so that a run that breaks off leaves its figures too."""
    kinds = options.only or [name for name in TRIALS if not name.startswith("crash")]
    kinds = ["crash"] * options.crashes + ["crash-coordinator"] * options.coordinators + kinds
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ftkvm-ha-"))
        stage = stack.enter_context(staged(Path(directory), say, options.vms))
        ground = stack.enter_context(watched(stage, say))
        try:
            for number, kind in enumerate(kinds, 1):
                say(f"-- {number} of {len(kinds)}")
                TRIALS[kind](ground)
        finally:
            report["outcomes"] = [as_json(each) for each in ground.outcomes]
            report["by_trial"] = summary(ground.outcomes)
            report["wrong"] = judged(ground.outcomes)
        report["proof"] = ground.prove()


def judge(report: dict[str, Any]) -> list[str]:
    """What did not hold."""
    wrong = list(report.get("wrong", []))
    wrong += [f"records {key}" for key in ("lost", "doubled", "wrong") if report.get("proof", {}).get(key)]
    return wrong + ([str(report["error"])] if "error" in report else [])


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ftkvm.lab.ha_soak", description=__doc__)
    parser.add_argument("--crashes", type=int, default=10, help="silent crashes of a host that does not coordinate")
    parser.add_argument("--coordinators", type=int, default=3, help="silent crashes of the coordinator's host")
    parser.add_argument("--only", action="append", choices=sorted(TRIALS), help="after them only these trials")
    parser.add_argument("--vms", type=int, default=6)
    parser.add_argument("--report", type=Path, default=REPORT)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """0 when everything held."""
    options = options_of(words)
    report: dict[str, Any] = {"machine": soak.machine()}
    return soak.reported(options.report, report, lambda say: run(options, report, say), judge)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
