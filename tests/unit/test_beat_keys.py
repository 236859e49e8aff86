"""Changing the beat keys: every host accepts every other's beats at any moment, whatever fails, and in the end those
who left know nothing that counts."""

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.pki import write_private
from ftkvm.agent.beat_keys import NUMBER_FILE, Keyring
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.cli import beat_keys as changing
from ftkvm.cli.beat_keys import change, leaving, members
from ftkvm.home import BeatsDue, ClusterFile, Home
from ftkvm.keeper.client import KeeperUnavailable
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Json, PeerUnknown, PeerUnreachable

ONE, TWO, THREE = (bytes([byte]) * 32 for byte in (1, 2, 3))
NETWORKS = ("10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24")


def understands(receiver: BeatKeys, sender: BeatKeys) -> bool:
    """Whether the receiver takes what the sender signs."""
    return receiver.decode(sender.encode(7, 3, b"{}")) is not None


# ------------------------------------------------------------------------------------------------------- the keys


def states() -> list[BeatKeys]:
    found = [BeatKeys(0, ONE)]
    for new in (TWO, THREE):
        found.append(found[-1].offered(new))
        found += [found[-1].advanced(), found[-1].advanced().advanced()]
    return found


def test_nobody_takes_more_than_a_step_at_once() -> None:
    """Else those who are not told yet would not be understood, whatever an operator's side does."""
    for (at, before), (place, after) in itertools.product(enumerate(states()), repeat=2):
        if place in (at, at + 1):
            assert after.require_after(before) is (place == at + 1)
        elif {before.number, after.number} == {2, 4}:
            continue  # both sign with the second key, and accept it
        else:
            with pytest.raises(ValueError):
                after.require_after(before)


def test_one_step_apart_all_understand_each_other_and_after_the_last_the_old_key_is_worth_nothing() -> None:
    for before, after in itertools.pairwise(states()):
        assert understands(before, after)
        assert understands(after, before)
    old, offered, signed, settled = states()[:4]
    assert not understands(settled, old)
    assert not understands(settled, offered)  # why the last step waits for all: that one still signs with the old
    assert not understands(old, signed)  # and why the second does


@pytest.mark.parametrize("keys", states())
def test_what_is_written_is_what_is_read(keys: BeatKeys) -> None:
    assert BeatKeys.parse(keys.text()) == keys
    assert keys.signing.hex() not in repr(keys)


def test_keys_that_were_never_changed_are_the_file_of_before() -> None:
    assert BeatKeys.parse(f"{ONE.hex()}\n") == BeatKeys(0, ONE)
    assert BeatKeys(0, ONE).text() == f"{ONE.hex()}\n"


def damaged() -> list[str]:
    whole = [keys.text() for keys in states()[:3]]
    halves = [text[:at] for text in whole[1:] for at in range(len(text))]
    sign, accept = f"sign {ONE.hex()}\n", f"accept {TWO.hex()}\n"
    return [
        *halves, whole[0][:60], "number 1\n" + sign, "number 3\n" + sign + accept, "number -2\n" + sign + accept,
        "number x\n" + sign, "number 1\n" + sign + f"accept {ONE.hex()}\n", "number 3\n" + sign + "more 1\n",
        "number 3\n" + sign + sign, f"number 3\nsign {'00' * 31}\n",
    ]  # fmt: skip


@pytest.mark.parametrize("text", damaged())
def test_half_a_file_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        BeatKeys.parse(text)


# --------------------------------------------------------------------------------------------------------- a host


class Keeper:
    """Signs and accepts by what it was told, or reads from the file when it starts."""

    def __init__(self, keys: BeatKeys) -> None:
        self.keys = keys
        self.away = False

    def set_keys(self, keys: BeatKeys) -> None:
        if self.away:
            raise KeeperUnavailable("made up")
        keys.require_after(self.keys)
        self.keys = keys


