"""The rolling upgrade of hosts: for every size of cluster and place of copies, what must hold at each step."""

import itertools

import pytest

from ftkvm.core.upgrade import Do, FtVm, Times, UpgradeStep, order, plan, unprotected_s

TIMES = Times(upgrade_s=600, disable_s=2, migrate_s=10, exit_s=1)


def hosts(count: int) -> list[str]:
    return [f"h{number}" for number in range(1, count + 1)]


def pairs(count: int) -> list[FtVm]:
    """A VM on every ordered pair of hosts."""
    return [FtVm(f"vm-{one}-{two}", one, two, 5.0) for one, two in itertools.permutations(hosts(count), 2)]


def texts(steps: tuple[UpgradeStep, ...]) -> list[str]:
    return [f"{step.do} {step.subject} {step.host}".strip() for step in steps]


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("count", range(2, 7))
def test_what_holds_at_every_step(count: int, together: int) -> None:
    """Each host is upgraded once, in maintenance; FT is on only while both copies run on the same version; and a VM is
    moved only while FT is off, to a host out of maintenance."""
    vms = pairs(count)
    resting: set[str] = set()
    new: set[str] = set()
    off: set[str] = set()
    where = {vm.name: vm.primary for vm in vms}
    for step in plan(hosts(count), vms, together):
        if step.do is Do.ENTER:
            resting.add(step.subject)
            assert count - len(resting) >= 1
            left = [host for host in hosts(count) if host not in resting and host not in new]
            # a pair that is on needs two hosts of its version, here the old ones until VMs were moved to the new ones
            moved = {vm.name for vm in vms if where[vm.name] in new and vm.name not in off}
            assert len(left) >= 2 or len(off) + len(moved) == len(vms)
        elif step.do is Do.UPGRADE:
            assert step.subject in resting
            assert step.subject not in new
            assert all(where[vm.name] != step.subject for vm in vms if vm.name in off)
            new.add(step.subject)
        elif step.do is Do.EXIT:
            resting.remove(step.subject)
        elif step.do is Do.DISABLE:
            off.add(step.subject)
        elif step.do is Do.MIGRATE:
            assert step.subject in off
            assert step.host not in resting
            where[step.subject] = step.host
        else:
            off.remove(step.subject)
            assert {where[step.subject], step.host} <= new
            assert where[step.subject] != step.host
            assert step.host not in resting
    assert new == set(hosts(count))
    assert not resting
    assert not off


def test_three_hosts() -> None:
    """The guide's way in a small cluster: unprotected while the second host is upgraded."""
    vm = FtVm("vm1", "h2", "h3", 5.0)
    steps = plan(hosts(3), [vm], 2)
    assert texts(steps) == [
        "enter h1", "upgrade h1", "exit h1",
        "disable vm1", "migrate vm1 h1",
        "enter h2", "upgrade h2", "exit h2",
        "enable vm1 h2",
        "enter h3", "upgrade h3", "exit h3",
    ]  # fmt: skip
    # disable 2, migrate 10, h2: enter 1, upgrade 600, exit 1, enable 5
    assert unprotected_s(steps, [vm], TIMES) == {"vm1": 619.0}


def test_four_hosts_leave_it_unprotected_for_its_own_move_only() -> None:
    """Two hosts are emptied first; the secondary, which is in the way on one of them, is made anew elsewhere."""
    vm = FtVm("vm1", "h3", "h2", 5.0)
    steps = plan(hosts(4), [vm], 2)
    assert texts(steps)[:9] == [
        "enter h1", "enter h2", "upgrade h1", "upgrade h2", "exit h1", "exit h2",
        "disable vm1", "migrate vm1 h1", "enable vm1 h2",
    ]  # fmt: skip
    # the secondary leaves h2: 5; disable 2, migrate 10, enable 5; then nothing of it is on h3 or h4
    assert unprotected_s(steps, [vm], TIMES) == {"vm1": 22.0}


def test_two_hosts_leave_it_unprotected_for_both_upgrades() -> None:
    steps = plan(hosts(2), [FtVm("vm1", "h1", "h2", 5.0)], 1)
    assert texts(steps) == [
        "disable vm1", "migrate vm1 h2",
        "enter h1", "upgrade h1", "exit h1",
        "migrate vm1 h1",
        "enter h2", "upgrade h2", "exit h2",
        "enable vm1 h2",
    ]  # fmt: skip
    assert unprotected_s(steps, [FtVm("vm1", "h1", "h2", 5.0)], TIMES)["vm1"] > 1200


def test_without_ft_the_hosts_go_one_by_one() -> None:
    assert texts(plan(hosts(3), [], 2)) == [f"{do} {host}" for host in hosts(3) for do in ("enter", "upgrade", "exit")]


def test_one_host_cannot_be_emptied() -> None:
    with pytest.raises(ValueError, match="can go nowhere"):
        plan(hosts(1), [], 1)


def test_the_order() -> None:
    """Empty hosts, then those with few copies, the coordinator's last."""
    assert order(hosts(4), {"h1": 3, "h3": 1}, "h4", ["h1"]) == ["h1", "h2", "h3", "h4"]
    assert order(hosts(3), {"h1": 3, "h3": 1}, "h2") == ["h3", "h1", "h2"]


def test_a_step_is_kept_as_it_is() -> None:
    for step in plan(hosts(4), pairs(4), 2):
        assert UpgradeStep.from_json(step.to_json()) == step
        assert step.subject in step.text
