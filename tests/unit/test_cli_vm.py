"""What ``ftkvm vm list`` shows people of VMs whose guests are looked after."""

import json
from typing import Any

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.output import Reporter
from ftkvm.cli.vm import print_vms


def entry(name: str, state: str, error: FtkvmError | None) -> dict[str, Any]:
    monitoring = {"state": state, "error": error.to_json() if error else None}
    return {"name": name, "state": "running", "host": "host1", "ft": False, "ft_disabled": False,
            "uuid": f"uuid-of-{name}", "monitoring": monitoring}  # fmt: skip


def test_a_guest_that_is_left_alone_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    error = FtkvmError("FTKVM-140", vm="db", resets=3, window_s=3600, why="silent for 31 s")
    print_vms([entry("db", "left-alone", error), entry("web", "well", None)], Reporter())
    said = capsys.readouterr()
    assert [line.split()[:5] for line in said.out.splitlines()[1:]] == [
        ["db", "running", "host1", "off", "left-alone"], ["web", "running", "host1", "off", "well"]]  # fmt: skip
    assert "VM db hangs and is left alone: 3 resets within 3600 s did not help" in said.err
    assert "Cause: Its guest agent is silent" in said.err and "`virsh reset db`" in said.err


def test_a_guest_without_an_agent_is_no_error_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    vms = [entry("db", "unknown", FtkvmError("FTKVM-144", vm="db", why="no agent"))]
    print_vms(vms, Reporter())
    assert not capsys.readouterr().err
    print_vms(vms, Reporter("json"))
    assert json.loads(capsys.readouterr().out)[0]["monitoring"]["error"]["code"] == "FTKVM-144"
