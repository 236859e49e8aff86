"""The room for a rolling upgrade: each step with what it finds on the hosts then."""

from collections.abc import Sequence

import pytest

from ftkvm.core.upgrade import Do, FtVm, UpgradeStep, plan, stretch
from ftkvm.core.upgrade_room import HostAt, VmAt, capacity_mb, shortages

VM = VmAt("vm1", 1000, "h2", "h3")


def found(steps: Sequence[UpgradeStep], hosts: Sequence[HostAt], vms: Sequence[VmAt]) -> list[str]:
    return [f"{each.number}: {each}" for each in shortages(steps, hosts, vms)]


def course(*names: str, vms: Sequence[VmAt] = (VM,), together: int = 1) -> tuple[UpgradeStep, ...]:
    return plan(names, [FtVm(vm.name, vm.host, vm.secondary or "", 5.0) for vm in vms if vm.secondary], together)


def test_three_hosts_that_just_have_room() -> None:
    """Of the pair a host has the main copy (1064) or the second one (2064), and at no step both."""
    hosts = [HostAt(name, 2064) for name in ("h1", "h2", "h3")]
    assert found(course("h1", "h2", "h3"), hosts, [VM]) == []


def test_the_second_copy_comes_to_a_host_that_is_too_small() -> None:
    hosts = [HostAt("h1", 2063), HostAt("h2", 2063), HostAt("h3", 2064)]
    assert found(course("h1", "h2", "h3"), hosts, [VM]) == [
        "9: VM vm1: FT on, second copy on h2: VM vm1: h2: 2063 of 2063 MB are left, 2064 are needed"
    ]


def test_two_hosts_are_no_obstacle_by_themselves() -> None:
    vm = VmAt("vm1", 1000, "h1", "h2")
    steps = course("h1", "h2", vms=[vm])
    assert found(steps, [HostAt("h1", 2064), HostAt("h2", 2064)], [vm]) == []
    assert found(steps, [HostAt("h1", 1000), HostAt("h2", 2064)], [vm]) == [
        "6: VM vm1: live to h1: VM vm1: h1: 1000 of 1000 MB are left, 1064 are needed"
    ]


def test_with_three_hosts_all_vms_with_ft_are_on_one_meanwhile() -> None:
    """It is told at the step where it happens, not only of a host that is emptied."""
    vms = [VM, VmAt("vm2", 1000, "h3", "h2"), VmAt("vm3", 500, "h1")]
    hosts = [HostAt("h1", 2000), HostAt("h2", 9000), HostAt("h3", 9000)]
    steps = course("h1", "h2", "h3", vms=vms)
    # vm3 has gone to another host for the upgrade of h1, and nobody brings it back
    assert found(steps, hosts, vms) == ["7: VM vm2: live to h1: VM vm2: h1: 936 of 2000 MB are left, 1064 are needed"]
    assert found(steps, [HostAt("h1", 2128), *hosts[1:]], vms) == []


def test_an_ordinary_vm_that_has_nowhere_to_go() -> None:
    vms = [VmAt("vm1", 1000, "h1"), VmAt("vm2", 1000, "h2")]
    hosts = [HostAt("h1", 2200), HostAt("h2", 1500), HostAt("h3", 5000, why_not="it does not answer")]
    assert found(course("h1", "h2", vms=()), hosts, vms) == [
        "1: host h1: maintenance, its VMs move away: VM vm1: h2: 436 of 1500 MB are left, 1064 are needed; "
        "h3: it does not answer"
    ]


def test_a_host_that_rests_or_is_kept_empty_takes_nothing() -> None:
    steps = [UpgradeStep(Do.MIGRATE, "vm1", "h3"), UpgradeStep(Do.ENABLE, "vm1", "h2")]
    hosts = [HostAt("h1", 9000), HostAt("h2", 9000, resting=True), HostAt("h3", 9000, why_not="kept empty")]
    assert [each.reasons for each in shortages(steps, hosts, [VmAt("vm1", 100, "h1")])] == [
        "h3: kept empty", "h2: in maintenance then"]  # fmt: skip


def test_a_plan_that_goes_on_leaves_out_what_is_done() -> None:
    """The host rests already, and the VM is without FT; one that was switched off needs nothing."""
    steps = course("h1", "h2", "h3")[7:]
    hosts = [HostAt("h1", 2064), HostAt("h2", 2064, resting=True), HostAt("h3", 2064)]
    assert found(steps, hosts, [VmAt("vm1", 1000, "h1")]) == []
    assert found(steps, hosts, []) == []


def test_what_others_use_on_a_host_counts() -> None:
    assert capacity_mb(8000, None, [VM], "h2") == 8000
    assert capacity_mb(8000, 9000, [VM], "h2") == 8000
    assert capacity_mb(8000, 3000, [VM], "h2") == 3000 + 1064
    assert capacity_mb(8000, 3000, [VM], "h3") == 3000 + 2064
    assert capacity_mb(8000, 3000, [VM], "h1") == 3000


@pytest.mark.parametrize(("hosts", "together", "stretches"), [
    (("h1", "h2", "h3"), 1, [(1, 1), (2, 2), (3, 3), (4, 9), (9, 9), (10, 10), (12, 12)]),
    (("h1", "h2"), 1, [(1, 9), (9, 9)]),
    (("h1", "h2", "h3", "h4"), 2, [(1, 1), (6, 6), (7, 9), (9, 9), (10, 10)]),
])  # fmt: skip
def test_how_far_a_step_is_looked_ahead(
    hosts: tuple[str, ...], together: int, stretches: list[tuple[int, int]]
) -> None:
    """Steps are numbered from one here: the first of the stretch, and its last."""
    steps = course(*hosts, together=together)
    assert [(first, stretch(steps, first - 1)) for first, _last in stretches] == stretches
