"""Host preparation: parsers on real output, plans as data, and apply/undo with real commands in a directory."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.core.clock import Clock
from ftkvm.home import ClusterFile, Home
from ftkvm.keeper.keys import BeatKeys
from hostprep import facts as facts_of
from hostprep import packages
from hostprep import plan as planning
from hostprep.apply import apply
from hostprep.facts import BACKPORTS, PACKAGES, UNITS, HostFacts, Link, parse
from hostprep.journal import TakenBack, take_back
from hostprep.package import Package
from hostprep.plan import Wish, plan, require
from hostprep.prepare import host_entry, make_wish, note_certificate, require_newest_keys
from hostprep.preview import preview
from hostprep.ssh import Result
from hostprep.step import NOT_DONE, Step

ANSWERS = {
    "os": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nID=debian\n',
    "packages": "nftables 1.1.3-1 installed\npython3-rich 13.9.4-1 installed\nbindfs 1.17 config-files\n",
    "addresses": '[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},'
    '{"ifname":"mgmt0","addr_info":[{"family":"inet","local":"10.77.0.11","prefixlen":24}]},{"ifname":"vm0","addr_info":[]}]\n',
    "links": '[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8,"scope":"host"}]},'
    '{"ifname":"vm0","master":"br-vm","addr_info":[{"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"}]}]\n',
    "mounted": "storage:/srv/ftkvm\n",
    "bridges": "/sys/class/net/br-vm/bridge\n",
    "mount": "/srv/ftkvm\nstatus 0\n",
    "datastore": "1+0 records in\n1+0 records out\n4096 bytes (4.1 kB, 4.0 KiB) copied, 0.01 s, 0.4 MB/s\nstatus 0\n",
    "qemu": "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\n",
    "libvirt": "libvirtd (libvirt) 11.3.0\n",
    "devices": "/dev/kvm\n/dev/net/tun\n",
    "digests": f"{'a' * 64}  /etc/ftkvm/agent.toml\n",
    "units": "ftkvm-agent.service enabled active\nftkvm-keeper.service inactive\n",
    "clock": "NTPSynchronized=no\nId=chrony.service\nActiveState=active\n",
    "ca": "", "certificate": "", "strangers": "", "manifest": "0123\n",
    "machine": "m1\n", "boot": "b1\n", "configuration": "",
    "firewall": "bridged \nnftables\n", "modules": "kvm_amd\ntun\n",
    "sources": "deb http://mirror.example/debian trixie main\n==sources==\n",
}  # fmt: skip


def answers(**changed: str) -> str:
    parts = {**ANSWERS, **changed, "end": ""}
    return "".join(f"{facts_of.MARK}{name}\n{text}" for name, text in parts.items())


def good() -> HostFacts:
    return HostFacts(
        system="Debian GNU/Linux 13 (trixie)", system_id="debian 13", packages=dict.fromkeys(PACKAGES + BACKPORTS, "1"),
        addresses=("10.0.0.1/24", "10.1.0.1/24", "10.2.0.1/24"), bridges=("br-vm",), mount_point="/srv/ftkvm",
        datastore_status="ok", qemu=(11, 1, 3), libvirt=(11, 3, 0), devices=("/dev/kvm", "/dev/net/tun"), digests={},
    )  # fmt: skip


JOIN: dict[str, Any] = {
    "cluster": "c", "id": "id", "datastore": "/srv/ftkvm", "first": True,
    "host": {"name": "host1", "management": "10.0.0.1", "ft": "10.1.0.1", "migration": "10.2.0.1"},
}  # fmt: skip


def wish(files: Mapping[str, tuple[bytes, int]] | None = None) -> Wish:
    return Wish("host1", "/srv/ftkvm", ("br-vm",), Package(b"tar", "digest"), files or {}, "CA", JOIN)


def test_facts_are_understood() -> None:
    found = parse(answers())
    assert found.system_id == "debian 13"
    assert dict(found.packages) == {"nftables": "1.1.3-1", "python3-rich": "13.9.4-1"}
    assert found.addresses == ("10.77.0.11/24",)
    assert found.bridges == ("br-vm",)
    assert found.links == {"lo": Link(addresses=("127.0.0.1/8",)), "vm0": Link("br-vm")}
    assert found.mounted == "storage:/srv/ftkvm"
    assert (found.mount_point, found.datastore_status) == ("/srv/ftkvm", "ok")
    assert (found.qemu, found.libvirt) == ((11, 1, 3), (11, 3, 0))
    assert found.digests == {"/etc/ftkvm/agent.toml": "a" * 64}
    assert found.units == {"ftkvm-agent.service": ("enabled", "active"), "ftkvm-keeper.service": ("", "inactive")}
    assert found.clock == Clock(False, "chrony")
    assert (found.firewall.manager, found.modules) == ("", ("kvm_amd", "tun"))
    assert (found.manifest, found.machine_id, found.boot_id, found.configuration) == ("0123", "m1", "b1", "")


@pytest.mark.parametrize(("text", "word"), [
    ("dd: failed to open '/x': No such file or directory\nstatus 1\n", "missing"),
    ("dd: failed to open '/x': Read-only file system\nstatus 1\n", "read-only"),
    ("dd: error writing '/x': No space left on device\nstatus 1\n", "full"),
    ("dd: error writing '/x': Disk quota exceeded\nstatus 1\n", "full"),
    ("status 137\n", "hung"),
    ("Killed\nstatus 137\n", "hung"),
])  # fmt: skip
def test_ways_a_datastore_fails(text: str, word: str) -> None:
    assert parse(answers(datastore=text)).datastore_status == word


def test_cut_off_facts_are_no_facts() -> None:
    with pytest.raises(ValueError, match="cut off"):
        parse(answers().rpartition(facts_of.MARK)[0])


def test_the_script_runs_in_a_plain_shell(tmp_path: Path) -> None:
    script = facts_of.script(str(tmp_path), ["/etc/hostname"])
    done = subprocess.run(["sh", "-s"], input=script, capture_output=True, text=True, timeout=60)
    assert facts_of.MARK + "end" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_host_needs_nothing() -> None:
    files = {"/etc/x": (b"content", 0o600)}
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    ready = replace(
        good(), manifest="digest", digests={"/etc/x": digest}, units=dict.fromkeys(UNITS, ("enabled", "active"))
    )
    assert plan(ready, wish(files)) == []


def test_what_changes_restarts_the_services() -> None:
    ready = replace(good(), manifest="older", units=dict.fromkeys(UNITS, ("enabled", "active")))
    assert [step.name for step in plan(ready, wish())] == ["journal", "package", "services"]


@pytest.mark.parametrize(("names", "there"), [(["bash"], True), (["bash", "no-such-package"], False)])
def test_a_package_that_dpkg_has_never_heard_of_is_not_installed(names: list[str], there: bool) -> None:
    assert (subprocess.run(["sh", "-c", packages.installed(names)], capture_output=True).returncode == 0) is there


def test_only_missing_packages_are_installed() -> None:
    bare = replace(good(), packages=dict.fromkeys(PACKAGES[1:], "1"), manifest="digest")
    steps = plan(bare, wish())
    assert steps[1].text == f"install {PACKAGES[0]}"
    assert steps[2].text == f"install {' '.join(BACKPORTS)}"
    assert "trixie-backports" in steps[2].command


@pytest.mark.parametrize(("changed", "code"), [
    ({"system_id": "debian 12"}, "FTKVM-206"), ({"qemu": (10, 0, 7)}, "FTKVM-207"), ({"libvirt": (10, 5)}, "FTKVM-208"),
    ({"bridges": ()}, "FTKVM-213"), ({"ca_certificate": "another"}, "FTKVM-216"), ({"devices": ()}, "FTKVM-217"),
    ({"strangers": ("/opt/ftkvm",)}, "FTKVM-363"),
    ({"datastore_status": "hung"}, "FTKVM-306"), ({"datastore_status": "missing"}, "FTKVM-301"),
    ({"mount_point": "/"}, "FTKVM-301"), ({"datastore_status": "read-only"}, "FTKVM-303"),
    ({"datastore_status": "full"}, "FTKVM-304"), ({"datastore_status": "Input/output error"}, "FTKVM-302"),
])  # fmt: skip
def test_what_no_step_can_mend(changed: dict[str, object], code: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        require(replace(good(), **changed), wish())  # type: ignore[arg-type]
    assert caught.value.code == code


def test_addresses_are_found_by_network() -> None:
    cluster = ClusterFile("c", "id", "/srv/ftkvm", "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"])
    assert host_entry("host1", good(), cluster) == HostEntry("host1", "10.0.0.1", "10.1.0.1", "10.2.0.1")
    with pytest.raises(FtkvmError) as caught:
        host_entry("host1", replace(good(), addresses=("10.0.0.1/24", "10.2.0.1/24")), cluster)
    assert caught.value.code == "FTKVM-212"
    assert "ft" in caught.value.text


class Local:
    """Runs the steps' commands on this machine; the steps' paths are in a test's directory."""

    host = "host1"

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        done = subprocess.run(["sh", "-c", command], input=stdin, capture_output=True, timeout=timeout_s)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def _steps(root: Path, count: int = 4) -> list[Step]:
    journal = f"{root}-journal"
    files = [
        planning.file_step(str(root / f"d{number}" / "file"), f"new {number}".encode(), 0o640, journal)
        for number in range(count)
    ]
    return [planning.journal_step(journal), *files]


