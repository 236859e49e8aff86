"""FT pairs as HA sees them: a copy that runs, one that stands by, and the winner's file that says which goes on.

Who may go live is decided by that file alone, as in ``core.pair``; checkpoints, frames and clients are the other
simulator's (``ftkvm.sim.world``). A primary that was frozen while its secondary won is ended at once: its gate is shut,
and what it still writes goes to an overlay that nobody reads (docs/safety.md), which cannot be told from a VM that runs
twice here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ftkvm.core.facts import FtSettings
from ftkvm.core.ha.model import FtEpoch, Owner, OwnerWhy
from ftkvm.sim.clock import Clock
from ftkvm.sim.ha.host import Host
from ftkvm.sim.ha.qemu import Hypervisors, Qemu
from ftkvm.sim.ha.storage import Files, Storage

LOOK_MS = 200
LOSS_MS = 500
"""So long one copy must hear nothing of the other before it arbitrates."""
_AGAIN_MS = 1000
ABANDONED_MS = FtSettings().abandoned_ms
"""So long the host of a primary that is gone waits for the secondary to go live (``core.pair``)."""


@dataclass
class Standby:
    """The secondary's copy, and since when either side hears nothing of the other.

    ``primary``: the primary's host and its boot; ``gone_ms``: since when that host has had no QEMU of it.
    """

    host: Host
    boot: int
    primary: Host
    primary_boot: int
    gone_ms: int | None = None
    primary_lost_ms: int | None = None
    lost_ms: int | None = None

    @property
    def alive(self) -> bool:
        """It lives as long as its host's boot."""
        return _lives(self.host, self.boot)


class Pairs:
    """All pairs of the cluster."""

    def __init__(self, clock: Clock, storage: Storage, qemus: Hypervisors) -> None:
        self._clock, self._storage, self._qemus = clock, storage, qemus
        self._standbys: dict[str, Standby] = {}

    def make(self, uuid: str, secondary: Host) -> None:
        """Protect a VM that runs: from now on epoch 1 says who may run it."""
        vm, primary = self._storage.files.vms[uuid], self._qemus.of(uuid)[0]
        epoch = FtEpoch(1, primary.host.name, secondary.name, None, primary.host.boot_id, secondary.boot_id,
                        owner=vm.owner.number)  # fmt: skip
        self._storage.files.vms[uuid] = replace(vm, ft=epoch, protected=True)
        self._qemus.set_role(primary, "primary")
        if not self._standbys:
            self._clock.after(LOOK_MS, LOOK_MS, self._look)
        self._standbys[uuid] = Standby(secondary, secondary.boot, primary.host, primary.host.boot)

    def guest_off(self, uuid: str) -> None:
        """The guest has shut itself down: its second copy ends with it."""
        self._standbys.pop(uuid, None)

    def _look(self) -> None:
        for uuid, standby in list(self._standbys.items()):
            self._look_at(uuid, standby)
        self._clock.after(LOOK_MS, LOOK_MS, self._look)

    def _look_at(self, uuid: str, standby: Standby) -> None:
        now = self._clock.now
        primary = next((qemu for qemu in self._qemus.of(uuid) if qemu.role == "primary"), None)
        if primary is None and self._given_up(uuid, standby):
            return
        if primary is None and not standby.alive and not _lives(standby.primary, standby.primary_boot):
            del self._standbys[uuid]  # both are gone; HA has the word
            return
        heard = primary is not None and primary.host.runs
        standby.primary_lost_ms = None if heard else standby.primary_lost_ms or now
        standby.lost_ms = None if standby.alive and standby.host.runs else standby.lost_ms or now
        if _over(standby.primary_lost_ms, now) and standby.alive and standby.host.runs:
            standby.primary_lost_ms = now  # asked: not again before the next loss is as old
            self._arbitrate(uuid, standby.host, lambda won: self._standby_told(uuid, standby, won))
        elif _over(standby.lost_ms, now) and primary is not None and primary.host.runs:
            standby.lost_ms = now
            self._arbitrate(uuid, primary.host, lambda won: self._primary_told(uuid, primary, won))

    def _given_up(self, uuid: str, standby: Standby) -> bool:
        """The primary's host has no QEMU of it, and does not hear that the secondary stands by: after a while it ends
        the epoch, so that nobody goes live."""
        here, now = standby.primary, self._clock.now
        if not (_lives(here, standby.primary_boot) and here.runs) or (standby.alive and standby.host.runs):
            standby.gone_ms = None
            return False
        standby.gone_ms = standby.gone_ms or now
        if now - standby.gone_ms < ABANDONED_MS:
            return False
        standby.gone_ms = now  # asked
        boot_id = here.boot_id

        def told(won: FtEpoch) -> None:
            if self._standbys.get(uuid) is standby and won.nobody and not standby.alive:
                del self._standbys[uuid]

        self._storage.ask(
            here, lambda files: files.win_epoch(uuid, here.name, boot_id, nobody=True), told, lambda: None
        )
        return True

    def _arbitrate(self, uuid: str, host: Host, told: Callable[[FtEpoch], None]) -> None:
        boot_id = host.boot_id
        self._storage.ask(host, lambda files: files.win_epoch(uuid, host.name, boot_id), told, lambda: None)

    def _standby_told(self, uuid: str, standby: Standby, won: FtEpoch) -> None:
        """The winner's file is read back: go live, or end."""
        if self._standbys.get(uuid) is not standby:
            return
        del self._standbys[uuid]
        if won.nobody or won.winner != standby.host.name:
            return
        for qemu in self._qemus.of(uuid):
            if qemu.role == "primary":
                self._qemus.end(qemu)
        memory_mb = self._storage.files.vms[uuid].memory_mb
        self._own(self._qemus.start(uuid, standby.host, memory_mb, self._clock.now), won)

    def _primary_told(self, uuid: str, primary: Qemu, won: FtEpoch) -> None:
        if self._standbys.pop(uuid, None) is None or not primary.alive:
            return
        if won.nobody or won.winner != primary.host.name:
            self._qemus.end(primary)
            return
        self._qemus.set_role(primary, "solo")
        self._own(primary, won)

    def _own(self, qemu: Qemu, won: FtEpoch) -> None:
        """The winner notes that it runs the VM; somebody else may have taken the number meanwhile."""
        mine = Owner((won.owner or 0) + 1, qemu.host.name, qemu.host.boot_id, OwnerWhy.FAILOVER)

        def claim(files: Files) -> Owner:
            return files.claim_owner(qemu.uuid, mine)

        def told(owner: Owner) -> None:
            if owner != mine:
                self._qemus.end(qemu)

        self._storage.ask(
            qemu.host, claim, told, lambda: qemu.host.after(_AGAIN_MS, _AGAIN_MS, lambda: self._own(qemu, won))
        )


def _lives(host: Host, boot: int) -> bool:
    return host.up and host.boot == boot


def _over(since_ms: int | None, now_ms: int) -> bool:
    return since_ms is not None and now_ms - since_ms >= LOSS_MS
