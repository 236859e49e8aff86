"""What a host's agent has seen of one pair, and what it may be told to do about it.

Everything is a fact of the moment: `decide` (see `pair.py`) keeps no memory, so an agent that was just restarted
decides exactly as one that has watched for days. Ages are in milliseconds on this host's monotonic clock; an age
that a restarted agent cannot know starts at its own start.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from ftkvm.core.reasons import Reason


class Role(StrEnum):
    """This host's part in the pair record."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    NEITHER = "neither"


class QemuState(StrEnum):
    """What this host's QEMU of the VM looks like, read from QEMU itself, never remembered."""

    ABSENT = "absent"  # no process
    PLAIN = "plain"  # an ordinary running domain: no COLO, no quorum, no filters of ours left in it
    PRIMARY = "primary"  # carries the insertion of a primary (quorum, filters), whether COLO still runs or has exited
    SECONDARY_LOADING = "secondary-loading"  # waits for or receives the first copy
    SECONDARY_LOADED = "secondary-loaded"  # has a complete checkpoint of this epoch; also after COLO_EXIT
    HUNG = "hung"  # the process is there, and even its out-of-band monitor does not answer
    SHUT_DOWN = "shut-down"  # SHUTDOWN with reason guest-shutdown came; sticky, also if the process ended after it


def without_monitor(pid: int | None, monitored_pid: int | None) -> QemuState:
    """What a QEMU is in which no FT monitor answers; ``monitored_pid`` is the last process in which one did.

    The monitor is never taken out of a process. One that had it is ending (a guest that powered itself off, an
    operator's `virsh destroy`): to call it an ordinary VM would end its epoch in its favour, and nobody would run.
    """
    if pid is None:
        return QemuState.ABSENT
    return QemuState.HUNG if pid == monitored_pid else QemuState.PLAIN


class Verdict(StrEnum):
    """The keeper's judgement of the peer on the FT network."""

    ALIVE = "alive"
    SILENT = "silent"  # no fresh beat and no ping answer
    AGENT_SILENT = "agent_silent"  # no fresh beat, the kernel answers pings
    UNKNOWN = "unknown"  # the keeper has only just begun to watch


class PeerQemu(StrEnum):
    """What the peer says of its own QEMU."""

    RUNNING = "running"
    LOADED = "loaded"
    GONE = "gone"
    SHUTDOWN = "shutdown"


class DatastoreState(StrEnum):
    """The keeper's judgement of a host's datastore mount."""

    OK = "ok"
    HUNG = "hung"
    FAILED = "failed"
    READONLY = "readonly"
    UNKNOWN = "unknown"

    @property
    def bad(self) -> bool:
        """True when it is known not to work; UNKNOWN is not bad, it is worth a try."""
        return self in (DatastoreState.HUNG, DatastoreState.FAILED, DatastoreState.READONLY)


@dataclass(frozen=True)
class PairRecord:
    """The latest `epoch-N.pair`: who is who in epoch N."""

    epoch: int
    primary: str
    secondary: str

    def role_of(self, host: str) -> Role:
        """The part `host` has in this record."""
        if host == self.primary:
            return Role.PRIMARY
        return Role.SECONDARY if host == self.secondary else Role.NEITHER


@dataclass(frozen=True)
class WinnerAbsent:
    """The datastore answered: there is no winner file for the record's epoch (perhaps by now there is)."""


@dataclass(frozen=True)
class WinnerUnknown:
    """The datastore did not answer, or nobody has asked yet."""


@dataclass(frozen=True)
class Winner:
    """The winner file of the record's epoch, read back. It never changes once it is there."""

    host: str
    reason: Reason


WinnerState = WinnerAbsent | WinnerUnknown | Winner


@dataclass(frozen=True)
class PeerSaid:
    """The last authenticated beat of the peer about this VM."""

    epoch: int
    role: Role
    qemu: PeerQemu
    won_epoch: int | None = None
    datastore: DatastoreState = DatastoreState.UNKNOWN
    boot_id: str = ""


@dataclass(frozen=True)
class PeerEvidence:
    """The keeper's evidence. `beat_age_ms`: since the last fresh beat; None when none was ever heard."""

    verdict: Verdict = Verdict.UNKNOWN
    beat_age_ms: int | None = None
    said: PeerSaid | None = None


class OperationPhase(StrEnum):
    """How far the journal of a running operation is."""

    PREPARING = "preparing"  # before the commit point: an interruption undoes
    COMMITTED = "committed"  # after it: an interruption goes forward
    UNDOING = "undoing"


@dataclass(frozen=True)
class Operation:
    """The operation that `ft/<uuid>/operation.json` names as running."""

    kind: str  # protect, turn-off, …
    phase: OperationPhase


@dataclass(frozen=True)
class SecondarySilence:
    """For `ms` the secondary's guest has sent nothing, while the primary's sent `frames` frames that are compared, in
    `intervals` intervals between completed checkpoints (`ms` is 0 when it speaks)."""

    ms: int
    intervals: int
    frames: int


