"""Three bare Debian machines become a cluster with a protected VM by the README's commands, word for word (issue 5).

Half an hour where the machines are emulated, in a lab of its own, so with ``FTKVM_FULL=1`` only (`make long`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftkvm.lab import demo, kvm, names, real_hosts

pytestmark = [pytest.mark.lab, pytest.mark.long]

TREE = Path(__file__).parents[2]
LIMIT_S = 5400
COMMAND = [sys.executable, "-m", "ftkvm.lab.kvm", "--no-trials", "--faults", "0", "--reboots", "0"]
"""`make bare`"""


def test_the_readmes_commands_make_hosts_of_bare_machines(capfd: pytest.CaptureFixture[str]) -> None:
    """What they say is told as it comes; the lab is down afterwards."""
    environment = dict(os.environ, FTKVM_LAB=names.NAME or "real", PYTHONPATH=str(TREE))
    try:
        with capfd.disabled():
            done = subprocess.run(COMMAND, env=environment, timeout=LIMIT_S, cwd=TREE)
        figures = json.loads((TREE / kvm.REPORT).read_text())
        assert done.returncode == 0, figures.get("error")
        assert [each["command"] for each in figures["commands"]] == real_hosts.commands(real_hosts.README.read_text())
        assert (figures["kvm"], figures["bare"], figures["storage"]) == ("yes", True, "nfs")
        assert demo.judge(figures) == []
    finally:
        subprocess.run([sys.executable, "-m", "ftkvm.cli", "lab", "down"], env=environment, timeout=300, cwd=TREE)
