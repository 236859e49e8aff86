"""Small tools over the machine: commands, mounts, control groups. Nothing here knows what a lab is."""

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ftkvm.catalogue import FtkvmError


def run(
    command: Sequence[str], timeout_s: float = 60, text_in: str | None = None, env: dict[str, str] | None = None
) -> str:
    """Runs a command and returns its standard output; FTKVM-709 with its last words if it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=env,
            stdin=subprocess.DEVNULL if text_in is None else None,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FtkvmError("FTKVM-709", command=" ".join(command), detail=f"no end after {timeout_s:.0f} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-600:]
        raise FtkvmError("FTKVM-709", command=" ".join(command), detail=f"status {done.returncode}: {words}")
    return done.stdout


def succeeds(command: Sequence[str], timeout_s: float = 20) -> bool:
    """Whether a command ends with status 0 in time."""
    try:
        run(command, timeout_s)
    except FtkvmError:
        return False
    return True


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> None:
    """Polls until the condition holds; FTKVM-710 when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-710", what=what, timeout_s=f"{timeout_s:.0f}")
        time.sleep(every_s)


def mounts_below(path: Path) -> list[Path]:
    """Mount points at or below a path, deepest first."""
    points = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = Path(line.split()[1].replace("\\040", " "))
        if point == path or path in point.parents:
            points.append(point)
    return sorted(points, key=lambda p: len(p.parts), reverse=True)


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Holds a lock file for the time of a change; FTKVM-711 if another command has it for a minute."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:

        def taken() -> bool:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        try:
            wait_for(what, taken, 60)
        except FtkvmError:
            raise FtkvmError("FTKVM-711", lock=lock) from None
        yield


def cgroup2_root() -> Path | None:
    """Where the unified control group tree is mounted (also beside version 1 controllers), if it is."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None


def memory_v1_root() -> Path | None:
    """The version 1 memory controller, on machines that still have it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup" and "memory" in fields[3].split(","):
            return Path(fields[1])
    return None


class Cgroup:
    """A control group of the unified tree: all processes of one container, however they were started.

    Freezing and killing are properties of the group itself, so nothing escapes by forking meanwhile. They need no
    controller, so they work as well where the controllers still hang on version 1.
    """

    def __init__(self, name: str) -> None:
        root = cgroup2_root()
        if root is None:
            raise FtkvmError("FTKVM-702", what="control groups, version 2")
        self.name = name
        self.path = root / name
        v1 = memory_v1_root()
        self._memory_v1 = v1 / name if v1 else None

    def create(self, memory_mib: int | None) -> None:
        self.path.mkdir(exist_ok=True)
        if memory_mib is None:
            return
        limit = str(memory_mib * 1024 * 1024)
        if self._memory_v1:
            self._memory_v1.mkdir(exist_ok=True)
            (self._memory_v1 / "memory.limit_in_bytes").write_text(limit)
        elif (self.path / "memory.max").exists():
            (self.path / "memory.max").write_text(limit)

    def enter(self) -> None:
        """Moves the calling process in (used between fork and exec)."""
        pid = str(os.getpid())
        (self.path / "cgroup.procs").write_text(pid)
        if self._memory_v1 and self._memory_v1.exists():
            (self._memory_v1 / "cgroup.procs").write_text(pid)

    def _event(self, name: str) -> bool:
        try:
            words = (self.path / "cgroup.events").read_text().split()
        except OSError:
            return False
        return words[words.index(name) + 1] == "1"

    @property
    def populated(self) -> bool:
        return self._event("populated")

    @property
    def frozen(self) -> bool:
        """Every process stands still: stopped by the freezer, or blocked in the kernel by one that is (a write to the
        datastore whose server was stopped first), which the freezer cannot stop and need not."""
        if self._event("frozen"):
            return True
        return self._freezing() and any(_blocked(pid) for pid in self.pids())

    def _freezing(self) -> bool:
        try:
            return (self.path / "cgroup.freeze").read_text().strip() == "1"
        except OSError:
            return False

    def freeze(self, on: bool) -> None:
        """Stops or resumes every process; returns once it is so."""
        (self.path / "cgroup.freeze").write_text("1" if on else "0")
        time.sleep(0.02)  # the freezer's own time: a blocked process must not hide that others still run
        wait_for(f"{self.name} {'frozen' if on else 'thawed'}", lambda: self.frozen == on, 10, 0.005)

    def kill(self) -> None:
        """SIGKILL to every process, also frozen ones; returns once none is left."""
        if not self.path.exists():
            return
        (self.path / "cgroup.kill").write_text("1")
        wait_for(f"the end of all processes of {self.name}", lambda: not self.populated, 20, 0.02)

    def pids(self, below: str = "") -> list[int]:
        """Processes of the group or of one below it, at any depth."""
        found: list[int] = []
        for directory, _below, files in os.walk(
            self.path / below
        ):  # groups may go away meanwhile: walk passes over them
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):
                    found += [int(p) for p in (Path(directory) / "cgroup.procs").read_text().split() if p != "0"]
        return found

    def remove(self) -> None:
        """Removes the empty group, those below it, and their mirrors that nspawn made in version 1 trees."""
        trees = [self.path]
        if Path("/sys/fs/cgroup") != self.path.parent:
            trees += [d / self.name for d in Path("/sys/fs/cgroup").iterdir() if (d / self.name).is_dir()]
        for tree in trees:
            for directory in sorted((d for d in tree.rglob("*") if d.is_dir()), reverse=True) if tree.exists() else []:
                directory.rmdir()
            if tree.exists():
                tree.rmdir()


def _blocked(pid: int) -> bool:
    """A thread of the process is in state D: in the kernel, uninterruptible."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return any(stat.rpartition(")")[2].split()[0] == "D" for stat in stats)
