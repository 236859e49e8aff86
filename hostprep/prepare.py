"""Prepares one host and enters it into the cluster: the whole way from SSH to an agent that answers."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ftkvm.adapters.peers import HttpsPeers
from ftkvm.agent.join import entered
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.client import AgentClient
from ftkvm.cli.patience import stretched
from ftkvm.config import HostConfig, HostEntry
from ftkvm.core.clock import judge
from ftkvm.core.joining import Machine, addresses_in, require_may_join
from ftkvm.core.trust import Role
from ftkvm.home import ClusterFile, Home
from ftkvm.ports import Json
from hostprep import apparmor, modules, openings, package, sources
from hostprep import facts as facts_of
from hostprep.apply import Progress, apply
from hostprep.facts import UNITS, HostFacts
from hostprep.ground import Ground, files_of, ground_steps
from hostprep.joining import machine_of, members
from hostprep.journal import take_back
from hostprep.nics import NETWORKS, REVERT_S, Nic, Surroundings, confirm, frames_lost
from hostprep.packages import PIN, PREFERENCES
from hostprep.place import JOURNAL
from hostprep.plan import (
    CONFIG,
    Wish,
    clean_up,
    configuration,
    join_step,
    plan,
    require,
    require_place,
    require_versions,
    unit_files,
)
from hostprep.preview import View, preview
from hostprep.runner import Runner
from hostprep.ssh import Session, Target
from hostprep.step import Step

log = logging.getLogger(__name__)

WATCHDOG = "/dev/watchdog"
"""Used if the host has one: its hardware's, softdog's, or one that is kept for it from outside."""
NO_GROUND = Ground()
_PKI = "/etc/ftkvm/pki"
_REVOKED = f"{_PKI}/crl.pem"
_BEAT_KEY = "/etc/ftkvm/beat.key"
_HEALTH_TIMEOUT_S = 45.0
_KNOWN_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Prepared:
    """The host's entry, and the texts of the steps that were (or would be) done; a dry run's in full, too.

    ``warnings``: what was found and refuses nothing; `ftkvm check host` tells the same.
    """

    entry: HostEntry
    steps: list[str]
    views: list[View] = field(default_factory=list)
    warnings: tuple[FtkvmError, ...] = ()


def hosts_of(home: Home) -> list[Json]:
    """The cluster's hosts, as one that lives tells them.

    :raises FtkvmError: FTKVM-607 none answers
    """
    return list(AgentClient(home).call("GET", "/v1/hosts")["hosts"])


def prepare(
    home: Home, target: Target, progress: Progress, *, dry_run: bool = False, ground: Ground = NO_GROUND,
    connect: Callable[[Target], Session] = Session, hosts: Callable[[Home], list[Json]] = hosts_of,
) -> Prepared:  # fmt: skip
    """Make ``target`` a host of the cluster in ``home``; run again, it changes nothing.

    ``ground``: what it is to stand on is made first; a dry run that finds some of it missing shows no more than that.
    ``connect``, ``hosts``: how the host and the cluster are asked.

    :raises FtkvmError: 2xx, 3xx: why it cannot be one; nothing is then left changed
    """
    cluster = home.load()
    with home.held(alone=False), connect(target) as session:  # the beat keys do not change until the host is in
        progress(0, 0, "looking at the host")
        found = facts_of.gather(session, cluster.datastore, _file_names())
        require_place(found, target.host)
        bridge, around = cluster.vm_bridges[0], _surroundings(cluster)
        first = ground_steps(found, ground, target.host, bridge, cluster.datastore, JOURNAL, around)
        if first and dry_run:
            coming = tuple(str(each.address) for each in ground.nics)
            entry = host_entry(target.host, replace(found, addresses=(*found.addresses, *coming)), cluster)
            texts = [*(step.text for step in first), "everything else is planned when these are there"]
            views = preview(session, first, files_of(first))
            return Prepared(entry, texts, views, _warnings(entry, found, cluster))
        try:
            if first:
                checks = {each.step: partial(_keep, session, each, around, connect) for each in ground.nics}
                apply(session, first, progress, checks)
                found = facts_of.gather(session, cluster.datastore, _file_names())
            done = _prepare(home, cluster, session, found, progress, dry_run=dry_run, hosts=hosts)
        except (FtkvmError, KeyboardInterrupt):
            if first:
                _take_back_unless_member(session, target.host, cluster, JOURNAL)
            raise
    warnings = _warnings(done.entry, found, cluster)
    return replace(done, steps=[*(step.text for step in first), *done.steps], warnings=warnings)


def _warnings(entry: HostEntry, found: HostFacts, cluster: ClusterFile) -> tuple[FtkvmError, ...]:
    findings = (*judge(found.clock), *openings.judge(found.firewall, _openings(entry, cluster)))
    return tuple(FtkvmError(each.code, **{"host": entry.name, **each.params}) for each in findings)


def _prepare(
    home: Home, cluster: ClusterFile, session: Session, found: HostFacts, progress: Progress, *, dry_run: bool,
    hosts: Callable[[Home], list[Json]],
) -> Prepared:  # fmt: skip
    """The host stands on what it needs: make it one of the cluster's."""
    entry = host_entry(session.target.host, found, cluster)
    wish = make_wish(home, cluster, entry, found)
    require(found, wish)
    require_newest_keys(session, found, home)
    others = members(hosts(home)) if cluster.hosts and _is_new(entry, found) else []
    require_may_join(machine_of(entry.name, found), others)
    steps = plan(found, wish)
    joined = cluster.hosts.get(entry.name) == entry.to_json() and not steps
    todo = steps if joined else [*steps, join_step(wish)]
    if dry_run:
        return Prepared(entry, [step.text for step in todo], preview(session, todo, wish.files))
    note_certificate(home, wish)
    check = _health_check(home, entry)
    with ExitStack() as entering:

        def ready() -> None:
            check()
            entering.enter_context(home.entering())
            require_still(home, cluster, session, wish, hosts)

        try:
            if not any(step.name == "services" for step in steps):
                ready()
            _apply(session, todo, progress, ready, cluster.datastore, others)
        except (FtkvmError, KeyboardInterrupt):
            _take_back_unless_member(session, entry.name, cluster, wish.journal)
            raise
        home.put_host(entry.name, entry.to_json())
        if not joined:
            _wait_known(home, entry)
    session.run(f"rm -rf {clean_up(wish)}")
    return Prepared(entry, [step.text for step in todo])


