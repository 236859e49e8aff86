"""The scenario library: what it names, and the scenarios that are sums only."""

import re
from pathlib import Path

import pytest

from ftkvm.sim.ha.run import run_seed
from ftkvm.sim.ha.scenario import load, play

LIBRARY = Path(__file__).parent.parent / "scenarios" / "ha"
ALL = sorted(path for path in LIBRARY.iterdir() if path.is_dir())
SUMS = [path for path in ALL if "kind = " in (path / "cluster.toml").read_text()]
IDS = [f"HA-{number:02}" for number in (*range(1, 21), 22, 24, 25, 26, 27)]


def test_the_library_is_large() -> None:
    assert len(ALL) >= 80


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_each_scenario_is_complete(path: Path) -> None:
    scenario = load(path)
    assert scenario.script and scenario.expected
    assert "HA-" in (path / "README.md").read_text()
    assert not any(line.startswith("VIOLATION") for line in scenario.expected)


@pytest.mark.parametrize("ha_id", IDS)
def test_each_requirement_is_named(ha_id: str) -> None:
    assert any(ha_id in (path / "README.md").read_text() for path in ALL)


@pytest.mark.parametrize("path", SUMS, ids=lambda path: path.name)
def test_the_log_is_as_expected(path: Path) -> None:
    scenario = load(path)
    assert play(scenario) == list(scenario.expected)


