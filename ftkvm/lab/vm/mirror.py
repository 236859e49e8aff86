"""The lab's own mirror of Debian packages: just those that `ftkvm host add` installs on a bare host.

They are fetched once, with the bare image, by the apt of its root, so that their versions and all that they need are
what apt chooses there; `apt-ftparchive`, out of that root too, indexes them. A small HTTP server at the operator's seat
has them while the lab is up: no packet of the lab leaves this machine.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names, operator, recipe
from ftkvm.lab.netns import connect
from ftkvm.lab.system import mounts_below, run, wait_for
from hostprep.facts import BACKPORTS, OTHERS, PACKAGES

PORT = 80
URL = f"http://{names.client_address('management')}/debian"
PID = names.STATE / "mirror.pid"
LOG = names.STATE / "mirror.log"
WANTED = (("", (*PACKAGES, *OTHERS)), (f"-t {recipe.SUITE}-backports", BACKPORTS))
"""What hostprep asks apt for: option, packages."""
BACKPORT = "~bpo"
"""In the version of every package of Debian's backports, and of no other."""
SUITES = (recipe.SUITE, f"{recipe.SUITE}-backports")
_HERE = "/ftlab-mirror"
"""In the root: where the mirror is, for the time of its making."""


# ------------------------------------------------------------------------------------------------------------ making


def fill(root: Path, target: Path, lend: Callable[[Path], list[Path]]) -> None:
    """Fetches and indexes the packages, in a copy of the bare root that is thrown away.

    ``lend``: gives a root this machine's way to the mirror it uses.

    :raises FtkvmError: FTKVM-705, a package cannot be had
    """
    work = target.with_name(f"{target.name}.work")
    copy = work / "root"
    for directory in (target, copy, work / "upper", work / "work"):
        directory.mkdir(parents=True)
    layers = f"lowerdir={root},upperdir={work / 'upper'},workdir={work / 'work'}"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, str(copy)])
    try:
        lend(copy)
        _fetch(copy, target)
        _index(copy, target)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-705", detail=error.params["detail"]) from error
    finally:
        for point in mounts_below(copy):
            run(["umount", str(point)])
        shutil.rmtree(work)


def _chroot(root: Path, script: str, timeout_s: float) -> None:
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", HOME="/root")
    run(["chroot", str(root), "/bin/sh", "-ec", script], timeout_s=timeout_s, env=env)


def _fetch(root: Path, target: Path) -> None:
    words = (root / "etc/apt/sources.list").read_text().split()
    source = words[words.index("deb") + 1]
    lines = "".join(f"deb {source} {suite} main\n" for suite in SUITES)
    (root / "etc/apt/sources.list").write_text(lines)
    install = "apt-get install -qq -y --no-install-recommends --download-only"
    for option, packages in WANTED:
        _chroot(root, f"apt-get update -qq; {install} {option} {' '.join(packages)}", 900)
    for suite in SUITES:
        (target / "debian/pool" / suite).mkdir(parents=True)
    for deb in (root / "var/cache/apt/archives").glob("*.deb"):
        shutil.copyfile(deb, target / "debian/pool" / SUITES[BACKPORT in deb.name] / deb.name)


def _index(root: Path, target: Path) -> None:
    there = root / _HERE.lstrip("/")
    there.mkdir()
    run(["mount", "--bind", str(target / "debian"), str(there)])
    for suite in SUITES:
        place = f"dists/{suite}/main/binary-amd64"
        _chroot(
            root,
            f"cd {_HERE}; mkdir -p {place}; apt-ftparchive packages pool/{suite} > {place}/Packages;"
            f" gzip -k {place}/Packages; apt-ftparchive {_release(suite)} release dists/{suite} > Release.new;"
            f" mv Release.new dists/{suite}/Release",
            300,
        )


def _release(suite: str) -> str:
    """What the suite says of itself: as Debian's own does, since pins and ``-t`` go by it."""
    words = {"Suite": suite, "Codename": suite, "Origin": "Debian", "Architectures": "amd64", "Components": "main"}
    if suite != recipe.SUITE:
        words |= {"Origin": "Debian Backports", "NotAutomatic": "yes", "ButAutomaticUpgrades": "yes"}
    return " ".join(f"-o 'APT::FTPArchive::Release::{key}={value}'" for key, value in words.items())


# ----------------------------------------------------------------------------------------------------------- serving


def begin(directory: Path) -> None:
    """The mirror is served; returns when it answers. One that runs is left alone."""
    if _process() is not None:
        return
    with LOG.open("ab") as output:
        process = subprocess.Popen(
            operator.command([sys.executable, "-m", "ftkvm.lab.vm.mirror", str(directory)]),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            cwd=str(Path(__file__).parents[3]),
        )  # fmt: skip
    PID.write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")
    wait_for(f"the package mirror (its last words: {LOG})", _answers, 20, 0.05)


def end() -> None:
    """It is served no more."""
    process = _process()
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(10)
    for file in (PID, LOG):
        file.unlink(missing_ok=True)


def _process() -> psutil.Process | None:
    """The server, if it is still that very process."""
    try:
        pid, begun = PID.read_text().split()
        process = psutil.Process(int(pid))
        mine = process.create_time() == float(begun) and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return process if mine else None


def _answers() -> bool:
    try:
        connect(names.CLIENT_NS, names.client_address("management"), PORT, 1).close()
    except OSError:
        return False
    return True


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"


def serve(directory: Path) -> None:
    """Serves the directory at the operator's address, until it is killed."""
    handler = partial(_Handler, directory=str(directory))
    with ThreadingHTTPServer((names.client_address("management"), PORT), handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
