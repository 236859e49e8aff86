"""The keeper's conclusions at each edge of their times. States and clocks only: nothing runs here."""

import json
from dataclasses import replace

import pytest

from ftkvm.keeper import beat as codec
from ftkvm.keeper import rules
from ftkvm.keeper.beat import Beat, Body
from ftkvm.keeper.model import Evidence, PairSpec, PeerSpec, Said
from ftkvm.keeper.rules import FRESH_MS, PROBE_HUNG_MS, SILENT_MS, PeerState

KEY = bytes(range(32))
UUID = "0b7f7a3c-1111"
PAIR = PairSpec(UUID, "vm1", 7, "primary", PeerSpec("host2", "10.0.0.2", 7444), ("vnet0",), "running")


def body(role: str = "secondary", epoch: int = 7, won: int | None = None) -> Body:
    pair = replace(PAIR, role=role, epoch=epoch, won_epoch=won, qemu="loaded")
    return codec.decode_body(codec.encode_body("host2", "host1", "boot-2", "ok", [pair]))


def beat(seq: int, echo: int) -> Beat:
    return Beat(seq, echo, b"")


def peer_at(now: int, **fields: object) -> PeerState:
    return PeerState("host2", known_at=now)._replace(**fields)


def hear(
    peer: PeerState, seq: int, echo: int, now: int, attended: int | None = None, said: Body | None = None
) -> PeerState:
    at = now if attended is None else attended
    return rules.heard_beat(peer, beat(seq, echo), said or body(), now, at, SILENT_MS)


class TestCodec:
    def test_what_is_sent_is_what_is_read(self) -> None:
        pair = replace(PAIR, won_epoch=6, interval_ms=250)
        raw = codec.encode_body("host1", "host2", "boot-1", "hung", [pair])
        heard = codec.decode(KEY, codec.encode(KEY, 2**63, 17, raw))
        assert heard == Beat(2**63, 17, raw)
        said = codec.decode_body(raw)
        assert (said.host, said.to, said.boot_id, said.datastore) == ("host1", "host2", "boot-1", "hung")
        assert said.said(UUID) == Said("host1", "boot-1", "hung", 7, "primary", "running", 6, 250)
        assert said.said("another") == Said("host1", "boot-1", "hung")

    def test_a_keeper_of_the_version_before_understands_and_is_understood(self) -> None:
        """It takes four values for a pair, and sends no intervals: while hosts are upgraded one after the other."""
        doc = json.loads(codec.encode_body("host1", "host2", "boot-1", "ok", [replace(PAIR, interval_ms=250)]))
        assert doc["pairs"] == {UUID: [7, "primary", "running", None]}
        del doc["intervals"]
        assert codec.decode_body(json.dumps(doc).encode()).said(UUID).interval_ms is None

    def test_every_changed_byte_is_noticed(self) -> None:
        data = codec.encode(KEY, 5, 3, codec.encode_body("a", "b", "c", "ok", []))
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1
            assert codec.decode(KEY, bytes(changed)) is None
        assert codec.decode(bytes(32), data) is None
        for length in range(len(data)):
            assert codec.decode(KEY, data[:length]) is None

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b"{}",
            b'{"host":"a","to":"b","boot_id":"c","datastore":"ok","pairs":{"u":[1]}}',
            b'{"host":"a","to":"b","boot_id":"c","datastore":"odd","pairs":{"u":[1,"primary","gone",null]}}',
        ],
    )
    def test_a_body_that_is_none_is_refused(self, raw: bytes) -> None:
        with pytest.raises(ValueError):
            codec.decode_body(raw)

    def test_seq_grows_over_a_restart(self) -> None:
        first = codec.first_seq(1_000_000, 2**20 - 1)
        assert codec.first_seq(1_000_100, 0) > first + 100 * 20

    def test_ping_is_recognised_by_its_token_and_ident(self) -> None:
        request = bytearray(codec.encode_ping(7, 3, b"token678", 1234))
        assert codec._checksum(bytes(request)) == 0
        request[0] = codec.ECHO_REPLY
        packet = b"\x45" + bytes(19) + bytes(request)
        assert codec.decode_ping(packet, 7, b"token678") == 1234
        assert codec.decode_ping(packet, 8, b"token678") is None
        assert codec.decode_ping(packet, 7, b"token679") is None
        assert codec.decode_ping(b"\x45" + bytes(19) + codec.encode_ping(7, 3, b"token678", 1), 7, b"token678") is None
        assert codec.decode_ping(b"", 7, b"token678") is None


