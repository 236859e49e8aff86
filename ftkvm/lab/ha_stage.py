"""A cluster of its own in the lab with several small VMs, for HA; the lab's main hosts are not touched."""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkvm.adapters.peers import HttpsPeers
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.client import AgentClient
from ftkvm.config import HostEntry
from ftkvm.home import Home
from ftkvm.lab import devices, lab, names, netns, network
from ftkvm.lab.guest import domain
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage
from ftkvm.lab.system import run
from ftkvm.lab.trials import Say

HOSTS = ("host51", "host52", "host53")
PRIORITIES = ("high", "medium", "low")
FIRST_NUMBER = 141
"""Of the guests' addresses: above those of `domain.create`, below those of the tests' seats."""

MEMORY_MIB = 96
WELL_S = 90.0
FRESH_S = 3.0
START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class HaVm:
    """One of the VMs."""

    guest: Guest
    priority: str

    @property
    def name(self) -> str:
        return self.guest.name


@dataclass(frozen=True)
class HaStage(Stage):
    """Hosts, VMs, and what lies on the datastore, read from this machine (so it can be read while hosts are lost)."""

    vms: list[HaVm] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return dict(os.environ, HOME=str(self.home.parent))

    @property
    def metadata(self) -> Path:
        """The cluster's directory on the datastore."""
        return names.DATASTORE / self.datastore.removeprefix(names.DATASTORE_MOUNT).strip("/") / ".ftkvm"

    # -- what the datastore says -------------------------------------------------------------------------------

    def owners(self, vm: HaVm) -> list[dict[str, Any]]:
        """All owner files of a VM with their numbers, oldest first."""
        files = sorted((self.metadata / "vms" / vm.guest.uuid / "owner").glob("[0-9]*.json"))
        return [{"number": int(path.stem), **_read(path)} for path in files]

    def owner(self, vm: HaVm) -> dict[str, Any]:
        """The newest owner file of a VM; empty before the first."""
        found = self.owners(vm)
        return found[-1] if found else {}

    def owned_by(self, host: str) -> list[HaVm]:
        return [vm for vm in self.vms if self.owner(vm).get("host") == host]

    def heartbeat(self, host: str) -> dict[str, Any]:
        return _read(self.metadata / "hosts" / host / "ha.json")

    def coordinator(self) -> str | None:
        """The host of the newest term."""
        files = sorted((self.metadata / "leases/coordinator").glob("[0-9]*.json"))
        return _read(files[-1]).get("host") if files else None

    def history(self, since: float) -> list[dict[str, Any]]:
        """All hosts' events since a wall clock time, in order."""
        events = []
        for path in (self.metadata / "history").glob("*.jsonl"):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
        return sorted((event for event in events if event.get("at", 0) >= since), key=lambda event: event["at"])

    # -- what the cluster says ---------------------------------------------------------------------------------

    def ask(self, path: str, timeout_s: float = 5.0) -> Any:
        """An answer of whichever agent can be reached; None when nobody answers."""
        try:
            with netns.inside(names.CLIENT_NS):
                return AgentClient(Home(self.home)).call("GET", path, timeout_s=timeout_s)
        except FtkvmError:
            return None

    def ha(self, host: str, timeout_s: float = 3.0) -> dict[str, Any]:
        """What a host's agent says of HA; empty when it does not answer."""
        home = Home(self.home)

        def entry(name: str) -> HostEntry:
            found = home.load().entry(name)
            return replace(found, ft=found.management)  # the operator's seat is not on the FT network

        try:
            with netns.inside(names.CLIENT_NS):
                peers = HttpsPeers(entry, home.client_context())
                return dict(peers.call(host, "GET", "/v1/local/ha", None, timeout_s))
        except FtkvmError:
            return {}

    def view(self, of: str, by: str) -> tuple[str, str]:
        """What one host makes of another, and why; empty words when it says nothing."""
        status = self.ha(by).get("status") or {}
        for row in status.get("hosts", []):
            if row["host"] == of:
                return str(row["state"]), str(row["why"])
        return "", ""

    def troubles(self) -> str:
        """What is not as it is in a cluster that is well; empty if nothing."""
        for name in self.hosts:
            beat = self.heartbeat(name)
            if time.time() - beat.get("at", 0) > FRESH_S:
                return f"{name} writes no heartbeat"
            if (beat["watchdog_ms"] > 0) == devices.absent(name).exists():
                return f"{name} says its watchdog has {beat['watchdog_ms']} ms"
        if self.coordinator() not in self.hosts:
            return f"the coordinator is {self.coordinator()}"
        rows = (self.ask("/v1/hosts") or {}).get("hosts", [])
        bad = [row["name"] for row in rows if not row["answers"] or row.get("error") or row["datastore"] != "ok"]
        if bad or len(rows) != len(self.hosts):
            return f"hosts that do not answer as they should: {bad or rows}"
        return ""

    def wait_well(self, timeout_s: float = WELL_S) -> None:
        """Until hosts beat, somebody coordinates and every VM has an owner. FTKVM-710 with what is not so."""
        deadline = time.monotonic() + timeout_s
        while True:
            lost = [vm.name for vm in self.vms if self.owner(vm).get("host") not in self.hosts]
            trouble = self.troubles() or (f"nobody owns {', '.join(lost)}" if lost else "")
            if not trouble:
                return
            if time.monotonic() > deadline:
                what = f"the cluster to be well ({trouble}){self.words()}"
                raise FtkvmError("FTKVM-710", what=what, timeout_s=f"{timeout_s:.0f}")
            time.sleep(0.5)

    def words(self) -> str:
        """The last words of each agent, for who has to find out why."""
        asked = ["journalctl", "-u", "ftkvm-agent", "-n", "15", "--no-pager", "-o", "short-precise"]
        alive = [name for name in self.hosts if Host(name).running and not Host(name).frozen]
        return "".join(f"\n-- {name}\n{Host(name).run(asked)}" for name in alive)

    # -- its life ----------------------------------------------------------------------------------------------

    def boot(self, *hosts: str) -> None:
        """Power on, and wait until they answer."""
        image = names.IMAGES / lab.record().image
        for name in hosts:
            Host(name).boot(image, None)
        for name in hosts:
            Host(name).wait_ready()

    def add_host(self, name: str) -> None:
        """``ftkvm host add``: also again, after its devices changed."""
        self.ftkvm("host", "add", name, "--address", names.host_address(name, "management"))

    def links(self, host: str, networks: Sequence[str], *, up: bool) -> None:
        for each in networks:
            network.set_port(host, each, up)

    def make_vm(self, name: str, priority: str, host: str) -> HaVm:
        """A VM that was just started on a host; it takes a while to answer."""
        files = domain.install_files()
        place = self.metadata.parent
        (place / "images").mkdir(exist_ok=True)
        image = place / "images" / f"{name}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1G"])
        disk = f"{self.datastore}/images/{name}.qcow2"
        guest = Guest(name, str(uuid.uuid4()), FIRST_NUMBER + len(self.vms), disk)
        (place / f"{name}.xml").write_text(domain.domain_xml(guest, files, MEMORY_MIB, 1, kvm=False))
        Host(host).run(["virsh", "-q", "define", f"{self.datastore}/{name}.xml"])
        self.ftkvm("vm", "register", name, "--host", host)
        self.ftkvm("vm", "set", name, f"ha.restart_priority={priority}")
        self.ftkvm("vm", "start", name, "--host", host)
        made = HaVm(guest, priority)
        self.vms.append(made)
        return made

    def down(self) -> None:
        """Remove hosts, VMs and the datastore directory."""
        for name in self.hosts:
            Host(name).remove()
        shutil.rmtree(self.metadata.parent, ignore_errors=True)


