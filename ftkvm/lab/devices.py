"""What a host has beside its computer: a watchdog, and the power switch that the others can reach (a fence device).

``python -m ftkvm.lab.devices HOST`` runs outside the container, one process per host, so that it works while the host
is frozen. It begins with the host's boot and ends with its power.

- Watchdog: datagrams ``pet <timeout_ms>`` and ``disarm`` to ``/dev/watchdog`` in the host. Not petted in time, the host
  loses its power: silently, as by `Host.power_off`.
- Power switch: one line ``off HOST`` or ``status HOST`` to ``/.ftlab/devices/fence.sock``, answered ``on``, ``off`` or
  ``error …``; ``/usr/sbin/fence_ftkvm_lab`` in the host speaks it, by the calling convention of fence-agents.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names
from ftkvm.lab.system import wait_for

log = logging.getLogger(__name__)
TICK_S = 0.05
GONE_AFTER_S = 2.0
BOOT_S = 60.0
FENCE_AGENT = Path(__file__).with_name("fence_agent.py")
AGENT_IN_HOST = "usr/sbin/fence_ftkvm_lab"
INSIDE = "/.ftlab/devices"


def directory(host: str) -> Path:
    """Where a host's devices lie on this machine."""
    return names.HOSTS / host / "devices"


def absent(host: str) -> Path:
    """This file says that the host has no watchdog from its next boot on."""
    return names.HOSTS / host / "no-watchdog"


class Watchdog:
    """Counts down. Pure but for the clock handed in (seconds)."""

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.timeout_ms = 0

    def said(self, text: str, now_s: float) -> None:
        """Take in one datagram; what is not understood is not a pet."""
        words = text.split()
        if words == ["disarm"]:
            self.due_s, self.timeout_ms = None, 0
        elif len(words) == 2 and words[0] == "pet" and words[1].isdigit():
            self.timeout_ms = int(words[1])
            self.due_s = now_s + self.timeout_ms / 1000

    def stand_still(self, now_s: float) -> None:
        """Its machine is stopped, and it with it: the countdown begins anew."""
        if self.due_s is not None:
            self.due_s = now_s + self.timeout_ms / 1000

    def expired(self, now_s: float) -> bool:
        return self.due_s is not None and now_s >= self.due_s


class Devices:
    """The process of one host."""

    def __init__(self, host: str) -> None:
        from ftkvm.lab.host import Host  # which starts this process

        self.host = Host(host)
        self.directory = directory(host)
        self.watchdog = Watchdog()
        self.shown: dict[str, object] = {}
        self.selector = selectors.DefaultSelector()
        self.pets = self._listen("watchdog.sock", socket.SOCK_DGRAM)
        self.fence = self._listen("fence.sock", socket.SOCK_STREAM)

    def _listen(self, name: str, kind: int) -> socket.socket:
        path = self.directory / name
        path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(str(path))
        if kind == socket.SOCK_STREAM:
            made.listen(8)
        made.setblocking(False)
        self.selector.register(made, selectors.EVENT_READ)
        return made

    def run(self) -> None:
        """Until the host's power is gone."""
        started, seen, gone_at = time.monotonic(), False, 0.0
        self._show()
        while True:
            for key, _mask in self.selector.select(TICK_S):
                self._petted() if key.fileobj is self.pets else self._asked()
            now = time.monotonic()
            if (self.directory / "suspended").exists():
                self.watchdog.stand_still(now)
            elif self.watchdog.expired(now):
                log.warning("not petted for %d ms: power off", self.watchdog.timeout_ms)
                self.watchdog.due_s = None
                self._show(fired=True)
                self.host.power_off()
            running = self.host.running
            seen = seen or running
            gone_at = 0.0 if running else gone_at or now
            if gone_at and now - gone_at > (GONE_AFTER_S if seen else BOOT_S) and now - started > GONE_AFTER_S:
                return

    def _petted(self) -> None:
        armed = self.watchdog.due_s is not None
        with contextlib.suppress(BlockingIOError):
            while data := self.pets.recv(100):
                self.watchdog.said(data.decode(errors="replace"), time.monotonic())
        if armed != (self.watchdog.due_s is not None):
            self._show()

    def _asked(self) -> None:
        connection, _address = self.fence.accept()
        with connection:
            connection.settimeout(2)
            try:
                verb, _space, plug = connection.recv(200).decode().strip().partition(" ")
                connection.settimeout(30)
                connection.sendall(_switch(verb, plug).encode())
            except (OSError, UnicodeDecodeError, FtkvmError) as error:
                log.warning("fence: %s", error)

    def _show(self, *, fired: bool = False) -> None:
        document = {"armed_ms": self.watchdog.timeout_ms if self.watchdog.due_s is not None else 0,
                    "fired_at": time.time() if fired else None}  # fmt: skip
        temporary = self.directory / "watchdog.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.directory / "watchdog.json")


