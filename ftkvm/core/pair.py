"""The go-live rules of one pair: `decide(observation, settings) -> Decision`. Pure; no memory between calls.

Invariant: a copy is told to go live (`GoLive`, `GoOnAlone`) only while `observation.winner` is a winner file, read
back, of the epoch its QEMU belongs to, that names this host and no reason after which nobody goes live. All else
(evidence, time-outs, what the peer says) only decides when to *try*, or to destroy the own copy, which is always
safe for the other one. See docs/safety.md.
"""

from collections.abc import Callable

from ftkvm.core.facts import (
    Action,
    Arbitrate,
    DatastoreState,
    Decision,
    DestroyOwn,
    EndEpochShutdown,
    FtSettings,
    GoLive,
    GoOnAlone,
    Nothing,
    Observation,
    Operation,
    OperationPhase,
    PairRecord,
    PeerEvidence,
    PeerQemu,
    PeerSaid,
    QemuState,
    ReProtect,
    Role,
    TellPeerDestroy,
    Verdict,
    Winner,
    WinnerAbsent,
    WinnerState,
    WinnerUnknown,
    Yield,
)
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason
from ftkvm.core.trouble import find_trouble, guest_shut_down, peer_won, said_now

__all__ = [
    "Action", "Arbitrate", "DatastoreState", "Decision", "DestroyOwn", "EndEpochShutdown", "FtSettings", "GoLive",
    "GoOnAlone", "Nothing", "Observation", "Operation", "OperationPhase", "PairRecord", "PeerEvidence", "PeerQemu",
    "PeerSaid", "QemuState", "ReProtect", "Reason", "Role", "TellPeerDestroy", "Verdict", "Winner", "WinnerAbsent",
    "WinnerState", "WinnerUnknown", "Yield", "decide",
]  # fmt: skip


IN_COLO = frozenset({QemuState.PRIMARY, QemuState.SECONDARY_LOADING, QemuState.SECONDARY_LOADED})
SECONDARIES = frozenset({QemuState.SECONDARY_LOADING, QemuState.SECONDARY_LOADED})


def decide(obs: Observation, settings: FtSettings) -> Decision:
    """What this host has to do about this pair now."""
    if _left_waiting(obs, settings):
        return _destroy(Reason.ABANDONED)
    if obs.record is None:
        return _without_record(obs)
    for rule in (_out_of_place, _peer_says_it_won, _decided_epoch):
        decision = rule(obs, obs.record)
        if decision is not None:
            return decision
    return _BY_ROLE[obs.role](obs, obs.record, settings)


def _nothing(reason: Reason, recheck_ms: int | None = None) -> Decision:
    return Decision(reason, (Nothing(reason),), recheck_ms)


def _destroy(reason: Reason, *also: Action) -> Decision:
    return Decision(reason, (DestroyOwn(reason), *also))


# ------------------------------------------------------------------------------- before an epoch, between epochs


def _without_record(obs: Observation) -> Decision:
    if not obs.record_known:
        return _nothing(Reason.DATASTORE_SILENT)
    if obs.operation is not None:
        return _nothing(Reason.OPERATION_RUNNING)
    if obs.qemu is QemuState.PLAIN:
        return _re_protect(obs, Reason.STARTING)
    if obs.qemu in SECONDARIES:
        return _destroy(Reason.ABANDONED)
    return _nothing(_WITHOUT_RECORD.get(obs.qemu, Reason.STALE_RECORD))


def _left_waiting(obs: Observation, settings: FtSettings) -> bool:
    """A copy that waits for a primary which has been silent for long: its host was lost in the middle of a protect.

    The journal, or a record without a winner, may stand for ever then, and the VM could not be started beside this
    copy. One that never had a whole checkpoint holds no state that could go live; a primary that lives wins alone.
    """
    if obs.qemu is not QemuState.SECONDARY_LOADING or obs.peer.verdict is not Verdict.SILENT:
        return False
    return (obs.peer.beat_age_ms or 0) >= settings.checkpoint_timeout_ms


_WITHOUT_RECORD = {
    QemuState.ABSENT: Reason.NOT_HERE,
    QemuState.SHUT_DOWN: Reason.GUEST_SHUTDOWN,
    QemuState.HUNG: Reason.OWN_QEMU_HUNG,
}


