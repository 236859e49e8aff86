"""`ftkvm history`: what it takes out of the hosts' histories, and what damage does to it."""

from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.failovers import read
from ftkvm.agent.figures import FailoverFigures
from ftkvm.cli.history import row


def stored(tmp_path: Path) -> DirectoryDatastore:
    datastore = DirectoryDatastore(tmp_path)
    datastore.initialise()
    return datastore


def failover(vm: str, at: float, epoch: int, host: str) -> dict[str, object]:
    return {"event": "failover", "vm": vm, "at": at, "epoch": epoch, "host": host, "reason": "peer-silent",
            "side": "secondary", "arbitration_ms": 5.1, "promote_ms": 17.0, "since_checkpoint_ms": 310.0,
            "uuid": f"uuid of {vm}", "detection_ms": 301, "gap_ms": 318.0}  # fmt: skip


def test_failovers_of_one_vm_by_time_from_all_hosts(tmp_path: Path) -> None:
    datastore = stored(tmp_path)
    datastore.append_line("history/host2.jsonl", failover("vm1", 200.0, 2, "host2"))
    datastore.append_line("history/host1.jsonl", failover("vm1", 300.0, 3, "host1"))
    datastore.append_line("history/host1.1.jsonl", failover("vm1", 100.0, 1, "host1"))
    datastore.append_line("history/host1.jsonl", failover("vm2", 250.0, 9, "host1"))
    datastore.append_line("history/host1.jsonl", {"event": "restart", "vm": "vm1", "at": 260.0})
    document = read(datastore, "vm1", "uuid of vm1")
    assert [(entry["epoch"], entry["host"]) for entry in document["failovers"]] == [
        (1, "host1"), (2, "host2"), (3, "host1")]  # fmt: skip
    assert document["unreadable"] == []


def test_no_history_yet(tmp_path: Path) -> None:
    assert read(stored(tmp_path), "vm1", "u") == {"vm": "vm1", "uuid": "u", "failovers": [], "unreadable": []}


def test_a_vm_is_known_by_its_uuid_whatever_it_was_called(tmp_path: Path) -> None:
    """Another VM may have had its name before; what an older version wrote has the name only."""
    datastore = stored(tmp_path)
    old = {key: value for key, value in failover("vm1", 50.0, 1, "host1").items() if key != "uuid"}
    datastore.append_line("history/host1.jsonl", old)
    datastore.append_line("history/host1.jsonl", {**failover("vm1", 100.0, 2, "host1"), "uuid": "another"})
    datastore.append_line("history/host1.jsonl", {**failover("renamed", 200.0, 3, "host1"), "uuid": "uuid of vm1"})
    assert [entry["epoch"] for entry in read(datastore, "vm1", "uuid of vm1")["failovers"]] == [1, 3]


def test_a_torn_line_and_a_file_of_bytes_hide_nothing_else(tmp_path: Path) -> None:
    datastore = stored(tmp_path)
    datastore.append_line("history/host1.jsonl", failover("vm1", 100.0, 1, "host1"))
    with (tmp_path / ".ftkvm/history/host1.jsonl").open("a") as file:
        file.write('{"event":"failover","vm":"vm1","at"\n[]\n')
    datastore.append_line("history/host1.jsonl", failover("vm1", 200.0, 2, "host1"))
    (tmp_path / ".ftkvm/history/host2.jsonl").write_bytes(b"\xff\xfe")
    document = read(datastore, "vm1", "uuid of vm1")
    assert [entry["epoch"] for entry in document["failovers"]] == [1, 2]
    assert sorted(text.split(":")[0] for text in document["unreadable"]) == [
        "history/host1.jsonl", "history/host2.jsonl"]  # fmt: skip
    assert "2 damaged lines" in " ".join(document["unreadable"])


def test_a_line_of_the_table() -> None:
    told = (7, "peer-silent", "host3", "secondary", 301, 5.1, 17.0, 318.0, 310.0)
    assert row(failover("vm1", 100.0, 7, "host3"))[1:] == told
    assert row({"event": "failover", "vm": "vm1"}) == (None,) * 10


def test_the_gap_is_what_passed_before_and_after_it_was_noticed() -> None:
    figures = FailoverFigures(7, "peer-silent", 0.0, detection_ms=300)
    assert figures.to_json("host2", "u")["gap_ms"] is None
    figures.live("secondary")
    record = figures.to_json("host2", "u")
    assert (record["uuid"], record["detection_ms"]) == ("u", 300)
    assert record["gap_ms"] == pytest.approx(300 + record["promote_ms"])
    unknown = FailoverFigures(7, "replication-error", 0.0)
    unknown.live("primary")
    assert unknown.to_json("host2", "u")["gap_ms"] is None
