"""What is warned of and not refused (FT-12): two hosts only, a seventeenth disk, a fifth FT VM on a host.

The last takes a minute, so with ``FTKVM_FULL=1`` only (`make long`).
"""

from collections.abc import Iterator
from string import ascii_lowercase

import pytest

from ftkvm.core.checks.cluster import LEAST_HOSTS
from ftkvm.core.checks.domain import MOST_DISKS
from ftkvm.core.checks.host import MOST_FT_COPIES

from .seat import Seat, joined

pytestmark = pytest.mark.lab

PROTECT_S = 60.0


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    with joined(tmp_path_factory.mktemp("seat"), "host64", "host65") as made:
        yield made


def warned(seat: Seat, *subject: str) -> dict[str, str]:
    """The warnings of a check by their code, and their text; a warning alone does not make it fail."""
    said = seat.run("check", *subject)
    findings = said.out["findings"]
    wrong = [each for each in findings if each["severity"] == "error"]
    assert said.status == (1 if wrong else 0), findings
    return {each["code"]: each["text"] for each in findings if each["severity"] == "warning"}


def test_a_cluster_of_two_hosts(seat: Seat) -> None:
    text = warned(seat, "cluster")["FTKVM-247"]
    assert "2" in text and str(LEAST_HOSTS) in text


@pytest.mark.long
def test_more_ft_vms_than_a_host_should_carry(seat: Seat) -> None:
    """Primaries and secondaries alike: the host of either copy is warned of, with the fifth and not before."""
    one = seat.hosts[0]
    *four, fifth = names = [f"l{number}" for number in range(1, MOST_FT_COPIES + 2)]
    for name in names:
        seat.define(one, name)
        seat.ok("vm", "register", name, "--host", one.name)
        seat.ok("enable", name)  # with the VM off: their second copies are then made side by side
    for name in four:
        seat.ok("vm", "start", name, "--host", one.name)
    for name in four:
        seat.wait_protected(name, timeout_s=PROTECT_S)
    for host in seat.hosts:
        assert "FTKVM-248" not in warned(seat, "host", host.name)
    seat.ok("vm", "start", fifth, "--host", one.name)  # warned of, not refused
    seat.wait_protected(fifth, timeout_s=PROTECT_S)
    for host in seat.hosts:
        assert f"{host.name} carries {len(names)} copies" in warned(seat, "host", host.name)["FTKVM-248"]
    assert {seat.vm(name)["host"] for name in names} == {one.name}


def test_more_disks_than_an_ft_vm_should_have(seat: Seat) -> None:
    """The warning comes with the seventeenth; FT can be turned on nevertheless."""
    one = seat.hosts[0]
    for count in (MOST_DISKS, MOST_DISKS + 1):
        name = f"d{count}"
        seat.define(one, name)
        for letter in ascii_lowercase[1:count]:
            image = seat.image(f"{name}-{letter}.qcow2", "1M")
            more = ("--subdriver", "qcow2", "--cache", "none", "--config")
            one.run(["virsh", "-q", "attach-disk", name, image, f"vd{letter}", *more])
        seat.ok("vm", "register", name, "--host", one.name)
        found = warned(seat, "vm", name, "--for-ft")
        assert ("FTKVM-138" in found) == (count > MOST_DISKS)
    assert f"{count} disks" in found["FTKVM-138"]
    seat.ok("enable", name)
    assert seat.vm(name)["pair"]["shown_as"] == "Not protected: VM not running"