def _re_protect(obs: Observation, reason: Reason) -> Decision:
    """The VM runs here alone: ask for a secondary if one is wanted and a protect could work at all."""
    if not obs.ft_enabled:
        return _nothing(Reason.FT_OFF)
    if obs.operation is not None:
        return _nothing(Reason.OPERATION_RUNNING)
    if obs.datastore.bad:
        return _nothing(Reason.DATASTORE_SILENT)
    return Decision(reason, (ReProtect(reason),))


def _out_of_place(obs: Observation, record: PairRecord) -> Decision | None:
    """A QEMU that the record gives no place: of another epoch, with another role, on another host."""
    newer = obs.qemu_epoch is not None and obs.qemu_epoch > record.epoch
    if newer and obs.qemu is QemuState.HUNG:
        # A copy being made, on a busy host: what was decided about an epoch before it does not end it.
        return _nothing(Reason.OWN_QEMU_HUNG)
    if obs.qemu not in IN_COLO:
        return None
    if newer:
        return _newer_than_record(obs)
    if obs.role is Role.PRIMARY:
        # The primary's own agent writes the record that names it while the domain runs: it is never an older one.
        return _destroy(Reason.WRONG_ROLE) if obs.qemu in SECONDARIES else None
    if obs.qemu_epoch is not None and obs.qemu_epoch < record.epoch:
        return _destroy(Reason.OLD_EPOCH)
    if obs.role is Role.SECONDARY:
        return _destroy(Reason.WRONG_ROLE) if obs.qemu is QemuState.PRIMARY else None
    return _nothing(Reason.OPERATION_RUNNING) if obs.operation is not None else _destroy(Reason.OLD_EPOCH)


def _newer_than_record(obs: Observation) -> Decision:
    """A protect has started this QEMU and its record is not written yet, or not read yet."""
    if obs.operation is not None:
        return _nothing(Reason.OPERATION_RUNNING)
    if obs.qemu is QemuState.SECONDARY_LOADING and obs.datastore is DatastoreState.OK:
        return _destroy(Reason.ABANDONED)
    return _nothing(Reason.STALE_RECORD)


# ------------------------------------------------------------------------------------------- the epoch is decided


def _peer_says_it_won(obs: Observation, record: PairRecord) -> Decision | None:
    """The way to stop a copy whose host cannot read the datastore."""
    if obs.role is Role.NEITHER or not peer_won(obs) or isinstance(obs.winner, Winner):
        return None
    return _destroy(Reason.PEER_WON) if _of_epoch(obs, record) else None


def _of_epoch(obs: Observation, record: PairRecord) -> bool:
    """This host's QEMU is one of the record's two copies (a plain one may have been started after the epoch's end)."""
    if obs.qemu is QemuState.ABSENT:
        return False
    return obs.qemu is not QemuState.PLAIN or obs.qemu_epoch == record.epoch


def _decided_epoch(obs: Observation, record: PairRecord) -> Decision | None:
    if not isinstance(obs.winner, Winner):
        return None
    if obs.role is Role.NEITHER or not _of_epoch(obs, record):
        return _after_the_epoch(obs)
    if obs.winner.reason in NOBODY_GOES_LIVE:
        return _destroy(obs.winner.reason, TellPeerDestroy(record.epoch))
    if obs.winner.host != obs.me:
        return _destroy(Reason.LOST)
    if obs.qemu is QemuState.PLAIN:
        return _alone(obs, record)
    if obs.qemu is QemuState.SHUT_DOWN:
        return _destroy(Reason.GUEST_SHUTDOWN)
    return _won_as_primary(obs, record) if obs.role is Role.PRIMARY else _won_as_secondary(obs, record)


def _after_the_epoch(obs: Observation) -> Decision:
    """Nothing of the epoch is left here; a plain QEMU that was never in it was started afterwards."""
    if obs.qemu is QemuState.PLAIN:
        return _re_protect(obs, Reason.STARTING)
    if obs.qemu is QemuState.SHUT_DOWN:  # else "shut down" would stick here, also to what is started next
        return _destroy(Reason.GUEST_SHUTDOWN)
    return _nothing(Reason.EPOCH_ENDED)


