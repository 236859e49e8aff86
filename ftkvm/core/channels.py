"""What travels between hosts, on which network, and what keeps it from others. Pure data, see docs/security.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Channel:
    """``protection``: what keeps it from being read and forged; empty: nothing but the network it is bound to."""

    name: str
    network: str
    protection: str = ""


@dataclass(frozen=True)
class Encryption:
    """What the cluster encrypts of what does not go through the agents: ft.encryption, migration.encryption."""

    ft: bool = True
    migration: bool = True


def channels(encryption: Encryption) -> tuple[Channel, ...]:
    """All channels, as the next pair and the next migration open them."""
    pair = "TLS 1.3, a key for each epoch" if encryption.ft else ""
    memory = "TLS 1.3, in libvirt's conversation" if encryption.migration else ""
    return (
        Channel("API of the agents", "management", "TLS 1.3, certificates on both sides"),
        Channel("beats of HA", "management", "signed, numbered, echoed"),
        Channel("beats of the pairs", "ft", "signed, numbered, echoed"),
        Channel("libvirt's conversation at a migration", "migration", "TLS 1.3, certificates of hosts on both sides"),
        Channel("memory of migrated VMs", "migration", memory),
        Channel("checkpoints of FT VMs", "ft", pair),
        Channel("disk writes of FT VMs", "ft", pair),
        Channel("frames of FT VMs", "ft", pair),
    )


def unprotected(channels: tuple[Channel, ...]) -> dict[str, list[str]]:
    """By network, what travels there readable for whoever is on it."""
    found: dict[str, list[str]] = {}
    for each in channels:
        if not each.protection:
            found.setdefault(each.network, []).append(each.name)
    return found
