"""What the keeper concludes. Pure: states in, states out; every time is an argument.

Two clocks, and why:

``now_ms``       CLOCK_MONOTONIC. *Proof* is measured on it: how old, at most, is what the peer told us. For the gate.
``attended_ms``  the same clock, but time during which this process did not run counts as one tick. *Silence* is
                 measured on it: a keeper that was frozen or starved did not listen, so nobody was silent.

safety: the attended clock only ever delays the verdict that a peer is gone; it never makes old news look new.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ftkvm.keeper.beat import Beat, Body
from ftkvm.keeper.model import DatastoreHealth, DatastoreState, Evidence, PairSpec, Said, Verdict

TICK_MS = 50
"""Between two beats, and two pings."""
STALL_MS = 100
"""A longer gap between two turns of the loop is our own stall."""
SILENT_MS = 300
"""Default of the setting ``silent_ms``."""
FRESH_MS = 500
"""A beat proves that its sender lives if it echoes a beat of ours younger than this; the gate wants such a proof."""
SENT_LIMIT = 64
"""Own beats remembered per peer: FRESH_MS at one per tick are 10, the rest is room for those sent on a change."""
STILL_ANSWERS_MS = 2 * TICK_MS
"""Pings answered this long after the last beat tell a dead keeper from a dead host (one answer may have crossed)."""
PROBE_HUNG_MS = 1500
"""No write to the datastore completed for so long: it hangs."""


def attend(attended_ms: int, gap_ms: int) -> int:
    """The attended clock after a turn that began ``gap_ms`` after the one before."""
    return attended_ms + (gap_ms if gap_ms <= STALL_MS else TICK_MS)


class PeerState(NamedTuple):
    """What this keeper knows of one peer host. ``*_at`` are attended ms, ``*_now`` are monotonic ms.

    A tuple, because it is replaced a hundred times a second: that costs a tenth of what a frozen dataclass's does.
    """

    host: str
    known_at: int
    sent: tuple[tuple[int, int], ...] = ()
    """(seq, now_ms) of our own last beats to it."""
    last_seq: int = 0
    last_any_at: int | None = None
    beat_at: int | None = None
    beat_now: int | None = None
    ping_at: int | None = None
    ping_now: int | None = None
    proof_now: int | None = None
    """When we sent the newest beat it echoed: what it says is at most as old as this."""
    raw_body: bytes = b""
    body: Body | None = None
    """Of the last fresh beat: its last words, kept when it falls silent."""


def sent_beat(peer: PeerState, seq: int, now_ms: int) -> PeerState:
    """Remember an own beat; only those that can still prove freshness are kept."""
    young = [entry for entry in peer.sent[1 - SENT_LIMIT :] if now_ms - entry[1] < FRESH_MS]
    return peer._replace(sent=(*young, (seq, now_ms)))


def proof_of(peer: PeerState, beat: Beat, now_ms: int) -> int | None:
    """When the beat's echo was sent by us, if that is less than FRESH_MS ago; None: the beat proves nothing."""
    for seq, at in reversed(peer.sent):
        if seq == beat.echo:
            return at if now_ms - at < FRESH_MS else None
    return None


def heard_beat(peer: PeerState, beat: Beat, body: Body, now_ms: int, attended_ms: int, silent_ms: int) -> PeerState:
    """An authentic beat of this peer, addressed to us, has arrived.

    A seq that does not grow is a duplicate or a replay. Only when the peer has been quiet for ``silent_ms`` may numbers
    start lower: its wall clock was set back while its keeper restarted. That only makes us echo it; whether it is
    believed is decided by its own echo, always.
    """
    quiet = peer.last_any_at is None or attended_ms - peer.last_any_at >= silent_ms
    if beat.seq <= peer.last_seq and not quiet:
        return peer
    peer = peer._replace(last_seq=beat.seq, last_any_at=attended_ms)
    proof = proof_of(peer, beat, now_ms)
    if proof is None or (peer.proof_now is not None and proof < peer.proof_now):
        return peer
    return peer._replace(beat_at=attended_ms, beat_now=now_ms, proof_now=proof, raw_body=beat.raw_body, body=body)


def heard_ping(peer: PeerState, sent_ms: int, now_ms: int, attended_ms: int) -> PeerState:
    """Its kernel answered our echo request of ``sent_ms``. It counts from when it was sent: answers are taken in with
    the next turn, not when they arrive, and one that waited while we slept is none."""
    age_ms = now_ms - sent_ms
    if not 0 <= age_ms < FRESH_MS:
        return peer
    return peer._replace(ping_at=attended_ms - min(age_ms, TICK_MS), ping_now=sent_ms)