def _alone(obs: Observation, record: PairRecord) -> Decision:
    """Live and alone. A loser that still says it runs is told again."""
    decision = _re_protect(obs, Reason.NEED_SECONDARY)
    said = said_now(obs)
    if said is not None and said.qemu in (PeerQemu.RUNNING, PeerQemu.LOADED):
        return Decision(decision.reason, (TellPeerDestroy(record.epoch), *decision.actions))
    return decision


def _won_as_primary(obs: Observation, record: PairRecord) -> Decision:
    on_purpose = isinstance(obs.winner, Winner) and obs.winner.reason in _PLANNED_ENDS
    if obs.operation is not None and (on_purpose or obs.operation.phase is not OperationPhase.COMMITTED):
        return _nothing(Reason.OPERATION_RUNNING)  # its own steps take the secondary out
    return Decision(Reason.WON, (GoOnAlone(record.epoch), TellPeerDestroy(record.epoch)))


_PLANNED_ENDS = frozenset({Reason.TURN_OFF, Reason.MOVED, Reason.PROTECT_UNDONE})


def _won_as_secondary(obs: Observation, record: PairRecord) -> Decision:
    if obs.qemu is not QemuState.SECONDARY_LOADED or obs.qemu_epoch != record.epoch:
        return _nothing(Reason.OWN_QEMU_HUNG if obs.qemu is QemuState.HUNG else Reason.NOT_LOADED)
    tell, live = TellPeerDestroy(record.epoch), GoLive(record.epoch)
    # A loser that is reachable is killed first: two copies then never even share the wire. One that is silent is told
    # afterwards: its gate has shut and its output is held, and the clients wait.
    reachable = obs.peer.verdict is Verdict.ALIVE
    return Decision(Reason.WON, (tell, live) if reachable else (live, tell))


# --------------------------------------------------------------------------------------------- the epoch is open


def _as_neither(obs: Observation, _record: PairRecord, _settings: FtSettings) -> Decision:
    return _nothing(Reason.NOT_HERE if obs.qemu is QemuState.ABSENT else Reason.EPOCH_NOT_ENDED)


