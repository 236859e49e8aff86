"""What travels between hosts, on which network, and what keeps it from others. Pure data, see docs/security.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Channel:
    """``protection``: what keeps it from being read and forged; empty: nothing but the network it is bound to."""

    name: str
    network: str
    protection: str = ""


CHANNELS: tuple[Channel, ...] = (
    Channel("API of the agents", "management", "TLS 1.3, certificates on both sides"),
    Channel("beats of HA", "management", "signed, numbered, echoed"),
    Channel("beats of the pairs", "ft", "signed, numbered, echoed"),
    Channel("libvirt's conversation at a migration", "migration", "TLS 1.3, certificates of hosts on both sides"),
    Channel("memory of migrated VMs", "migration"),
    Channel("checkpoints of FT VMs", "ft"),
    Channel("disk writes of FT VMs", "ft"),
    Channel("frames of FT VMs", "ft"),
)


def unprotected(channels: tuple[Channel, ...] = CHANNELS) -> dict[str, list[str]]:
    """By network, what travels there readable for whoever is on it."""
    found: dict[str, list[str]] = {}
    for each in channels:
        if not each.protection:
            found.setdefault(each.network, []).append(each.name)
    return found
