"""From what is there to what shall be: a list of steps, each with its command, its proof and its undo. Pure."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ftkvm.adapters.datastore import parse_document
from ftkvm.agent.ha.documents import understood
from ftkvm.agent.join import ASK, entered
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig
from hostprep import modules, packages, sources
from hostprep.facts import BACKPORTS, PACKAGES, UNITS, HostFacts
from hostprep.journal import BEFORE, begin, record, remove_if_empty
from hostprep.openings import Opening, firewall_steps
from hostprep.package import Package
from hostprep.place import JOURNAL, PROGRAM, remove_program
from hostprep.step import Step
from hostprep.units import UNIT_FILES

CONFIG = "/etc/ftkvm/agent.toml"
_JOIN_S = 30


@dataclass(frozen=True)
class Wish:
    """What the host shall have. ``files``: path → (content, mode); ``join`` is the document for ftkvm.agent.join.

    ``journal``: the directory on the host in which is kept what it was like before. ``later``: files that the agent
    may write one day.
    """

    host: str
    datastore: str
    vm_bridges: tuple[str, ...]
    package: Package
    files: Mapping[str, tuple[bytes, int]]
    ca_certificate: str
    join: Mapping[str, object]
    journal: str = JOURNAL
    later: tuple[str, ...] = ()
    openings: tuple[Opening, ...] = ()
    """What the host's firewall shall let in."""


def require(facts: HostFacts, wish: Wish) -> None:
    """Everything that no step can mend.

    safety: the datastore is asked whose it is before an agent is started on it: an agent that has the name of one of
    another cluster's hosts would write over that host's heartbeat.

    :raises FtkvmError: FTKVM-206 system, 363 a stranger's files, 207/208 versions, 213 bridge, 216 other cluster,
        217 device, 364 no backports, 30x datastore, 609/610 another cluster's datastore, or none's, 219 the name is
        taken, 242 an address is
    """
    host = {"host": wish.host}
    require_place(facts, wish.host)
    if facts.ca_certificate and facts.ca_certificate.strip() != wish.ca_certificate.strip():
        raise FtkvmError("FTKVM-216", **host)
    for bridge in wish.vm_bridges:
        if bridge not in facts.bridges:
            raise FtkvmError("FTKVM-213", **host, bridge=bridge)
    if "/dev/net/tun" not in facts.devices:
        raise FtkvmError("FTKVM-217", **host, what="/dev/net/tun", how="Load the module: `modprobe tun`.")
    _require_datastore(facts, wish)
    entered(configuration(facts), dict(wish.join))
    require_versions(facts, wish.host)
    missing = [name for name in BACKPORTS if name not in facts.packages]
    if missing and not sources.has_backports(facts.sources) and sources.debian(facts.sources) is None:
        raise FtkvmError("FTKVM-364", **host, packages=", ".join(missing), suite=sources.BACKPORTS_SUITE)


def require_place(facts: HostFacts, host: str) -> None:
    """A system that we prepare, and room for our program: to be known before the first change.

    :raises FtkvmError: FTKVM-206, FTKVM-363
    """
    if facts.system_id != "debian 13":
        raise FtkvmError("FTKVM-206", host=host, system=facts.system)
    if facts.strangers:
        raise FtkvmError("FTKVM-363", host=host, places=", ".join(facts.strangers), program=PROGRAM)


def configuration(facts: HostFacts) -> ClusterConfig | None:
    """The newest configuration on the host's datastore; None if that is no cluster's yet.

    :raises CorruptFile: FTKVM-305
    """
    if not facts.configuration:
        return None
    path = "config (its newest file)"
    return understood(path, parse_document(path, facts.configuration), ClusterConfig.from_json)


def _require_datastore(facts: HostFacts, wish: Wish) -> None:
    where = {"host": wish.host, "path": wish.datastore}
    status = facts.datastore_status
    if status == "hung":
        raise FtkvmError("FTKVM-306", **where)
    if status == "missing" or (status == "ok" and facts.mount_point in ("", "/")):
        raise FtkvmError("FTKVM-301", **where)
    if status in ("read-only", "full"):
        raise FtkvmError("FTKVM-303" if status == "read-only" else "FTKVM-304", **where)
    if status != "ok":
        raise FtkvmError("FTKVM-302", **where, detail=status)


