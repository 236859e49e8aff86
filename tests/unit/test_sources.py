"""Where apt's packages come from: both forms of its sources, and backports by the host's own way to Debian."""

import subprocess
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from hostprep import plan as planning
from hostprep import sources
from hostprep.sources import FILE, Source, parse
from tests.unit.test_hostprep import good, wish

STANZAS = """
# the installer's
Types: deb deb-src
URIs: https://mirror.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://vendor.example/tool
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: https://off.example
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: https://mirror.example/debian
Suites: trixie
Components: main
"""
LINES = """\
# deb http://commented.example/debian trixie main
deb cdrom:[Debian GNU/Linux 13]/ trixie main
deb-src http://mirror.example/debian trixie main
deb [arch=amd64,i386 signed-by=/k.gpg trusted=yes] http://mirror.example/debian trixie main contrib # ours
"""


def test_both_forms_are_read() -> None:
    of_lines = parse(f"{LINES}==sources==\n")
    options = {"Architectures": "amd64 i386", "Signed-By": "/k.gpg", "Trusted": "yes"}
    assert of_lines == (Source(("http://mirror.example/debian",), ("trixie",), ("main", "contrib"), options),)
    first, vendor = parse(f"==sources==\n{STANZAS}")
    assert first.suites == ("trixie", "trixie-updates")
    assert first.options == {"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}
    assert vendor.options["Signed-By"].endswith("\n -----END PGP PUBLIC KEY BLOCK-----")


@pytest.mark.parametrize(
    ("text", "uri", "option"),
    [
        (f"{LINES}==sources==\n", "http://mirror.example/debian", "Trusted: yes"),
        (f"deb https://vendor.example/tool trixie main\n==sources==\n{STANZAS}", "https://mirror.example/debian",
         "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"),
        ("deb http://mirror.example/debian stable main\n==sources==\n", "http://mirror.example/debian", ""),
    ],
)  # fmt: skip
def test_backports_come_from_where_debian_comes_from(text: str, uri: str, option: str) -> None:
    """Not from a vendor whose suites are named after Debian's; with the operator's own keys and options."""
    ((path, (content, mode)),) = sources.files(parse(text)).items()
    lines = content.decode().splitlines()
    assert (path, mode) == (FILE, 0o644)
    assert f"URIs: {uri}" in lines and "Suites: trixie-backports" in lines and (option in lines or not option)
    assert sources.has_backports(parse(f"==sources==\n{content.decode()}"))


@pytest.mark.parametrize("suite", ["trixie-backports", "stable-backports"])
def test_backports_that_are_there_are_left(suite: str) -> None:
    assert sources.files(parse(f"{LINES}deb http://mirror.example/debian {suite} main\n==sources==\n")) == {}


def test_a_host_whose_apt_knows_no_debian_is_refused() -> None:
    bare = good().__class__(**{**vars(good()), "packages": {}})
    with pytest.raises(FtkvmError) as caught:
        planning.require(bare, wish())
    assert caught.value.code == "FTKVM-364"
    planning.require(bare.__class__(**{**vars(bare), "sources": parse(f"{LINES}==sources==\n")}), wish())


def test_the_command_prints_both_forms_and_not_our_own_file(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(LINES)
    (tmp_path / "sources.list.d/debian.sources").write_text(STANZAS.strip())
    (tmp_path / "sources.list.d" / Path(FILE).name).write_text("Types: deb\nURIs: http://ours.example\n")
    (tmp_path / "sources.list.d/z.sources").write_text(STANZAS.strip())
    said = subprocess.run(["sh", "-c", sources.COMMAND.replace("/etc/apt", str(tmp_path))], capture_output=True)
    assert len(parse(said.stdout.decode())) == 5
    assert b"ours.example" not in said.stdout


def test_apts_own_files_come_before_the_packages() -> None:
    """So QEMU is from backports also where it comes as a dependency of libvirt."""
    files = {"/etc/x": (b"x", 0o644), FILE: (b"source", 0o644), "/etc/apt/preferences.d/ftkvm": (b"pin", 0o644)}
    bare = good().__class__(**{**vars(good()), "packages": {}})
    names = [step.name for step in planning.plan(bare, wish(files))]
    packages = next(i for i, name in enumerate(names) if name.startswith("packages"))
    assert set(names[:packages]) == {"journal", f"file {FILE}", "file /etc/apt/preferences.d/ftkvm"}
    assert names.index("file /etc/x") > packages
