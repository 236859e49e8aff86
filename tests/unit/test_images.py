"""Images with the real qemu-img: what lies on an image that a VM is about to be started from."""

import os
import subprocess
from pathlib import Path

from ftkvm.adapters import images


def overlay(path: str, below: str) -> str:
    images.create_overlay(path, below, "qcow2")
    return path


def test_an_overlay_that_was_left_on_an_image_is_found(tmp_path: Path) -> None:
    base = str(tmp_path / "vm.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
    assert images.overlays_on(base) == ()
    primary = overlay(f"{base}.ft-1-p.qcow2", base)
    loser = overlay(f"{base}.ft-1-s.qcow2", base)
    images.create_empty(f"{base}.ft-1-a.qcow2", 1 << 20)  # scratch: names no backing file
    overlay(str(tmp_path / "other.qcow2.ft-1-p.qcow2"), base)  # of another disk by its name
    assert images.overlays_on(base) == (primary, loser)
    assert images.overlays_on(primary) == ()  # the loser lies beside the winner, not on it
    cut_off = overlay(f"{base}.ft-2-p.qcow2", primary)
    assert images.overlays_on(primary) == (cut_off,)


def test_a_snapshot_taken_with_virsh_is_found_if_it_is_newer(tmp_path: Path) -> None:
    base, beside = str(tmp_path / "vm.qcow2"), str(tmp_path / "vm2.qcow2")
    for path in (base, beside):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    (tmp_path / "notes.txt").write_text("QFI")
    (tmp_path / "directory").mkdir()
    snapshot = overlay(str(tmp_path / "vm.s1"), base)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vm2.qcow2", "-F", "qcow2", f"{beside}.s"], check=True
    )
    overlay(f"{base}.ft-1-p.qcow2", base)
    for older, newer in ((base, snapshot), (beside, f"{beside}.s")):
        os.utime(older, (100, 100))
        os.utime(newer, (200, 200))
    assert images.snapshots_on(base) == (snapshot,)
    assert images.snapshots_on(beside) == (f"{beside}.s",)  # its name is relative to it
    os.utime(base, (300, 300))
    assert images.snapshots_on(base) == ()  # the VM ran from the image since
