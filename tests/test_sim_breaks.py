"""The checker is worth something only if it finds what is wrong: the core, broken on purpose, one way at a time."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ftkvm.core import pair as core
from ftkvm.core.pair import Decision, FtSettings, Observation, QemuState
from ftkvm.core.reasons import Reason
from ftkvm.sim.ha import breaks as ha
from ftkvm.sim.ha.faults import Fault as HaFault
from ftkvm.sim.ha.faults import shape_of
from ftkvm.sim.ha.run import run_seed as run_ha_seed
from ftkvm.sim.ha.scenario import load, play
from ftkvm.sim.ha.world import Shape
from ftkvm.sim.run import run_seed
from ftkvm.sim.script import Fault
from ftkvm.sim.world import Breaks

LIBRARY = Path(__file__).parent.parent / "scenarios" / "ha"

Decide = Callable[[Observation, FtSettings], Decision]


def _replace_actions(swap: Callable[[Observation, core.Action], core.Action]) -> Decide:
    def broken(obs: Observation, settings: FtSettings) -> Decision:
        decision = core.decide(obs, settings)
        return replace(decision, actions=tuple(swap(obs, action) for action in decision.actions))

    return broken


def _see(change: Callable[[Observation], Observation]) -> Decide:
    return lambda obs, settings: core.decide(change(obs), settings)


def _live_without_arbitration(obs: Observation, action: core.Action) -> core.Action:
    if not isinstance(action, core.Arbitrate):
        return action
    return core.GoLive(action.epoch) if obs.qemu is QemuState.SECONDARY_LOADED else core.GoOnAlone(action.epoch)


def _loser_goes_on(obs: Observation, action: core.Action) -> core.Action:
    if action == core.DestroyOwn(Reason.LOST) and obs.record is not None:
        return core.GoOnAlone(obs.record.epoch) if obs.qemu is QemuState.PRIMARY else core.GoLive(obs.record.epoch)
    return action


def _half_loaded_counts(obs: Observation) -> Observation:
    loading = obs.qemu is QemuState.SECONDARY_LOADING
    return replace(obs, qemu=QemuState.SECONDARY_LOADED) if loading else obs


def _shutdown_is_a_failure(obs: Observation, settings: FtSettings) -> Decision:
    said = obs.peer.said
    if said is not None and said.qemu is core.PeerQemu.SHUTDOWN:
        said = replace(said, qemu=core.PeerQemu.GONE)
    qemu = (
        QemuState.SECONDARY_LOADED if obs.qemu is QemuState.SHUT_DOWN and obs.role is core.Role.SECONDARY else obs.qemu
    )
    seen = replace(obs, peer=replace(obs.peer, said=said), qemu=qemu)
    return core.decide(seen, replace(settings, shutdown_grace_ms=0))


def _bad_disk_is_fine(obs: Observation) -> Observation:
    return replace(obs, replication_error=False, own_disk_error=False)


def _suicide_when_alone(obs: Observation, action: core.Action) -> core.Action:
    return core.DestroyOwn(Reason.LOST) if isinstance(action, core.Arbitrate) else action


def _never_promotes(obs: Observation, action: core.Action) -> core.Action:
    return core.Nothing(Reason.HEALTHY) if isinstance(action, core.GoLive) else action


def _zombies_never_die(obs: Observation, action: core.Action) -> core.Action:
    return core.Nothing(Reason.HEALTHY) if isinstance(action, core.DestroyOwn) else action


CRASH = [Fault(2000, "crash", "h1", 0)]
FREEZE = [Fault(2000, "freeze", "h1", 4000)]
CUT = [Fault(2000, "cut-ft", "h1", 4000)]
POWER_OFF = [Fault(5000, "power-off-guest", "h1", 0)]
UNTOLD = [Fault(2000, "cut-management", "h1", 0), *FREEZE]
LOST_WRITES = [
    Fault(2000, "kill-agent", "h1", 0),
    Fault(2050, "fail-storage", "h2", 800),
    Fault(3600, "crash", "h1", 0),
]

#: name: (the break, the history that shows it, what the checker has to say)
BREAKS: dict[str, tuple[Breaks, list[Fault] | None, str]] = {
    "goes live without asking": (
        Breaks(_replace_actions(_live_without_arbitration)),
        CRASH,
        "the winner file says None",
    ),
    "the loser goes on": (Breaks(_replace_actions(_loser_goes_on)), CUT, "the winner file says Winner"),
    "half loaded counts": (Breaks(_see(_half_loaded_counts)), None, "."),
    "shutdown is a failure": (Breaks(_shutdown_is_a_failure), POWER_OFF, "powered itself off|guest is off"),
    "missed writes are fine": (Breaks(_see(_bad_disk_is_fine)), LOST_WRITES, "misses acknowledged writes"),
    "both destroy themselves": (Breaks(_replace_actions(_suicide_when_alone)), CUT, "need not be"),
    "nobody is promoted": (Breaks(_replace_actions(_never_promotes)), CRASH, "no answers|need not be"),
    "losers are not destroyed": (Breaks(_replace_actions(_zombies_never_die)), UNTOLD, "not protected again"),
    "a late answer is credited to the next epoch": (Breaks(trust_old_answers=True), None, "the winner file"),
    "no hold proxy, no gate": (Breaks(no_hold=True, no_gate=True), FREEZE, "uncompared frame|gate"),
}
SEEDS = 300  # the first that shows it ends the search


@pytest.mark.parametrize("name", BREAKS)
def test_the_checker_finds_it(name: str) -> None:
    breaks, script, says = BREAKS[name]
    failures = (run_seed(seed, breaks, script).failure for seed in range(1, SEEDS + 1))
    assert any(re.search(says, failure) for failure in failures if failure), f"{SEEDS} seeds, and nobody noticed"


@pytest.mark.parametrize("name", [name for name, (_, script, _) in BREAKS.items() if script is not None])
def test_without_the_break_the_same_history_is_fine(name: str) -> None:
    script = BREAKS[name][1]
    assert [result.failure for result in (run_seed(seed, None, script) for seed in range(1, 6)) if result.failure] == []


def test_a_seed_is_one_history() -> None:
    assert run_seed(7) == run_seed(7)


# ------------------------------------------------------------------------------------------------------ the cluster


HA_SEEDS = 100
HA_BREAK_SEEDS = 20


@pytest.mark.parametrize("name", ha.BREAKS)
def test_the_cluster_checker_finds_it(name: str) -> None:
    broken = ha.BREAKS[name]
    failures = (
        run_ha_seed(seed, broken.machine, broken.script, broken.shape, broken.cas).failure
        for seed in range(1, HA_BREAK_SEEDS + 1)
    )
    assert any(re.search(broken.says, failure) for failure in failures if failure), "nobody noticed"


@pytest.mark.parametrize("name", ha.BREAKS)
def test_without_the_break_the_cluster_is_fine(name: str) -> None:
    broken = ha.BREAKS[name]
    assert run_ha_seed(1, script=broken.script, shape=broken.shape).failure == ""


@pytest.mark.parametrize("first", range(1, HA_SEEDS, 20))
def test_seeds_of_the_cluster(first: int) -> None:
    """Small clusters only; `make soak` has the large ones."""
    seeds = [seed for seed in range(first, first + 20) if shape_of(seed).hosts <= 4]
    assert [result.story() for result in map(run_ha_seed, seeds) if result.failure] == []


PAIRS = Shape(4, 8)


@pytest.mark.parametrize("seed", range(1, 13))
def test_seeds_with_pairs_among_the_vms(seed: int) -> None:
    """Half of the VMs are pairs; what befalls them is drawn from the seed. None runs twice, and all run in the end."""
    assert run_ha_seed(seed, shape=PAIRS, pairs=4).failure == ""


FROZEN_SECONDARY = [HaFault(25_000, "freeze", "h4", 100_000), HaFault(25_100, "crash", "h3")]
NO_DOG_THERE = Shape(4, 8, watchdogs=("h1", "h2", "h3"))


@pytest.mark.parametrize(("cas", "says"), [(True, ""), (False, "vm2 .*while it runs on|vm2 .*owner file says")])
def test_a_secondary_that_comes_back_late_runs_nothing_a_second_time(cas: bool, says: str) -> None:
    """HA has started its VM meanwhile; only the winner's file, created once, keeps it from going live."""
    failure = run_ha_seed(1, script=FROZEN_SECONDARY, shape=NO_DOG_THERE, cas=cas, pairs=2).failure
    assert bool(failure) is not cas
    assert re.search(says, failure)


