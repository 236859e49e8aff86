"""The hold proxy's loop: sockets and the monitor on one selector; ``cover`` decides, ``nic`` carries."""

import contextlib
import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ftkvm.hold.config import HoldConfig, NicConfig
from ftkvm.hold.cover import Cover
from ftkvm.hold.nic import ASK_AFTER_US, STUCK_US, Nic, Outlet, mono_us
from ftkvm.hold.qmp import EventMonitor, MonitorGone
from ftkvm.hold.secure import secured
from ftkvm.hold.silence import Silence

log = logging.getLogger(__name__)

RATE_PERIOD_S = 1.0
ASK_EVERY_S = 0.1
"""At most ten checkpoints a second are asked for, however many connections are opened."""
DIAL_TIMEOUT_S = 3.0
DRAIN_READS = 64


class Proxy:
    """One VM's proxy. ``run`` returns when QEMU has closed its ends."""

    def __init__(self, config: HoldConfig) -> None:
        """Listen on all sockets, connect to the monitor and to the secondary. Raises OSError; its file may then go."""
        self.config = config
        self._key = Path(config.key_file).read_text() if config.key_file else ""
        self.cover = Cover()
        self.silence = Silence()
        self.selector = selectors.DefaultSelector()
        self.nics: dict[str, Nic] = {}
        self._tx_sockets: dict[socket.socket, tuple[Nic, Callable[[int], None]]] = {}
        self._secondary_sockets: dict[socket.socket, tuple[Nic, Callable[[int], None]]] = {}
        self._connected: set[socket.socket] = set()
        self._ever_connected = self._waiting = False
        self._asked_at_s = 0.0
        self._paths: list[str] = []
        self._rate_at_s, self._rate_bytes, self.tx_bytes_per_s = time.monotonic(), 0, 0
        for nic in config.nics:
            self._open_nic(nic)
        self._listen(config.status, self._status_wanted)
        self.cover.clocks(time.time_ns() // 1000, mono_us())
        self.monitor: EventMonitor | None = EventMonitor(config.monitor, self._event, self.cover.foreign)
        self.selector.register(self.monitor.socket, selectors.EVENT_READ, self._monitor_readable)

    # ---- sockets

    def _open_nic(self, config: NicConfig) -> None:
        nic = self.nics[config.id] = Nic(config.id, self.config.mode)

        def tx(sock: socket.socket) -> None:
            self._tx_sockets[sock] = (nic, lambda _mask: self._read(sock, lambda: nic.from_guest(sock)))

        def compare_out(sock: socket.socket) -> None:
            marked = lambda number: self._marked(nic, number)  # noqa: E731
            read = lambda _mask: self._read(sock, lambda: nic.from_compare(sock, marked))  # noqa: E731
            self.selector.register(sock, selectors.EVENT_READ, read)

        def outlet(name: str) -> Callable[[socket.socket], None]:
            def connected(sock: socket.socket) -> None:
                end: Outlet = getattr(nic, name)
                end.connected(sock)
                self.selector.register(sock, selectors.EVENT_READ, lambda mask: self._outlet_ready(end, sock, mask))

            return connected

        ways: dict[str, Callable[[socket.socket], None]] = {"tx": tx, "compare_out": compare_out}
        ways |= {name: outlet(name) for name in ("compare_in", "rx", "secondary_in")}
        for name, connected in ways.items():
            self._listen(getattr(config, name), self._once(connected))
        self._dial(config, nic)

    def _dial(self, config: NicConfig, nic: Nic) -> None:
        """Connect to where the secondary's QEMU sends its guest's frames. Raises OSError."""
        sock = socket.create_connection(config.secondary_address, DIAL_TIMEOUT_S)
        if self._key:
            sock = secured(sock, self._key)
        sock.setblocking(False)

        def readable(_mask: int) -> None:
            if nic.from_secondary(sock) is False:
                self._secondary_gone(sock, nic)

        self._secondary_sockets[sock] = (nic, readable)

    def _secondary_gone(self, sock: socket.socket, nic: Nic) -> None:
        """colo-compare is told as it would be by a connection of its own: by the end of the stream."""
        log.info("%s: the secondary's frames ended", nic.name)
        self._secondary_sockets.pop(sock)
        with contextlib.suppress(KeyError):
            self.selector.unregister(sock)
        sock.close()
        if nic.secondary_in.socket is not None:
            with contextlib.suppress(OSError):
                nic.secondary_in.socket.shutdown(socket.SHUT_WR)

    def _listen(self, path: str, accepted: Callable[[socket.socket, socket.socket], None]) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(path)
        Path(path).chmod(0o666 if path != self.config.status else 0o600)  # QEMU may run as another user
        listener.listen(8)
        self._paths.append(path)

        def ready(_mask: int) -> None:
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                accepted(listener, sock)

        self.selector.register(listener, selectors.EVENT_READ, ready)

    def _once(self, connected: Callable[[socket.socket], None]) -> Callable[[socket.socket, socket.socket], None]:
        """QEMU connects each socket once: take the first connection and stop listening."""

        def accepted(listener: socket.socket, sock: socket.socket) -> None:
            self.selector.unregister(listener)
            listener.close()
            sock.setblocking(False)
            self._connected.add(sock)
            self._ever_connected = True
            connected(sock)

        return accepted

    def _read(self, sock: socket.socket, read: Callable[[], bool]) -> None:
        if not read():
            self._closed(sock)

    def _outlet_ready(self, end: Outlet, sock: socket.socket, mask: int) -> None:
        if mask & selectors.EVENT_READ:  # QEMU sends nothing here: this is the end
            with contextlib.suppress(BlockingIOError):
                try:
                    ended = not sock.recv(4096)
                except ConnectionError:
                    ended = True
                if ended:
                    end.close()
                    self._closed(sock)

    def _closed(self, sock: socket.socket) -> None:
        self._connected.discard(sock)
        self._tx_sockets.pop(sock, None)
        with contextlib.suppress(KeyError):
            self.selector.unregister(sock)

    # ---- events

    def _monitor_readable(self, _mask: int) -> None:
        assert self.monitor is not None
        try:
            self.monitor.readable()
        except MonitorGone as error:
            log.info("monitor: %s", error)
            self.selector.unregister(self.monitor.socket)
            self.monitor.socket.close()
            self.monitor = None
            self._exited()

    def _event(self, name: str, stamp_us: int) -> None:
        wall_us, now_us = time.time_ns() // 1000, mono_us()
        if name == "STOP":
            number = self.cover.stop(stamp_us, wall_us, now_us)
            if self.monitor is not None:
                self.monitor.ask_status(number)
            for nic in self.nics.values():
                nic.mark(number)
        elif name == "RESUME":
            covered_us = self.cover.resume(stamp_us, wall_us, now_us)
            if covered_us is not None:
                for nic in self.nics.values():
                    self._take_in_secondary(nic)
                    nic.loaded(self.cover.stops, covered_us)
                self.silence.checkpoint(self._total("compared"), self._total("secondary"), now_us)
        elif name == "COLO_EXIT":
            log.info("COLO_EXIT")
            self._exited()

    def _marked(self, nic: Nic, number: int) -> None:
        """The secondary has received the state of that STOP."""
        stopped_us = self.cover.stopped_us(number)
        if stopped_us is not None:
            self._take_in_secondary(nic)
            nic.received(number, stopped_us)

    def _take_in_secondary(self, nic: Nic) -> None:
        """All that has come from the secondary until now: what it sent in a state that it is about to lose."""
        for sock in [sock for sock, (its, _read) in self._secondary_sockets.items() if its is nic]:
            for _ in range(DRAIN_READS):
                took = nic.from_secondary(sock)
                if took is False:
                    self._secondary_gone(sock, nic)
                if not took:
                    break

    def _exited(self) -> None:
        """No checkpoint will cover what waits: the copy that goes on must not be contradicted by it."""
        self.cover.exit()
        for nic in self.nics.values():
            nic.drop_held()

    # ---- status

    def _status_wanted(self, _listener: socket.socket, sock: socket.socket) -> None:
        with contextlib.closing(sock), contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(json.dumps(self.status()).encode() + b"\n")

    def _total(self, counter: str) -> int:
        return sum(getattr(nic.counters, counter) for nic in self.nics.values())

    def status(self) -> dict[str, object]:
        """Counters and what the choice of the checkpoint interval needs (bytes, milliseconds)."""
        now_us = mono_us()
        return {
            "uuid": self.config.uuid,
            "ready": self.monitor is not None and self.monitor.ready,
            "connected": len(self._connected),
            "exited": self.cover.exited,
            "checkpoints": self.cover.checkpoints,
            "last_pause_ms": self.cover.last_pause_us / 1000,
            "pause_total_ms": self.cover.pause_total_us / 1000,
            "tx_bytes_per_s": self.tx_bytes_per_s,
            "secondary_silent_ms": self.silence.lasts_us(self._total("secondary"), now_us) / 1000,
            "silent_intervals": self.silence.intervals,
            "silent_frames": self.silence.frames,
            "nics": {
                name: asdict(nic.counters)
                | {
                    "held_frames_now": nic.queue.frames,
                    "held_bytes_now": nic.queue.bytes,
                    "oldest_held_ms": nic.queue.oldest_age_us(now_us) / 1000,
                    "backlog_bytes": sum(end.backlog_bytes for end in nic.outlets),
                    "ahead_frames_now": nic.acks.frames,
                    "oldest_ahead_ms": nic.acks.oldest_age_us(now_us) / 1000,
                }
                for name, nic in self.nics.items()
            },
        }

    def _rates(self) -> None:
        now_s = time.monotonic()
        if now_s - self._rate_at_s >= RATE_PERIOD_S:
            total = self._total("bytes_tx")
            self.tx_bytes_per_s = round((total - self._rate_bytes) / (now_s - self._rate_at_s))
            self._rate_at_s, self._rate_bytes = now_s, total

    # ---- the loop

    def run(self) -> None:
        """Carry frames until QEMU has closed everything. Raises FramingError if a stream is out of step."""
        notified = False
        while self._connected or not self._ever_connected:
            for key, mask in self.selector.select(self._patience_s()):
                if still_registered(self.selector, key):
                    key.data(mask)
            self._steer()
            self._look_at_waiting()
            self._ask_for_checkpoint()
            self._rates()
            if not notified and self.monitor is not None and self.monitor.ready:
                notified = True
                notify_ready()
            if self.monitor is None and not self._ever_connected:
                return

    def _patience_s(self) -> float:
        """How long to wait for the next thing to happen."""
        if self._waiting:
            return STUCK_US / 1e6
        if any(nic.acks.frames for nic in self.nics.values()):
            return ASK_AFTER_US / 1e6
        return ASK_EVERY_S if any(nic.wants_checkpoint for nic in self.nics.values()) else RATE_PERIOD_S

    def _steer(self) -> None:
        """Send on what is kept, and listen on each socket for just what is useful now."""
        for nic in self.nics.values():
            for outlet in nic.outlets:
                if outlet.socket is not None and outlet.socket in self._connected:
                    if outlet.backlog_bytes:
                        outlet.flush()
                    want = selectors.EVENT_READ | (selectors.EVENT_WRITE if outlet.backlog_bytes else 0)
                    key = self.selector.get_key(outlet.socket)
                    if key.events != want:
                        self.selector.modify(outlet.socket, want, key.data)
        for sock, (nic, read) in self._tx_sockets.items():
            listening = sock in self.selector.get_map()
            if nic.wants_tx() and not listening:
                self.selector.register(sock, selectors.EVENT_READ, read)
            elif listening and not nic.wants_tx():
                self.selector.unregister(sock)
        for sock, (nic, read) in self._secondary_sockets.items():
            listening = sock in self.selector.get_map()
            if nic.wants_secondary() and not listening:
                self.selector.register(sock, selectors.EVENT_READ, read)
            elif listening and not nic.wants_secondary():
                self.selector.unregister(sock)
        self._waiting = any(not nic.wants_tx() for nic, _ in self._tx_sockets.values())

    def _look_at_waiting(self) -> None:
        now_us = mono_us()
        for nic in self.nics.values():
            nic.look_at_waiting(now_us)

    def _ask_for_checkpoint(self) -> None:
        """A connection is being opened, or the secondary is behind: do not let the peer wait for the interval."""
        now_s = time.monotonic()
        wanted = any(nic.wants_checkpoint for nic in self.nics.values())
        if wanted and self.monitor is not None and now_s - self._asked_at_s >= ASK_EVERY_S:
            self._asked_at_s = now_s
            for nic in self.nics.values():
                nic.wants_checkpoint = False
            self.monitor.ask_checkpoint()

    def close(self) -> None:
        """Remove the sockets' names."""
        for path in self._paths:
            Path(path).unlink(missing_ok=True)


def notify_ready() -> None:
    """Tell systemd (``Type=notify``), if it asked."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        address = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", address)


def still_registered(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
    """Whether what an event is about was neither closed nor replaced by an earlier event of the same turn.

    Asked by descriptor: a closed socket has none any more, and asking a selector for it raises.
    """
    now = selector.get_map().get(key.fd)
    return now is not None and now.fileobj is key.fileobj
