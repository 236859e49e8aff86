"""The facts' parsers on what real systems answered (tests/fixtures/hosts/README.md says where each comes from)."""

import subprocess
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.core import clock
from ftkvm.core.clock import Clock
from hostprep import facts
from hostprep.package import Package
from hostprep.plan import Wish, require

HOSTS = Path(__file__).parents[1] / "fixtures/hosts"


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
])  # fmt: skip
def test_packages(system: str, package: str, version: str) -> None:
    assert facts.parse_packages(recorded(system, "packages"))[package] == version


def test_addresses_and_links() -> None:
    found = facts.parse_links(recorded("debian13", "links"))
    assert found["mgmt0"].addresses and found["mgmt0"].up and found["mgmt0"].mtu == 1500
    assert found["vm0"].master == "br-vm"
    assert set(found["mgmt0"].addresses) <= set(facts.parse_addresses(recorded("debian13", "addresses")))


def test_versions() -> None:
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
