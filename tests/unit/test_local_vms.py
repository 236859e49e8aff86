"""What a host says of the copies that run on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.cluster import ClusterReader
from ftkvm.agent.context import AgentContext
from ftkvm.agent.operations import Operations
from ftkvm.agent.vms import Vms
from ftkvm.agent.workers import Workers
from ftkvm.config import HostConfig, Paths
from ftkvm.ports import Json


@dataclass(frozen=True)
class Paused:
    """A domain as libvirt sees it between a STOP and the RESUME after it."""

    uuid: str
    name: str
    state: str = "paused"
    active: bool = True


class TwoDomains:
    def domains(self) -> list[Paused]:
        return [Paused("u1", "protected"), Paused("u2", "suspended")]


class OnePair:
    """A PairManager: its state is what `ftkvm status` shows."""

    def __init__(self, state: str) -> None:
        self._state = state

    def status(self, _uuid: str | None) -> list[Json]:
        return [{"uuid": "u1", "state": self._state}]


def states(directory: Path, pair_state: str) -> dict[str, str]:
    """State by name, as `ftkvm vm list` shows it."""
    datastore = DirectoryDatastore(directory, "h1")
    config = HostConfig("h1", "10.0.0.1", "10.1.0.1", "10.2.0.1", directory, paths=Paths(directory))
    workers = Workers()
    reader = ClusterReader(datastore, workers, directory / "cache.json")
    ctx = AgentContext(config, "boot", datastore, cast(Any, None), cast(Any, TwoDomains()), workers, reader)
    ctx.extras["pairs"] = OnePair(pair_state)
    return {vm["name"]: vm["state"] for vm in Vms(ctx, Operations("h1", workers, directory / "operations")).local()}


def test_a_checkpoint_is_no_pause(tmp_path: Path) -> None:
    assert states(tmp_path, "protected") == {"protected": "running", "suspended": "paused"}
    assert states(tmp_path, "not-protected") == {"protected": "paused", "suspended": "paused"}
