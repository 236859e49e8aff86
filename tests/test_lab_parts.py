"""The lab's parts that need no lab: addresses, archives, the ledger's format, errors."""

import struct
import zlib
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import demo, faults, image, lab, ledger, names, preflight, recipe, record
from ftkvm.lab.guest import build


def test_every_address_of_the_lab_is_its_own() -> None:
    hosts = names.host_names(names.MAX_HOSTS)
    addresses = [names.host_address(h, n) for h in hosts for n in names.HOST_NETWORKS]
    addresses += [names.host_address(names.STORAGE, n) for n in names.HOST_NETWORKS]
    addresses += [names.client_address(n) for n in names.CLIENT_NETWORKS]
    macs = [names.mac(end, n) for end in [*hosts, names.STORAGE, "client"] for n in names.NETWORKS]
    assert len(set(addresses)) == len(addresses)
    assert len(set(macs)) == len(macs)


def test_interface_names_fit_the_kernel() -> None:
    for end in [*names.host_names(names.MAX_HOSTS), names.STORAGE, "client"]:
        for network in names.NETWORKS:
            assert len(names.port(end, network)) <= 15


def test_the_recipe_hash_changes_with_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe.recipe_hash()
    monkeypatch.setattr(recipe, "BASE_PACKAGES", (*recipe.BASE_PACKAGES, "another"))
    assert recipe.recipe_hash() != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# x\ndeb [signed-by=/k] http://mirror.invalid/debian bookworm main\n"),
        (
            "sources.list",
            "deb http://mirror.invalid/security bookworm-security main\ndeb http://mirror.invalid/debian trixie main\n",
        ),
        ("sources.list.d/debian.sources", "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm\n"),
    ],
)
def test_the_machines_mirror_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert image.machine_mirror(tmp_path) == "http://mirror.invalid/debian"


@pytest.mark.parametrize(
    "text",
    ["", "deb http://mirror.invalid/ubuntu noble main\n", "deb-src http://mirror.invalid/debian bookworm main\n"],
)
def test_no_mirror_is_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(text)
    assert image.machine_mirror(tmp_path) is None


def test_a_disabled_source_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.invalid/a\nSuites: bookworm\nEnabled: no\n"
    )
    assert image.machine_mirror(tmp_path) is None


def test_an_archive_has_names_contents_and_alignment() -> None:
    archive = build.cpio({"init": b"abc", "modules/order": b""}, directories=("dev",))
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    assert b"init\0" in archive and b"TRAILER!!!" in archive
    header = archive[archive.index(b"init\0") - 110 :]
    assert int(header[54:62], 16) == 3  # c_filesize
    assert int(header[14:22], 16) == 0o100755  # c_mode


def sector(number: int, text: bytes, times: int = 1) -> bytes:
    head = struct.pack("<8sQII", b"FTLEDGER", number, times, len(text)) + text
    body = head.ljust(508, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def test_records_are_read_back_and_damage_is_not() -> None:
    damaged = bytearray(sector(2, b"two"))
    damaged[30] ^= 1
    raw = bytes(512) + sector(1, b"one", times=2) + bytes(damaged) + sector(9, b"stray")
    assert ledger.parse(raw) == {1: ledger.Entry(1, 2, "one")}


def test_the_demo_is_judged_by_what_it_promises() -> None:
    good = {
        "counter_gaps": 0,
        "lost_records": 0,
        "doubled_records": 0,
        "wrong_records": 0,
        "records_refused": 0,
        "connection_survived": True,
        "emitters_after_crash": {"host2": 10},
    }
    assert demo.judge(good) == []
    assert demo.judge({**good, "lost_records": 1}) == ["lost_records"]
    assert demo.judge({**good, "emitters_after_crash": {"host1": 1, "host2": 10}}) == ["emitters_after_crash"]
    assert "connection_survived" in demo.judge({})


def test_without_a_lab_each_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RECORD", tmp_path / "none.json")
    for act in (lambda: faults.crash("host1"), lambda: faults.cut("host1", "ft"), lambda: lab.status()):
        with pytest.raises(FtkvmError) as caught:
            act()
        assert caught.value.code == "FTKVM-720"


def test_a_missing_command_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None if name == "gcc" else f"/usr/bin/{name}")
    with pytest.raises(FtkvmError) as caught:
        preflight.check()
    assert caught.value.code == "FTKVM-703"
    assert "apt-get install gcc" in caught.value.remedy


def test_too_many_hosts_are_refused_before_anything_is_made() -> None:
    for count in (0, names.MAX_HOSTS + 1):
        with pytest.raises(FtkvmError) as caught:
            lab.up(count, None, print)
        assert caught.value.code == "FTKVM-706"
