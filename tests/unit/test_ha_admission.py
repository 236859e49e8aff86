"""HA-09 … HA-14: the guide's examples to the digit, the policies at their edges, and that nothing is over-promised."""

import time
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkvm.core.ha.admission import Colour, Refused, State, admit, failover, holds, percentage, validity
from ftkvm.core.ha.capacity import HostRoom, Load, Rules, Size, reckon, unreserved
from ftkvm.core.ha.model import HostCapacity, Owner, Priority, Vm
from ftkvm.core.ha.placing import Room

GHZ, GB = 1000, 1024
HOSTS = [HostRoom("h1", 9 * GHZ, 9 * GB), HostRoom("h2", 9 * GHZ, 6 * GB), HostRoom("h3", 6 * GHZ, 6 * GB)]
LOADS = [
    Load(f"u{number}", f"vm{number}", host, cpu * GHZ, memory * GB)
    for number, host, cpu, memory in [
        (1, "h1", 2, 1),
        (2, "h1", 2, 1),
        (3, "h2", 1, 2),
        (4, "h2", 1, 1),
        (5, "h3", 1, 1),
    ]
]
RULES = Rules()


def _one_more(cpu=GHZ, memory=GB, host=None, name="vm6"):
    return [*LOADS, Load("u6", name, host, cpu, memory)]


def test_example_2_1():
    slots = reckon(HOSTS, LOADS, RULES)
    assert slots.slot.size == Size(2 * GHZ, 2 * GB)
    assert slots.slot.cpu_by == ("vm1", "vm2") and slots.slot.memory_by == ("vm3",)
    assert slots.per_host == {"h1": 4, "h2": 3, "h3": 3}
    assert (slots.total, slots.used, slots.available, slots.capacity) == (10, 5, 1, 1)
    assert (slots.powered_on, slots.hosts, slots.good_hosts) == (5, 3, 3)
    assert slots.without_largest(1) == 6 and slots.without_largest(2) == 3
    assert validity(HOSTS, LOADS, RULES).state is State.VALID


def test_example_2_1_one_more_vm_may_start_and_no_second():
    six = _one_more()
    assert admit(HOSTS, LOADS, six, RULES).refused is None
    verdict = admit(HOSTS, six, [*six, Load("u7", "vm7", None, GHZ, GB)], RULES)
    assert verdict.refused is Refused.HOST_FAILURES
    assert "slot 2000 MHz (set by vm1, vm2), 2048 MB (set by vm3)" in verdict.sum
    assert "slots: h1 4, h2 3, h3 3; used 7; without h1: 6 slots for 7; so 0 host failures" in verdict.sum


def test_example_2_2():
    rules = replace(RULES, policy="percentage", percent=25)
    share = percentage(HOSTS, LOADS, rules)
    assert (share.cpu.required, share.cpu.total) == (7 * GHZ, 24 * GHZ)
    assert (share.memory.required, share.memory.total) == (6 * GB, 21 * GB)
    assert (share.cpu.free_percent, share.memory.free_percent) == (70, 71)
    assert share.available == (45, 46)


def test_percentage_at_its_edge():
    rules = replace(RULES, policy="percentage", percent=50)
    at_the_edge = _one_more(cpu=5 * GHZ)  # 12 of 24 GHz
    assert admit(HOSTS, LOADS, at_the_edge, rules).refused is None
    verdict = admit(HOSTS, LOADS, _one_more(cpu=5 * GHZ + 1), rules)
    assert verdict.refused is Refused.PERCENTAGE
    assert "CPU (24000 MHz - 12001 MHz) / 24000 MHz = 49 % free" in verdict.sum and "kept: 50 %" in verdict.sum
    assert admit(HOSTS, LOADS, _one_more(memory=4608), rules).refused is None  # 10752 of 21504 MB
    assert admit(HOSTS, LOADS, _one_more(memory=4609), rules).refused is Refused.PERCENTAGE


def test_a_vm_without_reservation_is_reckoned_with_256_mhz_and_overhead():
    loads = [Load("a", "vm1", "h1", overhead_mb=64)]
    slots = reckon(HOSTS, loads, RULES)
    assert slots.slot.size == Size(256, 64)
    assert slots.per_host == {"h1": 35, "h2": 35, "h3": 23}
    assert reckon(HOSTS, loads, replace(RULES, vm_cpu_min=500, vm_memory_min=1000)).slot.size == Size(500, 1064)
    assert percentage(HOSTS, loads, RULES).cpu.required == 256
    assert percentage(HOSTS, loads, RULES).memory.required == 64


