"""The lab's guest and the client's side, for real, on a host of the test's own."""

import os
import time
from collections.abc import Iterator

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import faults, lab, ledger, names, operator
from ftkvm.lab.client import CONTROL, LEDGER, Capture, CounterClient, GapProbe, LedgerClient, ask, wait_for_guest
from ftkvm.lab.guest import domain
from ftkvm.lab.host import Host
from ftkvm.lab.system import run

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

HOST, GUEST = "host9", "lab-test-guest"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if not lab.RECORD.exists():
        lab.up(3, None, print)
    spare = Host(HOST)
    if spare.paths.base.exists():
        pytest.skip(f"{HOST} is in use")
    spare.prepare_disk([HOST], operator.prepare_key())
    spare.boot(names.IMAGES / lab.record().image, None)
    spare.wait_ready()
    yield spare
    spare.remove()


@pytest.fixture(scope="module")
def guest(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[domain.Guest]:
    """A guest made by hand as `create` does it, with an address that `create` never gives."""
    made = domain.Guest(GUEST, "7f0c2a8e-30a1-4a54-9a3e-7f3f4b1f0001", 251, f"{names.DATASTORE_MOUNT}/{GUEST}.qcow2")
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", made.disk, "64M"])
    xml = domain.domain_xml(made, domain.install_files(), 160, 1, domain.kvm_works(host))
    host.run(["virsh", "create", "/dev/stdin"], text_in=xml)
    wait_for_guest(made.address, 60)
    yield made
    (names.DATASTORE / f"{GUEST}.qcow2").unlink()


def test_streams_pass_a_freeze_and_the_gap_is_measured(host: Host, guest: domain.Guest) -> None:
    with (
        CounterClient(guest.address) as counter,
        GapProbe(guest.address) as probe,
        LedgerClient(guest.address, first=100) as records,
        Capture([HOST]) as capture,
    ):
        time.sleep(1)
        for each in (counter, probe, records):
            each.mark()
        host.cgroup.freeze(True)
        time.sleep(1)
        host.cgroup.freeze(False)
        time.sleep(1)
        assert [each.broken for each in (counter, probe, records)] == [None] * 3
        assert counter.gaps == 0 and probe.wrong == 0 and not records.refused
        assert 950 < probe.longest_pause_ms() < 2500
        assert list(capture.emitters(guest.mac)) == [HOST]
        records.close()
        acknowledged = list(records.acknowledged)
    assert len(acknowledged) > 10
    verdict = ledger.verify(host, guest.disk, acknowledged)
    assert verdict.good, verdict


def test_the_ledger_tells_a_doubled_record(host: Host, guest: domain.Guest) -> None:
    for _ in range(2):
        assert ask(guest.address, LEDGER, "REC 50 twice") == "ACK 50"
    assert ask(guest.address, LEDGER, "READ 50") == "DATA 50 2 twice"
    assert ask(guest.address, LEDGER, "READ 51") == "NONE 51"
    verdict = ledger.verify(host, guest.disk, [50, 51])
    assert verdict.doubled == (50,) and verdict.lost == (51,)


def test_the_guest_obeys_the_power_button(host: Host, guest: domain.Guest) -> None:
    assert ask(guest.address, CONTROL, "dirty 100") == "OK"
    assert ask(guest.address, CONTROL, "nonsense").startswith("ERR")
    assert faults.qemu_pids(host, GUEST)
    host.run(["virsh", "shutdown", GUEST])
    deadline = time.monotonic() + 20
    while faults.qemu_pids(host, GUEST):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_guest_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(FtkvmError) as caught:
        domain.guest("nobody")
    assert caught.value.code == "FTKVM-707"


def test_the_operator_reaches_the_lab_by_ssh_with_the_real_host_key() -> None:
    first = next(h for h in lab.hosts() if h.state == "running")
    assert run(operator.ssh(first.name, ["hostname"]), env=operator.environment()).strip() == first.name