def _content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def _state(root: Path) -> dict[str, object]:
    """Everything in a directory: kind, mode, content."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.readlink() if path.is_symlink() else
                                      path.read_text() if path.is_file() else None)
        for path in root.rglob("*")
    }  # fmt: skip


@pytest.mark.parametrize("failing", range(5))
def test_a_failed_step_is_undone_with_those_before(tmp_path: Path, failing: int) -> None:
    (tmp_path / "d1").mkdir()
    (tmp_path / "d1/file").write_text("old 1")
    before = _content(tmp_path)
    steps = _steps(tmp_path)
    steps.insert(failing, Step("bad", "fails", "echo reason >&2; exit 3", "true", "true"))
    with pytest.raises(FtkvmError) as caught:
        apply(Local(), steps, lambda *_: None, {})
    assert caught.value.code == "FTKVM-209"
    assert "reason" in caught.value.text
    assert _content(tmp_path) == before


def test_a_step_is_believed_only_with_its_proof(tmp_path: Path) -> None:
    liar = Step("liar", "says it is done", "true", "test -e nothing", "true")
    with pytest.raises(FtkvmError):
        apply(Local(), [*_steps(tmp_path), liar], lambda *_: None, {})
    assert _content(tmp_path) == {}


class Interrupted(Local):
    """Ctrl-C is pressed while the command runs, which ends on its own; ``mute``: then the connection breaks."""

    def __init__(self, command: str, *, mute: bool = False) -> None:
        self._command, self._mute = command, mute

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        if self._mute and command != self._command and command.startswith("grep"):
            raise FtkvmError("FTKVM-210", host=self.host, address="10.0.0.1", detail="the connection broke")
        done = super().run(command, stdin, timeout_s)
        if command == self._command:
            raise KeyboardInterrupt
        return done


def _entering(register: Path, *, effect: bool) -> Step:
    command = f"cat >> {register}" if effect else "cat > /dev/null"
    question = f"grep -qxF -f - {register} || exit {NOT_DONE}"
    return Step("join", "enter it", command, "true", "true", stdin=b"host1", question=question)


def test_a_step_that_was_done_though_cut_off_is_not_undone(tmp_path: Path) -> None:
    register = tmp_path / "register"
    register.touch()
    join = _entering(register, effect=True)
    steps = _steps(tmp_path / "root")
    apply(Interrupted(join.command), [*steps, join], lambda *_: None, {})
    assert register.read_text() == "host1"
    assert (tmp_path / "root/d3/file").exists()


def test_a_step_that_was_cut_off_and_not_done_is_undone(tmp_path: Path) -> None:
    register = tmp_path / "register"
    register.touch()
    join = _entering(register, effect=False)
    with pytest.raises(KeyboardInterrupt):
        apply(Interrupted(join.command), [*_steps(tmp_path / "root"), join], lambda *_: None, {})
    assert not (tmp_path / "root").exists() or not _content(tmp_path / "root")


@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("mute", [True, False])
def test_nothing_is_undone_while_nobody_knows(tmp_path: Path, effect: bool, mute: bool) -> None:
    """The host does not answer, or cannot tell (the register is not there)."""
    join = _entering(tmp_path / "register", effect=effect and mute)
    if not mute:
        join = replace(join, question="echo the datastore hangs >&2; exit 1")
    with pytest.raises(FtkvmError) as caught:
        apply(Interrupted(join.command, mute=mute), [*_steps(tmp_path / "root"), join], lambda *_: None, {})
    assert caught.value.code == "FTKVM-360"
    assert (tmp_path / "root/d3/file").exists()


def test_the_join_and_its_question_as_they_are_run(tmp_path: Path) -> None:
    """With the real program: asked before, after, and about a host with another address."""
    store = tmp_path / "store"
    store.mkdir()
    document = {**JOIN, "datastore": str(store)}
    step = planning.join_step(replace(wish(), join=document))

    def run(command: str, words: Mapping[str, object]) -> int:
        command = command.replace("/opt/ftkvm", str(Path(__file__).parents[2])).replace("/run/ftkvm", str(tmp_path))
        command = command.replace("python3", sys.executable).replace("sleep 1; ", "")
        return Local().run(command, json.dumps(words).encode()).status

    assert run(step.question, document) == 1, "an empty directory: perhaps the datastore is not mounted"
    assert run(step.command, document) == 0
    assert run(step.question, document) == 0
    other = {**document, "host": {**JOIN["host"], "migration": "10.2.0.9"}}
    assert run(step.question, other) == NOT_DONE
    assert run(step.question, {**document, "id": "another"}) == NOT_DONE


@pytest.mark.parametrize("interrupted", range(6))
def test_interrupted_anywhere_it_can_be_run_again(tmp_path: Path, interrupted: int) -> None:
    root = tmp_path / "root"
    steps = _steps(root)
    for step in steps[:interrupted]:  # the controller dies here: nothing is undone
        Local().run(step.command, step.stdin)
    apply(Local(), steps, lambda *_: None, {})
    wanted = {f"d{number}/file": f"new {number}" for number in range(4)}
    assert {name: text for name, text in _content(root).items() if not name.endswith("before")} == wanted
    assert (root / "d0/file").stat().st_mode & 0o777 == 0o640


def _as_found(root: Path) -> dict[str, object]:
    """A directory in which two of the four files are there: one of another mode, one a link."""
    for name in ("d1", "d2"):
        (root / name).mkdir(parents=True)
    (root / "d1/file").write_text("old 1")
    (root / "d1/file").chmod(0o600)
    (root / "d1/other").write_text("the operator's")
    (root / "d2/file").symlink_to("../d1/other")
    return _state(root)


@pytest.mark.parametrize("interrupted", range(6))
def test_all_of_it_is_taken_back_however_often_it_was_begun(tmp_path: Path, interrupted: int) -> None:
    """The first record counts: what a second run finds is the first one's work."""
    root = tmp_path / "root"
    before = _as_found(root)
    for text in ("first", "second"):
        steps = [replace(step, stdin=step.stdin + text.encode()) for step in _steps(root)]
        for step in steps[:interrupted]:
            assert Local().run(step.command, step.stdin).status == 0
    apply(Local(), _steps(root), lambda *_: None, {})
    shown = take_back(Local(), f"{root}-journal", dry_run=True, program=f"{root}-program", units=())
    assert _state(root) != before
    done = take_back(Local(), f"{root}-journal", program=f"{root}-program", units=())
    assert done == shown
    assert done.restored == [f"{root}/d1/file", f"{root}/d2/file"]
    assert done.removed[:-1] == [f"{root}/d0/file", f"{root}/d3/file"]
    assert _state(root) == before
    assert take_back(Local(), f"{root}-journal", program=f"{root}-program", units=()) == TakenBack()


