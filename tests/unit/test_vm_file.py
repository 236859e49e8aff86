"""A VM's record is changed by several hosts: no change is lost, no late one registers a VM again."""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent import vm_file
from ftkvm.agent.power import write_power
from ftkvm.agent.records import PairStore
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import CorruptFile, Json

FIRST: Json = {"uuid": "u1", "name": "vm1", "ft": {"enabled": False}, "ha": {}}


def directory(root: Path, host: str = "host1") -> DirectoryDatastore:
    made = DirectoryDatastore(root, host)
    made.initialise()
    return made


@pytest.fixture(params=["numbered", "older form"])
def datastore(tmp_path: Path, request: pytest.FixtureRequest) -> DirectoryDatastore:
    made = directory(tmp_path)
    if request.param == "numbered":
        vm_file.create(made, "u1", FIRST)
    else:
        made.replace("vms/u1/vm.json", FIRST)
    return made


class Between(DirectoryDatastore):
    """Somebody else does ``then`` once, right before this writer creates a file."""

    def __init__(self, root: Path, then: Callable[[], object]) -> None:
        super().__init__(root, "host2")
        self._then: list[Callable[[], object]] = [then]

    def create_once(self, path: str, document: Json) -> Json:
        while self._then:
            self._then.pop()()
        return super().create_once(path, document)


class After(DirectoryDatastore):
    """Somebody else does ``then`` once, right after this writer has created a file."""

    def __init__(self, root: Path, then: Callable[[], object]) -> None:
        super().__init__(root, "host2")
        self._then: list[Callable[[], object]] = [then]

    def create_once(self, path: str, document: Json) -> Json:
        there = super().create_once(path, document)
        while self._then:
            self._then.pop()()
        return there


def note(key: str, value: object) -> Callable[[Json], Json]:
    return lambda document: {**document, "notes": {**document.get("notes", {}), key: value}}


def note_many(root: str, writer: int, count: int, gate: Any) -> None:
    """A process of its own: an agent on another host."""
    mine = DirectoryDatastore(Path(root), f"host{writer}")
    gate.wait(20)
    for number in range(count):
        assert vm_file.change(mine, "u1", note(f"{writer}.{number}", number))


def test_what_was_read_is_what_was_written(datastore: DirectoryDatastore) -> None:
    assert vm_file.read(datastore, "u1") == {**FIRST, "format": 1}
    assert vm_file.read(datastore, "u2") is None
    assert vm_file.create(datastore, "u1", {"uuid": "u1", "name": "other"})["name"] == "vm1"


