"""What a host was like before it was prepared, kept on the host, so that all of it can be taken back (OP-02).

    JOURNAL/files/etc/…    the file as it was, with its mode, owner and times
    JOURNAL/absent/etc/…   there was none
    JOURNAL/packages       packages that apt brought for us, their dependencies too, one a line
    JOURNAL/units          units of ours that were enabled, beside the agent's and the keeper's, one a line
    JOURNAL/undo           commands that take back what no file of ours is (rules of a firewall), one a line
    JOURNAL/late           the host had been prepared before there was a journal: every file of ours counts as absent

Each is written before the change it is about, and once: what a later run finds is our own work. So it does not matter
how often a preparation was cut off and begun again.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from ftkvm.catalogue import FtkvmError
from hostprep.facts import UNITS
from hostprep.packages import purge as purge_packages
from hostprep.packages import would_go_too
from hostprep.place import JOURNAL, PROGRAM, remove_program, strangers
from hostprep.runner import Runner

BEFORE = ".ftkvm-before"
"""Ends the name of a file's copy from before this run: what a step's own undo puts back."""


KEPT = ("/etc/apt/preferences.d", "/etc/apt/sources.list.d", "/etc/firewalld/policies", "/etc/modules-load.d")
"""Directories that packages own and that may be empty: they stay when our file in them goes."""


def remove_if_empty(directory: str) -> str:
    """Shell command: the directory goes, and those above it, as far as nothing is in them."""
    name = shlex.quote(directory)
    return "true" if directory in KEPT else f"[ ! -d {name} ] || rmdir -p --ignore-fail-on-non-empty {name}"


def begin(journal: str, later: Sequence[str] = ()) -> str:
    """Shell command: a journal is there. ``later``: files that no step may write but our agent may, one day.

    Those are kept now. In a journal that was made without them they count as absent: who wrote them is not known, and a
    revocation list that stays behind keeps the agent of another cluster from starting.
    """
    name, new = shlex.quote(journal), f"{journal}.new"
    kept = "".join(f" {record(new, path)};" for path in later)
    missing = "".join(f" if {_unknown(journal, path)}; then {_absent(journal, path)}; fi;" for path in later)
    return (
        f"set -e; umask 077; if [ ! -d {name} ]; then rm -rf {name}.new; mkdir -p {name}.new;"
        f" if [ -e {PROGRAM}/.manifest ]; then : > {name}.new/late; fi;{kept} mv -T {name}.new {name}; fi;"
        f"{missing} sync -f {name}"
    )


def record(journal: str, path: str) -> str:
    """Shell commands: the file is kept as it was before the first change of it, or that there was none."""
    there, kept = shlex.quote(path), shlex.quote(f"{journal}/files{path}")
    return (
        f"if {_unknown(journal, path)}; then"
        f" if [ -e {there} -o -L {there} ] && [ ! -e {shlex.quote(journal)}/late ]; then"
        f' (umask 077; mkdir -p "$(dirname {kept})"); cp -a {there} {kept}.new; mv -T {kept}.new {kept};'
        f" else {_absent(journal, path)}; fi;"
        f" sync -f {shlex.quote(journal)}; fi"
    )


def _unknown(journal: str, path: str) -> str:
    kept, absent = (shlex.quote(f"{journal}/{part}{path}") for part in ("files", "absent"))
    return f"[ ! -e {kept} -a ! -L {kept} -a ! -e {absent} ]"


def _absent(journal: str, path: str) -> str:
    absent = shlex.quote(f"{journal}/absent{path}")
    return f'(umask 077; mkdir -p "$(dirname {absent})"; : > {absent})'


def note_unit(journal: str, name: str) -> str:
    """Shell command: this unit of ours is enabled now."""
    return _note(f"{journal}/units", [name])


def note_undo(journal: str, command: str) -> str:
    """Shell command: what ``command`` takes back is about to be done. It is one that may find nothing to take back."""
    return _note(f"{journal}/undo", [command])


def _note(path: str, words: Sequence[str]) -> str:
    listed, file = " ".join(map(shlex.quote, words)), shlex.quote(path)
    return (
        f"(umask 077; touch {file}; for p in {listed}; do"
        f' grep -qxF -e "$p" {file} || printf "%s\\n" "$p" >> {file}; done;'
        f" sync {file})"
    )


@dataclass(frozen=True)
class TakenBack:
    """What was (or would be) done. ``ran``: commands; ``left``: packages that stay."""

    restored: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    purged: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, list[str]]:
        return vars(self)

    def lines(self) -> list[str]:
        """For a person."""
        words = {"restored": self.restored, "removed": self.removed, "ran": self.ran, "purged": self.purged}
        lines = [f"{word} {name}" for word, names in words.items() for name in names]
        return [*lines, *([f"left installed: {' '.join(self.left)} (--purge removes them)"] if self.left else [])]


def take_back(
    runner: Runner, journal: str = JOURNAL, *, purge: bool = False, dry_run: bool = False, program: str = PROGRAM,
    units: Sequence[str] = UNITS,
) -> TakenBack:  # fmt: skip
    """Make the host what it was before it was first prepared. Nothing to do: nothing is done. Cut off, run it again.

    Packages stay unless ``purge``: by now other things on the host may use QEMU or libvirt. ``program`` and ``units``
    are ours.

    :raises FtkvmError: FTKVM-209 it did not work, FTKVM-210 the connection broke, FTKVM-362 others would go, too
    """
    found = _listed(runner, journal)
    if found is None:
        return TakenBack()
    restored, removed, packages, enabled, undo = found
    if purge and packages:
        _require_ours_alone(runner, packages)
    gone = removed if program in runner.run(strangers(program, journal)).stdout.split() else [*removed, program]
    if not dry_run:
        script = _script(journal, program, units, enabled, restored, removed, undo, packages if purge else [])
        done = runner.run("sh -s", script.encode(), 600.0)
        if done.status:
            words = (done.stderr.strip() or done.stdout.strip())[-400:]
            raise FtkvmError("FTKVM-209", host=runner.host, step="taking back", detail=words)
    return TakenBack(restored, gone, undo, packages if purge else [], [] if purge else packages)


def _require_ours_alone(runner: Runner, packages: Sequence[str]) -> None:
    """safety: apt removes what needs a removed package, and that may be the operator's."""
    others = runner.run(would_go_too(packages)).stdout.split()
    if others:
        raise FtkvmError("FTKVM-362", host=runner.host, packages=", ".join(others))


