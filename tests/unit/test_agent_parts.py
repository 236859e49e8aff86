"""Workers, operations, the cluster's configuration and joining it: with threads and a real directory."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cluster import ClusterReader, commit_config, latest_config
from ftkvm.agent.figures import CheckpointFigures
from ftkvm.agent.join import join
from ftkvm.agent.operations import Operation, Operations
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostConfig, HostEntry, Paths
from ftkvm.ports import CorruptFile, Json, Progress, WorkTimeout


@pytest.fixture
def datastore(tmp_path: Path) -> DirectoryDatastore:
    made = DirectoryDatastore(tmp_path, "host1")
    made.initialise()
    return made


def until(done: Operations, name: str) -> Operation:
    deadline = time.monotonic() + 5
    while done.get(name).state == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    return done.get(name)


def wish(number: int, **changed: object) -> Json:
    host = {"name": f"host{number}", "management": f"10.0.0.{number}", "ft": f"10.1.0.{number}",
            "migration": f"10.2.0.{number}"}  # fmt: skip
    return {"cluster": "lab", "id": "abc", "datastore": "/srv", "first": True, "host": host, **changed}


def test_work_that_hangs_is_left() -> None:
    release = threading.Event()
    workers = Workers()
    with pytest.raises(WorkTimeout):
        workers.run(lambda: release.wait(5), 0.05, "hang")
    release.set()
    assert workers.run(lambda: 7, 1.0, "quick") == 7


def test_what_hangs_is_not_started_twice() -> None:
    release, begun = threading.Event(), []
    workers = Workers()

    def hang() -> int:
        begun.append(1)
        release.wait(5)
        return 1

    for _attempt in range(3):
        with pytest.raises(WorkTimeout):
            workers.run_alone(hang, 0.05, "read")
    assert len(begun) == 1
    release.set()
    assert workers.run_alone(lambda: 2, 1.0, "read") == 2


def test_errors_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        Workers().run(lambda: 1 // 0, 1.0, "x")


def test_there_is_a_limit() -> None:
    release = threading.Event()
    workers = Workers(limit=1)
    workers.submit(lambda: release.wait(5), "one")
    with pytest.raises(WorkTimeout):
        workers.submit(lambda: None, "two")
    release.set()


def test_one_operation_per_vm(tmp_path: Path) -> None:
    operations = Operations("host1", Workers(), tmp_path)
    operations.load()
    release = threading.Event()

    def work(progress: Progress) -> None:
        progress(1, 2, "half")
        release.wait(5)

    first = operations.start("enable", "vm1", "u1", work)
    with pytest.raises(FtkvmError) as caught:
        operations.start("stop", "vm1", "u1", work)
    assert caught.value.code == "FTKVM-501"
    assert operations.start("enable", "vm2", "u2", lambda _progress: None)
    release.set()
    done = until(operations, first.id)
    assert (done.state, done.step, done.steps, done.text) == ("done", 1, 2, "half")


def test_a_failure_is_kept(tmp_path: Path) -> None:
    operations = Operations("host1", Workers(), tmp_path)

    def known(_progress: Progress) -> None:
        raise FtkvmError("FTKVM-404", vm="vm1", reasons="none")

    def unknown(_progress: Progress) -> None:
        raise RuntimeError("oh")

    assert (until(operations, operations.start("a", "vm1", "u", known).id).error or {})["code"] == "FTKVM-404"
    assert (until(operations, operations.start("a", "vm1", "u", unknown).id).error or {})["code"] == "FTKVM-900"


def test_a_restart_interrupts(tmp_path: Path) -> None:
    release = threading.Event()
    before = Operations("host1", Workers(), tmp_path)
    begun = before.start("enable", "vm1", "u1", lambda _progress: release.wait(5) and None)
    after = Operations("host1", Workers(), tmp_path)
    after.load()
    assert after.get(begun.id).state == "interrupted"
    assert (after.get(begun.id).error or {})["code"] == "FTKVM-504"
    assert after.running("u1") is None
    release.set()


def test_hosts_join_one_after_the_other(datastore: DirectoryDatastore) -> None:
    join(datastore, wish(1))
    config = join(datastore, wish(2, first=False))
    assert sorted(config.hosts) == ["host1", "host2"]
    assert config.version == 2
    assert join(datastore, wish(2)).version == 2


def test_many_join_at_once(datastore: DirectoryDatastore) -> None:
    join(datastore, wish(1))
    threads = [threading.Thread(target=join, args=(datastore, wish(number))) for number in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    config = latest_config(datastore)
    assert config is not None
    assert sorted(config.hosts) == [f"host{number}" for number in range(1, 8)]
    assert config.version == 7


def test_joins_that_are_refused(datastore: DirectoryDatastore) -> None:
    with pytest.raises(FtkvmError) as caught:
        join(datastore, wish(2, first=False))
    assert caught.value.code == "FTKVM-610"
    join(datastore, wish(1))
    with pytest.raises(FtkvmError) as caught:
        join(datastore, wish(2, id="other"))
    assert caught.value.code == "FTKVM-609"
    with pytest.raises(FtkvmError) as caught:
        join(datastore, wish(1, host={**wish(1)["host"], "management": "10.9.9.9"}))
    assert caught.value.code == "FTKVM-219"


@pytest.mark.parametrize("network", ["management", "ft", "migration"])
def test_a_machine_joins_once(datastore: DirectoryDatastore, network: str) -> None:
    before = join(datastore, wish(1))
    host = {**wish(2)["host"], network: wish(1)["host"][network]}
    with pytest.raises(FtkvmError) as caught:
        join(datastore, wish(2, host=host))
    assert caught.value.code == "FTKVM-242" and f"the {network} address" in caught.value.text
    assert "that of host host1" in caught.value.text
    assert latest_config(datastore) == before


DAMAGED = {
    "no JSON": "{",
    "a newer format": '{"format": 99, "version": 2, "cluster": "lab", "hosts": {}, "settings": {}}',
    "no cluster": '{"format": 1, "version": 2, "hosts": {}}',
    "hosts that are none": '{"format": 1, "version": 2, "cluster": "lab", "hosts": {"host1": 7}}',
    "a list": '{"format": 1, "version": 2, "cluster": "lab", "hosts": ["host1"]}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_configuration_is_named_and_left_alone(
    datastore: DirectoryDatastore, tmp_path: Path, text: str
) -> None:
    """Agents go on with what they know; nobody takes the version before it for the newest, or writes over it."""
    config = join(datastore, wish(1))
    reader = ClusterReader(datastore, Workers(), tmp_path / "cache.json")
    reader.current()
    datastore.replace_text("config/0000002.json", text)
    assert reader.current(fresh=True) == config
    for attempt in (lambda: latest_config(datastore), lambda: join(datastore, wish(2))):
        with pytest.raises(CorruptFile) as caught:
            attempt()
        assert caught.value.code == "FTKVM-305" and "config/0000002.json" in caught.value.text
    with suppress(CorruptFile):
        assert not commit_config(datastore, ClusterConfig(2, "lab", {}, {}))
    assert datastore.read_text("config/0000002.json") == text
    assert datastore.list("config") == ["0000001.json", "0000002.json"]
    (tmp_path / "cache.json").write_text("{")  # the copy on the host is no better
    with pytest.raises(CorruptFile):
        ClusterReader(datastore, Workers(), tmp_path / "cache.json").current()


def test_a_number_is_taken_once(datastore: DirectoryDatastore) -> None:
    one = ClusterConfig(1, "lab", {}, {})
    assert commit_config(datastore, one)
    assert commit_config(datastore, one)  # the same again: a lost reply
    assert not commit_config(datastore, ClusterConfig(1, "lab", {}, {"x": 1}))


def test_the_reader_goes_on_with_what_it_knows(datastore: DirectoryDatastore, tmp_path: Path) -> None:
    join(datastore, wish(1))
    cache = tmp_path / "cluster.json"
    assert sorted(ClusterReader(datastore, Workers(), cache).hosts()) == ["host1"]
    gone = DirectoryDatastore(tmp_path / "gone", "host1")
    assert sorted(ClusterReader(gone, Workers(), cache).hosts()) == ["host1"]
    with pytest.raises(FtkvmError) as caught:
        ClusterReader(gone, Workers(), tmp_path / "none").current()
    assert caught.value.code == "FTKVM-602"


def test_the_reader_sees_a_new_host(datastore: DirectoryDatastore, tmp_path: Path) -> None:
    join(datastore, wish(1))
    reader = ClusterReader(datastore, Workers(), tmp_path / "c")
    reader.current()
    join(datastore, wish(2))
    assert reader.host("host2").management == "10.0.0.2"
    with pytest.raises(FtkvmError) as caught:
        reader.host("host3")
    assert caught.value.code == "FTKVM-201"


def test_host_configuration_reads_what_it_writes(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    config = HostConfig("host1", "10.0.0.1", "10.1.0.1", "10.2.0.1", Path("/srv/ft"), ("br-vm", "br2"), paths=paths)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text(config.to_toml())
    assert HostConfig.load(paths) == config
    assert HostEntry.from_json("host1", HostEntry("host1", "a", "b", "c").to_json()) == HostEntry(
        "host1", "a", "b", "c"
    )


@pytest.mark.parametrize("text", ["", "x", '[host]\nname="a"', '[host]\nname="a"\n[networks]\nmanagement="x"\n'])
def test_host_configuration_with_a_mistake(tmp_path: Path, text: str) -> None:
    paths = Paths(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text(text)
    with pytest.raises(FtkvmError) as caught:
        HostConfig.load(paths)
    assert caught.value.code == "FTKVM-601"


@pytest.mark.parametrize(
    ("own_ms", "told_ms", "seen_s", "interval_ms"),
    [
        (250, 900, [0.1], 250),  # the primary itself
        (0, 900, [0.1, 0.1], 900),  # checkpoints were asked for lately: that is not the interval
        (0, 120, [2.0], 120),
        (0, None, [0.1, 0.1], 500),  # nothing told yet: as a pair begins
        (0, None, [0.1, 2.0], 2000),
        (0, None, [], 500),
    ],
)
def test_the_interval_that_a_checkpoint_is_late_by(
    own_ms: int, told_ms: int | None, seen_s: list[float], interval_ms: int
) -> None:
    figures = CheckpointFigures(interval_ms=own_ms)
    at = 1000.0
    for period in [0.0, *seen_s]:
        at += period
        figures.note("STOP", {"seconds": int(at), "microseconds": round((at % 1) * 1e6)})
    assert figures.interval_in_force_ms(told_ms) == interval_ms
