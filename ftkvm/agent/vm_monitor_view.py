"""One VM as its monitoring has it, and how that is shown."""

from dataclasses import asdict, dataclass, field

from ftkvm.agent.vm_resets import Reset
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.settings import Monitoring
from ftkvm.core.ha.vm_monitor import Judgement, State, Watched
from ftkvm.ports import Json


@dataclass
class Subject:
    """One VM on this host."""

    uuid: str
    name: str
    monitoring: Monitoring
    watched: Watched | None = None
    found: Judgement = field(default_factory=lambda: Judgement(State.NOT_JUDGED, "not looked at yet"))
    resets: list[Reset] = field(default_factory=list)
    resets_known: bool = False
    said: State = State.WELL
    trouble: FtkvmError | None = None
    tried_ms: int | None = None


def trouble_of(subject: Subject) -> FtkvmError | None:
    """The message for what keeps a VM from being monitored or reset."""
    settings, found = subject.monitoring, subject.found
    if found.state is State.LEFT_ALONE:
        return FtkvmError("FTKVM-140", vm=subject.name, resets=found.resets, window_s=settings.window_s, why=found.why)
    if found.state is State.NO_AGENT:
        return FtkvmError("FTKVM-144", vm=subject.name, why=found.why)
    return subject.trouble


def shown(subject: Subject) -> Json:
    """What the API says of a VM's monitoring."""
    found, error = subject.found, trouble_of(subject)
    return {
        "state": str(found.state),
        "why": found.why,
        "silent_s": round(found.silent_ms / 1000, 1),
        "quiet_s": None if found.quiet_ms is None else round(found.quiet_ms / 1000, 1),
        "resets_in_window": found.resets,
        "max_resets": subject.monitoring.max_resets,
        "window_s": subject.monitoring.window_s,
        "last_reset": asdict(subject.resets[-1]) if subject.resets else None,
        "error": error.to_json() if error else None,
    }
