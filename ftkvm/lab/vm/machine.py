"""The QEMU that is a host's hardware (NICs, disk, watchdog), and the datastore's server. Both are the image's."""

from dataclasses import dataclass, field
from pathlib import Path

from ftkvm.lab import devices, names
from ftkvm.lab.vm import dilation
from ftkvm.lab.vm.hardware import Hardware
from ftkvm.lab.vm.layer import TAG

MEMORY_MIB = 2048
"""Enough for the agent, libvirtd and two small guests: admission control keeps room for a lost host's."""
VCPUS = 2
"""With one a guest's first half minute leaves the agent no turn of its own, and the watchdog is not petted."""
KERNEL_WORDS = "root=/dev/nvme0n1 rw console=ttyS0 quiet panic=1 mitigations=off no_timer_check audit=0"
WATCHDOG_SLOT = 0x10
_WATCHDOG = ("-device", f"i6300esb,addr={WATCHDOG_SLOT:#x}", "-action", "watchdog=none")
"""QEMU tells of it and does no more; the process of the host's devices ends the host."""
_CONFIGURATION_SPACE = 0xB0000000
"""Where q35's firmware puts the configuration registers of the devices, 32 KiB for each slot."""
WATCHDOG_LOCK = _CONFIGURATION_SPACE + (WATCHDOG_SLOT << 15) + 0x68
WATCHDOG_ENABLED = 0x02
"""The address of the watchdog's lock register, and its bit that says that it counts. Source: Intel 6300ESB."""


@dataclass(frozen=True)
class Machine:
    """What a host's hardware is made of."""

    host: str
    uuid: str
    image: Path
    disk: Path
    memory_mib: int
    accelerator: str
    watchdog: bool
    time_dilation: float = 1.0
    vcpus: int = VCPUS
    virtiofs: bool = True
    """Whether it has this machine's directory as its datastore, by a virtiofs device."""
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def paths(self) -> names.HostPaths:
        return names.HostPaths(self.host)

    @property
    def storage_socket(self) -> Path:
        """Between QEMU and the datastore's server."""
        return self.paths.base / "datastore.sock"


def monitor_socket(host: str) -> Path:
    """QMP of the QEMU that is the host."""
    return names.HostPaths(host).base / "qmp.sock"


def accelerator(cpuinfo: str, kvm: Path = Path("/dev/kvm")) -> str:
    """``kvm`` where this machine's CPU says that it can, else ``tcg``; a /dev/kvm alone says nothing."""
    flags = next((line.split(":")[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return "kvm" if kvm.exists() and {"vmx", "svm"} & set(flags) else "tcg"


def _program(image: Path, path: str, *preload: str) -> list[str]:
    """A program of the image with the image's libraries: this machine need not have it."""
    libraries = f"{image}/usr/lib/x86_64-linux-gnu:{image}/usr/lib/x86_64-linux-gnu/pulseaudio"
    before = [word for name in preload for word in ("--preload", f"{image}/{name}")]
    return [f"{image}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, *before, f"{image}/{path}"]


def environment(machine: Machine) -> dict[str, str]:
    """What the QEMU is to be started with, beside what it inherits."""
    return dilation.environment(machine.time_dilation) if machine.time_dilation != 1 else {}


def storage_command(machine: Machine) -> list[str]:
    """The datastore's server of one host: no caches, so that hosts see each other's files as they are."""
    return [
        *_program(machine.image, "usr/libexec/virtiofsd"), f"--socket-path={machine.storage_socket}",
        f"--shared-dir={names.DATASTORE}", "--cache=never", "--allow-direct-io", "--sandbox=none", "--log-level=warn",
        "--inode-file-handles=never",
    ]  # fmt: skip


def _datastore(machine: Machine) -> tuple[str, ...]:
    return ("-chardev", f"socket,id=datastore,path={machine.storage_socket}",
            "-device", f"vhost-user-fs-pci,chardev=datastore,tag={TAG}")  # fmt: skip


def qemu_command(machine: Machine) -> list[str]:
    """The command line; to be run in the switches' name space, where the host's taps are."""
    image, memory = machine.image, f"{machine.memory_mib}M"
    nics: list[str] = []
    for network in names.NETWORKS.values():
        nics += ["-netdev", f"tap,id={network.nic},ifname={names.port(machine.host, network.name)}"
                 ",script=no,downscript=no,vhost=off",
                 "-device", f"virtio-net-pci,netdev={network.nic},id=nic-{network.nic}"
                 f",mac={names.mac(machine.host, network.name)},romfile="]  # fmt: skip
    kernel = sorted((image / "boot").glob("vmlinuz-*"))[-1]
    # With hardware below the CPU is the real one; emulated it is AMD's, with what KVM needs (`svm`) in sight.
    cpu = machine.hardware.cpu_beside("host" if machine.accelerator == "kvm" else "max,+svm")
    words = f"{KERNEL_WORDS} {machine.hardware.kernel}".strip()
    slower = [dilation.LIBRARY] if machine.time_dilation != 1 else []
    return [
        *_program(image, "usr/bin/qemu-system-x86_64", *slower), "-L", f"{image}/usr/share/qemu", "-L",
        f"{image}/usr/share/seabios", "-name", f"{names.netns(machine.host)}", "-uuid", machine.uuid,
        "-machine", f"q35,accel={machine.accelerator},memory-backend=ram", "-cpu", cpu, "-smp", str(machine.vcpus),
        "-m", memory,
        "-object", f"memory-backend-memfd,id=ram,size={memory},share=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "chardev:console",
        "-chardev", f"file,id=console,path={machine.paths.console},append=on",
        "-kernel", str(kernel), "-append", words,
        "-blockdev", f"driver=file,node-name=disk,filename={machine.disk},cache.direct=off,discard=unmap",
        "-device", "nvme,drive=disk,serial=ftlab",
        *(_datastore(machine) if machine.virtiofs else ()),
        "-qmp", f"unix:{monitor_socket(machine.host)},server=on,wait=off",
        "-qmp", f"unix:{devices.directory(machine.host) / devices.EVENTS},server=on,wait=off",
        *nics, *(_WATCHDOG if machine.watchdog else ()),
    ]  # fmt: skip
