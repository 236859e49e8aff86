"""Who may join a cluster (HA-20): asked of the host, of its datastore and of the cluster's agents, before any step."""

import contextlib
import json
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from ftkvm import __version__
from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cluster import ClusterReader
from ftkvm.agent.context import AgentContext
from ftkvm.agent.health import Health
from ftkvm.agent.join import join
from ftkvm.agent.operations import Operations
from ftkvm.agent.service import Service
from ftkvm.agent.vms import Vms
from ftkvm.agent.workers import Workers
from ftkvm.api.app import build_app
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostConfig, Paths
from ftkvm.core.joining import Machine, require_may_join
from ftkvm.core.versions import alike
from ftkvm.home import ClusterFile, Home
from ftkvm.ports import Json, PeerUnreachable
from hostprep import facts as facts_of
from hostprep.facts import HostFacts, parse
from hostprep.ground import Ground
from hostprep.joining import machine_of, members
from hostprep.nics import Nic
from hostprep.plan import configuration
from hostprep.prepare import host_entry, make_wish, prepare, require_out, require_still
from hostprep.ssh import Result, Target

ID = "cluster-id"
MACHINE = Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else ""
NEEDS_ID = pytest.mark.skipif(not MACHINE, reason="this machine has no machine id")


def wish(number: int, **changed: object) -> Json:
    host = {"name": f"host{number}", "management": f"10.0.0.{number}", "ft": f"10.1.0.{number}",
            "migration": f"10.2.0.{number}"}  # fmt: skip
    return {"cluster": "lab", "id": ID, "datastore": "/srv", "first": number == 1, "host": host, **changed}


@dataclass(frozen=True)
class Versions:
    libvirt: tuple[int, ...] = (11, 3, 0)
    qemu: tuple[int, ...] = (11, 1, 3)


@dataclass
class Libvirt:
    """Tells its versions, and runs nothing."""

    told: Versions = field(default_factory=Versions)

    def versions(self) -> Versions:
        return self.told

    def require_versions(self) -> None:
        pass

    def domains(self) -> list[object]:
        return []


class Cluster:
    """host1 and host2, with real APIs; host2 may be silent."""

    def __init__(self, place: Path) -> None:
        self.datastore = DirectoryDatastore(place / "ds", "host1")
        self.datastore.root.mkdir()
        self.datastore.initialise()
        self.apis: dict[str, TestClient] = {}
        for number in (1, 2):
            join(self.datastore, wish(number))
            self._agent(place, number)

    def _agent(self, place: Path, number: int) -> None:
        name = f"host{number}"
        workers = Workers()
        config = HostConfig(name, f"10.0.0.{number}", f"10.1.0.{number}", f"10.2.0.{number}", self.datastore.root,
                            paths=Paths(place / name))  # fmt: skip
        reader = ClusterReader(self.datastore, workers, place / f"{name}.json")
        ctx = AgentContext(config, f"boot-{name}", self.datastore, self, cast(Any, Libvirt()), workers, reader)
        operations = Operations(name, workers, place / f"operations-{name}")
        health = Health(ctx)
        health.refresh()
        self.apis[name] = TestClient(build_app(Service(ctx, Vms(ctx, operations), operations), health))

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        if host not in self.apis:
            raise PeerUnreachable("FTKVM-202", host=host, detail="silent")
        return dict(self.apis[host].request(method, path, json=json).json())

    def hosts(self) -> list[Json]:
        return list(self.apis["host1"].get("/v1/hosts").json()["hosts"])


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def new(**changed: object) -> HostFacts:
    """What host3 is like: it fits."""
    facts = HostFacts(
        system="Debian", system_id="debian 13", packages={}, addresses=("10.0.0.3/24", "10.1.0.3/24", "10.2.0.3/24"),
        bridges=("br-vm",), mount_point="/srv", datastore_status="ok", qemu=(11, 1, 5), libvirt=(11, 9, 0),
        devices=("/dev/net/tun",), digests={}, machine_id="its own", boot_id="boot-host3",
    )  # fmt: skip
    return replace(facts, **changed)  # type: ignore[arg-type]


def refused(facts: HostFacts, there: list[Machine]) -> tuple[str, str]:
    with pytest.raises(FtkvmError) as caught:
        require_may_join(machine_of("host3", facts), there)
    assert caught.value.cause and caught.value.remedy
    return caught.value.code, caught.value.text


