"""Hosts that are virtual machines, their guests run by KVM: the shortest form of `make kvm`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkvm.lab import lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def lab_of_its_own() -> Iterator[None]:
    """A lab has hosts of one kind: the tests after this one make theirs."""
    yield
    lab.down(print)


def test_a_pair_on_kvm_loses_a_host_a_qemu_and_nothing_else() -> None:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    command = [sys.executable, "-m", "ftkvm.lab.kvm", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    figures = json.loads((ROOT / "build/kvm.json").read_text())
    assert (figures["kvm"], figures["hosts_as"]) == ("yes", lab.VMS)
    assert figures["connection_survived"] is True
    assert (figures["counter_gaps"], figures["lost_records"], figures["doubled_records"]) == (0, 0, 0)
    assert figures["acknowledged_records"] > 20
    assert figures["reboots"]["epochs_ended"] == 0 and figures["reboots"]["counted_on"] is True
