"""When a second copy of an emulated guest is worth making: once it has booted, as far as its host can tell."""

from itertools import chain, repeat
from pathlib import Path

import pytest

from ftkvm.adapters.guest_figures import starved_ms
from ftkvm.agent.fitness import await_booted, boot_left_s, came_running
from ftkvm.catalogue import FtkvmError


@pytest.mark.parametrize(("reset_ms", "started_ms", "starved", "left_s"), [
    (None, None, 0, 0.0),  # it came here running, and was not reset since
    (None, 4_000, 0, 11.0),
    (None, 15_000, 0, 0.0),
    (None, 90_000, 0, 0.0),
    (2_000, 90_000, 0, 13.0),  # it rebooted: the later of the two counts
    (90_000, 2_000, 0, 13.0),
    (2_000, None, 0, 13.0),
    (None, 20_000, 12_000, 7.0),  # of 20 s it had 8
    (None, 58_000, 50_000, 2.0),  # bounded: it may be busy with other things by now
    (None, 60_000, 59_000, 0.0),
])  # fmt: skip
def test_what_is_left_of_a_boot(reset_ms: int | None, started_ms: int | None, starved: int, left_s: float) -> None:
    assert boot_left_s(reset_ms, started_ms, starved) == left_s


def test_a_boot_after_a_reset_takes_longer_on_a_busy_machine() -> None:
    """Seen: a copy made 15 s after a reboot, at load 12, was reset after the failover."""
    assert boot_left_s(20_000, 900_000, 700_000, starved_since_reset_ms=12_000) == 7.0
    assert boot_left_s(20_000, 900_000, 700_000, starved_since_reset_ms=0) == 0.0
    assert boot_left_s(60_000, 900_000, 700_000, starved_since_reset_ms=59_000) == 0.0


def test_a_guest_that_came_running_is_not_taken_to_boot(tmp_path: Path) -> None:
    for pid, line in ((1, b"qemu\0-name\0guest=vm1\0"), (2, b"qemu\0-incoming\0defer\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(line)
    assert [came_running(pid, tmp_path) for pid in (1, 2, 3)] == [False, True, False]


def test_the_most_starved_thread_counts(tmp_path: Path) -> None:
    for thread, line in (("7", "9000000 1500000 3"), ("8", "1 250000000000 4"), ("9", "")):
        (tmp_path / "7/task" / thread).mkdir(parents=True)
        (tmp_path / "7/task" / thread / "schedstat").write_text(line)
    assert (starved_ms(7, tmp_path), starved_ms(8, tmp_path)) == (250_000, 0)


def test_it_is_waited_and_said_why() -> None:
    left, told = iter([2.4, 0.001, 0.0]), list[str]()
    await_booted("vm1", lambda: next(left), told.append, look_s=0.001)
    assert told == ["VM vm1 may still boot: its second copy is made in 3 s",
                    "VM vm1 may still boot: its second copy is made in 1 s"]  # fmt: skip
    assert list(left) == []


def test_nothing_is_said_of_a_guest_that_runs_for_long() -> None:
    told: list[str] = []
    await_booted("vm1", lambda: 0.0, told.append)
    assert told == []


def test_a_guest_that_is_reset_again_and_again_is_not_waited_for_without_end() -> None:
    left = chain([1.0, 15.0], repeat(14.9))
    with pytest.raises(FtkvmError) as caught:
        await_booted("vm1", lambda: next(left), lambda _text: None, look_s=0.001, most_s=0.05)
    assert (caught.value.code, caught.value.params["seconds"]) == ("FTKVM-155", 0.05)
