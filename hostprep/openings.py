"""What the hosts' firewall must let in, in the words of the firewall that rules the host. Pure.

ufw and firewalld are asked for it as their administrator would: rules with the comment ``ftkvm``, a policy ``ftkvm``.
Of both only what is missing is added, and noted, so that ``host remove`` takes back just that. A rule set that somebody
wrote for nftables himself is his: he is told what it must let in. Pings are let in by both managers unless told.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ftkvm.config import DEFAULT_HA_PORT, FT_PORTS, HostEntry
from ftkvm.core.checks.model import Finding, Severity
from hostprep.firewall import Firewall
from hostprep.journal import note_undo
from hostprep.step import Step

POLICY = "/etc/firewalld/policies/ftkvm.xml"
"""firewalld's own file for a policy, the only thing that changes there. Source: firewalld.policy(5)."""


@dataclass(frozen=True)
class Opening:
    """Ports ``first`` to ``last`` for whoever comes from the network ``source`` (CIDR; empty: from anywhere)."""

    protocol: str
    first: int
    last: int
    source: str
    what: str

    def ports(self, dash: str) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}{dash}{self.last}"

    @property
    def ufw(self) -> str:
        """The words after ``allow``, as ``ufw show added`` tells them."""
        if not self.source:
            return f"{self.ports(':')}/{self.protocol}"
        return f"from {self.source} to any port {self.ports(':')} proto {self.protocol}"

    @property
    def rich(self) -> str:
        """firewalld's rule, as ``--list-rich-rules`` tells it."""
        source = f'family="ipv4" source address="{self.source}" ' if self.source else ""
        return f'rule {source}port port="{self.ports("-")}" protocol="{self.protocol}" accept'

    @property
    def nft(self) -> str:
        source = f"ip saddr {self.source} " if self.source else ""
        return f'{source}{self.protocol} dport {self.ports("-")} accept comment "ftkvm"'


def needed(entry: HostEntry, networks: Mapping[str, str]) -> tuple[Opening, ...]:
    """What a host must let in. ``networks``: management, ft and migration as CIDR.

    The API is open to anyone, as operators sit anywhere: it talks to no one without a certificate of the cluster's.
    """

    def one(protocol: str, port: int, network: str, what: str) -> Opening:
        return Opening(protocol, port, port, networks.get(network, ""), what)

    return (
        one("tcp", entry.api_port, "", "the agent's API"),
        one("udp", entry.keeper_port, "ft", "the keeper's heartbeats"),
        *(one("udp", DEFAULT_HA_PORT, network, "HA's heartbeats") for network in networks),
        one("tcp", entry.tunnel_port, "migration", "live migration"),
        Opening("tcp", FT_PORTS[0], FT_PORTS[-1], networks["ft"], "the channels of pairs"),
    )


def policy(wanted: Sequence[Opening]) -> bytes:
    """firewalld's policy: it comes before the zones, and what it does not name is left to them."""

    def rule(each: Opening) -> str:
        family, source = (' family="ipv4"', f'    <source address="{each.source}"/>\n') if each.source else ("", "")
        port = f'    <port port="{each.ports("-")}" protocol="{each.protocol}"/>\n'
        return f"  <rule{family}>\n{source}{port}    <accept/>\n  </rule>\n"

    rules = "".join(map(rule, wanted))
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<policy priority="-100" target="CONTINUE">\n  <short>ftkvm</short>\n'
        "  <description>What the hosts of an ftkvm cluster tell each other</description>\n"
        f'  <ingress-zone name="ANY"/>\n  <egress-zone name="HOST"/>\n{rules}</policy>\n'
    ).encode()


def files(firewall: Firewall, wanted: Sequence[Opening]) -> dict[str, tuple[bytes, int]]:
    """Files that the host's firewall shall have, as a wish has them."""
    return {POLICY: (policy(wanted), 0o644)} if firewall.manager == "firewalld" and wanted else {}


def firewall_steps(firewall: Firewall, wanted: Sequence[Opening], journal: str) -> Iterator[Step]:
    """The step by which it lets in what it did not; after its files, before anything must be reached."""
    if firewall.manager == "ufw":
        missing = [each for each in wanted if each.ufw not in firewall.rules]
        make = _ufw_step
    elif firewall.manager == "firewalld":
        missing = [each for each in wanted if each.rich not in firewall.rules]
        make = _firewalld_step
    else:
        return
    if missing:
        yield make(missing, journal)


def _ufw_step(missing: Sequence[Opening], journal: str) -> Step:
    undo = [f"! command -v ufw >/dev/null || ufw delete allow {each.ufw}" for each in missing]
    notes = [note_undo(journal, command) for command in undo]
    add = [f"ufw allow {each.ufw} comment 'ftkvm'" for each in missing]
    there = [f'echo "$added" | grep -qF -e {shlex.quote(f"allow {each.ufw}")}' for each in missing]
    return Step(
        "firewall ufw",
        f"let in by ufw: {_told(missing)}",
        "; ".join(["set -e", *notes, *add]),
        " && ".join(["added=$(LC_ALL=C ufw show added)", *there]),
        "; ".join(undo),
    )


def _firewalld_step(missing: Sequence[Opening], journal: str) -> Step:
    reload = "! firewall-cmd -q --state || firewall-cmd -q --reload"
    return Step(
        "firewall firewalld",
        f"let in by firewalld: {_told(missing)}",
        f"set -e; {note_undo(journal, reload)}; firewall-cmd -q --reload",
        " && ".join(f"firewall-cmd -q --policy=ftkvm --query-rich-rule={shlex.quote(each.rich)}" for each in missing),
        # out of firewalld's sight first; the undo of the file's own step, which comes after this one, removes it
        f"[ ! -e {POLICY} ] || mv -f {POLICY} {POLICY}.new; {reload}",
    )


def _told(missing: Sequence[Opening]) -> str:
    return ", ".join(f"{each.ports('-')}/{each.protocol} ({each.what})" for each in missing)


def judge(firewall: Firewall, wanted: Sequence[Opening]) -> Iterator[Finding]:
    """What is to be said of a rule set that is not ours to change; it refuses nothing, since it may let all in already.

    A rule with the comment ``ftkvm`` says that somebody has seen to it.
    """
    if firewall.manager == "nftables" and not firewall.rules:
        yield Finding("FTKVM-755", {"rules": "; ".join(each.nft for each in wanted)}, Severity.WARNING)
    if firewall.manager and firewall.bridged:
        yield Finding("FTKVM-756", {"manager": firewall.manager}, Severity.WARNING)
