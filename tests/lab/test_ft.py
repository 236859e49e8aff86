"""Issue 2's faults on real hosts, a short round: one VM, one client connection, one ledger through all of them.

Figures go to build/lab-ft.json and are never judged here: only what must hold is, with generous bounds on time.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ftkvm.lab import soak, trials
from ftkvm.lab.stage import Stage
from ftkvm.lab.trials import Round

from .conftest import SEED

pytestmark = pytest.mark.lab

REPORT = Path("build/lab-ft.json")
ALWAYS = ("crash-primary", "freeze-primary", "cut-ft-and-management", "kill-primary")
"""Kinds every run has; the rest comes by lot, each within a few seeds."""

DRAWN = random.Random(SEED).sample(sorted(set(trials.FAULTS) - set(ALWAYS)), 4)
TIMED = ["crash-primary"] * 2


@pytest.fixture(scope="module", autouse=True)
def figures(protected_vm: Round) -> Iterator[None]:
    """What was seen, into a file, whatever fails."""
    yield
    REPORT.parent.mkdir(exist_ok=True)
    outcomes = [asdict(each) for each in protected_vm.outcomes]
    report = {"seed": SEED, "machine": soak.machine(), "outcomes": outcomes}
    REPORT.write_text(json.dumps({**report, "by_fault": soak.summary(protected_vm.outcomes)}, indent=2) + "\n")


@pytest.mark.parametrize("fault", [*ALWAYS, *DRAWN, *TIMED])
def test_fault(protected_vm: Round, fault: str) -> None:
    """No acknowledged record lost or doubled, no gap in the counter, one host that speaks; protected again."""
    outcome = protected_vm.run(fault)
    assert not outcome.wrong
    assert trials.only_one_winner(protected_vm, outcome) == []
    assert outcome.gap_ms < 60_000


def test_nobody_goes_live_while_the_datastore_hangs(protected_vm: Round) -> None:
    """Both alive and cut from each other, the datastore hung on both: nobody, then exactly one."""
    outcome = trials.hung_on_both(protected_vm)
    assert not outcome.wrong


def test_every_acknowledged_record_is_on_the_disk(stage: Stage, protected_vm: Round) -> None:
    """FT turned off, the VM stopped: each record once, every image clean, the chain back at the user's disk."""
    clients = protected_vm.clients
    clients.records.close()
    assert clients.broken() == []
    proof = soak.prove(stage, protected_vm.guest, list(clients.records.acknowledged))
    assert (proof["lost_records"], proof["doubled_records"], proof["wrong_records"]) == (0, 0, 0)
    assert proof["acknowledged_records"] > 100
    assert proof["images_at_the_end"] == 1


def test_a_large_sparse_disk_takes_no_longer(stage: Stage) -> None:
    """Protecting 100 GB copies nothing of the 100 GB."""
    guest = soak.make_vm(stage, "ci100", "100G", print)
    try:
        took = soak.protect(stage, guest.name)
        print(took)
        assert took["command_s"] < 60
    finally:
        trials.destroy(stage, guest.name)
