"""The scratch images of a secondary are those, and only those, that a confined QEMU is let open."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from ftkvm.adapters import images
from ftkvm.engine.secondary import Overlays
from hostprep import apparmor

(RULE,) = (line for line in apparmor.TEXT.decode().splitlines() if not line.startswith("#"))
PATTERN = RULE.partition(" ")[0]


def matches(path: str) -> bool:
    """As AppArmor's globs: `**` is anything, `*` anything but a slash (apparmor.d(5)); no name here has one more."""
    return fnmatchcase(path, PATTERN.replace("**", "*"))


@pytest.mark.parametrize("epoch", [1, 7, 123])
def test_the_scratch_images_and_no_other(epoch: int) -> None:
    disk = f"/srv/ftkvm/images/vm 1.ft-{epoch}-s.qcow2"
    overlays = Overlays.beside(disk)
    assert matches(overlays.hidden) and matches(overlays.active)
    assert not matches(disk) and not matches("/srv/ftkvm/images/vm 1.qcow2") and not matches("/etc/shadow")
    assert RULE.endswith(" rwk,")


def test_scratch_images_belong_to_whom_the_disk_belongs(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "s", tmp_path / "h"
    disk.touch()
    scratch.touch()
    if os.geteuid() == 0:
        os.chown(disk, 64055, 64055)
    images.own_like(str(scratch), str(disk))
    assert (scratch.stat().st_uid, scratch.stat().st_gid) == (disk.stat().st_uid, disk.stat().st_gid)
