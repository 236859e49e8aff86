"""The HA part of an agent, put together: beats, guard, store, actions, the machine's runner, and what others ask."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

from ftkvm.adapters.hardware import bridges, hardware
from ftkvm.adapters.qemus import Qemus
from ftkvm.agent.attempts import DIRECTORY
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha.actions import Actions
from ftkvm.agent.ha.beats import BeatBody, BeatPlan, BeatService
from ftkvm.agent.ha.capacity import Needs, capacity
from ftkvm.agent.ha.doer import Doer
from ftkvm.agent.ha.guard import Bridge, Guard, now_ms
from ftkvm.agent.ha.guest_off import GuestOff, host_goes_down
from ftkvm.agent.ha.history import History
from ftkvm.agent.ha.local import LocalVms
from ftkvm.agent.ha.runner import HaRunner, Machine, Surroundings
from ftkvm.agent.ha.settings import cluster_of, default_gateway, host_addresses
from ftkvm.agent.ha.store import HaStore, SignedDatastore, VmsRead
from ftkvm.agent.health import Health
from ftkvm.agent.operations import Operations
from ftkvm.agent.pair_manager import PairManager
from ftkvm.agent.service import Service
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig
from ftkvm.core.ha.model import Beats, Cluster, Event, LocalVm, OwnerWhy
from ftkvm.core.ha.settings import ha_networks
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Json

log = logging.getLogger(__name__)
_LOOK_S = 2.0
_GONE_S = 5.0
_WORKERS = 512
"""Its own: HA's work must not wait for others', and an isolated host ends all its VMs at once."""


class HaPart:
    """One per agent; ``extras["ha"]``."""

    def __init__(
        self, ctx: AgentContext, service: Service, operations: Operations, pairs: PairManager, health: Health,
        machine: Machine, bridge: Bridge, datastore: SignedDatastore, keys: BeatKeys,
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._service = service
        self._operations = operations
        self._pairs = pairs
        self._health = health
        self._workers = Workers(_WORKERS)
        self._config: ClusterConfig | None = None
        self._cluster: Cluster | None = None
        self._plan = BeatPlan({})
        self._needs: dict[str, Needs] = {}
        self._protected: frozenset[str] = frozenset()
        self._corrupt: frozenset[str] = frozenset()
        self._bridges: frozenset[str] = frozenset()
        self._vms_changed_ms: int | None = None
        self._hardware = hardware()
        self._stop = threading.Event()
        self._beats = BeatService(
            ctx.host,
            keys,
            ctx.config.ha_port,
            lambda: self._plan,
            self._body,
            self._returned,
        )
        self._store = HaStore(datastore, ctx.host, ctx.boot_id)
        self._qemus = Qemus()
        self._actions = Actions(self, self._store, self._beats.table, ctx.peers, self._qemus)
        self._local = LocalVms(
            self._qemus, ctx.config.paths.run, operations.all_running, self._pair_role, lambda: self._protected
        )
        self.history = History(ctx.datastore, ctx.host)
        self._runner = HaRunner(
            machine,
            Surroundings(
                ctx.host,
                ctx.boot_id,
                lambda: self._cluster,
                self._beats.table.seen,
                self._local.look,
                self._own,
                lambda: self._vms_changed_ms,
            ),
            lambda wake: Doer(self._actions.job, wake, self._workers),
            Guard(bridge.watchdog, ctx.config.paths.run / "watchdog.json", bridge.hand_over),
            self.history,
            lambda: bridge.writing,
        )
        self._guest_off = GuestOff(self._off_event, self._being_stopped)

    # life

    def start(self) -> None:
        """Begin; the datastore and libvirt need not answer for it."""
        self.history.start()
        threading.Thread(target=self._look_forever, name="ha-look", daemon=True).start()
        self._beats.start()
        self._runner.start()

    def stop(self) -> None:
        """End, last of all parts: until then this host is guarded."""
        self._runner.stop()
        self._beats.stop()
        self._stop.set()

    def use_keys(self, keys: BeatKeys) -> None:
        """Sign and accept beats by these from now on."""
        self._beats.table.use_keys(keys)

    def _look_forever(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except FtkvmError as error:
                log.info("HA: %s", error)
            except Exception:
                log.exception("HA: looking at the configuration")
            self._stop.wait(_LOOK_S)

    def _look(self) -> None:
        config = self._ctx.cluster.current()
        self._bridges = bridges(self._ctx.config.vm_bridges)
        networks = ha_networks(config.settings)
        self._plan = BeatPlan({name: host_addresses(entry, networks) for name, entry in config.hosts.items()})
        self._config = config
        self._cluster = cluster_of(config, default_gateway(self._ctx.config.management))

    # what a beat says

    def _body(self) -> BeatBody | None:
        local = self._runner.local
        if not self._runner.turning or local is None:
            return None  # safety: a machine that stands still must not look alive
        own = self._own(local)
        return BeatBody(self._ctx.boot_id, own.solo_vms, own.capacity)

    def _own(self, local: tuple[LocalVm, ...]) -> Beats:
        """What this host says of itself: its ordinary VMs, what it has left, whether it can take VMs at all."""
        trouble = self._health.current().get("error")
        why_not = str(trouble["text"]) if trouble else ""
        if not self._runner.guarded:
            why_not = "its heartbeat on the datastore is late"
        left = capacity(self._hardware, [vm.uuid for vm in local], self._needs.get, self._bridges, why_not)
        return Beats({}, None, sum(1 for vm in local if vm.role == "solo"), left)

    def _returned(self, host: str) -> None:
        log.info("HA: %s is heard", host)
        self._runner.wake()

    def _pair_role(self, uuid: str) -> str | None:
        """What the PairManager knows of a copy here; a secondary is one from when it is asked for."""
        worker = self._pairs.workers.get(uuid)
        if worker is None:
            return None
        if worker.spec is not None:
            return str(worker.spec.role)
        return "secondary" if worker.operation_name == "prepare" else None

    # the world of the actions

    @property
    def host(self) -> str:
        return self._ctx.host

    def settings(self) -> Mapping[str, Any]:
        return self._config.settings if self._config is not None else {}

    def addresses(self, host: str) -> Mapping[str, str]:
        return self._plan.hosts.get(host, {})

    def fence(self, host: str) -> Mapping[str, str]:
        entry = self._config.hosts.get(host) if self._config is not None else None
        return entry.fence if entry is not None else {}

    def start_here(self, uuid: str, request: Json) -> Json:
        wanted = dict(request)
        return self._service.here.start(uuid, int(wanted.pop("owner")), **wanted)

    def operation(self, name: str) -> Json:
        return self._service.operation(name)

    def starting(self, uuid: str) -> bool:
        operation = self._operations.running(uuid)
        return operation is not None and operation.kind == "start"

    def shutdown(self, uuid: str, timeout_s: float) -> None:
        self._ctx.libvirt.shutdown(uuid, timeout_s)

    def vms_read(self, read: VmsRead) -> None:
        """What a look at the VMs found: needs for the capacity, FT, and what was not understood."""
        self._needs = {vm.uuid: Needs(vm.cpu_mhz, vm.memory_mb) for vm in read.vms}
        self._protected = frozenset(vm.uuid for vm in read.vms if vm.protected)
        for path in sorted(set(read.corrupt) - self._corrupt):
            also = "; its VM's attempts begin anew" if path.startswith(f"{DIRECTORY}/") else ", as is its VM"
            self.history.tell(Event("corrupt-file", f"{path} is not understood; left alone{also}"))
        self._corrupt = frozenset(read.corrupt)

    # what libvirt tells

    def domain_event(self, uuid: str, event: str, detail: int) -> None:
        """A lifecycle event; never waits."""
        if event in ("stopped", "crashed"):
            self._runner.wake()
        self._guest_off.event(uuid, event, detail)

    def _being_stopped(self) -> set[str]:
        others = {op.uuid for op in self._operations.all_running() if op.kind in ("stop", "migrate")}
        return self._actions.stopping | others

    def _off_event(self, uuid: str) -> None:
        self._workers.submit(lambda: self._switched_off(uuid), f"off {uuid}")

    def _switched_off(self, uuid: str) -> None:
        """A guest here has switched itself off: that is what is wanted from now on."""
        if host_goes_down():
            log.info("%s is off because this host goes down: it shall run again", uuid)
            return
        if uuid in self._protected:  # the pair's own records say who may have a copy, and its secondary says nothing
            if self._pair_role(uuid) != "secondary":
                self._store.set_power(uuid, on=False)
            return
        if self._store.owner(uuid).host != self._ctx.host:
            return
        self._store.set_power(uuid, on=False)
        qemu = self._qemus.look().get(uuid)  # libvirt may tell a moment before its last thread is gone
        if qemu is not None:
            self._qemus.gone_within(qemu, _GONE_S)
        why = "the guest switched itself off"
        self._store.release(uuid, OwnerWhy.STOPPED, why, comes_here=lambda: self._actions.comes_here(uuid))
        self.history.tell(Event("guest-off", f"{uuid}: the guest switched itself off", self._ctx.host, uuid))

    # what others ask

    def settings_changed(self, uuid: str) -> None:
        """A VM's settings were written: the machine reads this host's VMs now, and on the coordinator all."""
        self._vms_changed_ms = now_ms()
        self._runner.wake()

    @property
    def guarded(self) -> bool:
        """Whether a VM may be started here (agent.vms)."""
        return self._runner.guarded

    def status(self) -> Json:
        """``GET /v1/local/ha``."""
        beats = {
            host: {"networks": dict(each.networks), "ping_answered": each.ping_answered, "solo_vms": each.solo_vms}
            for host, each in self._beats.table.seen().items()
        }
        return {**self._runner.status(), "beats": beats, "corrupt": sorted(self._corrupt)}
