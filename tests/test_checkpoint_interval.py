"""The choice of the checkpoint interval, alone and against a guest that answers to it."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkvm.core.checkpoint_interval import (
    REMEMBER_MS,
    SETTLE_MS,
    START_MS,
    Counters,
    IntervalState,
    Limits,
    Sample,
    decide,
    sample_between,
    start,
)

LIMITS = Limits()


def run(
    seconds: int,
    state: IntervalState | None = None,
    limits: Limits = LIMITS,
    pause: Callable[[int], float] = lambda _interval: 12.0,
    dirty: Callable[[int], float] = lambda _interval: 1e6,
    held: int = 0,
    misses: int = 0,
) -> list[IntervalState]:
    """One sample a second from a guest whose pauses and dirty bytes follow from the interval in force."""
    state = state or start(0, limits)
    begin_ms = max(state.changed_ms, state.waited_ms or 0)
    states = []
    for second in range(1, seconds + 1):
        now = state.interval_ms
        sample = Sample(begin_ms + 1000 * second, max(1, 1000 // now), pause(now), dirty(now), held, misses)
        state = decide(state, sample, limits)
        states.append(state)
    return states


def test_it_starts_within_the_limits() -> None:
    assert start(0, LIMITS).interval_ms == START_MS
    assert start(0, Limits(100, 300)).interval_ms == 300
    assert start(0, Limits(700, 900)).interval_ms == 700


def test_a_quiet_guest_gets_few_checkpoints() -> None:
    assert run(30)[-1].interval_ms == START_MS  # 600 would be ideal: not worth the change
    last = run(30, pause=lambda _: 18.0)[-1]
    assert 700 <= last.interval_ms <= 900 and last.why == "pause"
    last = run(30, pause=lambda _: 5.0)[-1]
    assert last.interval_ms == 250


@pytest.mark.parametrize("who", [{"held": 3}, {"misses": 1}])
def test_somebody_waits_and_is_answered_soon(who: dict[str, int]) -> None:
    states = run(30, **who)  # type: ignore[arg-type]
    assert states[SETTLE_MS // 1000 - 1].interval_ms == 120
    assert states[-1].interval_ms == 120 and states[-1].why == "waiting"


def test_the_wait_is_remembered_for_a_while_only() -> None:
    busy = run(10, held=1)[-1]
    quiet = run(30, busy)
    until = [state for state in quiet if state.interval_ms == 120]
    assert REMEMBER_MS / 1000 - 1 <= len(until) <= (REMEMBER_MS + SETTLE_MS) / 1000
    assert quiet[-1].interval_ms > 400


def test_a_guest_that_pings_every_few_seconds_does_not_swing_it() -> None:
    state, seen = start(0, LIMITS), set()
    for second in range(1, 120):
        held = 1 if second % 4 == 0 else 0
        state = decide(state, Sample(1000 * second, 2, 12.0, 1e6, held, 0), LIMITS)
        if second > 10:
            seen.add(state.interval_ms)
    assert seen == {120}


def test_lengthening_is_slow_and_shortening_quick() -> None:
    up = [START_MS, *(state.interval_ms for state in run(20, pause=lambda _: 100.0))]
    assert up[-1] == 1000
    assert all(later <= earlier * 1.5 for earlier, later in pairwise(up))
    down = run(4, IntervalState(1000, "pause", 0), pause=lambda _: 3.0, held=1)
    assert down[-1].interval_ms == 100 and down[-1].why == "limit"


def test_the_networks_limit_is_kept() -> None:
    limits = Limits(log_bytes_per_s=50_000_000)
    # 40 MB/s of new pages at 100 ms, half of them written again at 1 s
    last = run(60, limits=limits, pause=lambda _: 10.0, dirty=lambda interval: 60e6 * interval / (1000 + interval))[-1]
    assert last.dirty_bytes is not None
    assert last.dirty_bytes / last.interval_ms * 1000 < 1.3 * 50_000_000
    flood = run(60, limits=limits, dirty=lambda interval: 500e6 * interval / 1000)[-1]
    assert flood.interval_ms == 1000 and flood.why == "limit"


def test_narrower_limits_hold_at_once() -> None:
    state = decide(start(0, LIMITS), Sample(1, 1, 12.0, 0, 0, 0), Limits(100, 200))
    assert (state.interval_ms, state.why) == (200, "limit")


def test_without_a_checkpoint_nothing_is_known() -> None:
    state = start(0, LIMITS)
    for second in range(1, 30):
        state = decide(state, Sample(1000 * second, 0, 0.0, 0.0, 0, 0), LIMITS)
    assert state.interval_ms == START_MS


def test_a_sample_is_what_happened_between() -> None:
    before = Counters(10_000, checkpoints=40, pause_total_ms=500.0, transferred_bytes=7_000_000, held_frames=3)
    after = Counters(12_000, checkpoints=44, pause_total_ms=548.0, transferred_bytes=15_000_000, held_frames=5)
    assert sample_between(before, after, 500) == Sample(12_000, 4, 12.0, 2e6, 2, 0)
    assert sample_between(before, after, 1000).misses == 1  # the clock alone made two, and one is the edges'
    assert sample_between(after, after, 500) == Sample(12_000, 0, 0.0, 0.0, 0, 0)


def test_counters_that_begin_anew_are_no_news() -> None:
    """A new hold proxy, or a new migration, counts from zero."""
    before = Counters(10_000, checkpoints=40, pause_total_ms=500.0, transferred_bytes=7_000_000, held_frames=3)
    assert sample_between(before, Counters(11_000, 1, 9.0, 100, 0), 500) == Sample(11_000, 0, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize("limits", [(10, 100), (200, 100), (0, 0), (100, 1000, 0)])
def test_limits_that_cannot_be(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Limits(*limits)


@given(
    samples=st.lists(
        st.tuples(st.integers(0, 20), st.floats(0, 1e5), st.floats(0, 1e10), st.integers(0, 100), st.integers(0, 9)),
        max_size=40,
    ),
    low=st.integers(20, 500),
    more=st.integers(0, 3000),
    rate=st.none() | st.integers(1, 10**10),
)  # fmt: skip
def test_whatever_is_seen_the_limits_hold(
    samples: list[tuple[int, float, float, int, int]], low: int, more: int, rate: int | None
) -> None:  # fmt: skip
    limits = Limits(low, low + more, rate)
    state = start(0, limits)
    changes = [0]
    for number, seen in enumerate(samples, start=1):
        following = decide(state, Sample(500 * number, *seen), limits)
        assert low <= following.interval_ms <= low + more
        if following.interval_ms != state.interval_ms:
            assert 500 * number - changes[-1] >= SETTLE_MS
            changes.append(500 * number)
        state = following


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("held", [0, 1])
def test_it_comes_to_rest(rate: float, held: int) -> None:
    """Pauses grow with the interval (``rate``: ms of pause per ms of interval): the choice must not chase itself."""
    last = [state.interval_ms for state in run(120, pause=lambda interval: 8 + rate * interval, held=held)][-40:]
    assert len(set(last)) == 1