def test_what_the_agents_tell_is_what_is_asked_for(cluster: Cluster) -> None:
    told = members(cluster.hosts())
    assert [each.name for each in told] == ["host1", "host2"]
    assert told[0] == Machine(
        "host1", "boot-host1", MACHINE, {"ftkvm": __version__, "QEMU": "11.1.3", "libvirt": "11.3.0"}
    )
    require_may_join(machine_of("host3", new()), told)
    del cluster.apis["host2"]
    assert [each.name for each in members(cluster.hosts())] == ["host1"]


@pytest.mark.parametrize(("changed", "what"), [
    ({"qemu": (11, 2, 0)}, "QEMU 11.2.0"), ({"qemu": (12, 1, 0)}, "QEMU 12.1.0"),
    ({"libvirt": (12, 0, 0)}, "libvirt 12.0.0"),
])  # fmt: skip
def test_other_versions(cluster: Cluster, changed: dict[str, object], what: str) -> None:
    code, text = refused(new(**changed), members(cluster.hosts()))
    assert code == "FTKVM-261" and what in text and "host1" in text and "host2" in text


def test_another_ftkvm(cluster: Cluster) -> None:
    told = [replace(each, versions={**each.versions, "ftkvm": "7.0.0"}) for each in members(cluster.hosts())]
    code, text = refused(new(), told)
    assert code == "FTKVM-261" and f"ftkvm {__version__}" in text and "host1 7.0.0" in text


def test_a_cluster_that_is_being_upgraded_takes_both(cluster: Cluster) -> None:
    one, two = members(cluster.hosts())
    upgraded = replace(two, versions={**two.versions, "QEMU": "11.2.0"})
    for qemu in ((11, 1, 0), (11, 2, 7)):
        require_may_join(machine_of("host3", new(qemu=qemu)), [one, upgraded])
    assert refused(new(qemu=(11, 3, 0)), [one, upgraded])[0] == "FTKVM-261"


def test_what_is_not_installed_or_not_told_is_not_compared(cluster: Cluster) -> None:
    require_may_join(machine_of("host3", new(qemu=(), libvirt=())), members(cluster.hosts()))
    require_may_join(machine_of("host3", new(qemu=(12, 0, 0), machine_id="")), [Machine("host1", "", "", {})])


def test_a_machine_that_is_in_the_cluster_under_another_name(cluster: Cluster) -> None:
    code, text = refused(new(boot_id="boot-host2"), members(cluster.hosts()))
    assert code == "FTKVM-262" and "host2" in text


@NEEDS_ID
def test_a_clone_with_its_masters_machine_id(cluster: Cluster) -> None:
    code, text = refused(new(machine_id=MACHINE), members(cluster.hosts()))
    assert code == "FTKVM-263" and "host1" in text and MACHINE in text


@pytest.mark.parametrize(("what", "one", "other", "fits"), [
    ("QEMU", "11.1.3", "11.1.9", True), ("QEMU", "11.1.3", "11.10.3", False), ("libvirt", "11.3.0", "11.10.1", True),
    ("libvirt", "11.3.0", "1.3.0", False), ("ftkvm", "0.1.0", "0.1.7", True), ("ftkvm", "0.1.0", "0.2.0", False),
])  # fmt: skip
def test_series(what: str, one: str, other: str, fits: bool) -> None:
    assert alike(what, one, other) is fits


# ----------------------------------------------------------------------------------------- the whole way


class Remote:
    """A host as SSH shows it: it tells what it is, and every other command is written down."""

    def __init__(self, target: Target, told: str) -> None:
        self.target, self.host = target, target.host
        self._told = told
        self.commands: list[str] = []

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        if command != "sh -s":
            self.commands.append(command)
        return Result(0, self._told, "")


def told(cluster: Cluster, **changed: str) -> str:
    """The facts script's answer on host3; its view of the datastore is what the script really reads there."""
    done = subprocess.run(
        ["sh", "-s"], input=facts_of.script(str(cluster.datastore.root), []), capture_output=True, text=True, timeout=60
    )
    parts = facts_of._sections(done.stdout)
    addresses = [{"ifname": f"n{n}", "addr_info": [{"family": "inet", "local": f"10.{n}.0.3", "prefixlen": 24}]}
                 for n in range(3)]  # fmt: skip
    parts |= {
        "os": "ID=debian\nVERSION_ID=13\n",
        "packages": "",
        "addresses": json.dumps(addresses),
        "mount": "/srv\nstatus 0\n",
        "bridges": "/sys/class/net/br-vm/bridge\n",
        "qemu": "QEMU emulator version 11.1.3\n",
        "libvirt": "11.3.0\n",
        "devices": "/dev/net/tun\n",
        "strangers": "",
        "machine": "its own\n",
        "boot": "boot-host3\n",
        "sources": "deb http://mirror.example/debian trixie main\n==sources==\n",
        **changed,
    }
    return "".join(f"{facts_of.MARK}{name}\n{text}" for name, text in parts.items())


