"""The checks of hosts and of the cluster, each provoked alone."""

import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ftkvm.adapters import kvm_probe
from ftkvm.catalogue import CATALOGUE
from ftkvm.core.channels import Channel, Encryption, channels, unprotected
from ftkvm.core.checks import cluster, host
from ftkvm.core.checks.cluster import ClusterView, look
from ftkvm.core.checks.cpu import GROUPS, Cpu, alike, differences, group_of, parse, read_groups
from ftkvm.core.checks.host import CertificateSigns, HostView, Kvm, KvmSigns, Link, judge_kvm
from ftkvm.core.checks.model import Finding, Severity, run
from ftkvm.core.facts import DatastoreState
from ftkvm.core.placement import HostFacts, Refusal, VmNeeds, choose_secondary

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 106
model name\t: Intel(R) Xeon(R) Gold 6338
stepping\t: 6
flags\t\t: fpu vmx avx2 avx512f

processor\t: 1
vendor_id\t: nobody
"""
CPU = parse(CPUINFO)
WORKS = KvmSigns(flag=True, device=True, guest_error="")
LINKS = {
    "management": Link("eno1", 1000, 1500),
    "ft": Link("ens1", 10000, 9000),
    "migration": Link("ens2", 10000, 9000),
}
GOOD = HostView("h1", CPU, "Intel Ice Lake", WORKS, 3500, "performance", LINKS, (11, 1, 3), (11, 3, 0), "0.3")
FACTS = HostFacts("h1", True, DatastoreState.OK, "11.1.3", "11.3.0", CPU.fingerprint, 4000)


def codes(view: HostView) -> list[tuple[str, str]]:
    found = run("host h1", host.CHECKS, view, host="h1").findings
    for each in found:
        assert "<" not in each.error().text.replace("</", "")  # every placeholder is given
    return [(each.code, str(each.severity)) for each in found]


def test_the_first_processor_is_read() -> None:
    assert (CPU.vendor, CPU.family, CPU.model, CPU.stepping) == ("GenuineIntel", 6, 106, 6)
    assert CPU.flags == {"fpu", "vmx", "avx2", "avx512f"}
    found = group_of(CPU)
    assert found is not None and found.name == "Intel Ice Lake"


def test_one_way_for_heartbeats_or_none_to_ping_is_told() -> None:
    two = replace(GOOD, name="h2")
    facts = {"h1": FACTS, "h2": replace(FACTS, name="h2")}
    one = ClusterView((GOOD, two), facts, ha_networks=("management",), isolation_addresses=())
    assert [code for code, severity in found_in(one) if severity is Severity.WARNING] == ["FTKVM-245", "FTKVM-246"]
    assert found_in(replace(one, ha_networks=("management", "migration"), isolation_addresses=("10.0.0.1",))) == []


def test_good() -> None:
    assert codes(GOOD) == []


@pytest.mark.parametrize(("signs", "state"), [
    (WORKS, Kvm.WORKS),
    (KvmSigns(flag=False, device=True, guest_error=""), Kvm.WORKS),  # a guest that ran decides
    (KvmSigns(), Kvm.CPU_CANNOT),
    (KvmSigns(raw=False), Kvm.CPU_CANNOT),
    (KvmSigns(raw=True), Kvm.FIRMWARE_OFF),  # newer kernels hide the flag then
    (KvmSigns(flag=True, log_says_off=True), Kvm.FIRMWARE_OFF),
    (KvmSigns(flag=True), Kvm.MODULE_MISSING),
    (KvmSigns(flag=True, device=True, open_error="Permission denied"), Kvm.MODULE_MISSING),
    (KvmSigns(flag=True, device=True, guest_error="ioctl(KVM_CREATE_VM) failed"), Kvm.CANNOT_RUN),
    (KvmSigns(device=True, guest_error="did not end"), Kvm.CANNOT_RUN),
    (KvmSigns(flag=True, device=True), Kvm.UNKNOWN),
])  # fmt: skip
def test_four_reasons_why_guests_do_not_run(signs: KvmSigns, state: Kvm) -> None:
    assert judge_kvm(signs)[0] is state


@pytest.mark.parametrize(("line", "off"), [
    # texts of users' reports and of Linux 6.x's sources, published; the numbers before them are made up
    ("3,1021,4802901,-;kvm: disabled by bios", True),
    ("4,55,55225,-;x86/cpu: VMX (outside TXT) disabled by BIOS", True),
    ("3,900,5012345,-;kvm_intel: VMX not enabled (by BIOS) in MSR_IA32_FEAT_CTL on CPU 1", True),
    ("3,900,5012345,-;kvm_intel: VMX not fully enabled on CPU 1.  Check kernel logs and/or BIOS", True),
    ("3,900,5012345,-;kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR on CPU 0", True),
    ("5,200,301000,-;SVM disabled (by BIOS) in MSR_VM_CR", True),
    ("3,900,5012345,-;kvm_amd: SVM not supported by CPU 1", False),
    ("3,900,5012345,-;kvm_intel: VMX not supported by CPU 1", False),
    ("4,56,55300,-;x86/cpu: SGX disabled by BIOS.", False),
])  # fmt: skip
def test_what_the_kernel_says_of_a_firmware_that_keeps_it_off(line: str, off: bool) -> None:
    assert kvm_probe.says_off(line) is off


def test_each_of_the_four_has_its_own_code_and_remedy() -> None:
    """What to do differs: another host, the firmware's setup, `modprobe`, or the host below."""
    four = (KvmSigns(), KvmSigns(raw=True), KvmSigns(flag=True), KvmSigns(device=True, guest_error="failed"))
    found = [code for signs in four for code, _severity in codes(replace(GOOD, kvm=signs))]
    assert len({CATALOGUE[code].remedy for code in found}) == len(set(found)) == len(four)