def _listed(runner: Runner, journal: str) -> tuple[list[str], ...] | None:
    """Files to restore, files to remove, packages, units, commands; None if there is no journal."""
    name, mark = shlex.quote(journal), "==ftkvm=="
    parts = (f"cd {name}/{part} 2>/dev/null && find . ! -type d ! -name '*.new'" for part in ("files", "absent"))
    script = f"[ -d {name} ] || exit 9; " + "".join(f"({part}); echo {mark}; " for part in parts)
    script += f"cat {name}/packages 2>/dev/null; echo {mark}; cat {name}/units 2>/dev/null; echo {mark};"
    script += f" cat {name}/undo 2>/dev/null; exit 0"
    done = runner.run(script)
    if done.status == 9:
        return None
    if done.status or done.stdout.count(mark) != 4:
        raise FtkvmError("FTKVM-209", host=runner.host, step="reading the journal", detail=done.stderr.strip()[-400:])
    *lists, commands = done.stdout.split(mark)
    files, absent, packages, units = (part.split() for part in lists)
    undo = commands.strip().splitlines()
    return sorted(path[1:] for path in files), sorted(path[1:] for path in absent), packages, units, undo


def _script(
    journal: str, program: str, units: Sequence[str], enabled: Sequence[str], restored: Sequence[str],
    removed: Sequence[str], undo: Sequence[str], packages: Sequence[str],
) -> str:  # fmt: skip
    """Our units first, since they use the files; the journal last, since with it this can be run again."""
    lines = ["set -e"]
    if units:
        lines.append(f"systemctl disable -q --now {' '.join(units)} 2>/dev/null || true")  # perhaps not there yet
    for unit in map(shlex.quote, reversed(enabled)):  # after those that use it; a mount may be in somebody's use
        lines.append(f"systemctl disable -q --now {unit} || ! systemctl is-active -q {unit}")
    for path in restored:
        there, kept = shlex.quote(path), shlex.quote(f"{journal}/files{path}")
        lines.append(f"mkdir -p {shlex.quote(path.rpartition('/')[0])}")
        lines.append(f"cp -a {kept} {there}.new; mv -T {there}.new {there}; rm -f {there}{BEFORE}")
    for path in removed:
        there = shlex.quote(path)
        lines.append(f"rm -f {there} {there}.new {there}{BEFORE}")
        lines.append(remove_if_empty(path.rpartition("/")[0]))
    lines.append(f"{remove_program(program)}; rm -rf {program}.before")
    lines += reversed(undo)  # when its files are as they were: it may be told to read them
    if units or enabled:
        lines.append("systemctl daemon-reload")
    if packages:
        lines.append(purge_packages(packages))
    lines.append(f"rm -rf {shlex.quote(journal)} {shlex.quote(journal)}.new")
    lines.append(f"rmdir -p --ignore-fail-on-non-empty {shlex.quote(journal.rpartition('/')[0])}")
    return "\n".join(lines) + "\n"
