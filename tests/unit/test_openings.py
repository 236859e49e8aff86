"""The firewall's openings: outputs as Debian 13 has them (ufw 0.36.2, firewalld 2.3.1), plans, and taking them back."""

import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from ftkvm.config import HostEntry
from hostprep.firewall import parse
from hostprep.journal import note_undo, take_back
from hostprep.openings import POLICY, files, firewall_steps, judge, needed, policy
from hostprep.plan import journal_step, plan
from tests.unit.test_hostprep import Local, good, wish

NETWORKS = {"management": "10.0.0.0/24", "ft": "10.1.0.0/24", "migration": "10.2.0.0/24"}
WANTED = needed(HostEntry("host1", "10.0.0.1", "10.1.0.1", "10.2.0.1"), NETWORKS)
CHANNELS = WANTED[-1]
UFW = """\
bridged 0
ufw
Added user rules (see 'ufw status' for running firewall):
ufw allow 22/tcp
ufw allow from 10.1.0.0/24 to any port 7500:8499 proto tcp comment 'ftkvm'
ufw allow from 10.1.0.0/24 to any port 7444 proto udp
ufw deny 80/tcp
"""
FIREWALLD = """\
bridged 0
firewalld
rule port port="7443" protocol="tcp" accept
rule family="ipv4" source address="10.1.0.0/24" port port="7500-8499" protocol="tcp" accept
"""
OWN = "bridged 0\nnftables\n\t\ttype filter hook input priority filter; policy drop;\n"
SEEN_TO = OWN + '\t\tip saddr 10.1.0.0/24 tcp dport 7500-8499 accept comment "ftkvm"\n'


def test_what_is_let_in_is_said_in_each_managers_words() -> None:
    assert CHANNELS.ufw in parse(UFW).rules
    assert WANTED[1].ufw in parse(UFW).rules, "the operator's own rule, without our comment"
    assert CHANNELS.rich in parse(FIREWALLD).rules
    assert WANTED[0].rich in parse(FIREWALLD).rules


@pytest.mark.parametrize(("text", "manager"), [
    (UFW, "ufw"), (FIREWALLD, "firewalld"), (OWN, "nftables"), ("bridged\nfirewalld\n", "firewalld"),
    ("bridged\nnftables\n\t\ttype filter hook input priority filter; policy accept;\n", ""),
    ("bridged\nnftables\n", ""), ("", ""),
])  # fmt: skip
def test_who_rules(text: str, manager: str) -> None:
    assert parse(text).manager == manager


def test_only_what_is_missing_is_let_in_and_noted() -> None:
    (step,) = firewall_steps(parse(UFW), WANTED, "/j")
    for each in WANTED:
        there = each in (CHANNELS, WANTED[1])
        assert (f"ufw allow {each.ufw} comment" in step.command) is not there
        assert (f"ufw delete allow {each.ufw}" in step.undo) is not there
    everything = "".join(f"ufw allow {each.ufw} comment 'ftkvm'\n" for each in WANTED)
    assert list(firewall_steps(parse("bridged 0\nufw\n" + everything), WANTED, "/j")) == []


def test_firewalld_gets_a_policy_and_reads_it() -> None:
    (step,) = firewall_steps(parse(FIREWALLD), WANTED, "/j")
    assert "firewall-cmd -q --reload" in step.command
    root = ET.fromstring(policy(WANTED))
    zones = [root.find(f"{side}-zone") for side in ("ingress", "egress")]
    assert [zone.get("name") for zone in zones if zone is not None] == ["ANY", "HOST"]
    sources = [rule.find("source") for rule in root.iter("rule")]
    assert [source.get("address") if source is not None else "" for source in sources] == [e.source for e in WANTED]
    known = parse("bridged\nfirewalld\n" + "".join(f"{each.rich}\n" for each in WANTED))
    assert list(firewall_steps(known, WANTED, "/j")) == []
    assert list(files(known, WANTED)) == [POLICY]
    assert files(parse(UFW), WANTED) == {}


@pytest.mark.parametrize(
    ("text", "told"), [(OWN, True), (SEEN_TO, False), (UFW, False), ("bridged\nnftables\n", False)]
)
def test_an_operators_own_rules_are_left_and_told(text: str, told: bool) -> None:
    found = list(judge(parse(text), WANTED))
    assert [each.code for each in found] == ["FTKVM-755"] * told
    if told:
        assert list(firewall_steps(parse(text), WANTED, "/j")) == []
        assert 'ip saddr 10.1.0.0/24 tcp dport 7500-8499 accept comment "ftkvm"' in found[0].params["rules"]


@pytest.mark.parametrize(
    ("text", "told"), [(UFW.replace("bridged 0", "bridged 1"), True), (UFW, False), ("bridged 1\nnftables\n", False)]
)
def test_a_firewall_between_a_vm_and_its_bridge_is_told(text: str, told: bool) -> None:
    assert [each.code for each in judge(parse(text), WANTED)] == ["FTKVM-756"] * told


def test_it_lets_in_before_the_agent_must_be_reached() -> None:
    steps = [step.name for step in plan(replace(good(), firewall=parse(UFW)), replace(wish(), openings=WANTED))]
    assert steps.index("firewall ufw") < steps.index("services")


def test_what_was_noted_is_run_when_all_is_taken_back(tmp_path: Path) -> None:
    """In the order opposite to that in which it was done, once, and words stay together."""
    journal, ran = str(tmp_path / "journal"), tmp_path / "ran"
    assert Local().run(journal_step(journal).command).status == 0
    commands = [f"echo '{word}  two' >> {shlex.quote(str(ran))}" for word in ("first", "second")]
    for command in (*commands, commands[0]):
        assert Local().run(note_undo(journal, command)).status == 0
    shown = take_back(Local(), journal, dry_run=True, program=str(tmp_path / "program"), units=())
    assert (shown.ran, ran.exists()) == (commands, False)
    assert take_back(Local(), journal, program=str(tmp_path / "program"), units=()) == shown
    assert ran.read_text() == "second  two\nfirst  two\n"
