"""``ftkvm check`` on the lab's three hosts: how long it takes, and the tiny guest that tells whether KVM works."""

import json
import statistics
import time

import pytest

from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage

pytestmark = pytest.mark.lab

RUNS = 5
PROMISED_S = 3.0
TRY = "from ftkvm.adapters.kvm_probe import Limits, run_guest; print(run_guest('{}', Limits()) or 'ran')"


def test_the_cluster_is_checked_in_three_seconds(stage: Stage) -> None:
    """The median, from the second run on: for the first one a tiny guest may have to be tried on each host."""
    stage.ftkvm("check", "cluster")
    took_s = []
    for _run in range(RUNS):
        began = time.monotonic()
        report = json.loads(stage.ftkvm("check", "cluster", "--output", "json"))
        took_s.append(time.monotonic() - began)
    print(f"check cluster of {len(stage.hosts)} hosts: {[round(each, 2) for each in took_s]} s")
    assert {name for name in stage.hosts if name in json.dumps(report)} == set(stage.hosts)
    assert statistics.median(took_s) < PROMISED_S


def test_the_tiny_guest(stage: Stage) -> None:
    """With this machine's QEMU: emulated it runs; on the processor as `check host` says."""
    host = Host(stage.hosts[0])

    def tried(accelerator: str) -> str:
        return host.run(["env", "PYTHONPATH=/opt/ftkvm", "python3", "-c", TRY.format(accelerator)]).strip()

    assert tried("tcg") == "ran"
    report = json.loads(stage.ftkvm("check", "host", host.name, "--output", "json"))
    why = {each["code"] for each in report["findings"]} & {"FTKVM-221", "FTKVM-222", "FTKVM-223", "FTKVM-224"}
    print("KVM here:", why or "works")
    assert (tried("kvm") == "ran") is not bool(why)
