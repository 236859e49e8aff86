"""The checks of the cluster (CK-01): its settings, and each host beside each other one. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from ftkvm.core.channels import Channel, unprotected
from ftkvm.core.checks import host as of_host
from ftkvm.core.checks.cpu import differences
from ftkvm.core.checks.host import PAIR_NETWORKS, HostView
from ftkvm.core.checks.model import Check, Finding, Report, Result, Severity, run
from ftkvm.core.placement import HostFacts, VmNeeds, why_not
from ftkvm.core.versions import dotted

LEAST_HOSTS = 3
"""With two a pair that lost a host has nowhere to be protected again (FT-12)."""
CLOSE_PERCENT = 10
"""Clocks further apart than this slow a pair down to the slower one's checkpoints."""


@dataclass(frozen=True)
class ClusterView:
    """``hosts``: those that answered, with what placement knows of them; ``silent``: the others, with why."""

    hosts: tuple[HostView, ...]
    facts: Mapping[str, HostFacts] = field(default_factory=dict)
    silent: Mapping[str, Finding] = field(default_factory=dict)
    size: int = 3
    """Hosts the cluster has, whether they answer or not."""
    ha: bool = True
    host_monitoring: bool = True
    ha_networks: tuple[str, ...] = ("management", "migration")
    isolation_addresses: tuple[str, ...] = ("gateway",)
    """What an isolated host pings; ``gateway`` stands for each host's default gateway."""

    channels: tuple[Channel, ...] = ()
    """What travels between the hosts."""

    @property
    def pairs(self) -> Iterator[tuple[HostView, HostView]]:
        return combinations(self.hosts, 2)


def _answers(cluster: ClusterView) -> Iterator[Finding]:
    yield from cluster.silent.values()


def _ha(cluster: ClusterView) -> Iterator[Finding]:
    for name, on in (("ha.enabled", cluster.ha), ("ha.host_monitoring", cluster.host_monitoring)):
        if not on:
            yield Finding("FTKVM-231", {"setting": name}, Severity.WARNING)


def _size(cluster: ClusterView) -> Iterator[Finding]:
    if cluster.size < LEAST_HOSTS:
        yield Finding("FTKVM-247", {"hosts": str(cluster.size), "least": str(LEAST_HOSTS)}, Severity.WARNING)


def _best_practice(cluster: ClusterView) -> Iterator[Finding]:
    """What works, and leaves one thing whose loss HA cannot tell from a dead host (HA-22)."""
    if len(cluster.ha_networks) < 2:
        yield Finding("FTKVM-245", {"networks": ", ".join(cluster.ha_networks) or "none"}, Severity.WARNING)
    if not cluster.isolation_addresses:
        yield Finding("FTKVM-246", {}, Severity.WARNING)


def _pairing(cluster: ClusterView) -> Iterator[Finding]:
    """What placement would refuse for any VM, and whether any two hosts can make a pair."""
    fits = False
    for one, other in cluster.pairs:
        facts, primary = cluster.facts.get(other.name), cluster.facts.get(one.name)
        if facts is None or primary is None:
            continue
        why = [str(each) for each in why_not(facts, primary, VmNeeds("", one.name, 0))]
        fits = fits or not why
        if why:
            yield Finding("FTKVM-232", {"host": one.name, "other": other.name, "why": ", ".join(why)}, Severity.WARNING)
    if not fits:
        yield Finding("FTKVM-233", {})


def _processors(cluster: ClusterView) -> Iterator[Finding]:
    for one, other in cluster.pairs:
        found = differences(one.cpu, other.cpu)
        if found:
            params = {"host": one.name, "other": other.name, "differences": "; ".join(found)}
            yield Finding("FTKVM-234", params, Severity.WARNING)


def _differ(what: str, one: HostView, other: HostView, values: tuple[str, str], code: str) -> Iterator[Finding]:
    if values[0] != values[1]:
        params = {"host": one.name, "other": other.name, "what": what, "here": values[0], "there": values[1]}
        yield Finding(code, params, Severity.WARNING)


def _versions(cluster: ClusterView) -> Iterator[Finding]:
    for one, other in cluster.pairs:
        yield from _differ("QEMU", one, other, (dotted(one.qemu), dotted(other.qemu)), "FTKVM-235")
        yield from _differ("libvirt", one, other, (dotted(one.libvirt), dotted(other.libvirt)), "FTKVM-235")
        yield from _differ("ftkvm", one, other, (one.ftkvm, other.ftkvm), "FTKVM-235")


def _clocks(cluster: ClusterView) -> Iterator[Finding]:
    for one, other in cluster.pairs:
        if one.mhz and other.mhz and abs(one.mhz - other.mhz) * 100 > CLOSE_PERCENT * max(one.mhz, other.mhz):
            yield from _differ("clock (MHz)", one, other, (str(one.mhz), str(other.mhz)), "FTKVM-236")
        yield from _differ("power governor", one, other, (one.governor or "-", other.governor or "-"), "FTKVM-236")


def _mtu(cluster: ClusterView) -> Iterator[Finding]:
    for one, other in cluster.pairs:
        for kind in PAIR_NETWORKS:
            here, there = one.links.get(kind), other.links.get(kind)
            if here and there and here.mtu != there.mtu:
                values = str(here.mtu), str(there.mtu)
                yield from _differ(f"MTU of the {kind} network", one, other, values, "FTKVM-237")
            elif here and (other.name in one.frames_lost.get(kind, ()) or one.name in other.frames_lost.get(kind, ())):
                params = {"host": one.name, "other": other.name, "network": kind, "mtu": str(here.mtu)}
                yield Finding("FTKVM-750", params)


def _channels(cluster: ClusterView) -> Iterator[Finding]:
    for network, names in unprotected(cluster.channels).items():
        yield Finding("FTKVM-340", {"network": network, "what": ", ".join(names)}, Severity.WARNING)


def _beats(cluster: ClusterView) -> Iterator[Finding]:
    """Numbers that are no multiple of three are of a change under way (``ftkvm/keeper/keys.py``)."""
    numbers = {
        host.name: host.certificate.beat_keys
        for host in cluster.hosts
        if host.certificate is not None and host.certificate.beat_keys is not None
    }
    if len(set(numbers.values())) > 1 or any(number % 3 for number in numbers.values()):
        said = ", ".join(f"{name} has number {number}" for name, number in sorted(numbers.items()))
        yield Finding("FTKVM-339", {"hosts": said}, Severity.WARNING)


CHECKS: tuple[Check[ClusterView], ...] = (
    Check("answers", "all hosts answer", _answers),
    Check("ha", "HA and host monitoring are on", _ha),
    Check("size", "three hosts or more", _size),
    Check("best-practice", "heartbeats and isolation have a second way", _best_practice),
    Check("pairing", "two hosts fit each other", _pairing),
    Check("processors", "processors are alike", _processors),
    Check("same-versions", "versions are the same everywhere", _versions),
    Check("clocks", "clocks and power management are alike", _clocks),
    Check("channels", "what travels between hosts is encrypted", _channels),
    Check("beats", "beats are signed with one key", _beats),
    Check("mtu", "frame sizes are the same from end to end", _mtu),
)


def look(name: str, cluster: ClusterView) -> Report:
    """The cluster's own checks and those of every host that answers."""
    report = run(f"cluster {name}", CHECKS, cluster)
    results = list(report.results)
    for host in cluster.hosts:
        for each in run(f"host {host.name}", of_host.CHECKS, host, host=host.name).results:
            results.append(Result(f"{host.name}: {each.name}", f"{host.name}: {each.title}", each.findings))
    return Report(report.subject, tuple(results))
