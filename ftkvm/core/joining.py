"""Who may join a cluster (HA-20): a machine that is not in it yet, in all its networks, with software like its hosts'.

Pure.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ftkvm.catalogue import FtkvmError
from ftkvm.core.versions import alike


@dataclass(frozen=True)
class Machine:
    """What tells a host from others, and its software (ftkvm, QEMU, libvirt). Empty: it does not say, or has none."""

    name: str
    boot_id: str = ""
    machine_id: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def addresses_in(host: str, addresses: Iterable[str], networks: Mapping[str, str]) -> dict[str, str]:
    """The host's first address (of those with their prefix, ``10.0.0.1/24``) in each of the cluster's networks (CIDR).

    :raises FtkvmError: FTKVM-212, it has none in one of them
    """
    mine = [ipaddress.ip_interface(address).ip for address in addresses]
    found = {}
    for kind, cidr in networks.items():
        wanted = ipaddress.ip_network(cidr)
        address = next((each for each in mine if each in wanted), None)
        if address is None:
            raise FtkvmError("FTKVM-212", host=host, network=kind, cidr=cidr)
        found[kind] = str(address)
    return found


def require_may_join(new: Machine, there: Iterable[Machine]) -> None:
    """``new`` can be one more of the cluster's hosts; ``there``: those that answer.

    safety: under a second name a machine's agent would own nothing of what it runs under the first, and the first,
    silent from then on, would be taken for lost.

    :raises FtkvmError: FTKVM-262 it is one of them, FTKVM-263 it has the machine id of one, FTKVM-261 its versions
    """
    others = [each for each in there if each.name != new.name]
    for other in others:
        if new.boot_id and other.boot_id == new.boot_id:
            raise FtkvmError("FTKVM-262", host=new.name, other=other.name, boot_id=new.boot_id)
        if new.machine_id and other.machine_id == new.machine_id:
            raise FtkvmError("FTKVM-263", host=new.name, other=other.name, machine_id=new.machine_id)
    _require_versions(new, others)


def _require_versions(new: Machine, others: list[Machine]) -> None:
    """Each of its versions is like that of some host: in the middle of an upgrade there are two.

    What is not installed yet is asked about when it is.
    """
    for what, version in new.versions.items():
        known = [(each.name, each.versions[what]) for each in others if each.versions.get(what)]
        if version and known and not any(alike(what, version, each) for _name, each in known):
            told = ", ".join(f"{name} {each}" for name, each in sorted(known))
            raise FtkvmError("FTKVM-261", host=new.name, what=what, here=version, there=told)
