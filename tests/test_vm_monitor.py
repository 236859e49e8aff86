"""VM monitoring's rules at their edges (HA-17): failure interval, I/O interval, minimum uptime, resets per window."""

from dataclasses import replace

import pytest

from ftkvm.core.ha.settings import Monitoring, vm_settings
from ftkvm.core.ha.vm_monitor import (
    MEANINGS,
    RING_FRAMES,
    Beat,
    Io,
    Judgement,
    Look,
    State,
    Watched,
    after_reset,
    judge,
)

HIGH = Monitoring(True, 30, 120, 3, 3600, 120)
IDLE = Io(10, 10, 10)
WALL = 1_700_000_000_000


class Guest:
    """A guest that is looked at; ``at`` is in milliseconds since its start."""

    def __init__(self, settings: Monitoring = HIGH, resets: tuple[int, ...] = ()) -> None:
        self.settings = settings
        self.resets = list(resets)
        self.watched: Watched | None = None
        self.io = IDLE

    def look(self, at: int, beat: Beat = Beat.SILENT, **more: object) -> Judgement:
        look = replace(Look(at, WALL + at, "qemu-1", 0, beat, self.io), **more)
        self.watched, found = judge(self.watched, look, self.settings, self.resets)
        return found

    def well_until(self, at: int) -> None:
        """It answered, and did its last I/O, at ``at``."""
        self.look(at - 1000, Beat.ANSWERED)
        self.io = replace(self.io, disk_requests=self.io.disk_requests + 1)
        self.look(at, Beat.ANSWERED)


@pytest.mark.parametrize(("sensitivity", "failure_s", "window_s"), [
    ("high", 30, 3600), ("medium", 60, 86_400), ("low", 120, 604_800)])  # fmt: skip
def test_each_sensitivity_at_its_edge(sensitivity: str, failure_s: int, window_s: int) -> None:
    cluster = {"ha.vm_monitoring": True, "ha.vm_monitoring_sensitivity": sensitivity, "das.iostatsInterval": 0}
    guest = Guest(vm_settings(cluster, {}).monitoring)
    guest.well_until(1_000_000)
    assert guest.look(1_000_000 + 1000 * failure_s - 100).state is State.WELL
    found = guest.look(1_000_000 + 1000 * failure_s)
    assert (found.state, found.reset) == (State.HANGS, True)
    now = WALL + 1_000_000 + 1000 * failure_s
    guest.resets = [now - 1000 * window_s + 1, now - 2, now - 1]
    assert guest.look(1_000_000 + 1000 * failure_s).state is State.LEFT_ALONE
    guest.resets[0] -= 1  # now it is as old as the window
    assert guest.look(1_000_000 + 1000 * failure_s).reset


def test_the_io_interval_at_its_edge() -> None:
    guest = Guest()
    guest.well_until(200_000)
    found = guest.look(319_900)
    assert (found.state, found.reset) == (State.SILENT, False)
    assert "I/O" in found.why
    assert guest.look(320_000).reset


@pytest.mark.parametrize("change", [{"disk_requests": 99}, {"sent": 99}])
def test_disk_or_network_alone_keeps_it_from_a_reset(change: dict[str, int]) -> None:
    guest = Guest()
    guest.well_until(200_000)
    guest.look(319_000)
    guest.io = replace(guest.io, **change)
    assert guest.look(320_000).state is State.SILENT
    assert guest.look(439_900).state is State.SILENT
    assert guest.look(440_000).reset


def test_frames_for_everybody_fill_a_dead_guests_queue_and_prove_nothing() -> None:
    guest = Guest()
    guest.well_until(200_000)
    guest.io = replace(guest.io, received=guest.io.received + RING_FRAMES)
    guest.look(319_000)
    assert guest.look(320_000).reset


def test_more_frames_than_the_queue_holds_were_taken_out_of_it() -> None:
    guest = Guest()
    guest.well_until(200_000)
    guest.io = replace(guest.io, received=guest.io.received + RING_FRAMES + 1)
    guest.look(319_000)
    assert guest.look(320_000).state is State.SILENT


def test_an_interval_of_zero_does_not_look_at_io() -> None:
    guest = Guest(replace(HIGH, iostats_interval_s=0))
    guest.well_until(200_000)
    guest.io = replace(guest.io, sent=99)
    assert guest.look(230_000).reset


def test_the_minimum_uptime_at_its_edge() -> None:
    guest = Guest(replace(HIGH, iostats_interval_s=0))
    guest.well_until(80_000)
    assert guest.look(119_900).state is State.SETTLING
    assert guest.look(120_000).reset


