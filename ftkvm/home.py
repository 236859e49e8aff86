"""The operator's directory ($FTKVM_HOME): the cluster's authority, the operator's certificate, the hosts' addresses."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkvm.adapters.pki import Authority, KeyPair, TlsFiles, new_beat_key, write_private
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry


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
    """Files: ca.crt, ca.key, client.crt, client.key, beat.key, cluster.json; keys are 0600."""

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
        operator = authority.issue("operator", server=False)
        files = {
            "ca.crt": authority.pair.certificate,
            "ca.key": authority.pair.key,
            "client.crt": operator.certificate,
            "client.key": operator.key,
            "beat.key": new_beat_key(),
        }
        for name, content in files.items():
            write_private(self.directory / name, content)
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
