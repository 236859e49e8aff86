"""Beats between agents: one authenticated datagram a second to every host over every HA network, and who was heard.

A beat counts only if it echoes the number of a beat that *we* sent on that network less than ``FRESH_MS`` ago: it was
made after that, whatever queue it waited in, nobody can play back an old one, and the way there works both ways. One
played back at once does not count either: its number has to grow. The
frame is the keepers' (``ftkvm.keeper.beat``) with a magic of its own.
"""

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ftkvm.agent.ha.guard import now_ms
from ftkvm.core.ha.model import Beats, HostCapacity
from ftkvm.keeper import beat as codec
from ftkvm.keeper.keys import BeatKeys

log = logging.getLogger(__name__)
MAGIC = b"FHB1"
FRESH_MS = 3000
INTERVAL_S = 1.0
_KEPT_SEQS = 16
_LONG_UNHEARD_MS = 3000
_IP_FREEBIND = 15
_MAX_DATAGRAM = 65_535
_DRAIN_LIMIT = 4096


@dataclass(frozen=True)
class BeatBody:
    """What a host says of itself. ``solo_vms`` None: it cannot tell."""

    boot_id: str
    solo_vms: int | None
    capacity: HostCapacity | None


@dataclass(frozen=True)
class BeatPlan:
    """Who is sent beats: host → HA network → address; our own addresses are under our own name."""

    hosts: Mapping[str, Mapping[str, str]]


@dataclass
class _Line:
    """One way to one host."""

    their_seq: int = 0
    heard_ms: int | None = None


@dataclass
class _Peer:
    lines: dict[str, _Line] = field(default_factory=dict)
    body: BeatBody | None = None
    ping_answered: int | None = None


def encode_body(host: str, to: str, network: str, body: BeatBody) -> bytes:
    capacity = None
    if body.capacity is not None:
        own = body.capacity
        capacity = [own.cpu_mhz, own.memory_mb, sorted(own.bridges), own.compatible, own.why_not]
    document = {"host": host, "to": to, "net": network, "boot_id": body.boot_id, "solo": body.solo_vms,
                "capacity": capacity}  # fmt: skip
    return json.dumps(document, separators=(",", ":")).encode()


def decode_body(raw: bytes) -> tuple[str, str, str, BeatBody]:
    """(host, to, network, body).

    :raises ValueError: not the body of a beat
    """
    try:
        document = json.loads(raw)
        solo, said = document["solo"], document["capacity"]
        capacity = None
        if said is not None:
            cpu_mhz, memory_mb, bridges, compatible, why_not = said
            names = frozenset(str(name) for name in bridges)
            capacity = HostCapacity(int(cpu_mhz), int(memory_mb), names, bool(compatible), str(why_not))
        body = BeatBody(str(document["boot_id"]), None if solo is None else int(solo), capacity)
        return str(document["host"]), str(document["to"]), str(document["net"]), body
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a beat: {error!r}") from None


class BeatTable:
    """Which beats were sent, and what was heard; pure, times in ms of this host's monotonic clock."""

    def __init__(self, host: str, keys: BeatKeys, first_seq: int) -> None:
        self._host = host
        self._keys = keys
        self._seq = first_seq
        self._sent: dict[int, int] = {}
        self._peers: dict[str, _Peer] = {}
        self._lock = threading.Lock()

    def use_keys(self, keys: BeatKeys) -> None:
        """Sign and accept beats by these from now on."""
        with self._lock:
            self._keys = keys

    def datagrams(self, now: int, plan: BeatPlan, body: BeatBody) -> list[tuple[str, str, bytes]]:
        """One turn's beats as (network, address, datagram)."""
        with self._lock:
            self._seq += 1
            self._sent = {seq: at for seq, at in self._sent.items() if seq > self._seq - _KEPT_SEQS}
            self._sent[self._seq] = now
            found = []
            for host, networks in plan.hosts.items():
                if host == self._host:
                    continue
                for network, address in networks.items():
                    peer = self._peers.get(host)
                    line = peer.lines.get(network) if peer is not None else None
                    raw = encode_body(self._host, host, network, body)
                    echo = line.their_seq if line is not None else 0
                    found.append((network, address, self._keys.encode(self._seq, echo, raw, MAGIC)))
            return found

    def heard(self, now: int, network: str, datagram: bytes, plan: BeatPlan) -> str | None:
        """Take a datagram in; the host if it counts and was long unheard, else None."""
        beat = self._keys.decode(datagram, MAGIC)
        if beat is None:
            return None
        try:
            host, to, its_network, body = decode_body(beat.raw_body)
        except ValueError:
            return None
        if to != self._host or its_network != network or host == self._host or host not in plan.hosts:
            return None
        with self._lock:
            peer = self._peers.setdefault(host, _Peer())
            line = peer.lines.setdefault(network, _Line())
            sent = self._sent.get(beat.echo)
            fresh = sent is not None and now - sent < FRESH_MS
            # A number that does not grow is a duplicate or a replay. Only after FRESH_MS of silence may it be lower (a
            # host whose clock was set back, then restarted): whatever was recorded before is no longer fresh by then.
            quiet = line.heard_ms is None or now - line.heard_ms >= FRESH_MS
            if beat.seq <= line.their_seq and not (fresh and quiet):
                return None
            line.their_seq = beat.seq
            if not fresh:
                return None
            last = max((each.heard_ms for each in peer.lines.values() if each.heard_ms is not None), default=None)
            line.heard_ms, peer.body = now, body
            return host if last is None or now - last > _LONG_UNHEARD_MS else None

    def answered(self, now: int, host: str) -> None:
        """A ping of ours to the host was answered."""
        with self._lock:
            self._peers.setdefault(host, _Peer()).ping_answered = now

    def seen(self) -> dict[str, Beats]:
        """What the HA machine is told of every host that was ever heard."""
        with self._lock:
            return {host: _beats(peer) for host, peer in self._peers.items() if _ever(peer)}