@dataclass(frozen=True)
class Observation:
    """All that one host's agent sees of one pair at one moment.

    Read `record`, `winner` and `operation` *after* `qemu`: then a QEMU that an operation has just started is never seen
    without its operation. A read that timed out leaves `record_known` False or `winner` WinnerUnknown.
    """

    now_ms: int
    me: str
    boot_id: str
    record: PairRecord | None  # the latest one; a cached one is allowed while the datastore is silent
    record_known: bool = True  # False: the datastore has never answered since the agent's start
    winner: WinnerState = field(default_factory=WinnerUnknown)  # of record.epoch
    qemu: QemuState = QemuState.ABSENT
    #: On the primary: for how long its QEMU, which this very agent has seen run as the epoch's primary, has been gone
    #: to the last thread; 0: something of it is there, or it is not known since when.
    absent_ms: int = 0
    #: The last epoch this QEMU process took part in: of a secondary from its overlay's name (`….ft-7-s.qcow2`), of
    #: one that has become plain from /run/ftkvm/pairs. None: it never was in one (a secondary must never show None).
    qemu_epoch: int | None = None
    colo_exit_age_ms: int | None = None  # since COLO_EXIT (or since it was found to have exited); None: COLO runs
    #: Since this QEMU completed a checkpoint (RESUME); if none was seen yet, since the agent began to watch.
    #: None: not in COLO.
    checkpoint_age_ms: int | None = None
    interval_ms: int = 500  # checkpoint interval now in force; the primary's keeper tells it to the secondary
    #: In this epoch the secondary's disk may have missed a write. On the primary: QUORUM_REPORT_BAD for the replication
    #: node. On the secondary: its mount failed (an errno; a hang loses nothing) while it was the secondary. Sticky.
    replication_error: bool = False
    own_disk_error: bool = False  # on the primary: QUORUM_REPORT_BAD for its own overlay; the secondary has that write
    hold_alive: bool = True  # the hold proxy of this QEMU runs (primary only)
    secondary_silence: SecondarySilence | None = None  # on the primary, from its hold proxy; None: not known
    changed_outside: bool = False  # a copy of this epoch has another image or other devices than recorded
    patience_ms: int = 0  # so long no secondary is given up for being mute: others were, lately (core.patience)
    peer: PeerEvidence = field(default_factory=PeerEvidence)
    datastore: DatastoreState = DatastoreState.UNKNOWN
    datastore_ok_ms: int = 0  # for how long `datastore` has been OK without a break; 0 when it is not
    operation: Operation | None = None
    ft_enabled: bool = True  # its record wants FT for this VM

    @property
    def role(self) -> Role:
        """This host's part in the latest pair record."""
        return self.record.role_of(self.me) if self.record else Role.NEITHER


@dataclass(frozen=True)
class FtSettings:
    """The times of detection, in milliseconds. HA-27 checks their sums."""

    silent_ms: int = 300  # what the keeper calls silent
    stall_ms: int = 1000  # agent silent and no checkpoint for this long, at least: taken as dead
    late_ms: int = 500  # … and a checkpoint that is due this long ago, or half an interval if that is longer
    checkpoint_timeout_ms: int = 3000  # all alive, no checkpoint: the primary arbitrates; the secondary after twice it
    shutdown_grace_ms: int = 80  # after COLO_EXIT on the secondary: a guest power-off may still be reported
    head_start_ms: int = 50  # how much longer the secondary waits where only the FT network's silence speaks
    settle_ms: int = 600  # own datastore must have been fine this long before the peer's bad one is held against it
    abandoned_ms: int = 60_000  # own QEMU gone, and the other copy has not gone live for this long
    diverges_ms: int = 10_000  # the secondary's guest is mute for this long, although the primary's speaks …
    diverges_intervals: int = 20  # … in at least so many intervals between checkpoints, and with as many frames
    contradict_ms: int = 200  # a checkpoint completed this recently disproves the peer's silence


# ---------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True)
class Arbitrate:
    """create_once `epoch-N.winner` naming this host with this reason, then observe again: what is read back counts."""

    epoch: int
    reason: Reason


@dataclass(frozen=True)
class GoLive:
    """This secondary's host is named by the winner file: promote its copy."""

    epoch: int


@dataclass(frozen=True)
class GoOnAlone:
    """This primary's host is named by the winner file: yank, drop the secondary, go on."""

    epoch: int


@dataclass(frozen=True)
class DestroyOwn:
    """SIGKILL this host's QEMU of the VM (never QMP stop or quit: they hang). Also its hold proxy; keep its images."""

    reason: Reason


@dataclass(frozen=True)
class TellPeerDestroy:
    """Ask the peer's agent on any network, bounded in time, to destroy its copy. Best effort: safety never needs it."""

    epoch: int


@dataclass(frozen=True)
class Yield:
    """Do not arbitrate; say over the FT network that the datastore is lost here (the keeper's beats do)."""

    reason: Reason


@dataclass(frozen=True)
class EndEpochShutdown:
    """create_once the winner file with reason guest-shutdown, then observe again: the file decides for both."""

    epoch: int


@dataclass(frozen=True)
class ReProtect:
    """Ask for a protect operation: the VM runs here alone and FT is wanted."""

    reason: Reason


@dataclass(frozen=True)
class Nothing:
    """Nothing to do now; the reason says why."""

    reason: Reason


Action = Arbitrate | GoLive | GoOnAlone | DestroyOwn | TellPeerDestroy | Yield | EndEpochShutdown | ReProtect | Nothing


@dataclass(frozen=True)
class Decision:
    """What to do, in this order, and why. `recheck_ms`: decide again after so long even without new evidence."""

    reason: Reason
    actions: tuple[Action, ...]
    recheck_ms: int | None = None
