"""How the datastore is mounted: found in /proc/mounts, and what of it is dangerous."""

from pathlib import Path

import pytest

from ftkvm.adapters.host_view import own_mount
from ftkvm.core.checks.model import Severity
from ftkvm.core.mount import judge, parse
from hostprep.ground import NFS_OPTIONS

GOOD = (
    "rw,nosuid,nodev,relatime,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,acregmin=0,acregmax=0,acdirmin=0,"
    "acdirmax=0,hard,proto=tcp,timeo=100,retrans=2,sec=sys,clientaddr=10.0.0.1,lookupcache=none,local_lock=none,"
    "addr=10.0.0.9"
)
"""As Linux shows a mount with the options of hostprep."""
MOUNTS = """\
/dev/vda1 / ext4 rw,relatime 0 0
10.0.0.9:/export /srv/ftkvm nfs4 {options} 0 0
10.0.0.9:/my\\040images /srv/my\\040images nfs4 rw,vers=4.0,soft 0 0
tmpfs /srv/ftkvm-other tmpfs rw 0 0
"""


def found(options: str, kind: str = "nfs4") -> list[tuple[str, Severity]]:
    """Option and severity of what is found at an NFS mount."""
    mount = parse(f"10.0.0.9:/export /srv/ftkvm {kind} {options} 0 0\n", "/srv/ftkvm")
    return [(each.params["option"], each.severity) for each in judge(mount)]


def test_hostpreps_own_options_are_fine() -> None:
    assert found(GOOD) == []
    assert found(NFS_OPTIONS.replace("actimeo=0", "acregmin=0,acregmax=0,acdirmin=0,acdirmax=0")) == []
    assert found(GOOD.replace("acregmin=0,acregmax=0,acdirmin=0,acdirmax=0", "noac")) == []


@pytest.mark.parametrize(("was", "is_", "option", "severity"), [
    ("hard", "soft", "soft", Severity.ERROR),
    ("hard", "softerr", "softerr", Severity.ERROR),
    ("vers=4.2", "vers=4.0", "vers=4.0", Severity.ERROR),
    ("vers=4.2", "vers=3", "vers=3", Severity.ERROR),
    ("vers=4.2", "vers=3,nolock", "nolock", Severity.ERROR),
    ("local_lock=none", "local_lock=all", "local_lock=all", Severity.ERROR),
    ("acregmax=0", "acregmax=60", "acregmax=60", Severity.WARNING),
    ("acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,", "", "attribute caches", Severity.WARNING),
    ("lookupcache=none,", "", "lookupcache=all", Severity.WARNING),
    ("lookupcache=none", "lookupcache=positive", "lookupcache=positive", Severity.WARNING),
])  # fmt: skip
def test_each_dangerous_option(was: str, is_: str, option: str, severity: Severity) -> None:
    assert (option, severity) in found(GOOD.replace(was, is_))


def test_a_version_that_is_not_told_is_an_old_one() -> None:
    assert ("vers=unknown", Severity.ERROR) in found("rw,hard", "nfs")


def test_other_file_systems_are_not_judged() -> None:
    assert list(judge(parse("data /srv/ftkvm ceph rw,soft 0 0\n", "/srv/ftkvm"))) == []
    assert list(judge(None)) == []


@pytest.mark.parametrize(("path", "place"), [
    ("/srv/ftkvm", "/srv/ftkvm"), ("/srv/ftkvm/test-1", "/srv/ftkvm"), ("/srv/ftkvm-other/x", "/srv/ftkvm-other"),
    ("/srv/ftkvmx", "/"), ("/srv/my images/vm", "/srv/my images"),
])  # fmt: skip
def test_the_mount_a_path_lies_on(tmp_path: Path, path: str, place: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS.format(options=GOOD))
    mount = own_mount(Path(path), tmp_path)
    assert mount is not None
    assert mount.path == place


def test_what_is_mounted_last_at_one_place_counts() -> None:
    mount = parse("a /srv nfs4 rw,vers=4.2 0 0\nb /srv tmpfs rw 0 0\n", "/srv")
    assert mount is not None
    assert mount.kind == "tmpfs"


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    assert own_mount(Path("/srv"), tmp_path) is None


STATS = """device /dev/vda1 mounted on / with fstype ext4
device 10.0.0.9:/other mounted on /srv/other with fstype nfs4 statvers=1.1
\tper-op statistics
\t DELEGRETURN: 7 7 0 1 1 1 1 1 0
device 10.0.0.9:/export mounted on /srv/ftkvm with fstype nfs4 statvers=1.1
\tper-op statistics
\t      RENAME: 394 394 0 102048 58608 3333 799 4199 32
\t DELEGRETURN: {count} {count} 0 26404 22508 57 183 261 0
"""
"""As Linux 6.12 shows it."""


def test_a_server_that_lends_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "mounts").write_text(MOUNTS.format(options=GOOD))
    for count, codes in (("0", []), ("132", ["FTKVM-757"])):
        (tmp_path / "self/mountstats").write_text(STATS.format(count=count))
        assert [each.code for each in judge(own_mount(Path("/srv/ftkvm"), tmp_path))] == codes
