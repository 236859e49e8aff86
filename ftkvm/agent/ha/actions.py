"""How each action of the HA machine is done: what it calls, how long it may take, what may not run beside it."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ftkvm.adapters import pings, power
from ftkvm.adapters.qemus import Qemu, Qemus
from ftkvm.agent.ha.beats import BeatTable
from ftkvm.agent.ha.doer import Job
from ftkvm.agent.ha.guard import now_ms
from ftkvm.agent.ha.store import HaStore, VmsRead
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.model import (
    Action,
    ClaimLease,
    ClaimRoles,
    Fence,
    OwnerWhy,
    Ping,
    ReadHeartbeats,
    ReadVms,
    StartVm,
    StopVm,
    Vm,
    WriteHeartbeat,
)
from ftkvm.ports import Json, Peers, PeerUnknown

log = logging.getLogger(__name__)
HEARTBEAT = "write heartbeat"
_WRITE_MS = 5000
_READ_MS = 3000
_READ_VMS_MS = 8000
_CLAIM_MS = 5000
_PING_S = 1.0
_START_S = 100.0
_POLL_S = 0.25
_POLL_FAILURES = 4
_HAND_OVER_S = 15.0
_KILL_S = 5.0
_SHUTDOWN_CALL_S = 5.0
_FENCE_MS = 45_000


class World(Protocol):
    """What the actions need of this host's agent."""

    @property
    def host(self) -> str: ...
    def settings(self) -> Mapping[str, Any]:
        """The cluster's settings, as last read."""
        ...

    def addresses(self, host: str) -> Mapping[str, str]:
        """A host's address on each HA network; empty if there is no such host."""
        ...

    def fence(self, host: str) -> Mapping[str, str]:
        """A host's fencing device; empty if it has none."""
        ...

    def start_here(self, uuid: str, request: Json) -> Json:
        """Begin to start a VM here; the operation."""
        ...

    def operation(self, name: str) -> Json:
        """An operation of this host."""
        ...

    def starting(self, uuid: str) -> bool:
        """Whether a start of the VM is under way here."""
        ...

    def shutdown(self, uuid: str, timeout_s: float) -> None:
        """Press a VM's power button."""
        ...

    def vms_read(self, read: VmsRead) -> None:
        """What a look at all VMs found."""
        ...


