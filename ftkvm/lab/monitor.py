"""A QEMU's monitor for the lab's own QEMUs: as plainly as can be, without libvirt."""

import array
import json
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Qmp:
    """A monitor, as plainly as can be: one command at a time; events are kept."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        until(lambda: self._socket.connect_ex(str(path)) == 0, 20)
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        self._line(20)
        self("qmp_capabilities", {"enable": ["oob"]})

    def __call__(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fd: int | None = None,
        oob: bool = False,
        timeout_s: float = 20,
    ) -> Any:
        words = {"exec-oob" if oob else "execute": command, "id": 1, "arguments": arguments or {}}
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        self._socket.sendmsg([json.dumps(words).encode() + b"\n"], passed)
        while True:
            answer = self._line(timeout_s)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def fileno(self) -> int:
        """To wait for an event with `select`; then :meth:`hear`."""
        return self._socket.fileno()

    def hear(self) -> None:
        """Take in the events that are there. Raises OSError when the QEMU has ended."""
        try:
            if select.select([self._socket], [], [], 0)[0]:
                self._receive()
        finally:
            while b"\n" in self._rest:
                self.events.append(self._line(0))

    def close(self) -> None:
        self._socket.close()

    def _line(self, timeout_s: float) -> dict[str, Any]:
        while b"\n" not in self._rest:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                raise TimeoutError("the monitor is silent")
            self._receive()
        line, self._rest = self._rest.split(b"\n", 1)
        return dict(json.loads(line))

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError("the monitor has ended")
        self._rest += received


def until(true: Callable[[], bool], timeout_s: float) -> float:
    """Wait; how many seconds it took."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.003)
    return time.monotonic() - begun
