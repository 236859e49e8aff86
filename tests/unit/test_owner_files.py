"""Who writes a VM's next owner file: late, repeated, and after somebody else."""

from pathlib import Path

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.records import CopyPlace, PairDoc, PairStore
from ftkvm.catalogue import FtkvmError

UUID = "6d0e42bc-5bd1-4a6b-9d55-b2f6f2a9c0de"


class Ground:
    """Epoch 1 of a VM, recorded by host a when its owner file had number 1; ``b`` may be its winner."""

    def __init__(self, directory: Path) -> None:
        self.datastore = DirectoryDatastore(directory, "c")
        self.datastore.initialise()
        self.store = PairStore(self.datastore, UUID)
        number = self.store.own("a", "boot-a")
        places = (CopyPlace("a", {}, "boot-a"), CopyPlace("b", {}, "boot-b"))
        self.store.create(PairDoc(UUID, "v1", 1, *places, number))

    def started_on(self, host: str, number: int) -> None:
        mine = {"host": host, "boot_id": f"boot-{host}", "why": "restarted"}
        self.datastore.create_once(f"vms/{UUID}/owner/{number:07d}.json", mine)

    def owners(self) -> list[str]:
        names = self.datastore.list(f"vms/{UUID}/owner")
        return [str((self.datastore.read_json(f"vms/{UUID}/owner/{name}") or {})["host"]) for name in names]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.mark.parametrize("winner", ["a", "b"])
def test_the_winner_owns_it_by_a_file_of_its_own_once(ground: Ground, winner: str) -> None:
    """The primary as well, which owned it before: the epoch is not the last word any more."""
    for _ in range(2):
        assert ground.store.own_as_winner(1, winner, f"boot-{winner}") == 2
    assert ground.owners() == ["a", winner]


def test_a_winner_that_is_late_takes_nothing_from_who_runs_it_now(ground: Ground) -> None:
    """Its datastore hung, HA ended its VM and started it on c: then it is told that it may write."""
    ground.started_on("c", 2)
    with pytest.raises(FtkvmError) as refused:
        ground.store.own_as_winner(1, "b", "boot-b")
    assert refused.value.code == "FTKVM-103"
    assert ground.owners() == ["a", "c"]


def test_a_protect_that_is_late_takes_nothing_either(ground: Ground) -> None:
    ground.store.own_as_winner(1, "b", "boot-b")
    ground.started_on("c", 3)
    with pytest.raises(FtkvmError) as refused:
        ground.store.own("b", "boot-b")
    assert refused.value.code == "FTKVM-103"
    assert ground.owners() == ["a", "b", "c"]


def test_a_protect_of_a_winner_that_could_not_own_it_yet_does(ground: Ground) -> None:
    assert ground.store.own("b", "boot-b") == 2


def test_another_boot_of_the_same_host_takes_the_next_file(ground: Ground) -> None:
    assert ground.store.own("a", "boot-later") == 2
