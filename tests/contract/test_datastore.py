"""The contract of ports.Datastore, on a real directory, and on real small, read-only and dead file systems."""

import errno
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.catalogue import FtkvmError
from ftkvm.ports import CorruptFile, DatastoreError, DatastoreUnreachable


@pytest.fixture
def datastore(tmp_path: Path) -> DirectoryDatastore:
    made = DirectoryDatastore(tmp_path, "host1")
    made.initialise()
    return made


@pytest.fixture
def small_mount(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of its own, which can be filled and remounted read-only."""
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "ftkvm-test", str(where)], capture_output=True)
    if done.returncode:
        pytest.skip("needs to mount a tmpfs")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_what_is_written_is_read_with_its_format(datastore: DirectoryDatastore) -> None:
    datastore.replace("vms/u/vm.json", {"name": "vm1"})
    assert datastore.read_json("vms/u/vm.json") == {"name": "vm1", "format": 1}
    datastore.replace("vms/u/vm.json", {"name": "vm2"})
    assert datastore.read_json("vms/u/vm.json") == {"name": "vm2", "format": 1}
    assert datastore.list("vms/u") == ["vm.json"]


def test_missing_is_none_and_empty(datastore: DirectoryDatastore) -> None:
    assert datastore.read_json("ft/u/epoch-0001.winner") is None
    assert datastore.list("ft/u") == []
    datastore.remove("ft/u/epoch-0001.winner")


def test_create_once_gives_everybody_the_first(datastore: DirectoryDatastore) -> None:
    first = datastore.create_once("ft/u/epoch-0001.winner", {"host": "host1"})
    second = datastore.create_once("ft/u/epoch-0001.winner", {"host": "host2"})
    assert first == second == {"host": "host1", "format": 1}


def test_one_winner_of_many_at_once(datastore: DirectoryDatastore) -> None:
    barrier, seen = threading.Barrier(16), []

    def race(number: int) -> None:
        own = DirectoryDatastore(datastore.root, f"host{number}")
        barrier.wait(10)
        seen.append(own.create_once("ft/u/epoch-0002.winner", {"host": f"host{number}"})["host"])

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 16
    assert len(set(seen)) == 1
    assert [path.name for path in (datastore.root / ".ftkvm/ft/u").iterdir()] == [
        "epoch-0002.winner"
    ]  # no temporary file left


def test_lines_are_appended(datastore: DirectoryDatastore) -> None:
    datastore.append_line("history/host1.jsonl", {"event": "a"})
    datastore.append_line("history/host1.jsonl", {"event": "b"})
    lines = (datastore.root / ".ftkvm/history/host1.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"format": 2}', '{"format": "1"}', "\xff\xfe"])
def test_damaged_is_an_error_with_its_name(datastore: DirectoryDatastore, text: str) -> None:
    (datastore.root / ".ftkvm/a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFile) as caught:
        datastore.read_json("a.json")
    assert caught.value.code == "FTKVM-305"
    assert "a.json" in caught.value.text


@pytest.mark.parametrize("missing", ["", "not/there"])
def test_not_mounted(tmp_path: Path, missing: str) -> None:
    datastore = DirectoryDatastore(tmp_path / missing, "host1")
    for access in (
        lambda: datastore.read_json("a"),
        lambda: datastore.create_once("a", {}),
        lambda: datastore.replace("a", {}),
        lambda: datastore.remove("a"),
        lambda: datastore.list("a"),
        lambda: datastore.append_line("a", {}),
    ):
        with pytest.raises(DatastoreUnreachable) as caught:
            access()
        assert caught.value.code == "FTKVM-301"
    assert not (tmp_path / missing / ".ftkvm").exists()


def test_read_only(small_mount: Path) -> None:
    datastore = DirectoryDatastore(small_mount, "host1")
    datastore.initialise()
    datastore.create_once("winner", {"host": "host2"})
    subprocess.run(["mount", "-o", "remount,ro", str(small_mount)], check=True)
    with pytest.raises(DatastoreError) as caught:
        datastore.replace("a", {})
    assert caught.value.code == "FTKVM-303"
    assert datastore.create_once("winner", {"host": "host1"})["host"] == "host2"


def test_full(small_mount: Path) -> None:
    datastore = DirectoryDatastore(small_mount, "host1")
    datastore.initialise()
    datastore.create_once("winner", {"host": "host2"})
    with pytest.raises(OSError), (small_mount / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(DatastoreError) as caught:
        datastore.replace("vms/u/vm.json", {"text": "x" * 5000})
    assert caught.value.code == "FTKVM-304"
    assert datastore.read_json("vms/u/vm.json") is None
    assert datastore.create_once("winner", {"host": "host1"})["host"] == "host2"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOTCONN, "FTKVM-302"), (errno.EIO, "FTKVM-302"), (errno.ESTALE, "FTKVM-302"), (errno.EBADF, "FTKVM-302"),
     (errno.EDQUOT, "FTKVM-304"), (errno.EACCES, "FTKVM-303"), (errno.ENOENT, "FTKVM-301")],
)  # fmt: skip
def test_each_failure_has_its_message(datastore: DirectoryDatastore, number: int, code: str) -> None:
    with pytest.raises(FtkvmError) as caught, datastore._errors("a"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code


@pytest.mark.parametrize("planted", ["config", "config/0000001.json"])
def test_a_planted_link_is_neither_read_nor_written_through(tmp_path: Path, planted: str) -> None:
    store = DirectoryDatastore(tmp_path / "ds", "host1")
    (tmp_path / "ds").mkdir()
    store.initialise()
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "0000001.json"
    secret.write_text('{"format": 1, "secret": 1}\n')
    link = tmp_path / "ds" / ".ftkvm" / planted
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside if planted == "config" else secret)
    path = "config/0000001.json"
    for attempt in (
        lambda: store.read_json(path),
        lambda: store.create_once(path, {}),
        lambda: store.replace(path, {}),
        lambda: store.append_line(path, {"event": "x"}),
        lambda: store.remove(path),
    ):
        with pytest.raises(CorruptFile) as caught:
            attempt()
        assert caught.value.code == "FTKVM-334"
    assert secret.read_text() == '{"format": 1, "secret": 1}\n'
    assert [each.name for each in outside.iterdir()] == [secret.name]
