"""The host that is prepared, and the cluster's, as `ftkvm.core.joining` wants to see them. Pure."""

from collections.abc import Iterable

from ftkvm import __version__
from ftkvm.core.joining import Machine
from ftkvm.core.versions import dotted
from ftkvm.ports import Json
from hostprep.facts import HostFacts


def machine_of(host: str, facts: HostFacts) -> Machine:
    """A host as SSH shows it; its ftkvm is the one that is brought to it."""
    versions = {"ftkvm": __version__, "QEMU": dotted(facts.qemu), "libvirt": dotted(facts.libvirt)}
    return Machine(host, facts.boot_id, facts.machine_id, versions)


def members(hosts: Iterable[Json]) -> list[Machine]:
    """Of the hosts as ``GET /v1/hosts`` tells them, those that answer."""
    return [
        Machine(
            str(each["name"]),
            str(each.get("boot_id") or ""),
            str(each.get("machine_id") or ""),
            {what: str(each.get(key) or "") for what, key in _KEYS.items()},
        )
        for each in hosts
        if each["answers"]
    ]


_KEYS = {"ftkvm": "ftkvm", "QEMU": "qemu", "libvirt": "libvirt"}