def test_a_cap_makes_large_vms_take_several_slots():
    slots = reckon(HOSTS, LOADS, replace(RULES, slot_cpu_cap=1000, slot_memory_cap=1024))
    assert slots.slot.size == Size(1000, 1024)
    assert list(slots.per_load) == [2, 2, 2, 1, 1] and slots.used == 8 > slots.powered_on
    assert slots.per_host == {"h1": 9, "h2": 6, "h3": 6}
    assert "cap instead of 2000" in str(slots.slot)
    assert reckon(HOSTS, LOADS, replace(RULES, slot_cpu_cap=5000)).slot.size.cpu_mhz == 2000


def test_free_slots_on_many_hosts_are_no_room_for_a_large_vm():
    hosts = [HostRoom(f"h{number}", 4000, 100_000) for number in range(4)]
    loads = [Load(f"u{number}", f"vm{number}", f"h{number}", 3000) for number in range(3)]
    rules = replace(RULES, slot_cpu_cap=1000)
    assert reckon(hosts, loads, rules).by_sums == 1 and reckon(hosts, loads, rules).capacity == 1  # h3 is empty
    loads.append(Load("u3", "vm3", "h3", 1000))
    loads.append(Load("u4", "vm4", "h3", 1000))  # 11 slots of 16; without one: 12 for 11, and 2 + 1 + 1 + ... free
    slots = reckon(hosts, loads, rules)
    assert (slots.by_sums, slots.capacity, slots.fragmented) == (1, 0, True)
    verdict = holds(hosts, loads, rules)
    assert verdict.refused is Refused.HOST_FAILURES and "a VM of several slots would fit on no host" in verdict.sum


def test_hosts_that_are_not_good_have_no_slots_and_their_vms_count():
    hosts = [replace(HOSTS[0], why_not="in maintenance"), *HOSTS[1:]]
    slots = reckon(hosts, LOADS, RULES)
    assert slots.per_host == {"h2": 3, "h3": 3} and slots.used == 5 and slots.capacity == 0
    assert (slots.hosts, slots.good_hosts) == (3, 2)
    found = validity(hosts, LOADS, RULES)
    assert found.state is State.INVALID and "1 are to be" in found.reasons[0]


def test_a_lone_host_tolerates_nothing():
    assert reckon(HOSTS[:1], [], RULES).capacity == 0
    assert reckon([], [], RULES).capacity == 0
    assert reckon([], LOADS, RULES).available == 0


def test_admission_switched_off_refuses_nothing_and_is_not_red():
    rules = replace(RULES, control=False)
    assert admit(HOSTS[:1], [], [LOADS[0]], rules).refused is None
    assert admit(HOSTS[:1], [], [LOADS[0]], replace(RULES, ha=False)).refused is None
    assert validity(HOSTS[:1], LOADS[:1], rules).state is State.VALID
    assert validity(HOSTS[:1], LOADS, rules).state is State.VALID


def test_raising_a_reservation_is_refused_and_lowering_is_not():
    raised = [replace(LOADS[0], cpu_mhz=4000), *LOADS[1:]]  # slot 4 GHz: h1 2, h2 2, h3 1
    verdict = admit(HOSTS, LOADS, raised, RULES)
    assert verdict.refused is Refused.HOST_FAILURES and "set by vm1" in verdict.sum
    assert holds(HOSTS, raised, RULES).refused is Refused.HOST_FAILURES
    lowered = [replace(LOADS[0], cpu_mhz=3500), *LOADS[1:]]  # still too much, but less: allowed
    assert holds(HOSTS, lowered, RULES).refused is Refused.HOST_FAILURES
    assert admit(HOSTS, raised, lowered, RULES).refused is None
    assert admit(HOSTS, raised, raised[1:], RULES).refused is None  # stopping one, too


def test_migration_inside_the_cluster_is_not_refused_for_want_of_room():
    full = [*LOADS, *(Load(f"u{number}", f"vm{number}", "h1", GHZ, GB) for number in (6, 7))]
    assert holds(HOSTS, full, RULES).refused is Refused.HOST_FAILURES
    assert admit(HOSTS, full, [replace(full[0], host="h3"), *full[1:]], RULES).refused is None


def test_a_host_cannot_promise_more_than_it_has():
    rules = replace(RULES, control=False)
    verdict = admit(HOSTS, LOADS, _one_more(cpu=6 * GHZ, host="h1"), rules)
    assert verdict.refused is Refused.HOST_FULL and verdict.host == "h1"
    assert "h1 has 5000 MHz, 7168 MB unreserved, vm6 has 6000 MHz, 1024 MB reserved" in verdict.sum
    assert admit(HOSTS, LOADS, _one_more(cpu=5 * GHZ, host="h1"), rules).refused is None
    assert unreserved(HOSTS[0], LOADS, RULES) == Size(5000, 7168)


