"""`ftkvm history`: what it takes out of the hosts' histories, and what damage does to it."""

from pathlib import Path

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.failovers import read
from ftkvm.cli.history import row


def stored(tmp_path: Path) -> DirectoryDatastore:
    datastore = DirectoryDatastore(tmp_path)
    datastore.initialise()
    return datastore


def failover(vm: str, at: float, epoch: int, host: str) -> dict[str, object]:
    return {"event": "failover", "vm": vm, "at": at, "epoch": epoch, "host": host, "reason": "peer-silent",
            "side": "secondary", "arbitration_ms": 5.1, "promote_ms": 17.0, "since_checkpoint_ms": 310.0}  # fmt: skip


def test_failovers_of_one_vm_by_time_from_all_hosts(tmp_path: Path) -> None:
    datastore = stored(tmp_path)
    datastore.append_line("history/host2.jsonl", failover("vm1", 200.0, 2, "host2"))
    datastore.append_line("history/host1.jsonl", failover("vm1", 300.0, 3, "host1"))
    datastore.append_line("history/host1.1.jsonl", failover("vm1", 100.0, 1, "host1"))
    datastore.append_line("history/host1.jsonl", failover("vm2", 250.0, 9, "host1"))
    datastore.append_line("history/host1.jsonl", {"event": "restart", "vm": "vm1", "at": 260.0})
    document = read(datastore, "vm1")
    assert [(entry["epoch"], entry["host"]) for entry in document["failovers"]] == [
        (1, "host1"), (2, "host2"), (3, "host1")]  # fmt: skip
    assert document["unreadable"] == []


def test_no_history_yet(tmp_path: Path) -> None:
    assert read(stored(tmp_path), "vm1") == {"vm": "vm1", "failovers": [], "unreadable": []}


def test_a_torn_line_and_a_file_of_bytes_hide_nothing_else(tmp_path: Path) -> None:
    datastore = stored(tmp_path)
    datastore.append_line("history/host1.jsonl", failover("vm1", 100.0, 1, "host1"))
    with (tmp_path / ".ftkvm/history/host1.jsonl").open("a") as file:
        file.write('{"event":"failover","vm":"vm1","at"\n[]\n')
    datastore.append_line("history/host1.jsonl", failover("vm1", 200.0, 2, "host1"))
    (tmp_path / ".ftkvm/history/host2.jsonl").write_bytes(b"\xff\xfe")
    document = read(datastore, "vm1")
    assert [entry["epoch"] for entry in document["failovers"]] == [1, 2]
    assert sorted(text.split(":")[0] for text in document["unreadable"]) == [
        "history/host1.jsonl", "history/host2.jsonl"]  # fmt: skip
    assert "2 damaged lines" in " ".join(document["unreadable"])


def test_a_line_of_the_table() -> None:
    assert row(failover("vm1", 100.0, 7, "host3"))[1:] == (7, "peer-silent", "host3", "secondary", 5.1, 17.0, 310.0)
    assert row({"event": "failover", "vm": "vm1"}) == (None,) * 8
