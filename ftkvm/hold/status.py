"""Read a hold proxy's status (for the agent). The proxy writes one JSON line to whoever connects."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NicStatus:
    """One NIC: frames so far, except ``bytes_tx``; ``*_now`` and ``oldest_*_ms`` are what waits at the moment.

    ``ahead``: frames that colo-compare let out and that waited because they say more than the secondary knows;
    ``secondary``: frames the secondary's guest sent; ``unmarked``: checkpoints whose mark came late (``acks``).
    """

    compared: int
    held: int
    released: int
    passed: int
    dropped: int
    bytes_tx: int
    held_frames_now: int
    held_bytes_now: int
    oldest_held_ms: float
    backlog_bytes: int
    ahead: int
    ahead_frames_now: int
    oldest_ahead_ms: float
    secondary: int
    unmarked: int


@dataclass(frozen=True)
class HoldStatus:
    """``ready``: it listens and its monitor answers; ``connected``: of QEMU's five sockets per NIC; ``exited``: COLO
    ended, nothing is released any more; pauses are from STOP to RESUME as QEMU stamped them.

    ``secondary_silent_ms``: since when the secondary's guest has sent nothing although the primary's has, in so many
    intervals between checkpoints and so many frames; 0: it has sent something since the last checkpoint.
    """

    ready: bool
    connected: int
    exited: bool
    checkpoints: int
    last_pause_ms: float
    pause_total_ms: float
    tx_bytes_per_s: int
    secondary_silent_ms: float
    silent_intervals: int
    silent_frames: int
    nics: dict[str, NicStatus]

    @property
    def held_frames(self) -> int:
        """Frames that had to wait so far, of all NICs."""
        return sum(nic.held for nic in self.nics.values())


def from_json(doc: dict[str, Any]) -> HoldStatus:
    nics = {name: NicStatus(**nic) for name, nic in doc["nics"].items()}
    fields = {name: doc[name] for name in HoldStatus.__dataclass_fields__ if name != "nics"}
    return HoldStatus(nics=nics, **fields)


def fetch(path: Path, timeout_s: float = 1.0) -> HoldStatus:
    """Raises OSError (also on time-out) if the proxy does not answer, ValueError on an answer that is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
        with sock.makefile("rb") as lines:
            line = lines.readline()
    try:
        return from_json(json.loads(line))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error!r}") from error
