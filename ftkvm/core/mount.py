"""How the datastore is mounted, and which options of an NFS mount are dangerous to whoever decides by its files. Pure.

Winners, leases and owners are files that are created once, by `link()`; what a mount makes of that name, of a repeated
request or of a write that was not answered is what the whole system stands on (docs/safety.md). Source: nfs(5).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ftkvm.core.checks.model import Finding, Severity

LEAST_NFS = (4, 1)
_CACHES = ("acregmin", "acregmax", "acdirmin", "acdirmax")


@dataclass(frozen=True)
class Mount:
    """``options``: as in /proc/mounts, those without a value with an empty one."""

    path: str
    kind: str
    options: Mapping[str, str]
    delegations: bool = False
    """An NFS server has lent it files (a delegation), and was given them back."""


def parse(mounts: str, path: str) -> Mount | None:
    """The mount that ``path`` lies on, from /proc/mounts; the last of those that are mounted at one place."""
    best: Mount | None = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        place, kind = _plain(fields[1]), fields[2]
        below = path == place or path.startswith(place.rstrip("/") + "/")
        if below and (best is None or len(place) >= len(best.path)):
            pairs = (word.partition("=") for word in fields[3].split(","))
            best = Mount(place, kind, {name: value for name, _equals, value in pairs})
    return best


def delegations(mountstats: str, path: str) -> bool:
    """Whether delegations were returned from the NFS mount at ``path``, from /proc/self/mountstats."""
    here = False
    for line in mountstats.splitlines():
        words = line.split()
        if words[:1] == ["device"] and len(words) > 4:
            here = words[4] == path
        elif here and words[:1] == ["DELEGRETURN:"]:
            return words[1] != "0"
    return False


def _plain(field: str) -> str:
    """Blanks and backslashes stand in /proc/mounts as octal numbers (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def judge(mount: Mount | None) -> Iterator[Finding]:
    """What is dangerous of an NFS mount; other file systems are not judged."""
    if mount is None or mount.kind not in ("nfs", "nfs4"):
        return
    options = mount.options
    for option in ("soft", "softerr"):
        if option in options:
            yield _finding(mount, option, "a write that was given up may be done all the same", Severity.ERROR)
    version = options.get("vers") or options.get("nfsvers") or ("4" if mount.kind == "nfs4" else "")
    if _number(version) < LEAST_NFS:
        danger = "a request that is sent again may be done again, so that link() denies the file it has made itself"
        yield _finding(mount, f"vers={version or 'unknown'}", danger, Severity.ERROR)
    lock = options.get("local_lock", "none")
    if "nolock" in options or lock != "none":
        given = "nolock" if "nolock" in options else f"local_lock={lock}"
        yield _finding(mount, given, "locks of images do not hold between hosts", Severity.ERROR)
    yield from _caches(mount)
    if mount.delegations:
        yield Finding("FTKVM-757", {"path": mount.path}, Severity.WARNING)


def _caches(mount: Mount) -> Iterator[Finding]:
    """Caches make what is read old, never what is decided: `link()` asks the server. So these are warnings."""
    options = mount.options
    if "noac" not in options and any(options.get(name) != "0" for name in _CACHES):
        shown = ",".join(f"{name}={options[name]}" for name in _CACHES if options.get(name, "0") != "0")
        danger = "what another host has written is seen late"
        yield _finding(mount, shown or "attribute caches", danger, Severity.WARNING)
    if options.get("lookupcache", "all") != "none":
        danger = "a file that another host has created is seen late"
        yield _finding(mount, f"lookupcache={options.get('lookupcache', 'all')}", danger, Severity.WARNING)


def _finding(mount: Mount, option: str, danger: str, severity: Severity) -> Finding:
    return Finding("FTKVM-754", {"path": mount.path, "option": option, "danger": danger}, severity)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
