"""What a host stands on: the VMs' bridge and the NFS mount, as plans; and systemd's own word on the units."""

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from hostprep import modules
from hostprep.facts import HostFacts, Link
from hostprep.ground import Ground, bridge_unit, ground_steps, mount_unit, mount_unit_name
from hostprep.journal import note_unit
from hostprep.nics import Surroundings
from hostprep.package import Package
from hostprep.plan import Wish, plan
from hostprep.step import Step

BARE = HostFacts(
    system="Debian GNU/Linux 13 (trixie)", system_id="debian 13", packages={}, addresses=("10.0.0.1/24",), bridges=(),
    mount_point="/", datastore_status="missing", qemu=(), libvirt=(), devices=("/dev/net/tun",), digests={},
    links={"eth0": Link(addresses=("10.0.0.1/24",)), "eth3": Link(mac="52:54:00:0a:00:03"), "eth4": Link("bond0")},
)  # fmt: skip
NOBODY = Surroundings({})
ASKED = Ground("eth3", "storage:/srv/ftkvm")


def steps(facts: HostFacts, asked: Ground = ASKED) -> list[Step]:
    return ground_steps(facts, asked, "kvm1", "br-vm", "/srv/ftkvm", "/var/lib/ftkvm/prepared", NOBODY)


def code(facts: HostFacts, asked: Ground = ASKED) -> str:
    with pytest.raises(FtkvmError) as caught:
        steps(facts, asked)
    return str(caught.value.code)


def test_a_bare_host_gets_all_of_it_and_the_journal_comes_first() -> None:
    assert [step.name for step in steps(BARE)] == [
        "journal", "file /etc/systemd/system/ftkvm-bridge-br-vm.service", "unit ftkvm-bridge-br-vm.service",
        "packages nfs-common", "file /etc/systemd/system/srv-ftkvm.mount", "unit srv-ftkvm.mount",
    ]  # fmt: skip


def test_a_nic_is_also_known_by_its_mac() -> None:
    by_mac = replace(ASKED, nic="52:54:00:0a:00:03")
    assert steps(BARE, by_mac) == steps(BARE)
    mac = {"mac": "52:54:00:0a:00:03"}
    made = replace(BARE, bridges=("br-vm",), links={"br-vm": Link(**mac), "eth3": Link("br-vm", **mac)})
    assert [step.name for step in steps(made, replace(by_mac, export=""))] == []


def test_what_is_there_is_left_alone() -> None:
    there = replace(BARE, bridges=("br-vm",), links={"eth3": Link("br-vm")}, mounted="storage:/srv/ftkvm")
    assert steps(there) == []
    assert steps(replace(there, system_id="ubuntu 24.04")) == []


def test_nothing_is_done_that_was_not_asked_for() -> None:
    assert steps(BARE, Ground()) == []


@pytest.mark.parametrize(("nic", "wrong"), [("eth9", "FTKVM-390"), ("eth0", "FTKVM-391"), ("eth4", "FTKVM-392")])
def test_nics_that_cannot_be_the_port(nic: str, wrong: str) -> None:
    """eth0 has the address that we have come by: as a port the host would be cut off."""
    assert code(BARE, Ground(nic)) == wrong


def test_a_bridge_without_that_port_is_left_as_it_is() -> None:
    assert code(replace(BARE, bridges=("br-vm",))) == "FTKVM-392"


def test_another_mount_is_left_as_it_is() -> None:
    assert code(replace(BARE, mounted="old:/export")) == "FTKVM-393"


def test_only_debian_13_is_prepared() -> None:
    assert code(replace(BARE, system_id="debian 12")) == "FTKVM-206"


@pytest.mark.parametrize("asked", [
    ("eth3; reboot", ""), ("-x", ""), ("", "storage"), ("", "storage:relative"), ("", "storage:/a b"), ("", "a\nb:/x"),
])  # fmt: skip
def test_names_that_would_be_shell_or_unit_syntax(asked: tuple[str, str]) -> None:
    with pytest.raises(FtkvmError) as caught:
        Ground(*asked)
    assert caught.value.code == "FTKVM-605"


@pytest.mark.parametrize(("path", "name"), [
    ("/srv/ftkvm", "srv-ftkvm.mount"), ("/srv/ft-kvm/", "srv-ft\\x2dkvm.mount"), ("/.x/y.z", "\\x2ex-y.z.mount"),
])  # fmt: skip
def test_mount_units_are_named_as_systemd_wants(path: str, name: str) -> None:
    assert mount_unit_name(path) == name
    if shutil.which("systemd-escape"):
        said = subprocess.run(
            ["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == name


@pytest.mark.parametrize(("name", "text"), [
    ("ftkvm-bridge-br-vm.service", bridge_unit("br-vm", "eth3")),
    ("srv-ftkvm.mount", mount_unit("[fd00::1]:/srv/ftkvm", "/srv/ftkvm")),
])  # fmt: skip
def test_systemd_understands_the_units(tmp_path: Path, name: str, text: str) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-container, which `make setup` installs, brings systemd"
    (tmp_path / name).write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", tmp_path / name], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if name in line and "mount.nfs" not in line]
    assert ours == []


def test_enabled_units_are_noted_once(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run(["sh", "-c", note_unit(str(tmp_path), "srv-ft\\x2dkvm.mount")], check=True)
    assert (tmp_path / "units").read_text() == "srv-ft\\x2dkvm.mount\n"


@pytest.mark.parametrize(("devices", "modules", "loaded"), [
    (("/dev/net/tun",), ("kvm_amd", "tun"), False), ((), ("kvm_amd", "tun"), True), ((), (), False),
])  # fmt: skip
def test_tun_is_loaded_where_the_kernel_has_it(
    devices: tuple[str, ...], modules: tuple[str, ...], loaded: bool
) -> None:
    facts = replace(BARE, devices=devices, modules=modules)
    assert [step.command for step in steps(facts, Ground())][1:] == ["modprobe tun"] * loaded


def test_modules_are_loaded_at_each_boot() -> None:
    facts = replace(BARE, modules=("kvm_amd", "tun"))
    ((path, (content, _mode)),) = modules.files(facts.modules).items()
    assert content.decode().split("\n")[1:] == ["kvm_amd", "tun", ""]
    asked = Wish("kvm1", "/srv/ftkvm", (), Package(b"tar", "digest"), modules.files(facts.modules), "CA", {"host": {}})
    names = [step.name for step in plan(facts, asked)]
    assert names.index("modules") == names.index(f"file {path}") + 1
    assert modules.files(BARE.modules) == {}, "a container: the kernel is not its own"
    there = replace(facts, digests={path: hashlib.sha256(content).hexdigest()})
    assert "modules" not in [step.name for step in plan(there, asked)]
