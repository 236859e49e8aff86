"""Detection: what speaks for the pair being broken, and from when on that is enough to arbitrate.

Each rule looks at one kind of evidence and says nothing, or from when (in how many ms) it justifies arbitration. Rules
never make anybody go live: the winner file does. A wrong one costs protection for some seconds, not safety.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ftkvm.core.facts import (
    DatastoreState,
    FtSettings,
    Observation,
    PeerQemu,
    PeerSaid,
    QemuState,
    Role,
    SecondarySilence,
    Verdict,
)
from ftkvm.core.reasons import Reason


@dataclass(frozen=True)
class Trouble:
    """`reason` justifies arbitration in `in_ms` (0: now); until then `waiting` is what to say."""

    reason: Reason
    in_ms: int
    waiting: Reason = Reason.HEALTHY


def said_now(obs: Observation) -> PeerSaid | None:
    """What the peer says of *this* epoch, if it says so now (an old word of a peer that fell silent is no evidence)."""
    said = obs.peer.said
    if said is None or obs.record is None or said.epoch != obs.record.epoch or obs.peer.verdict is not Verdict.ALIVE:
        return None
    return said


def guest_shut_down(obs: Observation) -> bool:
    """The peer said that the guest powered itself off. That stays true, also when the peer has fallen silent since."""
    said = obs.peer.said
    same_epoch = said is not None and obs.record is not None and said.epoch == obs.record.epoch
    return same_epoch and said is not None and said.qemu is PeerQemu.SHUTDOWN


def peer_won(obs: Observation) -> bool:
    """The peer said that it won this epoch: the file names it, and a file never changes, so an old word counts."""
    said = obs.peer.said
    return said is not None and obs.record is not None and said.epoch == obs.record.epoch == said.won_epoch


def _peer_qemu_gone(obs: Observation, _settings: FtSettings) -> Trouble | None:
    said = said_now(obs)
    return Trouble(Reason.PEER_QEMU_GONE, 0) if said and said.qemu is PeerQemu.GONE else None


def _colo_exit(obs: Observation, settings: FtSettings) -> Trouble | None:
    """The primary acts at once. The secondary may get COLO_EXIT 10 ms before its SHUTDOWN, so it waits a moment."""
    if obs.colo_exit_age_ms is None:
        return None
    if obs.role is Role.PRIMARY or obs.peer.verdict is Verdict.SILENT:
        return Trouble(Reason.COLO_EXIT, 0)
    if obs.changed_outside:
        return None  # this copy's devices are not the VM's any more; a primary that hangs is found by its checkpoints
    return Trouble(Reason.COLO_EXIT, max(0, settings.shutdown_grace_ms - obs.colo_exit_age_ms), Reason.SHUTDOWN_GRACE)


def _silent(obs: Observation, settings: FtSettings) -> Trouble | None:
    """The FT network is silent. A checkpoint completed just now disproves it: COLO runs over the same network.

    If the network is cut and both live, either may win, none is better informed; the primary gets a head start because
    keeping it costs the clients nothing. A dead primary cannot use it, so it costs 50 ms of the gap.
    """
    if obs.peer.verdict is not Verdict.SILENT:
        return None
    contradicted = 0 if obs.checkpoint_age_ms is None else settings.contradict_ms - obs.checkpoint_age_ms
    courtesy = 0
    if obs.role is Role.SECONDARY and obs.peer.beat_age_ms is not None:
        courtesy = settings.silent_ms + settings.head_start_ms - obs.peer.beat_age_ms
    return Trouble(Reason.PEER_SILENT, max(0, contradicted, courtesy), Reason.HEAD_START)


def _stalled(obs: Observation, settings: FtSettings) -> Trouble | None:
    """The peer's user space does not speak (frozen, starved, or only its keeper died): checkpoints tell which.

    The last was completed at age 0, the next begins an interval later and takes its pause; docs/keeper.md says why half
    an interval, and at least `late_ms`, is room enough for that.
    """
    if obs.peer.verdict is not Verdict.AGENT_SILENT or obs.checkpoint_age_ms is None:
        return None
    late_ms = max(settings.late_ms, obs.interval_ms // 2)
    limit_ms = max(settings.stall_ms, obs.interval_ms + late_ms) + 1
    if obs.role is Role.SECONDARY:
        limit_ms += settings.head_start_ms
    return Trouble(Reason.PEER_STALLED, max(0, limit_ms - obs.checkpoint_age_ms))


def _checkpoint_stalled(obs: Observation, settings: FtSettings) -> Trouble | None:
    """Whatever the verdict says: a pair that completes no checkpoint holds the guest's output and must end."""
    if obs.checkpoint_age_ms is None:
        return None
    limit_ms = max(settings.checkpoint_timeout_ms, 3 * obs.interval_ms) + 1
    if obs.role is Role.SECONDARY:
        limit_ms *= 2
    return Trouble(Reason.CHECKPOINT_STALLED, max(0, limit_ms - obs.checkpoint_age_ms))


