"""A promoted copy's active disk whose write-back fails: with a real QEMU (the lab image's), without a guest in it.

The secondary's graph is built by hand, its image on a file system of its own that is full; QEMU's failover is begun as
COLO begins it. What the guest would have written is written with QEMU's own qemu-io.
"""

import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ftkvm.engine import secondary, writeback
from ftkvm.engine.secondary import Overlays
from ftkvm.engine.shape import Disk, Shape
from ftkvm.engine.writeback import WriteBack, WriteBackFailed
from ftkvm.lab import lab as labs
from ftkvm.lab import names

from .conftest import FULL, SEED

pytestmark = pytest.mark.lab

S = "/mnt/small/vm.ft-1-s.qcow2"
SCRIPT = """set -e
mount -t tmpfs -o size=64m tmpfs $1/mnt && mkdir $1/mnt/small $1/mnt/big
mount -t tmpfs -o size=40m tmpfs $1/mnt/small
for image in small/vm.ft-1-s big/h big/a; do chroot $1 qemu-img create -q -f qcow2 /mnt/$image.qcow2 64M; done
exec chroot $1 qemu-system-x86_64 -nodefaults -machine pc,accel=tcg -m 32 -display none \
  -qmp unix:/mnt/big/qmp,server=on,wait=off -object throttle-group,id=speed,x-bps-write=$2 \
  -blockdev driver=throttle,node-name=slow,throttle-group=speed,file.driver=file,file.filename=$3 \
  -blockdev driver=qcow2,node-name=libvirt-1-format,file=slow \
  -device virtio-blk-pci,id=virtio-disk0,drive=libvirt-1-format,share-rw=on
"""


class Monitor:
    """Just enough of QMP (the agents' client is a package of their hosts)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 5.0, oob: bool = False
    ) -> Any:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self._lines.flush()
        while "return" not in (said := json.loads(self._lines.readline())):
            assert "error" not in said, f"{command} {arguments}: {said}"
        return said["return"]

    def getfd(self, fd: int, name: str) -> None:
        raise NotImplementedError


class Copy:
    """A QEMU that follows, as after a checkpoint, with 8 MB that its guest has written itself."""

    def __init__(self, directory: Path, bytes_per_s: int) -> None:
        self.said = directory / "stdout"
        image = str(names.IMAGES / labs.record().image)
        with self.said.open("wb") as out:
            words = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", image, str(bytes_per_s), S]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.root = Path(f"/proc/{self.process.pid}/root/mnt")
        self.monitor = self._connect()
        self.committed: list[str] = []
        nodes = self.monitor.execute("query-named-block-nodes", {"flat": True})
        source = next(node["image"]["filename"] for node in nodes if node["node-name"] == "libvirt-1-format")
        self.disk = Disk("vda", "virtio-disk0", source, "qcow2")  # (below a throttle QEMU gives it another name)
        self.shape = Shape("u", "vm", 1, (self.disk,), ())
        secondary.build_disk(self.monitor, self.disk, Overlays("/mnt/big/h.qcow2", "/mnt/big/a.qcow2"))
        self.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "/mnt/big/nbd"}}})
        export = {"type": "nbd", "id": "x", "node-name": "libvirt-1-format", "name": "vda", "writable": True}
        self.monitor.execute("block-export-add", export)
        self.monitor.execute("xen-set-replication", {"enable": True, "primary": False})
        assert self.io("ft-q-vda", "write -P 7 0 8M") == ""

    def _connect(self) -> Monitor:
        deadline = time.monotonic() + 20
        while not (self.root / "big/qmp").is_socket():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.02)
        return Monitor(self.root / "big/qmp")

    def io(self, node: str, command: str) -> str:
        """What qemu-io inside QEMU says, beside the bytes and the speed."""
        words = {"command-line": f'qemu-io {node} "{command}"'}
        return str(self.monitor.execute("human-monitor-command", words))

    def holds(self, node: str) -> bool:
        """Whether the guest's 8 MB can be read there."""
        before = len(self.said.read_text())
        refused = self.io(node, "read -P 7 0 8M")
        said = self.said.read_text()[before:]
        return not refused and "failed" not in said and "read 8388608/8388608" in said

    def fill(self) -> None:
        """No room for S to grow."""
        with (self.root / "small/ballast").open("wb") as file, pytest.raises(OSError, match="space"):
            while True:
                os.write(file.fileno(), bytes(1 << 16))

    def free(self) -> None:
        (self.root / "small/ballast").unlink()

    def fail_over(self) -> None:
        self.monitor.execute("nbd-server-stop")
        self.monitor.execute("xen-set-replication", {"enable": False, "primary": False, "failover": True})

    def normalise(self, monitor: Any = None) -> None:
        secondary.normalise(monitor or self.monitor, self.shape, lambda disk: self.committed.append(disk.target), 20.0)

    def is_ordinary(self) -> bool:
        """The guest runs on S, and nothing of the pair is left."""
        nodes = {node["node-name"] for node in self.monitor.execute("query-named-block-nodes", {"flat": True})}
        path = {"path": self.disk.qom_candidates[0], "property": "drive"}
        on = self.monitor.execute("qom-get", path)
        clean = not [name for name in nodes if name.startswith("ft-")] and not self.monitor.execute("query-jobs")
        return clean and on == "libvirt-1-format" and self.monitor.execute("query-status")["running"]