#: What a scenario is for, as its log has to show it: an accepted log may be another story.
SHOWS = {
    "coordinator-agent-killed": [r"kill-agent h2", r"26\.\d+ h2 +coordinator: .*term 1"],
    "coordinator-crash-in-restart": [r"h3 +restart: vm9", r"crash h3", r"h4 +coordinator", r"h4 +restart: vm1 "],
    "coordinator-cut": [r"h2 +coordinator-stopped", r"h2 +isolated", r"h1 +coordinator: .*term 3"],
    "coordinator-maintenance": [r"25\.\d+ h2 +coordinator-stopped", r"26\.\d+ h1 +coordinator: .*term 3"],
    "hang-storage-coordinator": [r"h2 +coordinator-stopped", r"h1 +coordinator: .*term 2"],
    "total-power-loss-coordinator-dies": [r"h2 +restart: vm3", r"crash h2", r"h3 +coordinator", r"h3 +restart: vm2"],
    "attempts-1": [r"attempt 1 on h1 failed", r"restart-given-up", r"vm1 .*nowhere"],
    "attempts-2": [r"attempt 1 on h1 failed", r"attempt 2 on h3 failed", r"restart-given-up", r"vm1 .*nowhere"],
    "attempts-3": [r"attempt 1 on h1 failed", r"attempt 2 on h3 failed", r"vm1 was restarted on h1"],
    "attempts-coordinator-dies": [
        r"h3 +restart-failed: vm1: attempt 2",
        r"crash h3",
        r"h1 +coordinator: .*term 2",
        r"h1 +restart-failed: vm1: attempt 3 on h4",
        r"h1 +restart-given-up: vm1: 3",
        r"vm1 .*nowhere",
    ],
    "attempts-coordinator-agent-killed": [
        r"h1 +restart-failed: vm1: attempt 2",
        r"kill-agent h1",
        r"h1 +coordinator: .*term 2",
        r"h1 +restart-failed: vm1: attempt 3",
        r"h1 +restart-given-up: vm1: 3",
        r"vm1 .*nowhere",
    ],
    "attempts-given-up-stays": [
        r"h3 +restart-given-up: vm1: 2",
        r"crash h3",
        r"h4 +coordinator",
        r"vm1 .*nowhere; owner 5",
        r"waits: vm1: given up after 2 attempts",
    ],
    "attempts-begin-anew-once-it-ran": [
        r"attempt 2 on h4 failed",
        r"vm1 was restarted on h3",
        r"crash h3",
        r"h4 +restart-failed: vm1: attempt 1",
        r"attempt 2 on h1 failed",
        r"vm1 was restarted on h4",
    ],
    "remove-dead-no-watchdog": [r"host-unsafe: h2", r"remove-dead h2", r"h1 +restart: vm1 .*removed from the cluster"],
    "remove-dead-early": [r"30\.000 .*remove-dead h2", r"30\.\d+ h3 +restart: vm9", r"restart: vm1 ", r"restart: vm5 "],
    "remove-dead-coordinator": [
        r"h5 +coordinator",
        r"remove-dead h5",
        r"h4 +coordinator",
        r"h4 +restart: vm10",
        r"roles: primary hosts: h1, h2, h3, h4, h6",
    ],
    "remove-dead-then-another": [r"h3 +coordinator", r"remove-dead h2", r"h4 +coordinator", r"vm5 .*h2 was removed"],
    "remove-dead-back": [
        r"vm1 was restarted on h1",
        r"end of remove-dead h2",
        r"host-back: h2",
        r"vm2 is restarted on h2",
    ],
    "remove-dead-not-dead": [
        r"host-isolated: h2",
        r"remove-dead h2",
        r"crash h",
        r"coordinator: .*term 2",
        r"vm1 .*: h2; owner 1 h2",
        r"vm5 .*: h2; owner 1 h2",
    ],
    "override-disabled": [r"h1 +restart: vm7", r"h1 +restart: vm4", r"vm1 \(disabled\): nowhere"],
    "joining-versions": [
        r"refused: FTKVM-261: .*QEMU 11\.2",
        r"refused: .*libvirt",
        r"refused: .*ftkvm",
        r"h1, h2, h3$",
    ],
    "joining-same-machine": [r"FTKVM-219", r"FTKVM-242", r"FTKVM-262", r"FTKVM-263"],
    "pair-both-hosts-lost": [
        r"restart: vm6 is restarted .*both copies are gone",
        r"restart: vm7 ",
        r"restart: vm3 ",
        r"restart: vm2 is restarted .*both copies are gone",
        r"vm2 \(low\): h\d; .*nobody goes live",
        r"vm6 \(high\): h\d; .*nobody goes live",
    ],
    "pair-secondary-goes-live": [r"restart: vm6 ", r"vm2 .*: h4; owner 2 h4 failover; .*won by h4"],
    "pair-secondary-frozen": [
        r"101\.\d+ h1 +restart: vm2 .*its secondary has not gone live for 60 s",
        r"end of freeze h4",
        r"vm2 .*: h2; owner 2 h2 restarted; .*nobody goes live",
    ],
    "pair-one-after-the-other": [r"crash h4", r"restart: vm2 is restarted on h1: no beat", r"owner 3 h1 .*won by h4"],
    "pair-secondary-booted-again": [r"restart: vm2 .*h4 was booted again", r"vm2 .*owner 2 .*nobody goes live"],
    "pair-undecided-hosts-alive": [r"kill-qemu vm2", r"restart: vm2 ", r"vm2 .*: h4; owner 3 h4 .*nobody goes live"],
    "pair-undecided-secondary-thaws": [
        r"kill-qemu vm2",
        r"restart: vm2 is restarted on h3",
        r"end of freeze h4",
        r"vm2 .*: h3; owner 2 h3 restarted; .*nobody goes live",
    ],
    "vm-monitoring-fourth": [r"1100\.0 left-alone \(3", r"3799\.9 left-alone \(3", r"3800\.0 reset"],
}


@pytest.mark.parametrize("name", SHOWS)
def test_the_log_shows_what_the_scenario_is_for(name: str) -> None:
    """In this order."""
    lines = iter(load(LIBRARY / name).expected)
    for wanted in SHOWS[name]:
        assert any(re.search(wanted, line) for line in lines), wanted


@pytest.mark.parametrize("path", [path for path in ALL if "coordinator-" in path.name], ids=lambda path: path.name)
def test_it_is_the_coordinator_to_whom_it_happens(path: Path) -> None:
    coordinator, hit = "", ""
    for line in load(path).expected:
        taken = re.search(r"(h\d+) +coordinator: ", line)
        coordinator = taken.group(1) if taken else coordinator
        fault = re.search(r"!    (?!end of)(\S+) (h\d+)$", line)
        if fault is not None and fault.group(1) != "power-cut":
            hit = hit or ("it" if fault.group(2) == coordinator else "")
    assert hit


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (100790, "a coordinator that had just given its lease up, and was fit again, acted on it"),
        (205963, "one that coordinates again, two terms later, was to wait for its first term's start on a dead host"),
        (
            405282,
            "one that coordinates again with the lease it had, after its datastore was lost, was to wait likewise",
        ),
    ],
)
def test_seeds_that_once_failed(seed: int, what: str) -> None:
    assert run_seed(seed).failure == "", what