def test_a_reset_begins_the_uptime_anew() -> None:
    guest = Guest(replace(HIGH, iostats_interval_s=0))
    guest.well_until(200_000)
    assert guest.look(230_000).reset
    assert guest.watched is not None
    guest.watched = after_reset(guest.watched, 230_000)
    assert guest.look(349_900).state is State.SETTLING
    assert guest.look(350_000).reset  # it never came back: monitored all the same


def test_three_resets_and_the_fourth_hang_is_left_alone() -> None:
    guest, at = Guest(), 1_000_000
    for number in range(3):
        guest.well_until(at)
        found = guest.look(at + 120_000)
        assert (found.reset, found.resets) == (True, number)
        guest.resets.append(WALL + at + 120_000)
        assert guest.watched is not None
        guest.watched = after_reset(guest.watched, at + 120_000)
        at += 600_000
    guest.well_until(at)
    found = guest.look(at + 120_000)
    assert (found.state, found.reset, found.resets) == (State.LEFT_ALONE, False, 3)
    assert "3 resets" in found.why
    window_over = guest.resets[0] - WALL + 3_600_000
    assert not guest.look(window_over - 1).reset
    assert guest.look(window_over).reset


def test_a_reset_dated_in_the_future_counts() -> None:
    guest = Guest(resets=(WALL * 2, WALL * 2, WALL * 2))
    guest.well_until(200_000)
    assert guest.look(320_000).state is State.LEFT_ALONE


def test_a_guest_that_never_answered_is_not_monitored() -> None:
    guest = Guest()
    for at in range(0, 10_000_000, 1_000_000):
        found = guest.look(at)
        assert (found.state, found.reset) == (State.NO_AGENT, False)
    assert "channel" in guest.look(10_000_000, Beat.NO_CHANNEL).why


def test_an_agents_new_process_does_not_forget_that_it_answered() -> None:
    guest = Guest(replace(HIGH, iostats_interval_s=0))
    guest.look(500_000, answered_before=True)
    assert guest.look(529_900, answered_before=True).state is State.WELL  # and its silence begins with the process
    assert guest.look(530_000, answered_before=True).reset


@pytest.mark.parametrize("obstacle", ["it is paused", "migrate is under way", "this host's agent stood still"])
def test_what_was_not_watched_is_no_silence(obstacle: str) -> None:
    guest = Guest()
    guest.well_until(200_000)
    found = guest.look(320_000, obstacle=obstacle)
    assert (found.state, found.why, found.reset) == (State.NOT_JUDGED, obstacle, False)
    assert guest.look(439_900).state is not State.HANGS
    assert guest.look(440_000).reset


def test_time_in_which_nothing_could_be_asked_is_taken_out() -> None:
    guest = Guest(replace(HIGH, iostats_interval_s=0))
    guest.well_until(200_000)
    guest.look(215_000)
    guest.look(245_000, Beat.UNKNOWN)
    assert guest.look(259_900).state is State.WELL
    assert guest.look(260_000).reset


def test_io_that_is_not_known_keeps_it_from_a_reset() -> None:
    guest = Guest()
    guest.well_until(200_000)
    for at in (260_000, 320_000, 900_000):
        assert guest.look(at, io=None).state is State.SILENT
    guest.look(901_000)
    assert guest.look(1_020_900).reset


def test_another_qemu_is_another_life() -> None:
    guest = Guest()
    guest.well_until(200_000)
    found = guest.look(320_000, life="qemu-2", born_ms=100_000)
    assert found.state is State.NO_AGENT


def test_off_is_off_and_turning_it_on_begins_anew() -> None:
    guest = Guest(replace(HIGH, enabled=False, iostats_interval_s=0))
    guest.well_until(200_000)
    assert guest.look(900_000).state is State.OFF
    guest.settings = replace(HIGH, iostats_interval_s=0)
    guest.look(901_000, Beat.ANSWERED)
    assert guest.look(930_900).state is State.WELL
    assert guest.look(931_000).reset


def test_a_vm_that_ha_never_restarts_is_monitored_all_the_same() -> None:
    cluster = {"ha.vm_monitoring": True}
    assert vm_settings(cluster, {"ha.restart_priority": "disabled"}).monitoring.enabled


def test_a_vms_own_settings_come_first() -> None:
    own = vm_settings({"ha.vm_monitoring": True}, {"ha.vm_monitoring": False}).monitoring
    assert not own.enabled


def test_every_state_has_a_meaning() -> None:
    assert set(MEANINGS) == set(State)