def tree(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def home(tmp_path: Path, cluster: Cluster) -> Home:
    made = Home(tmp_path / "home")
    file = ClusterFile("lab", ID, str(cluster.datastore.root), "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"])
    made.create(file)
    known = {f"host{number}": {**wish(number)["host"]} for number in (1, 2)}
    made.save(replace(made.load(), id=ID, hosts=known))
    return made


def test_the_newest_configuration_is_found(cluster: Cluster) -> None:
    found = configuration(parse(told(cluster)))
    assert found is not None and found.version == 2 and sorted(found.hosts) == ["host1", "host2"]
    cluster.datastore.replace_text("config/0000003.json", "{")
    with pytest.raises(FtkvmError) as caught:
        configuration(parse(told(cluster)))
    assert caught.value.code == "FTKVM-305"


@pytest.mark.parametrize(("name", "changed", "code"), [
    ("host3", {"qemu": "QEMU emulator version 12.0.0\n"}, "FTKVM-261"),
    ("host3", {"boot": "boot-host1\n"}, "FTKVM-262"),
    pytest.param("host3", {"machine": f"{MACHINE}\n"}, "FTKVM-263", marks=NEEDS_ID),
    ("host2", {}, "FTKVM-219"),
])  # fmt: skip
def test_refused_it_changes_nothing(
    cluster: Cluster, home: Home, name: str, changed: dict[str, str], code: str
) -> None:
    remote = Remote(Target(name, "10.0.0.3"), told(cluster, **changed))
    before = tree(home.directory) | tree(cluster.datastore.root)
    with pytest.raises(FtkvmError) as caught:
        prepare(home, remote.target, lambda *_: None, connect=lambda _target: cast(Any, remote),
                hosts=lambda _home: cluster.hosts())  # fmt: skip
    assert (caught.value.code, remote.commands) == (code, [])
    assert tree(home.directory) | tree(cluster.datastore.root) == before


@pytest.mark.parametrize(("changed", "code"), [
    ({"strangers": "/opt/ftkvm\n"}, "FTKVM-363"),
    ({"os": 'ID="almalinux"\nVERSION_ID="9.2"\n', "addresses": "[]", "bridges": ""}, "FTKVM-206"),
])  # fmt: skip
@pytest.mark.parametrize("ground", [Ground(), Ground(nic="eth9", export="storage:/srv")])
def test_a_host_that_is_not_for_us_is_refused_before_all_else(
    cluster: Cluster, home: Home, changed: dict[str, str], code: str, ground: Ground
) -> None:
    """Even before what it is to stand on is made, or found to be missing."""
    remote = Remote(Target("host3", "10.0.0.3"), told(cluster, **changed))
    with pytest.raises(FtkvmError) as caught:
        prepare(home, remote.target, lambda *_: None, ground=ground, connect=lambda _target: cast(Any, remote))
    assert (caught.value.code, remote.commands) == (code, [])


def test_another_clusters_datastore(cluster: Cluster, home: Home) -> None:
    """Before any agent is started on it: one of that cluster's hosts may have the same name."""
    home.save(replace(home.load(), id="another", hosts={}))
    remote = Remote(Target("host3", "10.0.0.3"), told(cluster))
    before = tree(home.directory) | tree(cluster.datastore.root)
    with pytest.raises(FtkvmError) as caught:
        prepare(home, remote.target, lambda *_: None, connect=lambda _target: cast(Any, remote))
    assert (caught.value.code, remote.commands) == ("FTKVM-609", [])
    assert tree(home.directory) | tree(cluster.datastore.root) == before


def test_no_host_answers(cluster: Cluster, home: Home) -> None:
    """HA-01: a host joins through one that lives."""
    remote = Remote(Target("host3", "10.0.0.3"), told(cluster))

    def silent(_home: Home) -> list[Json]:
        raise FtkvmError("FTKVM-607", cluster="lab", hosts="host1, host2")

    with pytest.raises(FtkvmError) as caught:
        prepare(home, remote.target, lambda *_: None, connect=lambda _target: cast(Any, remote), hosts=silent)
    assert (caught.value.code, remote.commands) == ("FTKVM-607", [])


