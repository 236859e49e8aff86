"""The shared datastore: what is on it, and what a host's mount makes of it.

An operation takes effect on the server at one moment and its answer comes at another, or never: an operation of a host
that has died can still take effect, and one that was answered with silence may have had its effect.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ftkvm.core.ha.model import FtEpoch, Heartbeat, Lease, Owner, OwnerWhy, Roles, Vm
from ftkvm.sim.clock import Clock
from ftkvm.sim.ha.host import Host

T = TypeVar("T")
SLOW_MS = (400, 1500)
QUICK_MS = (1, 15)


@dataclass
class Files:
    """What is on the datastore. Owner files: the newest only, since the older ones never count."""

    heartbeats: dict[str, Heartbeat] = field(default_factory=dict)
    lease: Lease | None = None
    roles: Roles | None = None
    vms: dict[str, Vm] = field(default_factory=dict)
    corrupt: tuple[str, ...] = ()
    owner_changed: Callable[[str], None] = lambda _uuid: None
    cas: bool = True  # a break switches the create-once of owner and winner files off

    def claim_lease(self, lease: Lease) -> Lease:
        """create_once of a term: the first one counts; what is there of that term is returned."""
        if self.lease is None or lease.term == self.lease.term + 1:
            self.lease = lease
        return self.lease

    def claim_roles(self, roles: Roles) -> Roles:
        if self.roles is None or roles.number == self.roles.number + 1:
            self.roles = roles
        return self.roles

    def claim_owner(self, uuid: str, owner: Owner) -> Owner:
        """create_once of the owner file ``owner.number``; what is the newest afterwards."""
        vm = self.vms[uuid]
        if owner.number == vm.owner.number + 1 or not self.cas:
            self._set(vm, owner)
            self.owner_changed(uuid)
        return self.vms[uuid].owner

    def win_epoch(self, uuid: str, host: str, boot_id: str, *, nobody: bool = False) -> FtEpoch:
        """create_once of the epoch's winner file; the epoch as it is decided afterwards."""
        vm = self.vms[uuid]
        assert vm.ft is not None, uuid
        if vm.ft.winner is None or not self.cas:
            won = replace(vm.ft, winner=host, winner_boot_id=boot_id, nobody=nobody)
            self.vms[uuid] = Vm(**{**vars(vm), "ft": won})
        ft = self.vms[uuid].ft
        assert ft is not None
        return ft

    def power(self, uuid: str, on: bool) -> None:
        vm = self.vms[uuid]
        self.vms[uuid] = Vm(**{**vars(vm), "power": on})

    def note_failed(self, uuid: str, attempt: int) -> None:
        """The count of failed attempts, which holds until a start works, or anybody else's owner file comes."""
        self.vms[uuid] = Vm(**{**vars(self.vms[uuid]), "failed_attempts": attempt})

    def _set(self, vm: Vm, owner: Owner) -> None:
        failed = vm.failed_attempts if owner.why is OwnerWhy.RESTARTED else 0
        self.vms[vm.uuid] = Vm(**{**vars(vm), "owner": owner, "failed_attempts": failed})


class Storage:
    """Carries hosts' operations to the files. ``mounts``: ok, slow, hung or failed, by host."""

    def __init__(self, clock: Clock, hosts: dict[str, Host]) -> None:
        self.clock, self.hosts, self.files = clock, hosts, Files()
        self.mounts = dict.fromkeys(hosts, "ok")
        self._waiting: dict[str, list[Callable[[], None]]] = {name: [] for name in hosts}

    def set_mount(self, name: str, state: str) -> None:
        self.mounts[name] = state
        if state in ("ok", "slow", "failed"):
            waiting, self._waiting[name] = self._waiting[name], []
            for event in waiting:
                event()

    def ask(
        self, host: Host, work: Callable[[Files], T], reply: Callable[[T], None], failed: Callable[[], None]
    ) -> None:
        """Run ``work`` on the files some time, and one of the others on the host after that, or neither."""
        boot = host.boot

        def begin() -> None:
            state = self.mounts[host.name]
            if host.boot != boot:
                return
            if state == "hung":
                self._waiting[host.name].append(begin)
                return
            if state == "failed":
                host.after(0, 2, failed)
                return
            low, high = SLOW_MS if state == "slow" else QUICK_MS
            self.clock.after(low, high, take_effect)

        def take_effect() -> None:
            # the request is on its way: it counts whatever has become of its host meanwhile
            result = work(self.files)
            host.after(0, 5, lambda: reply(result))

        begin()


def nobody(host: Host, number: int, why: OwnerWhy) -> Owner:
    """The owner file that says that the VM was stopped here."""
    return Owner(number, None, host.boot_id, why)
