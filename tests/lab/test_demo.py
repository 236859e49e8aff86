"""The README's first command, as a reader runs it: a lab from nothing, a host loses power, the client goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
PROMISED = (
    "connection_survived", "client_gap_ms", "counter_gaps", "lost_records", "doubled_records", "protect_s",
    "promote_ms", "reprotect_s", "host_back_s",
)  # fmt: skip


def test_the_demo_holds_what_it_promises() -> None:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    done = subprocess.run([sys.executable, "-m", "ftkvm.lab.demo"], cwd=ROOT, capture_output=True, text=True,
                          timeout=900, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    print(done.stdout)
    figures = json.loads((ROOT / "build/demo.json").read_text())
    assert not [key for key in PROMISED if figures.get(key) is None]
    assert figures["connection_survived"] is True
    assert (figures["counter_gaps"], figures["lost_records"], figures["doubled_records"]) == (0, 0, 0)
    assert figures["acknowledged_records"] > 100
