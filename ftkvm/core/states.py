"""The states of fault tolerance that a user sees (FT-09), as a table. `docs/states.md` is generated from it."""

from dataclasses import dataclass
from enum import StrEnum

from ftkvm.core.facts import FtSettings, Observation, QemuState, Role, Winner
from ftkvm.core.reasons import Reason
from ftkvm.core.trouble import find_trouble


class FtState(StrEnum):
    """Fault tolerance of one VM: the state."""

    OFF = "off"
    PROTECTED = "protected"
    NOT_PROTECTED = "not-protected"


class FtReason(StrEnum):
    """Fault tolerance of one VM: why it is not protected."""

    NONE = ""
    STARTING = "starting"
    NEED_SECONDARY = "need-secondary"
    DISABLED = "disabled"
    VM_NOT_RUNNING = "vm-not-running"


@dataclass(frozen=True)
class StateRow:
    """One row of the table: what the state means, when it is shown, and what the system does about it."""

    state: FtState
    reason: FtReason
    shown_as: str
    meaning: str
    next: str


STATES: tuple[StateRow, ...] = (
    StateRow(
        FtState.OFF,
        FtReason.NONE,
        "off",
        "FT is not turned on for this VM. It runs, or not, like any other.",
        "Nothing. `ftkvm enable VM` turns it on.",
    ),
    StateRow(
        FtState.PROTECTED,
        FtReason.NONE,
        "Protected",
        "Both copies run, COLO completes checkpoints, and the epoch has no winner yet: either host may die.",
        "A loss of either side leads to arbitration; the winner goes on, then a new secondary is made.",
    ),
    StateRow(
        FtState.NOT_PROTECTED,
        FtReason.STARTING,
        "Not protected: Starting",
        "A secondary is being made: its QEMU starts, disk and memory are copied while the VM runs.",
        "Becomes *Protected*, or is undone and tried again; the VM itself is not touched by a failure.",
    ),
    StateRow(
        FtState.NOT_PROTECTED,
        FtReason.NEED_SECONDARY,
        "Not protected: Need secondary VM",
        "The VM runs alone and no host can take a secondary now; the status names each host's reason.",
        "Tried again when a host joins, comes back or frees memory, and at intervals.",
    ),
    StateRow(
        FtState.NOT_PROTECTED,
        FtReason.DISABLED,
        "Not protected: Disabled",
        "FT was disabled by hand; settings and the secondary's place are kept.",
        "Nothing until `ftkvm enable VM`.",
    ),
    StateRow(
        FtState.NOT_PROTECTED,
        FtReason.VM_NOT_RUNNING,
        "Not protected: VM not running",
        "FT is on, and the VM is powered off (by its user, by its guest, or both copies died).",
        "The secondary is made when the VM is started.",
    ),
)

_ROWS = {(row.state, row.reason): row for row in STATES}


def row_of(state: FtState, reason: FtReason = FtReason.NONE) -> StateRow:
    """The row of the table. Raises KeyError for a combination that does not exist."""
    return _ROWS[state, reason]


def view(obs: Observation, settings: FtSettings, *, disabled: bool = False) -> StateRow:
    """The state of a VM as its own host sees it (on the primary's host, or where the VM runs alone).

    `disabled`: FT is on, but was disabled by hand (its settings are kept).
    """
    if disabled:
        return row_of(FtState.NOT_PROTECTED, FtReason.DISABLED)
    if not obs.ft_enabled:
        return row_of(FtState.OFF)
    if obs.qemu in (QemuState.ABSENT, QemuState.SHUT_DOWN):
        return row_of(FtState.NOT_PROTECTED, FtReason.VM_NOT_RUNNING)
    if _protected(obs, settings):
        return row_of(FtState.PROTECTED)
    starting = obs.operation is not None or obs.qemu is QemuState.SECONDARY_LOADING
    return row_of(FtState.NOT_PROTECTED, FtReason.STARTING if starting else FtReason.NEED_SECONDARY)


def _protected(obs: Observation, settings: FtSettings) -> bool:
    """COLO runs, nobody has won, and nothing justifies arbitration at this moment."""
    in_place = {Role.PRIMARY: QemuState.PRIMARY, Role.SECONDARY: QemuState.SECONDARY_LOADED}.get(obs.role)
    if obs.qemu is not in_place or isinstance(obs.winner, Winner) or obs.colo_exit_age_ms is not None:
        return False
    if obs.checkpoint_age_ms is None:
        return False
    trouble = find_trouble(obs, settings)
    return trouble is None or trouble.in_ms > 0


#: What `ftkvm status` may say as the cause of an unprotected time, beside the reasons of placement.
CAUSES: frozenset[Reason] = frozenset(
    {
        Reason.PEER_SILENT,
        Reason.PEER_STALLED,
        Reason.PEER_QEMU_GONE,
        Reason.PEER_DATASTORE_LOST,
        Reason.COLO_EXIT,
        Reason.CHECKPOINT_STALLED,
        Reason.REPLICATION_ERROR,
        Reason.HOLD_LOST,
        Reason.CHANGED_OUTSIDE,
        Reason.PROTECT_UNDONE,
        Reason.DATASTORE_SILENT,
    }
)
