"""Writes to a VM's disk that has no system on it, as its guest would make them, and looks whether they are there."""

import json
from pathlib import Path
from typing import Any

from ftkvm.lab.host import Host
from ftkvm.lab.looks import hmp

from .seat import Seat

DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


class Disk:
    """What was written to the VM's disk so far: block ``n`` holds pattern ``n``, at ``n`` MiB (up to 255)."""

    def __init__(self, seat: Seat, vm: str) -> None:
        self._seat = seat
        self._vm = vm
        self._written = 0

    def write(self, host: Host) -> None:
        """As the guest on ``host`` would; returns when it would be told that it is done."""
        number = self._written + 1
        said = hmp(host, self._vm, f'qemu-io -d {DEVICE} "write -P {number} {number}M 64k"')
        assert "rror" not in said and "ailed" not in said, said
        self._written = number

    def check(self) -> None:
        """All of it is in the image that the VM now runs on."""
        host, image = place(self._seat, self._vm), image_of(self._seat, self._vm)
        commands = [word for n in range(1, self._written + 1) for word in ("-c", f"read -P {n} {n}M 64k")]
        said = host.run(["qemu-io", "-U", "-r", *commands, image], timeout_s=60)
        assert "ailed" not in said, said
        assert said.count("read 65536/65536") == self._written


def qmp(host: Host, vm: str, command: str, **arguments: Any) -> Any:
    """One QMP command through libvirt."""
    text = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(host.run(["virsh", "qemu-monitor-command", vm, text], timeout_s=60))["return"]


def place(seat: Seat, vm: str) -> Host:
    """The host that runs the VM."""
    return seat.host(str(seat.vm(vm)["host"]))


def image_of(seat: Seat, vm: str, target: str = "vda") -> str:
    """The image the VM runs on."""
    lines = place(seat, vm).run(["virsh", "domblklist", vm]).splitlines()
    return next(line.split()[1] for line in lines if line.split()[:1] == [target])


def images(seat: Seat) -> list[str]:
    """The names of all images of the seat."""
    return sorted(path.name for path in Path(seat.datastore / "images").iterdir())