class TestFreshness:
    def test_an_echo_younger_than_the_limit_proves(self) -> None:
        peer = rules.sent_beat(peer_at(0), 100, 1000)
        assert rules.proof_of(peer, beat(1, 100), 1000 + FRESH_MS - 1) == 1000
        assert rules.proof_of(peer, beat(1, 100), 1000 + FRESH_MS) is None

    def test_no_echo_and_a_foreign_echo_prove_nothing(self) -> None:
        peer = rules.sent_beat(peer_at(0), 100, 1000)
        for echo in (0, 99, 101):
            heard = hear(peer, 1, echo, 1001)
            assert heard.beat_at is None and heard.body is None
            assert heard.last_seq == 1  # but it is echoed, so that the peer can prove itself next time

    def test_own_beats_are_forgotten_when_old(self) -> None:
        peer = peer_at(0)
        for number in range(1000):
            peer = rules.sent_beat(peer, number, number * 50)
        assert [at for _, at in peer.sent] == [number * 50 for number in range(990, 1000)]

    def test_many_own_beats_at_once_are_bounded(self) -> None:
        peer = peer_at(0)
        for number in range(1000):
            peer = rules.sent_beat(peer, number, 0)
        assert len(peer.sent) == rules.SENT_LIMIT and peer.sent[-1] == (999, 0)

    def test_replay_is_not_news(self) -> None:
        peer = hear(rules.sent_beat(peer_at(0), 100, 0), 5, 100, 10)
        for seq in (5, 4):
            assert hear(peer, seq, 100, 20) == peer

    def test_beats_queued_while_we_were_frozen_are_stale(self) -> None:
        """SIGSTOP for 10 s: the socket holds beats that echo what we sent before. None of them proves, none opens."""
        peer = hear(rules.sent_beat(peer_at(0), 100, 0), 5, 100, 10)
        thawed, attended = 10_010, rules.attend(10, 10_000)
        assert attended == 10 + rules.TICK_MS
        for seq in range(6, 200):
            peer = hear(peer, seq, 100, thawed, attended)
        assert peer.beat_now == 10 and peer.proof_now == 0 and peer.last_seq == 199
        assert not rules.peer_allows(PAIR, peer, thawed)
        assert rules.gate_of(PAIR, peer, thawed, 0, SILENT_MS) == "closed"
        peer = hear(rules.sent_beat(peer, 101, thawed), 200, 101, thawed + 1, attended + 1)
        assert rules.gate_of(PAIR, peer, thawed + 1, 0, SILENT_MS) == "open"

    def test_a_restarted_peer_is_believed_after_one_round(self) -> None:
        peer = hear(rules.sent_beat(peer_at(0), 100, 0), 5, 100, 10)
        restarted = hear(peer, 5000, 0, 100)
        assert restarted.beat_now == 10 and restarted.last_seq == 5000
        again = hear(rules.sent_beat(restarted, 101, 150), 5001, 101, 151)
        assert again.beat_now == 151

    def test_a_restarted_peer_whose_clock_went_back_is_believed_after_silence(self) -> None:
        peer = hear(rules.sent_beat(peer_at(0), 100, 0), 5000, 100, 10)
        assert hear(peer, 3, 0, 10 + SILENT_MS - 1).last_seq == 5000
        later = hear(peer, 3, 0, 10 + SILENT_MS)
        assert later.last_seq == 3
        assert hear(rules.sent_beat(later, 101, 400), 4, 101, 401).beat_now == 401

    def test_a_restarted_keeper_of_ours_takes_no_old_beat(self) -> None:
        """Its list of own beats is empty: whatever is queued for the port proves nothing."""
        assert hear(peer_at(1000), 77, 123456, 1001).proof_now is None