@pytest.mark.parametrize("lines", range(1, 12))
def test_taking_back_that_was_cut_off_is_run_again(tmp_path: Path, lines: int) -> None:
    root = tmp_path / "root"
    before = _as_found(root)
    apply(Local(), _steps(root), lambda *_: None, {})

    class CutOff(Local):
        """The connection breaks after some lines of the script."""

        def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
            return super().run(command, b"\n".join(stdin.split(b"\n")[:lines]) + b"\n", timeout_s)

    take_back(CutOff(), f"{root}-journal", program=f"{root}-program", units=())
    take_back(Local(), f"{root}-journal", program=f"{root}-program", units=())
    assert _state(root) == before


def test_a_host_from_before_the_journal_has_no_originals(tmp_path: Path) -> None:
    """What is there of ours was written by us: nothing of it comes back."""
    root = tmp_path / "root"
    _as_found(root)
    steps = _steps(root)
    Local().run(steps[0].command)
    (tmp_path / "root-journal/late").touch()
    apply(Local(), steps, lambda *_: None, {})
    done = take_back(Local(), f"{root}-journal", program=f"{root}-program", units=())
    assert done.restored == []
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["other"]


APT = """#!/bin/sh
# as apt-get: -s says what it would do, in the words recorded of apt 2.6 and 3.0; libpixman came with QEMU
case "$*" in
"-s install"*) echo "Inst libc6 [2.41-12] (2.41-13 Debian:13.2 [amd64])"
  for p in libpixman $*; do
    case $p in -*|install|*-backports) ;; *) echo "Inst $p (1.0-1 Debian:13.2/stable [amd64])";; esac
  done;;
"-s purge"*) shift 2; for p in $* $(cat $0.others); do echo "Purg $p [1.0-1]"; done;;
*) echo "$*" >> $0.log;;
esac
"""


