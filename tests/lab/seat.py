"""An operator's seat in the lab for tests: two bare hosts of their own, a datastore directory and a cluster beside the
lab's main hosts, which are not touched."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftkvm.lab import lab as labs
from ftkvm.lab import names
from ftkvm.lab.host import Host

FTKVM = [str(Path(__file__).parents[2] / ".venv/bin/python"), "-m", "ftkvm.cli"]
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{image}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='br-vm'/><model type='virtio'/>{driver}</interface></devices></domain>"""


@dataclass(frozen=True)
class Said:
    """What a command of ``ftkvm`` ended with."""

    status: int
    out: Any
    code: str
    err: str


class Seat:
    """Runs ``ftkvm`` as the operator of its own cluster."""

    def __init__(self, directory: Path, hosts: tuple[str, str]) -> None:
        self.home = directory
        self.hosts = tuple(Host(name) for name in hosts)
        self.datastore = names.DATASTORE / f"test-{os.getpid()}"
        self.inside = f"{names.DATASTORE_MOUNT}/{self.datastore.name}"
        self.known_hosts = directory / ".ssh/known_hosts"

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

    def run(self, *words: str, timeout_s: float = 90) -> Said:
        """``ftkvm WORDS --output json``."""
        inside = ["ip", "netns", "exec", names.CLIENT_NS, *FTKVM, *words, "--output", "json"]
        environment = dict(os.environ, HOME=str(self.home), FTKVM_HOME=str(self.home / "ftkvm"))
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
        return self.run("host", "add", host.name, "--address", self.address(host), *more)

    def define(self, host: Host, name: str, driver: str = "<driver name='qemu'/>") -> None:
        """Define a domain without a system on its disk, as somebody without ftkvm would."""
        images = self.datastore / "images"
        images.mkdir(exist_ok=True)
        image = f"{self.inside}/images/{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(images / f"{name}.qcow2"), "64M"], check=True)
        (self.datastore / f"{name}.xml").write_text(DOMAIN.format(name=name, image=image, driver=driver))
        host.run(["virsh", "-q", "define", f"{self.inside}/{name}.xml"])

    def state(self) -> dict[str, object]:
        """All that a refused command must leave as it was: files on the datastore, domains, hosts' files."""
        files = {
            str(path.relative_to(self.datastore)): path.stat().st_size
            for path in self.datastore.rglob("*")
            if path.is_file() and "/hosts/" not in str(path) and not path.name.startswith(".")
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
    first, second = hosts
    made = Seat(directory, (first, second))
    try:
        made.up()
        networks = [f"--{name}-network={names.NETWORKS[name].prefix}.0/24" for name in names.HOST_NETWORKS]
        made.ok("cluster", "create", "test", "--datastore", made.inside, *networks)
        yield made
    finally:
        made.down()


def _host_state(host: Host) -> str:
    script = (
        "virsh list --all --uuid | sort; for u in $(virsh list --uuid); do virsh domblklist $u; done;"
        " find /etc/ftkvm /opt/ftkvm /etc/systemd/system -type f -not -name '*.pyc' 2>/dev/null | sort"
        " | xargs -r sha256sum"
    )
    return host.run(["sh", "-c", script])