@dataclass
class Member:
    """One host: its file, its agent's keyring, what its HA part and its keeper use."""

    name: str
    path: Path
    store: DirectoryDatastore
    all: dict[str, "Member"]
    down: bool = False
    ring: Keyring = field(init=False)
    keeper: Keeper = field(init=False)
    ha: BeatKeys = field(init=False)

    def __post_init__(self) -> None:
        self.boot()

    def boot(self) -> None:
        """Power is back: only what is on the disk is there."""
        self.down = False
        self.keeper = Keeper(BeatKeys.parse(self.path.read_text()))
        self.start_agent()

    def start_agent(self) -> None:
        self.ha = BeatKeys.parse(self.path.read_text())
        cluster = cast(Any, self)
        self.ring = Keyring(
            self.name, self.path, self.store, Workers(), cluster, cast(Any, self), self.keeper, self.use
        )

    def use(self, keys: BeatKeys) -> None:
        self.ha = keys

    def hosts(self) -> dict[str, "Member"]:
        return self.all

    def call(self, host: str, _method: str, path: str, _json: Json | None = None, _timeout_s: float = 5.0) -> Json:
        """As one host asks another."""
        assert path == "/v1/peer/beat-keys"
        if self.all[host].down:
            raise PeerUnreachable("FTKVM-202", host=host, detail="made up")
        return {"keys": self.all[host].ring.text()}

    @property
    def uses(self) -> tuple[BeatKeys, BeatKeys]:
        return self.ha, self.keeper.keys


class Cluster:
    """Some hosts and the operator, whose requests may fail in every way."""

    def __init__(self, root: Path, count: int = 3, fail: Callable[[str], str] = lambda _host: "") -> None:
        (root / "ds").mkdir()
        self.store = DirectoryDatastore(root / "ds")
        self.store.initialise()
        self.home = Home(root / "home")
        names = [f"h{at}" for at in range(count)]
        self.home.create(ClusterFile("c", "", "/srv", *NETWORKS, ["br-vm"], {key: {} for key in names}))
        self.fail = fail
        self.hosts: dict[str, Member] = {}
        for name in names:
            path = root / f"{name}.key"
            write_private(path, self.home.beat_keys().text().encode())
            self.hosts[name] = Member(name, path, self.store, self.hosts)
        self.asked: list[str] = []

    def ask(self, host: str, _method: str, path: str, json: Json | None = None, timeout_s: float = 10.0) -> Json:
        assert path == "/v1/security/beat-keys"
        self.asked.append(host)
        failure = self.fail(host)
        if failure == "the command is killed":
            raise KeyboardInterrupt
        member = self.hosts[host]
        if failure == "silent" or member.down:
            raise PeerUnreachable("FTKVM-202", host=host, detail="made up")
        member.keeper.away = failure == "its keeper is away"
        answer = member.ring.take(str((json or {})["keys"]))
        if failure == "its answer is lost":
            raise PeerUnknown("FTKVM-211", host=host, what="made up")
        return answer

    def change(self, *, anew: bool = False) -> changing.Changed:
        return change(self.home, self, members(self.home, self.hosts), anew=anew)

    def remove(self, name: str) -> tuple[bytes, ...]:
        """A host goes; what it knows of keys."""
        with leaving(self.home, name):
            known = tuple(key for keys in self.hosts[name].uses for key in keys.all())
            del self.hosts[name]
        cluster = self.home.load()
        self.home.save(replace(cluster, hosts={key: {} for key in cluster.hosts if key != name}))
        return known

    def require_all_hear_all(self) -> None:
        """safety: what no failure may ever break; a host that is down when it is back as well (its file)."""
        uses = [keys for member in self.hosts.values() if not member.down for keys in member.uses]
        files = [BeatKeys.parse(member.path.read_text()) for member in self.hosts.values()]
        for one, other in itertools.product([*uses, *files], repeat=2):
            assert understands(one, other), [(each.number) for each in (one, other)]