@pytest.mark.parametrize(("changed", "code", "severity"), [
    ({"kvm": KvmSigns()}, "FTKVM-221", "error"),
    ({"kvm": KvmSigns(raw=True)}, "FTKVM-222", "error"),
    ({"kvm": KvmSigns(flag=True)}, "FTKVM-223", "error"),
    ({"kvm": KvmSigns(device=True, guest_error="failed")}, "FTKVM-224", "error"),
    ({"kvm": KvmSigns(flag=True, device=True)}, "FTKVM-239", "warning"),
    ({"cpu_group": ""}, "FTKVM-226", "warning"),
    ({"maintenance": True}, "FTKVM-659", "error"),
    ({"trouble": Finding("FTKVM-301", {"host": "h1", "path": "/srv/ft"})}, "FTKVM-301", "error"),
    ({"qemu": (10, 0, 6)}, "FTKVM-207", "error"),
    ({"libvirt": (10, 9, 0)}, "FTKVM-208", "error"),
    ({"missing_bridges": ("br-vm",)}, "FTKVM-213", "error"),
    ({"certificate": CertificateSigns(days_left=-1)}, "FTKVM-329", "error"),
    ({"certificate": CertificateSigns(days_left=59)}, "FTKVM-329", "warning"),
    ({"certificate": CertificateSigns(days_left=900, revoked=True)}, "FTKVM-335", "error"),
    ({"certificate": CertificateSigns(error="no such file")}, "FTKVM-336", "error"),
    ({"links": {"management": LINKS["management"], "migration": LINKS["migration"]}}, "FTKVM-227", "error"),
    ({"links": {**LINKS, "ft": replace(LINKS["ft"], nic="eno1")}}, "FTKVM-228", "warning"),
    ({"links": {**LINKS, "migration": replace(LINKS["migration"], nic="ens1")}}, "FTKVM-228", "warning"),
    ({"links": {**LINKS, "ft": Link("ens1", 100, 9000)}}, "FTKVM-229", "error"),
    ({"links": {**LINKS, "ft": Link("ens1", 10000, 1500)}}, "FTKVM-230", "warning"),
])  # fmt: skip
def test_each_finding(changed: dict[str, object], code: str, severity: str) -> None:
    assert codes(replace(GOOD, **changed)) == [(code, severity)]  # type: ignore[arg-type]


def test_the_cluster_may_allow_emulation_and_that_is_told() -> None:
    view = replace(GOOD, kvm=KvmSigns(), emulation=True)
    assert codes(view) == [("FTKVM-221", "warning"), ("FTKVM-225", "warning")]


def test_speed_that_is_not_known_is_no_finding() -> None:
    assert codes(replace(GOOD, links={**LINKS, "ft": Link("veth0", 0, 9000)})) == []


