"""The operator's wishes as documents, and the sums of a tried failover."""

import json
import time
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.figures import failover_times
from ftkvm.agent.operations import Operations
from ftkvm.agent.records import OperationDoc, PairStore
from ftkvm.agent.vms import VmRecord
from ftkvm.agent.workers import Workers
from ftkvm.ports import Json, Progress

UUID = "5d0c2a8e-30a1-4a54-9a3e-7f3f4b1f0001"


@pytest.fixture
def papers(tmp_path: Path) -> DirectoryDatastore:
    datastore = DirectoryDatastore(tmp_path, "host1")
    datastore.initialise()
    ft = {"enabled": True, "settings": {"ft.compare_timeout_ms": 900}}
    vm_file.create(datastore, UUID, {"uuid": UUID, "name": "vm1", "ft": ft})
    return datastore


def record(papers: DirectoryDatastore) -> VmRecord:
    return VmRecord.from_json(vm_file.read(papers, UUID) or {})


def test_disabled_keeps_the_place_and_the_settings(papers: DirectoryDatastore) -> None:
    PairStore(papers, UUID).set_ft_off({"secondary": "host2"})
    found = record(papers)
    assert (found.ft_enabled, found.ft_disabled, found.ft_place) == (False, True, "host2")
    assert found.ft_settings == {"ft.compare_timeout_ms": 900}


def test_an_enable_that_is_undone_leaves_it_disabled(papers: DirectoryDatastore) -> None:
    store = PairStore(papers, UUID)
    store.set_ft_off({"secondary": "host2"})
    store.set_ft_enabled(True)
    assert (record(papers).ft_enabled, record(papers).ft_disabled) == (True, False)
    store.set_ft_enabled(False)
    assert record(papers).ft_place == "host2"


def test_turned_off_forgets_what_disable_kept(papers: DirectoryDatastore) -> None:
    store = PairStore(papers, UUID)
    store.set_ft_off({"secondary": None})
    assert record(papers).ft_disabled
    store.set_ft_off(None)
    assert not record(papers).ft_disabled


def test_the_journal_carries_what_disable_keeps() -> None:
    journal = OperationDoc("turn-off", "host1", "boot", 3, disabled={"secondary": "host2"})
    assert OperationDoc.from_json(json.loads(json.dumps(journal.to_json()))) == journal
    old = {key: value for key, value in journal.to_json().items() if key != "disabled"}
    assert OperationDoc.from_json(old).disabled is None


def test_the_parts_of_a_failover_are_on_our_clock() -> None:
    told = {"at": 1003.1, "promote_ms": 80.0, "arbitration_ms": 20.0}
    times = failover_times(told, killed_at=1000.0, ahead_s=3.0)
    assert times == {"measured_gap_ms": 180.0, "detection_ms": 100.0, "arbitration_ms": 20.0, "promote_ms": 80.0}


def test_a_failover_that_nobody_recorded_has_no_times() -> None:
    assert set(failover_times({}, 1000.0, 0.0).values()) == {None}


def test_an_operation_keeps_what_it_found_out(tmp_path: Path) -> None:
    operations = Operations("host1", Workers(), tmp_path)

    def work(progress: Progress) -> Json:
        progress(1, 1, "measured")
        return {"measured_gap_ms": 180.0}

    begun = operations.start("test-failover", "vm1", UUID, work)
    deadline = time.monotonic() + 5.0
    while operations.get(begun.id).state == "running":
        assert time.monotonic() < deadline, operations.get(begun.id)
        time.sleep(0.01)
    assert operations.get(begun.id).result == {"measured_gap_ms": 180.0}
    again = Operations("host1", Workers(), tmp_path)
    again.load()
    assert again.get(begun.id).result == {"measured_gap_ms": 180.0}