def test_one_that_fits_would_be_prepared(cluster: Cluster, home: Home) -> None:
    remote = Remote(Target("host3", "10.0.0.3"), told(cluster))
    done = prepare(home, remote.target, lambda *_: None, dry_run=True, connect=lambda _target: cast(Any, remote),
                   hosts=lambda _home: cluster.hosts())  # fmt: skip
    assert done.steps[-1] == "enter the host into the cluster's configuration"


def test_a_host_that_another_operator_added_is_not_taken_back(cluster: Cluster) -> None:
    """What counts is the datastore: an operator's own list may be older."""
    for name, code in (("host2", "FTKVM-342"), ("host3", "")):
        remote = Remote(Target(name, "10.0.0.3"), told(cluster))
        with pytest.raises(FtkvmError) if code else contextlib.nullcontext() as caught:
            require_out(remote, str(cluster.datastore.root))
        assert (caught.value.code if caught else "", remote.commands) == (code, [])


class Answering(Remote):
    """One that says what a command of ours, known by a word of it, prints."""

    def __init__(self, target: Target, facts: str, words: dict[str, str]) -> None:
        super().__init__(target, facts)
        self._words = words

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        done = super().run(command, stdin, timeout_s)
        said = next((text for word, text in self._words.items() if word in command), None)
        return done if said is None else Result(0, said, "")


@pytest.mark.parametrize(("lost", "reached", "code"), [
    ("", False, "FTKVM-753"), ("10.1.0.2\n", True, "FTKVM-750"), ("", True, "FTKVM-213"),
])  # fmt: skip
def test_a_network_stays_only_if_a_new_connection_says_so(
    cluster: Cluster, home: Home, lost: str, reached: bool, code: str
) -> None:
    """And if full frames get to the others. What is wrong otherwise is found later, and takes it back as well."""
    links = json.dumps([{"ifname": "n7", "addr_info": [], "mtu": 1500, "flags": []}])
    facts = told(cluster, links=links, bridges="")
    remote = Answering(Target("host3", "10.0.0.3"), facts, {"ping": lost, "/mtu": "9000", "absent": "==ftkvm==\n" * 3})
    again = Remote(remote.target, "")
    connections = []

    def connect(target: Target) -> Any:
        connections.append(target)
        if len(connections) == 1:
            return remote
        if not reached:
            raise FtkvmError("FTKVM-210", host=target.host, address=target.address, detail="no answer")
        return again

    with pytest.raises(FtkvmError) as caught:
        prepare(home, remote.target, lambda *_: None, connect=connect, hosts=lambda _home: cluster.hosts(),
                ground=Ground(nics=(Nic.parse("ft=n7,10.1.0.7/24,mtu=9000"),)))  # fmt: skip
    assert caught.value.code == code
    timer = "ftkvm-nic-ft-revert"
    armed = next(number for number, said in enumerate(remote.commands) if f"--unit={timer} --on-active" in said)
    assert "systemctl start" in remote.commands[armed].partition("--on-active")[2], "the timer first, then the network"
    confirmed = [said for said in again.commands if f"stop {timer}.timer && systemctl enable" in said]
    assert len(confirmed) == (1 if code == "FTKVM-213" else 0)
    undone = [said for said in remote.commands if "systemctl disable -q --now ftkvm-nic-ft.service" in said]
    assert len(undone) == (0 if code == "FTKVM-213" else 1)


@pytest.mark.parametrize(("changed", "other", "code"), [
    ({}, "host1", ""), ({}, "host3", ""), ({"configuration": ""}, "host1", "FTKVM-610"),
    ({"configuration": ""}, "host3", ""), ({"boot": "boot-host1\n"}, "host1", "FTKVM-262"),
])  # fmt: skip
def test_of_hosts_that_are_added_at_once_one_is_the_first(
    cluster: Cluster, home: Home, changed: dict[str, str], other: str, code: str
) -> None:
    """host3 was planned as the first host; another one (or itself, by a run before) is in when it is to enter."""
    remote = Remote(Target("host3", "10.0.0.3"), told(cluster, **changed))
    empty = replace(home.load(), hosts={})
    facts = parse(told(cluster, **changed))
    made = make_wish(home, empty, host_entry("host3", facts, empty), facts)
    assert made.join["first"]
    home.save(empty)
    require_still(home, empty, cast(Any, remote), made, lambda _home: cluster.hosts())
    home.put_host(other, dict(wish(int(other[-1]))["host"]))
    with pytest.raises(FtkvmError) if code else contextlib.nullcontext() as caught:
        require_still(home, empty, cast(Any, remote), made, lambda _home: cluster.hosts())
    assert (caught.value.code if caught else "") == code