class Actions:
    """Plans actions (``job``); their work runs in the Doer's workers."""

    def __init__(self, world: World, store: HaStore, table: BeatTable, peers: Peers, qemus: Qemus) -> None:
        self._world = world
        self._store = store
        self._table = table
        self._peers = peers
        self._qemus = qemus
        # safety: a machine counts from 1 with each start of its agent. Others must never see the same number again:
        # they would take a host whose agent starts over and over for one that has stopped.
        self._counter_base = now_ms()
        self._stopping: list[str] = []

    @property
    def stopping(self) -> set[str]:
        """VMs that HA ends here; their guests' switching off is not what an operator wanted."""
        return set(self._stopping)

    def comes_here(self, uuid: str) -> bool:
        """Whether a start of the VM is under way here, or its QEMU is here; in this order (:meth:`HaStore.release`)."""
        return self._world.starting(uuid) or uuid in self._qemus.look()

    def job(self, action: Action) -> Job:
        match action:
            case WriteHeartbeat():
                beat = replace(action.heartbeat, counter=self._counter_base + action.heartbeat.counter)
                return Job(lambda: self._store.write_heartbeat(beat), _WRITE_MS, HEARTBEAT)
            case ReadHeartbeats():
                return Job(self._store.read_heartbeats, _READ_MS, "read heartbeats")
            case ClaimLease():
                return Job(lambda: self._store.claim_lease(action.lease), _CLAIM_MS, "claim lease")
            case ClaimRoles():
                return Job(lambda: self._store.claim_roles(action.roles), _CLAIM_MS, "claim roles")
            case ReadVms():
                return Job(lambda: self._read_vms(action), _READ_VMS_MS, "read own VMs" if action.local else "read VMs")
            case Ping():
                what = "hosts" if action.hosts else "addresses"
                return Job(lambda: self._ping(action), int(_PING_S * 1000) + 1000, f"ping {what}")
            case StopVm():
                limit_ms = (0 if action.power_off else action.timeout_ms) + 40_000
                # a switch-off does not wait for a guest that is still shutting down: the datastore may be lost since
                how = "switch off" if action.power_off else "shut down"
                return Job(lambda: self._stop(action), limit_ms, f"{how} {action.uuid}")
            case StartVm():
                return Job(lambda: self._start(action), int(_START_S * 1000) + 5000, f"start {action.uuid}")
            case Fence():
                return Job(lambda: self._fence(action), _FENCE_MS, f"fence {action.host}")
            case _:
                raise FtkvmError("FTKVM-900", detail=f"no way to do {action}")

    def _read_vms(self, action: ReadVms) -> tuple[Vm, ...]:
        read = self._store.read_vms(self._world.settings())
        self._world.vms_read(read)
        if action.local:
            return tuple(vm for vm in read.vms if vm.owner.host == self._world.host)
        return read.vms

    def _ping(self, action: Ping) -> tuple[str, ...]:
        if not action.hosts:
            return tuple(sorted(pings.ping(action.addresses, _PING_S)))
        hosts = {address: host for host in action.addresses for address in self._world.addresses(host).values()}
        answered = {hosts[address] for address in pings.ping(set(hosts), _PING_S)}
        for host in answered:
            self._table.answered(now_ms(), host)
        return tuple(sorted(answered))

    def _fence(self, action: Fence) -> None:
        parameters = self._world.fence(action.host)
        if not parameters:
            raise FtkvmError("FTKVM-623", host=action.host, agent="none", detail="no fencing device is configured")
        power.power_off(action.host, parameters)

    # VMs

    def _stop(self, action: StopVm) -> str:
        """End the VM and release it; value: what became of the release, for people.

        safety: it is gone by the kernel's word (no thread of its QEMU is left) before its owner file says so. A QEMU
        that hangs in the storage does not go; then nothing is released, and the watchdog, no longer put off, ends it.
        """
        self._stopping.append(action.uuid)  # twice, while a switch-off overtakes a shutdown
        try:
            qemu = self._qemus.look().get(action.uuid)
            if qemu is not None and action.owner is not None:
                return "runs again"
            if qemu is not None:
                log.warning("%s: HA ends it here: %s", qemu.name, action.reason)
                gone = False if action.power_off else self._shut_down(qemu, action)
                if not gone and not self._qemus.kill(qemu, _KILL_S):
                    raise FtkvmError("FTKVM-621", vm=qemu.name, pid=qemu.pid, host=self._world.host)
        finally:
            self._stopping.remove(action.uuid)
        released = self._store.release(
            action.uuid, action.release, action.reason, action.owner, comes_here=lambda: self.comes_here(action.uuid)
        )
        if action.release is OwnerWhy.STOPPED:
            self._store.set_power(action.uuid, on=False)
        return "released" if released else "was not ours, or is here again"

    def _shut_down(self, qemu: Qemu, action: StopVm) -> bool:
        try:
            self._world.shutdown(action.uuid, min(_SHUTDOWN_CALL_S, max(0.1, action.timeout_ms / 1000)))
        except FtkvmError as error:
            log.warning("%s: %s; it is switched off", qemu.name, error)
            return False
        return self._qemus.gone_within(qemu, action.timeout_ms / 1000)

    def _start(self, action: StartVm) -> Json:
        """Have it started and wait for that; value: the operation as it ended."""
        request: Json = {"owner": action.owner, "why": str(OwnerWhy.RESTARTED), "attempt": action.attempt}
        if action.cold_epoch is not None:
            request |= {"cold_epoch": action.cold_epoch, "cold_winner": action.cold_winner}
        ask = self._ask_here(action, request) if action.host == self._world.host else self._ask_peer(action, request)
        deadline = time.monotonic() + _START_S
        operation = ask()
        while operation["state"] == "running":
            if time.monotonic() > deadline:
                raise PeerUnknown("FTKVM-211", host=action.host, what=f"start of {action.name}")
            time.sleep(_POLL_S)
            operation = ask(str(operation["id"]))
        if operation["state"] == "done":
            return operation
        if operation["state"] == "failed" and operation.get("error"):
            raise FtkvmError.from_json(operation["error"])
        raise PeerUnknown("FTKVM-211", host=action.host, what=f"start of {action.name} ({operation['state']})")

    def _ask_here(self, action: StartVm, request: Json) -> Callable[..., Json]:
        def ask(name: str | None = None) -> Json:
            return self._world.start_here(action.uuid, request) if name is None else self._world.operation(name)

        return ask

    def _ask_peer(self, action: StartVm, request: Json) -> Callable[..., Json]:
        failures = 0
        last: Json = {}

        def ask(name: str | None = None) -> Json:
            nonlocal failures, last
            if name is None:
                path = f"/v1/local/vms/{action.uuid}/start"
                last = self._peers.call(action.host, "POST", path, request, _HAND_OVER_S)
                return last
            try:
                last = self._peers.call(action.host, "GET", f"/v1/operations/{name}", None, 3.0)
                failures = 0
            except FtkvmError as error:  # it was begun there; what became of it is not known
                failures += 1
                if failures >= _POLL_FAILURES:
                    what = f"start of {action.name}: {error}"
                    raise PeerUnknown("FTKVM-211", host=action.host, what=what) from error
            return last

        return ask
