"""What a host must stand on before it is one: its networks (:mod:`hostprep.nics`), the VMs' bridge and the datastore's
mount, where asked for; and one of its kernel's modules. Pure.

All are systemd units, so that they hold whatever manages the host's networks, and across its reboots.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ftkvm.catalogue import FtkvmError
from hostprep import modules
from hostprep.facts import HostFacts
from hostprep.journal import note_unit
from hostprep.nics import NAME, Nic, Surroundings, nic_steps
from hostprep.plan import file_step, journal_step, package_steps
from hostprep.step import Step

NFS_PACKAGE = "nfs-common"
NFS_OPTIONS = "vers=4.2,proto=tcp,hard,timeo=100,retrans=2,actimeo=0,lookupcache=none,nodev,nosuid,_netdev"
"""How an NFS datastore is mounted.

safety: ``vers=4.2``: since 4.1 a request that is sent again is not done again, so `link()` does not answer *exists* for
its own file. ``hard``: a write whose reply was lost is repeated until it is answered; *soft* would call it failed, done
or not. ``actimeo=0,lookupcache=none``: a file that another host has created is seen by the next who asks; with the
kernel's caches *there is no winner yet* can be as old as a minute (docs/safety.md). Locks are the server's (no
``nolock``, no ``local_lock``), since libvirt and QEMU lock images. Source: nfs(5).
"""
_SYSTEMD = "/etc/systemd/system"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_EXPORT = re.compile(r"[A-Za-z0-9_.:\[\]-]+:/[A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Ground:
    """What the operator asked for. ``nic``: name or MAC of the bridge's only port; ``export``: ``SERVER:/PATH``;
    ``nics``: the host's own networks."""

    nic: str = ""
    export: str = ""
    nics: tuple[Nic, ...] = ()

    def __post_init__(self) -> None:
        if self.nic and not (NAME.fullmatch(self.nic) or _MAC.fullmatch(self.nic)):
            raise FtkvmError("FTKVM-605", option="--bridge-nic", detail=f"{self.nic!r} is no name or MAC of a NIC")
        if self.export and not _EXPORT.fullmatch(self.export):
            detail = f"{self.export!r} is no export: it is written SERVER:/PATH"
            raise FtkvmError("FTKVM-605", option="--datastore-nfs", detail=detail)
        used = [nic for each in self.nics for nic in each.nics] + [self.nic]
        networks = [each.network for each in self.nics]
        twice = {word for words in (used, networks) for word in words if word and words.count(word) > 1}
        if twice:
            raise FtkvmError("FTKVM-605", option="--nic", detail=f"{', '.join(sorted(twice))}: given twice")


def ground_steps(
    facts: HostFacts, asked: Ground, host: str, bridge: str, datastore: str, journal: str, around: Surroundings
) -> list[Step]:
    """The steps that are needed; none if all is there.

    :raises FtkvmError: FTKVM-206 no system that we prepare, 390, 391, 392 the NIC cannot be the bridge's, 393 something
        else is mounted; 242, 390, 751, 752 the networks
    """
    steps = [modules.load_tun()] if "tun" in facts.modules and "/dev/net/tun" not in facts.devices else []
    steps += [step for each in asked.nics for step in nic_steps(facts, each, host, around, journal)]
    steps += [*_bridge(facts, asked.nic, host, bridge, journal), *_mount(facts, asked.export, host, datastore, journal)]
    if steps and facts.system_id != "debian 13":
        raise FtkvmError("FTKVM-206", host=host, system=facts.system)
    return [journal_step(journal), *steps] if steps else []


def files_of(steps: Iterable[Step]) -> dict[str, tuple[bytes, int]]:
    """The files that the steps write, as a dry run shows them."""
    return {step.name.removeprefix("file "): (step.stdin, 0o644) for step in steps if step.name.startswith("file ")}


