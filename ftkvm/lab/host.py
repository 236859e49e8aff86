"""One host of the lab: a systemd-nspawn container on its own disk, in its own network name space."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import devices, names, netns, network
from ftkvm.lab.names import HostPaths
from ftkvm.lab.system import Cgroup, mounts_below, run, succeeds, wait_for

DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/fuse")
BOOT_TIMEOUT_S = 60


class Host:
    """A lab host by name. All state is read from the machine, none is kept here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = HostPaths(name)
        self.cgroup = Cgroup(names.netns(name))

    # -- what it is doing ---------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.cgroup.populated

    @property
    def frozen(self) -> bool:
        return self.cgroup.frozen

    @property
    def state(self) -> str:
        """``running``, ``frozen``, ``booting`` or ``off``."""
        if not self.running:
            return "off"
        if self.frozen:
            return "frozen"
        return "running" if self.ready() else "booting"

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

    def prepare_disk(self, hosts: Sequence[str], authorized_key: str) -> None:
        """The host's own disk as an installer leaves it: name, machine id, SSH host key, the operator's key."""
        disk = self.paths.upper
        if (disk / "etc/machine-id").exists():
            return
        for directory in (disk / "etc/ssh", disk / "root/.ssh", self.paths.work, self.paths.root):
            directory.mkdir(parents=True, exist_ok=True)
        (disk / "etc/hostname").write_text(f"{self.name}\n")
        self.write_hosts_file(hosts)
        run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"root@{self.name}",
                "-f",
                str(disk / "etc/ssh/ssh_host_ed25519_key"),
            ]
        )
        (disk / "root/.ssh").chmod(0o700)
        (disk / "root").chmod(0o700)
        (disk / "root/.ssh/authorized_keys").write_text(authorized_key)
        (disk / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")

    def write_hosts_file(self, hosts: Sequence[str]) -> None:
        """Who is who on the management network (a lab has no name server)."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        lines += [f"{names.host_address(h, 'management')} {h}" for h in hosts]
        target = self.paths.root if mounts_below(self.paths.root) else self.paths.upper
        (target / "etc/hosts").write_text("\n".join(lines) + "\n")

    def host_key(self) -> str:
        """The public half of its SSH host key, ``ssh-ed25519 AAAA…``."""
        words = (self.paths.upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        return " ".join(words[:2])

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

    def wait_ready(self) -> None:
        """Waits for `ready`; FTKVM-722 with the console's last lines when it does not come."""
        try:
            wait_for(f"{self.name} to boot", self.ready, BOOT_TIMEOUT_S)
        except FtkvmError:
            lines = self.paths.console.read_text(errors="replace").splitlines()[-12:]
            raise FtkvmError(
                "FTKVM-722",
                host=self.name,
                timeout_s=BOOT_TIMEOUT_S,
                console=self.paths.console,
                detail="\n".join(lines),
            ) from None

    def power_off(self) -> None:
        """A silent power loss: the cables first, so that no FIN or RST of dying processes gets out."""
        network.cut_all(self.name)
        self.cgroup.kill()

    def remove_runtime(self) -> None:
        """Everything a power loss would take (processes, memory, links); the disk stays."""
        devices.end(self.name)
        if self.running:
            self.power_off()
        self.cgroup.remove()
        network.remove_host(self.name)
        for point in mounts_below(self.paths.base):
            run(["umount", "-l", str(point)])

    def remove(self) -> None:
        """Removes the host with its disk."""
        self.remove_runtime()
        if self.paths.base.exists():
            shutil.rmtree(self.paths.base)

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

    def run(self, command: Sequence[str], timeout_s: float = 30, text_in: str | None = None) -> str:
        """Runs a command in the host and returns its output (FTKVM-709 when it fails)."""
        return run(self.enter_command(command), timeout_s, text_in)

    def succeeds(self, command: Sequence[str], timeout_s: float = 20) -> bool:
        return succeeds(self.enter_command(command), timeout_s)

    def unit_pids(self, unit: str) -> list[int]:
        """Processes of a systemd unit of the host, numbered as on this machine; read from outside, so that it
        works while the host's systemd is busy or frozen."""
        groups = [Path(each) for each, _below, _files in os.walk(self.cgroup.path / "payload")]  # they come and go
        mine = [group for group in groups if group.name == unit]
        return [pid for group in mine for pid in self.cgroup.pids(str(group.relative_to(self.cgroup.path)))]