def _as_primary(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    if obs.qemu is QemuState.SHUT_DOWN:
        return _end_by_shutdown(obs, record)
    if obs.qemu is QemuState.ABSENT:
        return _gone_primary(obs, record, settings)
    if obs.qemu is QemuState.HUNG:
        return _hung_primary(obs, record, settings)
    if obs.operation is not None and obs.operation.phase is not OperationPhase.COMMITTED:
        return _nothing(Reason.OPERATION_RUNNING)
    if obs.qemu is QemuState.PLAIN:
        return _arbitrate(obs, record, Reason.PROTECT_UNDONE)
    if obs.own_disk_error:
        return _primary_with_bad_disk(obs)
    return _watch(obs, record, settings)


def _primary_with_bad_disk(obs: Observation) -> Decision:
    """The guest was told that a write is done which only the secondary's disk has: the secondary must go on, not this.

    safety: destroying the own copy before anybody has won risks the VM's life if the secondary dies in that moment;
    going on alone would lose acknowledged writes for certain. Without a fit secondary this copy stays, held.
    """
    said = said_now(obs)
    if said is not None and said.qemu is PeerQemu.LOADED and said.datastore is DatastoreState.OK:
        return _destroy(Reason.OWN_COPY_BAD)
    return _nothing(Reason.OWN_COPY_BAD)


def _gone_primary(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    """The secondary goes live. One that is lost as well never will, and HA may not start the VM while it might.

    safety: this host has looked at its own processes: of this copy not one thread is left that could still write
    (``LastQemu.gone``), so its images stand still. The other copy's chance is given up in the only way there is, by the
    epoch's winner file, with a reason that lets nobody go live. If it has won meanwhile, or wins at the same moment,
    the file says so, and nothing is given up. If it was frozen, it finds the file when it thaws, and ends itself.
    Whatever the guest was told is written is on this copy's images, unless its own disk had failed (then only the
    secondary's will do): an agent that did not watch it to its end gives nothing up. A secondary that says that it
    stands by (its datastore hangs, say) is waited for without end: it has the memory, too.
    """
    said = said_now(obs)
    stands_by = said is not None and said.qemu in (PeerQemu.LOADED, PeerQemu.RUNNING)
    if obs.operation is not None or obs.own_disk_error or stands_by:
        return _nothing(Reason.OWN_QEMU_GONE)
    if obs.absent_ms < settings.abandoned_ms:
        return _nothing(Reason.OWN_QEMU_GONE, settings.abandoned_ms - obs.absent_ms)
    return _arbitrate(obs, record, Reason.COLD_RESTART)


def _hung_primary(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    """Better the secondary goes live; only one that has been silent for long leaves no other way than this copy."""
    if obs.peer.verdict is not Verdict.SILENT:
        return _nothing(Reason.OWN_QEMU_HUNG)
    wait_ms = settings.stall_ms - (obs.peer.beat_age_ms or settings.stall_ms)
    if wait_ms > 0:
        return _nothing(Reason.OWN_QEMU_HUNG, wait_ms)
    return _arbitrate(obs, record, Reason.PEER_SILENT)


def _as_secondary(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    if obs.qemu is QemuState.SHUT_DOWN:
        return _shut_down_secondary(obs, record, settings)
    if obs.qemu is QemuState.PLAIN:
        return _plain_on_secondary(obs)
    if obs.qemu is not QemuState.SECONDARY_LOADED or obs.qemu_epoch != record.epoch:
        return _nothing(_CANNOT_TRY.get(obs.qemu, Reason.NOT_LOADED))
    if guest_shut_down(obs):
        return _end_by_shutdown(obs, record)
    if obs.replication_error:
        return _nothing(Reason.OWN_COPY_BAD)
    return _watch(obs, record, settings)


_CANNOT_TRY = {QemuState.ABSENT: Reason.OWN_QEMU_GONE, QemuState.HUNG: Reason.OWN_QEMU_HUNG}


def _plain_on_secondary(obs: Observation) -> Decision:
    """An ordinary QEMU beside a live primary would be a second copy. Only a datastore that answered may say so."""
    if obs.operation is not None:
        return _nothing(Reason.OPERATION_RUNNING)
    if isinstance(obs.winner, WinnerUnknown):
        return _nothing(Reason.DATASTORE_SILENT)  # it may be the copy that won and went live before the agent's restart
    return _destroy(Reason.NOT_WON)


def _shut_down_secondary(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    """The secondary's guest ran ahead: only the primary's shutdown counts, unless there is no primary any more."""
    trouble = find_trouble(obs, settings)
    if guest_shut_down(obs) or (trouble is not None and trouble.in_ms == 0):
        return _end_by_shutdown(obs, record)
    return _nothing(Reason.SHUTDOWN_GRACE, trouble.in_ms if trouble else None)


def _watch(obs: Observation, record: PairRecord, settings: FtSettings) -> Decision:
    trouble = find_trouble(obs, settings)
    if trouble is not None and trouble.in_ms == 0:
        return _arbitrate(obs, record, trouble.reason)
    if obs.datastore.bad:
        return _cannot_arbitrate(obs)
    return _nothing(trouble.waiting, trouble.in_ms) if trouble else _nothing(Reason.HEALTHY)


def _arbitrate(obs: Observation, record: PairRecord, reason: Reason) -> Decision:
    if obs.datastore.bad:
        return _cannot_arbitrate(obs)
    return Decision(reason, (Arbitrate(record.epoch, reason),))


def _end_by_shutdown(obs: Observation, record: PairRecord) -> Decision:
    if obs.datastore.bad:
        return _nothing(Reason.DATASTORE_SILENT)
    return Decision(Reason.GUEST_SHUTDOWN, (EndEpochShutdown(record.epoch),))


def _cannot_arbitrate(obs: Observation) -> Decision:
    """The datastore is lost here: let the peer win if it can, else wait; COLO holds the guest's output meanwhile."""
    said = said_now(obs)
    if said is not None and said.datastore is DatastoreState.OK:
        return Decision(Reason.DATASTORE_LOST_HERE, (Yield(Reason.DATASTORE_LOST_HERE),))
    return _nothing(Reason.DATASTORE_SILENT)


_BY_ROLE: dict[Role, Callable[[Observation, PairRecord, FtSettings], Decision]] = {
    Role.PRIMARY: _as_primary,
    Role.SECONDARY: _as_secondary,
    Role.NEITHER: _as_neither,
}