def test_a_host_survives_the_wire() -> None:
    said = {"name": "h1", "cpu": {**asdict(CPU), "flags": sorted(CPU.flags)}, "cpu_group": "Intel Ice Lake",
            "kvm": asdict(WORKS), "mhz": 3500, "governor": "performance",
            "links": {kind: asdict(link) for kind, link in LINKS.items()}, "qemu": [11, 1, 3], "libvirt": [11, 3, 0],
            "ftkvm": "0.3", "trouble": None, "missing_bridges": []}  # fmt: skip
    assert HostView.from_json(said, maintenance=False, emulation=False) == GOOD
    lost = {"frames_lost": {"ft": ["h2"]}}
    assert HostView.from_json({**said, **lost}, maintenance=False, emulation=False).frames_lost == {"ft": ("h2",)}
    certificate = {"error": None, "days_left": 800, "revoked": False}
    assert HostView.from_json({**said, "certificate": certificate}, maintenance=False, emulation=False) == replace(
        GOOD, certificate=CertificateSigns(800)
    )


def two(**changed: object) -> ClusterView:
    other = replace(GOOD, name="h2", **changed)  # type: ignore[arg-type]
    return ClusterView((GOOD, other), {"h1": FACTS, "h2": replace(FACTS, name="h2")})


def found_in(view: ClusterView) -> list[tuple[str, Severity]]:
    found = look("lab", view).findings
    for each in found:
        assert "<" not in each.error().text
    return [(each.code, each.severity) for each in found]


def test_a_good_cluster() -> None:
    assert found_in(two()) == []


@pytest.mark.parametrize(("view", "code", "severity"), [
    (replace(two(), silent={"h3": Finding("FTKVM-202", {"host": "h3", "detail": "x"})}), "FTKVM-202", Severity.ERROR),
    (replace(two(), ha=False), "FTKVM-231", Severity.WARNING),
    (replace(two(), host_monitoring=False), "FTKVM-231", Severity.WARNING),
    (two(qemu=(11, 2, 0)), "FTKVM-235", Severity.WARNING),
    (two(ftkvm="0.4"), "FTKVM-235", Severity.WARNING),
    (two(mhz=3000), "FTKVM-236", Severity.WARNING),
    (replace(two(), size=2), "FTKVM-247", Severity.WARNING),
    (two(ft_copies=5), "FTKVM-248", Severity.WARNING),
    (two(governor="powersave"), "FTKVM-236", Severity.WARNING),
    (two(links={**LINKS, "migration": Link("ens2", 10000, 1500)}), "FTKVM-237", Severity.WARNING),
    (two(frames_lost={"ft": ("h1",), "migration": ("h3",)}), "FTKVM-750", Severity.ERROR),
    (two(cpu=replace(CPU, stepping=7)), "FTKVM-234", Severity.WARNING),
    (replace(two(), hosts=tuple(replace(each, certificate=CertificateSigns(800, beat_keys=number))
                                for each, number in zip(two().hosts, (3, 4), strict=True))),
     "FTKVM-339", Severity.WARNING),
    (replace(two(), hosts=tuple(replace(each, certificate=CertificateSigns(800, beat_keys=5)) for each in two().hosts)),
     "FTKVM-339", Severity.WARNING),
    (replace(two(), channels=(Channel("a", "ft", "TLS"), Channel("b", "ft"))), "FTKVM-340", Severity.WARNING),
])  # fmt: skip
def test_each_finding_of_the_cluster(view: ClusterView, code: str, severity: Severity) -> None:
    assert found_in(view) == [(code, severity)]


def test_frames_that_are_lost_since_the_nics_differ_are_told_once() -> None:
    """Both ends see it; and of NICs with different MTUs it is known why."""
    lost = {"migration": ("h1", "h2")}
    both = two(frames_lost=lost)
    assert found_in(replace(both, hosts=(replace(GOOD, frames_lost=lost), *both.hosts[1:]))) == [
        ("FTKVM-750", Severity.ERROR)]  # fmt: skip
    smaller = two(frames_lost=lost, links={**LINKS, "migration": Link("ens2", 10000, 1500)})
    assert found_in(smaller) == [("FTKVM-237", Severity.WARNING)]


def test_what_is_not_encrypted_is_on_networks_of_its_own() -> None:
    assert unprotected(channels(Encryption())) == {}
    assert set(unprotected(channels(Encryption(ft=False)))) == {"ft"}
    assert set(unprotected(channels(Encryption(ft=False, migration=False)))) == {"ft", "migration"}


def test_hosts_that_placement_refuses_make_no_pair() -> None:
    other = replace(FACTS, name="h2", qemu_version="11.2.0")
    assert found_in(replace(two(), facts={"h1": FACTS, "h2": other})) == [
        ("FTKVM-232", Severity.WARNING), ("FTKVM-233", Severity.ERROR)]  # fmt: skip
    assert found_in(ClusterView((GOOD,), {"h1": FACTS})) == [("FTKVM-233", Severity.ERROR)]


