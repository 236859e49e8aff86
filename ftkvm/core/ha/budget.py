"""HA-27: settings that together break safety, or the times that are promised, are refused with the sum. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkvm.core.ha.desk import PAUSE_MS
from ftkvm.core.ha.liveness import MARGIN_MS
from ftkvm.core.ha.setting import BadSetting
from ftkvm.core.ha.settings import FAILURE, INTERVAL, PING_MS, SENSITIVITY_S, in_force, isolation_ms, values

WRITE_MS = 1000
"""What one heartbeat may take to be written on a datastore that is well."""
MOST_RESTART_MS = 20_000
"""Crash to restart commands, with the default settings."""


@dataclass(frozen=True)
class Breach:
    """``setting``: the one to look at first; ``sum``: the figures; ``why``: what would happen."""

    setting: str
    sum: str
    why: str

    def __str__(self) -> str:
        return f"{self.sum}: {self.why}"


def restart_ms(settings: Mapping[str, Any]) -> int:
    """How long after a crash restart commands are out at the latest, with what is in force: detection or lease,
    whichever is longer, the last heartbeat that was still under way, and the turn that notices."""
    now = in_force(settings)
    interval = int(now[INTERVAL])
    return max(int(now[FAILURE]), int(now["ha.lease_ms"])) + 2 * interval + WRITE_MS


def breaches(settings: Mapping[str, Any]) -> list[Breach]:
    """What the settings, as they are set, break; nothing when they may stand together."""
    now = values(settings)
    n = {name: int(value) for name, value in now.items() if isinstance(value, int)}
    failure, interval, lease = n[FAILURE], n[INTERVAL], n["ha.lease_ms"]
    stop, dog = n["ha.stop_after_ms"], n["ha.watchdog_ms"]
    isolation = isolation_ms(failure, interval)
    found = [
        _at_most("ha.lease_ms", stop + dog + MARGIN_MS, lease,
                 f"ha.stop_after_ms {stop} + ha.watchdog_ms {dog} + margin {MARGIN_MS}", f"ha.lease_ms {lease}",
                 "a host that lost the datastore could still write when another one takes its VMs over"),
        _at_most("ha.lease_ms", lease, failure, f"ha.lease_ms {lease}", f"{FAILURE} {failure}",
                 "VMs would be restarted later than the failure detection time says"),
        _at_most(FAILURE, 3 * interval, isolation, f"3 * {INTERVAL} {interval}",
                 f"isolation time {isolation} ({FAILURE} {failure} - 2 * {interval} - ping {PING_MS})",
                 "a host would take two late heartbeats for isolation"),
        _at_most("ha.stop_after_ms", 3 * interval + WRITE_MS, stop,
                 f"3 * {INTERVAL} {interval} + writing {WRITE_MS}", f"ha.stop_after_ms {stop}",
                 "a host would stop its VMs because of two slow writes"),
        _at_most("ha.watchdog_ms", 2 * interval + WRITE_MS, dog, f"2 * {INTERVAL} {interval} + {WRITE_MS}",
                 f"ha.watchdog_ms {dog}", "the watchdog would end a host that is only busy"),
        _at_most(INTERVAL, 2 * interval, PAUSE_MS, f"2 * {INTERVAL} {interval}", f"read gap {PAUSE_MS}",
                 "one late read would make a host count a failed one anew, so restarts could be put off for ever"),
        _at_most("ha.retry_first_ms", n["ha.retry_first_ms"], n["ha.retry_most_ms"],
                 f"ha.retry_first_ms {n['ha.retry_first_ms']}", f"ha.retry_most_ms {n['ha.retry_most_ms']}",
                 "the first pause would be longer than the longest"),
        *_resets(now),
    ]  # fmt: skip
    found += _policy(now)
    return [breach for breach in found if breach is not None]


def vm_breaches(vm_values: Mapping[str, Any]) -> list[Breach]:
    """The same for one VM's settings (`settings.vm_values`)."""
    return [breach for breach in _resets(vm_values) if breach is not None]


def check(settings: Mapping[str, Any]) -> None:
    """:raises BadSetting: the first breach"""
    for breach in breaches(settings):
        raise BadSetting(breach.setting, str(breach))


def check_vm(vm_values: Mapping[str, Any]) -> None:
    """:raises BadSetting: the first breach"""
    for breach in vm_breaches(vm_values):
        raise BadSetting(breach.setting, str(breach))


def _at_most(setting: str, left: int, right: int, left_words: str, right_words: str, why: str) -> Breach | None:
    if left <= right:
        return None
    total = f" = {left}" if "+" in left_words or "*" in left_words else ""
    return Breach(setting, f"{left_words}{total} is above {right_words}", why)


def _resets(now: Mapping[str, Any]) -> list[Breach | None]:
    """A VM that hangs for ever after each reset must reach its limit of resets within the window."""
    resets = int(now["ha.vm_max_resets"])
    custom = int(now["ha.vm_failure_interval_s"]), int(now["ha.vm_reset_window_s"])
    failure, window = SENSITIVITY_S.get(str(now["ha.vm_monitoring_sensitivity"]), custom)
    uptime = int(now["ha.vm_min_uptime_s"])
    name, each = "ha.vm_max_resets", max(failure, uptime)
    words = f"{name} {resets} * {each} s (the longer of failure interval {failure} and minimum uptime {uptime})"
    why = "the limit of resets would never be reached, so a VM that hangs would be reset for ever"
    return [_at_most(name, resets * each, window, words, f"the reset window of {window} s", why)]


def _policy(now: Mapping[str, Any]) -> list[Breach]:
    if now["ha.admission_policy"] != "failover-host" or now["ha.failover_host"] or now["das.defaultfailoverhost"]:
        return []
    return [Breach("ha.failover_host", "ha.admission_policy failover-host needs ha.failover_host", "none is named")]
