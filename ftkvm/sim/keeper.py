"""The keeper of one simulated host. Its conclusions are the production ones (`ftkvm.keeper.rules`)."""

from dataclasses import replace

from ftkvm.core.facts import DatastoreState, PeerEvidence, PeerQemu, PeerSaid, Role, Verdict
from ftkvm.keeper import rules
from ftkvm.keeper.beat import Beat, Body
from ftkvm.keeper.model import PairSpec, Said
from ftkvm.sim.host import Host, ft_reaches

UUID = "00000000-sim"
GATE_MS = 1000


class Keeper:
    """Process and what it leaves in /run and in the kernel. `spec`: what the agent last declared."""

    def __init__(self, host: Host, mounts: dict[str, str]) -> None:
        self.host = host
        self.mounts = mounts
        self.peers: dict[str, Keeper] = {}
        self.spec: PairSpec | None = None
        self.mount_failed = False  # an errno was seen since the spec's epoch began
        self.gate_until = 0  # in the kernel's nftables set
        self.alive = False
        self.generation = 0
        self.start()

    def start(self) -> None:
        """A new process: knows nothing but the spec."""
        self.generation += 1
        self.alive = True
        now = self.host.kernel_now()
        self.attended = self.last_turn = self.started = now
        self.seq = self.host.clock.now << 20
        self.peer: rules.PeerState | None = None
        self.probe = rules.ProbeState(heard_at=now)
        self.probe_turn = 0
        self._schedule()

    def kill(self) -> None:
        self.alive = False
        self.generation += 1

    def reboot(self) -> None:
        """/run and the kernel's tables are gone."""
        self.spec, self.gate_until, self.mount_failed = None, 0, False
        self.start()

    def set_pair(self, spec: PairSpec) -> None:
        """As the agent says; persisted; the gate follows at once."""
        if self.spec is None or self.spec.epoch != spec.epoch:
            self.mount_failed = False
        self.spec = spec
        peer = spec.peer.host if spec.peer else None
        if peer is not None and (self.peer is None or self.peer.host != peer):
            self.peer = rules.PeerState(peer, known_at=self.attended)
        if self.alive:
            self._set_gate()

    def drop_pair(self) -> None:
        self.spec, self.peer = None, None

    def gate_open(self) -> bool:
        """Whether the kernel lets this host's copy out. No spec: the tap is not gated."""
        return self.spec is None or self.host.kernel_now() < self.gate_until

    def datastore(self) -> DatastoreState:
        health = rules.datastore_of(self.probe, self.host.kernel_now(), self.attended)
        return DatastoreState(health.state)

    def evidence(self) -> PeerEvidence:
        """What the agent is told."""
        if not self.alive:
            return PeerEvidence()
        found = rules.evidence_of(self.peer, UUID, self.host.kernel_now(), self.attended, rules.SILENT_MS)
        return PeerEvidence(Verdict(found.verdict), found.beat_age_ms, _said(found.said))

    # ------------------------------------------------------------------------------------------ its loop

    def _schedule(self) -> None:
        generation = self.generation
        self.host.after(rules.TICK_MS, rules.TICK_MS + 3, lambda: self._turn(generation))

    def _turn(self, generation: int) -> None:
        if generation != self.generation:
            return
        now = self.host.kernel_now()
        self.attended = rules.attend(self.attended, now - self.last_turn)
        self.last_turn = now
        self._probe(now)
        if self.spec is not None:
            if self.peer is None and self.spec.peer is not None:
                self.peer = rules.PeerState(self.spec.peer.host, known_at=self.attended)
            self._beat(now)
            self._set_gate()
        self._schedule()

    def _probe(self, now: int) -> None:
        self.probe_turn = (self.probe_turn + 1) % 4
        mount = self.mounts[self.host.name]
        if self.probe_turn == 0 and mount != "hung":
            self.probe = rules.probe_result(self.probe, None if mount == "ok" else "EIO", now, self.attended)
            self.mount_failed = self.mount_failed or mount == "failed"

    def _beat(self, now: int) -> None:
        if self.peer is None or self.spec is None:
            return
        self.seq += 1
        self.peer = rules.sent_beat(self.peer, self.seq, now)
        other = self.peers[self.peer.host]
        if not ft_reaches(self.host, other.host):
            return
        beat = Beat(self.seq, self.peer.last_seq, b"")
        body = Body(self.host.name, other.host.name, self.host.boot_id, self.datastore().value, {UUID: self._word()})
        other.host.after(0, 3, lambda: other.heard(self.host.name, beat, body))
        if not other.host.kernel_frozen:
            generation = self.generation
            self.host.after(0, 3, lambda: self._pinged(generation, other.host.name, now))

    def _word(self) -> Said:
        spec = self.spec
        assert spec is not None
        role = "primary" if spec.role == "solo" else spec.role
        about = Said(self.host.name, self.host.boot_id, self.datastore().value)
        return replace(about, epoch=spec.epoch, role=role, qemu=spec.qemu, won_epoch=spec.won_epoch)

    def heard(self, sender: str, beat: Beat, body: Body) -> None:
        """A beat has arrived; without a pair with its sender it is ignored."""
        if self.alive and self.peer is not None and self.peer.host == sender:
            now = self.host.kernel_now()
            self.peer = rules.heard_beat(self.peer, beat, body, now, self.attended, rules.SILENT_MS)
            if self.spec is not None:
                self._set_gate()

    def _pinged(self, generation: int, host: str, sent: int) -> None:
        if generation == self.generation and self.peer is not None and self.peer.host == host:
            self.peer = rules.heard_ping(self.peer, sent, self.host.kernel_now(), self.attended)

    def _set_gate(self) -> None:
        if self.spec is None:
            return
        now = self.host.kernel_now()
        gate = rules.gate_of(self.spec, self.peer, now, self.started, rules.SILENT_MS)
        if gate == "open":
            self.gate_until = now + GATE_MS
        elif gate == "closed":
            self.gate_until = 0


def _said(said: Said | None) -> PeerSaid | None:
    if said is None or said.epoch is None:
        return None
    role = Role.SECONDARY if said.role == "secondary" else Role.PRIMARY
    datastore = DatastoreState(said.datastore)
    return PeerSaid(said.epoch, role, PeerQemu(said.qemu or "gone"), said.won_epoch, datastore, said.boot_id)
