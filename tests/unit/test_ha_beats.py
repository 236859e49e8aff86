"""Which beats count: authentic, for us, on that network, and made after something we sent a moment ago."""

from ftkvm.agent.ha.beats import FRESH_MS, BeatBody, BeatPlan, BeatTable, encode_body
from ftkvm.core.ha.model import HostCapacity
from ftkvm.keeper import beat as codec
from ftkvm.keeper.keys import BeatKeys

KEY = bytes(range(32))
KEYS = BeatKeys(0, KEY)
PLAN = BeatPlan({"a": {"m": "10.0.0.1", "g": "10.1.0.1"}, "b": {"m": "10.0.0.2", "g": "10.1.0.2"}})
BODY = BeatBody("boot", 3, HostCapacity(1000, 2000, frozenset({"br"}), compatible=False, why_not="old"))


def exchange(one: BeatTable, other: BeatTable, now: int, networks: tuple[str, ...] = ("m", "g")) -> None:
    """A turn of each, everything arrives."""
    for sender, receiver in ((one, other), (other, one)):
        for network, _address, datagram in sender.datagrams(now, PLAN, BODY):
            if network in networks:
                receiver.heard(now, network, datagram, PLAN)


def test_two_turns_make_both_heard_on_both_networks_with_what_they_say() -> None:
    a, b = BeatTable("a", KEYS, 1000), BeatTable("b", KEYS, 5)
    exchange(a, b, 1000)
    assert b.seen() == {}  # a cannot have echoed b yet
    exchange(a, b, 2000)
    assert a.seen()["b"].networks == {"m": 2000, "g": 2000}
    assert b.seen()["a"].networks == {"m": 2000, "g": 2000}
    assert b.seen()["a"].solo_vms == 3
    assert b.seen()["a"].capacity == BODY.capacity


def test_each_network_stands_for_itself() -> None:
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    for now in (1000, 2000):
        exchange(a, b, now)
    for now in (3000, 4000):
        exchange(a, b, now, ("g",))
    assert a.seen()["b"].networks == {"m": 2000, "g": 4000}


def test_one_way_is_not_heard() -> None:
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    for now in (1000, 2000):
        exchange(a, b, now)
    for now in range(3000, 12000, 1000):  # only b's beats arrive
        a.datagrams(now, PLAN, BODY)
        for network, _address, datagram in b.datagrams(now, PLAN, BODY):
            a.heard(now, network, datagram, PLAN)
    assert max(a.seen()["b"].networks.values()) <= 2000 + FRESH_MS


def test_an_old_beat_played_back_does_not_count() -> None:
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    for now in (1000, 2000):
        exchange(a, b, now)
    kept = b.datagrams(2500, PLAN, BODY)
    for now in range(3000, 9000, 1000):
        a.datagrams(now, PLAN, BODY)
    for network, _address, datagram in kept:
        assert a.heard(9000, network, datagram, PLAN) is None
    assert max(a.seen()["b"].networks.values()) == 2000


def test_a_beat_played_back_at_once_keeps_no_dead_host_alive() -> None:
    """Recorded on the wire and sent again until its echo is too old: the host counts as heard when it was heard."""
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    for now in (1000, 2000):
        exchange(a, b, now)
    recorded = b.datagrams(2100, PLAN, BODY)
    for network, _address, datagram in recorded:
        a.heard(2200, network, datagram, PLAN)
    assert a.seen()["b"].networks == {"m": 2200, "g": 2200}
    for now in range(2300, 12000, 100):  # b is dead
        if now % 1000 == 0:
            a.datagrams(now, PLAN, BODY)
        for network, _address, datagram in recorded:
            assert a.heard(now, network, datagram, PLAN) is None
    assert a.seen()["b"].networks == {"m": 2200, "g": 2200}


def test_a_beat_of_another_key_host_network_or_addressee_does_not_count() -> None:
    a = BeatTable("a", KEYS, 7)
    a.datagrams(1000, PLAN, BODY)

    def beat(key: bytes, host: str, to: str, network: str) -> bytes:
        return codec.encode(key, 99, 8, encode_body(host, to, network, BODY), b"FHB1")

    good = beat(KEY, "b", "a", "m")
    bad = [
        beat(bytes(32), "b", "a", "m"), beat(KEY, "c", "a", "m"), beat(KEY, "b", "c", "m"), beat(KEY, "b", "a", "g"),
        beat(KEY, "a", "a", "m"), good[:-1], good[:40] + b"x" + good[41:], b"",
        codec.encode(KEY, 99, 8, b"{}", b"FHB1"), codec.encode(KEY, 99, 8, encode_body("b", "a", "m", BODY)),
    ]  # fmt: skip
    for datagram in bad:
        assert a.heard(1000, "m", datagram, PLAN) is None
    assert a.seen() == {}
    assert a.heard(1000, "m", good, PLAN) == "b"
    assert a.seen()["b"].networks == {"m": 1000}


def test_a_host_that_comes_back_is_told_once() -> None:
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    back = []
    for now in (1000, 2000, 3000, 9000, 10000, 11000):
        for sender, receiver in ((a, b), (b, a)):
            for network, _address, datagram in sender.datagrams(now, PLAN, BODY):
                back.append((now, receiver.heard(now, network, datagram, PLAN)))
    assert [(now, host) for now, host in back if host == "b"] == [(1000, "b"), (9000, "b")]


def test_a_host_whose_clock_was_set_back_is_heard_again() -> None:
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 10**12)
    for now in (1000, 2000):
        exchange(a, b, now)
    b = BeatTable("b", KEYS, 5)  # started again, its numbers are lower than before
    for now in (3000, 4000, 5000, 6000):
        exchange(a, b, now)
    assert a.seen()["b"].networks["m"] == 6000
    assert b.seen()["a"].networks["m"] == 6000


def test_the_key_is_changed_and_no_beat_is_lost() -> None:
    """The two are never more than a step apart, each ahead in turn; then the old key alone is not heard any more."""
    a, b = BeatTable("a", KEYS, 1), BeatTable("b", KEYS, 1)
    keys, now = KEYS, 1000
    for _ in range(3):
        exchange(a, b, now)
        keys = keys.offered(bytes([9]) * 32) if keys.settled else keys.advanced()
        for table in (a, b):
            table.use_keys(keys)
            now += 1000
            exchange(a, b, now)
            exchange(a, b, now + 500)
            assert a.seen()["b"].networks["m"] == b.seen()["a"].networks["m"] == now + 500
    a.use_keys(KEYS)
    exchange(a, b, now + 1000)
    assert b.seen()["a"].networks["m"] == now + 500
