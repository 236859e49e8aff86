"""How the agent (or a test) talks to the keeper. Thread-safe: every request has a connection of its own.

A keeper that is being restarted is back within half a second, so requests wait for it up to their time-out, and a
subscription reconnects by itself; every request is idempotent, so one whose answer was lost is simply sent again.
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.keeper.config import run_directory
from ftkvm.keeper.keys import BeatKeys
from ftkvm.keeper.model import EvidenceEvent, Json, KeeperStatus, PairSpec

log = logging.getLogger(__name__)

RETRY_S = 0.05
QUIET_S = 2.0
"""The keeper pushes every 500 ms per pair; a subscription that hears nothing for so long connects anew."""


class KeeperUnavailable(FtkvmError):
    """The keeper of this host does not answer: whether the request took effect is unknown; ask again."""

    def __init__(self, detail: str) -> None:
        super().__init__("FTKVM-240", detail=detail)


class KeeperRefused(FtkvmError):
    """The keeper understood and could not do it (a pair it cannot accept, nftables that cannot be set)."""

    def __init__(self, detail: str) -> None:
        super().__init__("FTKVM-241", detail=detail)


def socket_path() -> Path:
    return run_directory() / "keeper.sock"


def _connect(path: Path, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


class KeeperClient:
    """Requests to the keeper of this host. Raises KeeperUnavailable or KeeperRefused."""

    def __init__(self, path: Path | None = None, timeout_s: float = 2.0) -> None:
        self._path = path or socket_path()
        self._timeout_s = timeout_s

    def set_pair(self, pair: PairSpec) -> None:
        """Declare this host's side of a pair. When it returns the declaration is kept, its taps are gated, and, for
        role *solo*, open."""
        self._request({"op": "set_pair", "pair": pair.to_json()})

    def drop_pair(self, uuid: str) -> None:
        """Forget a pair; its taps are not gated any more. Unknown pairs are fine."""
        self._request({"op": "drop_pair", "uuid": uuid})

    def set_keys(self, keys: BeatKeys) -> None:
        """Have the keeper sign and accept beats by these; when it returns, it does. Older ones are refused."""
        answer = self._request({"op": "set_keys", "keys": keys.text()})
        if answer.get("beat_keys") != keys.number:
            raise KeeperRefused(f"beat keys: it has number {answer.get('beat_keys')}")

    def status(self) -> KeeperStatus:
        return KeeperStatus.from_json(self._request({"op": "status"}))

    def subscribe(
        self, callback: Callable[[EvidenceEvent], None], lost: Callable[[], None] | None = None
    ) -> "Subscription":
        """Call ``callback`` (in a thread of its own) with every piece of evidence, ``lost`` when the keeper went."""
        return Subscription(self._path, callback, lost)

    def _request(self, request: Json) -> Json:
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                answer = self._once(request, max(0.01, deadline_s - time.monotonic()))
                break
            except (OSError, ValueError) as error:
                if time.monotonic() + RETRY_S >= deadline_s:
                    raise KeeperUnavailable(f"{self._path}: {error}") from error
                time.sleep(RETRY_S)
        if not answer.get("ok"):
            raise KeeperRefused(str(answer.get("error")))
        return answer

    def _once(self, request: Json, timeout_s: float) -> Json:
        with _connect(self._path, timeout_s) as sock, sock.makefile("rb") as lines:
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the keeper closed the connection")
        answer: Json = json.loads(line)
        return answer


class Subscription:
    """A running subscription; ``close`` ends its thread."""

    def __init__(
        self, path: Path, callback: Callable[[EvidenceEvent], None], lost: Callable[[], None] | None = None
    ) -> None:
        self._path, self._callback, self._lost = path, callback, lost
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper-evidence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(QUIET_S + 1)

    def _run(self) -> None:
        connected = False
        while not self._closing.is_set():
            try:
                with _connect(self._path, QUIET_S) as sock:
                    sock.sendall(b'{"op":"subscribe"}\n')
                    connected = True
                    self._listen(sock)
            except (OSError, ValueError) as error:
                log.debug("keeper: %s", error)
            if connected and self._lost is not None and not self._closing.is_set():
                self._lost()
            connected = False
            self._closing.wait(RETRY_S)

    def _listen(self, sock: socket.socket) -> None:
        buffered = b""
        while not self._closing.is_set():
            data = sock.recv(65_536)
            if not data:
                return
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                doc = json.loads(line)
                if doc.get("event") == "evidence":
                    self._callback(EvidenceEvent.from_json(doc))
