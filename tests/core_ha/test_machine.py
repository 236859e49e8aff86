"""The HA machine of one host, each number of the rules at its edge. See docs/ha.md for the rules."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import itertools

from alone import Alone, coordinator

from ftkvm.core.ha import model as m
from ftkvm.core.ha.election import MOST_PRIMARIES
from ftkvm.core.ha.placing import Room


def end(result: m.Result, code: str = ""):  # type: ignore[no-untyped-def]
    return lambda start: m.Ended(start, result, None, code)


# ------------------------------------------------------------------------------------------------ beats, detection


def test_a_heartbeat_is_written_every_second() -> None:
    one = Alone()
    one.run(30)
    writes = [at for at, _ in one.of(m.WriteHeartbeat)]
    assert len(writes) == 30
    assert {later - earlier for earlier, later in itertools.pairwise(writes)} == {1000}


@pytest.mark.parametrize(("silent_s", "state"), [(14, m.HostState.UNHEARD), (16, m.HostState.DEAD)])
def test_a_host_is_failed_after_fifteen_seconds(silent_s: int, state: m.HostState) -> None:
    one = coordinator()
    one.quiet["h2"] = one.now
    one.run(silent_s)
    assert one.view("h2") is state


def test_its_vms_are_started_within_twenty_seconds_by_the_coordinator() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.quiet["h2"] = one.now
    assert one.until(lambda: one.starts) <= 20_000


def test_a_host_whose_coordinator_died_coordinates_within_twenty_five_seconds() -> None:
    one = Alone(me="h2")
    one.lease = m.Lease(4, "h1", "boot-h1")
    one.vm("vm1", "h1")
    one.run(20)
    one.quiet["h1"] = one.now
    assert one.until(lambda: one.starts) <= 25_000
    assert one.lease == m.Lease(5, "h2", "boot-h2")


@pytest.mark.parametrize(
    ("watchdog_ms", "stop_after_ms", "state"),
    [
        (5000, 8000, m.HostState.DEAD),
        (6000, 8000, m.HostState.DEAD),  # 6 + 8 + 1 = 15
        (6001, 8000, m.HostState.UNSAFE),
        (0, 8000, m.HostState.UNSAFE),
    ],
)
def test_only_a_watchdog_that_the_lease_covers_allows_a_takeover(
    watchdog_ms: int, stop_after_ms: int, state: m.HostState
) -> None:
    one = coordinator()
    one.heartbeats["h2"] = replace(one.heartbeats["h2"], watchdog_ms=watchdog_ms, stop_after_ms=stop_after_ms)
    one.vm("vm1", "h2")
    one.run(3)
    one.quiet["h2"] = one.now
    one.run(40)
    assert one.view("h2") is state
    assert bool(one.starts) == (state is m.HostState.DEAD)
    assert one.status is not None
    if state is m.HostState.UNSAFE:
        assert "no watchdog or fence proves otherwise" in one.status.waiting[0].why


def test_an_unsafe_host_is_fenced_first_where_that_can_be_done() -> None:
    one = coordinator()
    one.cluster = replace(one.cluster, fenceable=frozenset({"h2"}))
    one.heartbeats["h2"] = replace(one.heartbeats["h2"], watchdog_ms=0)
    one.vm("vm1", "h2")
    one.run(3)
    one.quiet["h2"] = one.now
    one.run(30)
    assert len(one.of(m.Fence)) == 1 and not one.starts
    one.ended.append(m.Ended(m.Fence("h2"), m.Result.OK))
    one.run(3)
    assert len(one.starts) == 1


def test_a_host_that_answers_pings_with_a_dead_counter_is_hung_and_not_taken_over() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.quiet["h2"] = one.now
    one.answer_pings.add("h2")
    one.run(60)
    assert one.view("h2") is m.HostState.HUNG
    assert one.status is not None
    assert ["watchdog" in view.why for view in one.status.hosts if view.host == "h2"] == [True]  # what is missing
    assert not one.starts


def test_a_host_that_is_only_cut_off_is_never_taken_over() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.mute["h2"] = one.now
    one.run(60)
    assert one.view("h2") is m.HostState.CUT_OFF
    assert not one.starts
    one.vms["vm1"] = replace(one.vms["vm1"], owner=m.Owner(2, None, "boot-h2", m.OwnerWhy.RELEASED))
    assert one.until(lambda: one.starts) <= 11_000
    assert one.starts[0][1].owner == 2


def test_a_host_that_was_booted_again_is_taken_over_at_once() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.heartbeats["h2"] = replace(one.heartbeats["h2"], boot_id="later")
    assert one.until(lambda: one.starts) <= 12_000


def test_a_host_without_its_datastore_is_taken_over_only_when_it_says_that_nothing_runs_there() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.solo["h2"] = 1
    one.stuck["h2"] = one.now
    one.run(40)
    assert one.view("h2") is m.HostState.NO_STORAGE
    assert not one.starts
    one.solo["h2"] = 0
    one.run(5)
    assert len(one.starts) == 1


@pytest.mark.parametrize(("runs", "starts"), [(1, 0), (0, 1)])
def test_what_a_host_said_before_its_owner_file_was_read_is_not_its_word_on_that_vm(runs: int, starts: int) -> None:
    """Its datastore is back, and it has won a pair's epoch a moment ago: its last beat does not know of that yet."""
    one = coordinator()
    vm = one.vm("vm1", "h3")
    one.stuck["h2"] = one.now
    one.run(25)
    assert one.view("h2") is m.HostState.NO_STORAGE
    one.vms["vm1"] = replace(vm, owner=m.Owner(2, "h2", "boot-h2", m.OwnerWhy.FAILOVER))
    one.mute["h2"] = one.now
    reads = len(one.of(m.ReadVms))
    one.run(2)  # no beat of it, which for so long is nothing
    assert len([read for _, read in one.of(m.ReadVms)[reads:] if not read.local]) >= 1  # type: ignore[attr-defined]
    assert not one.starts
    del one.mute["h2"]
    one.solo["h2"] = runs
    one.run(10)
    assert len(one.starts) == starts


