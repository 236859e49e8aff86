"""What a power loss may do to files: in which order they are put on the disk, and what readers do with half a file."""

import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ftkvm
from ftkvm.adapters import local_file, pki
from ftkvm.adapters.pki import Authority, TlsFiles, write_private
from ftkvm.agent.beat_keys import load
from ftkvm.agent.ha.guard import read_state
from ftkvm.agent.operations import Operations
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.main import main
from ftkvm.core.trust import Role
from ftkvm.home import Home
from ftkvm.keeper.store import PairStore

DAMAGED = [b"", b"\x00" * 64, b"{", b"-----BEGIN CERTIFICATE-----\n", b"null", b"\xff\xfe\n"]

# ------------------------------------------------------------------------------------------- what is on the disk when


def system_calls(tmp_path: Path, code: str) -> list[str]:
    """The file system calls of a Python program that concern ``tmp_path``, in their order, as the kernel saw them."""
    trace = tmp_path.with_suffix(".strace")
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir"
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(trace), sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(ftkvm.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("no tracing here")
    assert done.returncode == 0, done.stderr
    named = re.compile(re.escape(str(tmp_path)) + r'/?([^>"]*)[>"]')
    found = []
    for line in trace.read_text().splitlines():
        names = named.findall(line)
        if names and "ENOENT" not in line:
            call = line.split("(")[0].split()[-1].rstrip("2").removesuffix("at")
            found.append(f"{call} {names[-1] or '.'}")
    return found


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path: Path) -> None:
    code = """if 1:
        import sys
        from pathlib import Path
        from ftkvm.adapters.local_file import replace_durably
        replace_durably(Path(sys.argv[1]) / "f", b"content")
        replace_durably(Path(sys.argv[1]) / "f", b"other")
    """
    assert system_calls(tmp_path, code) == ["fsync f.tmp", "rename f", "fsync ."] * 2
    assert (tmp_path / "f").read_bytes() == b"other"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


@needs_strace
def test_a_renewal_puts_the_key_on_the_disk_before_its_certificate_is_in_place(tmp_path: Path) -> None:
    authority = Authority.create("test")
    files = files_of(tmp_path, authority)
    new = authority.issue("host1", role=Role.HOST)
    write_private(tmp_path / "host.key.new", new.key)
    write_private(tmp_path / "host.crt.new", new.certificate)
    code = """if 1:
        import sys
        from pathlib import Path
        from ftkvm.adapters.pki import TlsFiles
        from ftkvm.adapters.trust import finish_renewal
        finish_renewal(TlsFiles.in_directory(Path(sys.argv[1]), "host"))
    """
    assert system_calls(tmp_path, code) == ["rename host.key", "fsync .", "rename host.crt", "fsync ."]
    assert pki.unusable(files) is None


@needs_strace
def test_a_clusters_directory_is_on_the_disk_with_the_directories_above_it(tmp_path: Path) -> None:
    code = """if 1:
        import sys
        from pathlib import Path
        from ftkvm.adapters.local_file import make_directory
        make_directory(Path(sys.argv[1]) / "a/b")
    """
    made = [call for call in system_calls(tmp_path, code) if call.startswith("fsync")]
    assert made == ["fsync .", "fsync a"]


def test_what_means_nothing_after_a_power_loss_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def never(_descriptor: int) -> None:
        raise AssertionError("waits for the disk")

    monkeypatch.setattr(os, "fsync", never)
    local_file.replace_volatile(tmp_path / "f", b"key", like=tmp_path)
    assert (tmp_path / "f").read_bytes() == b"key"
    with pytest.raises(AssertionError):
        local_file.replace_durably(tmp_path / "f", b"key")
    assert (tmp_path / "f").read_bytes() == b"key"


def test_a_file_that_cannot_be_synced_does_not_get_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "f", b"before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_private(tmp_path / "f", b"after")
    assert (tmp_path / "f").read_bytes() == b"before"


WRITERS = {
    "adapters/datastore.py": "the datastore: argued there, syncs itself",
    "adapters/local_file.py": "this is it",
    "agent/cluster.py": "/run/ftkvm/cluster.json",
    "agent/ha/guard.py": "/run/ftkvm/watchdog.json; written with each heartbeat",
    "agent/ha_vm_monitor.py": "/run/ftkvm/vm-monitor.json",
    "agent/holds.py": "/run/ftkvm/hold",
    "agent/migrate.py": "/run/ftkvm/incoming",
    "agent/operations.py": "/run/ftkvm/operations",
    "cli/simulate.py": "a developer's golden logs",
    "home.py": "empty files, to be locked",
    "keeper/probe.py": "the datastore: syncs the content; a heartbeat means nothing after a power loss",
    "keeper/store.py": "/run/ftkvm/pairs; the keeper never waits for a disk",
}
"""Everybody who writes files past ``local_file``, and why that is right."""


def test_nobody_else_writes_files() -> None:
    root = Path(ftkvm.__file__).parent
    writes = re.compile(
        r"\.write_(text|bytes)\(|os\.O_(WRONLY|RDWR)[^\n]*O_CREAT|open\(\"[wxa]b?\"|(temporary|part|new)\.re(place|name)\("
    )
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if not {"lab", "sim"} & set(path.relative_to(root).parts[:1]) and writes.search(path.read_text())
    }
    assert found == set(WRITERS)


