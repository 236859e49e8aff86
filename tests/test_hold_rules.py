"""Framing, classification and the checkpoint rule of the hold proxy; no sockets."""

from collections.abc import Callable

import pytest

from ftkvm.core.facts import FtSettings, SecondarySilence
from ftkvm.core.patience import patience_ms
from ftkvm.core.trouble import is_mute
from ftkvm.hold.cover import Cover, HoldQueue
from ftkvm.hold.frames import HEADER, MAX_PAYLOAD, FramingError, Run, Way, split, walk, way_of
from ftkvm.hold.silence import Silence

VNET = 12


def tcp(flags: int, protocol: int = 6, fragment: int = 0, words: int = 5) -> bytes:
    """An IPv4 packet with a TCP header of these flags."""
    ip = bytearray(words * 4)
    ip[0], ip[9], ip[6:8] = 0x40 | words, protocol, fragment.to_bytes(2, "big")
    return bytes(ip) + bytes(13) + bytes([flags]) + bytes(6)


def ipv4(packet: bytes) -> bytearray:
    payload = bytes(VNET) + bytes(12) + b"\x08\x00" + packet
    return bytearray(HEADER.pack(len(payload), VNET) + payload)


def frame(ethertype: int, size: int = 60) -> bytes:
    payload = bytes(VNET) + bytes(12) + ethertype.to_bytes(2, "big") + bytes(size - 14)
    return HEADER.pack(len(payload), VNET) + payload


class TestFrames:
    @pytest.mark.parametrize(("ethertype", "ways"), [
        (0x0800, ("COMPARE", "COMPARE", "COMPARE")),
        (0x0806, ("HOLD", "HOLD", "PASS")),
        (0x86DD, ("HOLD", "DROP", "PASS")),
        (0x8100, ("HOLD", "DROP", "PASS")),
        (0x88CC, ("HOLD", "DROP", "PASS")),
        (-1, ("HOLD", "DROP", "PASS")),
    ])  # fmt: skip
    def test_only_untagged_ipv4_is_compared(self, ethertype: int, ways: tuple[str, str, str]) -> None:
        assert (
            way_of(ethertype, "hold").name,
            way_of(ethertype, "block").name,
            way_of(ethertype, "allow").name,
        ) == ways

    @pytest.mark.parametrize(("packet", "way"), [
        (tcp(0x02), Way.OPEN),  # SYN
        (tcp(0x12), Way.OPEN),  # SYN ACK
        (tcp(0x12, words=15), Way.OPEN),  # behind IP options
        (tcp(0x10), Way.COMPARE),  # ACK
        (tcp(0x04), Way.COMPARE),  # RST
        (tcp(0x02, protocol=17), Way.COMPARE),  # UDP with such a byte
        (tcp(0x02, fragment=185), Way.COMPARE),  # a later fragment has no TCP header
        (tcp(0x02)[:39], Way.COMPARE),  # cut short
        (tcp(0x02, words=15)[:45], Way.COMPARE),
    ])  # fmt: skip
    def test_what_opens_a_connection_is_held(self, packet: bytes, way: Way) -> None:
        stream = ipv4(packet)
        for mode in ("hold", "block", "allow"):
            assert split(stream, len(stream), mode)[0] == [Run(way, 0, len(stream), 1)]

    def test_neighbours_become_one_run(self) -> None:
        frames = [frame(0x0800), frame(0x0800, 1500), frame(0x86DD), frame(0x0806), frame(0x0800)]
        stream = bytearray(b"".join(frames))
        lengths = [len(one) for one in frames]
        a, b, c = sum(lengths[:2]), sum(lengths[:4]), sum(lengths)
        assert split(stream, len(stream), "hold") == (
            [Run(Way.COMPARE, 0, a, 2), Run(Way.HOLD, a, b, 2), Run(Way.COMPARE, b, c, 1)], c)  # fmt: skip

    def test_every_cut_of_a_stream_gives_the_same_frames(self) -> None:
        stream = frame(0x0800) + frame(0x0806, 42) + frame(0x0800, 14) + frame(0x86DD, 70)
        ends = [80, 142, 176, 266]
        assert len(stream) == ends[-1]
        for cut in range(len(stream) + 1):
            runs, used = split(bytearray(stream), cut, "hold")
            whole = [end for end in ends if end <= cut]
            assert used == max(whole, default=0)
            assert [end for _begin, end, _ip, _tcp in walk(bytearray(stream), 0, cut)] == whole
            assert sum(run.frames for run in runs) == len([end for end in ends if end <= cut])

    def test_a_frame_too_short_for_a_type_is_not_taken_for_ipv4(self) -> None:
        payload = bytes(VNET) + bytes(12)
        runs, _ = split(bytearray(HEADER.pack(len(payload), VNET) + payload + b"\x08\x00"), 8 + len(payload), "hold")
        assert [run.way for run in runs] == [Way.HOLD]

    @pytest.mark.parametrize("header", [(MAX_PAYLOAD + 1, 12), (10, 12), (2**32 - 1, 0)])
    def test_a_stream_out_of_step_is_an_error(self, header: tuple[int, int]) -> None:
        data = bytearray(HEADER.pack(*header) + bytes(100))
        with pytest.raises(FramingError):
            split(data, len(data), "hold")
        with pytest.raises(FramingError):
            list(walk(data, 0, len(data)))


