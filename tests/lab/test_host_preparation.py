"""A bare host prepared over SSH: cut off in any step it is begun again, and all of it can be taken back (OP-02)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftkvm.lab import names, network
from ftkvm.lab.host import Host

from .conftest import FULL
from .seat import FTKVM, Seat, seated

pytestmark = pytest.mark.lab

TREE = Path(__file__).parents[2]
PLACES = "/etc /opt /usr/local /var/lib/ftkvm /root"


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    """A cluster of one host, and a bare one."""
    with seated(tmp_path_factory.mktemp("seat"), "host19", "host20") as made:
        assert made.add_host(made.hosts[0]).status == 0
        yield made


def configuration(host: Host) -> str:
    """Every file of the places that preparation touches: mode, owner, link, content; and which units are enabled."""
    words = f"find {PLACES} -xdev ! -type d -printf '%p %m %u:%g %l\\n' 2>/dev/null | sort"
    contents = f"find {PLACES} -xdev -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum"
    units = "systemctl list-unit-files --state=enabled --no-legend"
    return host.run(["sh", "-c", f"{words}; {contents}; {units}"])


def steps(seat: Seat, host: Host) -> list[str]:
    """The steps of the plan, of its own telling."""
    said = seat.add_host(host, "--dry-run")
    assert said.status == 0, said.err
    return list(said.out["steps"])


def cut_off(seat: Seat, host: Host, number: int) -> None:
    """Begins to add the host, and dies as soon as it tells of step ``number``."""
    words = ["host", "add", host.name, "--address", seat.address(host)]
    environment = dict(os.environ, HOME=str(seat.home), FTKVM_HOME=str(seat.home / "ftkvm"))
    command = ["ip", "netns", "exec", names.CLIENT_NS, *FTKVM, *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if f" {number}/" in line:
                run.kill()
                break
    assert run.returncode == -signal.SIGKILL, said


def test_cut_off_in_any_step_and_taken_back(seat: Seat) -> None:
    """After each: added again without a word, removed again, and nothing of it is left."""
    host = seat.hosts[1]
    before = configuration(host)
    count = len(steps(seat, host))
    assert count > 10
    assert configuration(host) == before
    for number in range(1, count + 1) if FULL else (2, count // 2, count):
        cut_off(seat, host, number)
        assert seat.add_host(host).status == 0, number
        assert seat.ok("host", "add", host.name, "--address", seat.address(host))["steps"] == []
        there, words = configuration(host), ("host", "remove", host.name, "--address", seat.address(host))
        shown = seat.ok(*words, "--dry-run")
        assert configuration(host) == there
        said = seat.ok(*words)
        keys = said.pop("beat_keys")  # which a dry run cannot know: the host that left knew the old ones
        assert keys["finished"] and said == {**shown, "dry_run": False}
        assert said["taken_back"]["removed"]
        assert configuration(host) == before, number


def test_what_was_begun_and_never_finished_is_taken_back(seat: Seat) -> None:
    """The operator thinks better of it: `host restore`, shown first; done twice, the second does nothing."""
    host = seat.hosts[1]
    before = configuration(host)
    cut_off(seat, host, len(steps(seat, host)) - 2)
    assert configuration(host) != before
    words = ("host", "restore", host.name, "--address", seat.address(host))
    there = configuration(host)
    shown = seat.ok(*words, "--dry-run")
    assert shown["removed"]
    assert configuration(host) == there
    assert seat.ok(*words) == {**shown, "dry_run": False}
    assert configuration(host) == before
    assert seat.ok(*words)["removed"] == []


def test_a_host_of_the_cluster_is_not_taken_back(seat: Seat) -> None:
    first = seat.hosts[0]
    before = configuration(first)
    assert seat.run("host", "restore", first.name, "--address", seat.address(first)).code == "FTKVM-342"
    assert configuration(first) == before


def test_what_a_stranger_put_in_our_programs_place_is_left(seat: Seat) -> None:
    host = seat.hosts[1]
    host.run(["sh", "-c", "mkdir -p /opt/ftkvm/bin && echo theirs > /opt/ftkvm/bin/tool"])
    before = configuration(host)
    for words in (("--dry-run",), ()):
        said = seat.add_host(host, *words)
        assert (said.code, "/opt/ftkvm" in said.err) == ("FTKVM-363", True)
        assert configuration(host) == before
    host.run(["rm", "-r", "/opt/ftkvm"])


KVM_CODES = {"FTKVM-221", "FTKVM-222", "FTKVM-223", "FTKVM-224"}
WITH_VT_X = """
from ftkvm.adapters.kvm_probe import of_this_host, signs
from ftkvm.core.checks.host import judge_kvm
print(judge_kvm(signs(frozenset({"vmx"}), of_this_host(), 30.0))[0])
"""


def test_why_its_processor_runs_no_guests(seat: Seat) -> None:
    """On this machine's true facts where it has them: no VT-x, a /dev/kvm that opens. Off in the firmware is not to be
    had here; a processor with VT-x is only said to be one."""
    host = seat.hosts[0]
    if host.succeeds(["grep", "-qwE", "vmx|svm", "/proc/cpuinfo"]):
        return

    def found() -> set[str]:
        return {each["code"] for each in seat.run("check", "host", host.name).out["findings"]} & KVM_CODES

    def with_vt_x() -> str:
        return host.run(["env", "PYTHONPATH=/opt/ftkvm", "python3", "-c", WITH_VT_X]).strip()

    deadline = time.monotonic() + 40
    while (there := found()) != {"FTKVM-224"} and time.monotonic() < deadline:
        time.sleep(1)
    assert (there, with_vt_x()) == ({"FTKVM-224"}, "cannot-run")
    move = "touch {1} && mount --bind {0} {1} && umount {0} && rm {0}"  # it is a mount, in a container
    host.run(["sh", "-c", move.format("/dev/kvm", "/dev/kvm.away")])
    try:
        assert (found(), with_vt_x()) == ({"FTKVM-221"}, "module-missing")
    finally:
        host.run(["sh", "-c", move.format("/dev/kvm.away", "/dev/kvm")])
    assert found() == {"FTKVM-224"}


@pytest.fixture
def nameless(seat: Seat) -> Iterator[Host]:
    """The second host, whose FT NIC has no address."""
    host, nic = seat.hosts[1], names.NETWORKS["ft"].nic
    host.run(["ip", "address", "flush", "dev", nic])
    host.run(["ip", "link", "set", nic, "down"])
    yield host
    host.run(["ip", "address", "replace", f"{names.host_address(host.name, 'ft')}/24", "dev", nic])
    host.run(["ip", "link", "set", nic, "mtu", "1500", "up"])


def nic_words(host: Host, mtu: int = 1500) -> tuple[str, str]:
    return "--nic", f"ft={names.NETWORKS['ft'].nic},{names.host_address(host.name, 'ft')}/24,mtu={mtu}"


def network_of(host: Host) -> str:
    """What the host has of the FT network: the NIC's state, MTU and address, the unit and the timer."""
    nic = names.NETWORKS["ft"].nic
    units = (
        "systemctl is-enabled ftkvm-nic-ft.service; systemctl is-active ftkvm-nic-ft.service ftkvm-nic-ft-revert.timer"
    )
    shown = f"cd /sys/class/net/{nic}; cat operstate mtu; ip -o -4 address show {nic} | grep -o 'inet [^ ]*'"
    return " ".join(host.run(["sh", "-c", f"{shown}; {units}; true"]).split())