def test_four_processes_lose_nothing(datastore: DirectoryDatastore) -> None:
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(4)
    processes = [
        spawn.Process(target=note_many, args=(str(datastore.root), writer, 12, gate), daemon=True)
        for writer in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    notes = (vm_file.read(datastore, "u1") or {})["notes"]
    assert notes == {f"{writer}.{number}": number for writer in range(4) for number in range(12)}


def test_different_writers_at_the_same_moment_keep_each_others_words(datastore: DirectoryDatastore) -> None:
    """Power (HA's host), FT (the primary's host) and settings (any host) are parts of one record."""
    for _round in range(10):
        vm_file.change(datastore, "u1", lambda _document: dict(FIRST))
        gate = threading.Barrier(3)

        def at_once(work: Callable[[], object], gate: threading.Barrier = gate) -> None:
            gate.wait(10)
            work()

        works: list[Callable[[], object]] = [
            lambda: write_power(directory(datastore.root, "host1"), "u1", on=True),
            lambda: PairStore(directory(datastore.root, "host2"), "u1").set_ft_enabled(True),
            lambda: vm_file.change(directory(datastore.root, "host3"), "u1", lambda doc: {**doc, "ha": {"a": 1}}),
        ]
        threads = [threading.Thread(target=at_once, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        found = vm_file.read(datastore, "u1") or {}
        assert (found["power"], found["ft"]["enabled"], found["ha"]) == ("on", True, {"a": 1})


def test_who_comes_second_is_told_and_changes_nothing(datastore: DirectoryDatastore) -> None:
    before = vm_file.read_versioned(datastore, "u1")
    assert before is not None
    assert vm_file.swap(datastore, "u1", before, {**FIRST, "power": "on"})
    assert not PairStore(datastore, "u1").set_settings(before, {}, {"ha.restart_priority": "high"})
    assert vm_file.read(datastore, "u1") == {**FIRST, "power": "on", "format": 1}


def test_a_change_is_made_again_from_what_the_other_wrote(datastore: DirectoryDatastore) -> None:
    other = Between(datastore.root, lambda: PairStore(datastore, "u1").set_ft_off({"secondary": "host3"}))
    write_power(other, "u1", on=False)
    found = vm_file.read(datastore, "u1") or {}
    assert (found["power"], found["ft"]["disabled"]) == ("off", {"secondary": "host3"})


def test_nothing_new_makes_no_new_version(datastore: DirectoryDatastore) -> None:
    write_power(datastore, "u1", on=True)
    path = vm_file.newest_path(datastore, "u1")
    write_power(datastore, "u1", on=True)
    assert vm_file.newest_path(datastore, "u1") == path


@pytest.mark.parametrize("moment", [Between, After])
def test_a_late_change_does_not_register_a_vm_again(
    datastore: DirectoryDatastore, moment: type[Between | After]
) -> None:
    late = moment(datastore.root, lambda: vm_file.forget(datastore, "u1"))
    with pytest.raises(FtkvmError) as gone:
        PairStore(late, "u1").set_ft_enabled(True)
    assert gone.value.code == "FTKVM-101"
    assert vm_file.read(datastore, "u1") is None
    assert datastore.list("vms/u1/record") == []


def test_a_change_that_comes_while_a_vm_leaves_is_swept_up(datastore: DirectoryDatastore) -> None:
    class Leaving(DirectoryDatastore):
        """Another host's change arrives after the look at the versions."""

        changes = 1

        def list(self, path: str) -> list[str]:
            found = super().list(path)
            if self.changes:
                self.changes -= 1
                write_power(datastore, "u1", on=True)
            return found

    write_power(datastore, "u1", on=False)
    vm_file.forget(Leaving(datastore.root, "host2"), "u1")
    assert vm_file.read(datastore, "u1") is None


def test_one_who_is_never_first_is_refused_with_a_message(datastore: DirectoryDatastore) -> None:
    class Unlucky(DirectoryDatastore):
        """Somebody else is always faster."""

        def create_once(self, path: str, document: Json) -> Json:
            write_power(datastore, "u1", on=(vm_file.read(datastore, "u1") or {}).get("power") != "on")
            return super().create_once(path, document)

    with pytest.raises(FtkvmError) as refused:
        PairStore(Unlucky(datastore.root, "host2"), "u1").set_ft_enabled(True)
    assert refused.value.code == "FTKVM-260"
    assert not (vm_file.read(datastore, "u1") or {})["ft"]["enabled"]


def test_a_damaged_newest_version_stops_every_change(datastore: DirectoryDatastore) -> None:
    write_power(datastore, "u1", on=True)
    path = vm_file.newest_path(datastore, "u1")
    datastore.replace_text(path, '{"format": 2}')
    for attempt in (
        lambda: vm_file.read(datastore, "u1"),
        lambda: write_power(datastore, "u1", on=False),
        lambda: PairStore(datastore, "u1").set_ft_off(None),
    ):
        with pytest.raises(CorruptFile):
            attempt()
    assert vm_file.newest_path(datastore, "u1") == path


def test_the_older_file_is_never_written_and_no_more_read(tmp_path: Path) -> None:
    made = directory(tmp_path)
    made.replace("vms/u1/vm.json", FIRST)
    write_power(made, "u1", on=True)
    assert made.read_json("vms/u1/vm.json") == {**FIRST, "format": 1}
    made.replace("vms/u1/vm.json", {**FIRST, "power": "off"})
    assert (vm_file.read(made, "u1") or {})["power"] == "on"
