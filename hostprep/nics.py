"""A host's own networks: addresses on NICs that have none yet, or on bonds of such NICs. Pure.

Each is one systemd unit, as the VMs' bridge is: it holds whatever manages the host's other networks.

A wrong address or route can cut the host off from whoever prepares it. So a timer on the host takes each back after
:data:`REVERT_S`, unless it is stopped over a *new* connection: what is open already proves nothing.
"""

import ipaddress
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ftkvm.catalogue import FtkvmError
from hostprep.facts import NIC_UNITS, HostFacts, Link
from hostprep.journal import note_unit
from hostprep.plan import file_step
from hostprep.step import Step

NETWORKS = tuple(NIC_UNITS)
MODES = ("active-backup", "802.3ad", "balance-xor")
"""Of bonds. The first needs nothing of the switch; the others are a port channel there, with LACP or without."""
REVERT_S = 60
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
"""Of a NIC."""
_SYSTEMD = "/etc/systemd/system"
_LEAST_MTU, _MOST_MTU = 1280, 65535
_FORM = "it is written NETWORK=NIC[+NIC...],ADDRESS/LENGTH[,mtu=BYTES][,mode=MODE]"


@dataclass(frozen=True)
class Nic:
    """One network of the host. ``nics``: several make a bond; ``mtu``: in bytes, 0: as it is."""

    network: str
    nics: tuple[str, ...]
    address: ipaddress.IPv4Interface
    mtu: int = 0
    mode: str = MODES[0]

    @classmethod
    def parse(cls, text: str) -> "Nic":
        """From ``ft=ens1+ens2,10.0.1.11/24,mtu=9000,mode=802.3ad``.

        :raises FtkvmError: FTKVM-605
        """
        network, _equals, rest = text.partition("=")
        names, _comma, rest = rest.partition(",")
        address, *options = rest.split(",")
        try:
            given = dict(_pair(option) for option in options)
            mtu = int(given.pop("mtu", "0"))
            found = cls(network, tuple(names.split("+")), _address(address), mtu, given.pop("mode", MODES[0]))
        except ValueError as error:
            raise FtkvmError("FTKVM-605", option="--nic", detail=f"{text!r}: {error}; {_FORM}") from error
        wrong = found._wrong() or (f"{', '.join(given)}: no such word" if given else "")
        if wrong:
            raise FtkvmError("FTKVM-605", option="--nic", detail=f"{text!r}: {wrong}; {_FORM}")
        return found

    def _wrong(self) -> str:
        if self.network not in NETWORKS:
            return f"the networks are {', '.join(NETWORKS)}"
        if not all(NAME.fullmatch(nic) for nic in self.nics) or len(set(self.nics)) < len(self.nics):
            return f"{'+'.join(self.nics)!r} are no names of NICs"
        if self.mtu and not _LEAST_MTU <= self.mtu <= _MOST_MTU:
            return f"an MTU is {_LEAST_MTU} to {_MOST_MTU} bytes"
        return "" if self.mode in MODES else f"the modes are {', '.join(MODES)}"

    @property
    def device(self) -> str:
        """What gets the address."""
        return self.nics[0] if len(self.nics) == 1 else f"bond-{self.network}"

    @property
    def unit(self) -> str:
        return NIC_UNITS[self.network]

    @property
    def step(self) -> str:
        """The name of the step after which it is there."""
        return f"unit {self.unit}"


def _address(text: str) -> ipaddress.IPv4Interface:
    address = ipaddress.IPv4Interface(text)
    if "/" not in text or address.ip in (address.network.network_address, address.network.broadcast_address):
        raise ValueError(f"{text!r} is no host's address with its prefix length")
    return address


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no option")
    return key, value


@dataclass(frozen=True)
class Surroundings:
    """What the cluster knows. ``networks``: by name, as CIDR; ``taken``: hosts' addresses → (host, network)."""

    networks: Mapping[str, str]
    taken: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def others(self, network: str, host: str) -> dict[str, str]:
        """The other hosts' addresses there → their names."""
        return {at: name for at, (name, kind) in self.taken.items() if kind == network and name != host}


def nic_steps(facts: HostFacts, asked: Nic, host: str, around: Surroundings, journal: str) -> Iterator[Step]:
    """The steps that are needed; none if it is there.

    :raises FtkvmError: FTKVM-390, 752 a NIC cannot carry it, 751 the address is not of that network, 242 it is another
        host's
    """
    # an earlier run was cut off before it was sure of it: the timer still runs
    enabled, active = facts.units.get(asked.unit, ("", ""))
    unsure = active == "active" and enabled != "enabled"
    if _there(facts.links, asked) and not unsure:
        return
    _require_address(asked, host, around)
    if not unsure:
        for nic in asked.nics:
            _require_free(facts.links, asked, nic, host)
        yield file_step(f"{_SYSTEMD}/{asked.unit}", unit(asked, facts.links).encode(), 0o644, journal)
    name, device = shlex.quote(asked.unit), shlex.quote(asked.device)
    members = f" (a bond of {', '.join(asked.nics)})" if len(asked.nics) > 1 else ""
    yield Step(
        asked.step,
        f"set up the {asked.network} network: {asked.address} on {asked.device}{members};"
        f" it goes again in {REVERT_S} s unless a new connection is made",
        f"set -e; {note_unit(journal, asked.unit)}; systemctl daemon-reload;"
        f" systemctl stop {revert_unit(asked)}.timer 2>/dev/null || true;"
        f" systemd-run -q --unit={revert_unit(asked)} --on-active={REVERT_S} systemctl stop {name};"
        f" systemctl start {name}",
        f"ip -o -4 address show dev {device} | grep -qwF {shlex.quote(f'inet {asked.address}')}"
        f" && systemctl is-active -q {name}",
        f"systemctl stop {revert_unit(asked)}.timer 2>/dev/null; systemctl disable -q --now {name}",
        timeout_s=REVERT_S / 2,
    )


