"""Every row of CK-06 in real domain XML: the files of ``vm/``, each with what it must lead to in its first lines."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks.domain import ImageFacts, Rules, VmFacts
from ftkvm.core.checks.model import Report, Severity, require, run
from ftkvm.core.checks.vm import CHECKS

CASES = sorted((Path(__file__).parent / "vm").glob("*.xml"))
RULES = Rules(datastore="/srv/ft")


def head(text: str, word: str) -> str:
    found = re.search(rf"<!-- {word}: (.*?) -->", text)
    return found.group(1).strip() if found else ""


def report(text: str, *, for_ft: bool = True) -> Report:
    words = head(text, "images").split()
    images = {words[0]: ImageFacts(words[1], int(words[2]))} if words else {}
    return run("vm vm1", CHECKS, VmFacts.of(text, RULES, images), for_ft=for_ft, vm="vm1")


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    text = path.read_text()
    expected = head(text, "expect").split()
    found = report(text)
    assert sorted(finding.code for finding in found.findings) == ([] if expected == ["nothing"] else sorted(expected))
    remedies = [finding.error().remedy for finding in found.findings]
    assert not remedies or any(head(text, "remedy") in remedy for remedy in remedies), remedies
    assert not any("<vm>" in finding.error().text or "<device>" in finding.error().text for finding in found.findings)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_without_ft_a_vm_may_be_bound_to_its_host(path: Path) -> None:
    found = report(path.read_text(), for_ft=False)
    assert {each.code for each in found.errors} <= {"FTKVM-129", "FTKVM-132"}
    assert {each.code for each in found.findings if each.severity is Severity.WARNING} <= {"FTKVM-124", "FTKVM-130"}


def test_what_refuses_is_raised_with_the_rest_beside_it() -> None:
    found = report((Path(__file__).parent / "vm" / "two-troubles-one-device-each.xml").read_text())
    with pytest.raises(FtkvmError) as caught:
        require(found)
    assert caught.value.code == "FTKVM-120"
    assert "sound ac97" in str(caught.value.params["also"])


def test_a_warning_refuses_nothing() -> None:
    facts = replace(VmFacts.of((Path(__file__).parent / "vm" / "plain-q35.xml").read_text(), RULES), ha_disabled=True)
    found = run("vm vm1", CHECKS, facts, vm="vm1")
    require(found)
    assert [(each.code, each.severity) for each in found.findings] == [("FTKVM-133", Severity.WARNING)]
    assert found.compliant
    said = found.to_json()
    assert said["findings"][0]["doc"] == "docs/messages.md#ftkvm-133"


@pytest.mark.parametrize(("source", "codes"), [("/var/lib/vm/a.qcow2", []), ("/srv/ft/a.qcow2", ["FTKVM-173"]),
                                               ("/var/../srv/ft/a.qcow2", ["FTKVM-173"])])  # fmt: skip
def test_with_copied_disks_they_are_on_the_hosts_own(source: str, codes: list[str]) -> None:
    text = (Path(__file__).parent / "vm" / "plain-q35.xml").read_text().replace("/srv/ft/a.qcow2", source)
    assert source in text
    facts = VmFacts.of(text, replace(RULES, copied=True))
    assert [each.code for each in run("vm", CHECKS, facts, vm="vm1").findings] == codes
