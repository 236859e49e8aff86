"""The table of states: complete, shown rightly, and its document up to date."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from ftkvm.core.facts import (
    FtSettings,
    Observation,
    Operation,
    OperationPhase,
    PairRecord,
    QemuState,
    Winner,
    WinnerAbsent,
)
from ftkvm.core.reasons import Reason
from ftkvm.core.states import STATES, FtReason, FtState, view

ROOT = Path(__file__).parent.parent
PRIMARY = Observation(
    now_ms=0,
    me="a",
    boot_id="x",
    record=PairRecord(1, "a", "b"),
    winner=WinnerAbsent(),
    qemu=QemuState.PRIMARY,
    qemu_epoch=1,
    checkpoint_age_ms=100,
)


def _shown(obs: Observation, disabled: bool = False) -> str:
    return view(obs, FtSettings(), disabled=disabled).shown_as


def test_every_state_is_shown() -> None:
    alone = replace(PRIMARY, qemu=QemuState.PLAIN, winner=Winner("a", Reason.COLO_EXIT))
    protecting = replace(alone, operation=Operation("protect", OperationPhase.PREPARING))
    shown = {
        _shown(PRIMARY): "Protected",
        _shown(alone): "Not protected: Need secondary VM",
        _shown(protecting): "Not protected: Starting",
        _shown(PRIMARY, disabled=True): "Not protected: Disabled",
        _shown(replace(PRIMARY, qemu=QemuState.ABSENT)): "Not protected: VM not running",
        _shown(replace(PRIMARY, ft_enabled=False)): "off",
    }
    assert all(seen == expected for seen, expected in shown.items())
    assert set(shown) == {row.shown_as for row in STATES}


def test_a_pair_in_trouble_is_not_called_protected() -> None:
    assert _shown(replace(PRIMARY, colo_exit_age_ms=0)) != "Protected"
    assert _shown(replace(PRIMARY, checkpoint_age_ms=10_000)) != "Protected"


def test_the_table_has_each_combination_once() -> None:
    assert len({(row.state, row.reason) for row in STATES}) == len(STATES)
    assert {row.state for row in STATES} == set(FtState)
    assert {row.reason for row in STATES} == set(FtReason)


def test_the_document_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "gen.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