@contextmanager
def staged(directory: Path, say: Say, vms: int = 6, hosts: Sequence[str] = HOSTS) -> Iterator[HaStage]:
    """A cluster of bare hosts that has just been made, with VMs of mixed priority, spread evenly; removed at the end.

    :param directory: for the operator's files
    """
    if not lab.RECORD.exists():
        lab.up(1, None, say)
    datastore = f"ha-{os.getpid()}"
    stage = HaStage(tuple(hosts), directory / "ftkvm", f"{names.DATASTORE_MOUNT}/{datastore}")
    try:
        _bare_hosts(stage, directory)
        networks = [f"--{n}-network={names.NETWORKS[n].prefix}.0/24" for n in names.HOST_NETWORKS]
        stage.ftkvm("cluster", "create", "ha", f"--datastore={stage.datastore}", *networks)
        for name in hosts:
            stage.add_host(name)
        stage.wait_well()
        say(f"{len(hosts)} hosts are a cluster, {stage.coordinator()} coordinates")
        for number in range(vms):
            priority = PRIORITIES[(number + number // len(hosts)) % len(PRIORITIES)]  # no host has but one kind
            host = hosts[number % len(hosts)]
            stage.make_vm(f"ha{number + 1}", priority, host)
            say(f"ha{number + 1} ({priority}) is started on {host}")
        yield stage
    finally:
        stage.down()


def _bare_hosts(stage: HaStage, directory: Path) -> None:
    stage.metadata.parent.mkdir()
    key = directory / ".ssh/id_ed25519"
    key.parent.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    for name in stage.hosts:
        host = Host(name)
        host.remove()
        devices.absent(name).unlink(missing_ok=True)
        host.prepare_disk(stage.hosts, key.with_suffix(".pub").read_text())
    stage.boot(*stage.hosts)
    lines = [f"{names.host_address(name, 'management')} {Host(name).host_key()}" for name in stage.hosts]
    (key.parent / "known_hosts").write_text("\n".join(lines) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """A JSON file as it lies there; empty if it is not there or half replaced."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
