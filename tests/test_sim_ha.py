"""The scenario library: what it names, and the scenarios that are sums only."""

from pathlib import Path

import pytest

from ftkvm.sim.ha.scenario import load, play

LIBRARY = Path(__file__).parent.parent / "scenarios" / "ha"
ALL = sorted(path for path in LIBRARY.iterdir() if path.is_dir())
SUMS = [path for path in ALL if "kind = " in (path / "cluster.toml").read_text()]
IDS = [f"HA-{number:02}" for number in (*range(1, 21), 22, 25, 26, 27)]


def test_the_library_is_large() -> None:
    assert len(ALL) >= 80


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_each_scenario_is_complete(path: Path) -> None:
    scenario = load(path)
    assert scenario.script and scenario.expected
    assert "HA-" in (path / "README.md").read_text()
    assert not any(line.startswith("VIOLATION") for line in scenario.expected)


@pytest.mark.parametrize("ha_id", IDS)
def test_each_requirement_is_named(ha_id: str) -> None:
    assert any(ha_id in (path / "README.md").read_text() for path in ALL)


@pytest.mark.parametrize("path", SUMS, ids=lambda path: path.name)
def test_the_log_is_as_expected(path: Path) -> None:
    scenario = load(path)
    assert play(scenario) == list(scenario.expected)