class TestVerdict:
    def at(self, attended: int, beat_at: int | None, ping_at: int | None, known_at: int = 0) -> str:
        peer = peer_at(known_at, beat_at=beat_at, ping_at=ping_at)
        return rules.verdict_of(peer, attended, SILENT_MS)

    def test_unknown_until_silence_can_be_told(self) -> None:
        assert self.at(SILENT_MS - 1, None, None) == "unknown"
        assert self.at(SILENT_MS, None, None) == "silent"

    def test_silent_is_beats_and_pings(self) -> None:
        assert self.at(1000 + SILENT_MS - 1, 1000, 1000) == "alive"
        assert self.at(1000 + SILENT_MS, 1000, 1000) == "silent"

    def test_agent_silent_needs_pings_well_after_the_last_beat(self) -> None:
        assert self.at(1000 + SILENT_MS, 1000, 1000 + 2 * rules.TICK_MS) == "agent_silent"
        assert self.at(1000 + SILENT_MS, 1000, 1000 + SILENT_MS) == "agent_silent"

    def test_a_dying_host_is_never_called_agent_silent(self) -> None:
        """Beats end up to a tick before or after the pings: it goes from alive to silent, at the later deadline."""
        for ping_at in (1000 + rules.TICK_MS, 1000 + 2 * rules.TICK_MS - 1):
            assert self.at(1000 + SILENT_MS, 1000, ping_at) == "alive"
            assert self.at(ping_at + SILENT_MS - 1, 1000, ping_at) == "alive"
            assert self.at(ping_at + SILENT_MS, 1000, ping_at) == "silent"

    def test_agent_silent_becomes_silent(self) -> None:
        assert self.at(5000 + SILENT_MS - 1, 1000, 5000) == "agent_silent"
        assert self.at(5000 + SILENT_MS, 1000, 5000) == "silent"

    def test_pings_alone_are_not_alive(self) -> None:
        assert self.at(SILENT_MS - 1, None, 50) == "unknown"
        assert self.at(SILENT_MS, None, SILENT_MS - 50) == "agent_silent"

    def test_own_stall_is_not_the_peers_silence(self) -> None:
        attended = 1000
        for gap in (10_000, 5_000, 2_000):
            attended = rules.attend(attended, gap)
            assert self.at(attended, 1000, 1000) == "alive"
        for _ in range(3):
            attended = rules.attend(attended, 50)
        assert self.at(attended, 1000, 1000) == "silent"

    def test_a_starved_keeper_still_ends(self) -> None:
        """Turns that always come late count as one tick each: silence is told after six of them, not never."""
        attended = 1000
        for _ in range(6):
            assert self.at(attended, 1000, 1000) == "alive"
            attended = rules.attend(attended, 150)
        assert self.at(attended, 1000, 1000) == "silent"

    def test_gaps_up_to_the_stall_count_fully(self) -> None:
        assert rules.attend(0, rules.STALL_MS) == rules.STALL_MS
        assert rules.attend(0, rules.STALL_MS + 1) == rules.TICK_MS

    def test_deadline_is_the_next_one_ahead(self) -> None:
        peer = peer_at(0, beat_at=1000, ping_at=1040)
        assert rules.next_deadline(peer, 1050, SILENT_MS) == 1300
        assert rules.next_deadline(peer, 1300, SILENT_MS) == 1340
        assert rules.next_deadline(peer, 1340, SILENT_MS) is None

    def test_ping_counts_from_when_it_was_asked(self) -> None:
        peer = rules.heard_ping(peer_at(0), 1000, 1030, 5030)
        assert (peer.ping_at, peer.ping_now) == (5000, 1000)
        assert rules.heard_ping(peer_at(0), 1000, 1000 + FRESH_MS, 5000).ping_at is None
        assert rules.heard_ping(peer_at(0), 1000, 999, 5000).ping_at is None

    def test_last_words_are_kept(self) -> None:
        peer = hear(rules.sent_beat(peer_at(0), 1, 0), 9, 1, 20)
        evidence = rules.evidence_of(peer, UUID, 5020, 5020, SILENT_MS)
        assert evidence == Evidence("silent", 5000, None, Said("host2", "boot-2", "ok", 7, "secondary", "loaded", None))


