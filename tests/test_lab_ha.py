"""What the HA trials make of what they saw: needs no lab."""

import pytest

from ftkvm.lab.ha_ground import HaOutcome, late_or_disordered
from ftkvm.lab.ha_watch import Sighting, note

VMS = {"a": "high", "b": "medium", "c": "low"}


@pytest.mark.parametrize(
    ("commanded", "wrong"),
    [
        ({"a": 16.0, "b": 16.5, "c": 17.0}, []),
        ({"a": 16.0, "b": 16.0, "c": 16.0}, []),
        ({"a": 16.0, "b": 16.5, "c": 20.1}, ["c was commanded"]),
        ({"a": 16.6, "b": 16.5, "c": 17.0}, ["out of order"]),
        ({"a": 16.0, "b": 17.5, "c": 17.0}, ["out of order"]),
        ({"a": 16.0, "b": 16.5}, ["the history has"]),
    ],
)
def test_restarts_are_judged_by_time_and_order(commanded: dict[str, float], wrong: list[str]) -> None:
    outcome = HaOutcome("crash", "host51", "host52", VMS, commanded_s=commanded)
    found = late_or_disordered(outcome, 20.0)
    assert len(found) == len(wrong)
    assert all(text.startswith(start) for text, start in zip(found, wrong, strict=True))


def test_a_start_no_history_tells_of_counts_when_it_was_taken() -> None:
    outcome = HaOutcome("crash", "host51", "host52", {"a": "high"}, claimed_s={"a": 21.0})
    assert len(late_or_disordered(outcome, 20.0)) == 2


def test_a_qemu_that_was_gone_for_a_while_is_another_one() -> None:
    seen: list[Sighting] = []
    for host, at in (("host51", 1.0), ("host51", 2.0), ("host52", 2.5), ("host51", 9.0)):
        note(seen, host, at, 2.0)
    assert seen == [Sighting("host51", 1.0, 2.0), Sighting("host52", 2.5, 2.5), Sighting("host51", 9.0, 9.0)]