@pytest.mark.parametrize("gap_ms", [3000, 4000, 60_000])
def test_a_pause_of_our_own_begins_all_windows_anew(gap_ms: int) -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.quiet["h2"] = one.now
    one.run(10)
    one.jump(gap_ms)
    began = one.now
    one.until(lambda: one.starts)
    assert one.now - began >= 15_000


def test_reads_that_fail_begin_all_windows_anew() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.quiet["h2"] = one.now
    one.run(10)
    one.datastore = m.Result.FAILED
    one.run(5)
    one.datastore = m.Result.OK
    assert one.until(lambda: one.starts) >= 15_000


# ------------------------------------------------------------------------------------------------ this host's guard


def test_without_a_good_write_for_eight_seconds_ordinary_vms_are_switched_off_and_the_watchdog_is_left() -> None:
    one = Alone()
    one.vm("vm1", "h1")
    one.local.append(m.LocalVm("pair", "primary"))
    one.run(10)
    lost = one.now
    one.datastore = m.Result.UNKNOWN
    one.run(20)
    pets = [at for at, _ in one.of(m.PetWatchdog)]
    assert max(pets) - lost <= 8000
    at, stop = one.stops[0]
    assert at - lost <= 9000
    assert (stop.uuid, stop.power_off, stop.release) == ("vm1", True, m.OwnerWhy.RELEASED)
    assert {stop.uuid for _, stop in one.stops} == {"vm1"}


def test_a_pairs_copy_that_has_just_won_is_given_two_seconds_for_the_next_heartbeat() -> None:
    """Its arbitration file needs an answer of the datastore: the heartbeat is on its way too."""
    one = Alone()
    one.local.append(m.LocalVm("pair", "primary"))
    one.run(10)
    lost, one.datastore = one.now, m.Result.UNKNOWN
    one.run(9)
    one.local[:] = [m.LocalVm("pair", "solo")]
    one.run(1)
    assert not one.stops
    one.run(4)
    assert {stop.uuid for _, stop in one.stops} == {"pair"}
    assert 10_000 < one.stops[0][0] - lost < 13_000


def test_a_write_that_ends_late_counts_from_its_begin() -> None:
    one = Alone()
    one.run(5)
    state, last = one.state, one.now
    one.state = state
    one.datastore = m.Result.UNKNOWN
    one.jump(900)
    one.turn()
    late = [action for at, action in one.of(m.WriteHeartbeat) if at > last]
    assert late
    one.ended = []
    one.jump(7000)
    one.turn()
    one.ended = [m.Ended(late[0], m.Result.OK)]
    one.jump(1500)
    before = len(one.of(m.PetWatchdog))
    one.turn()  # it began 8.5 s ago
    assert len(one.of(m.PetWatchdog)) == before


