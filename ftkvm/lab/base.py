"""What a lab host is, whatever it is made of: its disk as an installer leaves it, its power, cables and commands."""

import os
import shutil
import signal
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names, network
from ftkvm.lab.names import HostPaths
from ftkvm.lab.system import Cgroup, mounts_below, run, succeeds, wait_for


class LabHost(ABC):
    """A lab host by name. All state is read from the machine, none is kept here.

    All its processes are in one control group, so its power is one SIGKILL and its standstill one freeze.
    """

    boot_timeout_s: ClassVar[float]
    kvm_probe_s: ClassVar[int]
    """How long a guest gets to show that KVM works: on hardware it takes a second, under an emulated machine 15.
    Spent once, and only where KVM does not work."""

    own_kernel: ClassVar[bool]
    """Whether its kernel stands still with it, and may have frames in hand that leave it after the thaw."""

    storage_can_fail: ClassVar[bool] = True
    """Whether a datastore that is gone can come back without a boot."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = HostPaths(name)
        self.cgroup = Cgroup(names.netns(name))

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

    @abstractmethod
    def ready(self) -> bool:
        """Whether sshd answers, libvirtd listens and the datastore is mounted."""

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

    @abstractmethod
    def boot(self, image: Path, memory_mib: int | None) -> None:
        """Power on, with the same disk. Returns at once; see `wait_ready`."""

    def wait_ready(self) -> None:
        """Waits for `ready`; FTKVM-722 with the console's last lines when it does not come."""
        try:
            wait_for(f"{self.name} to boot", self.ready, self.boot_timeout_s)
        except FtkvmError:
            lines = self.paths.console.read_text(errors="replace").splitlines()[-12:]
            raise FtkvmError(
                "FTKVM-722",
                host=self.name,
                timeout_s=f"{self.boot_timeout_s:.0f}",
                console=self.paths.console,
                detail="\n".join(lines),
            ) from None

    def power_off(self) -> None:
        """A silent power loss: the cables first, so that no FIN or RST of dying processes gets out."""
        network.cut_all(self.name)
        self.cgroup.kill()

    def remove_runtime(self) -> None:
        """Everything a power loss would take (processes, memory, links); the disk stays."""
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

    # -- faults -------------------------------------------------------------------------------------------------

    @abstractmethod
    def freeze(self, *, watchdog_too: bool) -> None:
        """Stop it where it stands."""

    @abstractmethod
    def thaw(self) -> None:
        """Let it go on."""

    @abstractmethod
    def set_link(self, network_name: str, up: bool) -> None:
        """Plug the cable of one network in or out."""

    @abstractmethod
    def slow(self, network_name: str, delay_ms: float, loss_percent: float) -> None:
        """Frames on one network are late or lost, in both directions; twice 0: no more."""

    def storage_state(self) -> str:
        """``ok``, ``hung`` or ``failed``: the datastore as this host, which runs, sees it."""
        pids = self.storage_pids()
        try:
            stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
        except OSError:
            return "failed"
        if any(fields[0] in "Tt" for fields in stats):
            return "hung"
        return "ok" if stats else "failed"

    def hang_storage(self) -> None:
        """From now on every access of this host alone blocks."""
        for pid in self.storage_pids():
            os.kill(pid, signal.SIGSTOP)

    def fail_storage(self) -> None:
        """From now on every access of this host alone is an error."""
        for pid in self.storage_pids():
            os.kill(pid, signal.SIGKILL)

    def mend_storage(self, state: str) -> None:
        """Takes back what made this state."""
        if state == "failed":
            self.restart_storage()
        for pid in self.storage_pids() if state == "hung" else []:
            os.kill(pid, signal.SIGCONT)

    @abstractmethod
    def storage_pids(self) -> list[int]:
        """The processes, as this machine numbers them, through which this host alone sees the datastore."""

    @abstractmethod
    def restart_storage(self) -> None:
        """Bring back a datastore that failed."""

    @abstractmethod
    def watchdog_state(self) -> str:
        """For people: ``none``, ``idle``, ``armed (5000 ms)``, …"""

    @abstractmethod
    def kill(self, daemon: str) -> list[int]:
        """SIGKILL the main process of a unit, or with ``qemu:VM`` a VM's QEMU; the process ids, if any."""

    @abstractmethod
    def qemu_pids(self, vm: str) -> list[int]:
        """QEMU processes of a VM, numbered as :meth:`kill` tells them."""

    # -- inside -------------------------------------------------------------------------------------------------

    @abstractmethod
    def enter_command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in the host."""

    def run(self, command: Sequence[str], timeout_s: float = 30, text_in: str | None = None) -> str:
        """Runs a command in the host and returns its output (FTKVM-709 when it fails)."""
        return run(self.enter_command(command), timeout_s, text_in)

    def succeeds(self, command: Sequence[str], timeout_s: float = 20) -> bool:
        return succeeds(self.enter_command(command), timeout_s)
