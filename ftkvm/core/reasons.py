"""One word for every why: the reasons that decisions, winner files, events and ``ftkvm status`` carry.

The values are stable: they are written to the datastore and to the history. `docs/states.md` is generated from here.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was decided. `MEANINGS` says each in one sentence."""

    # why a side arbitrates (also written into the winner file)
    PEER_SILENT = "peer-silent"
    PEER_STALLED = "peer-stalled"
    PEER_QEMU_GONE = "peer-qemu-gone"
    PEER_DATASTORE_LOST = "peer-datastore-lost"
    COLO_EXIT = "colo-exit"
    CHECKPOINT_STALLED = "checkpoint-stalled"
    REPLICATION_ERROR = "replication-error"
    HOLD_LOST = "hold-lost"
    SECONDARY_DIVERGES = "secondary-diverges"
    CHANGED_OUTSIDE = "changed-outside"
    PROTECT_UNDONE = "protect-undone"
    # why an epoch ends on purpose (winner file)
    GUEST_SHUTDOWN = "guest-shutdown"
    TURN_OFF = "turn-off"
    MOVED = "moved"
    COLD_RESTART = "cold-restart"
    POWERED_OFF = "powered-off"
    # why a copy is ended on purpose (told to the log, never in a winner file)
    TEST = "test"
    # what follows from a decided epoch
    WON = "won"
    LOST = "lost"
    PEER_WON = "peer-won"
    # why a QEMU has no business here
    OLD_EPOCH = "old-epoch"
    WRONG_ROLE = "wrong-role"
    NOT_WON = "not-won"
    ABANDONED = "abandoned"
    # why nothing is done, or something waits
    HEALTHY = "healthy"
    OPERATION_RUNNING = "operation-running"
    DATASTORE_SILENT = "datastore-silent"
    DATASTORE_LOST_HERE = "datastore-lost-here"
    STALE_RECORD = "stale-record"
    NOT_LOADED = "not-loaded"
    OWN_COPY_BAD = "own-copy-bad"
    OWN_QEMU_GONE = "own-qemu-gone"
    OWN_QEMU_HUNG = "own-qemu-hung"
    SHUTDOWN_GRACE = "shutdown-grace"
    HEAD_START = "head-start"
    EPOCH_ENDED = "epoch-ended"
    EPOCH_NOT_ENDED = "epoch-not-ended"
    FT_OFF = "ft-off"
    NOT_HERE = "not-here"
    # why a new secondary is wanted
    STARTING = "starting"
    NEED_SECONDARY = "need-secondary"


MEANINGS: dict[Reason, str] = {
    Reason.PEER_SILENT: "Neither beats nor ping answers came from the peer on the FT network for `silent_ms`.",
    Reason.PEER_STALLED: "The peer's kernel answers pings, its keeper is silent, and no checkpoint completes.",
    Reason.PEER_QEMU_GONE: "The peer itself says that its QEMU process is gone.",
    Reason.PEER_DATASTORE_LOST: "The peer says that its datastore hangs or fails; this host's answers.",
    Reason.COLO_EXIT: "QEMU left COLO by itself: its channel to the other copy broke.",
    Reason.CHECKPOINT_STALLED: "Everything looks alive, yet no checkpoint was completed for `checkpoint_timeout_ms`.",
    Reason.REPLICATION_ERROR: "The secondary's disk is losing writes (QUORUM_REPORT_BAD on the primary).",
    Reason.HOLD_LOST: "The hold proxy of the primary died: the guest's frames have no way out.",
    Reason.SECONDARY_DIVERGES: "The secondary's guest sends nothing while the primary's does: it hangs or crashes.",
    Reason.CHANGED_OUTSIDE: "A copy's image or devices were changed past ftkvm (`virsh`): it is not the recorded one.",
    Reason.PROTECT_UNDONE: "The pair record stands, yet the primary's QEMU is an ordinary one and no protect runs.",
    Reason.GUEST_SHUTDOWN: "The guest powered itself off: both copies end, none is promoted.",
    Reason.TURN_OFF: "FT is being turned off or disabled; the primary goes on alone.",
    Reason.MOVED: "A copy is being moved to another host; the epoch ends first.",
    Reason.COLD_RESTART: "No copy went on; the VM is started afresh. No old copy may go live.",
    Reason.POWERED_OFF: "The operator switched the VM off: both copies end, none is promoted.",
    Reason.TEST: "`ftkvm test` ended this copy, to see what the pair makes of it.",
    Reason.WON: "The winner file names this host.",
    Reason.LOST: "The winner file names another host.",
    Reason.PEER_WON: "The peer says over the FT network that the winner file names it.",
    Reason.OLD_EPOCH: "This QEMU belongs to an epoch that is over.",
    Reason.WRONG_ROLE: "This QEMU has the other role than the pair record gives this host.",
    Reason.NOT_WON: "An ordinary QEMU runs on the secondary's host although nobody has won the epoch.",
    Reason.ABANDONED: "A QEMU waits for a copy that no operation is making.",
    Reason.HEALTHY: "Both copies run and checkpoints are completed.",
    Reason.OPERATION_RUNNING: "An operation is changing this pair; its own plan decides.",
    Reason.DATASTORE_SILENT: "The datastore does not answer here: nobody can win, so nobody goes live.",
    Reason.DATASTORE_LOST_HERE: "The datastore does not answer here but does for the peer: the peer is let win.",
    Reason.STALE_RECORD: "This QEMU is newer than the pair record read last: read again.",
    Reason.NOT_LOADED: "The secondary has no complete checkpoint: it holds no state that could go live.",
    Reason.OWN_COPY_BAD: "This copy's own disk may have missed writes: the other one has to go on, never this.",
    Reason.OWN_QEMU_GONE: "This host's QEMU is gone; the other side has to go on.",
    Reason.OWN_QEMU_HUNG: "This host's QEMU does not answer; it cannot be the one that goes live.",
    Reason.SHUTDOWN_GRACE: "COLO ended; for a moment it may still turn out that the guest powered itself off.",
    Reason.HEAD_START: "The FT network is silent; the primary, if it lives, is given a moment to win.",
    Reason.EPOCH_ENDED: "The epoch has its winner and nothing of it is left on this host.",
    Reason.EPOCH_NOT_ENDED: "This host is not in the pair record, and the pair's epoch has no winner.",
    Reason.FT_OFF: "FT is not wanted for this VM.",
    Reason.NOT_HERE: "Neither a QEMU nor a part in the pair record: not this host's business.",
    Reason.STARTING: "The VM runs, FT is wanted, and it has no secondary yet.",
    Reason.NEED_SECONDARY: "A copy was lost; the VM runs alone and wants a new secondary.",
}

#: Reasons in a winner file after which no copy of that epoch may run, whichever host the file names.
NOBODY_GOES_LIVE = frozenset({Reason.GUEST_SHUTDOWN, Reason.COLD_RESTART, Reason.POWERED_OFF})
