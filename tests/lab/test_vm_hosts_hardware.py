"""What only hosts with a kernel and a CPU of their own can show: a true freeze, and processors that differ.

Its hosts are three VMs of a lab of their own, so it wants a name for that: ``FTKVM_FULL=1 FTKVM_LAB=vms pytest …``. A
lab of VMs that is up under this name is used and left; its hosts must be in no cluster yet.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, faults, lab, names, operator
from ftkvm.lab.guest import domain
from ftkvm.lab.stage import Stage
from ftkvm.lab.system import run, wait_for

from .conftest import FULL

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(not FULL, reason="takes a quarter of an hour: FTKVM_FULL=1"),
    pytest.mark.skipif(not names.NAME, reason="wants a lab of its own: FTKVM_LAB=NAME"),
]

KVM_CODES = {"FTKVM-221", "FTKVM-222", "FTKVM-223", "FTKVM-224", "FTKVM-239"}
FROZEN_S = 60
"""As long it would stand still, in the hosts' time, if nothing ended it."""
VM_CR = """
import os
msr = os.open("/dev/cpu/0/msr", os.O_RDWR)
os.pwrite(msr, (0x10).to_bytes(8, "little"), 0xC0010114)
print(int.from_bytes(os.pread(msr, 8, 0xC0010114), "little"))
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Three hosts that are VMs and one cluster; host2 is the one that gets other hardware."""
    mine = lab.standing() is None
    lab.up(3, None, print, lab.VMS)
    made = Stage(("host1", "host2", "host3"), time_dilation=lab.record().time_dilation)
    try:
        made.create_cluster(print)
        for host in made.hosts:
            wait_well(made, host)
        yield made
    finally:
        if mine:
            lab.down(print)


def wait_well(stage: Stage, host: str) -> None:
    """Until the host is of use; while one boots on a busy machine, nobody may answer for a moment."""
    deadline = time.monotonic() + 120 * stage.patience
    while True:
        try:
            return stage.wait_usable(host)
        except FtkvmError:
            if time.monotonic() > deadline:
                raise
            time.sleep(5)


def sent(host: str) -> int:
    """How many frames a host has sent on all its cables, as the switches counted them."""
    links = [names.port(host, network) for network in names.NETWORKS]
    shown = [run(["ip", "-n", names.SWITCH_NS, "-j", "-s", "link", "show", "dev", link]) for link in links]
    return sum(int(json.loads(each)[0]["stats64"]["rx"]["packets"]) for each in shown)


def rebooted(stage: Stage, host: str, **parts: str) -> None:
    """Begins anew with other hardware."""
    faults.change_hardware(host, parts)
    if lab.host(host).running:
        faults.crash(host)
    faults.start(host)
    wait_well(stage, host)


