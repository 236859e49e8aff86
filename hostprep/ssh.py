"""One SSH connection to a host whose key is known; anything else is refused with the way to mend it."""

import base64
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import paramiko

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.patience import stretched

_CONNECT_TIMEOUT_S = 5.0
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its errors come to us as exceptions


@dataclass(frozen=True)
class Target:
    """Where and as whom to log in."""

    host: str
    address: str
    user: str = "root"
    port: int = 22
    key: Path | None = None
    known_hosts: Path = Path("~/.ssh/known_hosts")


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit status (124: it did not end in time)."""

    status: int
    stdout: str
    stderr: str


class _Unknown(Exception):
    def __init__(self, key: Any) -> None:
        super().__init__("unknown host key")
        self.key = key


class _Refuse:
    """As paramiko's RejectPolicy, but the key is kept to be shown (paramiko asks for no more than this method)."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise _Unknown(key)


class Session:
    """A connection on which commands are run; use as a context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._client = paramiko.SSHClient()

    @property
    def host(self) -> str:
        """The host's name in the cluster."""
        return self.target.host

    def __enter__(self) -> "Session":
        target, client, limit_s = self.target, self._client, stretched(_CONNECT_TIMEOUT_S)
        known_hosts = target.known_hosts.expanduser()
        for path in (SYSTEM_KNOWN_HOSTS, known_hosts):
            if path.is_file():
                client.load_host_keys(str(path))
        client.set_missing_host_key_policy(_Refuse())
        asked = {"host": target.host, "address": target.address, "known_hosts": known_hosts, "user": target.user}
        try:
            client.connect(
                target.address, target.port, target.user,
                key_filename=str(target.key) if target.key else None,
                timeout=limit_s, banner_timeout=limit_s, auth_timeout=stretched(15.0),
            )  # fmt: skip
        except _Unknown as error:
            raise FtkvmError("FTKVM-203", **asked, fingerprint=fingerprint(error.key)) from error
        except paramiko.BadHostKeyException as error:
            raise FtkvmError("FTKVM-204", **asked, fingerprint=fingerprint(error.key)) from error
        except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
            raise FtkvmError("FTKVM-205", **asked) from error
        except (OSError, paramiko.SSHException, EOFError) as error:
            detail = str(error) or type(error).__name__
            raise FtkvmError("FTKVM-210", **asked, detail=detail) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        """Run a shell command with ``stdin`` and wait for its end, at most ``timeout_s`` (:mod:`ftkvm.cli.patience`).

        :raises FtkvmError: FTKVM-210, the connection broke
        """
        timeout_s = stretched(timeout_s)
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("connection closed")
            channel = transport.open_session(timeout=stretched(_CONNECT_TIMEOUT_S))
            try:
                channel.settimeout(timeout_s)
                channel.exec_command(command)
                if stdin:
                    channel.sendall(stdin)
                channel.shutdown_write()
                return _collect(channel, time.monotonic() + timeout_s)
            finally:
                channel.close()
        except (OSError, paramiko.SSHException, EOFError) as error:
            target = self.target
            detail = f"the connection broke: {error or type(error).__name__}"
            raise FtkvmError("FTKVM-210", host=target.host, address=target.address, detail=detail) from error


def _collect(channel: Any, deadline: float) -> Result:
    out, err = bytearray(), bytearray()
    while True:
        moved = False
        while channel.recv_ready():
            out += channel.recv(65536)
            moved = True
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(65536)
            moved = True
        if not moved and channel.exit_status_ready() and not channel.recv_ready() and not channel.recv_stderr_ready():
            return Result(channel.recv_exit_status(), out.decode(errors="replace"), err.decode(errors="replace"))
        if time.monotonic() > deadline:
            return Result(124, out.decode(errors="replace"), "no end in time")
        if not moved:
            time.sleep(0.01)


def fingerprint(key: Any) -> str:
    """A host key's fingerprint as ``ssh-keygen -l`` shows it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"
