"""Disk images on the datastore, through qemu-img: facts, chains, overlays. Every call is bounded."""

import contextlib
import json
import os
import re
import select
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.core.chain import Side, parse_overlay
from ftkvm.core.checks.domain import ImageFacts
from ftkvm.core.newest import scratches

QEMU_IMG_TIMEOUT_S = 20.0
COMMIT_TIMEOUT_S = 3600.0
MEASURE_TIMEOUT_S = 120.0
CONVERT_STALL_S = 600.0
"""A conversion that says nothing for this long hangs; how long it takes in all depends on the disk."""
_PERCENT = re.compile(rb"\((\d+)\.\d+/100%\)")
_QCOW2_HEAD = struct.Struct(">4sIQI")
"""Magic, version, offset and length of the backing file's name (QEMU's docs/interop/qcow2.txt)."""


@dataclass(frozen=True)
class Image:
    """One image of a chain: path, format, virtual size and bytes allocated on the datastore, backing file's path."""

    path: str
    image_format: str
    virtual_bytes: int
    allocated_bytes: int
    backing: str | None


def image_facts(path: str, timeout_s: float = 5.0) -> ImageFacts | None:
    """Format and number of internal snapshots of an image that may be in use; None if qemu-img cannot tell.

    :raises subprocess.TimeoutExpired: the storage does not answer
    """
    command = ["qemu-img", "info", "--force-share", "--output=json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        return None
    document = json.loads(done.stdout)
    return ImageFacts(str(document["format"]), len(document.get("snapshots", [])))


def chain(path: str) -> tuple[Image, ...]:
    """The chain of ``path``, top first; images may be in use. :raises FtkvmError: FTKVM-331"""
    entries = json.loads(_qemu_img("info", "--force-share", "--backing-chain", "--output=json", path))
    return tuple(
        Image(entry["filename"], entry["format"], entry["virtual-size"], entry.get("actual-size", 0),
              entry.get("full-backing-filename"))
        for entry in entries
    )  # fmt: skip


def overlays_on(path: str) -> tuple[str, ...]:
    """Overlays of ours that lie directly on ``path``: something was, or may have been, written above it.

    Any chain that holds ``path`` below its top has such an image, so looking one level up is enough.

    :raises FtkvmError: FTKVM-331
    """
    known = parse_overlay(path)
    base = known.base if known else path
    found = []
    for file in sorted(Path(path).parent.iterdir()):
        overlay = parse_overlay(str(file))
        if overlay is None or overlay.base != base or str(file) == path:
            continue
        image = json.loads(_qemu_img("info", "--force-share", "--output=json", str(file)))
        if image.get("full-backing-filename") == path:
            found.append(str(file))
    return tuple(found)


def snapshots_on(path: str) -> tuple[str, ...]:
    """Overlays that are none of ours (taken with virsh), lie directly on ``path`` and were written to after it.

    One that is older than the image below it is a left-over: something has run from that image since.
    """
    if not Path(path).exists():
        return ()
    written = Path(path).stat().st_mtime_ns
    found = []
    for file in sorted(Path(path).parent.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another VM's overlay, merged in this moment
            newer = parse_overlay(str(file)) is None and file.is_file() and file.stat().st_mtime_ns > written
            if newer and _backing_of(file) == path:
                found.append(str(file))
    return tuple(found)


def _backing_of(file: Path) -> str | None:
    """The backing file that a qcow2 header names, as an absolute path; None: it is no overlay, or no qcow2 at all."""
    with file.open("rb") as opened:
        header = opened.read(_QCOW2_HEAD.size)
        if len(header) < _QCOW2_HEAD.size:
            return None
        magic, _version, offset, length = _QCOW2_HEAD.unpack(header)
        if magic != b"QFI\xfb" or not offset or not 0 < length < 1024:
            return None
        opened.seek(offset)
        name = opened.read(length).decode(errors="replace")
    return str(file.parent / name)


def is_there(path: str) -> bool:
    """Whether there is such a file, and something in it."""
    return Path(path).exists() and Path(path).stat().st_size > 0


def is_overlay(path: str) -> bool:
    """Whether ``path`` is there and is a qcow2 image of ours: of a scratch disk, or one that names its backing file.

    One that was only just being created when its host died (empty, or without a backing file yet) is not: nobody has
    written to it.

    :raises FtkvmError: FTKVM-331, it is there and cannot be read
    """
    known = parse_overlay(path)
    if known is None or not Path(path).exists() or Path(path).stat().st_size == 0:
        return False
    image = json.loads(_qemu_img("info", "--force-share", "--output=json", path))
    is_scratch = known.side in (Side.HIDDEN, Side.ACTIVE)
    return image["format"] == "qcow2" and (is_scratch or "full-backing-filename" in image)


def fold(top: str) -> None:
    """Commit an overlay into the image below it, and delete it. Nobody may have them open; may be run again.

    :raises FtkvmError: FTKVM-331
    """
    commit(top, chain(top)[1].path)
    remove(top)


def settle(image: str, hidden: str, active: str) -> None:
    """Write a secondary's scratch disks into its image: what QEMU does after a failover. May be cut off and run again.

    The scratch disks get their backing files by name first; QEMU had given them by node. The stack's content stays the
    same however much of it is committed, so that cutting it off changes nothing. *active* is deleted first: without it
    there is nothing to settle.

    :raises FtkvmError: FTKVM-331
    """
    _qemu_img("rebase", "-u", "-b", image, "-F", "qcow2", hidden)
    _qemu_img("rebase", "-u", "-b", hidden, "-F", "qcow2", active)
    commit(active, image)
    remove(active)
    remove(hidden)


def create_overlay(path: str, backing: str, backing_format: str) -> None:
    """An empty qcow2 over ``backing``; cost does not depend on the size. Replaces what an interrupted run left."""
    remove(path)
    _qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, path)


def create_empty(path: str, virtual_bytes: int) -> None:
    """An empty qcow2 without backing file (QEMU is told its backing node when it opens it)."""
    remove(path)
    _qemu_img("create", "-q", "-f", "qcow2", path, str(virtual_bytes))


def own_like(path: str, other: str) -> None:
    """Who may open ``other`` may open ``path``: libvirt gives a domain's images to QEMU's user as it starts it."""
    there = Path(other).stat()
    os.chown(path, there.st_uid, there.st_gid)


def commit(top: str, base: str) -> None:
    """Write everything above ``base`` into it; nobody may have the images open. Interrupted, it is simply run again."""
    _qemu_img("commit", "-q", "-b", base, top, timeout_s=COMMIT_TIMEOUT_S)


def needed_bytes(source: str, source_format: str) -> int:
    """Room that ``source`` takes as a qcow2 image. :raises FtkvmError: FTKVM-331"""
    said = _qemu_img(
        "measure", "--output=json", "-f", source_format, "-O", "qcow2", source, timeout_s=MEASURE_TIMEOUT_S
    )
    return int(json.loads(said)["required"])


def virtual_bytes(path: str, image_format: str) -> int:
    """Size of the disk that an image holds. :raises FtkvmError: FTKVM-331"""
    return int(
        json.loads(_qemu_img("info", "--force-share", "--output=json", "-f", image_format, path))["virtual-size"]
    )


def convert(source: str, source_format: str, path: str, progress: Callable[[int], None]) -> None:
    """Copy a whole disk into a new qcow2 image, durably; ``progress`` is told each whole percent.

    qemu-img takes QEMU's locks: it refuses a source that somebody writes to, and nobody can begin to while it reads.
    It ends with the process that called it, so that nothing writes to ``path`` any more when that is started again.

    :raises FtkvmError: FTKVM-331 it failed, or stalled for CONVERT_STALL_S
    """
    remove(path)
    command = ("setpriv", "--pdeathsig", "KILL", "qemu-img", "convert", "-p", "-t", "writeback",
               "-f", source_format, "-O", "qcow2", source, path)  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        detail = _follow(process, progress)
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in a hung system call: it ends when the storage answers
            process.wait(5.0)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if detail is not None or process.returncode != 0:
        raise FtkvmError("FTKVM-331", command=" ".join(command[3:]), detail=detail or f"status {process.returncode}")
    if virtual_bytes(path, "qcow2") < virtual_bytes(source, source_format):
        raise FtkvmError("FTKVM-331", command=" ".join(command[3:]), detail="the new image is too small")
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def _follow(process: subprocess.Popen[bytes], progress: Callable[[int], None]) -> str | None:
    """Read what ``qemu-img -p`` says to its end; what went wrong, or None."""
    assert process.stdout is not None and process.stderr is not None
    said, told = b"", -1
    while True:
        if not select.select([process.stdout], [], [], CONVERT_STALL_S)[0]:
            return f"no progress for {CONVERT_STALL_S:g} s"
        more = os.read(process.stdout.fileno(), 4096)
        if not more:
            break
        said = (said + more)[-200:]
        percents = _PERCENT.findall(said)
        if percents and int(percents[-1]) > told:
            told = int(percents[-1])
            progress(told)
    errors = process.stderr.read().decode(errors="replace").strip()  # at its end: little, so it never blocked on it
    try:
        return errors if process.wait(CONVERT_STALL_S) else None
    except subprocess.TimeoutExpired:
        return f"no end within {CONVERT_STALL_S:g} s"


def remove(path: str) -> None:
    """Delete an image; one that is not there is fine."""
    Path(path).unlink(missing_ok=True)


def remove_copy(path: str) -> None:
    """Delete one copy's overlay of a disk, with the scratch disks that lie beside it if it is a secondary's."""
    for file in (path, *scratches(path)):
        remove(file)


def _qemu_img(*arguments: str, timeout_s: float = QEMU_IMG_TIMEOUT_S) -> str:
    command = ("qemu-img", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        detail = f"no end within {error.timeout:g} s"
        raise FtkvmError("FTKVM-331", command=" ".join(command), detail=detail) from error
    if done.returncode != 0:
        raise FtkvmError("FTKVM-331", command=" ".join(command), detail=done.stderr.strip())
    return done.stdout
