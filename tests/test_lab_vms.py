"""The lab's hosts that are VMs: their hardware and files as they are told to QEMU and systemd."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, faults, lab, names, record, system
from ftkvm.lab.host import Host
from ftkvm.lab.vm import cpus, dilation, hardware, layer, machine
from ftkvm.lab.vm.host import VmHost


def made(tmp_path: Path, *, watchdog: bool = True, accelerator: str = "tcg") -> machine.Machine:
    (tmp_path / "boot").mkdir(exist_ok=True)
    (tmp_path / "boot/vmlinuz-6.12").touch()
    return machine.Machine("host2", "id", tmp_path, tmp_path / "disk.raw", 1024, accelerator, watchdog)


@pytest.mark.parametrize(("accelerator", "cpu"), [("tcg", "max,+svm"), ("kvm", "host")])
def test_a_host_shows_its_guests_a_cpu_that_can_kvm(tmp_path: Path, accelerator: str, cpu: str) -> None:
    words = machine.qemu_command(made(tmp_path, accelerator=accelerator))
    assert words[words.index("-cpu") + 1] == cpu
    assert f"accel={accelerator}" in words[words.index("-machine") + 1]


def test_its_four_nics_are_on_its_own_ports_with_its_own_addresses(tmp_path: Path) -> None:
    words = machine.qemu_command(made(tmp_path))
    taps = [word for word in words if word.startswith("tap,")]
    nics = [word for word in words if word.startswith("virtio-net-pci,")]
    assert len(taps) == len(nics) == len(names.NETWORKS)
    for network, tap, nic in zip(names.NETWORKS, taps, nics, strict=True):
        assert f"ifname={names.port('host2', network)}," in tap
        assert f"mac={names.mac('host2', network)}," in nic


def test_the_watchdog_is_told_of_outside_and_can_be_left_out(tmp_path: Path) -> None:
    """QEMU does nothing of its own about it: that would wait for CPUs that may be stopped."""
    words = machine.qemu_command(made(tmp_path))
    assert "i6300esb,addr=0x10" in words and words[words.index("-action") + 1] == "watchdog=none"
    monitors = [
        words[at + 1].removeprefix("unix:").partition(",")[0] for at, word in enumerate(words) if word == "-qmp"
    ]
    assert monitors == [str(machine.monitor_socket("host2")), str(devices.directory("host2") / devices.EVENTS)]
    assert not any("i6300esb" in word for word in machine.qemu_command(made(tmp_path, watchdog=False)))


@pytest.mark.parametrize(("asked", "told"), [
    ("", "max,+svm"), ("EPYC", "EPYC"), ("max,-svm", "max,-svm"), ("-avx2", "max,+svm,-avx2"),
])  # fmt: skip
def test_one_host_has_another_cpu(tmp_path: Path, asked: str, told: str) -> None:
    words = machine.qemu_command(replace(made(tmp_path), hardware=hardware.Hardware(asked, "module_blacklist=kvm_amd")))
    assert words[words.index("-cpu") + 1] == told
    assert words[words.index("-append") + 1] == f"{machine.KERNEL_WORDS} module_blacklist=kvm_amd"


def test_what_hardware_a_host_has_is_remembered_part_by_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(names, "HOSTS", tmp_path)
    (tmp_path / "host2").mkdir()
    assert hardware.read("host2") == hardware.Hardware()
    hardware.change("host2", {"cpu": "EPYC"})
    hardware.change("host2", {"kernel": "clearcpuid=svm quiet"})
    assert hardware.read("host2") == hardware.Hardware("EPYC", "clearcpuid=svm quiet")
    assert hardware.change("host2", {"cpu": ""}) == hardware.Hardware("", "clearcpuid=svm quiet")
    refused = {"gpu": ("one", "FTKVM-707"), "cpu": ("max;x", "FTKVM-749"), "kernel": ("a\nb", "FTKVM-749")}
    for part, (value, code) in [*refused.items(), ("cpu", ("max -S", "FTKVM-749"))]:
        with pytest.raises(FtkvmError) as caught:
            hardware.change("host2", {part: value})
        assert caught.value.code == code
    assert hardware.read("host2") == hardware.Hardware("", "clearcpuid=svm quiet")


def test_a_container_has_no_hardware_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "host", Host)
    with pytest.raises(FtkvmError) as caught:
        faults.change_hardware("host1", {"cpu": "EPYC"})
    assert caught.value.code == "FTKVM-748"


class Silent:
    """A QEMU whose main loop is blocked in its first ``blocked`` freezes."""

    def __init__(self, blocked: int, told: list[str]) -> None:
        self.blocked, self.told = blocked, told

    def __call__(self, command: str, timeout_s: float = 20) -> list[dict[str, int]]:
        if command == "query-status" and self.told.count("freeze") <= self.blocked:
            raise TimeoutError
        return [{"thread-id": 7}, {"thread-id": 8}]

    def close(self) -> None:
        self.told.append("close")


@pytest.mark.parametrize("blocked", [0, 2, cpus.TRIES])
def test_cpus_that_were_stopped_with_qemus_lock_in_hand_are_let_go(
    monkeypatch: pytest.MonkeyPatch, blocked: int
) -> None:
    told: list[str] = []
    monkeypatch.setattr(cpus, "Qmp", lambda path: Silent(blocked, told))
    monkeypatch.setattr(cpus, "PAUSE_S", 0)
    monkeypatch.setattr(cpus.Cpus, "freeze", lambda self, on: told.append("freeze" if on else "thaw"))
    monkeypatch.setattr(cpus.Cpus, "_take", lambda self, threads: told.append(f"take {list(threads)}"))
    once, well = ["take [7, 8]", "freeze", "thaw", "close"], ["take [7, 8]", "freeze", "close"]
    if blocked == cpus.TRIES:
        with pytest.raises(FtkvmError) as caught:
            cpus.Cpus("host2").stop()
        assert caught.value.code == "FTKVM-710" and told == once * blocked
    else:
        cpus.Cpus("host2").stop()
        assert told == once * blocked + well


@pytest.mark.parametrize(("whole", "only_cpus"), [(False, False), (True, True), (False, True)])
def test_both_kinds_of_frozen_are_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bool, only_cpus: bool
) -> None:
    monkeypatch.setattr(system, "cgroup2_root", lambda: tmp_path)
    host = VmHost("host2")
    host.cpus.path.mkdir(parents=True)
    for group, frozen in ((host.cgroup, whole), (host.cpus, only_cpus)):
        (group.path / "cgroup.events").write_text(f"populated 1\nfrozen {frozen:d}\n")
        (group.path / "cgroup.freeze").write_text("0\n")
    assert (host.frozen, host.cgroup.frozen) == (whole or only_cpus, whole)
    (host.cgroup.path / "cgroup.events").write_text(f"populated 0\nfrozen {whole:d}\n")
    assert not host.frozen  # it was frozen, and has lost its power
    thawed: list[str] = []
    monkeypatch.setattr(system.Cgroup, "freeze", lambda group, on: thawed.append(f"{group.path.name} {on}"))
    host.thaw()
    # The whole first: nothing in it runs, whatever its CPUs are told, until it does.
    assert thawed == [f"{names.netns('host2')} False", "cpus False"]
    host.cpus.let_go()
    host.cpus.path = tmp_path / "never made"
    host.cpus.let_go()
    assert len(thawed) == 3


def test_kvm_is_used_where_the_cpu_says_that_it_can(tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    kvm.touch()
    assert machine.accelerator("flags\t\t: fpu svm sse\n", kvm) == "kvm"
    assert machine.accelerator("flags\t\t: fpu sse\n", kvm) == "tcg"  # it opens, and that says nothing
    assert machine.accelerator("flags\t\t: fpu vmx\n", tmp_path / "none") == "tcg"


def test_networkd_names_each_nic_by_its_address_and_gives_it_the_hosts() -> None:
    files = layer.nic_files("host2")
    for network in names.NETWORKS.values():
        link = files[f"/etc/systemd/network/10-{network.nic}.link"]
        assert names.mac("host2", network.name) in link and f"Name={network.nic}\n" in link
    for name in names.HOST_NETWORKS:
        text = files[f"/etc/systemd/network/20-{names.NETWORKS[name].nic}.network"]
        assert f"Address={names.host_address('host2', name)}/24\n" in text
        assert ("Gateway=" in text) == (name == "management")
    assert not any("vm0.network" in name for name in files)  # only bridged: the host is silent there


def test_a_lab_stays_of_one_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "lab.json"
    old.write_text(json.dumps({"hosts": 3, "memory_mib": None, "image": "x"}))  # of a version without VMs
    monkeypatch.setattr(record, "RECORD", old)
    assert lab.record().hosts_as == lab.CONTAINERS
    with pytest.raises(FtkvmError) as caught:
        lab.up(3, None, print, lab.VMS)
    assert caught.value.code == "FTKVM-740"
    old.write_text(json.dumps({"hosts": 1, "memory_mib": None, "image": "x", "hosts_as": "vms"}))
    assert [type(each) for each in lab.hosts()] == [VmHost]


@pytest.mark.parametrize(("asked", "code"), [((lab.CONTAINERS, 8.0), "FTKVM-742"), ((lab.VMS, 4.0), "FTKVM-743")])
def test_a_labs_clocks_go_at_one_pace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: tuple[str, float], code: str
) -> None:
    there = tmp_path / "lab.json"
    there.write_text(
        json.dumps({"hosts": 1, "memory_mib": None, "image": "x", "hosts_as": asked[0], "time_dilation": 8})
    )
    monkeypatch.setattr(record, "RECORD", there)
    with pytest.raises(FtkvmError) as caught:
        lab.up(1, None, print, *asked)
    assert caught.value.code == code


def test_emulated_hosts_see_slower_clocks_and_hosts_on_hardware_the_real_ones(tmp_path: Path) -> None:
    slow = replace(made(tmp_path), time_dilation=8.0)
    words = machine.qemu_command(slow)
    assert words[words.index("--preload") + 1].endswith("libfaketimeMT.so.1")
    assert machine.environment(slow)["FAKETIME"] == "+0 x0.125000"
    assert "--preload" not in machine.qemu_command(made(tmp_path)) and machine.environment(made(tmp_path)) == {}
    assert dilation.default("tcg") > 1 and dilation.default("kvm") == 1


def test_a_second_lab_shares_no_name_with_the_first() -> None:
    script = "from ftkvm.lab import names; print(names.PREFIX, names.STATE, names.netns('host1'))"
    second = dict(os.environ, FTKVM_LAB="other")
    said = subprocess.run([sys.executable, "-c", script], env=second, capture_output=True, text=True, check=True)
    prefix, state, namespace = said.stdout.split()
    assert state == "/var/lib/ftkvm-lab-other" and namespace.startswith(prefix)
    assert not prefix.startswith("ftlab-")  # by which the first one's clean-up finds what is its own
