"""Beats over real sockets: three services on loopback addresses, two networks."""

import time
from collections.abc import Callable, Iterator

import pytest

from ftkvm.agent.ha.beats import BeatBody, BeatPlan, BeatService
from ftkvm.agent.ha.guard import now_ms
from ftkvm.keeper.keys import BeatKeys

KEY = bytes(range(32))
PORT = 27445
HOSTS = ("one", "two", "three")
PLAN = BeatPlan({h: {"management": f"127.61.0.{n}", "migration": f"127.61.1.{n}"} for n, h in enumerate(HOSTS, 1)})


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def services() -> Iterator[dict[str, BeatService]]:
    said: dict[str, BeatBody | None] = dict.fromkeys(HOSTS, BeatBody("boot", 0, None))
    made = {
        h: BeatService(h, BeatKeys(0, KEY), PORT, lambda: PLAN, lambda h=h: said[h], lambda _h: None) for h in HOSTS
    }  # type: ignore[misc]
    for service in made.values():
        service.start()
    yield made
    for service in made.values():
        service.stop()


def test_all_hear_all_on_both_networks_and_one_that_ends_falls_silent(services: dict[str, BeatService]) -> None:
    def heard(host: str, other: str, age_ms: int) -> bool:
        beats = services[host].table.seen().get(other)
        networks = beats.networks if beats is not None else {}
        return len(networks) == 2 and all(now_ms() - at < age_ms for at in networks.values())

    pairs = [(a, b) for a in HOSTS for b in HOSTS if a != b]
    assert within(5.0, lambda: all(heard(a, b, 1500) for a, b in pairs))
    services["three"].stop()
    assert within(4.0, lambda: not heard("one", "three", 1500) and not heard("two", "three", 1500))
    assert heard("one", "two", 1500)