def _peer_datastore(obs: Observation, settings: FtSettings) -> Trouble | None:
    """The copy whose storage answers is the better one.

    After a hiccup of the shared server both recover and one hears of it first: it must not take the other's last word
    for a loss. Therefore the own one must have been fine for `settle_ms`, longer than a probe period and a beat.
    """
    said = said_now(obs)
    if said is None or not said.datastore.bad or obs.datastore is not DatastoreState.OK:
        return None
    return Trouble(Reason.PEER_DATASTORE_LOST, max(0, settings.settle_ms - obs.datastore_ok_ms))


def _replication_error(obs: Observation, _settings: FtSettings) -> Trouble | None:
    """The quorum tells the guest *success* while the secondary's disk misses the write: end it before it is needed."""
    return Trouble(Reason.REPLICATION_ERROR, 0) if obs.replication_error and obs.role is Role.PRIMARY else None


def _hold_lost(obs: Observation, _settings: FtSettings) -> Trouble | None:
    """Without its hold proxy the primary is mute: winning and dropping the filters gives the guest its network back."""
    lost = obs.role is Role.PRIMARY and obs.qemu is QemuState.PRIMARY and not obs.hold_alive
    return Trouble(Reason.HOLD_LOST, 0) if lost else None


def is_mute(silence: SecondarySilence | None, settings: FtSettings) -> bool:
    """The secondary's guest is mute while the primary's speaks: it hangs or crashes anew after every checkpoint.

    Frames that differ prove nothing: a guest that sends times or random numbers differs in every one, and that is what
    checkpoints are for. But a copy that runs sends *something* of its own when the primary does: an answer, whatever is
    in it, an acknowledgement, a timer's. One that sends nothing at all in so many intervals does not run, or so slowly
    that it would be of no use.
    """
    if silence is None or silence.ms < settings.diverges_ms:
        return False
    return min(silence.intervals, silence.frames) >= settings.diverges_intervals


def _secondary_diverges(obs: Observation, settings: FtSettings) -> Trouble | None:
    """Only the primary hears both. With patience: a healthy copy that was taken for mute shall not be lost often."""
    if obs.role is not Role.PRIMARY or obs.qemu is not QemuState.PRIMARY:
        return None
    if not is_mute(obs.secondary_silence, settings):
        return None
    return Trouble(Reason.SECONDARY_DIVERGES, obs.patience_ms)


def _changed_outside(obs: Observation, _settings: FtSettings) -> Trouble | None:
    """``ftkvm.agent.outside`` argues why the pair has to be made anew. Clients notice nothing when the primary wins."""
    changed = obs.changed_outside and obs.role is Role.PRIMARY and obs.qemu is QemuState.PRIMARY
    return Trouble(Reason.CHANGED_OUTSIDE, 0) if changed else None


Rule = Callable[[Observation, FtSettings], Trouble | None]
#: In order of how much they explain; the earliest wins, ties go to the first.
RULES: tuple[Rule, ...] = (
    _peer_qemu_gone,
    _replication_error,
    _hold_lost,
    _secondary_diverges,
    _changed_outside,
    _colo_exit,
    _peer_datastore,
    _silent,
    _stalled,
    _checkpoint_stalled,
)


def unnoticed_ms(obs: Observation, reason: Reason) -> int | None:
    """For how long at most what ``reason`` says was so before it was found: since the last sign of the contrary.

    None: there is none, as for an error, which is reported in the moment it happens or is met.
    """
    signs = {
        Reason.PEER_SILENT: obs.peer.beat_age_ms,
        Reason.PEER_QEMU_GONE: obs.checkpoint_age_ms,
        Reason.PEER_STALLED: obs.checkpoint_age_ms,
        Reason.CHECKPOINT_STALLED: obs.checkpoint_age_ms,
        Reason.COLO_EXIT: obs.colo_exit_age_ms,
        Reason.SECONDARY_DIVERGES: obs.secondary_silence.ms if obs.secondary_silence else None,
    }
    return signs.get(reason)


def find_trouble(obs: Observation, settings: FtSettings) -> Trouble | None:
    """The trouble that justifies arbitration soonest, or None."""
    found = [trouble for rule in RULES if (trouble := rule(obs, settings)) is not None]
    return min(found, key=lambda trouble: trouble.in_ms, default=None)
