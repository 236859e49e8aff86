"""A host's own networks as plans, and systemd's own word on their units."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from hostprep.facts import HostFacts, Link
from hostprep.ground import Ground, ground_steps
from hostprep.nics import Nic, Surroundings, unit
from hostprep.step import Step

LINKS = {
    "eth0": Link(addresses=("10.0.0.1/24",), mtu=1500, up=True), "eth1": Link(mtu=1500),
    "eth2": Link(mtu=1500, up=True), "eth3": Link("br-vm", up=True),
}  # fmt: skip
BARE = HostFacts(
    system="Debian GNU/Linux 13 (trixie)", system_id="debian 13", packages={}, addresses=("10.0.0.1/24",), bridges=(),
    mount_point="/", datastore_status="missing", qemu=(), libvirt=(), devices=("/dev/net/tun",), digests={},
    links=LINKS,
)  # fmt: skip
NETWORKS = {"management": "10.0.0.0/24", "ft": "10.0.1.0/24", "migration": "10.0.2.0/24"}
CLUSTER = Surroundings(NETWORKS, {"10.0.1.2": ("kvm2", "ft"), "10.0.1.1": ("kvm1", "ft")})
PLAIN = Nic.parse("ft=eth1,10.0.1.1/24,mtu=9000")
BOND = Nic.parse("ft=eth1+eth2,10.0.1.1/24,mtu=9000,mode=802.3ad")
THERE = Link(addresses=("10.0.1.1/24",), mtu=9000, up=True)


def steps(facts: HostFacts, *asked: Nic) -> list[Step]:
    return ground_steps(facts, Ground(nics=asked), "kvm1", "br-vm", "/srv", "/var/lib/ftkvm/prepared", CLUSTER)


def names(facts: HostFacts, *asked: Nic) -> list[str]:
    return [step.name for step in steps(facts, *asked)]


def with_links(**links: Link) -> HostFacts:
    return replace(BARE, links={**LINKS, **links})


@pytest.mark.parametrize("asked", [PLAIN, BOND])
def test_what_is_missing_is_made(asked: Nic) -> None:
    assert names(BARE, asked) == ["journal", "file /etc/systemd/system/ftkvm-nic-ft.service", asked.step]


def test_what_is_there_is_left_alone_whoever_made_it() -> None:
    assert names(with_links(eth1=THERE), PLAIN) == []
    member = Link("bond-ft", mtu=9000, up=True)
    assert names(with_links(eth1=member, eth2=member, **{"bond-ft": THERE}), BOND) == []


def test_what_no_new_connection_has_confirmed_is_tried_again() -> None:
    """An earlier run was cut off: it would go in a minute. Its unit is not written again: it knows what was."""
    facts = with_links(eth1=THERE)
    assert names(replace(facts, units={PLAIN.unit: ("disabled", "active")}), PLAIN) == ["journal", PLAIN.step]
    assert names(replace(facts, units={PLAIN.unit: ("enabled", "active")}), PLAIN) == []


@pytest.mark.parametrize(("facts", "asked", "code"), [
    (BARE, "ft=eth9,10.0.1.1/24", "FTKVM-390"),
    (BARE, "ft=eth0,10.0.1.1/24", "FTKVM-752"),  # has the address that we have come by
    (BARE, "ft=eth1+eth3,10.0.1.1/24", "FTKVM-752"),  # a port of a bridge
    (BARE, "ft=eth1,10.0.3.1/24", "FTKVM-751"),
    (BARE, "ft=eth1,10.0.1.1/16", "FTKVM-751"),  # would draw the management network's packets
    (BARE, "ft=eth1,10.0.1.2/24", "FTKVM-242"),  # another host's
    (with_links(eth1=replace(THERE, mtu=1500)), "ft=eth1,10.0.1.1/24,mtu=9000", "FTKVM-752"),
    (replace(BARE, system_id="ubuntu 24.04"), "ft=eth1,10.0.1.1/24", "FTKVM-206"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_touched(facts: HostFacts, asked: str, code: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        steps(facts, Nic.parse(asked))
    assert caught.value.code == code
    assert "<" not in caught.value.text + caught.value.cause + caught.value.remedy


@pytest.mark.parametrize("text", [
    "ft", "ft=eth1", "vm=eth1,10.0.1.1/24", "ft=eth1,10.0.1.1", "ft=eth1,10.0.1.0/24", "ft=eth1,10.0.1.255/24",
    "ft=eth1,fd00::1/64", "ft=eth1+eth1,10.0.1.1/24", "ft=eth1+,10.0.1.1/24", "ft=$(reboot),10.0.1.1/24",
    "ft=eth1,10.0.1.1/24,mtu=many", "ft=eth1,10.0.1.1/24,mtu=100", "ft=eth1,10.0.1.1/24,mode=fast",
    "ft=eth1,10.0.1.1/24,9000", "ft=eth1,10.0.1.1/24,color=red", "ft=-x,10.0.1.1/24", "ft=a\nb,10.0.1.1/24",
])  # fmt: skip
def test_words_that_are_not_understood(text: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        Nic.parse(text)
    assert caught.value.code == "FTKVM-605"


@pytest.mark.parametrize("nics", [
    (PLAIN, Nic.parse("ft=eth2,10.0.1.1/24")), (PLAIN, Nic.parse("migration=eth1,10.0.2.1/24")),
])  # fmt: skip
def test_a_nic_or_a_network_is_given_once(nics: tuple[Nic, ...]) -> None:
    with pytest.raises(FtkvmError) as caught:
        Ground(nics=nics)
    assert caught.value.code == "FTKVM-605"
    with pytest.raises(FtkvmError):
        Ground("eth1", nics=nics[:1])


def test_the_unit_leaves_the_nics_as_they_were() -> None:
    stops = [line for line in unit(PLAIN, LINKS).splitlines() if line.startswith("ExecStopPost")]
    assert stops == [
        "ExecStopPost=-ip address del 10.0.1.1/24 dev eth1", "ExecStopPost=-ip link set dev eth1 mtu 1500",
        "ExecStopPost=-ip link set dev eth1 down",
    ]  # fmt: skip
    stops = [line for line in unit(BOND, LINKS).splitlines() if line.startswith("ExecStopPost")]
    assert stops == ["ExecStopPost=-ip link delete dev bond-ft", "ExecStopPost=-ip link set dev eth2 up"]


def test_a_bond_has_its_members_mode_and_mtu() -> None:
    made = [line.removeprefix("ExecStart=ip ") for line in unit(BOND, LINKS).splitlines() if "ExecStart=ip" in line]
    assert made == [
        "link add bond-ft type bond mode 802.3ad miimon 100 lacp_rate fast",
        "link set dev eth1 down", "link set dev eth1 master bond-ft",
        "link set dev eth2 down", "link set dev eth2 master bond-ft",
        "link set dev bond-ft mtu 9000", "address replace 10.0.1.1/24 dev bond-ft", "link set dev bond-ft up",
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [PLAIN, BOND])
def test_systemd_understands_the_units(tmp_path: Path, asked: Nic) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-container, which `make setup` installs, brings systemd"
    (tmp_path / asked.unit).write_text(unit(asked, LINKS))
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / asked.unit], capture_output=True, text=True, timeout=60
    )
    assert [line for line in done.stderr.splitlines() if asked.unit in line] == []