def confirm(asked: Nic) -> str:
    """Shell command: it stays, also after a boot. To be run over a connection that was made after it."""
    enable = f"systemctl enable -q --now {shlex.quote(asked.unit)} && sync -f /etc/systemd"
    return f"systemctl stop {revert_unit(asked)}.timer && {enable}"


def revert_unit(asked: Nic) -> str:
    """The name of the timer that takes it back."""
    return f"ftkvm-nic-{asked.network}-revert"


def frames_lost(asked: Nic, others: Iterable[str]) -> str:
    """Shell command that prints those of the addresses ``others`` that answer a small ping and no full frame."""
    ping = f"ping -q -n -c 3 -i 0.2 -W 1 -I {asked.address.ip}"
    return (
        f"mtu=$(cat /sys/class/net/{shlex.quote(asked.device)}/mtu);"
        f" for other in {' '.join(map(shlex.quote, others))}; do"
        f" if {ping} $other >/dev/null 2>&1 && ! {ping} -M do -s $((mtu - 28)) $other >/dev/null 2>&1;"
        " then echo $other; fi; done"
    )


def _there(links: Mapping[str, Link], asked: Nic) -> bool:
    link = links.get(asked.device)
    if link is None or str(asked.address) not in link.addresses or not link.up:
        return False
    members = asked.nics if len(asked.nics) > 1 else ()
    return asked.mtu in (0, link.mtu) and all(links.get(nic, Link()).master == asked.device for nic in members)


def _require_address(asked: Nic, host: str, around: Surroundings) -> None:
    cidr = around.networks[asked.network]
    if ipaddress.ip_network(cidr) != asked.address.network:
        # safety: a wider one would draw packets for other networks, the operator's among them, to this NIC
        raise FtkvmError("FTKVM-751", host=host, network=asked.network, address=str(asked.address), cidr=cidr)
    address = str(asked.address.ip)
    other, network = around.taken.get(address, (host, ""))
    if other != host:
        raise FtkvmError("FTKVM-242", host=host, network=network, address=address, other=other)


def _require_free(links: Mapping[str, Link], asked: Nic, nic: str, host: str) -> None:
    link = links.get(nic)
    if link is None:
        raise FtkvmError("FTKVM-390", host=host, nic=nic, known=", ".join(sorted(links)))
    # safety: what is in use is left alone; it may be what we have come by
    there = f"it is a port of {link.master}" if link.master else ""
    there = f"it has the addresses {', '.join(link.addresses)}" if link.addresses else there
    if there:
        raise FtkvmError("FTKVM-752", host=host, nic=nic, network=asked.network, there=there)


def unit(asked: Nic, links: Mapping[str, Link]) -> str:
    """The unit that makes it at each boot. Stopped, or failed half-way, it leaves the NICs as ``links`` has them."""
    device = asked.device
    if len(asked.nics) == 1:
        make: list[str] = []
        before = links.get(device, Link())
        undo = [f"address del {asked.address} dev {device}"]
        undo += [f"link set dev {device} mtu {before.mtu}"] if asked.mtu and before.mtu else []
        undo += [] if before.up else [f"link set dev {device} down"]
    else:
        carrier = "miimon 100" + (" lacp_rate fast" if asked.mode == "802.3ad" else "")
        make = [f"link add {device} type bond mode {asked.mode} {carrier}"]
        make += [
            line for nic in asked.nics for line in (f"link set dev {nic} down", f"link set dev {nic} master {device}")
        ]
        undo = [f"link delete dev {device}"]
        undo += [f"link set dev {nic} up" for nic in asked.nics if links.get(nic, Link()).up]
    make += [f"link set dev {device} mtu {asked.mtu}"] if asked.mtu else []
    make += [f"address replace {asked.address} dev {device}", f"link set dev {device} up"]
    waits = "".join(
        f"ExecStart=/bin/sh -c 'until [ -e /sys/class/net/{nic} ]; do sleep 0.1; done'\n" for nic in asked.nics
    )
    return f"""\
[Unit]
Description=ftkvm: the {asked.network} network, {asked.address} on {device}
Wants=network-online.target
Before=network-online.target libvirtd.service ftkvm-keeper.service ftkvm-agent.service

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=20
{waits}{"".join(f"ExecStart=ip {line}{chr(10)}" for line in make)}\
{"".join(f"ExecStopPost=-ip {line}{chr(10)}" for line in undo)}
[Install]
WantedBy=multi-user.target
"""
