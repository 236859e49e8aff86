"""Whose owner file an operator's stop ends: only this host's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.agent.context import AgentContext
from ftkvm.agent.operations import Operations
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.agent.workers import Workers
from ftkvm.config import HostConfig, Paths

OWNERS = "vms/u1/owner"


class Hypervisor:
    """Switches off; ``meanwhile`` happens before it has ended."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile

    def destroy(self, uuid: str) -> None:
        self._meanwhile()


@pytest.mark.parametrize(("taken_by_another", "newest"), [(False, None), (True, "host2")])
def test_another_hosts_owner_file_stays(tmp_path: Path, taken_by_another: bool, newest: str | None) -> None:
    """This host was isolated while it switched the VM off: HA has released it, and another host runs it."""
    datastore = DirectoryDatastore(tmp_path / "ds", "host1")
    datastore.root.mkdir()
    datastore.initialise()
    record = VmRecord("u1", "vm1")
    datastore.replace("vms/u1/vm.json", record.to_json())
    datastore.create_once(f"{OWNERS}/0000001.json", {"host": "host1", "boot_id": "boot"})

    def meanwhile() -> None:
        if taken_by_another:
            datastore.create_once(f"{OWNERS}/0000002.json", {"host": None, "boot_id": "boot"})
            datastore.create_once(f"{OWNERS}/0000003.json", {"host": "host2", "boot_id": "boot2"})

    workers, nobody = Workers(), cast(Any, None)
    config = HostConfig("host1", "10.0.0.1", "10.1.0.1", "10.2.0.1", tmp_path, paths=Paths(tmp_path))
    hypervisor = cast(Any, Hypervisor(meanwhile))
    ctx = AgentContext(config, "boot", datastore, nobody, hypervisor, workers, nobody)
    vms = Vms(ctx, Operations("host1", workers, tmp_path / "operations"))
    vms.stop(record, force=True, timeout_s=1.0, progress=lambda _step, _steps, _text: None)
    assert vms.owner("u1") == (3 if taken_by_another else 2, newest)