def verdict_of(peer: PeerState, attended_ms: int, silent_ms: int) -> Verdict:
    """See ``Verdict`` in docs/keeper.md. Between the two deadlines the answer stays *alive*: beats and pings of a host
    that dies stop within one tick of each other, and calling that *agent_silent* for 20 ms would mislead."""
    if peer.beat_at is None and peer.ping_at is None and attended_ms - peer.known_at < silent_ms:
        return "unknown"
    last_beat = peer.known_at if peer.beat_at is None else peer.beat_at
    last_ping = peer.known_at if peer.ping_at is None else peer.ping_at
    if attended_ms - last_beat < silent_ms:
        return "alive" if peer.beat_at is not None else "unknown"
    if attended_ms - last_ping >= silent_ms:
        return "silent"
    if last_ping - last_beat >= STILL_ANSWERS_MS:
        return "agent_silent"
    return "alive" if peer.beat_at is not None else "unknown"


def next_deadline(peer: PeerState, attended_ms: int, silent_ms: int) -> int | None:
    """The attended ms at which the verdict may change next if nothing more is heard."""
    heard = (peer.known_at if at is None else at for at in (peer.beat_at, peer.ping_at))
    return min((at + silent_ms for at in heard if at + silent_ms > attended_ms), default=None)


def evidence_of(peer: PeerState | None, uuid: str, now_ms: int, attended_ms: int, silent_ms: int) -> Evidence:
    """Evidence about the peer of pair ``uuid``; a pair without peer (solo) knows nothing."""
    if peer is None:
        return Evidence("unknown", None, None, None)
    return Evidence(
        verdict=verdict_of(peer, attended_ms, silent_ms),
        beat_age_ms=None if peer.beat_now is None else now_ms - peer.beat_now,
        ping_age_ms=None if peer.ping_now is None else now_ms - peer.ping_now,
        said=None if peer.body is None else peer.body.said(uuid),
    )


def peer_allows(pair: PairSpec, peer: PeerState | None, now_ms: int) -> bool:
    """Does fresh proof say that the peer is this pair's secondary, in this epoch, and has not won it?"""
    if peer is None or peer.body is None or peer.proof_now is None or now_ms - peer.proof_now >= FRESH_MS:
        return False
    said: Said | None = peer.body.pairs.get(pair.uuid)
    return said is not None and said.epoch == pair.epoch and said.role == "secondary" and said.won_epoch != pair.epoch


Gate = Literal["open", "closed", "lapse"]
"""``lapse``: do not renew, do not close: what a former keeper opened ends by its own time-out."""


def gate_of(pair: PairSpec, peer: PeerState | None, now_ms: int, started_ms: int, silent_ms: int) -> Gate:
    """May this host's copy be heard? Solo: yes. Secondary: never. Primary: while the peer's fresh word allows it.

    safety: a restarted keeper knows nothing for some ticks. Closing at once would cut a healthy primary, so what is
    open stays for its second (set in the kernel by the keeper before): the bound that covers a keeper that died, too.
    """
    if pair.role == "solo":
        return "open"
    if pair.role == "primary" and peer_allows(pair, peer, now_ms):
        return "open"
    if pair.role == "primary" and (peer is None or peer.body is None) and now_ms - started_ms < silent_ms:
        return "lapse"
    return "closed"


@dataclass(frozen=True, slots=True)
class ProbeState:
    """The datastore as the probe process reports it; ``*_at`` attended ms, ``ok_now`` monotonic ms."""

    heard_at: int
    ok_now: int | None = None
    error: str | None = None
    """Name of the errno of the last write, None after a success."""


def probe_result(probe: ProbeState, error: str | None, now_ms: int, attended_ms: int) -> ProbeState:
    """One write ended: with success (None) or with the named errno."""
    return ProbeState(heard_at=attended_ms, ok_now=probe.ok_now if error else now_ms, error=error)


def datastore_of(probe: ProbeState, now_ms: int, attended_ms: int) -> DatastoreHealth:
    age_ms = None if probe.ok_now is None else now_ms - probe.ok_now
    state: DatastoreState
    if attended_ms - probe.heard_at >= PROBE_HUNG_MS:
        state = "hung"
    elif probe.error is not None:
        state = "readonly" if probe.error == "EROFS" else "failed"
    else:
        state = "unknown" if probe.ok_now is None else "ok"
    return DatastoreHealth(state, age_ms, probe.error)
