"""Who rules what a host lets in, and what it lets in of ours. Pure."""

from dataclasses import dataclass

COMMAND = (
    'echo "bridged $(cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null)";'
    " if LC_ALL=C ufw status 2>/dev/null | grep -qx 'Status: active'; then echo ufw; LC_ALL=C ufw show added;"
    " elif firewall-cmd -q --state 2>/dev/null; then echo firewalld;"
    " firewall-cmd --policy=ftkvm --list-rich-rules 2>/dev/null;"
    """ else echo nftables; nft list ruleset 2>/dev/null | grep -E 'hook input|comment "ftkvm'; fi"""
)
"""What :func:`parse` understands the output of; it changes nothing."""


@dataclass(frozen=True)
class Firewall:
    """Who rules what comes in: ``ufw``, ``firewalld``, ``nftables`` (rules of the host's own, which drop what they do
    not name); empty: nothing that is known. ``rules``: each in the manager's own words."""

    manager: str = ""
    rules: frozenset[str] = frozenset()
    bridged: bool = False
    """Frames that only pass the VMs' bridge are shown to it, too (``br_netfilter``)."""


def parse(text: str) -> Firewall:
    """The output of :data:`COMMAND`."""
    bridged, manager, *lines = [*text.strip().splitlines(), "", ""]
    filtered = bridged == "bridged 1"
    if manager == "ufw":
        rules = (line.partition(" comment ")[0] for line in lines if line)
        return Firewall(manager, frozenset(rule.removeprefix("ufw allow ") for rule in rules), filtered)
    if manager == "firewalld":
        return Firewall(manager, frozenset(line.strip() for line in lines if line), filtered)
    if any("hook input" in line and "policy drop" in line for line in lines):
        return Firewall(manager, frozenset(line.strip() for line in lines if "comment" in line), filtered)
    return Firewall(bridged=filtered)
