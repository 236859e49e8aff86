"""Which host can take a VM that runs, as a table."""

from pathlib import Path

import pytest

from ftkvm.core.facts import DatastoreState
from ftkvm.core.move import choose, local_files, refusals
from ftkvm.core.placement import HostFacts

XML = """<domain><currentMemory unit='KiB'>1048576</currentMemory><devices>
<disk type='file' device='disk'><source file='/ds/a.qcow2'/><target dev='vda'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk>
<interface type='bridge'><source bridge='br-vm'/></interface></devices></domain>"""
OK = DatastoreState.OK


def host(name: str, **changed: object) -> HostFacts:
    values: dict[str, object] = {
        "alive": True, "datastore": OK, "qemu_version": "11.1.3", "libvirt_version": "11.3.0", "cpu": "a",
        "free_memory_mb": 4096, "bridges": frozenset({"br-vm"}),
    }  # fmt: skip
    return HostFacts(name, **{**values, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"alive": False}, "does not answer"),
        ({"maintenance": True}, "maintenance"),
        ({"datastore": DatastoreState.HUNG}, "datastore"),
        ({"qemu_version": "11.1.2"}, "QEMU is older"),
        ({"cpu": "b"}, "CPU differs"),
        ({"bridges": frozenset({"br1"})}, "br-vm"),
        ({"free_memory_mb": 1023}, "1024 are needed"),
    ],
)
def test_each_reason(changed: dict[str, object], word: str) -> None:
    found = refusals([host("h1"), host("h2", **changed)], "h1", "h2", XML)
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize("changed", [{}, {"qemu_version": "11.10.0"}, {"free_memory_mb": 1024}])
def test_a_host_that_can(changed: dict[str, object]) -> None:
    assert refusals([host("h1"), host("h2", **changed)], "h1", "h2", XML) == []


def test_the_freest_host_that_can_is_chosen() -> None:
    facts = [host("h1"), host("h2", free_memory_mb=2000), host("h3", free_memory_mb=9000, cpu="b"), host("h4")]
    assert choose(facts, "h1", XML) == ("h4", {"h3": ["its CPU differs"]})
    assert choose(facts[:1], "h1", XML) == (None, {})


def test_files_that_only_this_host_has() -> None:
    assert local_files(XML, Path("/ds")) == []
    assert local_files(XML, Path("/other")) == ["disk vda is not a file on the datastore"]
    block = XML.replace("file='/ds/a.qcow2'", "dev='/dev/sdb'")
    assert local_files(block, Path("/ds")) == ["disk vda is not a file on the datastore"]
