"""The HA settings of the cluster and of its VMs (HA-18, HA-19): the catalogue, changes, and what is in force. Pure.

Stored in ``settings`` of the cluster's configuration (config/NNNNNNN.json), by name, only what was set.
A setting that needs HA switched off and on keeps its former value under ``ha.in_force`` until that was done.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ftkvm.core.channels import Encryption
from ftkvm.core.ha.model import HaSettings, IsolationResponse, Priority
from ftkvm.core.ha.setting import Applies, BadSetting, Kind, Setting, Value

IN_FORCE = "ha.in_force"
FAILURE = "das.failuredetectiontime"
INTERVAL = "das.failuredetectioninterval"
MOST_ISOLATION_ADDRESSES = 10
PING_MS = 1000
"""How long an answer to a ping is waited for."""

_LATER = Applies.OFF_AND_ON
_SENSITIVITIES = ("high", "medium", "low", "custom")


def _number(
    name: str, default: int, unit: str, low: int, high: int, meaning: str, applies: Applies = Applies.NOW, step: int = 1
) -> Setting:
    return Setting(name, Kind.NUMBER, default, meaning, applies, unit, low, high, step)


def _flag(name: str, default: bool, meaning: str, applies: Applies = Applies.NOW) -> Setting:
    return Setting(name, Kind.FLAG, default, meaning, applies)


def _choice(name: str, default: str, choices: Iterable[str], meaning: str) -> Setting:
    return Setting(name, Kind.CHOICE, default, meaning, choices=tuple(choices))


PRIORITY = _choice("ha.restart_priority", "medium", Priority,
                   "order in which VMs are restarted when their host fails; disabled: never")  # fmt: skip
ISOLATION = _choice("ha.isolation_response", "shutdown", IsolationResponse,
                    "what an isolated host does with its VMs")  # fmt: skip
MONITORING = (
    _flag("ha.vm_monitoring", False, "reset VMs whose guest agent falls silent and that do no I/O"),
    _choice("ha.vm_monitoring_sensitivity", "medium", _SENSITIVITIES,
            "high: 30 s silence, 3 resets in 1 h; medium: 60 s, 24 h; low: 120 s, 7 d; custom: the values below"),
    _number("ha.vm_failure_interval_s", 60, "s", 10, 3600, "custom: a guest agent silent this long has failed"),
    _number("ha.vm_min_uptime_s", 120, "s", 0, 3600, "a VM is not judged for this long after its start or reset"),
    _number("ha.vm_max_resets", 3, "resets", 1, 100, "so often a VM is reset within the reset window"),
    _number("ha.vm_reset_window_s", 86_400, "s", 60, 2_592_000, "custom: the reset window"),
)  # fmt: skip
ISOLATION_ADDRESSES = tuple(
    Setting(f"das.isolationaddress{number}", Kind.ADDRESS, "", f"{number} of at most {MOST_ISOLATION_ADDRESSES} "
            "addresses that a host that hears nobody pings, to tell whether it is the one cut off", _LATER)
    for number in range(1, MOST_ISOLATION_ADDRESSES + 1)
)  # fmt: skip

SETTINGS: dict[str, Setting] = {
    each.name: each
    for each in (
        _flag("ha.enabled", True, "HA: VMs of a failed host are restarted on other hosts"),
        _flag("ha.host_monitoring", True, "hosts are watched; off while the network is worked on: no restarts, no "
              "isolation response"),
        Setting("ha.networks", Kind.NETWORKS, "management", "networks that carry heartbeats between hosts",
                _LATER, choices=("management", "migration", "ft")),
        _flag("ha.admission_control", True, "refuse what would use up the room kept for restarts"),
        _choice("ha.admission_policy", "host-failures", ("host-failures", "percentage", "failover-host"),
                "how the room to keep is reckoned"),
        _number("ha.host_failures", 1, "hosts", 1, 4, "policy host-failures: so many hosts may fail"),
        _number("ha.reserved_percent", 25, "%", 1, 50, "policy percentage: share of CPU and of memory kept free"),
        Setting("ha.failover_host", Kind.HOST, "", "policy failover-host: the host kept empty for restarts"),
        PRIORITY,
        ISOLATION,
        *MONITORING,
        *ISOLATION_ADDRESSES,
        _flag("das.usedefaultisolationaddress", True, "ping the default gateway too", _LATER),
        _number(FAILURE, 15_000, "ms", 3000, 300_000, "a host that is not heard and does not answer pings for this "
                "long has failed", _LATER),
        _number(INTERVAL, 1000, "ms", 200, 10_000, "time between heartbeats", _LATER),
        Setting("das.defaultfailoverhost", Kind.HOST, "", "restarts go to this host first; with policy failover-host "
                "it is used instead of ha.failover_host"),
        _number("das.isolationShutdownTimeout", 300, "s", 0, 3600, "an isolated host gives its guests this long to "
                "shut down, then switches them off", _LATER),
        _number("das.slotMemInMB", 0, "MB", 0, 1_048_576, "upper bound of a slot's memory; 0: none"),
        _number("das.slotCpuInMHz", 0, "MHz", 0, 1_000_000, "upper bound of a slot's CPU; 0: none"),
        _number("das.vmMemoryMinMB", 0, "MB", 0, 1_048_576, "memory reckoned for a VM without a reservation"),
        _number("das.vmCpuMinMHz", 256, "MHz", 1, 1_000_000, "CPU reckoned for a VM without a reservation"),
        _number("das.iostatsInterval", 120, "s", 0, 86_400, "a VM whose guest agent is silent is not reset if it did "
                "disk or network I/O within this time; 0: I/O is not looked at"),
        _number("ha.lease_ms", 15_000, "ms", 4000, 300_000, "a host whose heartbeat on the datastore stands still for "
                "this long has lost its VMs and its coordinator's term", _LATER),
        _number("ha.stop_after_ms", 8000, "ms", 2000, 120_000, "a host that cannot write its heartbeat for this long "
                "stops its VMs", _LATER),
        _number("ha.watchdog_ms", 5000, "ms", 1000, 60_000, "the watchdog ends a host whose agent does not pet it for "
                "this long", _LATER, 1000),
        _flag("ft.emulation", False, "guests may be emulated, also with FT: `ftkvm check` then only warns of hosts "
              "whose processor runs no guests; for trials"),
        _flag("ft.encryption", True, "memory, disk writes and frames of a pair are encrypted on their way; a pair that "
              "runs keeps what it has until it is made again"),
        _flag("migration.encryption", True, "the memory of a VM that is migrated is encrypted on its way, and goes "
              "slower"),
        _number("ha.max_attempts", 5, "attempts", 1, 100, "so often a restart is tried"),
        _number("ha.retry_first_ms", 5000, "ms", 1000, 600_000, "pause before the second attempt; doubles each time"),
        _number("ha.retry_most_ms", 60_000, "ms", 1000, 3_600_000, "longest pause between attempts"),
    )
}  # fmt: skip

VM_SETTINGS: dict[str, Setting] = {
    each.name: each
    for each in (
        PRIORITY,
        ISOLATION,
        _number("ha.cpu_reservation_mhz", 0, "MHz", 0, 1_000_000, "CPU that every host must have free to run it; 0: "
                "none, das.vmCpuMinMHz is reckoned"),
        _number("ha.memory_reservation_mb", 0, "MB", 0, 1_048_576, "memory that every host must have free to run it; "
                "0: none, das.vmMemoryMinMB is reckoned; with FT on it is the VM's memory size"),
        *MONITORING,
    )
}  # fmt: skip
"""A VM's own settings; one that is also the cluster's overrides it for this VM, as long as it is in the cluster."""

_ALIASES = {
    "das.failedetectiontime": FAILURE,  # as the guide prints it
    "das.failedetectioninterval": INTERVAL,
    "das.isolationaddress": "das.isolationaddress1",
}
_BY_LOWER = {name.lower(): name for name in SETTINGS} | _ALIASES


def cluster_name(text: str) -> str:
    """The name of a cluster setting, however it was spelt. :raises BadSetting: there is none"""
    name = _BY_LOWER.get(text.strip().lower())
    if name is None:
        near = [known for known in SETTINGS if text.lower().partition(".")[0] == known.partition(".")[0]]
        raise BadSetting(text, f"no such setting; there are {', '.join(near or SETTINGS)}")
    return name


_DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}
_VM_DEFAULTS = {name: setting.default for name, setting in VM_SETTINGS.items()}


def values(settings: Mapping[str, Any]) -> dict[str, Value]:
    """All cluster settings as they are set, defaults filled in, also for what is not understood (see `problems`)."""
    return _understood(_DEFAULTS, SETTINGS, settings)


def in_force(settings: Mapping[str, Any]) -> dict[str, Value]:
    """All cluster settings as they are in force now."""
    found = _understood(_DEFAULTS, SETTINGS, settings)
    pending = settings.get(IN_FORCE)
    if isinstance(pending, Mapping):
        late = {
            name: stored for name, stored in pending.items() if name in SETTINGS and SETTINGS[name].applies is _LATER
        }
        found.update(_understood({name: SETTINGS[name].default for name in late}, SETTINGS, late))
    return found


def _understood(
    otherwise: Mapping[str, Value], known: Mapping[str, Setting], given: Mapping[str, Any]
) -> dict[str, Value]:
    """``otherwise`` with what is given and understood. Called for every VM: what is not given costs nothing."""
    found = dict(otherwise)
    for name, stored in given.items():
        if name in known:
            with suppress(BadSetting):
                found[name] = known[name].understand(stored)
    return found


def problems(settings: Mapping[str, Any]) -> list[BadSetting]:
    """What stands in the configuration and cannot be used; the default is in force instead."""
    ours = {name: stored for name, stored in settings.items() if name.startswith(("das.", "ha.", "ft.", "migration."))}
    ours.pop(IN_FORCE, None)
    return _not_understood(SETTINGS, ours)


def _not_understood(known: Mapping[str, Setting], given: Mapping[str, Any]) -> list[BadSetting]:
    found = []
    for name, stored in given.items():
        if name in known:
            try:
                known[name].understand(stored)
            except BadSetting as error:
                found.append(error)
        else:
            found.append(BadSetting(name, "not known to this version"))
    return found


def change(settings: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """``settings`` with the changes applied; an empty text takes a setting back to its default. Sums: `budget.check`.

    :raises BadSetting: an unknown name, the same one twice, or a bad value; nothing is changed then
    """
    named: dict[str, str] = {}
    for text, word in words.items():
        name = cluster_name(text)
        if name in named:
            raise BadSetting(name, "given twice")
        named[name] = word
    before, was = in_force(settings), bool(values(settings)["ha.enabled"])
    changed = _with(SETTINGS, settings, named)
    after = values(changed)
    changed.pop(IN_FORCE, None)
    if was and after["ha.enabled"]:
        late = {name: before[name] for name, setting in SETTINGS.items() if setting.applies is _LATER}
        pending = {name: value for name, value in late.items() if value != after[name]}
        if pending:
            changed[IN_FORCE] = pending
    return changed


def change_vm(vm_ha: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """A VM's own settings with the changes applied; an empty text takes one back to the cluster's value.

    :raises BadSetting: an unknown name or a bad value; nothing is changed then
    """
    for name in words:
        if name not in VM_SETTINGS:
            raise BadSetting(name, f"no such setting; there are {', '.join(VM_SETTINGS)}")
    return _with(VM_SETTINGS, vm_ha, words)


def _with(known: Mapping[str, Setting], given: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    changed = dict(given)
    for name, text in words.items():
        changed.pop(name, None)
        if text.strip():
            changed[name] = known[name].parse(text)
    return changed


def isolation_ms(failure_ms: int, interval_ms: int) -> int:
    """After how long without a beat a host looks whether it is isolated: early enough to have pinged, and to have begun
    its isolation response, before the others call it failed. 12 s with the defaults (HA-04)."""
    return failure_ms - 2 * interval_ms - PING_MS


def ha_settings(settings: Mapping[str, Any], gateway: str | None = None) -> HaSettings:
    """What is in force, for the machine. ``gateway``: this host's default gateway, an isolation address unless
    das.usedefaultisolationaddress is off."""
    now = in_force(settings)
    addresses = [str(now[each.name]) for each in ISOLATION_ADDRESSES if now[each.name]]
    if gateway and now["das.usedefaultisolationaddress"]:
        addresses.insert(0, gateway)
    failure, interval = int(now[FAILURE]), int(now[INTERVAL])
    return HaSettings(
        enabled=bool(now["ha.enabled"]),
        host_monitoring=bool(now["ha.host_monitoring"]),
        interval_ms=interval,
        failure_ms=failure,
        isolation_ms=isolation_ms(failure, interval),
        isolation_addresses=tuple(dict.fromkeys(addresses)),
        lease_ms=int(now["ha.lease_ms"]),
        stop_after_ms=int(now["ha.stop_after_ms"]),
        shutdown_timeout_ms=1000 * int(now["das.isolationShutdownTimeout"]),
        max_attempts=int(now["ha.max_attempts"]),
        retry_first_ms=int(now["ha.retry_first_ms"]),
        retry_most_ms=int(now["ha.retry_most_ms"]),
        watchdog_ms=int(now["ha.watchdog_ms"]),
    )


def ha_networks(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The networks that carry heartbeats."""
    return tuple(str(in_force(settings)["ha.networks"]).split(","))


