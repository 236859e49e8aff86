"""What a dry run shows of a step: its command, and how the file it writes would differ from the one that is there."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hostprep.runner import Runner
from hostprep.step import Step

_FILE = "file "
_PRIVATE_BITS = 0o077
_SECRET = ["(secret: its content is not shown)"]


@dataclass(frozen=True)
class View:
    """One step as it is shown. ``difference``: lines of a unified diff, empty if the step writes no file."""

    name: str
    text: str
    command: str
    undo: str
    difference: list[str]

    def to_json(self) -> dict[str, object]:
        """As a document."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        return [self.text, f"  $ {self.command}", *(f"  {line}" for line in self.difference)]


def preview(session: Runner, steps: Sequence[Step], files: Mapping[str, tuple[bytes, int]]) -> list[View]:
    """The steps with the differences of their files; reads the host, changes nothing.

    :raises FtkvmError: FTKVM-210, the connection broke
    """
    return [view(step, files, _read(session, step, files)) for step in steps]


def view(step: Step, files: Mapping[str, tuple[bytes, int]], before: str | None) -> View:
    """A step's view; ``before`` is the file's text now, None if there is none. Pure."""
    path = step.name.removeprefix(_FILE)
    lines: list[str] = []
    if path in files:
        content, mode = files[path]
        lines = difference(path, before, content.decode(errors="replace")) if mode & _PRIVATE_BITS else _SECRET
    return View(step.name, step.text, step.command, step.undo, lines)


def difference(path: str, before: str | None, after: str) -> list[str]:
    """A unified diff, as ``diff -u`` shows it; the old side of a new file is /dev/null."""
    old = path if before is not None else "/dev/null"
    return list(difflib.unified_diff((before or "").splitlines(), after.splitlines(), old, path, lineterm=""))


def _read(session: Runner, step: Step, files: Mapping[str, tuple[bytes, int]]) -> str | None:
    path = step.name.removeprefix(_FILE)
    # safety: what only root may read is not even fetched: a dry run's output is kept and sent around
    if path not in files or not files[path][1] & _PRIVATE_BITS:
        return None
    done = session.run(f"cat {shlex.quote(path)}")
    return done.stdout if done.status == 0 else None