def require_still(
    home: Home, before: ClusterFile, session: Session, wish: Wish, hosts: Callable[[Home], list[Json]]
) -> None:
    """Hosts that came into the cluster since the plan was made: what they would have refused is refused.

    safety: of several hosts that are added to a new cluster at once each was planned as its first, which may make a
    cluster on its datastore. A second one would do that on another datastore than the first has. So one enters at a
    time (the caller holds :meth:`Home.entering`), and whether it is the first is asked then.

    :raises FtkvmError: FTKVM-610, 609, 219, 242, 261 ... 263
    """
    if set(home.load().hosts) - {*before.hosts, wish.host}:
        found = facts_of.gather(session, before.datastore, _file_names())
        entered(configuration(found), {**wish.join, "first": False})
        require_may_join(machine_of(wish.host, found), members(hosts(home)))


def require_newest_keys(session: Runner, found: HostFacts, home: Home) -> None:
    """The host's beat keys are not newer than ours: those it has now would be no good among the others.

    :raises FtkvmError: FTKVM-338, this is an older copy of the operator's directory
    """
    if _BEAT_KEY in found.digests:
        said = session.run(f"sed -n 's/^number //p' {_BEAT_KEY}").stdout.strip()
        number, ours = int(said) if said.isdecimal() else 0, home.beat_keys().number
        if number > ours:
            detail = f"number {ours} is older than {number}, which is in use"
            raise FtkvmError("FTKVM-338", host=session.host, detail=detail)


