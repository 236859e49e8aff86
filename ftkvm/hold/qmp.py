"""The proxy's end of its own QEMU monitor: events with their times, and ``query-status``. Does not block."""

import json
import logging
import socket
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
log = logging.getLogger(__name__)


class MonitorGone(Exception):
    """The monitor's connection ended: QEMU did, or the monitor was taken away."""


class EventMonitor:
    """``on_event(name, stamp_us)`` for each event, ``on_status(number, status)`` for each answer to ``ask_status``."""

    def __init__(
        self, path: str, on_event: Callable[[str, int], None], on_status: Callable[[int, str], None]
    ) -> None:  # fmt: skip
        """Connect. Raises OSError."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self.ready = False
        self._received = b""
        self._on_event, self._on_status = on_event, on_status

    def ask_status(self, number: int) -> None:
        """Send ``query-status``; the answer comes by ``on_status`` with this number."""
        self._send({"execute": "query-status", "id": number})

    def ask_checkpoint(self) -> None:
        """Have QEMU make a checkpoint now: setting the interval, to what it is, does that."""
        self._send({"execute": "query-migrate-parameters", "id": "interval"})

    def _send(self, command: Json) -> None:
        try:
            self.socket.send(json.dumps(command).encode() + b"\r\n")
        except OSError as error:  # a full buffer too: QEMU has not read dozens of commands
            log.warning("monitor: %s", error)

    def readable(self) -> None:
        """Take in what has come. Raises MonitorGone."""
        try:
            data = self.socket.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            raise MonitorGone(str(error)) from error
        if not data:
            raise MonitorGone("closed by QEMU")
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            doc: Json = json.loads(line)
        except ValueError:
            return
        if "QMP" in doc:
            self._send({"execute": "qmp_capabilities", "id": 0})
        elif "event" in doc:
            stamp = doc["timestamp"]
            self._on_event(doc["event"], stamp["seconds"] * 1_000_000 + stamp["microseconds"])
        elif "return" in doc and doc.get("id") == 0:
            self.ready = True
        elif "return" in doc and doc.get("id") == "interval":
            arguments = {"x-checkpoint-delay": doc["return"]["x-checkpoint-delay"]}
            self._send({"execute": "migrate-set-parameters", "arguments": arguments, "id": "checkpoint"})
        elif "return" in doc and isinstance(doc.get("id"), int):
            self._on_status(doc["id"], str(doc["return"].get("status")))
        elif "error" in doc:
            log.warning("monitor: %s", doc["error"])
