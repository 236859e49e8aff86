"""One host of the lab: a systemd-nspawn container on its own disk, in its own network name space."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, names, netns, network
from ftkvm.lab.base import LabHost
from ftkvm.lab.system import run

DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/fuse")


class Host(LabHost):
    """A lab host that is a container."""

    boot_timeout_s = 60
    kvm_probe_s = 20
    own_kernel = False

    def init_pid(self) -> int | None:
        """The container's process 1 as this machine numbers it."""
        pids = self.cgroup.pids("payload/init.scope")
        return min(pids) if pids else None

    def ready(self) -> bool:
        """Whether sshd answers, libvirtd listens and the datastore is mounted."""
        pid = self.init_pid()
        if pid is None or not Path(f"/proc/{pid}/root/run/libvirt/libvirt-sock").exists():
            return False
        if f" {names.DATASTORE_MOUNT} " not in Path(f"/proc/{pid}/mountinfo").read_text():
            return False
        try:
            with netns.connect(names.CLIENT_NS, names.host_address(self.name, "management"), 22, 1) as sock:
                return sock.recv(4) == b"SSH-"
        except OSError:
            return False

    # -- its life -----------------------------------------------------------------------------------------------

    def boot(self, image: Path, memory_mib: int | None) -> None:
        """Power on: new network name space, the same disk. Returns at once; see `wait_ready`."""
        if self.running:
            raise FtkvmError("FTKVM-721", host=self.name, state=self.state, wanted="off")
        self.remove_runtime()
        network.make_host(self.name)
        paths = self.paths
        for directory in (paths.upper, paths.work, paths.root):
            directory.mkdir(parents=True, exist_ok=True)
        run(
            [
                "mount",
                "-t",
                "overlay",
                names.netns(self.name),
                "-o",
                f"lowerdir={image},upperdir={paths.upper},workdir={paths.work}",
                str(paths.root),
            ]
        )
        devices.install_fence_agent(paths.root)
        devices.begin(self.name)
        self.cgroup.create(memory_mib)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            # A current systemd refuses version 1 control groups; the unified tree is enough for it, even when the
            # machine keeps its controllers elsewhere.
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        with paths.console.open("ab") as console:
            # Not ours to wait for: it lives until crash() or down, whatever happens to this command.
            subprocess.Popen(
                self._nspawn(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
                start_new_session=True,
                preexec_fn=self.cgroup.enter,
            )

    def _nspawn(self) -> list[str]:
        return [
            "systemd-nspawn",
            "--quiet",
            f"--directory={self.paths.root}",
            "--boot",
            "--register=no",
            "--keep-unit",
            f"--machine={names.netns(self.name)}",
            f"--hostname={self.name}",
            f"--network-namespace-path=/run/netns/{names.netns(self.name)}",
            "--capability=all",
            *(f"--bind={device}" for device in DEVICES if Path(device).exists()),
            f"--bind={names.DATASTORE}:/.ftlab/datastore",
            *devices.binds(self.name),
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=read-only",
        ]

    def remove_runtime(self) -> None:
        devices.end(self.name)
        super().remove_runtime()

    # -- inside -------------------------------------------------------------------------------------------------

    def enter_command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command inside the container."""
        pid = self.init_pid()
        if pid is None:
            raise FtkvmError("FTKVM-721", host=self.name, state=self.state, wanted="running")
        return [
            "nsenter",
            f"--target={pid}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--root",
            "--wdns=/",
            "--",
            "/usr/bin/env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            f"TERM={os.environ.get('TERM', 'dumb')}",
            *command,
        ]

    def unit_pids(self, unit: str) -> list[int]:
        """Processes of a systemd unit of the host, numbered as on this machine; read from outside, so that it
        works while the host's systemd is busy or frozen."""
        groups = [Path(each) for each, _below, _files in os.walk(self.cgroup.path / "payload")]  # they come and go
        mine = [group for group in groups if group.name == unit]
        return [pid for group in mine for pid in self.cgroup.pids(str(group.relative_to(self.cgroup.path)))]

    # -- faults -------------------------------------------------------------------------------------------------

    def freeze(self, *, watchdog_too: bool) -> None:
        """Stops every process of the host at once; its kernel still answers pings, its clocks run on."""
        devices.suspend(self.name, watchdog_too)
        self.cgroup.freeze(True)

    def thaw(self) -> None:
        self.cgroup.freeze(False)
        devices.suspend(self.name, False)

    def set_link(self, network_name: str, up: bool) -> None:
        network.set_port(self.name, network_name, up)

    def slow(self, network_name: str, delay_ms: float, loss_percent: float) -> None:
        raise FtkvmError("FTKVM-747", host=self.name)

    def storage_pids(self) -> list[int]:
        return self.unit_pids(names.DATASTORE_UNIT)

    def restart_storage(self) -> None:
        self.run(["systemctl", "restart", names.DATASTORE_UNIT])

    def watchdog_state(self) -> str:
        return devices.watchdog_state(self.name)

    def kill(self, daemon: str) -> list[int]:
        """As for every host; the process ids are this machine's."""
        pids = self.qemu_pids(daemon.removeprefix("qemu:")) if daemon.startswith("qemu:") else self._main_pid(daemon)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def qemu_pids(self, vm: str) -> list[int]:
        """QEMU processes of a VM, looked for from outside (works on a frozen host)."""
        found = []
        for pid in self.cgroup.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(
                word == b"guest=" + vm.encode() or word.startswith(b"guest=" + vm.encode() + b",") for word in words
            ):
                found.append(pid)
        return found

    def _main_pid(self, daemon: str) -> list[int]:
        unit = daemon if "." in daemon else f"{daemon}.service"
        inner = self.run(["systemctl", "show", "--property=MainPID", "--value", "--", unit]).strip()
        for pid in self.unit_pids(unit):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if numbers[-1] == inner:
                return [pid]
        return []
