"""A lab host that is a virtual machine: a kernel, a CPU that can KVM, a watchdog and a disk of its own."""

import os
import re
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, names, netns, network, operator
from ftkvm.lab.base import LabHost
from ftkvm.lab.monitor import Qmp
from ftkvm.lab.record import record
from ftkvm.lab.system import run, wait_for
from ftkvm.lab.vm import hardware, layer, slowness
from ftkvm.lab.vm.cpus import Cpus
from ftkvm.lab.vm.machine import (
    MEMORY_MIB,
    WATCHDOG_ENABLED,
    WATCHDOG_LOCK,
    Machine,
    accelerator,
    environment,
    monitor_socket,
    qemu_command,
    storage_command,
)

DISK_BYTES = 8 << 30
"""Sparse: takes what is written to it, 0.6 GB at first."""


class VmHost(LabHost):
    """A lab host that is a VM. Commands go in by SSH, as an operator's do."""

    boot_timeout_s = 420
    kvm_probe_s = 120
    own_kernel = True
    storage_can_fail = False  # its virtiofs device comes back only with a boot
    virtiofs = True
    up_when = f"test -S /run/libvirt/libvirt-sock && mountpoint -q {names.DATASTORE_MOUNT}"
    """What holds in it when it is up, beside an sshd that answers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.cpus = Cpus(name)

    def run(self, command: Sequence[str], timeout_s: float = 30, text_in: str | None = None) -> str:
        """As on any host; ``timeout_s`` is in the host's time."""
        return super().run(command, timeout_s * record().time_dilation, text_in)

    @property
    def frozen(self) -> bool:
        """Its CPUs stand still, or all of its hardware; an empty group that was frozen says so for good."""
        return self.running and (self.cgroup.frozen or self.cpus.frozen)

    @property
    def disk(self) -> Path:
        """The image of its disk; it survives a power loss."""
        return self.paths.base / "disk.raw"

    def ready(self) -> bool:
        # A second of its own time: each try begins an sshd there, and many that nobody waits for keep it from its boot.
        wait_s = record().time_dilation
        try:
            with netns.connect(names.CLIENT_NS, names.host_address(self.name, "management"), 22, wait_s) as sock:
                if sock.recv(4) != b"SSH-":
                    return False
        except OSError:
            return False
        return self.succeeds(["sh", "-c", self.up_when])

    # -- its life -----------------------------------------------------------------------------------------------

    def write_hosts_file(self, hosts: Sequence[str]) -> None:
        """All names a lab can have: its disk is closed once it is made."""
        super().write_hosts_file([*dict.fromkeys([*names.host_names(names.MAX_HOSTS), *hosts])])

    def boot(self, image: Path, memory_mib: int | None) -> None:
        if self.running:
            raise FtkvmError("FTKVM-721", host=self.name, state=self.state, wanted="off")
        self.remove_runtime()
        if not self.disk.exists():
            self._make_disk(image)
        network.make_taps(self.name)
        machine = self.machine(image, memory_mib)
        for stale in (machine.storage_socket, monitor_socket(self.name)):
            stale.unlink(missing_ok=True)
        self.cgroup.create(None)
        devices.begin(self.name, vm=True)
        try:
            if self.virtiofs:
                self._begin(storage_command(machine), "datastore.log")
                wait_for(f"the datastore's server of {self.name}", machine.storage_socket.exists, 20, 0.02)
            command = ["ip", "netns", "exec", names.SWITCH_NS, *qemu_command(machine)]
            self._begin(command, "qemu.log", environment(machine))
            wait_for(f"the QEMU of {self.name} (its last words: qemu.log)", monitor_socket(self.name).exists, 20, 0.02)
        except BaseException:
            self.cgroup.kill()
            raise

    def machine(self, image: Path, memory_mib: int | None) -> Machine:
        """Its hardware."""
        machine_id = (self.paths.upper / "etc/machine-id").read_text().strip()
        return Machine(
            self.name, str(uuid.UUID(machine_id)), image, self.disk, memory_mib or MEMORY_MIB,
            accelerator(Path("/proc/cpuinfo").read_text()), not devices.absent(self.name).exists(),
            record().time_dilation, virtiofs=self.virtiofs, hardware=hardware.read(self.name),
        )  # fmt: skip

    def _begin(self, command: list[str], log: str, more: Mapping[str, str] | None = None) -> None:
        with (self.paths.base / log).open("ab") as output:
            # Not ours to wait for: it lives until crash() or down, whatever happens to this command.
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=self.cgroup.enter, env={**os.environ, **(more or {})},
            )  # fmt: skip

    def own_files(self) -> dict[str, str]:
        """Files of its disk that the image has not, or has otherwise."""
        return layer.nic_files(self.name)

    def root_image(self, image: Path) -> Path:
        """What its disk is made of."""
        return image

    def _make_disk(self, image: Path) -> None:
        """The image and the host's own files, written to a disk."""
        for name, content in self.own_files().items():
            file = self.paths.upper / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        devices.install_fence_agent(self.paths.upper)
        root, part = self.paths.root, self.disk.with_suffix(".partial")
        layers = f"lowerdir={self.root_image(image)},upperdir={self.paths.upper},workdir={self.paths.work}"
        run(["mount", "-t", "overlay", names.netns(self.name), "-o", layers, str(root)])
        try:
            with part.open("wb") as disk:
                disk.truncate(DISK_BYTES)
            run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(part)], timeout_s=300)
        finally:
            run(["umount", str(root)])
        part.rename(self.disk)

    # -- faults -------------------------------------------------------------------------------------------------

    def remove_runtime(self) -> None:
        devices.end(self.name)
        super().remove_runtime()

    def freeze(self, *, watchdog_too: bool) -> None:
        """Stops its CPUs, so its kernel too; its clocks and its watchdog run on, unless that is stopped as well."""
        if watchdog_too:
            self.cgroup.freeze(True)
        else:
            self.cpus.stop()

    def thaw(self) -> None:
        self.cgroup.freeze(False)
        self.cpus.let_go()

    def set_link(self, network_name: str, up: bool) -> None:
        """At the switch, and the host's NIC sees that its carrier is gone."""
        network.set_port(self.name, network_name, up)
        if self.cgroup.frozen:
            return
        with closing(Qmp(monitor_socket(self.name))) as monitor:
            monitor("set_link", {"name": f"nic-{names.NETWORKS[network_name].nic}", "up": up})

    def slow(self, network_name: str, delay_ms: float, loss_percent: float) -> None:
        self.run(["sh", "-ec", slowness.script(names.NETWORKS[network_name].nic, delay_ms, loss_percent)])

    def storage_pids(self) -> list[int]:
        return [pid for pid in self.cgroup.pids() if b"virtiofsd" in _command_line(pid)]

    def restart_storage(self) -> None:
        raise FtkvmError("FTKVM-721", host=self.name, state="without its datastore", wanted="booted again")

    def watchdog_state(self) -> str:
        """``none``, ``idle``, ``armed``, ``suspended``, ``fired``. What time it was armed with, only itself knows."""
        if devices.absent(self.name).exists():
            return "none"
        if devices.fired(self.name):
            return "fired"
        if self.cgroup.frozen:
            return "suspended"
        copy = self.paths.base / "watchdog-register"
        with closing(Qmp(monitor_socket(self.name))) as monitor:  # the way that asks no CPU, which may stand still
            monitor("pmemsave", {"val": WATCHDOG_LOCK, "size": 1, "filename": str(copy)})
        return "armed" if copy.read_bytes()[0] & WATCHDOG_ENABLED else "idle"

    def kill(self, daemon: str) -> list[int]:
        """As for every host; the process ids are the host's own."""
        if daemon.startswith("qemu:"):
            pids = self.qemu_pids(daemon.removeprefix("qemu:"))
        else:
            pids = self._pids(f"systemctl show --property=MainPID --value -- {shlex.quote(daemon)}")
        if pids:
            self.run(["kill", "-9", *map(str, pids)])
        return pids

    def qemu_pids(self, vm: str) -> list[int]:
        """By the host's own word: it must run."""
        return self._pids(f"pgrep -f -- '-name '{shlex.quote(f'guest={re.escape(vm)}[, ]')}; true")

    def _pids(self, script: str) -> list[int]:
        return [int(word) for word in self.run(["sh", "-c", script]).split() if word != "0"]

    # -- inside -------------------------------------------------------------------------------------------------

    def enter_command(self, command: Sequence[str]) -> list[str]:
        terminal = ["-t"] if os.isatty(0) and os.isatty(1) else []
        return operator.command(
            [
                "ssh",
                "-F",
                str(operator.SSH_CONFIG),
                "-o",
                "ConnectTimeout=30",
                *terminal,
                self.name,
                shlex.join(command),
            ]
        )


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