def _bridge(facts: HostFacts, nic: str, host: str, bridge: str, journal: str) -> Iterator[Step]:
    if not nic:
        return
    own = (name for name, link in facts.links.items() if link.mac == nic and name != bridge)  # it takes its port's MAC
    nic = next(own, nic)
    link = facts.links.get(nic)
    if link is None:
        raise FtkvmError("FTKVM-390", host=host, nic=nic, known=", ".join(sorted(facts.links)))
    if bridge in facts.bridges and link.master == bridge:
        return
    if link.master or bridge in facts.bridges:
        there = f"{nic} is a port of {link.master}" if link.master else f"{bridge} is there, and {nic} is no port of it"
        raise FtkvmError("FTKVM-392", host=host, nic=nic, bridge=bridge, there=there)
    if link.addresses:  # safety: a port's own address goes dead; it may be the one we have come by
        raise FtkvmError("FTKVM-391", host=host, nic=nic, bridge=bridge, addresses=", ".join(link.addresses))
    unit = f"ftkvm-bridge-{bridge}.service"
    yield file_step(f"{_SYSTEMD}/{unit}", bridge_unit(bridge, nic).encode(), 0o644, journal)
    proof = f"test -e /sys/class/net/{bridge}/brif/{nic}"
    yield _enable(unit, f"make the bridge {bridge} with {nic} as its port", proof, journal)


def _mount(facts: HostFacts, export: str, host: str, datastore: str, journal: str) -> Iterator[Step]:
    if not export:
        return
    if facts.mounted == export:
        return
    if facts.mounted:
        raise FtkvmError("FTKVM-393", host=host, path=datastore, there=facts.mounted, export=export)
    yield from package_steps(facts, NFS_PACKAGE, [NFS_PACKAGE], journal)
    unit = mount_unit_name(datastore)
    yield file_step(f"{_SYSTEMD}/{unit}", mount_unit(export, datastore).encode(), 0o644, journal)
    yield _enable(unit, f"mount {export} at {datastore}", f"mountpoint -q {shlex.quote(datastore)}", journal)


def _enable(unit: str, text: str, proof: str, journal: str) -> Step:
    name = shlex.quote(unit)
    return Step(
        f"unit {unit}",
        text,
        f"{note_unit(journal, unit)} && systemctl daemon-reload && systemctl enable -q --now {name}"
        f" && sync -f {_SYSTEMD}",
        proof,
        f"systemctl disable -q --now {name}",
        timeout_s=150.0,
    )


def bridge_unit(bridge: str, nic: str) -> str:
    """The unit that makes the bridge at each boot, before libvirt and our agent need it."""
    return f"""\
[Unit]
Description=ftkvm: {bridge}, the bridge of the VMs, on {nic}
Before=libvirtd.service ftkvm-keeper.service ftkvm-agent.service

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=60
ExecStart=/bin/sh -c 'until [ -e /sys/class/net/{nic} ]; do sleep 0.1; done'
ExecStart=/bin/sh -c '[ -e /sys/class/net/{bridge} ] || ip link add {bridge} type bridge'
ExecStart=ip link set dev {nic} master {bridge}
ExecStart=ip link set dev {nic} up
ExecStart=ip link set dev {bridge} up
ExecStop=ip link delete dev {bridge}

[Install]
WantedBy=multi-user.target
"""


def mount_unit_name(path: str) -> str:
    """systemd's name for the mount unit of a path, as ``systemd-escape --path --suffix=mount`` writes it."""
    plain = "/".join(part for part in path.split("/") if part)

    def escaped(index: int, char: str) -> str:
        if char == "/":
            return "-"
        if char.isascii() and (char.isalnum() or char in ":_" or (char == "." and index)):
            return char
        return "".join(f"\\x{byte:02x}" for byte in char.encode())

    return "".join(escaped(index, char) for index, char in enumerate(plain)) + ".mount"


def mount_unit(export: str, path: str) -> str:
    """The unit that mounts the datastore at each boot."""
    return f"""\
[Unit]
Description=ftkvm datastore
Before=ftkvm-agent.service

[Mount]
What={export}
Where={path}
Type=nfs
Options={NFS_OPTIONS}
TimeoutSec=90

[Install]
WantedBy=remote-fs.target
"""