def _surroundings(cluster: ClusterFile) -> Surroundings:
    taken = {
        str(entry[network]): (name, network)
        for name, entry in cluster.hosts.items()
        for network in NETWORKS
    }  # fmt: skip
    return Surroundings({network: getattr(cluster, f"{network}_network") for network in NETWORKS}, taken)


def _keep(session: Session, nic: Nic, around: Surroundings, connect: Callable[[Target], Session]) -> None:
    """The host's network stays, if full frames get to the others there, and we to the host by a new connection."""
    others = around.others(nic.network, session.host)
    said = session.run(frames_lost(nic, others), timeout_s=20.0).stdout.split() if others else []
    lost = [address for address in said if address in others]
    if lost:
        mtu = session.run(f"cat /sys/class/net/{nic.device}/mtu").stdout.strip()
        raise FtkvmError("FTKVM-750", host=session.host, other=others[lost[0]], network=nic.network, mtu=mtu)
    try:
        with connect(session.target) as again:
            done = again.run(confirm(nic))
    except FtkvmError as error:
        words = {"host": session.host, "network": nic.network, "detail": error.text}
        raise FtkvmError("FTKVM-753", **words, seconds=REVERT_S) from error
    if done.status:
        raise FtkvmError("FTKVM-209", host=session.host, step=nic.step, detail=done.stderr.strip()[-400:])


def _is_member(name: str, found: HostFacts, cluster: ClusterFile) -> bool:
    """Whether it is in the cluster, as far as anybody knows: then its preparation is not taken back behind its back."""
    config = configuration(found)
    active = found.units.get(UNITS[0], ("", ""))[1] == "active"
    return active or name in cluster.hosts or (config is not None and name in config.hosts)


def _take_back_unless_member(session: Session, name: str, cluster: ClusterFile, journal: str) -> None:
    """What an earlier run left goes, too. The host is asked again: the failed run may have entered it."""
    try:
        if not _is_member(name, facts_of.gather(session, cluster.datastore, _file_names()), cluster):
            take_back(session, journal)
    except FtkvmError as error:
        log.warning("what was changed on %s is not taken back: %s", session.host, error)


def _is_new(entry: HostEntry, found: HostFacts) -> bool:
    """Whether there are hosts that this one is to join (HA-01)."""
    config = configuration(found)
    return config is not None and bool(config.hosts) and entry.name not in config.hosts


def _apply(
    session: Session, todo: list[Step], progress: Progress, check: Callable[[], None], datastore: str,
    others: list[Machine],
) -> None:  # fmt: skip
    def versions() -> None:
        installed = facts_of.gather(session, datastore, _file_names())
        require_versions(installed, session.target.host)
        require_may_join(machine_of(session.target.host, installed), others)

    checks: dict[str, Callable[[], None]] = {"services": check}
    checks |= {step.name: versions for step in todo if step.name.startswith("packages")}
    apply(session, todo, progress, checks)


def host_entry(name: str, found: HostFacts, cluster: ClusterFile) -> HostEntry:
    """The host's addresses in the cluster's three networks.

    :raises FtkvmError: FTKVM-212, it has none in one of them
    """
    addresses = addresses_in(name, found.addresses, _surroundings(cluster).networks)
    return HostEntry(name, addresses["management"], addresses["ft"], addresses["migration"])


def _openings(entry: HostEntry, cluster: ClusterFile) -> tuple[openings.Opening, ...]:
    return openings.needed(entry, _surroundings(cluster).networks)