def require_versions(facts: HostFacts, host: str) -> None:
    """QEMU and libvirt new enough, as far as they are installed.

    :raises FtkvmError: FTKVM-207, FTKVM-208
    """
    if facts.qemu and facts.qemu < (11, 1):
        raise FtkvmError("FTKVM-207", host=host, version=".".join(map(str, facts.qemu)))
    if facts.libvirt and facts.libvirt < (11, 0):
        raise FtkvmError("FTKVM-208", host=host, version=".".join(map(str, facts.libvirt)))


def plan(facts: HostFacts, wish: Wish) -> list[Step]:
    """The steps that are needed; none if the host is as wished."""
    files = [
        file_step(path, content, mode, wish.journal)
        for path, (content, mode) in wish.files.items()
        if facts.digests.get(path) != hashlib.sha256(content).hexdigest()
    ]
    # apt's own first: with them QEMU is from backports even where it comes as a dependency of something else
    apt = [step for step in files if step.name.startswith("file /etc/apt/")]
    steps = [*apt, *_packages(facts, wish.journal)]
    changed = [*_package(facts, wish), *(step for step in files if step not in apt)]
    if any(step.name.startswith("file /etc/systemd") for step in changed):
        changed.append(
            Step("units", "systemd reads its units", "systemctl daemon-reload", "true", "systemctl daemon-reload")
        )
    if any(step.name == f"file {modules.FILE}" for step in changed):
        changed.append(modules.load(facts.modules))
    opened = firewall_steps(facts.firewall, wish.openings, wish.journal)
    steps += [*changed, *opened, *_services(facts, restart=bool(changed))]
    return [journal_step(wish.journal, wish.later), *steps] if steps else []


def journal_step(journal: str, later: Sequence[str] = ()) -> Step:
    """Before all others: from now on is kept what they change. It is taken back by :mod:`hostprep.journal` only."""
    text = f"keep what will be changed in {journal}"
    return Step("journal", text, begin(journal, later), f"test -d {shlex.quote(journal)}", "true")


def _running(facts: HostFacts) -> bool:
    return all(facts.units.get(unit) == ("enabled", "active") for unit in UNITS)


def _packages(facts: HostFacts, journal: str) -> Iterator[Step]:
    groups = (("debian", "", PACKAGES), ("-t trixie-backports", "-t trixie-backports ", BACKPORTS))
    for name, option, names in groups:
        yield from package_steps(facts, name, names, journal, option)


def package_steps(facts: HostFacts, name: str, names: Sequence[str], journal: str, option: str = "") -> Iterator[Step]:
    """The step that installs those of ``names`` that are missing; none if all are there. ``option``: for apt."""
    missing = [each for each in names if each not in facts.packages]
    if missing:
        listed = " ".join(missing)
        yield Step(
            f"packages {name}",
            f"install {listed}",
            packages.install(journal, missing, option),
            packages.installed(missing),
            packages.undo(journal),
            timeout_s=900.0,
        )


def _package(facts: HostFacts, wish: Wish) -> Iterator[Step]:
    if facts.manifest == wish.package.digest:
        return
    yield Step(
        "package",
        f"copy the ftkvm package ({len(wish.package.tar) // 1024} KiB) to /opt/ftkvm",
        "set -e; rm -rf /opt/ftkvm.new; mkdir -p /opt/ftkvm.new; tar -xz -C /opt/ftkvm.new --no-same-owner;"
        f" echo {wish.package.digest} > /opt/ftkvm.new/.manifest; sync -f /opt/ftkvm.new;"
        " rm -rf /opt/ftkvm.before; if [ -e /opt/ftkvm ]; then mv /opt/ftkvm /opt/ftkvm.before; fi;"
        " mv /opt/ftkvm.new /opt/ftkvm",
        f"grep -qx {wish.package.digest} /opt/ftkvm/.manifest && test -s /opt/ftkvm/ftkvm/__init__.py",
        # cut off early, what is there is still the program of before
        f"if grep -qx {wish.package.digest} /opt/ftkvm/.manifest; then {remove_program()}; fi; rm -rf /opt/ftkvm.new;"
        " if [ ! -e /opt/ftkvm -a -e /opt/ftkvm.before ]; then mv /opt/ftkvm.before /opt/ftkvm; fi",
        stdin=wish.package.tar,
    )