def test_a_network_is_set_up_and_goes_again(seat: Seat, nameless: Host) -> None:
    """With frames that the switch does not take it is refused, and all is as it was."""
    host = nameless
    before, bare = configuration(host), network_of(host)
    assert bare == "down 1500 not-found inactive inactive"
    assert seat.add_host(host, "--nic", f"ft=mgmt0,{names.host_address(host.name, 'ft')}/24").code == "FTKVM-752"
    assert seat.add_host(host, *nic_words(host), "--dry-run").status == 0
    assert (configuration(host), network_of(host)) == (before, bare)
    refused = seat.add_host(host, *nic_words(host, 9000))
    assert (refused.code, seat.hosts[0].name in refused.err) == ("FTKVM-750", True), refused.err
    assert (configuration(host), network_of(host)) == (before, bare)
    assert seat.add_host(host, *nic_words(host)).status == 0
    address = names.host_address(host.name, "ft")
    assert network_of(host) == f"up 1500 inet {address}/24 enabled active inactive"
    assert seat.add_host(host, *nic_words(host)).out["steps"] == []
    seat.ok("host", "remove", host.name, "--address", seat.address(host))
    assert (configuration(host), network_of(host)) == (before, bare)


@pytest.mark.long
def test_a_network_that_cuts_us_off_goes_by_itself(seat: Seat, nameless: Host) -> None:
    """As if it had: the cable of the management network is out from the step on. Then it is simply run again."""
    host = nameless
    before, bare = configuration(host), network_of(host)
    words = ["host", "add", host.name, "--address", seat.address(host), *nic_words(host)]
    command = ["ip", "netns", "exec", names.CLIENT_NS, *FTKVM, *words]
    with subprocess.Popen(command, env=seat.environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        try:
            next(line for line in run.stderr if "set up the ft network" in line)
            network.set_port(host.name, "management", up=False)
            said = run.stderr.read()
            assert run.wait(120) != 0
            assert "FTKVM-753" in said or "FTKVM-209" in said or "FTKVM-210" in said
            until(lambda: network_of(host).startswith("down 1500 disabled inactive"), 90)
        finally:
            network.set_port(host.name, "management", up=True)
    assert seat.add_host(host, *nic_words(host)).status == 0
    seat.ok("host", "remove", host.name, "--address", seat.address(host))
    assert (configuration(host), network_of(host)) == (before, bare)


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(1)


def test_the_bridge_is_made_of_a_nic_and_goes_again(seat: Seat) -> None:
    """A NIC with the host's own address is refused. What comes after it fails (no packages): it goes again."""
    host = seat.hosts[1]
    bridge = "br-vm"
    host.run(["ip", "link", "delete", bridge])  # what the lab's image makes of its NIC vm0; no test after this has it
    before = configuration(host)
    assert seat.add_host(host).code == "FTKVM-213"
    assert seat.add_host(host, "--bridge-nic", "mgmt0").code == "FTKVM-391"
    assert seat.add_host(host, "--bridge-nic", "vm0", "--datastore-nfs", "storage:/srv").code == "FTKVM-209"
    assert configuration(host) == before
    shown = seat.add_host(host, "--bridge-nic", "vm0", "--dry-run")
    assert any("ip link set dev vm0 master br-vm" in line for view in shown.out["plan"] for line in view["difference"])
    assert configuration(host) == before
    assert seat.add_host(host, "--bridge-nic", "vm0").status == 0
    assert host.succeeds(["test", "-e", f"/sys/class/net/{bridge}/brif/vm0"])
    assert seat.ok("host", "add", host.name, "--address", seat.address(host), "--bridge-nic", "vm0")["steps"] == []
    seat.ok("host", "remove", host.name, "--address", seat.address(host))
    assert configuration(host) == before
    assert not host.succeeds(["test", "-e", f"/sys/class/net/{bridge}"])


def test_a_cluster_is_made_as_vagrant_makes_it(seat: Seat) -> None:
    """vagrant/cluster, on a host that has sshd and our key; run again it changes nothing. The last test: it stays."""
    host = seat.hosts[1]
    home = seat.home / "vagrant"
    home.mkdir()
    (home / "key").write_bytes((seat.home / ".ssh/id_ed25519").read_bytes())
    (home / "key").chmod(0o600)
    (home / "known_hosts").write_text(seat.known_hosts.read_text())
    datastore = seat.datastore / "vagrant"
    datastore.mkdir()
    management = seat.address(host)
    environment = dict(
        seat.environment, FTKVM_HOME=str(home), FTKVM_NETWORKS=management.rpartition(".")[0].rpartition(".")[0],
        FTKVM=str(Path(sys.executable).with_name("ftkvm")), FTKVM_DATASTORE=f"{seat.inside}/vagrant",
    )  # fmt: skip
    command = ["ip", "netns", "exec", names.CLIENT_NS, str(TREE / "vagrant/cluster"), f"{host.name}={management}=vm0"]
    host.run(["sh", "-c", "ip link delete br-vm 2>/dev/null; true"])
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr
        assert host.name in done.stdout.splitlines()[-1]
    assert "nothing had to be changed" in done.stdout
    assert host.succeeds(["test", "-e", "/sys/class/net/br-vm/brif/vm0"])