class TestGate:
    def gate(self, pair: PairSpec, now: int, said: Body | None = None, proof: int = 0, started: int = -10_000) -> str:
        peer = peer_at(0, beat_at=proof, beat_now=proof, proof_now=proof, body=said) if said else peer_at(0)
        return rules.gate_of(pair, peer, now, started, SILENT_MS)

    def test_solo_is_open_and_secondary_never(self) -> None:
        assert rules.gate_of(replace(PAIR, role="solo", peer=None), None, 0, 0, SILENT_MS) == "open"
        for said in (body(), body("primary"), body("solo")):
            assert self.gate(replace(PAIR, role="secondary"), 1, said) == "closed"

    def test_primary_while_proof_is_fresh(self) -> None:
        assert self.gate(PAIR, FRESH_MS - 1, body()) == "open"
        assert self.gate(PAIR, FRESH_MS, body()) == "closed"

    @pytest.mark.parametrize("said", [body("primary"), body("solo"), body(epoch=6), body(epoch=8), body(won=7)])
    def test_primary_closes_at_what_contradicts(self, said: Body) -> None:
        assert self.gate(PAIR, 1, said) == "closed"

    def test_an_old_win_does_not_close(self) -> None:
        assert self.gate(PAIR, 1, body(won=6)) == "open"

    def test_a_peer_that_does_not_know_the_pair(self) -> None:
        assert self.gate(replace(PAIR, uuid="ffffffff-0000"), 1, body()) == "closed"

    def test_restarted_keeper_lets_lapse_first(self) -> None:
        assert self.gate(PAIR, SILENT_MS - 1, started=0) == "lapse"
        assert self.gate(PAIR, SILENT_MS, started=0) == "closed"
        assert self.gate(PAIR, 1, body("solo"), started=0) == "closed"
        assert self.gate(replace(PAIR, role="secondary"), 1, started=0) == "closed"


class TestDatastore:
    def test_life_of_a_probe(self) -> None:
        probe = rules.ProbeState(heard_at=0)
        assert rules.datastore_of(probe, 1, 1).state == "unknown"
        assert rules.datastore_of(probe, PROBE_HUNG_MS, PROBE_HUNG_MS).state == "hung"
        probe = rules.probe_result(probe, None, 2000, 2000)
        assert rules.datastore_of(probe, 2100, 2100) == rules.DatastoreHealth("ok", 100, None)
        assert rules.datastore_of(probe, 2000 + PROBE_HUNG_MS - 1, 2000 + PROBE_HUNG_MS - 1).state == "ok"
        assert rules.datastore_of(probe, 2000 + PROBE_HUNG_MS, 2000 + PROBE_HUNG_MS).state == "hung"
        probe = rules.probe_result(probe, "ENOTCONN", 4000, 4000)
        assert rules.datastore_of(probe, 4001, 4001) == rules.DatastoreHealth("failed", 2001, "ENOTCONN")
        assert rules.datastore_of(rules.probe_result(probe, "EROFS", 4200, 4200), 4201, 4201).state == "readonly"
        assert rules.datastore_of(rules.probe_result(probe, None, 4400, 4400), 4401, 4401).state == "ok"

    def test_our_own_freeze_is_not_the_storages(self) -> None:
        probe = rules.probe_result(rules.ProbeState(heard_at=0), None, 100, 100)
        assert rules.datastore_of(probe, 60_100, rules.attend(100, 60_000)).state == "ok"


class TestModel:
    @pytest.mark.parametrize("change", [
        {"uuid": "../../etc"}, {"uuid": None}, {"taps": ['vnet0" }; drop']}, {"taps": "vnet0"}, {"role": "boss"},
        {"epoch": -1}, {"epoch": True}, {"qemu": "odd"}, {"peer": None}, {"peer": {"host": "h"}}, {"won_epoch": "7"},
        {"interval_ms": -1}, {"interval_ms": "500"},
    ])  # fmt: skip
    def test_a_pair_that_does_not_fit_is_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(ValueError):
            PairSpec.from_json(PAIR.to_json() | change)

    def test_round_trip(self) -> None:
        for pair in (PAIR, replace(PAIR, role="solo", peer=None, won_epoch=7), replace(PAIR, interval_ms=100)):
            assert PairSpec.from_json(pair.to_json()) == pair
