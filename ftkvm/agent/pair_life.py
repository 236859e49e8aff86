"""What an operator does with a protected VM: test it, and move its copies (FT-15, FT-18).

Nothing here decides who goes live. A test kills the one copy and watches the pair react as it does to any loss; a move
of the secondary ends the epoch with this copy as its winner and protects again elsewhere; a move of the primary is a
move of the secondary to the wanted host, and then a failover to it.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..catalogue import FtkvmError
from ..core.pair import QemuState, Role, Winner
from ..core.reasons import Reason
from ..core.states import view
from ..engine import primary
from ..ports import Json, Progress
from . import holds
from .figures import failover_times
from .pair_worker import PairWorker
from .placing import choose_host
from .records import PairDoc
from .storage import patiently

if TYPE_CHECKING:
    from .pair_manager import PairManager

log = logging.getLogger(__name__)
T = TypeVar("T")

WON_WITHIN_S = 20.0
AGAIN_WITHIN_S = 120.0
LOOK_S = 0.05
CLOCK_TRIES = 5


class PairLife:
    """Tests and moves of the pairs whose primary is on this host."""

    def __init__(self, manager: "PairManager") -> None:
        self._manager = manager
        self._ctx = manager.ctx

    # -- tests (FT-18) -------------------------------------------------------------------------------------

    def test_failover(self, vm_uuid: str, progress: Progress) -> Json:
        """Kill this primary's QEMU; the secondary takes over, and a new one is made. Returns the times, in ms.

        safety: the copy is given up while its pair is protected and undisturbed, so the secondary has everything that
        was ever acknowledged; should the secondary's host be lost in this very moment, the VM is down until it is
        started again, with all that was acknowledged on its disk. That is what the operator asked to try.

        :raises FtkvmError: FTKVM-406 not protected now, FTKVM-407 the secondary did not take over in time
        """
        worker, pair = self._protected(vm_uuid)
        peer = pair.secondary.host
        predicted_ms = self._predicted_gap_ms(worker)
        ahead_s = self._clock_ahead_s(peer)
        progress(1, 3, f"ending the primary on {self._ctx.host}")
        killed_at = time.time()
        with worker.turn_lock:
            worker.destroy_own(Reason.TEST)
        progress(2, 3, f"waiting for {peer} to take over")
        self._until(
            lambda: self._winner_is(worker, pair.epoch, peer),
            WON_WITHIN_S,
            FtkvmError("FTKVM-407", vm=worker.name, host=peer, seconds=WON_WITHIN_S),
        )
        record = self._until(lambda: self._failover_of(worker, pair.epoch), WON_WITHIN_S, None) or {}
        figures = failover_times(record, killed_at, ahead_s)
        progress(3, 3, f"runs on {peer}; waiting for the new secondary")
        again = self._until(lambda: self._protected_at(peer, worker, pair.epoch), AGAIN_WITHIN_S, None)
        return {
            "vm": worker.name,
            "epoch": pair.epoch,
            "from": self._ctx.host,
            "to": peer,
            "predicted_gap_ms": predicted_ms,
            **figures,
            "secondary_host": (again or {}).get("secondary_host"),
            "reprotect_s": round(time.time() - killed_at, 2) if again else None,
        }

    def test_restart_secondary(self, vm_uuid: str, progress: Progress) -> Json:
        """Kill the secondary's QEMU; the primary goes on, and a new secondary is made. Returns the times.

        :raises FtkvmError: FTKVM-406 not protected now, FTKVM-407 the primary did not go on in time
        """
        worker, pair = self._protected(vm_uuid)
        peer = pair.secondary.host
        progress(1, 3, f"ending the secondary on {peer}")
        killed_at = time.monotonic()
        path = f"/v1/peer/pairs/{worker.uuid}/end-secondary"
        self._ctx.peers.call(peer, "POST", path, {"epoch": pair.epoch}, timeout_s=5.0)
        progress(2, 3, "waiting for the primary to go on alone")
        self._until(
            lambda: self._winner_is(worker, pair.epoch, self._ctx.host),
            WON_WITHIN_S,
            FtkvmError("FTKVM-407", vm=worker.name, host=self._ctx.host, seconds=WON_WITHIN_S),
        )
        record = self._until(lambda: self._failover_of(worker, pair.epoch), WON_WITHIN_S, None) or {}
        alone_ms = round((time.monotonic() - killed_at) * 1000)
        progress(3, 3, "waiting for the new secondary")
        again = self._until(lambda: self._protected_at(self._ctx.host, worker, pair.epoch), AGAIN_WITHIN_S, None)
        return {
            "vm": worker.name,
            "epoch": pair.epoch,
            "host": self._ctx.host,
            "ended_on": peer,
            "alone_after_ms": alone_ms,
            "promote_ms": record.get("promote_ms"),
            "secondary_host": (again or {}).get("secondary_host"),
            "unprotected_s": round(time.monotonic() - killed_at, 2) if again else None,
        }

    def end_secondary(self, vm_uuid: str, epoch: int) -> Json:
        """End this host's secondary of ``epoch`` for a test; its primary sees a lost QEMU.

        :raises FtkvmError: FTKVM-406 there is no such secondary here, or it may be the one that counts
        """
        worker = self._manager.workers.get(vm_uuid)
        pair = self._read(worker.store.latest) if worker is not None else None
        decided = pair is None or isinstance(self._read(lambda: worker.store.winner(pair.epoch)), Winner)  # type: ignore[union-attr]
        if worker is None or pair is None or decided or pair.epoch != epoch or pair.secondary.host != self._ctx.host:
            raise FtkvmError("FTKVM-406", vm=worker.name if worker else vm_uuid, shown=f"no secondary of epoch {epoch}")
        with worker.turn_lock:
            worker.destroy_own(Reason.TEST)
        return {"ended": worker.vm.pid() is None}

    # -- moves (FT-15) -------------------------------------------------------------------------------------

    def move_secondary(self, vm_uuid: str, to: str | None, progress: Progress) -> Json:
        """Make the secondary anew on ``to`` (or the best host that is not its present one).

        The VM runs unprotected from the end of the old epoch until the new copy is whole; the answer says how long.

        :raises FtkvmError: FTKVM-406 not protected now, FTKVM-408 it is there already, FTKVM-403/404 ``to`` cannot
        """
        worker, pair = self._protected(vm_uuid)
        old = pair.secondary.host
        if to == old:
            raise FtkvmError("FTKVM-408", vm=worker.name, host=to)
        target = choose_host(self._ctx, worker.vm, to, exclude=[old])
        progress(1, 3, f"ending the secondary on {old}")
        began = time.monotonic()
        with self._manager.exclusively(worker, "move-secondary"):
            self._end_epoch(worker, pair)
            worker.catch_up()
            worker.cancel_operation.clear()  # the end of the old epoch's COLO is no reason to give the new one up
            progress(2, 3, f"making the secondary on {target}")
            self._manager.protect_in_turn(
                worker, target, lambda step, of, text: progress(2, 3, f"{text} ({step}/{of})")
            )
        progress(3, 3, f"the secondary is on {target}")
        return {
            "vm": worker.name,
            "secondary_host": target,
            "was_on": old,
            "unprotected_s": round(time.monotonic() - began, 2),
        }

    def move(self, vm_uuid: str, to: str | None, progress: Progress) -> Json:
        """Move the primary to ``to``; without it, to where the secondary is (the host is being cleared).

        :raises FtkvmError: FTKVM-650 it runs there, FTKVM-409 the secondary is there, and what the two halves raise
        """
        worker, pair = self._protected(vm_uuid)
        if to == self._ctx.host:
            raise FtkvmError("FTKVM-650", vm=worker.name, host=to)
        if to == pair.secondary.host:
            raise FtkvmError("FTKVM-409", vm=worker.name, host=to)
        moved = self.move_secondary(vm_uuid, to, progress) if to is not None else {}
        self._until(lambda: self._is_protected(worker), AGAIN_WITHIN_S, None)
        failed_over = self.test_failover(vm_uuid, progress)
        progress(3, 3, f"runs on {failed_over['to']}")
        return {**failed_over, "unprotected_s": moved.get("unprotected_s", 0.0)}

    def _end_epoch(self, worker: PairWorker, pair: PairDoc) -> None:
        """The winner file first: from then on the old secondary cannot go live, whatever becomes of the rest.

        Cut off after it, the next agent finds an epoch that this host has won, and goes on alone as after any loss.
        """
        winner = self._run(
            lambda: worker.store.arbitrate(pair.epoch, self._ctx.host, self._ctx.boot_id, Reason.MOVED), "end the epoch"
        )
        if winner.host != self._ctx.host:
            raise FtkvmError("FTKVM-517", vm=worker.name, host=winner.host)
        worker.publish_solo(pair.epoch)
        try:
            body = {"epoch": pair.epoch, "reason": str(Reason.MOVED)}
            path = f"/v1/peer/pairs/{worker.uuid}/destroy"
            self._ctx.peers.call(pair.secondary.host, "POST", path, body, timeout_s=5.0)
        except FtkvmError as error:
            log.warning("%s: secondary not told: %s; it reads the winner file", worker.name, error)
        primary.normalise(worker.vm.monitor(create=True), worker.vm.shape(fresh=True))
        holds.stop(self._ctx, worker.uuid)
        worker.poller.refresh(2.0)

    # -- looking -------------------------------------------------------------------------------------------

    def _protected(self, vm_uuid: str) -> tuple[PairWorker, PairDoc]:
        """The worker of a VM whose primary is here and protected now.

        :raises FtkvmError: FTKVM-402 no FT, FTKVM-406, FTKVM-501 an operation runs
        """
        worker = self._manager.workers.get(vm_uuid)
        if worker is None or worker.observation is None:
            raise FtkvmError("FTKVM-402", vm=vm_uuid)
        if worker.operation_lock.locked():
            raise FtkvmError("FTKVM-501", vm=worker.name, operation=worker.operation_name or "unknown")
        pair = self._read(worker.store.latest)
        if pair is None or not self._is_protected(worker) or pair.epoch != (worker.spec.epoch if worker.spec else None):
            raise FtkvmError("FTKVM-406", vm=worker.name, shown=view(worker.observation, worker.settings).shown_as)
        return worker, pair

    def _is_protected(self, worker: PairWorker) -> bool:
        seen = worker.observation
        if seen is None or worker.operation_lock.locked() or seen.role is not Role.PRIMARY:
            return False
        return seen.qemu is QemuState.PRIMARY and view(seen, worker.settings).state == "protected"

    def _winner_is(self, worker: PairWorker, epoch: int, host: str) -> bool:
        winner = self._read(lambda: worker.store.winner(epoch))
        if isinstance(winner, Winner) and winner.host != host:
            raise FtkvmError("FTKVM-517", vm=worker.name, host=winner.host)
        return isinstance(winner, Winner)

    def _failover_of(self, worker: PairWorker, epoch: int) -> Json | None:
        record = self._read(worker.store.last_failover)
        return dict(record) if record is not None and record.get("epoch") == epoch else None

    def _protected_at(self, host: str, worker: PairWorker, after: int) -> Json | None:
        """The status of the pair as ``host`` tells it, once it is protected in an epoch later than ``after``."""
        try:
            rows = self._ctx.peers.call(host, "GET", "/v1/local/status", None, 2.0)["pairs"]
        except FtkvmError as error:
            log.info("%s: %s", worker.name, error)
            return None
        found = [row for row in rows if row["uuid"] == worker.uuid and row["epoch"] > after]
        return dict(found[0]) if found and found[0]["state"] == "protected" else None

    def _predicted_gap_ms(self, worker: PairWorker) -> float:
        """Waiting whether it was a power-off, winning, and promotion: as last time, or as long as a checkpoint takes.

        The win is timed by reading the datastore; a checkpoint loads the same state that a promotion lets run.
        """
        began = time.monotonic()
        last = self._read(worker.store.last_failover) or {}
        read_ms = (time.monotonic() - began) * 1000
        rest_ms = last.get("promote_ms") or read_ms + (worker.figures.summary()["checkpoint_ms"] or 0.0)
        return round(worker.settings.shutdown_grace_ms + float(rest_ms), 1)

    def _clock_ahead_s(self, host: str) -> float:
        """How far the clock of ``host`` is ahead of ours, by the quickest of some answers (as NTP does it)."""
        best = (float("inf"), 0.0)
        for _try in range(CLOCK_TRIES):
            asked = time.time()
            theirs = float(self._ctx.peers.call(host, "GET", "/v1/peer/clock", None, 2.0)["time"])
            took = time.time() - asked
            best = min(best, (took, theirs - asked - took / 2))
        return best[1]

    def _until(self, look: Callable[[], T], seconds: float, late: FtkvmError | None) -> T | None:
        """What ``look`` gives, once it is true; after ``seconds`` ``late`` is raised, or None returned."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = look()
            except FtkvmError as error:
                if error.code == "FTKVM-517":
                    raise
                log.info("looking again: %s", error)
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                if late is not None:
                    raise late
                return None
            time.sleep(LOOK_S)

    def _read(self, work: Callable[[], T]) -> T:
        return self._run(work, "read datastore")

    def _run(self, work: Callable[[], T], what: str) -> T:
        return patiently(self._ctx, work, what)