def encryption(settings: Mapping[str, Any]) -> Encryption:
    """What is encrypted on its way between hosts."""
    now = in_force(settings)
    return Encryption(bool(now["ft.encryption"]), bool(now["migration.encryption"]))


def failover_host(settings: Mapping[str, Any]) -> str | None:
    """The host restarts go to first; das.defaultfailoverhost comes before the policy's (guide, table 2-2)."""
    now = in_force(settings)
    policy = now["ha.failover_host"] if now["ha.admission_policy"] == "failover-host" else ""
    return str(now["das.defaultfailoverhost"] or policy) or None


def kept_empty(settings: Mapping[str, Any]) -> str | None:
    """The host that admission control keeps empty: nothing is started on it or moved to it but by HA."""
    now = in_force(settings)
    kept = now["ha.enabled"] and now["ha.admission_control"] and now["ha.admission_policy"] == "failover-host"
    return failover_host(settings) if kept else None


@dataclass(frozen=True)
class Monitoring:
    """VM monitoring as it is in force for one VM (HA-17); times in seconds."""

    enabled: bool
    failure_interval_s: int
    min_uptime_s: int
    max_resets: int
    window_s: int
    iostats_interval_s: int


@dataclass(frozen=True)
class VmSettings:
    """The settings in force for one VM. Reservations: 0 for none given."""

    priority: Priority
    isolation_response: IsolationResponse
    cpu_mhz: int
    memory_mb: int
    monitoring: Monitoring


