"""An operator's seat in the lab for tests: bare hosts of their own, a datastore directory and a cluster, beside the
lab's main hosts, which are not touched."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftkvm.cli.hosts import host_trouble
from ftkvm.lab import lab as labs
from ftkvm.lab import names
from ftkvm.lab.guest import domain as guests
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.host import Host

FTKVM = [str(Path(__file__).parents[2] / ".venv/bin/python"), "-m", "ftkvm.cli"]
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{image}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='br-vm'/><model type='virtio'/>{driver}</interface></devices></domain>"""


WAIT_POINT = "/run/ftkvm/wait-after-step"

HOUSEKEEPING = {"hosts", "leases", "roles", "history"}
"""What agents write on their own, whatever an operator does."""


@dataclass(frozen=True)
class Said:
    """What a command of ``ftkvm`` ended with."""

    status: int
    out: Any
    code: str
    err: str


class Seat:
    """Runs ``ftkvm`` as the operator of its own cluster."""

    def __init__(self, directory: Path, hosts: tuple[str, ...]) -> None:
        self.home = directory
        self.hosts = tuple(Host(name) for name in hosts)
        self.datastore = names.DATASTORE / f"test-{os.getpid()}"
        self.inside = f"{names.DATASTORE_MOUNT}/{self.datastore.name}"
        self.known_hosts = directory / ".ssh/known_hosts"
        self._emulation = False
        self.guests: list[str] = []

    def up(self) -> None:
        """Boot the hosts, bare, with the operator's key."""
        self.datastore.mkdir()
        key = self.home / ".ssh/id_ed25519"
        key.parent.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        image = names.IMAGES / labs.record().image
        for host in self.hosts:
            host.remove()
            host.prepare_disk([each.name for each in self.hosts], key.with_suffix(".pub").read_text())
            host.boot(image, None)
        for host in self.hosts:
            host.wait_ready()
        lines = [f"{self.address(host)} {host.host_key()}" for host in self.hosts]
        self.known_hosts.write_text("\n".join(lines) + "\n")

    def down(self) -> None:
        """Remove the hosts and the datastore directory."""
        for host in self.hosts:
            host.remove()
        shutil.rmtree(self.datastore, ignore_errors=True)

    def address(self, host: Host) -> str:
        return names.host_address(host.name, "management")

    def words(self, *words: str) -> list[str]:
        """The command line of ``ftkvm WORDS --output json``, to be run in :attr:`environment`."""
        return ["ip", "netns", "exec", names.CLIENT_NS, *FTKVM, *words, "--output", "json"]

    @property
    def environment(self) -> dict[str, str]:
        """The operator's."""
        return dict(os.environ, HOME=str(self.home), FTKVM_HOME=str(self.home / "ftkvm"))

    def run(self, *words: str, timeout_s: float = 90) -> Said:
        """``ftkvm WORDS --output json``."""
        inside, environment = self.words(*words), self.environment
        done = subprocess.run(inside, capture_output=True, text=True, timeout=timeout_s, env=environment)
        out = json.loads(done.stdout) if done.stdout.strip() else None
        code = out["error"]["code"] if isinstance(out, dict) and out.get("error") else ""
        return Said(done.returncode, out, code, done.stderr)

    def ok(self, *words: str) -> Any:
        """As :meth:`run`, and it must succeed."""
        said = self.run(*words)
        assert said.status == 0, said.err
        return said.out

    def add_host(self, host: Host, *more: str) -> Said:
        said = self._add_host(host, *more)
        if said.status == 0 and "--dry-run" not in more:
            self._allow_emulation()
        return said

    def add_all_hosts(self) -> None:
        """Side by side; each must succeed."""
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            done = list(pool.map(self._add_host, self.hosts))
        assert not any(said.status for said in done), [said.err for said in done]
        self._allow_emulation()

    def _add_host(self, host: Host, *more: str) -> Said:
        return self.run("host", "add", host.name, "--address", self.address(host), *more)

    def _allow_emulation(self) -> None:
        """Its guests are emulated: a cluster must allow that."""
        if not self._emulation:
            self.ok("cluster", "set", "ft.emulation=on")
            self._emulation = True

    def define(self, host: Host, name: str, driver: str = "<driver name='qemu'/>", size: str = "64M") -> None:
        """Define a domain without a system on its disk, as somebody without ftkvm would."""
        images = self.datastore / "images"
        images.mkdir(exist_ok=True)
        image = self.image(f"{name}.qcow2", size)
        (self.datastore / f"{name}.xml").write_text(DOMAIN.format(name=name, image=image, driver=driver))
        host.run(["virsh", "-q", "define", f"{self.inside}/{name}.xml"])

    def guest(self, name: str, change: Callable[[str], str] = lambda xml: xml, memory_mib: int = 128) -> Guest:
        """Define one of the lab's guests (its disk, its services) on the first host and register it.

        :param change: makes another shape of the domain's XML
        """
        files = guests.install_files()
        number = 160 + 2 * (names.number(self.hosts[0].name) % 45) + len(self.guests)
        made = Guest(name, str(uuid.uuid4()), number, f"{self.inside}/images/{name}.qcow2")
        (self.datastore / "images").mkdir(exist_ok=True)
        self.image(f"{name}.qcow2", "1G")
        (self.datastore / f"{name}.xml").write_text(change(guests.domain_xml(made, files, memory_mib, 1, False)))
        self.hosts[0].run(["virsh", "-q", "define", f"{self.inside}/{name}.xml"])
        self.ok("vm", "register", name, "--host", self.hosts[0].name)
        self.guests.append(name)
        return made

    def image(self, name: str, size: str) -> str:
        """Make an empty image on the datastore; its path as the hosts see it."""
        place = self.datastore / "images" / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(place), size], check=True)
        return f"{self.inside}/images/{name}"

    def vm(self, name: str) -> dict[str, Any]:
        """What ``ftkvm status`` says of a VM; empty while nobody can say."""
        said = self.run("status", name, timeout_s=30)
        return dict(said.out["vms"][0]) if said.status == 0 and said.out.get("vms") else {}

    def wait_vm(self, name: str, what: str, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> Any:
        """Wait until what ``ftkvm status`` says of a VM holds; what it said. Fails the test with what was seen last."""
        deadline, seen = time.monotonic() + timeout_s, {}
        while time.monotonic() < deadline:
            seen = self.vm(name)
            if seen and holds(seen):
                return seen
            time.sleep(0.3)
        pytest.fail(f"{name} {what}: not within {timeout_s} s; last seen: {json.dumps(seen)}\n{self.logs()}")

    def wait_protected(self, name: str, after_epoch: int = 0, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until a VM is protected in a later epoch; its pair."""

        def protected(seen: dict[str, Any]) -> bool:
            pair = seen.get("pair") or {}
            return pair.get("state") == "protected" and pair["epoch"] > after_epoch and not pair.get("operation")

        return dict(self.wait_vm(name, "protected", protected, timeout_s)["pair"])

    @contextmanager
    def waiting_after(self, step: str, *command: str, timeout_s: float = 60) -> Iterator[list[Said]]:
        """Run a command whose plan, on the first host, waits after ``step``; inside, it waits; afterwards it has ended,
        its answer yielded."""
        here, said = self.hosts[0], list[Said]()
        here.run(["sh", "-c", f"echo {step} > {WAIT_POINT}"])
        thread = threading.Thread(target=lambda: said.append(self.run(*command, timeout_s=timeout_s + 60)))
        thread.start()
        try:
            deadline = time.monotonic() + timeout_s
            while not here.succeeds(["test", "-e", f"{WAIT_POINT}.reached"]):
                assert thread.is_alive(), f"never waited after {step}: {said}"
                assert time.monotonic() < deadline, f"never waited after {step}\n{self.logs()}"
                time.sleep(0.1)
            yield said
        finally:
            if here.running:
                here.run(["rm", "-f", WAIT_POINT])
            thread.join(timeout_s + 60)
            assert not thread.is_alive(), f"{command} does not end\n{self.logs()}"

    def logs(self, lines: int = 30) -> str:
        """The last words of each agent."""
        asked = ["journalctl", "-u", "ftkvm-agent", "-n", str(lines), "--no-pager", "-o", "cat"]
        return "\n".join(f"-- {host.name}\n{host.run(asked)}" for host in self.hosts if host.running)

    def host(self, name: str) -> Host:
        """One of the seat's hosts."""
        return next(host for host in self.hosts if host.name == name)

    def other(self, *names_: str) -> Host:
        """A host of the seat that is none of these."""
        return next(host for host in self.hosts if host.name not in names_)

    def crash(self, *names_: str) -> None:
        """Silent power loss."""
        for name in names_:
            self.host(name).power_off()

    def power_on(self, *names_: str) -> None:
        """Boot hosts that crashed, and wait until they are usable."""
        for name in names_:
            self.host(name).boot(names.IMAGES / labs.record().image, None)
        for name in names_:
            self.host(name).wait_ready()
        self.wait_hosts()

    def wait_hosts(self, timeout_s: float = 60) -> None:
        """Wait until every host of the cluster is well."""
        deadline, rows = time.monotonic() + timeout_s, []
        while time.monotonic() < deadline:
            said = self.run("host", "list", timeout_s=30)
            rows = said.out if said.status == 0 else []
            if rows and not any(map(host_trouble, rows)):
                return
            time.sleep(0.3)
        pytest.fail(f"hosts are not well within {timeout_s} s: {rows}")

    def metadata(self, name: str) -> Path:
        """The directory of a VM's pair records, as it lies on this machine."""
        return self.datastore / ".ftkvm/ft" / str(self.vm(name)["uuid"])

    def state(self) -> dict[str, object]:
        """All that a refused command must leave as it was, byte for byte: the datastore, domains, hosts' files.

        A guest that writes to its disk meanwhile would be seen as well: those here have none, or are idle.
        """
        files = {
            str(path.relative_to(self.datastore)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.datastore.rglob("*")
            if path.is_file() and not HOUSEKEEPING & set(path.parts) and not path.name.startswith(".")
        }
        rest = {host.name: _host_state(host) for host in self.hosts if host.running}
        return {"datastore": files, **rest}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever happens inside leaves everything as it was."""
        before = self.state()
        yield
        assert self.state() == before


@contextmanager
def seated(directory: Path, *hosts: str) -> Iterator[Seat]:
    """A seat whose hosts run, bare, with a cluster that has none of them yet; skips where the lab cannot be."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    if not labs.RECORD.exists():
        labs.up(1, None, lambda _text: None)
    made = Seat(directory, hosts)
    try:
        made.up()
        networks = [f"--{name}-network={names.NETWORKS[name].prefix}.0/24" for name in names.HOST_NETWORKS]
        made.ok("cluster", "create", "test", "--datastore", made.inside, *networks)
        yield made
    finally:
        made.down()


@contextmanager
def joined(directory: Path, *hosts: str) -> Iterator[Seat]:
    """A seat as :func:`seated`, its hosts in the cluster and well."""
    with seated(directory, *hosts) as made:
        made.add_all_hosts()
        made.wait_hosts()
        yield made


def _host_state(host: Host) -> str:
    script = (
        "virsh list --all --uuid | sort; for u in $(virsh list --all --uuid); do virsh dumpxml $u; done;"
        " for u in $(virsh list --uuid); do virsh dumpxml --inactive $u; done;"
        " find /etc/ftkvm /opt/ftkvm /etc/systemd/system -type f -not -name '*.pyc' 2>/dev/null | sort"
        " | xargs -r sha256sum"
    )
    return host.run(["sh", "-c", script])
