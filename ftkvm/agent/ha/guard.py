"""The watchdog of this host, and until when it may be put off. Standard library only: see ``ftkvm.agent.__main__``.

safety: other hosts take this one's VMs over ``lease_ms`` after its counter stopped, trusting that by then the watchdog
has ended it. So it is put off only until ``began + stop_after_ms``, where *began* is when the last good heartbeat write
began; that moment lies in ``/run`` as well, so a new agent (also one that crashes again and again) can put it off no
longer than the old one could.

safety: a restart of the agent must not end the host. Ended by a signal, the agent first says on the datastore that
nothing guards this host (``watchdog_ms`` 0: from then on nobody takes it over by the clock), and only then disarms.
Killed or crashed, it leaves the watchdog armed; systemd starts the next one after 100 ms, and that one puts it off as
its very first act (:class:`Bridge`, before the long imports), within the time above. A Python that starts takes 0.1 s
of the watchdog's 5 s; the agent's first heartbeat, 2 to 4 s after it, has until ``stop_after_ms`` (8 s) after the last.
"""

import contextlib
import json
import logging
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkvm.adapters.watchdog import Watchdog, find_watchdog

log = logging.getLogger(__name__)
_BRIDGE_STEP_S = 0.5


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
    """Puts an armed watchdog off from a new process's first moment until :meth:`hand_over`; does nothing otherwise."""

    def __init__(self, watchdog: Watchdog, path: Path) -> None:
        self.watchdog = watchdog
        self._state = read_state(path)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog-bridge", daemon=True)

    def start(self) -> None:
        if self._state.armed:
            self.watchdog.ask(self._state.timeout_ms)
            self._step()
            self._thread.start()

    def hand_over(self) -> None:
        """The guard puts it off from now on; returns when the bridge does nothing any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _step(self) -> bool:
        return now_ms() < self._state.until_ms and self.watchdog.pet()

    def _run(self) -> None:
        while not self._over.wait(_BRIDGE_STEP_S) and self._step():
            pass


def bridge(config: Path, run: Path) -> Bridge:
    """The bridge by agent.toml's ``[watchdog]``; a file that cannot be read has none."""
    section: dict[str, object] = {}
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError):
        section = dict(tomllib.loads(config.read_text()).get("watchdog", {}))
    device = str(section.get("device", ""))
    return Bridge(find_watchdog(device), run / "watchdog.json")
