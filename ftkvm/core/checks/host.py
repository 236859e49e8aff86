"""The checks of one host (CK-02, CK-03). Pure: what was observed in, findings out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ftkvm.core import clock as clocks
from ftkvm.core import mount as mounts
from ftkvm.core.checks.cpu import Cpu
from ftkvm.core.checks.model import Check, Finding, Severity
from ftkvm.core.clock import Clock
from ftkvm.core.mount import Mount
from ftkvm.core.trust import ALARM_DAYS
from ftkvm.core.versions import too_old

LEAST_MBIT_S = 1000
JUMBO_MTU = 9000
PAIR_NETWORKS = ("ft", "migration")
"""What a guest's memory is copied over."""


class Kvm(StrEnum):
    """Whether this host can run guests on its processor, and if not, why: four different findings, or still unknown."""

    WORKS = "works"
    CPU_CANNOT = "cpu-cannot"
    FIRMWARE_OFF = "firmware-off"
    MODULE_MISSING = "module-missing"
    CANNOT_RUN = "cannot-run"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class KvmSigns:
    """What was seen of it. ``raw``: what the CPUID instruction itself says, None when it could not be asked."""

    flag: bool = False
    raw: bool | None = None
    log_says_off: bool = False
    device: bool = False
    open_error: str = ""
    guest_error: str | None = None
    """Why the tiny guest did not run; empty: it ran; None: there was none, or it is still being tried."""


def judge_kvm(signs: KvmSigns) -> tuple[Kvm, str]:
    """The state, and the detail to show. A guest that ran decides, whatever the flags say."""
    if signs.device and not signs.open_error:
        if signs.guest_error is None:
            return Kvm.UNKNOWN, "a guest is being tried"
        return (Kvm.CANNOT_RUN if signs.guest_error else Kvm.WORKS), signs.guest_error
    why = f"/dev/kvm: {signs.open_error}" if signs.device else "there is no /dev/kvm"
    if signs.log_says_off or (not signs.flag and signs.raw):
        return Kvm.FIRMWARE_OFF, why
    if not signs.flag:
        return Kvm.CPU_CANNOT, why
    return Kvm.MODULE_MISSING, why


@dataclass(frozen=True)
class Link:
    """The NIC that carries one of the host's networks. ``mbit_s``: 0 when the kernel does not know."""

    nic: str
    mbit_s: int = 0
    mtu: int = 0


@dataclass(frozen=True)
class CertificateSigns:
    """What a host says of its own certificate. ``error``: why it cannot be read."""

    days_left: int = 0
    revoked: bool = False
    error: str = ""
    beat_keys: int | None = None
    """Number of the keys its beats are signed with; None: it did not say."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "CertificateSigns":
        """What a host's agent says of it (``agent/security.py`` writes it)."""
        error = str(document.get("error") or "")
        keys = (document.get("beat_keys") or {}).get("number")
        return cls(int(document.get("days_left", 0)), bool(document.get("revoked")), error, keys)


MOST_FT_COPIES = 4
"""Of FT VMs on one host, primaries and secondaries together (FT-12; guide, *Fault tolerance best practices*)."""


@dataclass(frozen=True)
class HostView:
    """All that the checks of a host look at. ``trouble``: what its own health says (code and parameters)."""

    name: str
    cpu: Cpu = field(default_factory=Cpu)
    cpu_group: str = ""
    kvm: KvmSigns = field(default_factory=KvmSigns)
    mhz: int = 0
    governor: str = ""
    links: Mapping[str, Link] = field(default_factory=dict)
    qemu: tuple[int, ...] = ()
    libvirt: tuple[int, ...] = ()
    ftkvm: str = ""
    trouble: Finding | None = None
    maintenance: bool = False
    missing_bridges: tuple[str, ...] = ()
    certificate: CertificateSigns | None = None
    """None: the host did not say."""
    ft_copies: int = 0
    """Primaries and secondaries that run here."""
    emulation: bool = False
    """The cluster's setting ft.emulation: guests may be emulated."""
    frames_lost: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By network: the hosts that answer a small frame there, and none as large as the NIC's MTU."""
    clock: Clock | None = None
    """None: the host did not say."""
    mount: Mount | None = None
    """What the datastore lies on. None: the host did not say."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, maintenance: bool, emulation: bool) -> "HostView":
        """What a host's agent answers about itself (``adapters/host_view.py`` writes it)."""
        cpu = dict(document["cpu"])
        trouble, certificate = document.get("trouble"), document.get("certificate")
        return cls(
            str(document["name"]),
            Cpu(**{**cpu, "flags": frozenset(cpu["flags"])}),
            str(document["cpu_group"]),
            KvmSigns(**document["kvm"]),
            int(document["mhz"]),
            str(document["governor"]),
            {kind: Link(**link) for kind, link in document["links"].items()},
            tuple(document["qemu"]),
            tuple(document["libvirt"]),
            str(document["ftkvm"]),
            Finding(trouble["code"], trouble["params"]) if trouble else None,
            maintenance,
            tuple(document["missing_bridges"]),
            CertificateSigns.from_json(certificate) if certificate is not None else None,
            int(document.get("ft_copies", 0)),
            emulation,
            {kind: tuple(hosts) for kind, hosts in document.get("frames_lost", {}).items()},
            Clock(**document["clock"]) if document.get("clock") else None,
            Mount(**document["mount"]) if document.get("mount") else None,
        )