@pytest.fixture
def three(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_host_that_left_knows_no_key_that_counts(three: Cluster) -> None:
    known = three.remove("h2")
    done = three.change()
    assert (done.finished, done.number, done.waits) == (True, 3, {})
    for member in three.hosts.values():
        assert not {key for keys in member.uses for key in keys.all()} & set(known)
        assert BeatKeys.parse(member.path.read_text()) == three.home.beat_keys() == member.ha == member.keeper.keys
    assert three.home.beats_due() == BeatsDue()
    assert set(three.asked) == {"h0", "h1"}
    assert three.change().number == 3  # nothing is left to do


def test_the_keys_are_nowhere_on_the_datastore(three: Cluster) -> None:
    three.change(anew=True)
    assert three.store.read_json(NUMBER_FILE) is not None
    for path in (three.store.root).rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for key in (*three.home.beat_keys().all(), ONE):
            assert key.hex().encode() not in content
            assert key not in content


@pytest.mark.parametrize("failure", ["silent", "its keeper is away"])
def test_a_host_that_does_not_take_a_step_is_waited_for(three: Cluster, failure: str) -> None:
    """It may only be cut off from the operator, and be in a pair."""
    three.change(anew=True)
    three.remove("h2")
    three.fail = lambda host: failure if host == "h1" else ""
    done = three.change()
    assert not done.finished
    assert list(done.waits) == ["h1"]
    assert "`ftkvm cert rotate-beats` goes on" in done.text()
    three.require_all_hear_all()
    assert three.home.beats_due().due == ["h2"]
    three.fail = lambda _host: ""
    three.hosts["h1"].keeper.away = False
    assert three.change().finished
    assert three.home.beats_due() == BeatsDue()


def test_one_that_leaves_while_keys_are_changed_knows_the_new_one_so_they_are_changed_again(three: Cluster) -> None:
    three.remove("h2")
    stop = iter(["", "", "", "silent"])  # all have the keys of before, the first has been offered the new one
    three.fail = lambda _host: next(stop, "")
    assert not three.change().finished
    known = three.remove("h0")
    assert three.home.beats_due() == BeatsDue(["h0"], ["h2"])
    done = three.change()
    assert (done.finished, done.number) == (True, 6)
    assert not set(three.home.beat_keys().all()) & set(known)


def test_a_removal_that_is_refused_changes_no_keys(three: Cluster) -> None:
    with pytest.raises(FtkvmError), leaving(three.home, "h2"):
        raise FtkvmError("FTKVM-201", host="h2")
    assert three.home.beats_due() == BeatsDue()
    with pytest.raises(FtkvmError), leaving(three.home, "h2"):
        raise FtkvmError("FTKVM-211", host="h2", what="remove")  # perhaps it is out
    assert three.home.beats_due() == BeatsDue(["h2"])


def test_one_that_an_agent_still_names_gets_nothing(three: Cluster) -> None:
    three.remove("h2")
    assert members(three.home, ["h0", "h1", "h2", "h9"]) == ["h0", "h1", "h9"]


def test_a_cluster_without_hosts_has_new_keys_for_its_first(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    known = cluster.remove("h0")
    assert cluster.change().finished
    assert not set(cluster.home.beat_keys().all()) & set(known)


def test_older_keys_and_those_of_a_copied_directory_are_not_taken(three: Cluster) -> None:
    three.change(anew=True)
    member = three.hosts["h0"]
    before = member.uses
    ahead = before[0].offered(TWO)
    far = [ahead.advanced(), ahead.advanced().advanced(), BeatKeys(4, TWO, THREE), BeatKeys(9, TWO)]
    for keys in (BeatKeys(0, ONE), BeatKeys(1, ONE, TWO), BeatKeys(3, THREE), *far):
        with pytest.raises(FtkvmError) as caught:
            member.ring.take(keys.text())
        assert caught.value.code == "FTKVM-338"
    assert member.uses == before


def test_a_host_that_was_away_takes_the_keys_from_another(three: Cluster) -> None:
    """It was off when the others dropped the old key: it is heard again seconds after its start."""
    three.fail = lambda host: "silent" if host == "h2" and three.home.beat_keys().number == 3 else ""
    three.hosts["h2"].down = False
    done = three.change(anew=True)
    assert (done.finished, list(done.waits)) == (True, ["h2"])
    assert "when it is back" in done.text()
    member = three.hosts["h2"]
    member.boot()
    assert member.ring.number == 2
    three.hosts["h0"].down = True  # the first that is asked does not answer
    member.ring.refresh()
    assert member.uses == (three.home.beat_keys(),) * 2
    assert BeatKeys.parse(member.path.read_text()) == three.home.beat_keys()


def test_what_the_datastore_says_is_only_a_hint(three: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    before = three.hosts["h0"].uses
    for document in ({"number": 10**9}, {"number": "x"}, {}):
        three.store.replace(NUMBER_FILE, document)
        three.hosts["h0"].start_agent()
        three.hosts["h0"].ring.refresh()
    assert three.hosts["h0"].uses == before
    assert "no other host has the newer ones" in caplog.text
    three.change(anew=True)
    three.store.replace(NUMBER_FILE, {"number": 2})  # a write that hung, of the step before
    three.hosts["h0"].start_agent()
    three.hosts["h0"].ring.refresh()
    assert (three.store.read_json(NUMBER_FILE) or {})["number"] == 3


def test_an_agent_that_starts_has_its_keeper_use_what_is_on_the_disk(three: Cluster) -> None:
    """It was killed between writing the file and telling the keeper."""
    member = three.hosts["h0"]
    write_private(member.path, member.ha.offered(TWO).text().encode())
    member.start_agent()
    assert member.keeper.keys.number == 0
    member.ring.refresh()
    assert member.keeper.keys.number == 1


def test_keys_that_cannot_be_written_are_not_used(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    member, before = three.hosts["h0"], three.hosts["h0"].uses

    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("ftkvm.agent.beat_keys.write_private", full)
    with pytest.raises(FtkvmError) as caught:
        member.ring.take(before[0].offered(TWO).text())
    assert caught.value.code == "FTKVM-338"
    assert member.uses == before


FAILURES = ["silent", "its keeper is away", "its answer is lost", "the command is killed"]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_fails_all_hear_all_and_in_the_end_no_one_else(tmp_path: Path, seed: int) -> None:
    """Requests that fail in every way, hosts that lose their power, agents and keepers started again, hosts that leave,
    and the operator's command killed anywhere: looked at after each request."""
    rng = random.Random(seed)
    cluster = Cluster(tmp_path, rng.randint(2, 5))
    known: set[bytes] = set()

    def fail(_host: str) -> str:
        cluster.require_all_hear_all()
        member = cluster.hosts[rng.choice(sorted(cluster.hosts))]
        event = rng.random()
        if event < 0.1:
            member.down = True
        elif event < 0.2:
            member.boot()
        elif event < 0.25 and not member.down:
            member.start_agent()
        elif event < 0.3 and not member.down:
            member.keeper.keys = BeatKeys.parse(member.path.read_text())
        return rng.choice(FAILURES) if rng.random() < 0.15 else ""

    cluster.fail = fail
    for _ in range(12):
        if len(cluster.hosts) > 1 and rng.random() < 0.2:
            known.update(cluster.remove(rng.choice(sorted(cluster.hosts))))
        with contextlib.suppress(KeyboardInterrupt):
            cluster.change(anew=rng.random() < 0.3)
        cluster.require_all_hear_all()
    cluster.fail = lambda _host: ""
    for member in cluster.hosts.values():
        member.boot()
    for _ in range(2):
        assert cluster.change().finished
    for member in cluster.hosts.values():
        assert member.uses == (cluster.home.beat_keys(),) * 2
        assert not {key for keys in member.uses for key in keys.all()} & known
