"""The datastore from outside, as it lies where it is kept: this machine's directory, or the storage VM's disk.

Also while all hosts are lost. Paths are relative to the datastore.
"""

import io
import shlex
import shutil
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import lab, names

TIMEOUT_S = 300
"""For what goes through an emulated computer's SSH."""


class Datastore(ABC):
    """What the lab does with it."""

    @abstractmethod
    def put(self, directory: str, files: Sequence[Path]) -> None:
        """Copies of the files, with their names, into a directory; what is there already stays as it is."""

    @abstractmethod
    def read(self, pattern: str) -> dict[str, bytes]:
        """The files that a shell's pattern names, by their paths; empty if there are none."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes a file; no harm if it is not there."""


def of_lab() -> Datastore:
    """The lab's."""
    return Served(lab.host(names.STORAGE), names.EXPORTS[0]) if lab.record().nfs else Local(names.DATASTORE)


class Local(Datastore):
    """A directory of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, directory: str, files: Sequence[Path]) -> None:
        place = self.root / directory
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            if not (place / file.name).exists():
                part = place / f"{file.name}.partial"
                shutil.copyfile(file, part)
                part.rename(place / file.name)

    def read(self, pattern: str) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in sorted(self.root.glob(pattern))}

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


class Server(Protocol):
    """Whoever runs commands beside the disk."""

    def enter_command(self, command: Sequence[str]) -> list[str]:
        """The command line here that runs a command there."""


class Served(Datastore):
    """A directory of the storage VM, by SSH: one command for each, since an emulated computer is slow at it."""

    def __init__(self, server: Server, root: str) -> None:
        self.server = server
        self.root = root

    def put(self, directory: str, files: Sequence[Path]) -> None:
        place = shlex.quote(f"{self.root}/{directory}")
        there = self._shell(f"mkdir -p {place}; ls {place}").decode().split()
        if new := [file for file in files if file.name not in there]:
            self._shell(f"rm -rf {place}.partial; mkdir {place}.partial; tar -C {place}.partial -xf -; "
                        f"mv {place}.partial/* {place}; rmdir {place}.partial", _packed(new))  # fmt: skip

    def read(self, pattern: str) -> dict[str, bytes]:
        pack = f'cd {shlex.quote(self.root)}; set -- {pattern}; [ -e "$1" ] && tar -cf - -- "$@" || true'
        return _unpacked(self._shell(pack))

    def remove(self, path: str) -> None:
        self._shell(f"rm -f {shlex.quote(f'{self.root}/{path}')}")

    def _shell(self, script: str, data: bytes = b"") -> bytes:
        """Runs a script there. FTKVM-709 with its words if it fails, or takes too long."""
        command = self.server.enter_command(["sh", "-ec", script])
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise FtkvmError("FTKVM-709", command=script, detail=f"no end after {TIMEOUT_S} s") from None
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-600:]
            raise FtkvmError("FTKVM-709", command=script, detail=f"status {done.returncode}: {words}")
        return done.stdout


def _packed(files: Sequence[Path]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            tar.add(file, file.name)
    return packed.getvalue()


def _unpacked(packed: bytes) -> dict[str, bytes]:
    if not packed:
        return {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        return {member.name: content.read() for member, content in members if content is not None}