@pytest.mark.parametrize("seed", range(700_081, 700_101))
def test_seeds_of_pairs_that_lose_both_copies_at_nearly_the_same_moment(seed: int) -> None:
    """As the seeds of `ftkvm simulate` draw it, on four hosts and with half of the VMs pairs."""
    rng = Random(seed ^ 0x9A12)
    shape = Shape(4, 8, watchdogs=rng.choice((True, NO_DOG_THERE.watchdogs, ("h2",))))
    at, vm = rng.randint(20_000, 60_000), rng.randint(1, 4)
    what = rng.choice(("crash", "crash", "freeze", "freeze", "cut", "hang-storage", "fail-storage"))
    then, host = at + rng.randint(0, 700), rng.randint(1, 4)
    script = [
        HaFault(at, "kill-qemu", f"vm{vm}"),
        HaFault(then, what, f"h{host}", rng.choice((0, 3_000, 30_000, 75_000, 100_000))),
    ]
    assert run_ha_seed(seed, script=script, shape=shape, pairs=4).failure == ""


STORAGE_BACK = [HaFault(20_262, "kill-qemu", "vm2"), HaFault(20_923, "fail-storage", "h4", 30_000)]


def test_a_secondary_that_wins_as_its_datastore_comes_back_is_not_taken_at_its_earlier_word() -> None:
    """It had said that it runs no ordinary VM, which was true until then."""
    assert run_ha_seed(700_091, script=STORAGE_BACK, shape=Shape(4, 8, watchdogs=("h2",)), pairs=4).failure == ""


PRIMARY_THEN_SECONDARY = [HaFault(25_000, "kill-qemu", "vm2"), HaFault(25_200, "freeze", "h4", 100_000)]


@pytest.mark.parametrize(("cas", "says"), [(True, ""), (False, "vm2 .*while it runs on|vm2 .*owner file says")])
def test_a_pair_nobody_could_win_is_restarted_and_its_late_secondary_loses(cas: bool, says: str) -> None:
    """Its primary's host has ended the epoch; only that file, created once, keeps the thawed copy from going live."""
    failure = run_ha_seed(1, script=PRIMARY_THEN_SECONDARY, shape=NO_DOG_THERE, cas=cas, pairs=2).failure
    assert bool(failure) is not cas
    assert re.search(says, failure)


CLUSTERS = [path for path in sorted(LIBRARY.iterdir()) if "kind = " not in (path / "cluster.toml").read_text()]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_the_log_of_a_scenario_is_as_expected(path: Path) -> None:
    scenario = load(path)
    assert play(scenario) == list(scenario.expected)