def judge_certificate(signs: CertificateSigns) -> Iterator[Finding]:
    """What is wrong with a host's own certificate; also asked before FT is turned on."""
    if signs.error:
        yield Finding("FTKVM-336", {"detail": signs.error})
    elif signs.revoked:
        yield Finding("FTKVM-335", {})
    elif signs.days_left < 0:
        yield Finding("FTKVM-329", {"when": f"ended {-signs.days_left - 1} days ago"})
    elif signs.days_left < ALARM_DAYS:
        yield Finding("FTKVM-329", {"when": f"ends in {signs.days_left} days"}, Severity.WARNING)


def _ft_copies(host: HostView) -> Iterator[Finding]:
    if host.ft_copies > MOST_FT_COPIES:
        yield Finding("FTKVM-248", {"copies": str(host.ft_copies), "most": str(MOST_FT_COPIES)}, Severity.WARNING)


def _certificate(host: HostView) -> Iterator[Finding]:
    if host.certificate is not None:
        yield from judge_certificate(host.certificate)


def _active(host: HostView) -> Iterator[Finding]:
    if host.maintenance:
        yield Finding("FTKVM-659", {})


def _health(host: HostView) -> Iterator[Finding]:
    if host.trouble is not None:
        yield host.trouble


def _versions(host: HostView) -> Iterator[Finding]:
    code = too_old(host.qemu, host.libvirt) if host.qemu and host.libvirt else None
    if code and (host.trouble is None or host.trouble.code != code):
        shown = host.qemu if code == "FTKVM-207" else host.libvirt
        yield Finding(code, {"version": ".".join(map(str, shown))})


_KVM_CODES = {
    Kvm.CPU_CANNOT: "FTKVM-221",
    Kvm.FIRMWARE_OFF: "FTKVM-222",
    Kvm.MODULE_MISSING: "FTKVM-223",
    Kvm.CANNOT_RUN: "FTKVM-224",
    Kvm.UNKNOWN: "FTKVM-239",
}


def _virtualisation(host: HostView) -> Iterator[Finding]:
    state, detail = judge_kvm(host.kvm)
    if state is not Kvm.WORKS:
        severity = Severity.WARNING if host.emulation or state is Kvm.UNKNOWN else Severity.ERROR
        params = {"cpu": host.cpu.name or "unknown", "detail": detail}
        yield Finding(_KVM_CODES[state], params, severity)
    if host.emulation:
        yield Finding("FTKVM-225", {}, Severity.WARNING)


def _group(host: HostView) -> Iterator[Finding]:
    if not host.cpu_group:
        cpu = host.cpu
        shown = f"{cpu.name or 'unknown'} ({cpu.vendor} family {cpu.family} model {cpu.model})"
        yield Finding("FTKVM-226", {"cpu": shown}, Severity.WARNING)


def _bridges(host: HostView) -> Iterator[Finding]:
    for bridge in host.missing_bridges:
        yield Finding("FTKVM-213", {"bridge": bridge})


def _own_nics(host: HostView) -> Iterator[Finding]:
    for kind in PAIR_NETWORKS:
        link = host.links.get(kind)
        if link is None:
            yield Finding("FTKVM-227", {"network": kind})
            continue
        others = sorted(other for other, each in host.links.items() if other != kind and each.nic == link.nic)
        if others and (kind, others) != ("migration", ["ft"]):  # told once
            yield Finding(
                "FTKVM-228", {"network": kind, "nic": link.nic, "others": ", ".join(others)}, Severity.WARNING
            )


def _speeds(host: HostView) -> Iterator[Finding]:
    for kind in PAIR_NETWORKS:
        link = host.links.get(kind)
        if link is not None and 0 < link.mbit_s < LEAST_MBIT_S:
            params = {"network": kind, "nic": link.nic, "speed": str(link.mbit_s), "least": str(LEAST_MBIT_S)}
            yield Finding("FTKVM-229", params)


def _jumbo(host: HostView) -> Iterator[Finding]:
    link = host.links.get("ft")
    if link is not None and link.mtu < JUMBO_MTU:
        yield Finding("FTKVM-230", {"nic": link.nic, "mtu": str(link.mtu), "wanted": str(JUMBO_MTU)}, Severity.WARNING)


def _clock(host: HostView) -> Iterator[Finding]:
    yield from clocks.judge(host.clock)


def _mount(host: HostView) -> Iterator[Finding]:
    yield from mounts.judge(host.mount)


CHECKS: tuple[Check[HostView], ...] = (
    Check("active", "it is not in maintenance", _active),
    Check("health", "agent, libvirt and datastore work", _health),
    Check("mount", "the datastore's mount keeps link() and locks honest", _mount),
    Check("ft-copies", "not too many FT VMs", _ft_copies),
    Check("certificate", "its certificate counts, and for long enough", _certificate),
    Check("versions", "QEMU and libvirt are new enough", _versions),
    Check("virtualisation", "the processor runs guests", _virtualisation),
    Check("processor-group", "its processor is a known one", _group),
    Check("bridges", "the VMs' bridges are there", _bridges),
    Check("own-nics", "FT and migration have their own NICs", _own_nics),
    Check("speed", "FT and migration NICs have 1 Gbit/s", _speeds),
    Check("jumbo", "FT NIC takes large frames", _jumbo),
    Check("clock", "its clock follows a time server", _clock),
)