def test_nothing_is_petted_before_the_first_good_write() -> None:
    one = Alone()
    one.datastore = m.Result.FAILED
    one.run(30)
    assert not one.of(m.PetWatchdog)


def test_a_vm_without_qemu_is_released_after_five_seconds() -> None:
    one = Alone()
    one.vm("vm1", "h1")
    one.run(40)
    one.local.clear()
    gone = one.now
    one.until(lambda: one.stops)
    assert 5000 <= one.now - gone <= 8000
    assert one.told("qemu-died")


@pytest.mark.parametrize(("released", "asked"), [(True, 1), (False, 2)])
def test_a_release_that_came_to_nothing_is_asked_for_again_after_the_next_reading(released: bool, asked: int) -> None:
    """A start was on its way here, so nothing was released; it failed, and the VM is down and still ours."""
    one = Alone()
    one.vm("vm1", "h1")
    one.run(40)
    one.local.clear()
    one.until(lambda: one.stops)
    if released:
        one.vms["vm1"] = replace(one.vms["vm1"], owner=m.Owner(2, None, "boot-h1", m.OwnerWhy.RELEASED))
    one.ended.append(m.Ended(one.stops[0][1], m.Result.OK, "was not ours, or is here again"))
    one.run(20)
    assert len(one.stops) == 1, "not before it was read again"
    one.run(25)
    assert len(one.stops) == asked


@pytest.mark.parametrize("change", [{"power": False}, {"owner": m.Owner(2, "h2", "boot-h2", m.OwnerWhy.MIGRATED)}])
def test_a_vm_that_was_switched_off_or_moved_has_not_died(change: dict[str, object]) -> None:
    one = Alone()
    one.vm("vm1", "h1")
    one.run(40)
    one.local.clear()
    one.vms["vm1"] = replace(one.vms["vm1"], **change)  # type: ignore[arg-type]
    one.run(60)
    assert not one.stops


# --------------------------------------------------------------------------------------------------------- isolation


def test_isolation_after_twelve_seconds_without_anybody_and_silent_addresses() -> None:
    one = Alone()
    one.vm("vm1", "h1")
    one.vm("vm2", "h1", isolation_response=m.IsolationResponse.LEAVE_ON)
    one.vm("vm3", "h1", isolation_response=m.IsolationResponse.POWER_OFF)
    one.run(40)
    cut, one.gateway = one.now, False
    one.mute = {"h2": cut, "h3": cut}
    one.until(lambda: one.stops)
    pings = [at for at, ping in one.of(m.Ping) if not ping.hosts]  # type: ignore[attr-defined]
    assert min(pings) - cut == 12_000
    assert one.now - cut < 15_000
    assert {(stop.uuid, stop.power_off) for _, stop in one.stops} == {("vm1", False), ("vm3", True)}
    assert {stop.timeout_ms for _, stop in one.stops if not stop.power_off} == {300_000}
    assert one.heartbeats["h1"].mode is m.HostMode.ISOLATED or one.until(
        lambda: one.heartbeats["h1"].mode is m.HostMode.ISOLATED
    )


def test_an_isolation_response_changed_a_moment_ago_is_the_one_that_counts() -> None:
    """In the lab a VM that was to be left on since 25 s was shut down: its settings were read every half minute."""
    one = Alone()
    one.vm("vm1", "h1")
    one.vm("vm2", "h1")
    one.run(40)
    cut, one.gateway = one.now, False
    one.mute = {"h2": cut, "h3": cut}
    one.run(5)
    one.vms["vm1"] = replace(one.vms["vm1"], isolation_response=m.IsolationResponse.LEAVE_ON)
    one.run(40)
    assert {stop.uuid for _, stop in one.stops} == {"vm2"}