def test_the_failover_host_is_kept_empty_and_has_a_colour():
    rules = replace(RULES, policy="failover-host", failover_host="h3")
    empty = LOADS[:4]
    assert failover(HOSTS, empty, rules).colour is Colour.GREEN
    assert failover(HOSTS, LOADS, rules).colour is Colour.YELLOW and failover(HOSTS, LOADS, rules).vms == ("vm5",)
    red = [*HOSTS[:2], replace(HOSTS[2], why_not="it does not answer")]
    assert failover(red, empty, rules).colour is Colour.RED
    assert failover(HOSTS[:2], empty, rules).colour is Colour.RED
    assert failover(HOSTS, empty, replace(rules, failover_host=None)).colour is Colour.RED
    states = [validity(hosts, loads, rules).state for hosts, loads in ((HOSTS, empty), (HOSTS, LOADS), (red, empty))]
    assert states == [State.VALID, State.OVERCOMMITTED, State.INVALID]
    started = [*empty, Load("u6", "vm6", "h3")]
    assert admit(HOSTS, empty, started, rules).refused is Refused.FAILOVER_HOST
    moved = [replace(empty[0], host="h3"), *empty[1:]]
    assert admit(HOSTS, empty, moved, rules).refused is Refused.FAILOVER_HOST
    assert admit(HOSTS, empty, moved, replace(rules, control=False)).refused is None
    assert admit(HOSTS, empty, [*empty, Load("u6", "vm6", "h1")], rules).refused is None


def test_secondaries_take_a_slot_each():
    pair = [Load("u1", "vm1", "h1", 0, 1024, role="primary"), Load("u1", "vm1", "h2", 0, 1024, 1024, role="secondary")]
    slots = reckon(HOSTS, pair, RULES)
    assert slots.used == 2 and slots.slot.size.memory_mb == 2048
    assert slots.slot.memory_by == ("vm1 (secondary)",)


def test_overcommitted_names_the_host():
    found = validity([HOSTS[0], HOSTS[1], HOSTS[2]], [Load("u", "vm1", "h3", 7000)], replace(RULES, control=False))
    assert found.state is State.OVERCOMMITTED and found.reasons[0].startswith("h3: more is reserved than it has")


hosts_drawn = st.lists(st.tuples(st.integers(500, 9000), st.integers(500, 9000)), min_size=1, max_size=6).map(
    lambda sizes: [HostRoom(f"h{number}", cpu, memory) for number, (cpu, memory) in enumerate(sizes)]
)


@st.composite
def clusters(draw):
    hosts = draw(hosts_drawn)
    places = st.sampled_from([*(host.name for host in hosts), None])
    loads = [
        Load(f"u{number}", f"vm{number}", draw(places), draw(st.integers(0, 3000)), draw(st.integers(0, 3000)), 64)
        for number in range(draw(st.integers(0, 8)))
    ]
    caps = st.sampled_from([0, 0, 300, 1000])
    return (
        hosts,
        loads,
        Rules(slot_cpu_cap=draw(caps), slot_memory_cap=draw(caps), vm_cpu_min=draw(st.sampled_from([1, 256]))),
    )


def _placeable(free, loads):
    """Whether whole loads fit into hosts' free slots: every way is tried."""
    if not loads:
        return True
    first, *others = sorted(loads, reverse=True)
    return any(
        _placeable([*free[:at], room - first, *free[at + 1:]], others)
        for at, room in enumerate(free) if room >= first and room not in free[:at]
    )  # fmt: skip


@given(clusters())
@settings(max_examples=300, deadline=None)
def test_what_is_promised_can_be_kept_for_every_choice_of_lost_hosts(cluster):
    """Restarted where there are free slots, running VMs staying where they are."""
    hosts, loads, rules = cluster
    slots = reckon(hosts, loads, rules)
    for lost in combinations(hosts, slots.capacity) if slots.capacity else ():
        gone = {host.name for host in lost} | {None}
        left = [host for host in hosts if host.name not in gone]
        free = [
            slots.per_host[host.name]
            - sum(n for n, load in zip(slots.per_load, loads, strict=True) if load.host == host.name)
            for host in left
        ]  # fmt: skip
        to_place = [n for n, load in zip(slots.per_load, loads, strict=True) if load.host in gone]
        assert _placeable([max(0, room) for room in free], to_place)
        assert slots.capacity < slots.good_hosts


def _restarted(hosts, loads, gone):
    """The first VM for which HA's own placement finds no host after the loss; None if there is none."""
    room = Room({
        host.name: HostCapacity(
            max(0, host.cpu_mhz - sum(load.cpu_mhz for load in loads if load.host == host.name)),
            max(0, host.memory_mb - sum(load.memory_mb + load.overhead_mb for load in loads if load.host == host.name)),
        ) for host in hosts if host.name not in gone
    })  # fmt: skip
    order = [Priority.HIGH, Priority.MEDIUM, Priority.LOW]
    for load in sorted(loads, key=lambda load: (order.index(load.priority), load.name)):
        if load.host in gone:
            memory = load.memory_mb + load.overhead_mb
            vm = Vm(load.uuid, load.name, True, Owner(1, None, "b"), cpu_mhz=load.cpu_mhz, memory_mb=memory)
            host = room.place(vm)
            if host is None:
                return load.name
            room.give(host, vm.cpu_mhz, vm.memory_mb)
    return None