class WithApt(Local):
    """A host whose apt is :data:`APT`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        directory.mkdir()
        (directory / "apt-get").write_text(APT)
        (directory / "apt-get").chmod(0o755)
        self.others = directory / "apt-get.others"
        self.others.touch()

    def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        return super().run(f"export PATH={self.path}:$PATH; {command}", stdin, timeout_s)

    def log(self) -> list[str]:
        return (self.path / "apt-get.log").read_text().splitlines()


def test_packages_are_noted_with_what_comes_with_them_and_left_unless_told(tmp_path: Path) -> None:
    """Noted once, and not what was only brought up to date; undone is what the last step brought."""
    journal, host = str(tmp_path / "journal"), WithApt(tmp_path / "bin")
    host.run(planning.journal_step(journal).command)
    for names, option in ((["qemu", "libvirt"], ""), (["libvirt", "python3-rich"], "-t trixie-backports ")):
        done = host.run(packages.install(journal, names, option))
        assert done.status == 0, done.stderr
    told = take_back(host, journal, dry_run=True, program=f"{tmp_path}/program", units=())
    assert told.left[:3] == ["libpixman", "qemu", "libvirt"] and told.left[-1] == "python3-rich"
    assert host.run(packages.undo(journal)).status == 0
    assert "python3-rich" in host.log()[-1] and "qemu" not in host.log()[-1]
    (host.path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    assert host.run(packages.install(journal, ["more"])).status != 0
    (host.path / "apt-get").write_text(APT)
    before = host.log()
    assert host.run(packages.undo(journal)).status == 0
    assert host.log() == before, "a step that brought nothing takes nothing away"
    host.others.write_text("the-operators")
    with pytest.raises(FtkvmError) as caught:
        take_back(host, journal, purge=True, program=f"{tmp_path}/program", units=())
    assert (caught.value.code, "the-operators" in caught.value.text) == ("FTKVM-362", True)
    assert Path(journal).is_dir()
    host.others.write_text("")
    assert take_back(host, journal, purge=True, program=f"{tmp_path}/program", units=()).purged == told.left
    assert host.log()[-1] == f"-q -y purge {' '.join(told.left)}"


@pytest.mark.parametrize("there", [False, True])
def test_what_only_the_agent_writes_is_taken_back(tmp_path: Path, there: bool) -> None:
    """A host gets a revocation list when another one is removed: no step wrote it. A second run finds it."""
    root = tmp_path / "root"
    _as_found(root)
    revoked = root / "pki/crl.pem"
    revoked.parent.mkdir()
    if there:
        revoked.write_text("found")
    (root / "pki/the operator's").touch()
    before = _state(root)
    begin = planning.journal_step(f"{root}-journal", [str(revoked)])
    for text in ("of the first list", "of the second"):
        apply(Local(), [begin, *_steps(root)[1:]], lambda *_: None, {})
        revoked.write_text(text)
    take_back(Local(), f"{root}-journal", program=f"{root}-program", units=())
    assert _state(root) == before


def test_a_list_that_an_older_journal_does_not_know_goes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    before = _as_found(root)
    steps = _steps(root)
    apply(Local(), steps, lambda *_: None, {})
    revoked = root / "d0/crl.pem"
    revoked.write_text("the cluster's")
    apply(Local(), [planning.journal_step(f"{root}-journal", [str(revoked)]), *steps[1:]], lambda *_: None, {})
    take_back(Local(), f"{root}-journal", program=f"{root}-program", units=())
    assert _state(root) == before


def test_the_agents_revocation_list_is_kept_from_the_start(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    cluster = ClusterFile("c", "id", "/srv/ftkvm", "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"])
    home.create(cluster)
    made = make_wish(home, cluster, host_entry("host1", good(), cluster), good())
    assert "/etc/ftkvm/pki/crl.pem" not in made.files
    assert "absent/etc/ftkvm/pki/crl.pem" in plan(good(), made)[0].command


def test_our_own_programs_messages_come_through() -> None:
    error = FtkvmError("FTKVM-610", host="host1", path="/srv", cluster="c")
    text = json.dumps({"error": error.to_json()})
    with pytest.raises(FtkvmError) as caught:
        apply(Local(), [Step("join", "join", f"echo '{text}' >&2; exit 1", "true", "true")], lambda *_: None, {})
    assert caught.value.code == "FTKVM-610"


def test_a_dry_run_shows_commands_and_differences_and_changes_nothing(tmp_path: Path) -> None:
    there, fresh = tmp_path / "there", tmp_path / "d/fresh"
    there.write_text("same\nold\n")
    files = {str(there): (b"same\nnew\n", 0o644), str(fresh): (b"[Unit]\n", 0o644)}
    before = _content(tmp_path)
    views = preview(
        Local(), [planning.file_step(path, *files[path], str(tmp_path / "journal")) for path in files], files
    )
    assert _content(tmp_path) == before
    assert views[0].difference[2:] == ["@@ -1,2 +1,2 @@", " same", "-old", "+new"]
    assert views[1].difference == ["--- /dev/null", f"+++ {fresh}", "@@ -0,0 +1 @@", "+[Unit]"]
    assert all(f"  $ {view.command}" in view.lines() for view in views)


def test_a_dry_run_shows_no_secret(tmp_path: Path) -> None:
    key = tmp_path / "host.key"
    key.write_text("the old key")
    files = {str(key): (b"the new key", 0o600)}
    shown = json.dumps(
        [
            view.to_json()
            for view in preview(
                Local(), [planning.file_step(str(key), *files[str(key)], str(tmp_path / "journal"))], files
            )
        ]
    )
    assert "old key" not in shown
    assert "new key" not in shown
    assert "secret" in shown


def test_a_step_without_a_file_has_no_difference() -> None:
    (shown,) = preview(Local(), [Step("units", "systemd reads its units", "exit 9", "true", "true")], {})
    assert (shown.difference, shown.command) == ([], "exit 9")


@pytest.mark.parametrize(("note", "listed"), [(False, []), (True, ["host1"])])
def test_only_a_certificate_that_is_used_is_listed(tmp_path: Path, note: bool, listed: list[str]) -> None:
    home = Home(tmp_path / "home")
    cluster = ClusterFile("c", "id", "/srv/ftkvm", "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"])
    home.create(cluster)
    before = {row["serial"] for row in home.issued()}
    made = make_wish(home, cluster, host_entry("host1", good(), cluster), good())
    if note:
        note_certificate(home, made)
    assert [row["name"] for row in home.issued() if row["serial"] not in before] == listed


def test_a_packages_own_directory_stays_when_our_file_goes() -> None:
    for path, gone in (("/etc/apt/preferences.d/ftkvm", False), ("/etc/ftkvm/agent.toml", True)):
        assert ("rmdir" in planning.file_step(path, b"", 0o644, "/j").undo) is gone


@pytest.mark.parametrize(("there", "refused"), [("", False), ("0", False), ("3", False), ("4", True), ("x", False)])
def test_keys_of_an_older_copy_of_the_operators_directory_are_not_written_over_newer_ones(
    tmp_path: Path, there: str, refused: bool
) -> None:  # fmt: skip
    home = Home(tmp_path / "home")
    home.create(ClusterFile("c", "id", "/srv/ftkvm", "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"]))
    home.save_beat_keys(BeatKeys(3, bytes(32)))

    class Says(Local):
        def run(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
            return Result(0, f"{there}\n", "")

    found = replace(good(), digests={"/etc/ftkvm/beat.key": "of others"})
    if refused:
        with pytest.raises(FtkvmError) as caught:
            require_newest_keys(Says(), found, home)
        assert caught.value.code == "FTKVM-338"
    else:
        require_newest_keys(Says(), found, home)


def test_the_beat_keys_do_not_change_while_a_host_is_added(tmp_path: Path) -> None:
    """Several hosts may be added at once; a change waits for all of them."""
    home = Home(tmp_path / "home")
    home.create(ClusterFile("c", "id", "/srv/ftkvm", "10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24", ["br-vm"]))
    changed = threading.Event()

    def change() -> None:
        with home.held(alone=True):
            changed.set()

    with home.held(alone=False):
        with home.held(alone=False):
            thread = threading.Thread(target=change)
            thread.start()
        assert not changed.wait(0.2)
    assert changed.wait(5)
    thread.join()


def test_hosts_that_are_looked_at_side_by_side_write_files_of_their_own(tmp_path: Path) -> None:
    """With one name for all, one host's `rm` took the other's test file, and its datastore for not mounted."""
    (tmp_path / "bin").mkdir()
    for program, does in {
        "uname": 'echo "$NAME"',
        "rm": 'for file; do :; done; echo "${file##*/}" >> "$REMOVED"',
    }.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    for name in ("host1", "host2"):
        environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NAME": name, "REMOVED": f"{tmp_path}/removed"}
        (tmp_path / "data").mkdir(exist_ok=True)
        command = facts_of.sections(f"{tmp_path}/data", [])["datastore"]
        said = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=20)
        assert facts_of.parse_datastore(said.stdout) == "ok"
    written = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert written == sorted((tmp_path / "removed").read_text().split())
    assert len(written) == 2
