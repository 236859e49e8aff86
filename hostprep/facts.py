"""What is there on a host: one shell script asks, pure parsers understand the answers."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ftkvm.catalogue import FtkvmError
from ftkvm.core import clock as clocks
from ftkvm.core.clock import Clock
from hostprep import firewall as firewalls
from hostprep import modules
from hostprep import sources as apt_sources
from hostprep.firewall import Firewall
from hostprep.place import strangers
from hostprep.runner import Runner
from hostprep.sources import Source

PACKAGES = (
    "libvirt-daemon-system", "libvirt-clients", "python3", "python3-libvirt", "python3-fastapi", "python3-uvicorn",
    "python3-httpx", "python3-pydantic", "python3-rich", "python3-click", "python3-cryptography", "python3-psutil",
    "python3-nftables", "python3-pyroute2", "nftables", "iproute2",
)  # fmt: skip
"""What the agent and the VMs need of Debian 13 itself."""
BACKPORTS = ("qemu-system-x86", "qemu-utils", "python3-qemu-qmp")
"""What must come from Debian's backports: QEMU 11.1 or newer, and its QMP library."""
OTHERS = ("nfs-common",)
"""Looked for, and needed by some hosts only."""
UNITS = ("ftkvm-agent.service", "ftkvm-keeper.service")
NIC_UNITS = {network: f"ftkvm-nic-{network}.service" for network in ("management", "ft", "migration")}
"""By network: what sets it up, where :mod:`hostprep.nics` was asked to."""
MARK = "==ftkvm=="


@dataclass(frozen=True)
class Link:
    """A network interface: the bridge or bond it belongs to, its addresses but those of the link itself, its MAC.

    ``mtu`` in bytes; ``up``: it is switched on, whether there is a cable or not.
    """

    master: str = ""
    addresses: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    up: bool = False


@dataclass(frozen=True)
class HostFacts:
    """A host as it is. ``digests`` has the SHA-256 of every file asked for that exists."""

    system: str
    system_id: str
    packages: Mapping[str, str]
    addresses: tuple[str, ...]
    bridges: tuple[str, ...]
    mount_point: str
    datastore_status: str
    qemu: tuple[int, ...]
    libvirt: tuple[int, ...]
    devices: tuple[str, ...]
    digests: Mapping[str, str]
    units: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ca_certificate: str = ""
    host_certificate: str = ""
    manifest: str = ""
    strangers: tuple[str, ...] = ()
    """What is where our program goes and was not put there by us."""
    machine_id: str = ""
    boot_id: str = ""
    configuration: str = ""
    """The text of the newest configuration of the cluster whose datastore this is; empty if there is none."""
    links: Mapping[str, Link] = field(default_factory=dict)
    mounted: str = ""
    """What is mounted at the datastore's own path (``server:/export``, a device); empty if nothing is."""
    clock: Clock = field(default_factory=Clock)
    firewall: Firewall = field(default_factory=Firewall)
    modules: tuple[str, ...] = ()
    """Those of :data:`hostprep.modules.WANTED` that the host's kernel has and its processor is for."""
    sources: tuple[Source, ...] = ()
    """Where its apt gets packages from, but for our own file."""


def script(datastore: str, files: Sequence[str]) -> str:
    """The shell script whose output :func:`parse` understands; it changes nothing but a test file on the datastore."""
    commands = sections(datastore, files)
    return "\n".join(f"echo '{MARK}{name}'\n{command}" for name, command in commands.items()) + f"\necho '{MARK}end'\n"


def sections(datastore: str, files: Sequence[str]) -> dict[str, str]:
    """Each fact's name and its command."""
    # a name of its own: hosts that are looked at side by side would remove each other's (seen: FTKVM-301)
    path, probe = shlex.quote(datastore), shlex.quote(f"{datastore}/.ftkvm-write-test-") + '"$(uname -n)"'
    names = " ".join(shlex.quote(name) for name in files)
    packages = " ".join((*PACKAGES, *BACKPORTS, *OTHERS))
    write = f"dd if=/dev/zero of={probe} bs=4k count=1 conv=fsync 2>&1 && rm -f {probe}"
    configs = shlex.quote(f"{datastore}/.ftkvm/config")
    newest = f"cd {configs} 2>/dev/null && cat $(ls | grep -x '[0-9]\\{{7\\}}[.]json' | tail -n 1) </dev/null"
    unit = "echo $unit $(systemctl is-enabled $unit 2>/dev/null) $(systemctl is-active $unit)"
    return {
        "os": "cat /etc/os-release",
        "packages": f"dpkg-query -W -f '${{Package}} ${{Version}} ${{db:Status-Status}}\\n' {packages} 2>/dev/null",
        "addresses": "ip -j -4 addr",
        "links": "ip -j addr",
        "mounted": f"timeout -s KILL 5 findmnt -n -o SOURCE -M {path}",
        "bridges": "ls -d /sys/class/net/*/bridge 2>/dev/null",
        "mount": f"timeout -s KILL 5 findmnt -n -o TARGET -T {path} 2>&1; echo status $?",
        "datastore": f"LC_ALL=C timeout -s KILL 5 sh -c {shlex.quote(write)}; echo status $?",
        "qemu": "qemu-system-x86_64 --version 2>/dev/null",
        "libvirt": "libvirtd --version 2>/dev/null || virsh --version 2>/dev/null",
        "devices": "ls /dev/kvm /dev/net/tun /dev/watchdog 2>/dev/null",
        "digests": f"sha256sum {names} 2>/dev/null",
        "units": f"for unit in {' '.join((*UNITS, *NIC_UNITS.values()))}; do {unit}; done",
        "ca": "cat /etc/ftkvm/pki/ca.crt 2>/dev/null",
        "certificate": "cat /etc/ftkvm/pki/host.crt 2>/dev/null",
        "strangers": strangers(),
        "manifest": "cat /opt/ftkvm/.manifest 2>/dev/null",
        "machine": "cat /etc/machine-id 2>/dev/null",
        "boot": "cat /proc/sys/kernel/random/boot_id",
        "clock": f"timeout -s KILL 5 sh -c {shlex.quote(clocks.COMMAND)} 2>/dev/null",
        "firewall": f"timeout -s KILL 20 sh -c {shlex.quote(firewalls.COMMAND)}",
        "modules": modules.COMMAND,
        "sources": apt_sources.COMMAND,
        "configuration": f"timeout -s KILL 5 sh -c {shlex.quote(newest)}",
    }  # fmt: skip


