"""The operator's seat: the client name space with an SSH key that the hosts accept and the hosts' real keys."""

import os
from collections.abc import Sequence

from ftkvm.lab import names
from ftkvm.lab.base import LabHost
from ftkvm.lab.system import run

KEY = names.OPERATOR / ".ssh/id_ed25519"
KNOWN_HOSTS = names.OPERATOR / ".ssh/known_hosts"
SSH_CONFIG = names.OPERATOR / ".ssh/config"


def prepare_key() -> str:
    """Makes the operator's key pair if there is none; returns the public line."""
    KEY.parent.mkdir(parents=True, exist_ok=True)
    KEY.parent.chmod(0o700)
    if not KEY.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "operator@ftkvm-lab", "-f", str(KEY)])
    SSH_CONFIG.write_text(
        f"Host *\n  User root\n  IdentityFile {KEY}\n  UserKnownHostsFile {KNOWN_HOSTS}\n"
        "  StrictHostKeyChecking yes\n  ConnectTimeout 5\n"
    )
    return KEY.with_suffix(".pub").read_text()


def write_known_hosts(hosts: Sequence[LabHost]) -> None:
    """The hosts' real keys, by name and by address, and the names' addresses for the client name space."""
    lines = []
    for host in hosts:
        lines.append(f"{host.name},{names.host_address(host.name, 'management')} {host.host_key()}")
    KNOWN_HOSTS.write_text("\n".join(lines) + "\n")
    etc = names.NETNS_ETC / names.CLIENT_NS  # `ip netns exec` lays this over /etc
    etc.mkdir(parents=True, exist_ok=True)
    addresses = [f"{names.host_address(h.name, 'management')} {h.name}" for h in hosts]
    (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses]) + "\n")


def command(words: Sequence[str]) -> list[str]:
    """The command line that runs a command at the operator's seat."""
    return ["ip", "netns", "exec", names.CLIENT_NS, *words]


def environment() -> dict[str, str]:
    return dict(os.environ, FTKVM_HOME=str(names.OPERATOR), HOME=str(names.OPERATOR))


def ssh(host: str, words: Sequence[str]) -> list[str]:
    """The command line for SSH to a host as the operator does it."""
    return command(["ssh", "-F", str(SSH_CONFIG), host, *words])