@pytest.mark.parametrize(("told", "reads"), [(True, 2), (False, 0)])
def test_who_is_told_that_a_vm_was_changed_reads_it_once_and_at_once(told: bool, reads: int) -> None:
    """Its own VMs, whose isolation response may be needed in a moment; and all, for it coordinates."""
    one = coordinator()
    one.vm("vm1", "h1")
    one.run(65)
    before = len(one.of(m.ReadVms))
    one.vms_changed_ms = one.now + 400 if told else None
    one.run(1)
    assert len(one.of(m.ReadVms)) - before == reads
    one.run(1)
    assert len(one.of(m.ReadVms)) - before == reads


def test_one_isolation_address_that_answers_is_enough() -> None:
    one = Alone()
    one.vm("vm1", "h1")
    one.run(40)
    one.mute = {"h2": one.now, "h3": one.now}
    one.run(60)
    assert not one.stops


def test_with_host_monitoring_off_nothing_is_stopped_and_nothing_taken_over() -> None:
    one = coordinator(host_monitoring=False)
    one.vm("vm1", "h1")
    one.vm("vm2", "h2")
    one.gateway = False
    one.quiet = {"h2": one.now, "h3": one.now}
    one.run(60)
    assert not one.stops and not one.starts
    one.datastore = m.Result.FAILED
    one.run(12)
    assert {stop.uuid for _, stop in one.stops} == {"vm1"}  # the guard of the datastore stays


def test_an_isolated_coordinator_gives_its_lease_up() -> None:
    one = coordinator()
    one.gateway = False
    one.mute = {"h2": one.now, "h3": one.now}
    one.run(20)
    assert one.lease is not None and one.lease.host is None


# ------------------------------------------------------------------------------------------------- roles, coordinator


def test_the_first_five_hosts_are_primary_hosts_and_a_dead_one_is_replaced() -> None:
    one = coordinator(7)
    assert one.roles == m.Roles(1, ("h1", "h2", "h3", "h4", "h5"))
    assert MOST_PRIMARIES == 5
    one.quiet["h3"] = one.now
    one.run(25)
    assert one.roles == m.Roles(2, ("h1", "h2", "h4", "h5", "h6"))
    one.cluster = replace(one.cluster, maintenance=frozenset({"h4"}))
    one.run(3)
    assert one.roles == m.Roles(3, ("h1", "h2", "h5", "h6", "h7"))


@pytest.mark.parametrize(("me", "reads"), [("h5", 60), ("h6", 12)])
def test_only_primary_hosts_watch_everybody_each_second(me: str, reads: int) -> None:
    one = Alone(7, me)
    one.lease = m.Lease(1, "h1", "boot-h1")
    one.run(60)
    assert abs(len(one.of(m.ReadHeartbeats)) - reads) <= 2
    assert not one.of(m.ClaimLease)


def test_the_lease_of_a_living_coordinator_is_never_claimed() -> None:
    one = Alone(me="h2")
    one.lease = m.Lease(3, "h1", "boot-h1")
    one.run(20)
    one.mute["h1"] = one.now  # cut off, but its counter moves
    one.run(60)
    assert not one.of(m.ClaimLease)


def test_a_secondary_host_claims_only_when_all_primary_hosts_are_gone_and_then_watches_each_second() -> None:
    one = Alone(7, "h6")
    one.heartbeats = {"h7": one.heartbeats["h7"]}  # no primary host has written yet
    one.quiet = {f"h{number}": 0 for number in (1, 2, 3, 4, 5)}
    one.run(25)
    assert not one.of(m.ClaimLease)
    one.run(20)
    assert one.lease == m.Lease(1, "h6", "boot-h6")
    before = len(one.of(m.ReadHeartbeats))
    one.run(10)
    assert len(one.of(m.ReadHeartbeats)) == before + 10
    assert not one.told("coordinator-stopped")


def test_a_corrupt_lease_file_makes_nobody_coordinator() -> None:
    one = Alone()
    one.corrupt = ("leases/coordinator/0000007.json",)
    one.run(60)
    assert not one.of(m.ClaimLease)
    assert len(one.told("corrupt-file")) == 1


def test_a_corrupt_heartbeat_means_no_takeover() -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.quiet["h2"] = one.now
    del one.heartbeats["h2"]
    one.corrupt = ("hosts/h2/ha.json",)
    one.run(60)
    assert not one.starts


# ----------------------------------------------------------------------------------------------------------- restarts


