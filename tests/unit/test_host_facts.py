"""The facts' parsers on what real systems answered (tests/fixtures/hosts/README.md says where each comes from)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.core import clock
from ftkvm.core.clock import Clock
from hostprep import facts
from hostprep.package import Package
from hostprep.plan import Wish, require, require_place

HOSTS = Path(__file__).parents[1] / "fixtures/hosts"


TOOLS = ("sh", "cat", "ls", "grep", "tail", "ip", "findmnt", "timeout", "dd", "rm", "sha256sum", "systemctl")
"""What the script may use on a system that has neither dpkg nor QEMU."""


def recorded(system: str, fact: str) -> str:
    return (HOSTS / system / fact).read_text()


@pytest.mark.parametrize(("system", "name", "shown"), [
    ("debian12", "debian 12", "Debian GNU/Linux 12 (bookworm)"),
    ("debian13", "debian 13", "Debian GNU/Linux 13 (trixie)"),
    ("ubuntu2404", "ubuntu 24.04", "Ubuntu 24.04.2 LTS"),
    ("almalinux9", "almalinux 9.2", "AlmaLinux 9.2 (Turquoise Kodkod)"),
])  # fmt: skip
def test_systems_are_recognised_and_those_we_do_not_prepare_are_named(system: str, name: str, shown: str) -> None:
    parts = dict.fromkeys(facts.sections("/srv", []), "")
    parts |= {"os": recorded(system, "os"), "mount": "status 1\n", "end": ""}
    text = "".join(f"{facts.MARK}{part}\n{answer}" for part, answer in parts.items())
    found = facts.parse(text)
    assert (found.system_id, found.system) == (name, shown)
    with pytest.raises(FtkvmError) as caught:
        require(found, Wish("h1", "/srv", (), Package(b"", ""), {}, "", {}))
    if name == "debian 13":
        assert caught.value.code != "FTKVM-206"
    else:
        assert caught.value.code == "FTKVM-206"
        assert shown in caught.value.text


@pytest.mark.parametrize(("system", "package", "version"), [
    ("debian12", "nftables", "1.0.6-2+deb12u2"), ("debian13", "python3-libvirt", "11.3.0-1"),
    ("ubuntu2404", "nftables", "1.0.9-1build1"),
])  # fmt: skip
def test_packages(system: str, package: str, version: str) -> None:
    assert facts.parse_packages(recorded(system, "packages"))[package] == version


def test_addresses_and_links() -> None:
    found = facts.parse_links(recorded("debian13", "links"))
    assert found["mgmt0"].addresses and found["mgmt0"].up and found["mgmt0"].mtu == 1500
    assert found["vm0"].master == "br-vm"
    assert set(found["mgmt0"].addresses) <= set(facts.parse_addresses(recorded("debian13", "addresses")))


@pytest.mark.parametrize(("system", "name", "bridge", "point", "watchdog"), [
    ("debian12", "debian 12", "br-vm", "/", False), ("debian13", "debian 13", "br-vm", "/srv/ftkvm", True),
])  # fmt: skip
def test_the_whole_answer(system: str, name: str, bridge: str, point: str, watchdog: bool) -> None:
    found = facts.parse(recorded(system, "script"))
    assert (found.system_id, found.bridges, found.mount_point) == (name, (bridge,), point)
    assert found.links["vm0"].master == bridge and found.addresses and found.datastore_status == "ok"
    assert ("/dev/watchdog" in found.devices) is watchdog and "/dev/net/tun" in found.devices
    assert set(found.digests) == {"/etc/hostname", "/etc/os-release"}, "the file that is not there has none"
    assert {active for _enabled, active in found.units.values()} <= {"inactive"}
    assert (found.manifest, found.strangers, found.configuration) == ("", (), "")


def test_ubuntus_links() -> None:
    (nic,) = (link for name, link in facts.parse_links(recorded("ubuntu2404", "links")).items() if name != "lo")
    assert nic == facts.Link("", ("192.168.2.150/24",), "00:0c:29:cd:d6:f1", 1500, True)
    assert facts.parse_addresses(recorded("ubuntu2404", "links")) == nic.addresses


def test_a_system_without_dpkg_is_refused_by_its_name(tmp_path: Path) -> None:
    """The script as a RHEL would run it: no dpkg, no qemu-system-x86_64, no libvirtd."""
    tools, text = tmp_path / "bin", facts.script(str(tmp_path), ["/etc/hostname"])
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or f"/nowhere/{name}")
    text = text.replace("/etc/os-release", str(HOSTS / "almalinux9/os"))
    done = subprocess.run(
        ["/bin/sh", "-s"], input=text, capture_output=True, text=True, timeout=60, env={"PATH": str(tools)}
    )
    found = facts.parse(done.stdout)
    assert (found.packages, found.qemu, found.libvirt) == ({}, (), ())
    with pytest.raises(FtkvmError) as caught:
        require_place(found, "h1")
    assert (caught.value.code, "AlmaLinux 9.2" in caught.value.text) == ("FTKVM-206", True)


def test_versions() -> None:
    assert facts.parse_version(recorded("ubuntu2404", "qemu")) == (8, 2, 2)
    assert facts.parse_version(recorded("ubuntu2404", "libvirt")) == (10, 0, 0)
    assert facts.parse_version(recorded("rocky9", "qemu-kvm")) == (7, 2, 0)
    assert facts.parse_version(recorded("debian13", "qemu")) >= (11, 1)
    assert facts.parse_version(recorded("debian13", "libvirt")) == (11, 3, 0)


def test_a_host_without_a_time_service_is_told() -> None:
    found = clock.parse(recorded("debian13", "clock"))
    assert found == Clock(False, "")
    (finding,) = clock.judge(found)
    assert (finding.code, finding.severity) == ("FTKVM-361", "warning")
    assert "no time service" in finding.params["why"]


@pytest.mark.parametrize(("unit", "service"), list(clock.SERVICES.items()))
@pytest.mark.parametrize("synchronised", ["yes", "no"])
def test_each_time_service_is_known(unit: str, service: str, synchronised: str) -> None:
    """The recorded answer with that unit active, as systemctl(1) words it."""
    text = recorded("debian13", "clock").replace("NTPSynchronized=no", f"NTPSynchronized={synchronised}")
    text = text.replace(f"Id={unit}\nActiveState=inactive", f"Id={unit}\nActiveState=active")
    found = clock.parse(text)
    assert found == Clock(synchronised == "yes", service)
    told = [finding.params["why"] for finding in clock.judge(found)]
    assert told == ([] if synchronised == "yes" else [f"{service} runs and has no time yet"])


@pytest.mark.parametrize("text", ["", "Failed to connect to bus: Host is down\n", "NTPSynchronized=perhaps\n"])
def test_a_clock_that_nothing_is_known_of_is_not_judged(text: str) -> None:
    assert not list(clock.judge(clock.parse(text)))


def test_the_commands_change_nothing_and_end() -> None:
    done = subprocess.run(["sh", "-c", clock.COMMAND], capture_output=True, text=True, timeout=20)
    assert clock.parse(done.stdout).service in ("", *clock.SERVICES.values())
