"""What `ftkvm check` prints, and its exit status."""

import json
from pathlib import Path

import pytest

from ftkvm.cli.check import show
from ftkvm.cli.output import Reporter
from ftkvm.core.checks.domain import Rules, VmFacts
from ftkvm.core.checks.model import run
from ftkvm.core.checks.vm import CHECKS

CASES = Path(__file__).parents[1] / "checks" / "vm"


def report(case: str) -> dict[str, object]:
    facts = VmFacts.of((CASES / f"{case}.xml").read_text(), Rules(datastore="/srv/ft"))
    return run("vm vm1", CHECKS, facts, vm="vm1").to_json()


def test_compliant(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(report("plain-q35"), Reporter()) == 0
    assert "vm vm1: compliant (21 checks, 0 findings)" in capsys.readouterr().out


def test_not_compliant(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(report("sound-ich9"), Reporter()) == 1
    said = capsys.readouterr().out
    assert "not compliant" in said and "FTKVM-122" in said and "Remove the sound device" in said


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(report("serial-file"), Reporter("json")) == 1
    document = json.loads(capsys.readouterr().out)
    finding = document["findings"][0]
    assert document["compliant"] is False
    assert (finding["severity"], finding["code"], finding["check"]) == ("error", "FTKVM-134", "ports")
    assert finding["doc"] == "docs/messages.md#ftkvm-134"
