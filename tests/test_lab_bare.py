"""Bare hosts: what they have and have not, the lab's mirror, and the README's commands that make them hosts."""

import json
import os
import re
import shlex
from pathlib import Path

import click
import psutil
import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.main import cli
from ftkvm.lab import lab, names, real_hosts, recipe, record
from ftkvm.lab.guest.build import GuestFiles
from ftkvm.lab.vm import bare, mirror
from hostprep.ground import Ground
from hostprep.nics import Nic
from hostprep.sources import BACKPORTS_SUITE, SUITE, debian, files, parse

LINES = real_hosts.commands(real_hosts.README.read_text())
ADDED = [shlex.split(line)[3:] for line in LINES if line.startswith("ftkvm host add")]


def test_a_bare_host_has_one_address_and_four_named_nics() -> None:
    made = bare.nic_files("host2")
    assert sum(name.endswith(".link") for name in made) == len(names.NETWORKS)
    interfaces = made["/etc/network/interfaces.d/mgmt0"]
    assert "address 10.77.0.12/24" in interfaces and "gateway 10.77.0.2" in interfaces
    assert not any(address in text for text in made.values() for address in ("10.77.1.", "10.77.2.", "10.77.3."))


def test_its_image_has_nothing_of_ours() -> None:
    said = json.dumps([bare.PACKAGES, bare.FILES])
    assert not re.search("qemu|libvirt|python|nfs|br-vm|tun", said)
    assert not set(bare.FILES) & set(recipe.FILES) - {"/etc/systemd/journald.conf.d/ftlab.conf"}


def test_backports_are_added_by_its_own_source() -> None:
    sources = parse(bare.FILES["/etc/apt/sources.list"] + "==sources==\n")
    assert debian(sources) is not None
    ((_path, (content, _mode)),) = files(sources).items()
    assert f"URIs: {mirror.URL}\nSuites: {BACKPORTS_SUITE}\n" in content.decode()
    assert "Trusted: yes" in content.decode()


def test_the_mirrors_suites_are_called_as_debians() -> None:
    assert mirror.SUITES == (SUITE, BACKPORTS_SUITE)
    assert "NotAutomatic" not in mirror._release(SUITE)
    assert f"Codename={BACKPORTS_SUITE}'" in mirror._release(BACKPORTS_SUITE)
    assert "NotAutomatic=yes" in mirror._release(BACKPORTS_SUITE)


def test_only_the_very_process_is_the_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mirror, "PID", tmp_path / "pid")
    assert mirror._process() is None
    me = psutil.Process()
    mirror.PID.write_text(f"{me.pid} {me.create_time()}")
    assert mirror._process() == me
    mirror.PID.write_text(f"{me.pid} {me.create_time() - 1}")  # another process had the number
    assert mirror._process() is None


def test_a_lab_is_bare_from_its_beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RECORD", tmp_path / "lab.json")
    with pytest.raises(FtkvmError) as caught:
        lab.up(3, None, print, lab.CONTAINERS, bare=True)
    assert caught.value.code == "FTKVM-605"
    record.Record(3, None, "x", lab.VMS, nfs=True).write()
    with pytest.raises(FtkvmError) as caught:
        lab.up(3, None, print, bare=True)
    assert caught.value.code == "FTKVM-740"
    record.Record(1, None, "x", lab.VMS, nfs=True, bare="y").write()
    assert [type(each) for each in lab.hosts()] == [bare.BareHost]


# ------------------------------------------------------------------------------------------------ the README's block


def test_the_block_makes_hosts_of_the_labs_bare_machines() -> None:
    """Its names, NICs and addresses are those of the lab, so that it can be run as it stands."""
    assert [words[0] for words in ADDED] == names.host_names(3) == real_hosts.hosts_in(LINES)
    for name, *words in ADDED:
        pairs = list(zip(words[::2], words[1::2], strict=True))
        nics = [Nic.parse(value) for word, value in pairs if word == "--nic"]
        assert {nic.network for nic in nics} == {"ft", "migration"}
        for nic in nics:
            assert nic.nics == (names.NETWORKS[nic.network].nic,)
            assert str(nic.address) == f"{names.host_address(name, nic.network)}/24"
        rest = {word: value for word, value in pairs if word != "--nic"}
        assert rest == {"--bridge-nic": names.NETWORKS["vm"].nic, "--datastore-nfs": names.export()}
        Ground(rest["--bridge-nic"], rest["--datastore-nfs"], tuple(nics))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("ftkvm ")])
def test_its_commands_exist_with_their_options(line: str) -> None:
    words, command = shlex.split(line)[1:], cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("ftkvm", words)


def test_the_block_by_the_hosts_that_are_there_and_by_what_comes_before_ft() -> None:
    two = real_hosts.commands(real_hosts.README.read_text(), ["host1", "host2"])
    assert [line for line in LINES if line not in two] == [
        line for line in LINES if line.startswith("ftkvm host add host3")
    ]
    before, enable, then = real_hosts.phases(two)
    assert [*before, enable, *then] == two
    assert enable == "ftkvm enable vm1" and "ftkvm vm start vm1" in before
    with pytest.raises(ValueError, match="enable"):
        real_hosts.phases(before)


def test_a_readme_without_the_block_is_an_error() -> None:
    with pytest.raises(IndexError):
        real_hosts.commands("# ftkvm\n\n## Use it\n")


def test_the_seats_programs_are_this_trees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(real_hosts, "SEAT", tmp_path)
    there = GuestFiles(Path("/srv/ftkvm/guest/vmlinuz"), Path("/srv/ftkvm/guest/initrd"))
    monkeypatch.setattr(real_hosts.domain, "install_files", lambda: there)
    stage = real_hosts.Stage(("host1",))
    real_hosts.prepare_seat(stage)
    assert f"PYTHONPATH={real_hosts.TREE}" in (tmp_path / "bin/ftkvm").read_text()
    assert os.access(tmp_path / "bin/ssh", os.X_OK)
    assert "<domain type='kvm'>" in (tmp_path / "vm1.xml").read_text()
    assert real_hosts.environment(stage)["PATH"].startswith(f"{tmp_path}/bin:")