def test_high_then_medium_then_low_and_disabled_never() -> None:
    one = coordinator()
    for number, priority in enumerate([*m.Priority, *m.Priority]):
        one.vm(f"vm{number}", "h2", priority=priority)
    one.quiet["h2"] = one.now
    one.run(40)
    order = [one.vms[start.uuid].priority for _, start in one.starts]
    assert order == [m.Priority.HIGH] * 2 + [m.Priority.MEDIUM] * 2 + [m.Priority.LOW] * 2
    times = sorted({at for at, _ in one.starts})
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [
        1000,
        1000,
    ]  # half a second old, at the next turn


def test_at_most_eight_starts_are_under_way() -> None:
    one = coordinator()
    for number in range(20):
        one.vm(f"vm{number:02}", "h2")
    one.quiet["h2"] = one.now
    one.run(25)
    assert len(one.starts) == 8


def test_five_failed_attempts_with_a_doubling_pause_then_it_is_given_up() -> None:
    one = coordinator()
    one.vm("vm1", None)
    one.start_result = end(m.Result.FAILED, "FTKVM-106")
    one.run(200)
    times = [at for at, _ in one.starts]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [start.attempt for _, start in one.starts] == [1, 2, 3, 4, 5]
    for pause, least in zip(pauses, [5000, 10_000, 20_000, 40_000], strict=True):
        assert least <= pause <= least + 3000
    assert len(one.told("restart-given-up")) == 1
    assert one.status is not None and "given up after 5 attempts" in one.status.waiting[0].why


def test_a_failed_attempt_that_was_read_before_its_end_was_heard_counts_once() -> None:
    """The host that tried notes it on the datastore first; its answer comes later, and may come after a read."""
    one = coordinator()
    one.vm("vm1", None)
    one.until(lambda: one.starts)
    one.vms["vm1"] = replace(one.vms["vm1"], failed_attempts=1)
    one.run(5)
    assert len(one.starts) == 1
    one.ended.append(m.Ended(one.starts[0][1], m.Result.FAILED, None, "FTKVM-106"))
    one.until(lambda: len(one.starts) == 2)
    assert one.starts[1][1].attempt == 2
    assert [event.detail["attempt"] for _, event in one.events if event.kind == "restart-failed"] == [1]


def test_an_attempt_that_met_another_owner_does_not_count() -> None:
    one = coordinator()
    one.vm("vm1", None)
    one.start_result = end(m.Result.FAILED, "FTKVM-103")
    one.run(60)
    assert {start.attempt for _, start in one.starts} == {1}


def test_a_host_that_could_not_be_asked_is_no_failed_attempt_and_another_one_is_asked_next() -> None:
    one = coordinator()
    one.vm("vm1", None)
    one.start_result = end(m.Result.FAILED, "FTKVM-202")
    one.run(60)
    assert {start.attempt for _, start in one.starts} == {1}
    assert len({start.host for _, start in one.starts[:3]}) == 3
    assert not one.told("restart-given-up")


def test_an_unknown_outcome_is_looked_at_before_any_new_attempt() -> None:
    one = coordinator()
    one.vm("vm1", None)
    one.start_result = end(m.Result.UNKNOWN)
    one.until(lambda: one.starts)
    first = one.starts[0][0]
    one.vms["vm1"] = replace(one.vms["vm1"], owner=m.Owner(2, "h2", "boot-h2", m.OwnerWhy.RESTARTED))
    one.run(60)
    assert len(one.starts) == 1 and one.starts[0][0] == first


def test_no_room_is_no_failed_attempt_and_ends_when_room_comes() -> None:
    one = coordinator()
    one.room = {host: m.HostCapacity(1000, 50) for host in one.room}
    one.vm("vm1", None)
    one.run(60)
    assert not one.starts
    assert one.status is not None and "50 MB free, 100 MB needed" in one.status.waiting[0].why
    one.room["h3"] = m.HostCapacity(1000, 500)
    one.until(lambda: one.starts, 10)
    assert (one.starts[0][1].host, one.starts[0][1].attempt) == ("h3", 1)


def test_never_onto_a_host_in_maintenance() -> None:
    one = coordinator()
    one.cluster = replace(one.cluster, maintenance=frozenset({"h2"}))
    one.room["h2"] = m.HostCapacity(10**6, 10**6)
    one.vm("vm1", None)
    one.until(lambda: one.starts)
    assert one.starts[0][1].host != "h2"


