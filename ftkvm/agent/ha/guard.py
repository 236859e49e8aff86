"""The watchdog of this host, and until when it may be put off. Standard library only: see ``ftkvm.agent.__main__``.

safety: other hosts take this one's VMs over ``lease_ms`` after its counter stopped, trusting that by then the watchdog
has ended it. So it is put off only until ``began + stop_after_ms``, where *began* is when the last good heartbeat write
began; that moment lies in ``/run`` as well, so a new agent (also one that crashes again and again) can put it off no
longer than the old one could.

safety: a restart of the agent must not end the host. Ended by a signal, the agent first says on the datastore that
nothing guards this host (``watchdog_ms`` 0: from then on nobody takes it over by the clock), and only then disarms.
Killed or crashed, it leaves the watchdog armed; systemd starts the next one after 100 ms, and that one puts it off and
beats as its very first act (:class:`Bridge`), before the imports, which take seconds on a busy host. A Python that
starts takes 0.1 to 0.5 s of the watchdog's 5 s.
"""

import contextlib
import json
import logging
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.watchdog import Watchdog, find_watchdog

log = logging.getLogger(__name__)
_BRIDGE_STEP_S = 0.5
LONGEST_MS = 60_000
"""So long an agent may take to start; a host whose agent does not start is not kept going for ever."""


def now_ms() -> int:
    """This host's monotonic clock, the same in all processes of one boot."""
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True)
class GuardState:
    """``/run/ftkvm/watchdog.json``: an armed watchdog, and until when it may be put off."""

    armed: bool
    until_ms: int
    timeout_ms: int


def read_state(path: Path) -> GuardState:
    try:
        document = json.loads(path.read_text())
        return GuardState(bool(document["armed"]), int(document["until_ms"]), int(document["timeout_ms"]))
    except (OSError, ValueError, KeyError, TypeError):
        return GuardState(False, 0, 0)


def _write_state(path: Path, state: GuardState) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(path)


class Guard:
    """Arms, puts off and disarms; remembers until when. One thread calls it, others may read."""

    def __init__(self, watchdog: Watchdog, path: Path, take_over: Callable[[], None]) -> None:
        """``take_over``: called before the first change of ours; from then on nobody else may touch the watchdog."""
        self._watchdog = watchdog
        self._path = path
        self._take_over = take_over
        self._lock = threading.Lock()
        before = read_state(path)
        self.armed = before.armed
        self.until_ms = before.until_ms

    @property
    def watchdog_ms(self) -> int:
        """The armed watchdog's time; 0 while none is armed."""
        return self._watchdog.timeout_ms if self.armed else 0

    def extend(self, until_ms: int, timeout_ms: int) -> None:
        """A heartbeat was written: this host may go on until then. Arms the watchdog if it is not."""
        self._take_over()
        with self._lock:
            self._watchdog.ask(timeout_ms)
            self.until_ms = max(self.until_ms, until_ms)
            if not self.armed and now_ms() < self.until_ms and self._watchdog.pet():
                self.armed = True
                log.info("the watchdog is armed: %d ms", self._watchdog.timeout_ms)
            self._keep()

    def pet(self) -> bool:
        """Put the watchdog off; refused, whoever asks, after the time of the last heartbeat is over."""
        with self._lock:
            if not self.armed or now_ms() >= self.until_ms:
                return False
            return self._watchdog.pet()

    def disarm(self) -> None:
        """Only when no QEMU is left here, or when the datastore says that nothing guards this host."""
        self._take_over()
        with self._lock:
            if self.armed and self._watchdog.disarm():
                self.armed = False
                self._keep()
                log.info("the watchdog is disarmed")

    def _keep(self) -> None:
        _write_state(self._path, GuardState(self.armed, self.until_ms, self._watchdog.timeout_ms))


class Bridge:
    """Keeps a host with an armed watchdog going from a new process's first moment until the HA machine runs.

    It puts the watchdog off and, as the machine will, writes this host's heartbeat (``beat``: when the write began and
    for how long that is good, or None), for at most ``LONGEST_MS``; does nothing if no watchdog is armed.

    safety: the rule is the machine's. What it does not do is to end VMs when writes fail: then it puts the watchdog off
    no longer either, and that ends them.
    """

    def __init__(self, watchdog: Watchdog, path: Path, beat: Callable[[], tuple[int, int] | None]) -> None:
        self.watchdog = watchdog
        self._path = path
        self._state = read_state(path)
        self._beat = beat
        self._until_ms = self._state.until_ms
        self._end_ms = now_ms() + LONGEST_MS
        self._over = threading.Event()
        self._petting = threading.Thread(target=self._pet, name="watchdog-bridge", daemon=True)
        self._beating = threading.Thread(target=self._write, name="heartbeat-bridge", daemon=True)

    def start(self) -> None:
        if self._state.armed:
            self.watchdog.ask(self._state.timeout_ms)
            self._step()
            self._petting.start()
            self._beating.start()

    def hand_over(self) -> None:
        """The guard puts it off from now on; returns when the bridge does not any more."""
        self._over.set()
        if self._petting.is_alive():
            self._petting.join()

    @property
    def writing(self) -> bool:
        """Whether a heartbeat of the bridge may still come through."""
        return self._beating.is_alive()

    def _step(self) -> bool:
        return now_ms() < self._until_ms and self.watchdog.pet()

    def _pet(self) -> None:
        while not self._over.wait(_BRIDGE_STEP_S):
            self._step()
            if now_ms() > self._end_ms:
                return

    def _write(self) -> None:
        while not self._over.wait(_BRIDGE_STEP_S) and now_ms() < self._end_ms:
            try:
                done = self._beat()
            except Exception as error:
                log.warning("heartbeat: %s", error)
                continue
            if done is not None and not self._over.is_set():
                began_ms, good_ms = done
                self._until_ms = max(self._until_ms, began_ms + good_ms)
                _write_state(self._path, replace(self._state, until_ms=self._until_ms))


def bridge(config: Path, run: Path) -> Bridge:
    """The bridge by agent.toml; a file that cannot be read has none."""
    document: dict[str, Any] = {}
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError):
        document = tomllib.loads(config.read_text())
    device = str(document.get("watchdog", {}).get("device", ""))
    host, datastore = document.get("host", {}).get("name"), document.get("datastore", {}).get("path")

    def beat() -> tuple[int, int] | None:
        return _beat_on(DirectoryDatastore(Path(str(datastore)), str(host)), str(host))

    return Bridge(find_watchdog(device), run / "watchdog.json", beat)


def _beat_on(datastore: DirectoryDatastore, host: str) -> tuple[int, int] | None:
    """Write this host's heartbeat of this boot once more, one further; None if there is none."""
    path = f"hosts/{host}/ha.json"
    began_ms = now_ms()
    document = datastore.read_json(path)
    if document is None or document.get("boot_id") != Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        return None
    datastore.replace(path, {**document, "counter": int(document["counter"]) + 1, "at": time.time()})
    return began_ms, int(document["stop_after_ms"])
