"""The Vagrantfile, as Vagrant and vagrant-libvirt themselves read it. Boxes are neither fetched nor started here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).parents[2]
SCRIPTS = ("up", "reach", "cluster", "storage.sh")

pytestmark = pytest.mark.skipif(
    shutil.which("vagrant") is None or shutil.which("ruby") is None,
    reason="no vagrant: `make test` installs Debian's vagrant and vagrant-libvirt",
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Vagrant's own state in a directory of the test's."""
    return {**os.environ, "VAGRANT_HOME": str(tmp_path), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}


def boxes(environment: dict[str, str], **more: str) -> dict[str, dict[str, Any]]:
    command = ["ruby", str(Path(__file__).with_name("vagrant_shape.rb")), str(TREE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment | more)
    assert done.returncode == 0, done.stderr
    return {box["name"]: box for box in json.loads(done.stdout.splitlines()[-1])}


def test_vagrant_says_that_it_is_valid(environment: dict[str, str]) -> None:
    command = ["vagrant", "validate"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=120, env=environment)
    assert "validated successfully" in done.stdout, done.stderr
    assert done.returncode == 0


def test_three_hosts_and_their_storage(environment: dict[str, str]) -> None:
    found = boxes(environment)
    assert list(found) == ["storage", "kvm1", "kvm2", "kvm3"]
    for name in ("kvm1", "kvm2", "kvm3"):
        box = found[name]
        assert (box["hostname"], box["nested"], box["cpu_mode"]) == (name, True, "host-passthrough")
        assert box["watchdog"] == {"model": "i6300esb", "action": "poweroff"}
        kinds = [network["libvirt__network_name"] for network in box["networks"]]
        assert kinds == ["ftkvm-management", "ftkvm-ft", "ftkvm-migration", "ftkvm-vm"]
        assert box["networks"][3]["auto_config"] is False
        assert box["provisioners"] == []  # hostprep and nothing else
    assert found["storage"]["provisioners"] == [["shell", "vagrant/storage.sh"]]


def test_no_two_boxes_share_an_address_or_a_mac(environment: dict[str, str]) -> None:
    networks = [network for box in boxes(environment, FTKVM_HOSTS="5").values() for network in box["networks"]]
    assert len(networks) == 1 + 5 * 4
    addresses = [network["ip"] for network in networks]
    macs = [network["mac"] for network in networks if "mac" in network]
    assert len(set(addresses)) == len(addresses)
    assert len(set(macs)) == len(macs) == 5


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_plain_shell(name: str) -> None:
    script = TREE / "vagrant" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["dash", "-n", str(script)], check=True)


def test_what_up_passes_on_is_what_the_vagrantfile_made(environment: dict[str, str], tmp_path: Path) -> None:
    """vagrant/up with a vagrant that does nothing, and with `cluster` and `reach` that tell what they were given."""
    copy = tmp_path / "tree"
    shutil.copytree(TREE / "vagrant", copy / "vagrant", ignore=shutil.ignore_patterns(".cluster"))
    said = tmp_path / "said"
    for name in ("vagrant/reach", "vagrant/cluster", "bin/vagrant"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(f'#!/bin/sh\necho {name} "$@" "${{FTKVM_EXPORT:-}}" >> {said}\n')
        (copy / name).chmod(0o755)
    path = f"{copy}/bin:{os.environ['PATH']}"
    subprocess.run(
        [copy / "vagrant/up", "2"], check=True, env=environment | {"PATH": path, "FTKVM_HOME": str(tmp_path)}
    )
    found = boxes(environment, FTKVM_HOSTS="2")
    hosts = [f"{name}={box['networks'][0]['ip']}={mac(box)}" for name, box in found.items() if name != "storage"]
    export = f"{found['storage']['networks'][0]['ip']}:/srv/ftkvm"
    words = [line.split() for line in said.read_text().splitlines()]
    assert words == [["bin/vagrant", "up"], ["vagrant/reach", "2", str(tmp_path)], ["vagrant/cluster", *hosts, export]]


def mac(box: dict[str, Any]) -> str:
    """As `ip` writes it."""
    digits = str(box["networks"][3]["mac"])
    return ":".join(digits[index : index + 2] for index in range(0, 12, 2))