def test_after_a_total_power_loss_all_start_again_in_order() -> None:
    one = Alone()
    for number, priority in enumerate([m.Priority.LOW, m.Priority.HIGH, m.Priority.MEDIUM]):
        host = f"h{number + 1}"
        one.vms[f"vm{number}"] = m.Vm(f"vm{number}", f"vm{number}", True, m.Owner(3, host, "before"), priority)
    one.start_result = end(m.Result.OK)
    one.run(30)
    assert [start.uuid for _, start in one.starts][:3] == ["vm1", "vm2", "vm0"]


def epoch(winner: str | None = None, *, owner: int | None = 1, **more: object) -> m.FtEpoch:
    """Epoch 7 of vm1, h2 its primary, h3 its secondary, recorded when its owner file had number ``owner``."""
    boots = {"primary_boot_id": "boot-h2", "secondary_boot_id": "boot-h3"}
    known = {**boots, "winner_boot_id": f"boot-{winner}" if winner else "", **more}
    return m.FtEpoch(7, "h2", "h3", winner, owner=owner, **known)  # type: ignore[arg-type]


def test_a_pair_is_left_alone_until_both_copies_are_gone() -> None:
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch(), protected=True)
    one.quiet["h2"] = one.now
    one.run(40)
    assert not one.starts
    one.quiet["h3"] = one.now
    one.until(lambda: one.starts)
    start = one.starts[0][1]
    assert (start.cold_epoch, start.cold_winner) == (7, "h2")


def test_pairs_and_ordinary_vms_that_lost_their_hosts_start_in_one_order() -> None:
    """Both hosts of two pairs are lost together with ordinary VMs: by priority, whatever kind."""
    one = coordinator(4)
    one.vm("a-low-pair", "h2", ft=epoch(), protected=True, priority=m.Priority.LOW)
    one.vm("b-low", "h3", priority=m.Priority.LOW)
    one.vm("c-medium", "h2", priority=m.Priority.MEDIUM)
    one.vm("d-high-pair", "h2", ft=epoch(), protected=True, priority=m.Priority.HIGH)
    one.vm("e-disabled-pair", "h2", ft=epoch(), protected=True, priority=m.Priority.DISABLED)
    one.start_result = end(m.Result.OK)
    one.quiet["h2"] = one.quiet["h3"] = one.now
    one.until(lambda: len(one.starts) >= 4)
    assert [start.uuid for _, start in one.starts[:4]] == ["d-high-pair", "c-medium", "a-low-pair", "b-low"]
    assert [start.cold_epoch for _, start in one.starts[:4]] == [7, None, 7, None]


def test_a_pair_that_may_still_decide_keeps_no_lower_vm_waiting() -> None:
    """Its secondary's host is cut off and may go live: it is looked after when it has not, the others at once."""
    one = coordinator(4)
    one.vm("high-pair", "h2", ft=epoch(), protected=True, priority=m.Priority.HIGH)
    one.vm("low", "h2", priority=m.Priority.LOW)
    one.quiet["h2"] = one.mute["h3"] = one.now
    one.until(lambda: one.starts, 30)
    assert [start.uuid for _, start in one.starts] == ["low"]
    one.start_result = end(m.Result.OK)
    one.until(lambda: len({start.uuid for _, start in one.starts}) == 2, 90)


def test_a_host_that_had_been_booted_before_proves_nothing_of_a_pair() -> None:
    """The owner file names an older boot of the primary's host: in the lab a pair was started a second time so."""
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch(), protected=True, owner=m.Owner(1, "h2", "boot-of-last-week"))
    one.run(90)
    assert not one.starts


def test_the_winner_of_an_epoch_is_who_must_be_gone() -> None:
    """h3 went on; that the owner file still names h2, which is lost for good, starts nothing."""
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch("h3"), protected=True)
    one.quiet["h2"] = one.now
    one.run(90)
    assert not one.starts
    one.quiet["h3"] = one.now
    one.until(lambda: one.starts)
    assert one.starts[0][1].cold_epoch is None


def test_a_winners_own_word_counts_only_once_it_owns_the_vm() -> None:
    """h2's file was taken by a datastore that hangs; h2 does not know, and its beats do not count a copy of a pair."""
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch("h2"), protected=True)
    one.stuck["h2"] = one.now
    one.run(90)
    assert one.view("h2") is m.HostState.NO_STORAGE
    assert not one.starts
    one.vms["vm1"] = replace(one.vms["vm1"], owner=m.Owner(2, "h2", "boot-h2"))
    one.until(lambda: one.starts)
    assert one.starts[0][1].cold_epoch is None