def gather(session: Runner, datastore: str, files: Sequence[str]) -> HostFacts:
    """Ask a host.

    :raises FtkvmError: FTKVM-209, the answers are not understood
    """
    result = session.run("sh -s", script(datastore, files).encode(), 60.0)
    try:
        return parse(result.stdout)
    except (KeyError, ValueError, IndexError) as error:
        detail = f"{error!r}: {(result.stderr or result.stdout)[-300:]}"
        raise FtkvmError("FTKVM-209", host=session.host, step="facts", detail=detail) from error


def parse(text: str) -> HostFacts:
    """The facts in the script's output.

    :raises ValueError, KeyError: it is cut off, or not that output
    """
    parts = _sections(text)
    if "end" not in parts:
        raise ValueError("the output is cut off")
    release = parse_os_release(parts["os"])
    mount_lines = parts["mount"].splitlines()
    return HostFacts(
        system=release.get("PRETTY_NAME", "an unknown system"),
        system_id=f"{release.get('ID', '?')} {release.get('VERSION_ID', '?')}",
        packages=parse_packages(parts["packages"]),
        addresses=parse_addresses(parts["addresses"]),
        links=parse_links(parts["links"]),
        mounted=parts["mounted"].strip().partition("\n")[0],
        bridges=tuple(re.findall(r"/sys/class/net/([^/\s]+)/bridge", parts["bridges"])),
        mount_point=mount_lines[0] if mount_lines[-1] == "status 0" else "",
        datastore_status=parse_datastore(parts["datastore"]),
        qemu=parse_version(parts["qemu"]),
        libvirt=parse_version(parts["libvirt"]),
        devices=tuple(parts["devices"].split()),
        digests=parse_digests(parts["digests"]),
        units=parse_units(parts["units"]),
        ca_certificate=parts["ca"],
        host_certificate=parts["certificate"],
        manifest=parts["manifest"].strip(),
        strangers=tuple(parts["strangers"].split()),
        machine_id=parts["machine"].strip(),
        boot_id=parts["boot"].strip(),
        configuration=parts["configuration"].strip(),
        clock=clocks.parse(parts["clock"]),
        firewall=firewalls.parse(parts["firewall"]),
        modules=tuple(parts["modules"].split()),
        sources=apt_sources.parse(parts["sources"]),
    )


def _sections(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for chunk in text.split(MARK)[1:]:
        name, _newline, body = chunk.partition("\n")
        parts[name.strip()] = body
    return parts


def parse_os_release(text: str) -> dict[str, str]:
    """os-release's assignments."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: value.strip().strip('"') for key, _equals, value in pairs}


def parse_packages(text: str) -> dict[str, str]:
    """Versions of the packages that are fully installed."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}


def parse_addresses(text: str) -> tuple[str, ...]:
    """IPv4 addresses with their prefix length (``10.0.0.1/24``) of interfaces, from ``ip -j -4 addr``."""
    found = []
    for interface in json.loads(text or "[]"):
        for entry in interface.get("addr_info", []):
            if entry.get("family") == "inet" and interface.get("ifname") != "lo":
                found.append(f"{entry['local']}/{entry['prefixlen']}")
    return tuple(found)


def parse_links(text: str) -> dict[str, Link]:
    """All interfaces, from ``ip -j addr``."""
    found = {}
    for interface in json.loads(text or "[]"):
        infos = [entry for entry in interface.get("addr_info", []) if entry.get("scope") != "link"]
        addresses = tuple(f"{entry['local']}/{entry['prefixlen']}" for entry in infos)
        mac = str(interface.get("address", ""))
        master, up = str(interface.get("master", "")), "UP" in interface.get("flags", [])
        found[str(interface.get("ifname"))] = Link(master, addresses, mac, int(interface.get("mtu", 0)), up)
    return found


def parse_version(text: str) -> tuple[int, ...]:
    """The first x.y[.z] in a text; empty if there is none."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def parse_datastore(text: str) -> str:
    """One word for the attempt to write: ok, hung, full, read-only, missing, or the error."""
    lines = text.strip().splitlines()
    status = lines[-1] if lines else ""
    if status == "status 0":
        return "ok"
    if status in ("status 124", "status 137"):
        return "hung"
    words = {"No space left": "full", "Disk quota": "full", "Read-only": "read-only", "Permission denied": "read-only",
             "No such file": "missing", "Not a directory": "missing"}  # fmt: skip
    return next((word for start, word in words.items() if start in text), " ".join(lines[:-1])[-200:] or status)


def parse_digests(text: str) -> dict[str, str]:
    """sha256sum's lines as path → digest."""
    rows = (line.split(maxsplit=1) for line in text.splitlines())
    return {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2 and len(row[0]) == 64}


def parse_units(text: str) -> dict[str, tuple[str, str]]:
    """Unit → (enabled, active) as systemctl words them."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: (row[1] if len(row) > 2 else "", row[-1]) for row in rows if len(row) >= 2}
