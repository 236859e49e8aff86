"""Disk images on the datastore, through qemu-img: facts, chains, overlays. Every call is bounded."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.core.chain import parse_overlay
from ftkvm.core.suitability import ImageFacts

QEMU_IMG_TIMEOUT_S = 20.0
COMMIT_TIMEOUT_S = 3600.0


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


def create_overlay(path: str, backing: str, backing_format: str) -> None:
    """An empty qcow2 over ``backing``; cost does not depend on the size. Replaces what an interrupted run left."""
    remove(path)
    _qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, path)


def create_empty(path: str, virtual_bytes: int) -> None:
    """An empty qcow2 without backing file (QEMU is told its backing node when it opens it)."""
    remove(path)
    _qemu_img("create", "-q", "-f", "qcow2", path, str(virtual_bytes))


def commit(top: str, base: str) -> None:
    """Write everything above ``base`` into it; nobody may have the images open. Interrupted, it is simply run again."""
    _qemu_img("commit", "-q", "-b", base, top, timeout_s=COMMIT_TIMEOUT_S)


def remove(path: str) -> None:
    """Delete an image; one that is not there is fine."""
    Path(path).unlink(missing_ok=True)


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