def file_step(path: str, content: bytes, mode: int, journal: str) -> Step:
    """A file of ours; what was there is kept in the journal. It is on the disk before it has its name: a host that lost
    its power seconds later came back with an empty private key, and its agent did not start (seen)."""
    name, before = shlex.quote(path), shlex.quote(path + BEFORE)
    parent, new = path.rpartition("/")[0], shlex.quote(path + ".new")
    after = "; systemctl daemon-reload" if path.startswith("/etc/systemd/") else ""
    return Step(
        f"file {path}",
        f"write {path}",
        f"set -e; {record(journal, path)}; mkdir -p {shlex.quote(parent)}; umask 077;"
        f" cat > {new}; chmod {mode:o} {new}; sync {new};"
        f" if [ -e {name} ]; then cp -p {name} {before}; fi; mv {new} {name}; sync {shlex.quote(parent)}",
        f"echo '{hashlib.sha256(content).hexdigest()}  {path}' | sha256sum -c --quiet",
        f"rm -f {new}; if [ -e {before} ]; then mv {before} {name}; else rm -f {name}; fi;"
        f" {remove_if_empty(parent)}{after}",
        stdin=content,
    )


def join_step(wish: Wish) -> Step:
    """Enter the host into the cluster; last, when its agent has answered. Does nothing if it is in it already.

    safety: a host whose agent is taken away after the cluster has been told of it would be a lost one. So where this
    step is cut off, nothing is undone before the configuration has been read again, and that not before the command,
    which goes on without us, has ended: both hold the same lock.
    """
    lock = "mkdir -p /run/ftkvm; exec 9>/run/ftkvm/join.lock; flock -w"

    def program(limit_s: int) -> str:
        return f"PYTHONPATH=/opt/ftkvm timeout -s KILL {limit_s} python3 -m ftkvm.agent.join"

    return Step(
        "join",
        "enter the host into the cluster's configuration",
        f"{lock} 5 9 && {program(_JOIN_S)}",
        "true",
        "true",  # it is the last step; its question is asked before anything is undone
        stdin=json.dumps(dict(wish.join)).encode(),
        timeout_s=_JOIN_S + 10.0,
        # the second: a command sent just before has the lock by then
        question=f"sleep 1; {lock} {_JOIN_S + 10} 9 && {program(10)} {ASK}",
    )


def _services(facts: HostFacts, *, restart: bool) -> Iterator[Step]:
    if not restart and _running(facts):
        return
    units = " ".join(UNITS)
    active = all(facts.units.get(unit, ("", ""))[1] == "active" for unit in UNITS)
    yield Step(
        "services",
        "start the agent and the keeper" if not active else "restart the agent and the keeper (VMs go on)",
        f"systemctl enable -q {units} && sync -f /etc/systemd && systemctl restart {units}"
        " || { journalctl -q _SYSTEMD_UNIT=ftkvm-agent.service + _SYSTEMD_UNIT=ftkvm-keeper.service"
        " -n 3 -o cat >&2; exit 1; }",
        f"systemctl is-active -q {units}",
        f"systemctl restart {units}" if active else f"systemctl disable -q --now {units}",
        timeout_s=400.0,  # each unit may take its own time-out to start
    )


def clean_up(wish: Wish) -> str:
    """What only an undo would have needed: words for `rm -rf`."""
    return " ".join(["/opt/ftkvm.before", *(shlex.quote(path + BEFORE) for path in wish.files)])


def unit_files() -> dict[str, tuple[bytes, int]]:
    """The units as files of a wish."""
    return {path: (text.encode(), 0o644) for path, text in UNIT_FILES.items()}
