"""The operator's directory ($FTKVM_HOME): the cluster's authority, the operator's certificate, the hosts' addresses."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkvm.adapters.pki import (
    Authority,
    KeyPair,
    TlsFiles,
    fingerprint,
    identity_of,
    new_beat_key,
    read_revoked,
    write_private,
)
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role


def default_home() -> Path:
    """``$FTKVM_HOME``, else ``~/.config/ftkvm``."""
    return Path(os.environ.get("FTKVM_HOME") or "~/.config/ftkvm").expanduser()


@dataclass(frozen=True)
class ClusterFile:
    """cluster.json: what ``cluster create`` was told, and the hosts as last seen. Networks are CIDRs."""

    cluster: str
    id: str
    datastore: str
    management_network: str
    ft_network: str
    migration_network: str
    vm_bridges: list[str]
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def entry(self, host: str) -> HostEntry:
        """One host's addresses.

        :raises FtkvmError: FTKVM-201
        """
        if host not in self.hosts:
            raise FtkvmError("FTKVM-201", host=host)
        return HostEntry.from_json(host, self.hosts[host])


class Home:
    """Files: ca.crt, ca.key, client.crt, client.key, beat.key, cluster.json, certificates.json, crl.pem; all 0600."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_home()

    def create(self, wanted: ClusterFile) -> None:
        """Make a cluster's authority and the operator's certificate.

        :raises FtkvmError: FTKVM-603, there is one
        """
        if (self.directory / "cluster.json").exists():
            raise FtkvmError("FTKVM-603", home=self.directory)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = Authority.create(wanted.cluster)
        operator = authority.issue("operator", role=Role.ADMINISTRATOR)
        files = {
            "ca.crt": authority.pair.certificate,
            "ca.key": authority.pair.key,
            "client.crt": operator.certificate,
            "client.key": operator.key,
            "beat.key": new_beat_key(),
        }
        for name, content in files.items():
            write_private(self.directory / name, content)
        self.note(operator.certificate)
        self.save(replace(wanted, id=secrets.token_hex(8)))  # last: with this file the cluster exists

    def load(self) -> ClusterFile:
        """The cluster of this directory.

        :raises FtkvmError: FTKVM-604, there is none or it cannot be read
        """
        try:
            return ClusterFile(**json.loads((self.directory / "cluster.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise FtkvmError("FTKVM-604", home=self.directory) from error

    def save(self, cluster: ClusterFile) -> None:
        """Write cluster.json."""
        write_private(self.directory / "cluster.json", (json.dumps(asdict(cluster), indent=1) + "\n").encode())

    def authority(self) -> Authority:
        """The cluster's certificate authority."""
        try:
            pair = KeyPair((self.directory / "ca.crt").read_bytes(), (self.directory / "ca.key").read_bytes())
            return Authority.load(pair)
        except (OSError, ValueError) as error:
            raise FtkvmError("FTKVM-604", home=self.directory) from error

    def beat_key(self) -> bytes:
        """The hosts' common key for their beats."""
        return (self.directory / "beat.key").read_bytes()

    def tls(self) -> TlsFiles:
        """The operator's side of mutual TLS."""
        return TlsFiles.in_directory(self.directory, "client")

    # certificates that were issued, and those that count no more

    def note(self, certificate: bytes) -> dict[str, Any]:
        """Write down a certificate (PEM) that was issued here; returns its row."""
        found = identity_of(certificate)
        row = {"name": found.name, "role": str(found.role), "serial": found.serial,
               "not_after": found.not_after, "fingerprint": fingerprint(certificate)}  # fmt: skip
        rows = [*(each for each in self.issued() if each["serial"] != found.serial), row]
        write_private(self.directory / "certificates.json", (json.dumps(rows, indent=1) + "\n").encode())
        return row

    def issued(self) -> list[dict[str, Any]]:
        """Rows of all certificates that were issued here, oldest first.

        :raises FtkvmError: FTKVM-604, the file cannot be read
        """
        try:
            return list(json.loads((self.directory / "certificates.json").read_text()))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise FtkvmError("FTKVM-604", home=self.directory) from error

    def revocation_list(self) -> bytes:
        """The newest revocation list, PEM; empty: nothing was ever revoked."""
        try:
            return (self.directory / "crl.pem").read_bytes()
        except FileNotFoundError:
            return b""

    def revoked(self) -> frozenset[str]:
        """Serial numbers that count no more, hex."""
        return self._read_list()[1]

    def revoke(self, serials: set[str]) -> bytes:
        """Make the next revocation list, with these and all before; it counts on a host once that has it."""
        number, there = self._read_list()
        content = self.authority().revoke(there | serials, number + 1)
        write_private(self.directory / "crl.pem", content)
        return content

    def _read_list(self) -> tuple[int, frozenset[str]]:
        content = self.revocation_list()
        try:
            return read_revoked(content, self.authority().certificate) if content else (0, frozenset())
        except ValueError as error:
            raise FtkvmError("FTKVM-604", home=self.directory) from error
