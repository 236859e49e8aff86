"""HA-26: what a loss does, with the figures of the guide's example 2-1."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ftkvm.core.ha.capacity import HostRoom, Load, Rules, unreserved
from ftkvm.core.ha.model import Priority
from ftkvm.core.ha.whatif import what_if
from tests.unit.test_ha_admission import HOSTS, LOADS, clusters

RULES = Rules()


def _to(found):
    return {each.vm: each.host for each in found.outcomes}


def test_one_host_of_the_example_lost():
    found = what_if(HOSTS, LOADS, RULES, ["h1"])
    assert set(_to(found)) == {"vm1", "vm2"} and not found.stranded
    assert found.slots.slot.cpu_by == ("vm1", "vm2") and found.slots.slot.memory_by == ("vm3",)
    views = {view.policy: view for view in found.policies}
    assert views["host-failures"].in_force and views["host-failures"].holds and views["host-failures"].promised
    assert views["host-failures"].room == "1 slots" and not views["host-failures"].holds_after
    assert views["percentage"].room == "45 % of CPU, 46 % of memory" and views["percentage"].holds
    assert not views["percentage"].promised and "43 % of the cluster is lost, 25 % is kept" in views["percentage"].why
    assert not views["failover-host"].promised and "no failover host" in views["failover-host"].why


def test_order_of_priority_and_who_does_not_fit_where():
    hosts = [HostRoom("h1", 9000, 9000), HostRoom("h2", 9000, 3000)]
    loads = [
        Load("a", "a", "h1", 0, 2000, priority=Priority.LOW),
        Load("b", "b", "h1", 0, 2000, priority=Priority.HIGH),
        Load("c", "c", "h1", 0, 500, priority=Priority.DISABLED),
        Load("d", "d", "h2", 100, 500),
    ]
    found = what_if(hosts, loads, RULES, ["h1"])
    assert [(each.vm, each.host) for each in found.outcomes] == [("b", "h2"), ("a", None), ("c", None)]
    assert found.outcomes[1].why == {"h2": "2000 MB wanted, 500 unreserved"}
    assert [each.vm for each in found.stranded] == ["a"]
    assert found.outcomes[2].what == "not restarted"


def test_bridges_maintenance_and_total_loss():
    load = Load("a", "a", "h1", bridges=frozenset({"br-x"}))
    hosts = [HostRoom("h1", 9000, 9000), HostRoom("h2", 9000, 9000, bridges=frozenset({"br-y"})),
             HostRoom("h3", 9000, 9000, "in maintenance", frozenset({"br-x"}))]  # fmt: skip
    found = what_if(hosts, [load], RULES, ["h1"])
    assert found.stranded[0].why == {"h2": "it lacks the bridge br-x", "h3": "in maintenance"}
    assert what_if(hosts, [load], RULES, ["h1", "h2", "h3"]).stranded[0].why == {"": "no host is left"}


def test_the_failover_host_comes_first():
    rules = replace(RULES, policy="failover-host", failover_host="h3")
    found = what_if(HOSTS, LOADS[:4], rules, ["h1"])
    assert _to(found) == {"vm1": "h3", "vm2": "h3"}
    view = next(view for view in found.policies if view.policy == "failover-host")
    assert (
        view.in_force
        and view.promised
        and "h3 has 6000 MHz, 6144 MB unreserved, 4000 MHz, 2048 MB are lost" in view.why
    )
    both = what_if(HOSTS, LOADS[:4], rules, ["h1", "h3"])
    assert not next(view for view in both.policies if view.policy == "failover-host").promised


def test_pairs():
    pair = [Load("u", "vm", "h1", 0, 1024, role="primary"), Load("u", "vm", "h2", 0, 1024, 1024, role="secondary")]
    first = what_if(HOSTS, pair, RULES, ["h1"])
    assert [(each.what, each.host) for each in first.outcomes] == [("takes over", "h2"), ("new secondary", "h3")]
    second = what_if(HOSTS, pair, RULES, ["h2"])
    assert [(each.what, each.host) for each in second.outcomes] == [("new secondary", "h3")]
    both = what_if(HOSTS, pair, RULES, ["h1", "h2"])
    assert [(each.what, each.host) for each in both.outcomes] == [("restarted", "h3"), ("new secondary", None)]
    assert both.outcomes[1].why == {"h3": "the other copy runs there"} and not both.stranded


@given(clusters(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_nothing_is_placed_where_it_does_not_fit(cluster, number):
    hosts, loads, rules = cluster
    lost = [host.name for host in hosts[:number]]
    found = what_if(hosts, loads, rules, lost)
    place = {each.vm: each.host for each in found.outcomes}
    assert set(place) == {load.name for load in loads if load.host in lost}
    after = [replace(load, host=place.get(load.name, load.host)) for load in loads]
    plain = replace(rules, vm_cpu_min=0)
    for host in hosts:
        if host.name in place.values():
            left = unreserved(host, after, plain)
            assert host.name not in lost and left.cpu_mhz >= 0 and left.memory_mb >= 0