def test_processors_differ_feature_by_feature() -> None:
    other = replace(CPU, model=85, flags=CPU.flags - {"avx512f"} | {"amx"})
    assert differences(CPU, other) == ["model 106 and 85", "only the first has avx512f", "only the second has amx"]


OWN = """[[group]]
name = "our Xeons"
vendor = "GenuineIntel"
families = [6]
models = [85, 106]
mixed = true
"""


def test_an_operators_group_lets_its_models_be_paired() -> None:
    other = replace(CPU, model=85)
    groups = read_groups(OWN)
    assert [group_of(each, groups) for each in (CPU, other)] == [groups[0], groups[0]]
    assert not alike(CPU.fingerprint, other.fingerprint)
    assert alike(CPU.fingerprint, other.fingerprint, "our Xeons", "our Xeons")
    assert not alike(CPU.fingerprint, replace(other, flags=CPU.flags | {"amx"}).fingerprint, "our Xeons", "our Xeons")
    here, there = replace(FACTS, free_memory_mb=9000), replace(FACTS, name="h2", cpu=other.fingerprint)
    needs = VmNeeds("vm1", "h1", 512)
    assert choose_secondary([here, there], needs).refusals["h2"] == (Refusal.CPU,)
    mixed = [replace(each, cpu_group="our Xeons") for each in (here, there)]
    assert choose_secondary(mixed, needs).host == "h2"


@pytest.mark.parametrize("text", ["[[group]]\nname='x'", "nonsense", "[[group]]\nname=1\nvendor='x'\nfamilies=['a']"])
def test_a_file_that_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="Error"):
        read_groups(text)


def test_known_groups_are_never_mixed() -> None:
    assert not any(group.mixed for group in GROUPS)
    assert group_of(Cpu("CentaurHauls", 7, 27)) is None


def qemu_that(directory: Path, does: str) -> str:
    """A program in QEMU's place."""
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("exec sleep 60", "did not begin within 0.3 s"),
        ("printf b; exec sleep 60", "began, and did not count to 5000000 within 0.2 s"),
        ("printf b; exit 99", ""),
        ("exit 99", ""),
        ("echo 'ioctl(KVM_CREATE_VM) failed' >&2; exit 1", "ioctl(KVM_CREATE_VM) failed"),
        ("exit 0", "ended with status 0"),
    ],
)
def test_what_becomes_of_the_guest(tmp_path: Path, does: str, says: str) -> None:
    found = kvm_probe.run_guest("kvm", kvm_probe.Limits(0.3, 0.2), qemu_that(tmp_path, does))
    assert found.endswith(says)
    assert bool(found) is bool(says)


def test_a_qemu_that_is_not_there_says_so() -> None:
    assert "No such file" in kvm_probe.run_guest("kvm", kvm_probe.Limits(), "/nowhere/qemu")


def test_a_host_without_room_for_the_guest_says_so() -> None:
    def run() -> str:
        raise OSError(28, "No space left on device")

    assert "No space left" in str(kvm_probe.Probe(run).error(10))


def test_the_guest_is_run_beside_who_asks_and_remembered() -> None:
    """Who asks waits no longer than he says; afterwards the answer is there at once, until it is old."""
    go_on, runs = threading.Event(), []

    def run() -> str:
        runs.append(1)
        assert go_on.wait(10)
        return f"answer {len(runs)}"

    probe = kvm_probe.Probe(run, lifetime_s=0.2)
    assert probe.error(0.01) is None
    assert probe.error(0.01) is None
    go_on.set()
    assert (probe.error(10), len(runs)) == ("answer 1", 1)
    assert (probe.error(0), len(runs)) == ("answer 1", 1)
    time.sleep(0.25)
    go_on.clear()
    assert (probe.error(0), len(runs)) == ("answer 1", 2)  # old: told, and tried again
    go_on.set()
    deadline = time.monotonic() + 10
    while probe.error(0) != "answer 2":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_guest_begins_with_a_jump_to_its_code() -> None:
    rom = kvm_probe.rom()
    assert len(rom) == 65536
    assert rom[0xFFF0] == 0xE9
    body = (0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little", signed=True)) & 0xFFFF
    assert rom[body : body + 6] == b"\xb0\x62\xe6\xe9\x66\xb9"
    assert rom[body + 14 :].startswith(b"\xb0\x31\xe6\xf4\xf4")


def test_every_check_is_named_once() -> None:
    names = [check.name for check in (*host.CHECKS, *cluster.CHECKS)]
    assert len(names) == len(set(names))
