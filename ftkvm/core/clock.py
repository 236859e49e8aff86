"""Whether a host's clock follows a time server, and by which service. Pure.

No protection of VMs asks what time it is: leases and time-outs run on each host's own monotonic clock, and what is
decided for good is decided by files that are created once (docs/safety.md, docs/ha.md). Certificates do count by date,
and the history of several hosts is put in order by their clocks. So a clock that runs free is told and refuses nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ftkvm.core.checks.model import Finding, Severity

SERVICES = {
    "chrony.service": "chrony",
    "chronyd.service": "chrony",
    "ntpsec.service": "ntpsec",
    "ntp.service": "ntp",
    "systemd-timesyncd.service": "systemd-timesyncd",
}
"""Units that keep a clock, and what each is called. Debian's names, and RHEL's chronyd."""
COMMAND = f"timedatectl show -p NTPSynchronized; systemctl show -p Id -p ActiveState {' '.join(SERVICES)}"
"""What :func:`parse` understands the output of; it changes nothing."""


@dataclass(frozen=True)
class Clock:
    """``synchronised``: None, the host did not tell. ``service``: what keeps it; empty: nothing that is known."""

    synchronised: bool | None = None
    service: str = ""


def parse(text: str) -> Clock:
    """The output of :data:`COMMAND`; what is missing in it is not known."""
    synchronised, service, unit = None, "", ""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals:
            continue
        if key == "NTPSynchronized":
            synchronised = {"yes": True, "no": False}.get(value)
        elif key == "Id":
            unit = value
        elif key == "ActiveState" and value == "active":
            service = service or SERVICES.get(unit, "")
    return Clock(synchronised, service)


def judge(clock: Clock | None) -> Iterator[Finding]:
    """What is to be said of it, as a warning."""
    if clock is None or clock.synchronised is not False:
        return
    why = f"{clock.service} runs and has no time yet" if clock.service else "no time service runs"
    yield Finding("FTKVM-361", {"why": why}, Severity.WARNING)
