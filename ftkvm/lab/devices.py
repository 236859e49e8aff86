"""What a host has beside its computer: a watchdog, and the power switch that the others can reach (a fence device).

``python -m ftkvm.lab.devices HOST`` (``… HOST vm``) runs outside the host, one process per host, so that it works while
the host is frozen. It begins with the host's boot and ends with its power.

- Watchdog: not petted in time, the host loses its power: silently, as by `LabHost.power_off`. See
  :mod:`ftkvm.lab.watchdogs`.
- Power switch: one line ``off HOST`` or ``status HOST``, answered ``on``, ``off`` or ``error …``; a container has it at
  ``/.ftlab/devices/fence.sock``, a VM at an address of the management network. ``/usr/sbin/fence_ftkvm_lab`` in the
  host speaks it, by the calling convention of fence-agents.
"""

import json
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names, netns
from ftkvm.lab.record import standing
from ftkvm.lab.system import wait_for
from ftkvm.lab.watchdogs import EmulatedDevice, HostWatchdog, PettedSocket

log = logging.getLogger(__name__)
TICK_S = 0.05
GONE_AFTER_S = 2.0
BOOT_S = 60.0
REQUEST_S = 2.0
"""So long, of its own time, a host may take to say what it wants of the switch. The watchdog waits meanwhile."""
FENCE_AGENT = Path(__file__).with_name("fence_agent.py")
AGENT_IN_HOST = "usr/sbin/fence_ftkvm_lab"
INSIDE = "/.ftlab/devices"
EVENTS = "events.sock"
"""In the directory of a VM's devices: the monitor of its QEMU on which its watchdog speaks."""


def directory(host: str) -> Path:
    """Where a host's devices lie on this machine."""
    return names.HOSTS / host / "devices"


def absent(host: str) -> Path:
    """This file says that the host has no watchdog from its next boot on."""
    return names.HOSTS / host / "no-watchdog"


class Devices:
    """The process of one host."""

    def __init__(self, host: str, *, vm: bool) -> None:
        from ftkvm.lab.host import Host  # which starts this process

        self.host = Host(host)  # or a VM: its power is that of any host
        self.directory = directory(host)
        self.watchdog: HostWatchdog = (
            EmulatedDevice(self.directory / EVENTS) if vm else PettedSocket(self.directory / "watchdog.sock")
        )
        self.switch = _listen_on_the_network() if vm else _listen_at(self.directory / "fence.sock")
        there = standing()
        self.request_s = REQUEST_S * (there.time_dilation if there else 1)

    def run(self) -> None:
        """Until the host's power is gone."""
        started, seen, gone_at = time.monotonic(), False, 0.0
        self._show()
        while True:
            self._serve()
            now = time.monotonic()
            if self.watchdog.fired(now, (self.directory / "suspended").exists()):
                log.warning("the watchdog fired: power off")
                self._show(fired=True)
                self.host.power_off()
            running = self.host.running
            seen = seen or running
            gone_at = 0.0 if running else gone_at or now
            if gone_at and now - gone_at > (GONE_AFTER_S if seen else BOOT_S) and now - started > GONE_AFTER_S:
                return

    def _serve(self) -> None:
        source = self.watchdog.source()
        for ready in select.select([self.switch, *([source] if source else [])], [], [], TICK_S)[0]:
            if ready is self.switch:
                self._asked()
                continue
            armed = self.watchdog.armed_ms > 0
            self.watchdog.hear()
            if armed != (self.watchdog.armed_ms > 0):
                self._show()

    def _asked(self) -> None:
        try:
            connection, _address = self.switch.accept()
        except OSError:  # who asked has gone
            return
        with connection:
            connection.settimeout(self.request_s)
            try:
                verb, _space, plug = connection.recv(200).decode().strip().partition(" ")
                connection.settimeout(30)
                connection.sendall(_switch(verb, plug).encode())
            except (OSError, UnicodeDecodeError, FtkvmError) as error:
                log.warning("fence: %s", error)

    def _show(self, *, fired: bool = False) -> None:
        document = {"armed_ms": self.watchdog.armed_ms, "fired_at": time.time() if fired else None}
        temporary = self.directory / "watchdog.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.directory / "watchdog.json")


def _listen_at(path: Path) -> socket.socket:
    """The power switch as a container has it: a socket that is bound into it."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(8)
    made.setblocking(False)
    return made


def _listen_on_the_network() -> socket.socket:
    """The power switch as VMs have it: at the operator's seat on the management network, as a PDU is.

    The process of each host listens there, and the kernel hands a connection to one of them: so there is one switch for
    the lab, and it is there as long as any of its hosts that could ask it.
    """
    made = netns.make_socket(names.CLIENT_NS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((names.client_address("management"), names.POWER_SWITCH_PORT))
    made.listen(8)
    made.setblocking(False)
    return made


def _switch(verb: str, plug: str) -> str:
    """Do what a host asked of the power switch of ``plug``."""
    from ftkvm.lab import lab  # whose hosts start this process

    try:
        target = lab.host(plug)
    except FtkvmError:
        return f"error no outlet {plug}\n"
    if verb == "off" and target.running:
        target.power_off()
    elif verb not in ("off", "status"):
        return f"error no action {verb}\n"
    return "on\n" if target.running else "off\n"


# ------------------------------------------------------------------------------------------- begun and ended by Host


def begin(host: str, *, vm: bool = False) -> None:
    """Start the devices of a host that is about to boot; returns when its sockets are there."""
    end(host)
    place = directory(host)
    place.mkdir(parents=True, exist_ok=True)
    (place / "suspended").unlink(missing_ok=True)
    for name in ("watchdog.sock", "fence.sock", EVENTS, "watchdog.json"):
        (place / name).unlink(missing_ok=True)
    with (place / "log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftkvm.lab.devices", host, *(["vm"] if vm else [])],
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
    """``none``, ``idle``, ``armed (5000 ms)``, ``suspended``, ``fired``, for people; of a container."""
    place = directory(host)
    sock = place / "watchdog.sock"
    if absent(host).exists() or not sock.exists() or not stat.S_ISSOCK(sock.stat().st_mode):
        return "none"
    said = _shown(host)
    if said is None:
        return "none"
    if said["fired_at"]:
        return "fired"
    if (place / "suspended").exists():
        return "suspended"
    return f"armed ({said['armed_ms']} ms)" if said["armed_ms"] else "idle"


def fired(host: str) -> bool:
    """Whether its watchdog has ended the host since its last boot."""
    said = _shown(host)
    return bool(said and said["fired_at"])


def _shown(host: str) -> dict[str, Any] | None:
    """What the process of the host last showed; None if it showed nothing."""
    try:
        return dict(json.loads((directory(host) / "watchdog.json").read_text()))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Devices(sys.argv[1], vm=sys.argv[2:] == ["vm"]).run()
