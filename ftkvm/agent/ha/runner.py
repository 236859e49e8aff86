"""The HA machine of this host at work: a thread that takes a turn each second, and at once when something ended."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from ftkvm.agent.ha.actions import HEARTBEAT
from ftkvm.agent.ha.beats import raise_priority
from ftkvm.agent.ha.doer import Doer
from ftkvm.agent.ha.guard import Guard, now_ms
from ftkvm.agent.ha.history import History
from ftkvm.core.ha.model import (
    Beats,
    Cluster,
    Ended,
    Event,
    LocalVm,
    PetWatchdog,
    Result,
    Seen,
    Status,
    Turn,
    WriteHeartbeat,
)
from ftkvm.ports import Json

log = logging.getLogger(__name__)
_SHORTEST_TURN_S = 0.02
_SLOW_TURN_MS = 200
_UNDER_WAY_MS = 1000
_LAST_WRITE_MS = 2000
_STALE_TURNS_MS = 3000


class Machine(Protocol):
    """``ftkvm.core.ha.machine``."""

    def start(self, seen: Seen) -> Turn: ...
    def turn(self, state: object, seen: Seen) -> Turn: ...


@dataclass(frozen=True)
class Surroundings:
    """What the runner asks for at each turn; all of it answers at once. ``cluster``: None while it is not known."""

    host: str
    boot_id: str
    cluster: Callable[[], Cluster | None]
    beats: Callable[[], dict[str, Beats]]
    local: Callable[[], tuple[LocalVm, ...]]
    own: Callable[[tuple[LocalVm, ...]], Beats]
    vms_changed_ms: Callable[[], int | None] = lambda: None


class HaRunner:
    """Sees, lets the machine think, begins what it asks for. Nothing in the thread waits for storage or network.

    safety: when the machine fails, it begins anew with :meth:`Machine.start`, which knows nothing and so takes nothing
    over; heartbeats that were not written meanwhile count as not written, and the guard's time runs on.
    """

    def __init__(
        self, machine: Machine, surroundings: Surroundings, doer: Callable[[Callable[[], None]], Doer], guard: Guard,
        history: History, bridge_writes: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._bridge_writes = bridge_writes
        self._machine = machine
        self._at = surroundings
        self._guard = guard
        self._history = history
        self._doer = doer(self.wake)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ha", daemon=True)
        self._state: object = None
        self._status: Status | None = None
        self._heartbeat: WriteHeartbeat | None = None
        self.local: tuple[LocalVm, ...] | None = None
        self._turned_ms: int | None = None
        self._turns = 0
        self._longest_ms = 0

    # life

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Take a turn now."""
        self._wake.set()

    def stop(self) -> None:
        """End in a way that needs no guard: see ``ftkvm.agent.ha.guard``. Takes 3 s at most."""
        self._stop.set()
        self._wake.set()
        self._thread.join(1.0)
        if not self._guard.armed or self._heartbeat is None:
            return
        deadline = now_ms() + _UNDER_WAY_MS
        while self._doer.busy(HEARTBEAT) and now_ms() < deadline:
            time.sleep(0.02)
        # safety: a heartbeat that is still being written could replace the last one, and would say "guarded" again
        if self._thread.is_alive() or self._doer.busy(HEARTBEAT) or self._bridge_writes():
            log.warning("the datastore does not answer: the watchdog stays armed")
            return
        last = self._heartbeat.heartbeat
        last = replace(last, counter=last.counter + 1, watchdog_ms=0)
        written = WriteHeartbeat(last)
        self._doer.begin(written, now_ms())
        deadline = now_ms() + _LAST_WRITE_MS
        while now_ms() < deadline:
            if any(
                done.ended.result is Result.OK and done.ended.action == written for done in self._doer.ends(now_ms())
            ):
                self._guard.disarm()
                return
            time.sleep(0.05)
        # safety: without that heartbeat the others still count on the watchdog, so it goes on
        log.warning("the last heartbeat was not written: the watchdog stays armed")

    # turns

    def _run(self) -> None:
        raise_priority()
        due_ms = now_ms()
        while not self._stop.is_set():
            self._wake.wait(max(_SHORTEST_TURN_S, (due_ms - now_ms()) / 1000))
            self._wake.clear()
            if self._stop.is_set():
                return
            began = now_ms()
            interval = 1000
            try:
                cluster = self._at.cluster()
                if cluster is not None:
                    interval = cluster.settings.interval_ms
                    self._turn(began, cluster)
            except Exception:
                log.exception("HA: a turn failed; the machine begins anew")
                self._state = None
            if began >= due_ms:
                due_ms = began + interval
            self._longest_ms = max(self._longest_ms, now_ms() - began)
            if now_ms() - began > _SLOW_TURN_MS:
                log.warning("HA: a turn took %d ms", now_ms() - began)

    def _turn(self, now: int, cluster: Cluster) -> None:
        self.local = self._at.local()
        ended = tuple(self._take(done.ended, done.began_ms, cluster) for done in self._doer.ends(now))
        own = self._at.own(self.local)
        seen = Seen(
            now, self._at.host, self._at.boot_id, cluster, self._at.beats(), self.local, self._guard.watchdog_ms, ended,
            own.capacity if own.capacity is not None and own.capacity.compatible else None, self._at.vms_changed_ms(),
        )  # fmt: skip
        turn = self._machine.start(seen) if self._state is None else self._machine.turn(self._state, seen)
        self._state, self._status = turn.state, turn.status
        for action in turn.actions:
            if isinstance(action, PetWatchdog):
                self._guard.pet()
                continue
            if isinstance(action, WriteHeartbeat):
                self._heartbeat = action
            self._doer.begin(action, now)
        for event in turn.events:
            self._history.tell(event)
        self._disarm_if_idle(now)
        self._turned_ms, self._turns = now, self._turns + 1

    def _take(self, ended: Ended, began_ms: int, cluster: Cluster) -> Ended:
        if isinstance(ended.action, WriteHeartbeat) and ended.result is Result.OK:
            self._guard.extend(began_ms + ended.action.heartbeat.stop_after_ms, cluster.settings.watchdog_ms)
        elif ended.result is not Result.OK:
            level = logging.DEBUG if ended.code == "FTKVM-620" else logging.INFO  # what it waits for is told once
            log.log(level, "HA: %s: %s %s", type(ended.action).__name__, ended.result, ended.detail)
        return ended

    def _disarm_if_idle(self, now: int) -> None:
        """Save a host that lost the datastore and has ended all its VMs.

        safety: only when the kernel knows no QEMU here, of any role, and none is being started; what the others wait
        for has then happened already. One that is started all the same needs the datastore for it (its owner file),
        and with the first heartbeat the watchdog is armed again.
        """
        if self._guard.armed and now >= self._guard.until_ms and not self.local:
            log.warning("the datastore is lost and no VM is left here: the watchdog is not needed")
            self._guard.disarm()

    # what others ask

    @property
    def turning(self) -> bool:
        """Whether the machine takes its turns; who asks for beats must not speak for one that does not."""
        turned = self._turned_ms
        return turned is not None and now_ms() - turned < _STALE_TURNS_MS

    @property
    def guarded(self) -> bool:
        """Whether a VM may be started here: the last good heartbeat is young enough."""
        return now_ms() < self._guard.until_ms

    def tell(self, event: Event) -> None:
        """An event that the machine does not know of."""
        self._history.tell(event)

    def status(self) -> Json:
        """The machine's status as JSON; ages in milliseconds."""
        now, status = now_ms(), self._status
        found: Json = {
            "host": self._at.host,
            "turns": {"count": self._turns, "longest_ms": self._longest_ms,
                      "age_ms": None if self._turned_ms is None else now - self._turned_ms},
            "watchdog_ms": self._guard.watchdog_ms,
            "guard_left_ms": max(0, self._guard.until_ms - now),
            "local": [asdict(vm) for vm in self.local or ()],
            "events": self._history.recent(),
            "status": None,
        }  # fmt: skip
        if status is not None:
            found["status"] = {
                "role": status.role, "coordinator": status.coordinator, "term": status.term,
                "isolated": status.isolated, "datastore_ok": status.datastore_ok,
                "hosts": [{"host": view.host, "state": view.state, "why": view.why, "age_ms": now - view.since_ms}
                          for view in status.hosts],
                "waiting": [{"uuid": vm.uuid, "vm": vm.name, "attempts": vm.attempts, "why": vm.why,
                             "next_in_ms": max(0, vm.next_ms - now)} for vm in status.waiting],
            }  # fmt: skip
        return found