# ---------------------------------------------------------------------------------------- what readers do with half


def files_of(directory: Path, authority: Authority) -> TlsFiles:
    files, pair = TlsFiles.in_directory(directory, "host"), authority.issue("host1", role=Role.HOST)
    for path, content in ((files.authority, authority.certificate), (files.certificate, pair.certificate),
                          (files.key, pair.key)):  # fmt: skip
        write_private(path, content)
    return files


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", ["ca.crt", "host.crt", "host.key"])
def test_a_damaged_file_of_a_host_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    files = files_of(tmp_path, Authority.create("test"))
    assert pki.unusable(files) is None
    (tmp_path / name).write_bytes(content)
    found = pki.unusable(files)
    assert found is not None
    assert found[0].name == name
    assert found[1]
    if not content:
        assert found[1] == "it is empty"


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    files = files_of(tmp_path, Authority.create("test"))
    write_private(files.key, Authority.create("test").issue("host1", role=Role.HOST).key)
    assert pki.unusable(files) == (files.key, "it is not the key of host.crt")


@pytest.mark.parametrize("content", [*DAMAGED, b"00" * 31])
def test_a_damaged_beat_key_is_an_error_and_never_a_key_everybody_knows(tmp_path: Path, content: bytes) -> None:
    """An empty file was taken for an empty key: whoever signs with no key at all was believed."""
    (tmp_path / "beat.key").write_bytes(content)
    with pytest.raises(FtkvmError) as caught:
        load(tmp_path / "beat.key")
    assert caught.value.code == "FTKVM-601"
    assert "beat.key" in caught.value.text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FTKVM_HOME", str(tmp_path / "home"))
    networks = [f"--{kind}-network=10.{at}.0.0/24" for at, kind in enumerate(("management", "ft", "migration"))]
    assert main(["cluster", "create", "lab", "--datastore", "/srv/ft", *networks]) == 0
    made = Home()
    made.revoke({"11"})
    return made


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "client.crt", "client.key", "beat.key", "cluster.json",
                                  "certificates.json", "crl.pem"])  # fmt: skip
def test_a_damaged_file_of_the_operator_is_named_by_everything_that_reads_it(
    home: Home, name: str, content: bytes
) -> None:  # fmt: skip
    (home.directory / name).write_bytes(content)
    seen = set()
    for read in (home.load, home.authority, home.beat_keys, home.issued, home.revoked, home.client_context,
                 lambda: home.revoke({"12"})):  # fmt: skip
        try:
            read()
        except FtkvmError as error:
            seen.add((error.code, Path(str(error.params["path"])).name))
    assert seen == {("FTKVM-611", name)}
    assert (home.directory / name).read_bytes() == content


def test_an_empty_revocation_list_is_not_taken_for_none(home: Home) -> None:
    """The next list would have had number 1 again, without those before: no host would ever have taken it."""
    (home.directory / "crl.pem").write_bytes(b"")
    with pytest.raises(FtkvmError) as caught:
        home.revoke({"12"})
    assert caught.value.code == "FTKVM-611"
    assert (home.directory / "crl.pem").read_bytes() == b""


def test_commands_side_by_side_lose_nothing_of_each_other(home: Home) -> None:
    """Five ``host add`` and ``cert revoke`` at once, as a script starts them: all hosts, all certificates, all that was
    revoked is in the files, and each revocation list has a number of its own."""
    authority, names = home.authority(), [f"host{number}" for number in range(5)]
    before, start = home.issued(), threading.Barrier(len(names))

    def add_and_revoke(name: str) -> int:
        mine, pair = Home(home.directory), authority.issue(name, role=Role.HOST)
        start.wait(20)
        mine.put_host(name, {"management": name})
        mine.note(pair.certificate)
        return pki.read_revoked(mine.revoke({name.encode().hex()}), authority.certificate)[0]

    with ThreadPoolExecutor(len(names)) as pool:
        numbers = list(pool.map(add_and_revoke, names))
    assert sorted(home.load().hosts) == names
    assert sorted(row["name"] for row in home.issued() if row not in before) == names
    assert home.revoked() >= {name.encode().hex() for name in names}
    assert len(set(numbers)) == len(names)
    assert sorted(home.drop_host("host3").hosts) == ["host0", "host1", "host2", "host4"]
    with pytest.raises(FtkvmError) as caught:
        home.drop_host("host3")
    assert caught.value.code == "FTKVM-201"


def test_hosts_enter_one_at_a_time(home: Home) -> None:
    entered = threading.Event()

    def enter() -> None:
        with Home(home.directory).entering():
            entered.set()

    with home.entering():
        thread = threading.Thread(target=enter)
        thread.start()
        home.put_host("host1", {})
        assert not entered.wait(0.2)
    assert entered.wait(5)
    thread.join(5)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_under_run_neither_stops_its_reader_nor_hides_others(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """No power loss leaves one there; whoever reads one all the same goes on, and says its name."""
    (tmp_path / "a.json").write_bytes(content)
    assert not read_state(tmp_path / "a.json").armed
    Operations("host1", Workers(), tmp_path).load()
    store = PairStore(tmp_path)
    assert store.load() == {}
    assert caplog.text.count("a.json") == 2
