"""The lab's NFS: the storage VM and its hosts as they are told to QEMU and systemd, and the datastore from outside."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import datastore, lab, names, record
from ftkvm.lab.host import Host
from ftkvm.lab.vm import machine, slowness
from ftkvm.lab.vm.host import VmHost
from ftkvm.lab.vm.nfs import PROVISION, NfsHost, StorageBox


def made(tmp_path: Path, *, virtiofs: bool) -> list[str]:
    (tmp_path / "boot").mkdir(exist_ok=True)
    (tmp_path / "boot/vmlinuz-6.12").touch()
    disk = tmp_path / "disk.raw"
    return machine.qemu_command(
        machine.Machine("host2", "id", tmp_path, disk, 1024, "tcg", watchdog=True, virtiofs=virtiofs)
    )


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the record of a lab is that the test stands up."""
    file = tmp_path / "lab.json"
    monkeypatch.setattr(record, "RECORD", file)
    return file


def stand(file: Path, **more: object) -> None:
    file.write_text(json.dumps({"hosts": 2, "memory_mib": None, "image": "x", **more}))


def test_a_host_of_an_nfs_lab_has_no_datastore_of_its_own(tmp_path: Path) -> None:
    assert any("vhost-user-fs" in word for word in made(tmp_path, virtiofs=True))
    assert not any("datastore" in word for word in made(tmp_path, virtiofs=False))
    for host in (NfsHost("host1"), StorageBox(names.STORAGE)):
        assert "virtiofs" not in host.own_files()["/etc/fstab"]
        assert names.DATASTORE_MOUNT not in host.up_when
    assert "/etc/fstab" not in VmHost("host1").own_files()  # the image's, with virtiofs
    assert names.DATASTORE_MOUNT in VmHost("host1").up_when


def test_the_storage_vm_runs_no_libvirt_and_is_made_by_vagrants_script() -> None:
    files = StorageBox(names.STORAGE).own_files()
    assert files["/etc/systemd/system/libvirtd.service"] == ""
    assert "Address=10.77.2.10/24\n" in files["/etc/systemd/network/20-mig0.network"]
    assert names.export() == "10.77.2.10:/export/ftkvm"
    assert PROVISION.exists()


def test_a_lab_over_nfs_has_one_machine_more(standing: Path) -> None:
    stand(standing, hosts_as="vms", nfs=True)
    assert [type(each) for each in lab.hosts()] == [NfsHost, NfsHost]
    assert [each.name for each in lab.machines()] == [names.STORAGE, "host1", "host2"]
    assert isinstance(lab.host(names.STORAGE), StorageBox)
    assert lab.record().storage == "nfs"


def test_other_labs_have_none(standing: Path) -> None:
    stand(standing)  # of a version without NFS
    assert [type(each) for each in lab.machines()] == [Host, Host]
    assert lab.record().storage == "bindfs"
    with pytest.raises(FtkvmError) as caught:
        lab.host(names.STORAGE)
    assert caught.value.code == "FTKVM-723"
    stand(standing, hosts_as="vms")
    assert lab.record().storage == "virtiofs"


@pytest.mark.parametrize(
    ("there", "asked", "code"),
    [
        ({"hosts_as": "containers"}, True, "FTKVM-744"),
        ({"hosts_as": "vms"}, True, "FTKVM-745"),
        ({"hosts_as": "vms", "nfs": True}, False, "FTKVM-745"),
    ],
)
def test_a_labs_datastore_stays_what_it_is(standing: Path, there: dict[str, object], asked: bool, code: str) -> None:
    stand(standing, **there)
    with pytest.raises(FtkvmError) as caught:
        lab.up(1, None, print, nfs=asked)
    assert caught.value.code == code and caught.value.remedy


def test_the_storage_vm_is_asked_nothing_that_is_a_hosts() -> None:
    box = StorageBox(names.STORAGE)
    for act in (box.hang_storage, box.fail_storage, lambda: box.mend_storage("hung")):
        with pytest.raises(FtkvmError) as caught:
            act()
        assert caught.value.code == "FTKVM-746"


# -- late frames ------------------------------------------------------------------------------------------------


def test_frames_are_late_in_both_directions_and_it_is_taken_back_whole() -> None:
    script = slowness.script("ft0", 2.5, 1)
    assert script.count("netem limit 100000 delay 2500us loss 1%") == 2
    undo = slowness.script("ft0", 0, 0).splitlines()
    assert script.splitlines()[: len(undo)] == undo  # so a second call sets, it does not add
    assert not any("add" in line for line in undo)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_only_what_is_asked_for_is_set() -> None:
    assert "loss" not in slowness.script("ft0", 5, 0)
    assert "delay" not in slowness.script("ft0", 0, 5)


@pytest.mark.parametrize("nic", [network.nic for network in names.NETWORKS.values()])
def test_the_device_for_incoming_frames_has_a_name_that_fits_the_kernel(nic: str) -> None:
    assert len(slowness.ifb(nic)) <= 15


def test_a_containers_frames_are_not_late() -> None:
    with pytest.raises(FtkvmError) as caught:
        Host("host1").slow("ft", 5, 0)
    assert caught.value.code == "FTKVM-747"


# -- the datastore from outside: the same contract, wherever it lies ----------------------------------------------


class Here:
    """A server whose shell is this machine's."""

    def enter_command(self, command: Sequence[str]) -> list[str]:
        return list(command)


@pytest.fixture(params=["local", "served"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> datastore.Datastore:
    root = tmp_path / "the datastore"
    root.mkdir()
    return datastore.Local(root) if request.param == "local" else datastore.Served(Here(), str(root))


def test_what_is_put_there_can_be_read_and_removed(store: datastore.Datastore, tmp_path: Path) -> None:
    sources = [tmp_path / "vmlinuz", tmp_path / "initrd"]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number, 0, 255]))
    store.put("guest/one", sources)
    sources[0].write_bytes(b"another")
    store.put("guest/one", sources)  # what is there stays
    assert store.read("guest/one/*") == {"guest/one/initrd": b"\1\0\xff", "guest/one/vmlinuz": b"\0\0\xff"}
    store.remove("guest/one/vmlinuz")
    store.remove("guest/one/vmlinuz")
    assert list(store.read("guest/one/*")) == ["guest/one/initrd"]
    assert store.read("guest/two/*.winner") == {}


def test_a_server_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(FtkvmError) as caught:
        datastore.Served(Here(), str(tmp_path / "gone")).read("x")
    assert caught.value.code == "FTKVM-709" and "gone" in str(caught.value)