SENSITIVITY_S = {"high": (30, 3600), "medium": (60, 86_400), "low": (120, 604_800)}
"""Guide, table 2-1: failure interval and reset window by sensitivity."""


def vm_values(cluster_settings: Mapping[str, Any], vm_ha: Mapping[str, Any]) -> dict[str, Value]:
    """All settings of a VM: its own, else the cluster's, else the default."""
    return _vm_values(in_force(cluster_settings), vm_ha)


def _vm_values(cluster: Mapping[str, Value], vm_ha: Mapping[str, Any]) -> dict[str, Value]:
    """What is not understood overrides nothing; see `vm_problems`."""
    inherited = {name: cluster.get(name, default) for name, default in _VM_DEFAULTS.items()}
    return _understood(inherited, VM_SETTINGS, vm_ha)


def vm_problems(vm_ha: Mapping[str, Any]) -> list[BadSetting]:
    """What stands among a VM's own settings and cannot be used; the cluster's value is in force instead."""
    return _not_understood(VM_SETTINGS, vm_ha)


def vm_settings(cluster_settings: Mapping[str, Any], vm_ha: Mapping[str, Any]) -> VmSettings:
    """What is in force for a VM with the overrides ``vm_ha`` (``ha`` in its record). For many: `all_vm_settings`."""
    return _vm_settings(in_force(cluster_settings), vm_ha)


