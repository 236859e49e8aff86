"""Whatever is refused leaves everything byte for byte as it was: domains, disks and pairs (issue 4, FT-16)."""

import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ftkvm.catalogue import CATALOGUE, FtkvmError
from ftkvm.lab import faults, network
from ftkvm.lab.host import Host

from .disk import Disk, image_of
from .seat import HOUSEKEEPING, Said, Seat, seated

pytestmark = pytest.mark.lab

VM = "r1"


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    """Three hosts, and a VM that runs on the first."""
    with seated(tmp_path_factory.mktemp("seat"), "host61", "host62", "host63") as made:
        made.add_all_hosts()
        made.define(made.hosts[0], VM)
        made.ok("vm", "register", VM, "--host", made.hosts[0].name)
        made.ok("vm", "start", VM, "--host", made.hosts[0].name)
        made.wait_hosts()
        yield made


@pytest.fixture
def pair(seat: Seat) -> dict[str, Any]:
    """The VM is protected; its pair."""
    if not seat.vm(VM)["ft"]:
        seat.ok("enable", VM)
    return seat.wait_protected(VM, timeout_s=90)


def everything(seat: Seat) -> dict[str, object]:
    """All that a refusal must leave: live and stored definitions, QEMUs, images, records, what `vm show` says."""
    found: dict[str, object] = {}
    for path in sorted(seat.datastore.rglob("*")):
        if path.is_file() and not HOUSEKEEPING & set(path.parts):
            found[str(path.relative_to(seat.datastore))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for host in seat.hosts:
        found[f"domains of {host.name}"] = host.run(["virsh", "list", "--all", "--name"]).split()
        if VM in host.run(["virsh", "list", "--name"]).split():
            found[f"XML on {host.name}"] = host.run(["virsh", "dumpxml", VM])
            found[f"QEMU on {host.name}"] = faults.qemu_pids(host, VM)
    shown = seat.vm(VM)
    pair = (shown["pair"] or {}) if shown["ft"] else {}
    keys = ("state", "reason", "epoch", "host", "secondary_host", "operation", "last_failover")
    found["shown"] = (
        {key: shown[key] for key in ("host", "state", "ft", "ft_disabled")},
        {k: pair.get(k) for k in keys},
    )
    found["settings"] = seat.ok("vm", "show", VM)
    found["failovers"] = seat.ok("history", VM)["failovers"]
    return found


@contextmanager
def untouched(seat: Seat, *, begun: bool = False) -> Iterator[None]:
    """``begun``: what is undone inside had noted its wish: the VM's record has more versions, all alike."""

    def seen() -> dict[str, object]:
        return {key: value for key, value in everything(seat).items() if not (begun and "/record/" in key)}

    before = seen()
    yield
    after = seen()
    assert {key: after.get(key) for key in before} == before
    assert set(after) == set(before)


def refused(said: Said, code: str) -> None:
    assert said.code == code, said.err
    assert said.status != 0
    assert "Cause:" in said.err
    assert "Remedy:" in said.err


# ---------------------------------------------------------------------------------------------- before there is a pair


@contextmanager
def hook(host: Host, script: str) -> Iterator[None]:
    """A hook script of the site's own for libvirt on a host; libvirtd looks for hooks when it starts."""
    path = "/etc/libvirt/hooks/qemu"
    write = f"mkdir -p /etc/libvirt/hooks && cat > {path} && chmod +x {path}"
    host.run(["sh", "-c", write], text_in=script)
    host.run(["systemctl", "restart", "libvirtd"])
    try:
        yield
    finally:
        host.run(["rm", path])
        host.run(["systemctl", "restart", "libvirtd"])


def test_a_secondary_that_libvirt_refuses(seat: Seat) -> None:
    two = seat.hosts[1]
    with (
        hook(two, '#!/bin/sh\n[ "$2" != prepare ] || { echo not on this host >&2; exit 1; }\n'),
        untouched(seat, begun=True),
    ):
        said = seat.run("enable", VM, "--secondary", two.name)
        refused(said, "FTKVM-521")
        assert "not on this host" in said.err
    assert seat.vm(VM)["ft"] is False


@pytest.mark.long
def test_a_vm_that_would_stand_still_too_long(seat: Seat) -> None:
    """FTKVM-511: it stands still since its memory was copied, and the rest does not come within the limit."""
    seat.ok("vm", "set", VM, "ft.max_switchover_seconds=1")
    with seat.waiting_after("memory", "enable", VM) as ended:
        time.sleep(1.5)
    goes_on_alone(seat, ended, "FTKVM-511")
    seat.ok("vm", "set", VM, "ft.max_switchover_seconds=")


@pytest.mark.long
def test_a_secondary_that_does_not_come_in_time(seat: Seat) -> None:
    """FTKVM-513: its QEMU stands still before it has said that it has a checkpoint."""
    two = seat.hosts[1]
    with seat.waiting_after("insert", "enable", VM, "--secondary", two.name) as ended:
        for pid in faults.qemu_pids(two, VM):
            os.kill(pid, signal.SIGSTOP)
    goes_on_alone(seat, ended, "FTKVM-513")


def goes_on_alone(seat: Seat, ended: list[Said], code: str) -> None:
    """`enable` was given up: the VM runs on, unprotected, without a trace of a second copy."""
    (said,) = ended
    refused(said, code)
    seen = seat.wait_vm(VM, "runs on", lambda seen: seen["state"] == "running" and not seen["ft"])
    assert seen["host"] == seat.hosts[0].name
    for host in seat.hosts[1:]:
        assert VM not in host.run(["virsh", "-q", "list", "--all", "--name"]).split()


UNPROTECTED = {
    "turn-off {vm}": "402", "disable {vm}": "402", "test failover {vm}": "402", "test restart-secondary {vm}": "402",
    "vm migrate {vm} --secondary": "402", "enable {vm} --secondary {host}": "403",
    "enable {vm} --secondary nope": "201", "enable nope": "101", "vm start {vm}": "103",
    "host remove {host} --keep-files": "214",
    "vm unregister {vm} --host {host}": "660", "vm migrate {vm} --to {host}": "650",
}  # fmt: skip
PROTECTED = {
    "enable {vm}": "401", "enable {vm} --secondary {third}": "401", "vm start {vm}": "103",
    "vm register {vm} --host {host}": "105", "vm register {vm} --host {secondary}": "105",
    "vm unregister {vm} --host {host}": "110", "vm set {vm} ha.memory_reservation_mb=64": "139",
    "vm set {vm} ft.max_switchover_seconds=0": "114", "vm set {vm} ft.checkpoint_min_ms=5000": "114",
    "vm set {vm} ft.nothing=1": "114", "vm set {vm} ha.restart_priority=often": "637",
    "vm migrate {vm} --to {host}": "650", "vm migrate {vm} --to {secondary}": "409",
    "vm migrate {vm} --secondary --to {secondary}": "408", "vm migrate {vm} --secondary --to {host}": "403",
    "vm migrate {vm} --to nope": "201", "host remove {host} --keep-files": "214",
    "host remove {secondary} --keep-files": "214",
    "host maintenance exit {secondary}": "657", "test failover nope": "101",
}  # fmt: skip
DISABLED = {"disable {vm}": "410", "test failover {vm}": "402", "vm unregister {vm} --host {host}": "110"}
CUT = {"test failover {vm}": "406", "test restart-secondary {vm}": "406", "vm migrate {vm} --secondary": "406"}
NO_NETWORK = {"enable {vm}": "404", "enable {vm} --secondary {secondary}": "405"}
ELSEWHERE = {
    "407": "needs a secondary that hangs in the moment of a test: tests/lab/test_plans_disturbed.py",
}


def test_no_refusal_of_ft_is_forgotten() -> None:
    """Every message of the catalogue's FT preconditions is provoked below."""
    here = {code for table in (UNPROTECTED, PROTECTED, DISABLED, CUT, NO_NETWORK) for code in table.values()}
    assert {code[6:] for code in CATALOGUE if code.startswith("FTKVM-4")} == {c for c in here if c[0] == "4"} | {
        *ELSEWHERE
    }


@contextmanager
def cut(*hosts: str) -> Iterator[None]:
    """The hosts have no FT network inside."""
    for host in hosts:
        network.set_port(host, "ft", up=False)
    try:
        yield
    finally:
        for host in hosts:
            network.set_port(host, "ft", up=True)


def refuse_all(seat: Seat, table: dict[str, str], **names: str) -> None:
    with untouched(seat):
        for words, code in table.items():
            refused(seat.run(*words.format(vm=VM, **names).split()), f"FTKVM-{code}")


@pytest.mark.long
def test_refused_without_a_pair(seat: Seat) -> None:
    refuse_all(seat, UNPROTECTED, host=str(seat.vm(VM)["host"]))


@pytest.mark.long
def test_refused_while_a_host_has_no_ft_network(seat: Seat) -> None:
    one, two, three = (host.name for host in seat.hosts)
    assert seat.vm(VM)["host"] == one
    with cut(two, three):
        refuse_all(seat, NO_NETWORK, secondary=two)


def test_refused_while_it_is_protected(seat: Seat, pair: dict[str, Any]) -> None:
    third = seat.other(pair["host"], pair["secondary_host"]).name
    refuse_all(seat, PROTECTED, host=pair["host"], secondary=pair["secondary_host"], third=third)


@pytest.mark.long
def test_refused_while_it_is_disabled(seat: Seat, pair: dict[str, Any]) -> None:
    seat.ok("disable", VM)
    refuse_all(seat, DISABLED, host=pair["host"])
    seat.ok("enable", VM)
    assert seat.wait_protected(VM)["secondary_host"] == pair["secondary_host"]


def virsh(host: Host, *words: str) -> str:
    """What virsh refuses with; empty if it does not."""
    try:
        host.run(["virsh", *words], timeout_s=60)
    except FtkvmError as error:
        return str(error)
    return ""


@pytest.mark.long
def test_what_qemu_refuses_of_virsh_leaves_the_pair(seat: Seat, pair: dict[str, Any]) -> None:
    """A device on the primary, a migration, a save: QEMU takes none of them while COLO runs."""
    extra, primary = seat.image("extra.qcow2", "64M"), seat.host(pair["host"])
    tried = [
        ("attach-disk", VM, extra, "vdb", "--subdriver", "qcow2", "--live"),
        ("detach-interface", VM, "bridge", "--live"),
        ("setvcpus", VM, "2", "--live"),
        ("save", VM, "/var/tmp/save"),
        ("migrate", "--live", "--unsafe", VM, "qemu+tcp://127.0.0.1/system"),
    ]
    with untouched(seat):
        for words in tried:
            assert virsh(primary, *words), words


def test_a_snapshot_is_found_and_the_pair_made_anew(seat: Seat, pair: dict[str, Any]) -> None:
    """FTKVM-150: no write is lost, neither of before nor of after it, nor by turning FT off."""
    disk, primary = Disk(seat, VM), seat.host(pair["host"])
    disk.write(primary)
    recorded = image_of(seat, VM)
    assert virsh(primary, "snapshot-create-as", VM, "s1", "--disk-only", "--atomic", "--no-metadata") == ""
    disk.write(primary)
    assert image_of(seat, VM) != recorded
    after = seat.wait_protected(VM, after_epoch=pair["epoch"])
    assert after["host"] == pair["host"]
    assert after["last_failover"]["reason"] == "changed-outside"
    assert any("FTKVM-150" in each and recorded in each for each in after["warnings"]), after["warnings"]
    disk.check()
    seat.ok("test", "failover", VM)
    seat.wait_protected(VM, after_epoch=after["epoch"])
    disk.check()
    seat.ok("turn-off", VM)
    disk.check()


@pytest.mark.long
def test_a_device_on_the_secondary_is_found_and_the_pair_made_anew(seat: Seat, pair: dict[str, Any]) -> None:
    """FTKVM-151: QEMU takes it there. The next secondary is like the primary again."""
    secondary = seat.host(pair["secondary_host"])
    extra = seat.image("extra2.qcow2", "64M")
    assert virsh(secondary, "attach-disk", VM, extra, "vdb", "--subdriver", "qcow2", "--live") == ""
    after = seat.wait_protected(VM, after_epoch=pair["epoch"])
    assert after["host"] == pair["host"]
    assert after["last_failover"]["reason"] == "changed-outside"
    assert any("FTKVM-151" in each and "+" in each for each in after["warnings"]), after["warnings"]
    assert not re.search("vdb", seat.host(after["secondary_host"]).run(["virsh", "dumpxml", VM]))


@pytest.mark.long
def test_a_definition_of_its_own_is_told_until_it_is_gone(seat: Seat, pair: dict[str, Any]) -> None:
    """FTKVM-153, of either copy's host; the pair goes on."""
    for side in ("host", "secondary_host"):
        host = seat.host(pair[side])
        host.run(["sh", "-c", f"virsh dumpxml {VM} --migratable > /var/tmp/{VM}.xml && virsh define /var/tmp/{VM}.xml"])
        told = seat.wait_vm(VM, "told", lambda seen: any("FTKVM-153" in each for each in seen["pair"]["warnings"]), 15)
        assert any(host.name in each for each in told["pair"]["warnings"])
        host.run(["virsh", "undefine", VM])
        seat.wait_vm(VM, "told no more", lambda seen: "FTKVM-153" not in str(seen["pair"]["warnings"]), 15)
    assert seat.wait_protected(VM)["epoch"] == pair["epoch"]


# ----------------------------------------------------------------------------------------------- the FT network (FT-20)


@pytest.mark.long
def test_the_ft_network_of_the_secondarys_host_goes(seat: Seat, pair: dict[str, Any]) -> None:
    """The VM goes on and is protected on the third host; without that one status says why it is not."""
    third = seat.other(pair["host"], pair["secondary_host"]).name
    with cut(pair["secondary_host"]):
        after = seat.wait_protected(VM, after_epoch=pair["epoch"], timeout_s=90)
        assert (after["secondary_host"], after["host"]) in ((third, pair["host"]), (third, pair["secondary_host"]))
        if after["host"] == pair["host"]:
            with cut(third):
                seen = seat.wait_vm(VM, "told why", lambda seen: "ft-network" in str(seen["pair"]["cause"]), 60)
                assert "FTKVM-404" in seen["pair"]["cause"]
                assert seen["state"] == "running"
                refuse_all(seat, CUT)
    seat.wait_protected(VM, after_epoch=after["epoch"], timeout_s=90)