def _large(rng):
    """A cluster in which the order of placing matters: a cap, and few VMs that are large for their hosts."""
    hosts = [HostRoom(f"h{number}", rng.randint(1000, 9000), rng.randint(1000, 9000)) for number in range(5)]
    loads = [
        Load(f"u{number}", f"vm{number}", rng.choice(hosts).name, rng.randint(0, 3000), rng.randint(0, 3000), 64,
             priority=rng.choice((Priority.HIGH, Priority.MEDIUM, Priority.LOW)))
        for number in range(rng.randint(1, 5))
    ]  # fmt: skip
    return hosts, loads, Rules(slot_cpu_cap=rng.choice((0, 300)), slot_memory_cap=300, vm_cpu_min=1)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_promised_is_kept_by_the_placement_there_is(seed):
    """Not only by some placement: HA takes them by priority and name, each to the host with most memory free."""
    rng, promised = Random(seed), 0
    for _ in range(400):
        hosts, loads, rules = _large(rng)
        capacity = reckon(hosts, loads, rules).capacity
        promised += capacity > 0
        for gone in combinations([host.name for host in hosts], capacity):
            assert _restarted(hosts, loads, gone) is None, (hosts, loads, rules, gone)
    assert promised > 20


def test_a_large_vm_whose_only_host_a_small_one_takes_first_is_not_promised():
    """In slots they fit: vm0 on h0, vm1 on h1. HA places vm0 first, on h1, that has more memory; vm1 has nowhere."""
    hosts = [HostRoom("h0", 2069, 2073), HostRoom("h1", 5800, 2407), HostRoom("h2", 6296, 3851)]
    loads = [Load("u0", "vm0", "h2", 1191, 1221, 64), Load("u1", "vm1", "h2", 1540, 2253, 64, priority=Priority.LOW)]
    rules = Rules(slot_cpu_cap=300, slot_memory_cap=300, vm_cpu_min=1)
    slots = reckon(hosts, loads, rules)
    assert _restarted(hosts, loads, ["h2"]) == "vm1"
    assert (slots.by_sums, slots.capacity, slots.fragmented) == (1, 0, True)
    vm1_first = [loads[0], replace(loads[1], priority=Priority.HIGH)]
    assert _restarted(hosts, vm1_first, ["h2"]) is None
    assert reckon(hosts, vm1_first, rules).capacity == 1


@given(clusters())
@settings(max_examples=200, deadline=None)
def test_a_slot_is_room_for_its_load(cluster):
    hosts, loads, rules = cluster
    slots = reckon(hosts, loads, rules)
    size = slots.slot.size
    for n, load in zip(slots.per_load, loads, strict=True):
        assert n * size.cpu_mhz >= (load.cpu_mhz or rules.vm_cpu_min)
        assert n * size.memory_mb >= load.memory_mb + load.overhead_mb
    for host in hosts:
        assert slots.per_host[host.name] * size.cpu_mhz <= host.cpu_mhz
        assert slots.per_host[host.name] * size.memory_mb <= host.memory_mb


@given(clusters(), st.integers(0, 3000), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_what_is_admitted_keeps_the_promise_and_availability_is_exact(cluster, cpu, memory):
    hosts, loads, rules = cluster
    if reckon(hosts, loads, rules).capacity < 1:
        return
    after = [*loads, Load("new", "new", None, cpu, memory, 64)]
    admitted = admit(hosts, loads, after, rules).refused is None
    assert admitted == (reckon(hosts, after, rules).capacity >= 1)
    slots = reckon(hosts, loads, rules)
    if not rules.slot_cpu_cap and not rules.slot_memory_cap and loads:
        small = [*loads, *(Load(f"n{number}", "n", None, 1, 1) for number in range(slots.available))]
        assert reckon(hosts, small, rules).capacity >= 1
        assert reckon(hosts, [*small, Load("x", "x", None, 1, 1)], rules).capacity < 1


def test_the_guides_maximum_is_reckoned_in_no_time():
    hosts = [HostRoom(f"h{number}", 40_000, 256_000) for number in range(32)]
    loads = [Load(f"u{number}", f"vm{number}", f"h{number % 32}", 500 + number % 7, 2000, 64) for number in range(1280)]
    for rules in (RULES, replace(RULES, slot_cpu_cap=200, slot_memory_cap=500)):
        began = time.perf_counter()
        reckon(hosts, loads, rules)
        assert time.perf_counter() - began < 0.25