def test_a_winner_that_was_booted_again_runs_it_no_more() -> None:
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch("h3", winner_boot_id="boot-before"), protected=True)
    one.heartbeats["h3"] = replace(one.heartbeats["h3"], boot_id="boot-before")
    one.run(5)
    assert not one.starts
    one.heartbeats["h3"] = replace(one.heartbeats["h3"], boot_id="boot-h3")
    one.until(lambda: one.starts, 30)


def test_an_owner_file_newer_than_the_epoch_is_the_later_word() -> None:
    """Both hosts of the old epoch are lost for good; it was started elsewhere since, and runs there."""
    one = coordinator(4)
    one.vm("vm1", "h4", ft=epoch(), protected=True, owner=m.Owner(2, "h4", "boot-h4"))
    one.quiet["h2"] = one.quiet["h3"] = one.now
    one.run(90)
    assert not one.starts
    one.quiet["h4"] = one.now
    one.until(lambda: one.starts)
    assert one.starts[0][1].cold_epoch is None


def test_ft_turned_off_leaves_the_epochs_word_until_an_owner_file_follows() -> None:
    """`turn-off` says that FT is off before the epoch has its winner: cut off there, the secondary may go live."""
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch(), protected=False)
    one.quiet["h2"] = one.now
    one.run(40)
    assert not one.starts


def test_a_record_of_an_older_version_starts_nothing() -> None:
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch(owner=None), protected=True)
    one.quiet["h2"] = one.quiet["h3"] = one.now
    one.run(120)
    assert not one.starts
    assert one.status is not None and "older version" in one.status.waiting[0].why


def test_after_an_epoch_that_nobody_won_it_is_started_when_it_is_wanted() -> None:
    one = coordinator(4)
    one.vm("vm1", "h2", ft=epoch("h2", nobody=True), protected=True)
    one.run(20)
    assert not one.starts
    one.until(lambda: one.starts, 60)


def test_with_ha_off_nothing_is_restarted() -> None:
    one = coordinator(enabled=False)
    one.vm("vm1", None)
    one.run(60)
    assert not one.starts


# ---------------------------------------------------------------------------------------------------------- placement


def test_the_failover_host_first_and_then_the_one_with_most_left() -> None:
    vm = m.Vm("vm", "vm", True, m.Owner(1, None, ""), memory_mb=100)
    capacities = {"a": m.HostCapacity(100, 900), "b": m.HostCapacity(100, 950), "c": m.HostCapacity(100, 300)}
    assert Room(capacities).place(vm) == "b"
    assert Room(capacities, "c").place(vm) == "c"
    room = Room(capacities)
    room.give("b", 0, 100)
    assert room.place(vm) == "a"


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.lists(st.integers(1, 400), max_size=12))
@settings(max_examples=50, deadline=None)
def test_no_host_is_given_more_than_it_has(hosts: list[int], needs: list[int]) -> None:
    room = Room({f"h{number}": m.HostCapacity(10_000, memory) for number, memory in enumerate(hosts)})
    for number, need in enumerate(needs):
        vm = m.Vm(f"vm{number}", "vm", True, m.Owner(1, None, ""), memory_mb=need)
        host = room.place(vm)
        if host is None:
            assert all(room.free(name)[0] < need for name in room.capacities)
        else:
            room.give(host, 0, need)
    assert all(room.free(name)[0] >= 0 for name in room.capacities)


@given(st.lists(st.sampled_from(["beat", "stand"]), min_size=5, max_size=40))
@settings(max_examples=20, deadline=None)
def test_no_takeover_unless_the_counter_stood_still_for_the_lease_time(story: list[str]) -> None:
    one = coordinator()
    one.vm("vm1", "h2")
    one.mute["h2"] = one.now
    moved = one.now
    for what in story:
        if what == "beat":
            one.stuck.pop("h2", None)
            moved = one.now + 1000
        else:
            one.stuck["h2"] = one.now
        one.run(1)
        assert all(at - moved >= 15_000 for at, _ in one.starts if at >= moved)
        if one.starts:
            return
