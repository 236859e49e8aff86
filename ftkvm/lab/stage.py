"""The operator's commands as a person would type them, on a stage (some hosts, a datastore); for demo and tests."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.hosts import host_trouble
from ftkvm.cli.patience import VARIABLE
from ftkvm.lab import lab, names, operator
from ftkvm.lab.base import LabHost


@dataclass(frozen=True)
class Stage:
    """Some hosts of the lab that form one cluster."""

    hosts: tuple[str, ...]
    home: Path = names.OPERATOR
    datastore: str = names.DATASTORE_MOUNT
    time_dilation: float = 1.0
    """Seconds here for each of the hosts (:mod:`ftkvm.lab.vm.dilation`)."""

    @property
    def patience(self) -> float:
        """What every time limit is multiplied by: what slow hosts compute takes longer than their clocks make it."""
        return self.time_dilation * 1.5 if self.time_dilation > 1 else 1.0

    def hosts_s(self, seconds: float) -> float:
        """Seconds of this machine in the hosts' time."""
        return round(seconds / self.time_dilation, 2)

    def sleep(self, seconds: float, since: float | None = None) -> None:
        """Until so many seconds of the hosts' time are over, from ``since`` (monotonic clock) or from now."""
        until = (time.monotonic() if since is None else since) + seconds * self.time_dilation
        time.sleep(max(0.0, until - time.monotonic()))

    def host(self, name: str) -> LabHost:
        """One of the lab's, of whichever kind; or one that a test has made beside them."""
        return lab.host(name)

    def environment(self) -> dict[str, str]:
        """The operator's, but for $FTKVM_HOME."""
        return {**operator.environment(), VARIABLE: f"{self.patience:g}"}

    def ftkvm(self, *words: str, timeout_s: float = 120) -> str:
        """Runs ``ftkvm WORDS`` at the operator's seat; FTKVM-709 with its words if it fails."""
        command = operator.command([sys.executable, "-m", "ftkvm.cli", *words])
        environment = {**self.environment(), "FTKVM_HOME": str(self.home)}
        timeout_s *= self.patience
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FtkvmError("FTKVM-710", what=f"ftkvm {' '.join(words)}", timeout_s=f"{timeout_s:.0f}") from None
        if done.returncode:
            raise FtkvmError(
                "FTKVM-709",
                command=f"ftkvm {' '.join(words)}",
                detail=f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}",
            )
        return done.stdout

    def create_cluster(self, say: Callable[[str], None]) -> None:
        """Cluster and hosts, from bare hosts."""
        networks = [f"--{n}-network={names.NETWORKS[n].prefix}.0/24" for n in names.HOST_NETWORKS]
        self.ftkvm("cluster", "create", "lab", f"--datastore={self.datastore}", *networks)
        self.add_hosts(say)
        self.ftkvm("cluster", "set", "ft.emulation=on")
        say("the cluster allows FT for emulated guests (ft.emulation=on): it is a lab")

    def add_hosts(self, say: Callable[[str], None]) -> None:
        """All hosts, side by side, as an operator's script would; FTKVM-709 when one fails, after all have ended."""
        started = time.monotonic()

        def add(host: str) -> None:
            self.ftkvm("host", "add", host, *self.mount_words())
            say(f"{host} is prepared and in the cluster ({time.monotonic() - started:.1f} s)")

        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(add, self.hosts))

    def mount_words(self) -> list[str]:
        """What `host add` is to be told of the datastore: where it comes from, if the host has not got it already."""
        return ["--datastore-nfs", names.export()] if lab.record().nfs else []

    def vm_status(self, vm: str) -> dict[str, Any]:
        """What ``ftkvm status`` says of a VM; empty when it cannot say anything now."""
        try:
            found = json.loads(self.ftkvm("status", vm, "--output", "json", timeout_s=20))["vms"]
        except (FtkvmError, ValueError):
            return {}
        return dict(found[0]) if found else {}

    def pair(self, vm: str) -> dict[str, Any]:
        """The pair of a VM as ``ftkvm status`` shows it; empty when there is none."""
        return dict(self.vm_status(vm).get("pair") or {})

    def wait_protected(self, vm: str, timeout_s: float, after_epoch: int = 0) -> dict[str, Any]:
        """Waits until the VM is protected in a later epoch; the pair. FTKVM-710 when it is not in time."""
        timeout_s *= self.patience
        deadline = time.monotonic() + timeout_s
        while True:
            pair = self.pair(vm)
            if pair.get("state") == "protected" and int(pair.get("epoch") or 0) > after_epoch:
                return pair
            if time.monotonic() > deadline:
                raise FtkvmError(
                    "FTKVM-710",
                    what=f"{vm} to be protected (it is: {pair.get('shown_as')}, {pair.get('cause')})",
                    timeout_s=f"{timeout_s:.0f}",
                )
            time.sleep(0.2)

    def host_trouble(self, host: str) -> str:
        """Why a host is not usable, as ``ftkvm host list`` says, or why nobody can say; empty when it is."""
        try:
            rows = json.loads(self.ftkvm("host", "list", "--output", "json"))
        except FtkvmError as error:
            return str(error)
        for row in rows:
            if row["name"] == host:
                return str(row) if host_trouble(row) else ""
        return "not in the list"

    def wait_usable(self, host: str, timeout_s: float = 60) -> None:
        """Waits until the host is of use: its agent answers and has its datastore. FTKVM-710 when it is not in time."""
        timeout_s *= self.patience
        deadline = time.monotonic() + timeout_s
        while trouble := self.host_trouble(host):
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-710", what=f"{host} to be usable ({trouble})", timeout_s=f"{timeout_s:.0f}")
            time.sleep(0.5)

    def disk_of(self, vm: str, host: str) -> str:
        """The image a running VM writes to, as libvirt on its host has it."""
        for line in self.host(host).run(["virsh", "domblklist", "--", vm]).splitlines():
            words = line.split()
            if words and words[0] == "vda":
                return words[1]
        raise FtkvmError("FTKVM-726", vm=vm)
