"""Who may join: a machine that is not in the cluster yet, with software that its hosts can live with. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ftkvm import __version__
from ftkvm.catalogue import FtkvmError
from ftkvm.core.versions import alike, dotted
from ftkvm.ports import Json
from hostprep.facts import HostFacts


@dataclass(frozen=True)
class Member:
    """A host of the cluster that answers. Empty: it does not say."""

    name: str
    boot_id: str
    machine_id: str
    versions: Mapping[str, str]


def members(hosts: Iterable[Json]) -> list[Member]:
    """Of the hosts as ``GET /v1/hosts`` tells them, those that answer."""
    return [
        Member(
            str(each["name"]),
            str(each.get("boot_id") or ""),
            str(each.get("machine_id") or ""),
            {what: str(each.get(key) or "") for what, key in _KEYS.items()},
        )
        for each in hosts
        if each["answers"]
    ]


def require_may_join(host: str, facts: HostFacts, there: Iterable[Member]) -> None:
    """``host`` can be one more of the cluster's hosts.

    safety: under a second name a machine's agent would own nothing of what it runs under the first, and the first,
    silent from then on, would be taken for lost.

    :raises FtkvmError: FTKVM-262 it is one of them, FTKVM-263 it has the machine id of one, FTKVM-261 its versions
    """
    others = [each for each in there if each.name != host]
    for other in others:
        if facts.boot_id and other.boot_id == facts.boot_id:
            raise FtkvmError("FTKVM-262", host=host, other=other.name, boot_id=facts.boot_id)
        if facts.machine_id and other.machine_id == facts.machine_id:
            raise FtkvmError("FTKVM-263", host=host, other=other.name, machine_id=facts.machine_id)
    _require_versions(host, facts, others)


def _require_versions(host: str, facts: HostFacts, others: list[Member]) -> None:
    """Each of its versions is like that of some host: in the middle of an upgrade there are two.

    What is not installed yet is asked about when it is.
    """
    here = {"ftkvm": __version__, "QEMU": dotted(facts.qemu), "libvirt": dotted(facts.libvirt)}
    for what, version in here.items():
        known = [(each.name, each.versions[what]) for each in others if each.versions.get(what)]
        if version and known and not any(alike(what, version, each) for _name, each in known):
            told = ", ".join(f"{name} {each}" for name, each in sorted(known))
            raise FtkvmError("FTKVM-261", host=host, what=what, here=version, there=told)


_KEYS = {"ftkvm": "ftkvm", "QEMU": "qemu", "libvirt": "libvirt"}