OFFSET = 1_700_000_000_000_000


def cover_at(mono_us: int) -> Cover:
    cover = Cover()
    cover.clocks(OFFSET + mono_us, mono_us)
    return cover


class TestCover:
    def test_resume_covers_what_came_before_its_stop(self) -> None:
        cover = cover_at(0)
        cover.stop(OFFSET + 1000, OFFSET + 1300, 1300)
        assert cover.resume(OFFSET + 9000, OFFSET + 9300, 9300) == 1000
        assert (cover.checkpoints, cover.last_pause_us) == (1, 8000)

    def test_a_resume_without_stop_covers_nothing(self) -> None:
        cover = cover_at(0)
        assert cover.resume(OFFSET + 1, OFFSET + 2, 2) is None
        cover.stop(OFFSET + 1000, OFFSET + 1300, 1300)
        assert cover.resume(OFFSET + 2000, OFFSET + 2001, 2001) == 1000
        assert cover.resume(OFFSET + 3000, OFFSET + 3001, 3001) is None

    def test_a_stop_is_never_later_than_it_was_read(self) -> None:
        cover = cover_at(0)
        cover.stop(OFFSET + 5000, OFFSET + 1300, 1300)
        assert cover.resume(OFFSET + 6000, OFFSET + 6000, 6000) == 1300

    @pytest.mark.parametrize("step", [-10_000_000, 10_000_000])
    @pytest.mark.parametrize("stepped_before_stop", [True, False])
    def test_a_wall_clock_step_never_covers_more(self, step: int, stepped_before_stop: bool) -> None:
        """The wall clock is stepped before QEMU stamps STOP at 1000 us, or between that and our reading it."""
        cover = cover_at(0)
        stamp = OFFSET + 1000 + (step if stepped_before_stop else 0)
        cover.stop(stamp, OFFSET + step + 1300, 1300)
        covered = cover.resume(OFFSET + step + 2000, OFFSET + step + 2000, 2000)
        assert covered is not None and covered <= 1000
        cover.stop(OFFSET + step + 5000, OFFSET + step + 5100, 5100)
        assert (
            cover.resume(OFFSET + step + 6000, OFFSET + step + 6000, 6000) == 5000
        )  # one checkpoint later all is well

    def test_a_foreign_stop_covers_nothing(self) -> None:
        cover = cover_at(0)
        number = cover.stop(OFFSET + 1000, OFFSET + 1300, 1300)
        cover.foreign(number, "paused")
        assert cover.resume(OFFSET + 2000, OFFSET + 2000, 2000) is None

    @pytest.mark.parametrize("status", ["colo", "running", "finish-migrate"])
    def test_a_checkpoints_own_states_are_not_foreign(self, status: str) -> None:
        cover = cover_at(0)
        cover.foreign(cover.stop(OFFSET + 1000, OFFSET + 1300, 1300), status)
        assert cover.resume(OFFSET + 2000, OFFSET + 2000, 2000) == 1000

    def test_an_answer_about_an_earlier_stop_does_not_count(self) -> None:
        cover = cover_at(0)
        first = cover.stop(OFFSET + 1000, OFFSET + 1300, 1300)
        cover.resume(OFFSET + 2000, OFFSET + 2000, 2000)
        cover.stop(OFFSET + 3000, OFFSET + 3300, 3300)
        cover.foreign(first, "paused")
        assert cover.resume(OFFSET + 4000, OFFSET + 4000, 4000) == 3000

    def test_nothing_is_covered_after_the_exit(self) -> None:
        cover = cover_at(0)
        cover.stop(OFFSET + 1000, OFFSET + 1300, 1300)
        cover.exit()
        assert cover.resume(OFFSET + 2000, OFFSET + 2000, 2000) is None
        cover.stop(OFFSET + 3000, OFFSET + 3300, 3300)
        assert cover.resume(OFFSET + 4000, OFFSET + 4000, 4000) is None


