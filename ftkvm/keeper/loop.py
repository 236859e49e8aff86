"""The keeper's loop: one thread, one selector, one turn per event or tick. It moves bytes; ``rules`` concludes."""

import logging
import os
import selectors
import subprocess
import time

from ftkvm.keeper import beat as codec
from ftkvm.keeper import probe, rules
from ftkvm.keeper.clients import Client, ClientServer, Json
from ftkvm.keeper.config import KeeperConfig
from ftkvm.keeper.gate import RENEW_MS, GateError, Gates
from ftkvm.keeper.keys import BeatKeys
from ftkvm.keeper.model import DatastoreHealth, Evidence, GateState, PairSpec, PeerSpec, Verdict
from ftkvm.keeper.net import Network
from ftkvm.keeper.store import PairStore

log = logging.getLogger(__name__)

PUSH_MS = 500
PROBE_RESTART_MS = 1000
EARLY_MS = rules.TICK_MS // 2
"""A beat that comes so shortly before our own tick is answered at once: two keepers fall into step, wake up half as
often, and what one says about the other is as young as can be."""
PAIRS_LIMIT = 256
"""So that what two hosts share always fits into one beat."""


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Keeper:
    """Everything the process holds. Times: ``now`` monotonic ms, ``attended`` see ``rules``."""

    def __init__(self, config: KeeperConfig, boot_id: str) -> None:
        self.config, self.boot_id, self.keys = config, boot_id, config.keys
        self.now = self.started = self.attended = self.last_turn = self.next_tick = monotonic_ms()
        self.seq = codec.first_seq(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(3), "big") >> 4)
        self.store = PairStore(config.run / "pairs")
        self.pairs: dict[str, PairSpec] = self.store.load()
        self.peers: dict[str, rules.PeerState] = {}
        self.peer_specs: dict[str, PeerSpec] = {}
        self.bodies: dict[str, bytes] = {}
        self.gate_state: dict[str, rules.Gate] = {}
        self.gate_error: str | None = None
        self.heard_beat = False
        self.renewed = 0
        self.pushed: dict[str, tuple[object, int]] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.probe_state = rules.ProbeState(heard_at=self.attended)
        self.probe: subprocess.Popen[bytes] | None = None
        self.probe_line, self.probe_ended = b"", 0
        self.datastore = DatastoreHealth("unknown", None)

        self.selector = selectors.DefaultSelector()
        self.network = Network(config.ft_address, config.port)
        self.selector.register(self.network.udp, selectors.EVENT_READ, self._beats_arrived)
        self.gates = Gates()
        self.gates_managed = False
        self._manage_gates()
        self._index_peers()
        self.server = ClientServer(config.run / "keeper.sock", self.selector, self._request)

    # ---- the turn

    def run(self) -> None:
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for something, take in all that arrived, then conclude and act."""
        ready = self.selector.select(self._wait_s())
        self.now = monotonic_ms()
        self.attended = rules.attend(self.attended, self.now - self.last_turn)
        self.last_turn = self.now
        for key, mask in ready:  # all of it before any verdict: after a stall the sockets are full of news
            key.data(mask)
        if self.peers:
            self._pings_arrived()  # not worth a wake-up of their own
        if self.now >= self.next_tick - (EARLY_MS if self.heard_beat else 0):
            self._tick()
        self.heard_beat = False
        self._conclude()

    def _wait_s(self) -> float:
        wait_ms = self.next_tick - monotonic_ms()
        for peer in self.peers.values():
            deadline = rules.next_deadline(peer, self.attended, self.config.silent_ms)
            if deadline is not None:
                wait_ms = min(wait_ms, deadline - self.attended)
        return max(0, wait_ms) / 1000

    def _tick(self) -> None:
        self.next_tick = self.now + rules.TICK_MS
        for address in self.peers:
            self._send_beat(address)
            self.network.send_ping(address, self.now)
        if self.probe is None and self.now - self.probe_ended >= PROBE_RESTART_MS:
            self._start_probe()

    def _conclude(self) -> None:
        datastore = rules.datastore_of(self.probe_state, self.now, self.attended)
        changed = datastore.state != self.datastore.state
        self.datastore = datastore
        if changed:
            log.info("datastore: %s %s", datastore.state, datastore.error or "")
            self._speak_at_once()
        self._drive_gates()
        self._push()

    # ---- peers

    def _index_peers(self) -> None:
        """One PeerState per peer address that a pair names; what is known of a peer outlives a change of its pairs."""
        self.peer_specs = {pair.peer.ft_address: pair.peer for pair in self.pairs.values() if pair.peer is not None}
        self.peers = {
            address: known
            if (known := self.peers.get(address)) is not None and known.host == spec.host
            else rules.PeerState(spec.host, known_at=self.attended)
            for address, spec in self.peer_specs.items()
        }
        self.bodies = {}

    def _speak_at_once(self) -> None:
        """Something that beats carry has changed: do not wait for the next tick."""
        self.bodies = {}
        for address in self.peers:
            self._send_beat(address)

    def _send_beat(self, address: str) -> None:
        spec, peer = self.peer_specs[address], self.peers[address]
        body = self.bodies.get(address)
        if body is None:
            pairs = [pair for pair in self.pairs.values() if pair.peer is not None and pair.peer.ft_address == address]
            body = codec.encode_body(self.config.host, spec.host, self.boot_id, self.datastore.state, pairs)
            self.bodies[address] = body
        self.seq += 1
        self.peers[address] = rules.sent_beat(peer, self.seq, self.now)
        self.network.send_beat(address, spec.port, self.keys.encode(self.seq, peer.last_seq, body))

    def _beats_arrived(self, _mask: int) -> None:
        for address, datagram in self.network.beats():
            peer = self.peers.get(address)
            beat = self.keys.decode(datagram) if peer is not None else None
            if peer is None or beat is None:
                continue
            body = peer.body
            if body is None or beat.raw_body != peer.raw_body:
                try:
                    body = codec.decode_body(beat.raw_body)
                except ValueError as error:
                    log.warning("beat of %s: %s", address, error)
                    continue
                if body.host != peer.host or body.to != self.config.host:
                    continue
            self.peers[address] = rules.heard_beat(peer, beat, body, self.now, self.attended, self.config.silent_ms)
            self.heard_beat = True

    def _pings_arrived(self) -> None:
        for address, sent_ms in self.network.pings():
            peer = self.peers.get(address)
            if peer is not None:
                self.peers[address] = rules.heard_ping(peer, sent_ms, self.now, self.attended)

    def _peer_of(self, pair: PairSpec) -> rules.PeerState | None:
        return None if pair.peer is None else self.peers.get(pair.peer.ft_address)

    # ---- datastore

    def _start_probe(self) -> None:
        self.probe = probe.start(self.config.datastore, self.config.host, self.boot_id)
        assert self.probe.stdout is not None
        self.selector.register(self.probe.stdout, selectors.EVENT_READ, self._probe_reported)

    def _probe_reported(self, _mask: int) -> None:
        assert self.probe is not None and self.probe.stdout is not None
        try:
            data = os.read(self.probe.stdout.fileno(), 65_536)
        except BlockingIOError:
            return
        *reports, self.probe_line = (self.probe_line + data).split(b"\n")
        for report in reports[-1:]:
            error = None if report == b"ok" else report.decode(errors="replace")
            self.probe_state = rules.probe_result(self.probe_state, error, self.now, self.attended)
        if not data:
            self.selector.unregister(self.probe.stdout)
            self.probe.stdout.close()
            self.probe.poll()
            self.probe, self.probe_line, self.probe_ended = None, b"", self.now

    # ---- gates

    def _manage_gates(self) -> None:
        """Gate the taps of all pairs; if nftables refuses, every later turn tries again and ``gate_error`` says why."""
        try:
            self.gates.manage({tap for pair in self.pairs.values() for tap in pair.taps})
            self.gates_managed, self.gate_error = True, None
        except GateError as error:
            self.gates_managed = False
            self._gate_failed(error)

    def _gate_failed(self, error: GateError) -> None:
        if str(error) != self.gate_error:
            log.error("gates: %s", error)
        self.gate_error = str(error)

    def _drive_gates(self) -> None:
        """Close first, at once; then open what newly may, and renew all that is open four times a second."""
        if not self.gates_managed:
            self._manage_gates()
            if not self.gates_managed:
                return
        wanted = {
            uuid: rules.gate_of(pair, self._peer_of(pair), self.now, self.started, self.config.silent_ms)
            for uuid, pair in self.pairs.items()
        }
        closing = [uuid for uuid, gate in wanted.items() if gate == "closed" and self.gate_state.get(uuid) != "closed"]
        opening = any(gate == "open" and self.gate_state.get(uuid) != "open" for uuid, gate in wanted.items())
        try:
            if closed := {tap for uuid in closing for tap in self.pairs[uuid].taps}:
                self.gates.close(closed)
            if opening or self.now - self.renewed >= RENEW_MS:
                if opened := {tap for uuid, gate in wanted.items() if gate == "open" for tap in self.pairs[uuid].taps}:
                    self.gates.open(opened)
                self.renewed = self.now
        except GateError as error:
            self._gate_failed(error)
            return
        for uuid, gate in wanted.items():
            if gate != self.gate_state.get(uuid):
                log.info("gate of %s: %s", self.pairs[uuid].vm, gate)
        self.gate_state, self.gate_error = wanted, None

    def _gate(self, uuid: str) -> GateState:
        return "open" if self.gate_state.get(uuid) == "open" else "closed"

    # ---- clients

    def _evidence(self, pair: PairSpec) -> Evidence:
        peer = self._peer_of(pair)
        return rules.evidence_of(peer, pair.uuid, self.now, self.attended, self.config.silent_ms)

    def _event(self, uuid: str, evidence: Evidence) -> Json:
        return {"event": "evidence", "uuid": uuid, "peer": evidence.to_json(),
                "datastore": self.datastore.to_json(), "gate": self._gate(uuid)}  # fmt: skip

    def _push(self) -> None:
        for uuid, pair in self.pairs.items():
            peer = self._peer_of(pair)
            verdict = "unknown" if peer is None else rules.verdict_of(peer, self.attended, self.config.silent_ms)
            if verdict != self.verdicts.get(uuid):
                self.verdicts[uuid] = verdict
                log.info("peer of %s: %s", pair.vm, verdict)
            key = (verdict, peer and peer.raw_body, self.datastore.state, self._gate(uuid))
            last_key, last_at = self.pushed.get(uuid, (None, 0))
            if key == last_key and self.now - last_at < PUSH_MS:
                continue
            evidence = self._evidence(pair)
            self.pushed[uuid] = (key, self.now)
            for client in [client for client in self.server.clients if client.subscribed]:
                self.server.send_json(client, self._event(uuid, evidence))

    def _request(self, request: Json, client: Client) -> Json:
        op = request.get("op")
        if op == "set_pair":
            return self._set_pair(request.get("pair"))
        if op == "drop_pair":
            return self._drop_pair(str(request.get("uuid")))
        if op == "set_keys":
            return self._set_keys(str(request.get("keys")))
        if op == "status":
            return self._status()
        if op == "subscribe":
            client.subscribed = True
            self.pushed = {}  # everybody hears the state as it is now
            return {"ok": True}
        raise ValueError(f"op: {op!r} is not known")

    def _set_pair(self, doc: object) -> Json:
        if not isinstance(doc, dict):
            raise ValueError("pair: missing")
        pair = PairSpec.from_json(doc)
        before = self.pairs.get(pair.uuid)
        if before is None and len(self.pairs) >= PAIRS_LIMIT:
            raise ValueError(f"pair: this keeper holds {PAIRS_LIMIT} pairs already")
        self.pairs[pair.uuid] = pair
        try:
            self.store.save(pair)
        except OSError as error:
            return {"ok": False, "error": str(error)}
        if before is None or before.taps != pair.taps:
            self.gate_state.pop(pair.uuid, None)
            self._manage_gates()
        self._index_peers()
        self._drive_gates()
        self._speak_at_once()
        return self._done()

    def _set_keys(self, text: str) -> Json:
        """The cluster's beat keys change: the agent has put them on the disk, and tells us. No file is read here."""
        keys = BeatKeys.parse(text)
        if keys.require_after(self.keys):
            log.info("beat keys: number %d", keys.number)
            self.keys = keys
        return {"ok": True, "beat_keys": self.keys.number}

    def _done(self) -> Json:
        return {"ok": True} if self.gate_error is None else {"ok": False, "error": self.gate_error}

    def _drop_pair(self, uuid: str) -> Json:
        pair = self.pairs.pop(uuid, None)
        if pair is None:
            return {"ok": True}
        self.store.remove(uuid)
        self.gate_state.pop(uuid, None)
        self.pushed.pop(uuid, None)
        self.verdicts.pop(uuid, None)
        self._manage_gates()
        self._speak_at_once()
        self._index_peers()
        return self._done()

    def _status(self) -> Json:
        pairs = {
            uuid: {"gate": self._gate(uuid), "peer": self._evidence(pair).to_json()}
            for uuid, pair in self.pairs.items()
        }
        return {"ok": True, "uptime_ms": self.now - self.started, "datastore": self.datastore.to_json(),
                "pairs": pairs, "gate_error": self.gate_error, "beat_keys": self.keys.number}  # fmt: skip
