"""A lab whose datastore is real: a VM that serves it by kernel NFS, and hosts that `ftkvm host add` mounts it on."""

from dataclasses import replace
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names, netns, network
from ftkvm.lab.record import record
from ftkvm.lab.system import wait_for
from ftkvm.lab.vm import layer
from ftkvm.lab.vm.host import VmHost
from ftkvm.lab.vm.machine import Machine

PROVISION = Path(__file__).parents[3] / "vagrant/storage.sh"
"""What makes the box: the very script by which Vagrant makes its own."""
PROVISION_TIMEOUT_S = 75
"""In the host's time."""
MEMORY_MIB = 768
PORT = 2049
LIBVIRT = ("libvirtd", "virtlogd", "virtlockd")
"""In the image, and of no use to the box; an empty unit file is a masked one (systemd.unit(5))."""


class StorageBox(VmHost):
    """The storage VM: the lab's lifecycle and faults are those of a host."""

    virtiofs = False
    up_when = "true"

    def machine(self, image: Path, memory_mib: int | None) -> Machine:
        return replace(super().machine(image, MEMORY_MIB), vcpus=1, watchdog=False)

    def own_files(self) -> dict[str, str]:
        units = [f"{name}.{kind}" for name in LIBVIRT for kind in ("service", "socket")]
        masked = {f"/etc/systemd/system/{unit}": "" for unit in units}
        return {**super().own_files(), **masked, "/etc/fstab": layer.ROOT_LINE}

    def wait_ready(self) -> None:
        """Waits until it serves; at its first boot it is told what."""
        super().wait_ready()
        done = self.paths.base / "provisioned"
        if not done.exists():
            network = f"{names.NETWORKS[names.STORAGE_NETWORK].prefix}.0/24"
            words = ["sh", "-s", "--", network, *names.EXPORTS]
            self.run(words, timeout_s=PROVISION_TIMEOUT_S, text_in=PROVISION.read_text())
            done.touch()
        wait_for(f"the NFS server of {self.name}", self.serves, self.boot_timeout_s)

    def serves(self) -> bool:
        """Whether its NFS server takes connections."""
        address = names.host_address(self.name, "management")
        try:
            netns.connect(names.CLIENT_NS, address, PORT, record().time_dilation).close()
        except OSError:
            return False
        return True

    def watchdog_state(self) -> str:
        return "none"

    # -- the datastore, as it serves it -------------------------------------------------------------------------

    def storage_state(self) -> str:
        if self.frozen:
            return "hung"
        return "ok" if self.serves() else "failed"

    def hang_storage(self) -> None:
        raise FtkvmError("FTKVM-746", host=self.name)

    def fail_storage(self) -> None:
        raise FtkvmError("FTKVM-746", host=self.name)

    def mend_storage(self, state: str) -> None:
        raise FtkvmError("FTKVM-746", host=self.name)

    # -- what one host gets -------------------------------------------------------------------------------------

    def refuse(self, host: str) -> None:
        """Every access of the host is an error from now on: it must come by Kerberos, which it cannot.

        An entry for one address goes before the network's; what was opened stays open, and is good again afterwards.
        """
        options = "rw,sync,no_root_squash,no_subtree_check,sec=krb5"
        self.run(["exportfs", "-o", options, _client(host)])

    def accept(self, host: str) -> None:
        """Takes `refuse` back."""
        self.run(["exportfs", "-u", _client(host)])

    def refuses(self, host: str) -> bool:
        address = names.host_address(host, names.STORAGE_NETWORK)
        return self.succeeds(["grep", "-q", f"^{names.EXPORTS[0]}[[:space:]]{address}(", "/var/lib/nfs/etab"])


class NfsHost(VmHost):
    """A host that comes up without a datastore: `ftkvm host add --datastore-nfs` mounts it."""

    storage_can_fail = True
    virtiofs = False
    up_when = "test -S /run/libvirt/libvirt-sock"

    @property
    def server(self) -> StorageBox:
        return StorageBox(names.STORAGE)

    def own_files(self) -> dict[str, str]:
        return {**super().own_files(), "/etc/fstab": layer.ROOT_LINE}

    def remove_runtime(self) -> None:
        """A power loss takes back a hang, as it does for other hosts."""
        if network.exists(names.SWITCH_NS):
            network.unsilence(self.name)
        super().remove_runtime()

    def storage_state(self) -> str:
        """What the switch lets through, and what the server would say; not whether the host has it mounted."""
        if network.silenced(self.name) or self.server.frozen or not self.server.serves():
            return "hung"
        return "failed" if self.server.refuses(self.name) else "ok"

    def hang_storage(self) -> None:
        """At the switch: requests and answers vanish, the connection stands."""
        network.silence(self.name, names.STORAGE_NETWORK, names.host_address(names.STORAGE, names.STORAGE_NETWORK))

    def fail_storage(self) -> None:
        self.server.refuse(self.name)

    def mend_storage(self, state: str) -> None:
        network.unsilence(self.name)
        if state == "failed":
            self.server.accept(self.name)


def _client(host: str) -> str:
    return f"{names.host_address(host, names.STORAGE_NETWORK)}:{names.EXPORTS[0]}"