class TestHoldQueue:
    def test_strictly_before(self) -> None:
        queue = HoldQueue(1000)
        for at in (10, 20, 30):
            assert queue.add(at, 1, b"x" * 10)
        assert [held.at_us for held in queue.release(20)] == [10]
        assert (queue.bytes, queue.frames, queue.oldest_age_us(50)) == (20, 2, 30)
        assert queue.drop_all() == 2
        assert (queue.bytes, queue.frames, queue.oldest_age_us(50)) == (0, 0, 0)

    def test_is_bounded(self) -> None:
        queue = HoldQueue(25)
        assert [queue.add(at, 1, b"x" * 10) for at in range(4)] == [True, True, False, False]
        assert queue.bytes == 20


class TestSilence:
    def test_only_intervals_in_which_the_primary_spoke_count(self) -> None:
        silence = Silence()
        for compared, now_us in ((3, 1000), (3, 2000), (5, 3000)):
            silence.checkpoint(compared, 0, now_us)
        assert (silence.intervals, silence.frames, silence.lasts_us(0, 9000)) == (2, 5, 8000)

    def test_one_frame_of_the_secondary_ends_it(self) -> None:
        silence = Silence()
        silence.checkpoint(3, 0, 1000)
        assert silence.lasts_us(1, 9000) == 0  # it has spoken since the checkpoint
        silence.checkpoint(6, 1, 2000)
        assert (silence.intervals, silence.lasts_us(1, 9000)) == (0, 0)
        silence.checkpoint(7, 1, 3000)
        assert (silence.intervals, silence.frames, silence.lasts_us(1, 9000)) == (1, 1, 6000)

    def test_an_idle_guest_is_not_silent(self) -> None:
        silence = Silence()
        for now_us in range(100):
            silence.checkpoint(0, 0, now_us)
        assert silence.lasts_us(0, 10**9) == 0


@pytest.mark.parametrize(("given_up", "wait_s"), [
    ([], 0), ([9000.0], 60), ([8900.0, 9000], 120), ([8000.0, 8900], 20), ([8950.0], 10), ([8940.0], 0),
    ([8900.0 + n for n in range(30)], 3529), ([9000.0 - 6 * 3600, 8970], 30), ([9000.0 - 6 * 3600], 0),
])  # fmt: skip
def test_mute_copies_are_given_up_less_and_less_often(given_up: list[float], wait_s: float) -> None:
    assert patience_ms(given_up, 9000.0) == 1000 * wait_s


INTERVAL_MS = 500
#: What each copy sends in the n-th interval between checkpoints: (the primary, the secondary).
GUESTS: dict[str, tuple[Callable[[int], tuple[int, int]], bool]] = {
    "quiet": (lambda n: (0, 0), False),
    "asked once a minute, its copy answers": (lambda n: (1, 1) if n % 120 == 0 else (0, 0), False),
    "sends one way (UDP, every datagram different)": (lambda n: (40, 40), False),
    "sends one datagram a second, its copy too late every other time": (
        lambda n: (n % 2, 1 if n % 4 == 1 else 0),
        False,
    ),
    "loaded: its copy gets one frame in 19 intervals out": (lambda n: (200, 1 if n % 19 == 0 else 0), False),
    "only its copy speaks": (lambda n: (0, 5), False),
    "quiet, and its copy hangs: nobody waits for it": (lambda n: (0, 0), False),
    "its copy hangs": (lambda n: (40, 0), True),
    "its copy hangs, and it is asked once a minute": (lambda n: (1 if n % 120 == 0 else 0, 0), True),
    "its copy hangs after a while": (lambda n: (40, 40 if n < 300 else 0), True),
}


@pytest.mark.parametrize("name", GUESTS)
def test_only_a_copy_that_says_nothing_while_its_primary_speaks_is_mute(name: str) -> None:
    """Half an hour of checkpoints, looked at after each and in the middle of each interval."""
    sends, mute = GUESTS[name]
    silence, settings = Silence(), FtSettings()
    compared = said = seen = 0
    for n in range(3600):
        primary, copy = sends(n)
        compared, said = compared + primary, said + copy
        for now_ms in (n * INTERVAL_MS + INTERVAL_MS // 2, (n + 1) * INTERVAL_MS):
            if now_ms % INTERVAL_MS == 0:
                silence.checkpoint(compared, said, now_ms * 1000)
            lasts_ms = silence.lasts_us(said, now_ms * 1000) // 1000
            seen += is_mute(SecondarySilence(lasts_ms, silence.intervals, silence.frames), settings)
    assert bool(seen) == mute