def make_wish(home: Home, cluster: ClusterFile, entry: HostEntry, found: HostFacts) -> Wish:
    """What the host shall have; a certificate that is still good stays."""
    authority = home.authority()
    wanted = _openings(entry, cluster)
    config = HostConfig(
        entry.name, entry.management, entry.ft, entry.migration, Path(cluster.datastore), tuple(cluster.vm_bridges),
        entry.api_port, entry.keeper_port, watchdog=WATCHDOG if WATCHDOG in found.devices else "",
    )  # fmt: skip
    files = {
        CONFIG: (config.to_toml().encode(), 0o644),
        f"{_PKI}/ca.crt": (authority.certificate, 0o644),
        **({_REVOKED: (home.revocation_list(), 0o644)} if home.revocation_list() else {}),
        _BEAT_KEY: (home.beat_keys().text().encode(), 0o600),
        PREFERENCES: (PIN, 0o644),
        **sources.files(found.sources),
        apparmor.FILE: (apparmor.TEXT, 0o644),
        **modules.files(found.modules),
        **openings.files(found.firewall, wanted),
        **unit_files(),
    }
    addresses = (entry.management, entry.ft)
    good = authority.still_good(found.host_certificate.encode(), entry.name, addresses, home.revoked())
    if not good or f"{_PKI}/host.key" not in found.digests:
        pair = authority.issue(entry.name, addresses, role=Role.HOST)
        files |= {f"{_PKI}/host.crt": (pair.certificate, 0o644), f"{_PKI}/host.key": (pair.key, 0o600)}
    return Wish(
        host=entry.name,
        datastore=cluster.datastore,
        vm_bridges=tuple(cluster.vm_bridges),
        package=package.build(),
        files=files,
        later=(_REVOKED,),
        openings=wanted,
        ca_certificate=authority.certificate.decode(),
        join={
            "cluster": cluster.cluster,
            "id": cluster.id,
            "datastore": cluster.datastore,
            "first": not (set(cluster.hosts) - {entry.name}),
            "host": {"name": entry.name, **entry.to_json()},
        },
    )


def note_certificate(home: Home, wish: Wish) -> None:
    """Enter the host's new certificate, if it gets one, in the list; a dry run's is thrown away."""
    if f"{_PKI}/host.crt" in wish.files:
        home.note(wish.files[f"{_PKI}/host.crt"][0])


def _file_names() -> list[str]:
    pki = [f"{_PKI}/{name}" for name in ("ca.crt", "host.crt", "host.key")]
    others = [PREFERENCES, sources.FILE, apparmor.FILE, openings.POLICY, modules.FILE]
    return [CONFIG, _BEAT_KEY, *pki, _REVOKED, *others, *unit_files()]


def require_out(runner: Runner, datastore: str) -> None:
    """The datastore, as the host sees it, does not know the host: another operator may have added it.

    :raises FtkvmError: FTKVM-342 it is in the cluster
    """
    config = configuration(facts_of.gather(runner, datastore, _file_names()))
    if config is not None and runner.host in config.hosts:
        raise FtkvmError("FTKVM-342", host=runner.host)


def _wait_known(home: Home, entry: HostEntry) -> None:
    """Until the host's own agent has read that it is in the cluster: who asks it next must not be told of no cluster.

    It reads that by itself; if it takes longer, the host is in the cluster all the same.
    """

    def missing(answer: Json) -> str:
        return "" if any(row["name"] == entry.name for row in answer["hosts"]) else "it knows of no such host"

    _asked_until(home, entry, "/v1/hosts", missing, _KNOWN_TIMEOUT_S)


def _health_check(home: Home, entry: HostEntry) -> Callable[[], None]:
    def missing(health: Json) -> str:
        well = health["host"] == entry.name and health["age_ms"] is not None
        return "" if well else f"answers as {health['host']}"

    def check() -> None:
        """Wait until the host's agent answers over mutual TLS and has looked at its host once."""
        detail = _asked_until(home, entry, "/v1/health", missing, _HEALTH_TIMEOUT_S)
        if detail:
            raise FtkvmError("FTKVM-218", host=entry.name, detail=detail)

    return check


def _asked_until(home: Home, entry: HostEntry, path: str, missing: Callable[[Json], str], timeout_s: float) -> str:
    """Ask the host's agent until nothing is ``missing`` in its answer; empty, or what was missing last."""
    peers = HttpsPeers(lambda _host: entry, home.client_context())
    deadline = time.monotonic() + stretched(timeout_s)
    while True:
        try:
            detail = missing(peers.call(entry.name, "GET", path, None, stretched(3.0)))
        except FtkvmError as error:
            detail = error.text
        if not detail or time.monotonic() > deadline:
            return detail
        time.sleep(0.2)