def findings(stage: Stage, *what: str) -> list[dict[str, Any]]:
    """Those of ``ftkvm check``, also where it says by its exit status that something is wrong."""
    command = operator.command([sys.executable, "-m", "ftkvm.cli", "check", *what, "--output", "json"])
    environment = {**stage.environment(), "FTKVM_HOME": str(stage.home)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return list(json.loads(done.stdout)["findings"])


def kvm_findings(stage: Stage, host: str) -> set[str]:
    """What `check host` says of KVM, once a guest was tried if one can be."""
    deadline = time.monotonic() + 60 * stage.patience
    while True:
        found = {each["code"] for each in findings(stage, "host", host)} & KVM_CODES
        if found != {"FTKVM-239"} or time.monotonic() > deadline:
            return found
        time.sleep(2)


def test_a_frozen_host_is_silent_and_its_watchdog_ends_it(stage: Stage) -> None:
    host, pace = lab.host("host2"), lab.record().time_dilation
    wait_for("the watchdog to be armed", lambda: host.watchdog_state() == "armed", 60 * stage.patience)
    faults.freeze("host2")
    began, before = time.monotonic(), sent("host2")
    assert host.state == "frozen" and not host.cgroup.frozen
    assert host.watchdog_state() == "armed"
    while host.running and time.monotonic() - began < FROZEN_S * pace:
        time.sleep(0.1)
    took_s = (time.monotonic() - began) / pace
    frames = sent("host2") - before
    print(f"the watchdog ended host2 {took_s:.1f} s of its time after the freeze; frames sent meanwhile: {frames}")
    assert host.state == "off" and devices.fired("host2") and took_s < 15
    assert frames == 0
    faults.start("host2")
    wait_well(stage, "host2")


def test_it_stands_still_with_its_watchdog_and_goes_on(stage: Stage) -> None:
    host = lab.host("host2")
    wait_for("the watchdog to be armed", lambda: host.watchdog_state() == "armed", 60 * stage.patience)
    faults.freeze("host2", watchdog_too=True)
    assert (host.state, host.watchdog_state()) == ("frozen", "suspended")
    time.sleep(10 * lab.record().time_dilation)
    faults.thaw("host2")
    assert not host.frozen
    wait_well(stage, "host2")
    assert not devices.fired("host2")


def test_one_host_switches_the_other_off(stage: Stage) -> None:
    def asked(action: str, plug: str) -> str:
        words = f"printf 'action={action}\\nplug={plug}\\n' | fence_ftkvm_lab; echo $?"
        return lab.host("host1").run(["sh", "-c", words], timeout_s=60).strip()

    stage.ftkvm("host", "fence", "host2", "agent=fence_ftkvm_lab", "plug=host2")
    assert [asked("status", plug) for plug in ("host2", "host8", "../host1")] == ["0", "1", "1"]
    assert asked("off", "host2") == "0"
    assert lab.host("host2").state == "off" and not devices.fired("host2")
    assert asked("status", "host2") == "2"


def test_a_processor_that_cannot(stage: Stage) -> None:
    rebooted(stage, "host2", cpu="-svm")
    assert kvm_findings(stage, "host2") == {"FTKVM-221"}


def test_a_firmware_that_keeps_it_off_and_why_it_is_only_played(stage: Stage) -> None:
    """An emulated CPU forgets what is written to MSR VM_CR, so no firmware could keep SVM off. The kernel is told to
    hide the flag instead, which is what a newer one does when it reads there that SVM is off; CPUID still shows it."""
    rebooted(stage, "host2", cpu="", kernel="clearcpuid=svm")
    host = lab.host("host2")
    host.run(["modprobe", "-a", "msr", "cpuid"])
    assert host.run(["python3", "-c", VM_CR]).strip() == "0"
    assert not host.succeeds(["grep", "-qw", "svm", "/proc/cpuinfo"])
    assert kvm_findings(stage, "host2") == {"FTKVM-222"}


def test_a_module_that_is_missing_and_another_processor(stage: Stage) -> None:
    """A host that differs is named with its features, refused for a secondary, and passed over for another host."""
    rebooted(stage, "host2", cpu="EPYC", kernel="module_blacklist=kvm_amd")
    assert kvm_findings(stage, "host2") == {"FTKVM-223"}
    found = findings(stage, "cluster")
    differ = [each["params"]["differences"] for each in found if each["code"] == "FTKVM-234"]
    print("check cluster:", differ)
    assert len(differ) == 2  # from host1's and from host3's
    assert all("model" in each and "la57" in each for each in differ)
    stage.ftkvm("cluster", "set", "ha.admission_control=off")  # no room is kept for a host that runs no guests
    guest = domain.create("vm1", lab.host("host1"), "256M", 128, 1)
    stage.ftkvm("vm", "register", guest.name, "--host", "host1")
    stage.ftkvm("vm", "start", guest.name, "--host", "host1")
    with pytest.raises(FtkvmError) as caught:
        stage.ftkvm("enable", guest.name, "--secondary", "host2")
    print("enable:", caught.value)
    assert "FTKVM-404" in str(caught.value) and "host2: cpu" in str(caught.value)
    stage.ftkvm("enable", guest.name)
    pair = stage.wait_protected(guest.name, 90)
    assert (pair["host"], pair["secondary_host"]) == ("host1", "host3")
