"""The lab's watchdog: when it fires, and what it takes for a pet."""

import pytest

from ftkvm.lab.devices import Watchdog


def petted(*words: tuple[float, str]) -> Watchdog:
    made = Watchdog()
    for at_s, text in words:
        made.said(text, at_s)
    return made


@pytest.mark.parametrize(
    ("said", "at_s", "fires"),
    [
        ([], 1e9, False),
        ([(0, "pet 5000\n")], 4.999, False),
        ([(0, "pet 5000\n")], 5.0, True),
        ([(0, "pet 5000\n"), (4, "pet 5000\n")], 8.999, False),
        ([(0, "pet 5000\n"), (4, "pet 5000\n")], 9.0, True),
        ([(0, "pet 5000\n"), (1, "disarm\n")], 1e9, False),
        ([(0, "pet 5000\n"), (4, "pet x\n")], 5.0, True),
        ([(0, "pet 5000\n"), (4, "")], 5.0, True),
    ],
)
def test_it_fires_when_it_is_not_petted(said: list[tuple[float, str]], at_s: float, fires: bool) -> None:
    assert petted(*said).expired(at_s) is fires


def test_stopped_with_its_machine_it_begins_anew() -> None:
    watchdog = petted((0, "pet 5000\n"))
    watchdog.stand_still(60)
    assert not watchdog.expired(64.9)
    assert watchdog.expired(65)
