"""The ways to break the lab. Each checks that the fault makes sense first, and returns once it has taken hold."""

import time
from collections.abc import Mapping

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, lab, names
from ftkvm.lab.base import LabHost
from ftkvm.lab.host import Host
from ftkvm.lab.system import exclusive, wait_for
from ftkvm.lab.vm import hardware
from ftkvm.lab.vm.host import VmHost

ASK_AGAIN_S = 5.0
"""A host that is busy may not answer at once, and looks as one that boots. In the hosts' time."""


def _require(host: LabHost, *states: str) -> None:
    state, until = host.state, time.monotonic() + ASK_AGAIN_S * lab.record().time_dilation
    while state == "booting" and state not in states and time.monotonic() < until:
        time.sleep(0.2)
        state = host.state
    if state not in states:
        raise FtkvmError("FTKVM-721", host=host.name, state=state, wanted=" or ".join(states))


def crash(name: str) -> None:
    """Power loss: no FIN or RST gets out, every process is gone, memory and links too; the disk stays."""
    host = lab.host(name)
    if not host.running:
        raise FtkvmError("FTKVM-721", host=name, state="off", wanted="running")
    host.power_off()


def start(name: str) -> None:
    """Power on after a crash; returns when the host answers."""
    host = lab.host(name)
    with exclusive(names.LOCK, "the lab's lock"):
        there = lab.record()
        host.boot(names.IMAGES / there.image, there.memory_mib)
    host.wait_ready()


def freeze(name: str, *, watchdog_too: bool = False) -> None:
    """Stops every process of the host at once, and a VM's kernel too; a container's still answers pings. Clocks run on.

    An armed watchdog then ends the host; with ``watchdog_too`` it stands still as well, until the thaw.
    """
    host = lab.host(name)
    _require(host, "running", "booting")
    host.freeze(watchdog_too=watchdog_too)


def thaw(name: str) -> None:
    host = lab.host(name)
    _require(host, "frozen")
    host.thaw()


def watchdog(name: str, present: bool) -> None:
    """Whether the host has a watchdog, from its next boot on."""
    lab.host(name)
    if present:
        devices.absent(name).unlink(missing_ok=True)
    else:
        devices.absent(name).touch()


def change_hardware(name: str, parts: Mapping[str, str]) -> hardware.Hardware:
    """The host's hardware from its next boot on, as it is then; FTKVM-748 if it is a container."""
    if not isinstance(lab.host(name), VmHost):
        raise FtkvmError("FTKVM-748", host=name)
    return hardware.change(name, parts)


def cut(name: str, network_name: str) -> None:
    """Pulls the host's cable out of one network's switch (again: no harm)."""
    _set_link(name, network_name, up=False)


def heal(name: str, network_name: str) -> None:
    """Plugs the cable in again."""
    _set_link(name, network_name, up=True)


def slow(name: str, network_name: str, delay_ms: float, loss_percent: float) -> None:
    """Each frame of the host on one network is late (in its own time) or lost, in both directions; 0 and 0: no more."""
    host = lab.host(name)
    _require_network(network_name)
    _require(host, "running", "booting")
    host.slow(network_name, delay_ms, loss_percent)


def _require_network(network_name: str) -> None:
    if network_name not in names.NETWORKS:
        raise FtkvmError("FTKVM-707", what=network_name, kind="network", known=", ".join(names.NETWORKS))


def _set_link(name: str, network_name: str, up: bool) -> None:
    host = lab.host(name)
    _require_network(network_name)
    if not host.running:
        raise FtkvmError("FTKVM-721", host=name, state="off", wanted="running")
    host.set_link(network_name, up)


def storage(name: str, wanted: str) -> None:
    """``hang``: every access blocks. ``fail``: every access is an error (not connected). ``ok``: back again."""
    host = lab.host(name)
    _require(host, "running", "frozen", "booting")
    state = lab.storage_state(host)
    if wanted == "ok":
        _mend_storage(host, state)
        return
    if state == "failed" or state == {"hang": "hung"}.get(wanted):
        raise FtkvmError("FTKVM-724", host=name, state=state, wanted="ok")
    if wanted == "fail" and not host.storage_can_fail:
        raise FtkvmError("FTKVM-741", host=name, wanted=wanted)
    if wanted == "hang":
        host.hang_storage()
    else:
        host.fail_storage()
    reached = "hung" if wanted == "hang" else "failed"
    wait_for(f"the datastore of {name} to be {reached}", lambda: lab.storage_state(host) == reached, 5, 0.005)


def _mend_storage(host: LabHost, state: str) -> None:
    if state == "failed":
        _require(host, "running", "booting")
    host.mend_storage(state)
    wait_for(f"the datastore of {host.name}", lambda: lab.storage_state(host) == "ok", 5, 0.01)


def kill(name: str, daemon: str) -> list[int]:
    """SIGKILL to the main process of a unit (``libvirtd``, ``ftkvm-agent`` …), or with ``qemu:VM`` to a VM's QEMU.

    Returns the process ids, numbered as on this machine.
    """
    host = lab.host(name)
    _require(host, "running")
    pids = host.kill(daemon)
    if not pids:
        running = host.run(["systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"])
        known = ", ".join(line.split()[0].removesuffix(".service") for line in running.splitlines())
        raise FtkvmError("FTKVM-725", daemon=daemon, host=name, known=known)
    return pids


def qemu_pids(host: Host, vm: str) -> list[int]:
    """QEMU processes of a VM on a host, looked for from outside (works on a frozen host)."""
    return host.qemu_pids(vm)