def _ever(peer: _Peer) -> bool:
    return peer.ping_answered is not None or any(line.heard_ms is not None for line in peer.lines.values())


def _beats(peer: _Peer) -> Beats:
    networks = {name: line.heard_ms for name, line in peer.lines.items() if line.heard_ms is not None}
    body = peer.body
    if body is None:
        return Beats(networks, peer.ping_answered)
    return Beats(networks, peer.ping_answered, body.solo_vms, body.capacity)


class BeatService:
    """The sockets and the thread. ``body`` gives what to say, or None while nothing must be said (no HA turns)."""

    def __init__(
        self,
        host: str,
        keys: BeatKeys,
        port: int,
        plan: Callable[[], BeatPlan],
        body: Callable[[], BeatBody | None],
        on_return: Callable[[str], None],
    ) -> None:
        first = codec.first_seq(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(3)) & 0xFFFFF)
        self.table = BeatTable(host, keys, first)
        self._host = host
        self._port = port
        self._plan = plan
        self._body = body
        self._on_return = on_return
        self._sockets: dict[str, tuple[str, socket.socket]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ha-beats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        raise_priority()
        next_at = time.monotonic()
        while not self._stop.is_set():
            try:
                plan = self._plan()
                self._open(plan.hosts.get(self._host, {}))
                if time.monotonic() >= next_at:
                    next_at = max(next_at + INTERVAL_S, time.monotonic())
                    self._send(plan)
                self._receive(plan, next_at - time.monotonic())
            except Exception:
                log.exception("beats")
                self._stop.wait(INTERVAL_S)

    def _open(self, own: Mapping[str, str]) -> None:
        """A socket per HA network; changed addresses are taken over."""
        for network, (address, sock) in list(self._sockets.items()):
            if own.get(network) != address:
                sock.close()
                del self._sockets[network]
        for network, address in own.items():
            if network in self._sockets:
                continue
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # the network may come later than the agent
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xC0)
                sock.bind((address, self._port))
            except OSError:
                sock.close()
                raise
            self._sockets[network] = (address, sock)

    def _send(self, plan: BeatPlan) -> None:
        body = self._body()
        if body is None:
            return
        for network, address, datagram in self.table.datagrams(now_ms(), plan, body):
            entry = self._sockets.get(network)
            if entry is None:
                continue
            try:
                entry[1].sendto(datagram, (address, self._port))
            except OSError:  # a network that is down is what silence is for
                continue

    def _receive(self, plan: BeatPlan, wait_s: float) -> None:
        names = {sock: network for network, (_address, sock) in self._sockets.items()}
        if not names:
            self._stop.wait(max(0.0, wait_s))
            return
        for sock in select.select(list(names), [], [], max(0.0, wait_s))[0]:
            for _ in range(_DRAIN_LIMIT):
                try:
                    datagram = sock.recv(_MAX_DATAGRAM)
                except OSError:
                    break
                back = self.table.heard(now_ms(), names[sock], datagram, plan)
                if back is not None:
                    self._on_return(back)


def raise_priority() -> None:
    """This thread before the agent's others, where the system lets us."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
    except OSError as error:
        log.info("no higher priority for %s: %s", threading.current_thread().name, error)
