"""VM monitoring on one host (HA-17): asks the guests, lets the core judge, and resets those that hang.

A thread of its own; guests are asked through a libvirt connection of its own. A reset is an operation like any other,
so nothing else happens to the VM meanwhile: picture of the console, a last question, the record, the reset.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ftkvm.adapters.guest_figures import Life
from ftkvm.agent.operations import Operations
from ftkvm.agent.stalls import Stalls
from ftkvm.agent.vm_monitor_view import Subject, shown, trouble_of
from ftkvm.agent.vm_resets import DONE, FAILED, Reset, counted_ms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.model import Event
from ftkvm.core.ha.settings import Monitoring
from ftkvm.core.ha.vm_monitor import Beat, Io, Judgement, Look, State, after_reset, judge, resets_in_window
from ftkvm.ports import Json, Progress, WorkTimeout

log = logging.getLogger(__name__)
_IDLE_S = 2.0
_LONGEST_PERIOD_S = 5.0
_SHORTEST_PERIOD_S = 1.0
_SHORTEST_PAUSE_S = 0.3
_LONGEST_PING_S = 5
_RETRY_MS = 30_000
"""After a reset that could not be done, so long until the next try."""
_SAID = (State.WELL, State.SILENT, State.LEFT_ALONE, State.NO_AGENT)
"""States whose coming is told; the others pass."""


class Guests(Protocol):
    """What is asked of guests; see :class:`ftkvm.adapters.guests.Guests`."""

    def ping(self, uuid: str, timeout_s: int) -> Beat: ...
    def io(self) -> dict[str, Io | None]: ...
    def screenshot(self, uuid: str) -> bytes: ...
    def reset(self, uuid: str) -> None: ...


class Resets(Protocol):
    """The record of resets; see :class:`ftkvm.agent.vm_resets.ResetStore`."""

    def load(self, uuid: str) -> list[Reset]: ...
    def add(self, uuid: str, reset: Reset) -> None: ...
    def settle(self, uuid: str, reset: Reset, outcome: str) -> None: ...
    def keep_screenshot(self, uuid: str, picture: bytes, at: float) -> str: ...


class Surroundings(Protocol):
    """What the monitor must know of its host and cluster; see :mod:`ftkvm.agent.vm_monitor_host`."""

    def copies(self) -> list[Json]: ...
    def monitoring(self, uuid: str) -> Monitoring | None: ...
    def obstacle(self, entry: Json) -> str: ...
    def life(self, name: str) -> Life | None: ...
    def tell(self, event: Event) -> None: ...
    def forget(self, uuid: str) -> None: ...


class VmMonitor:
    """The monitoring of this host's VMs. :meth:`turn` looks once at all of them."""

    def __init__(
        self,
        host: str,
        guests: Guests,
        resets: Resets,
        around: Surroundings,
        operations: Operations,
        lives: Path,
        at_once: int,
        now_ms: Callable[[], int] = lambda: int(time.monotonic() * 1000),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._guests = guests
        self._resets = resets
        self._around = around
        self._operations = operations
        self._lives = lives
        self._now_ms = now_ms
        self._wall = wall
        self._stalls = Stalls(now_ms)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="guest-ping")
        self._lock = threading.Lock()
        self._subjects: dict[str, Subject] = {}
        self._reset_seen: set[str] = set()
        self._answered: dict[str, str] = _read_lives(lives)
        self._written: dict[str, str] = {}

    def start(self) -> None:
        """Begin to monitor."""
        self._stalls.start()
        threading.Thread(target=self._run, name="vm-monitor", daemon=True).start()

    def on_lifecycle(self, uuid: str, event: str, _detail: int) -> None:
        """From libvirt's thread: a guest that was reset, by whomever, gets its minimum uptime anew."""
        if event == "reset":
            with self._lock:
                self._reset_seen.add(uuid)

    def settings_changed(self, uuid: str) -> None:
        """A VM's settings were written: the next look is by those."""
        self._around.forget(uuid)

    def status(self, uuid: str) -> Json | None:
        """What the monitoring makes of a VM; None if it does not run here, or only as a secondary."""
        subject = self._subjects.get(uuid)
        return None if subject is None else shown(subject)

    def all(self) -> list[Json]:
        """:meth:`status` of all VMs here."""
        return [{"uuid": each.uuid, "name": each.name, **shown(each)} for each in list(self._subjects.values())]

    # -- a turn --------------------------------------------------------------------------------------------------

    def turn(self) -> float:
        """Look at every VM once; returns after how many seconds to look again. Bounded by the pings' time-outs.

        :raises FtkvmError: libvirt or the configuration could not be asked; nothing was judged
        """
        copies = {str(entry["uuid"]): entry for entry in self._around.copies()}
        self._subjects = self._gathered(copies)
        watched = [each for each in self._subjects.values() if each.monitoring.enabled]
        counters: Mapping[str, Io | None] = {}
        if watched:
            counters = self._io()
        looking = [(each, self._pool.submit(self._look, each, copies[each.uuid], counters)) for each in watched]
        for subject, future in looking:
            look = future.result()
            if look is not None:
                self._judge(subject, look)
        for subject in self._subjects.values():
            if not subject.monitoring.enabled:
                subject.watched, subject.found = None, Judgement(State.OFF, "VM monitoring is off for this VM")
        self._write_lives()
        return min((_period_s(each.monitoring) for each in watched), default=_IDLE_S)

    def _gathered(self, copies: Mapping[str, Json]) -> dict[str, Subject]:
        found = {}
        for uuid, entry in copies.items():
            monitoring = self._around.monitoring(uuid)
            if monitoring is None or entry["role"] not in ("solo", "primary"):
                continue
            subject = self._subjects.get(uuid) or Subject(uuid, str(entry["name"]), monitoring)
            subject.monitoring = monitoring
            found[uuid] = subject
        return found

    def _io(self) -> Mapping[str, Io | None]:
        try:
            return self._guests.io()
        except FtkvmError as error:
            log.warning("VM monitoring: no I/O statistics: %s", error)
            return {}

    def _look(self, subject: Subject, entry: Json, counters: Mapping[str, Io | None]) -> Look | None:
        began = self._now_ms()
        life = self._around.life(subject.name)
        if life is None:
            return None
        obstacle = self._around.obstacle(entry)
        beat = Beat.UNKNOWN
        if not obstacle:
            beat = self._guests.ping(subject.uuid, _ping_s(subject.monitoring))
        looked = subject.watched.looked_ms if subject.watched else began
        if self._stalls.since(looked):
            obstacle = "this host's agent stood still"
        return Look(
            self._now_ms(), int(self._wall() * 1000), life.name, life.born_ms, beat, counters.get(subject.uuid),
            obstacle, self._answered.get(subject.uuid) == life.name,
        )  # fmt: skip

    def _judge(self, subject: Subject, look: Look) -> None:
        with self._lock:
            reset_seen = subject.uuid in self._reset_seen
            self._reset_seen.discard(subject.uuid)
        if reset_seen and subject.watched is not None:
            subject.watched, subject.tried_ms = after_reset(subject.watched, look.now_ms), None
        if subject.watched is None or subject.watched.life != look.life:
            subject.resets_known = False  # another host may have reset it since
        if not subject.resets_known:
            self._load(subject)
        subject.watched, subject.found = judge(subject.watched, look, subject.monitoring, counted_ms(subject.resets))
        if subject.watched.answered:
            self._answered[subject.uuid] = look.life
        if subject.found.state is State.WELL:
            subject.trouble = None
        self._announce(subject, look)
        if subject.found.reset and (subject.tried_ms is None or look.now_ms - subject.tried_ms >= _RETRY_MS):
            subject.tried_ms = look.now_ms
            self._begin_reset(subject)

    def _load(self, subject: Subject) -> None:
        try:
            subject.resets, subject.resets_known = self._resets.load(subject.uuid), True
        except FtkvmError as error:  # looked at again before a reset
            log.warning("%s: the record of its resets: %s", subject.name, error)

    def _announce(self, subject: Subject, look: Look) -> None:
        state = subject.found.state
        if state not in _SAID or state is subject.said:
            return
        if state is State.NO_AGENT and look.now_ms - look.born_ms < 1000 * subject.monitoring.min_uptime_s:
            return  # it may still boot
        subject.said = state
        kinds = {State.WELL: "vm-answers", State.SILENT: "vm-silent", State.LEFT_ALONE: "vm-left-alone",
                 State.NO_AGENT: "vm-not-monitored"}  # fmt: skip
        said = trouble_of(subject)
        self._tell(kinds[state], subject, f"{subject.name}: {said or subject.found.why}")

    def _tell(self, kind: str, subject: Subject, text: str, **detail: Any) -> None:
        self._around.tell(Event(kind, text, self._host, subject.name, detail))

    # -- a reset -------------------------------------------------------------------------------------------------

    def _begin_reset(self, subject: Subject) -> None:
        try:
            self._operations.start("reset", subject.name, subject.uuid, lambda progress: self._reset(subject, progress))
        except FtkvmError as error:  # something else has just begun on it
            log.info("%s: not reset now: %s", subject.name, error)

    def _reset(self, subject: Subject, progress: Progress) -> None:
        try:
            self._reset_if_allowed(subject, progress)
        except FtkvmError as error:
            subject.trouble = error
            self._tell("vm-reset-failed", subject, f"{subject.name}: {error}")
            raise

    def _reset_if_allowed(self, subject: Subject, progress: Progress) -> None:
        """Reset a VM, if it still hangs and the record allows it.

        safety: the record is read anew and written before the reset. An agent that ends in between has counted a reset
        too many, never one too few; where nothing can be recorded nothing is reset.

        :raises FtkvmError: FTKVM-141, 143
        """
        uuid, settings, why, at = subject.uuid, subject.monitoring, subject.found.why, self._wall()
        progress(1, 3, "keeping a picture of the console")
        picture, no_picture = self._picture(subject, at)
        if self._guests.ping(uuid, _ping_s(settings)) is Beat.ANSWERED:
            progress(1, 3, "the guest agent answers again: not reset")
            return
        progress(2, 3, "recording the reset")
        reset = Reset(at, self._host, why, picture)
        try:
            subject.resets, subject.resets_known = self._resets.load(uuid), True
            before = resets_in_window(counted_ms(subject.resets), int(at * 1000), 1000 * settings.window_s)
            if before >= settings.max_resets:
                progress(2, 3, "reset as often as is allowed already: left alone")
                return
            self._resets.add(uuid, reset)
        except FtkvmError as error:
            raise FtkvmError("FTKVM-143", vm=subject.name, detail=str(error)) from error
        subject.resets = [*subject.resets, reset]
        progress(3, 3, "reset")
        outcome = self._press(subject)
        subject.resets[-1] = replace(reset, outcome=outcome)
        seen = f"picture: {picture}" if picture else f"no picture: {no_picture}"
        text = f"{subject.name}: {why}: reset {before + 1} of {settings.max_resets} in {settings.window_s} s; {seen}"
        self._tell("vm-reset", subject, text, number=before + 1, screenshot=picture)
        try:
            self._resets.settle(uuid, reset, outcome)
        except FtkvmError as error:  # stays "begun", and counts
            log.warning("%s: what became of its reset is not recorded: %s", subject.name, error)

    def _press(self, subject: Subject) -> str:
        try:
            self._guests.reset(subject.uuid)
        except WorkTimeout as error:  # it may have happened: it counts
            raise FtkvmError("FTKVM-141", vm=subject.name, detail=str(error)) from error
        except FtkvmError as error:
            if error.code != "FTKVM-215":  # refused, so it did not happen
                failed = replace(subject.resets[-1], outcome=FAILED)
                subject.resets[-1] = failed
                self._resets.settle(subject.uuid, failed, FAILED)
            raise FtkvmError("FTKVM-141", vm=subject.name, detail=str(error)) from error
        with self._lock:
            self._reset_seen.add(subject.uuid)
        return DONE

    def _picture(self, subject: Subject, at: float) -> tuple[str | None, str]:
        """Its path, or why there is none; never a reason not to reset."""
        try:
            return self._resets.keep_screenshot(subject.uuid, self._guests.screenshot(subject.uuid), at), ""
        except FtkvmError as error:
            log.warning("%s: no picture of the console: %s", subject.name, error)
            return None, str(error.params.get("detail", error))

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            began, wait_s = time.monotonic(), _IDLE_S
            try:
                wait_s = self.turn()
            except FtkvmError as error:
                log.warning("VM monitoring: %s", error)
            except Exception:
                log.exception("VM monitoring: a turn failed")
            time.sleep(max(_SHORTEST_PAUSE_S, began + wait_s - time.monotonic()))

    def _write_lives(self) -> None:
        """Which guests have answered, for the agent's next process: a guest must not be forgotten by a restart."""
        known = {uuid: life for uuid, life in self._answered.items() if uuid in self._subjects}
        self._answered = known
        if known == self._written:
            return
        self._written = dict(known)
        temporary = self._lives.with_suffix(".tmp")
        temporary.write_text(json.dumps(known))
        temporary.replace(self._lives)


def _read_lives(path: Path) -> dict[str, str]:
    try:
        return {str(uuid): str(life) for uuid, life in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _period_s(monitoring: Monitoring) -> float:
    return min(max(monitoring.failure_interval_s / 6, _SHORTEST_PERIOD_S), _LONGEST_PERIOD_S)


def _ping_s(monitoring: Monitoring) -> int:
    return min(max(monitoring.failure_interval_s // 6, 1), _LONGEST_PING_S)