def _switch(verb: str, plug: str) -> str:
    """Do what a host asked of the power switch of ``plug``."""
    from ftkvm.lab.host import Host

    if not (names.HOSTS / plug).is_dir() or not plug.startswith("host") or "/" in plug:
        return f"error no outlet {plug}\n"
    target = Host(plug)
    if verb == "off" and target.running:
        target.power_off()
    elif verb not in ("off", "status"):
        return f"error no action {verb}\n"
    return "on\n" if target.running else "off\n"


# ------------------------------------------------------------------------------------------- begun and ended by Host


def begin(host: str) -> None:
    """Start the devices of a host that is about to boot; returns when its sockets are there."""
    end(host)
    place = directory(host)
    place.mkdir(parents=True, exist_ok=True)
    (place / "suspended").unlink(missing_ok=True)
    for name in ("watchdog.sock", "fence.sock", "watchdog.json"):
        (place / name).unlink(missing_ok=True)
    with (place / "log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftkvm.lab.devices", host],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            cwd=str(Path(__file__).parents[2]),
        )  # fmt: skip
    (place / "pid").write_text(f"{process.pid} {_begun_at(process.pid)}")
    wait_for(f"the devices of {host}", lambda: (place / "watchdog.json").exists(), 20, 0.02)


def end(host: str) -> None:
    """Stop the devices of a host, if it is still that very process."""
    file = directory(host) / "pid"
    if not file.exists():
        return
    pid, _space, begun = file.read_text().partition(" ")
    if begun and _begun_at(int(pid)) == begun and int(pid) != os.getpid():
        os.kill(int(pid), signal.SIGKILL)
    file.unlink(missing_ok=True)


def _begun_at(pid: int) -> str:
    """The process's start time as the kernel counts it, which with the number names one process; empty: none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def binds(host: str) -> list[str]:
    """What nspawn binds into the host."""
    found = [f"--bind={directory(host)}:{INSIDE}"]
    if not absent(host).exists():
        found.append(f"--bind={directory(host) / 'watchdog.sock'}:/dev/watchdog")
    return found


def install_fence_agent(disk: Path) -> None:
    """Put the fence agent where a package would."""
    target = disk / AGENT_IN_HOST
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(FENCE_AGENT.read_bytes())
    target.chmod(0o755)


def suspend(host: str, on: bool) -> None:
    """The watchdog stands still with its machine (as that of a VM whose hypervisor stops it), or counts again."""
    file = directory(host) / "suspended"
    if on:
        file.touch()
    else:
        file.unlink(missing_ok=True)


def watchdog_state(host: str) -> str:
    """``none``, ``idle``, ``armed (5000 ms)``, ``suspended``, ``fired``, for people."""
    place = directory(host)
    sock = place / "watchdog.sock"
    if absent(host).exists() or not sock.exists() or not stat.S_ISSOCK(sock.stat().st_mode):
        return "none"
    try:
        said = json.loads((place / "watchdog.json").read_text())
    except (OSError, ValueError):
        return "none"
    if said["fired_at"]:
        return "fired"
    if (place / "suspended").exists():
        return "suspended"
    return f"armed ({said['armed_ms']} ms)" if said["armed_ms"] else "idle"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Devices(sys.argv[1]).run()
