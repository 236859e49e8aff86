"""Checkpoints counted from QEMU's STOP and RESUME events."""

from ftkvm.agent.figures import CheckpointFigures


def at(seconds: float) -> dict[str, int]:
    return {"seconds": int(seconds), "microseconds": round(seconds % 1 * 1e6)}


def test_a_secondarys_first_resume_is_a_beginning() -> None:
    """It has no STOP before it; a copy that took long to make is young all the same."""
    figures = CheckpointFigures()
    figures.note("RESUME", at(100.0))
    assert figures.last_resume > 0
    assert (figures.count, list(figures.pauses_ms)) == (0, [])


def test_pauses_and_periods() -> None:
    figures = CheckpointFigures()
    for second in (100.0, 100.5):
        figures.note("STOP", at(second))
        figures.note("RESUME", at(second + 0.04))
    assert figures.count == 2
    assert [round(each) for each in figures.pauses_ms] == [40, 40]
    assert [round(each) for each in figures.periods_ms] == [500]


def test_the_lockstep_interval_is_of_the_last_few_checkpoints() -> None:
    """A secondary that has become slow a moment ago is seen now (FT-14)."""
    figures = CheckpointFigures()
    figures.periods_ms.extend([500.0] * 90 + [2000.0] * 10)
    assert figures.summary()["lockstep_interval_s"] == 2.0