@contextmanager
def copy(directory: Path, bytes_per_s: int = 1 << 30) -> Iterator[Copy]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    if not labs.RECORD.exists():
        labs.up(1, None, lambda _text: None)
    made = Copy(directory, bytes_per_s)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)


def test_a_commit_that_failed_is_seen_and_made_anew_when_there_is_room(tmp_path: Path) -> None:
    with copy(tmp_path) as this:
        this.fill()
        this.fail_over()
        with pytest.raises(WriteBackFailed, match="No space left"):
            this.normalise()
        with pytest.raises(WriteBackFailed, match="No space left"):  # the next turn
            this.normalise()
        assert this.committed == []  # the scratch disks still count
        assert this.holds("ft-act-vda") and this.monitor.execute("query-status")["running"]
        this.free()
        this.normalise()
        assert this.committed == ["vda"]
        assert this.holds("libvirt-1-format") and this.is_ordinary()
        this.normalise()
        assert this.is_ordinary()


def test_a_slow_commit_is_waited_for(tmp_path: Path) -> None:
    """It shows as a job without a name; nothing is cancelled and made anew."""
    with copy(tmp_path, bytes_per_s=4 << 20) as this:
        this.fail_over()
        assert writeback.look(this.monitor, this.disk) is WriteBack.RUNNING
        this.normalise(Counting(this.monitor, refuse="block-commit"))
        assert this.committed == ["vda"]
        assert this.holds("libvirt-1-format") and this.is_ordinary()


class Dies(Exception):
    """The agent, here."""


class Counting:
    """A monitor over which an agent dies after some commands that change something."""

    def __init__(self, monitor: Monitor, after: int | None = None, refuse: str = "") -> None:
        self._monitor, self._after, self._refuse = monitor, after, refuse
        self.changes: list[str] = []

    def execute(self, command: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
        assert command != self._refuse
        if not command.startswith(("query-", "qom-get", "qom-list", "x-debug")):
            if self._after is not None and len(self.changes) >= self._after:
                raise Dies(command)
            self.changes.append(command)
        return self._monitor.execute(command, arguments, **more)


def test_an_agent_may_die_between_any_two_commands_of_it(tmp_path: Path) -> None:
    """What it does is counted once; then it dies before one of them, and the next one carries on. `make long`: each."""
    with copy(tmp_path) as this:
        monitor = Counting(this.monitor)
        fail_without_room(this)
        this.normalise(monitor)
        commands = monitor.changes
    assert {"stop", "cont", "block-commit", "job-complete", "job-dismiss"} <= set(commands)
    steps = range(len(commands))
    for after in steps if FULL else random.Random(SEED).sample(steps, 4):
        with copy(tmp_path) as this:
            fail_without_room(this)
            with pytest.raises(Dies):
                this.normalise(Counting(this.monitor, after))
            this.normalise()
            assert this.committed and this.is_ordinary(), f"after {commands[:after]}"
            assert this.holds("libvirt-1-format"), f"after {commands[:after]}"


def fail_without_room(this: Copy) -> None:
    """QEMU's own commit fails; then there is room."""
    this.fill()
    this.fail_over()
    deadline = time.monotonic() + 20
    while writeback.look(this.monitor, this.disk) is not WriteBack.FAILED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    this.free()
