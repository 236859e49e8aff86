"""libvirt's AppArmor profile before a merge: one line goes."""

from pathlib import Path

import pytest

from ftkvm.adapters import apparmor

UUID = "6086778a-1a4a-42b5-a74d-34d7d9b82a7e"
RULES = """\
  "/srv/ftkvm/images/vm1.qcow2.ft-8-s.qcow2" rwk,
  "/srv/ftkvm/images/vm1.qcow2" rk,
  # don't audit writes to readonly files
  deny "/srv/ftkvm/images/vm1.qcow2" w,
  deny "/srv/ftkvm/images/vm1.qcow2.old" w,
  "/srv/ftkvm/images/vm1.qcow2" rwk,
"""
"""As libvirt 11.3 had written it on a host when a commit had been refused."""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / f"libvirt-{UUID}.files"
    file.write_text(RULES)
    return file


def test_only_the_rule_that_forbids_the_image_goes(rules: Path) -> None:
    assert apparmor.let_write(UUID, "/srv/ftkvm/images/vm1.qcow2", rules.parent)
    assert rules.read_text() == RULES.replace('  deny "/srv/ftkvm/images/vm1.qcow2" w,\n', "")
    assert not apparmor.let_write(UUID, "/srv/ftkvm/images/vm1.qcow2", rules.parent)


def test_without_a_profile_nothing_is_done(tmp_path: Path) -> None:
    assert not apparmor.let_write(UUID, "/srv/ftkvm/images/vm1.qcow2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_logged_and_the_merge_tried(
    rules: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    (rules.parent / f"{rules.name}.tmp").mkdir()
    assert not apparmor.let_write(UUID, "/srv/ftkvm/images/vm1.qcow2", rules.parent)
    assert "still forbids" in caplog.text
    assert rules.read_text() == RULES