def all_vm_settings(
    cluster_settings: Mapping[str, Any], vms_ha: Mapping[str, Mapping[str, Any]]
) -> dict[str, VmSettings]:
    """:func:`vm_settings` of many VMs by UUID; those without overrides cost next to nothing."""
    cluster = in_force(cluster_settings)
    plain = _vm_settings(cluster, {})
    return {uuid: _vm_settings(cluster, vm_ha) if vm_ha else plain for uuid, vm_ha in vms_ha.items()}


def _vm_settings(cluster: Mapping[str, Value], vm_ha: Mapping[str, Any]) -> VmSettings:
    now = _vm_values(cluster, vm_ha)
    custom = int(now["ha.vm_failure_interval_s"]), int(now["ha.vm_reset_window_s"])
    failure_s, window_s = SENSITIVITY_S.get(str(now["ha.vm_monitoring_sensitivity"]), custom)
    return VmSettings(
        Priority(str(now["ha.restart_priority"])),
        IsolationResponse(str(now["ha.isolation_response"])),
        int(now["ha.cpu_reservation_mhz"]),
        int(now["ha.memory_reservation_mb"]),
        Monitoring(
            bool(now["ha.vm_monitoring"]),
            failure_s,
            int(now["ha.vm_min_uptime_s"]),
            int(now["ha.vm_max_resets"]),
            window_s,
            int(cluster["das.iostatsInterval"]),
        ),
    )
