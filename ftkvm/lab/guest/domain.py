"""Guests of the lab: their disk, domain and address; and whether KVM works here."""

import json
import subprocess
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import datastore, lab, names, operator
from ftkvm.lab.base import LabHost
from ftkvm.lab.guest import build
from ftkvm.lab.system import run

RECORD = names.STATE / "guests.json"
KVM_RECORD = names.STATE / "kvm.json"

KERNEL_WORDS = "console=tty0 console=ttyS0 panic=1 quiet no_timer_check nokaslr mitigations=off i8042.noprobe"
BANNER = "ftlab: ready"
TEMPLATE = Path(__file__).with_name("domain.xml")
FIRST_NUMBER = 101


@dataclass(frozen=True)
class Guest:
    """A guest the lab has made; ``disk`` is its path on the hosts."""

    name: str
    uuid: str
    number: int
    disk: str

    @property
    def address(self) -> str:
        """Its address on the VM network."""
        return f"{names.NETWORKS['vm'].prefix}.{self.number}"

    @property
    def mac(self) -> str:
        return f"52:54:00:77:03:{self.number:02x}"


def guests() -> dict[str, Guest]:
    """The guests made so far, by name."""
    if not RECORD.exists():
        return {}
    return {name: Guest(**fields) for name, fields in json.loads(RECORD.read_text()).items()}


def guest(name: str) -> Guest:
    """A guest by name; FTKVM-707 with the names that exist."""
    known = guests()
    if name not in known:
        raise FtkvmError("FTKVM-707", what=name, kind="guest of the lab", known=", ".join(known) or "none")
    return known[name]


def install_files() -> build.GuestFiles:
    """Puts kernel and initramfs on the datastore; returns their paths as the hosts see them."""
    made = build.build(names.IMAGES / lab.record().image)
    place = f"guest/{made.kernel.parent.name}"
    datastore.of_lab().put(place, [made.kernel, made.initrd])
    seen = Path(names.DATASTORE_MOUNT) / place
    return build.GuestFiles(seen / "vmlinuz", seen / "initrd")


def create(
    name: str, host: LabHost, disk_size: str, memory_mib: int, vcpus: int, directory: str = names.DATASTORE_MOUNT
) -> Guest:
    """Makes a guest's disk and defines its domain on a host, as an administrator would: over SSH, with virsh."""
    if name in guests():
        raise FtkvmError("FTKVM-729", guest=name)
    if host.state != "running":
        raise FtkvmError("FTKVM-721", host=host.name, state=host.state, wanted="running")
    files = install_files()
    used = {g.number for g in guests().values()}
    number = next(n for n in range(FIRST_NUMBER, 250) if n not in used)
    disk = f"{directory}/images/{name}.qcow2"
    made = Guest(name, str(uuid.uuid4()), number, disk)
    xml = domain_xml(made, files, memory_mib, vcpus, kvm_works(host))
    for command, text in (
        (["mkdir", "-p", f"{directory}/images"], None),
        (["qemu-img", "create", "-q", "-f", "qcow2", disk, disk_size], None),
        (["virsh", "define", "/dev/stdin"], xml),
    ):
        words = operator.ssh(host.name, command)
        run(words, timeout_s=60 * lab.record().time_dilation, env=operator.environment(), text_in=text)
    remember(made)
    return made


def remember(made: Guest) -> None:
    """Puts a guest into the lab's record, from which the next ones take their numbers."""
    RECORD.write_text(json.dumps({n: asdict(g) for n, g in {**guests(), made.name: made}.items()}))


def run_by_kvm(name: str, host: LabHost) -> bool:
    """Whether a running guest's QEMU there says that KVM runs it."""
    return "enabled" in host.run(["virsh", "qemu-monitor-command", "--hmp", "--", name, "info kvm"])


def domain_xml(made: Guest, files: build.GuestFiles, memory_mib: int, vcpus: int, kvm: bool) -> str:
    """The guest's domain XML."""
    return TEMPLATE.read_text().format(
        type="kvm" if kvm else "qemu",
        cpu="<cpu mode='host-model'/>" if kvm else "",
        name=made.name,
        uuid=made.uuid,
        memory_mib=memory_mib,
        vcpus=vcpus,
        kernel=files.kernel,
        initrd=files.initrd,
        disk=made.disk,
        mac=made.mac,
        bridge=names.VM_BRIDGE,
        cmdline=f"{KERNEL_WORDS} ftlab.ip={made.address}/24",
    )


def kvm_state() -> str:
    """``yes``, ``no`` with the reason, or ``not tried yet``; for one boot of the machine and one kind of hosts."""
    if not KVM_RECORD.exists():
        return "not tried yet"
    found = json.loads(KVM_RECORD.read_text())
    valid = found["boot_id"] == _boot_id() and found.get("hosts_as", "containers") == lab.record().hosts_as
    return str(found["state"]) if valid else "not tried yet"


def kvm_works(host: LabHost) -> bool:
    """Whether a guest really runs under KVM in this lab, found out by running one (remembered)."""
    if kvm_state() == "not tried yet":
        found = {"boot_id": _boot_id(), "hosts_as": lab.record().hosts_as, "state": _probe(host)}
        KVM_RECORD.write_text(json.dumps(found))
    return kvm_state() == "yes"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _probe(host: LabHost) -> str:
    if not host.succeeds(["test", "-e", "/dev/kvm"]):
        return "no: there is no /dev/kvm"
    files = install_files()
    command = host.enter_command(
        [
            "timeout",
            "--signal=KILL",
            str(host.kvm_probe_s),
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "192",
            "-kernel",
            str(files.kernel),
            "-initrd",
            str(files.initrd),
            "-append",
            f"{KERNEL_WORDS} ftlab.probe",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-net",
            "none",
            "-no-reboot",
        ]
    )
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=host.kvm_probe_s + 10,
        check=False,
    )
    if BANNER in done.stdout:
        return "yes"
    said = done.stderr.strip().splitlines()
    if said and done.returncode == 1:  # QEMU's own refusal; a hung guest ends by SIGKILL, some with a register dump
        return f"no: {said[-1]}"
    return f"no: /dev/kvm is there, but a guest in it did not come up within {host.kvm_probe_s} s"
