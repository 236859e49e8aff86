"""The operator's directory ($FTKVM_HOME): the cluster's authority, the operator's certificate, the hosts' addresses.

Nothing else has the authority's key. So every file is on the disk before it counts, and one that is damaged is an error
with its name: an empty revocation list taken for none would have the next one forget who was revoked before. For the
same reason commands that run side by side (several ``host add``, a script's) change a file one after the other, each
from what the one before has left.
"""

import fcntl
import json
import os
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkvm.adapters.local_file import make_directory
from ftkvm.adapters.pki import (
    Authority,
    KeyPair,
    TlsFiles,
    fingerprint,
    identity_of,
    read_revoked,
    unusable,
    write_private,
)
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.trust import Role
from ftkvm.keeper.keys import BeatKeys


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


@dataclass(frozen=True)
class BeatsDue:
    """Hosts that have left and know beat keys that count."""

    due: list[str] = field(default_factory=list)
    """Since the change that is under way began, if one is: it takes another one."""
    leaving: list[str] = field(default_factory=list)
    """Shut out when the change under way is finished."""


class Home:
    """Files: ca.crt, ca.key, client.crt, client.key, beat.key, cluster.json, certificates.json, crl.pem, beats.json.

    All 0600. Locks, which are empty files but for the first: the directory (:meth:`held`), then .entering
    (:meth:`entering`), then .changing; in that order, so nobody waits for somebody who waits for them.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_home()

    def create(self, wanted: ClusterFile) -> None:
        """Make a cluster's authority and the operator's certificate.

        :raises FtkvmError: FTKVM-603, there is one
        """
        if (self.directory / "cluster.json").exists():
            raise FtkvmError("FTKVM-603", home=self.directory)
        make_directory(self.directory)
        authority = Authority.create(wanted.cluster)
        operator = authority.issue("operator", role=Role.ADMINISTRATOR)
        files = {
            "ca.crt": authority.pair.certificate,
            "ca.key": authority.pair.key,
            "client.crt": operator.certificate,
            "client.key": operator.key,
            "beat.key": BeatKeys(0, secrets.token_bytes(32)).text().encode(),
        }
        for name, content in files.items():
            write_private(self.directory / name, content)
        self.note(operator.certificate)
        self.save(replace(wanted, id=secrets.token_hex(8)))  # last: with this file the cluster exists

    def load(self) -> ClusterFile:
        """The cluster of this directory.

        :raises FtkvmError: FTKVM-604 there is none, FTKVM-611 its file is damaged
        """
        with self._reading("cluster.json") as path:
            return ClusterFile(**json.loads(path.read_text()))

    def save(self, cluster: ClusterFile) -> None:
        """Write cluster.json, whatever was in it."""
        write_private(self.directory / "cluster.json", (json.dumps(asdict(cluster), indent=1) + "\n").encode())

    def put_host(self, name: str, entry: dict[str, Any]) -> None:
        """Write down that a host is in the cluster; others that are written down meanwhile stay."""
        with self._locked(".changing"):
            cluster = self.load()
            self.save(replace(cluster, hosts={**cluster.hosts, name: entry}))

    def drop_host(self, name: str) -> ClusterFile:
        """Write down that a host is out; the cluster without it.

        :raises FtkvmError: FTKVM-201, there is none of that name
        """
        with self._locked(".changing"):
            cluster = self.load()
            if name not in cluster.hosts:
                raise FtkvmError("FTKVM-201", host=name)
            left = replace(cluster, hosts={key: entry for key, entry in cluster.hosts.items() if key != name})
            self.save(left)
            return left

    def authority(self) -> Authority:
        """The cluster's certificate authority.

        :raises FtkvmError: FTKVM-604 it is not here, FTKVM-611 a file of it is damaged
        """
        with self._reading("ca.crt") as path:
            certificate = path.read_bytes()
            fingerprint(certificate)  # only to see whether it is one
        with self._reading("ca.key") as path:
            return Authority.load(KeyPair(certificate, path.read_bytes()))

    def beat_keys(self) -> BeatKeys:
        """The hosts' common keys for their beats.

        :raises FtkvmError: FTKVM-604 they are not here, FTKVM-611 they are damaged
        """
        with self._reading("beat.key") as path:
            return BeatKeys.parse(path.read_text())

    def save_beat_keys(self, keys: BeatKeys) -> None:
        """Keep these; they are on the disk when it returns."""
        write_private(self.directory / "beat.key", keys.text().encode())

    def beats_due(self) -> BeatsDue:
        """Who has left and knows beat keys.

        :raises FtkvmError: FTKVM-611, the file is damaged
        """
        if not (self.directory / "beats.json").exists():
            return BeatsDue()
        with self._reading("beats.json") as path:
            return BeatsDue(**json.loads(path.read_text()))

    def save_beats_due(self, due: BeatsDue) -> None:
        """Keep it."""
        write_private(self.directory / "beats.json", (json.dumps(asdict(due)) + "\n").encode())

    @contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Keep the beat keys from changing (several commands may), or change them (``alone``); waits for others."""
        with _flock(self.directory, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            yield

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Around a host's entry into the cluster, until it is written down here; waits for another host's."""
        with self._locked(".entering"):
            yield

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone with what is done under this name, also among threads of one process."""
        with _flock(self.directory / name, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX):
            yield

    def tls(self) -> TlsFiles:
        """The operator's side of mutual TLS."""
        return TlsFiles.in_directory(self.directory, "client")

    def client_context(self) -> ssl.SSLContext:
        """For connections to agents.

        :raises FtkvmError: FTKVM-611, a file is missing or damaged
        """
        found = unusable(self.tls())
        if found is not None:
            raise FtkvmError("FTKVM-611", path=found[0], detail=found[1])
        self.revoked()
        return self.tls().client_context()

    # certificates that were issued, and those that count no more

    def note(self, certificate: bytes) -> dict[str, Any]:
        """Write down a certificate (PEM) that was issued here; returns its row."""
        found = identity_of(certificate)
        row = {"name": found.name, "role": str(found.role), "serial": found.serial,
               "not_after": found.not_after, "fingerprint": fingerprint(certificate)}  # fmt: skip
        with self._locked(".changing"):
            rows = [*(each for each in self.issued() if each["serial"] != found.serial), row]
            write_private(self.directory / "certificates.json", (json.dumps(rows, indent=1) + "\n").encode())
        return row

    def issued(self) -> list[dict[str, Any]]:
        """Rows of all certificates that were issued here, oldest first.

        :raises FtkvmError: FTKVM-611, the file cannot be read
        """
        if not (self.directory / "certificates.json").exists():
            return []
        with self._reading("certificates.json") as path:
            return list(json.loads(path.read_text()))

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
        """Make the next revocation list, with these and all before; it counts on a host once that has it.

        safety: two made side by side from the same list before would each lack what the other revokes, under one
        number, and hosts take only a list whose number is higher: one of the two would stay good there.
        """
        with self._locked(".changing"):
            number, there = self._read_list()
            content = self.authority().revoke(there | serials, number + 1)
            write_private(self.directory / "crl.pem", content)
        return content

    def _read_list(self) -> tuple[int, frozenset[str]]:
        if not (self.directory / "crl.pem").exists():
            return 0, frozenset()
        with self._reading("ca.crt") as path:
            authority = path.read_bytes()
            fingerprint(authority)
        with self._reading("crl.pem") as path:
            return read_revoked(path.read_bytes(), authority)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """Tell a file that is not there from one that is damaged, and name it."""
        path = self.directory / name
        try:
            yield path
        except FileNotFoundError as error:
            raise FtkvmError("FTKVM-604", home=self.directory) from error
        except (OSError, ValueError, TypeError) as error:
            empty = path.is_file() and not path.stat().st_size
            detail = "it is empty" if empty else str(error) or type(error).__name__
            raise FtkvmError("FTKVM-611", path=path, detail=detail) from error


@contextmanager
def _flock(path: Path, flags: int, kind: int) -> Iterator[None]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
