"""What is copied to a host: this installation's own package, as a tar, and the digest that says which one it is."""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import ftkvm
import hostprep

_LEFT_OUT = {"__pycache__", "lab"}


@dataclass(frozen=True)
class Package:
    """A tar (gzip) of ``ftkvm/`` and ``hostprep/`` and the digest over its files."""

    tar: bytes
    digest: str


def build() -> Package:
    """The package this program runs from; the same files give the same digest."""
    files = sorted({*_files(Path(ftkvm.__file__).parent), *_files(Path(hostprep.__file__).parent)})
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for name, path in files:
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return Package(buffer.getvalue(), digest.hexdigest())


def _files(directory: Path) -> list[tuple[str, Path]]:
    root = directory.parent
    return [
        (str(path.relative_to(root)), path)
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not _LEFT_OUT.intersection(path.relative_to(root).parts)
    ]
