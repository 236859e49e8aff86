"""All FT pairs of this host: who takes care of each, and the operator's operations on them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..adapters.domains import Domains
from ..adapters.qmp import MonitorError, MonitorGone, MonitorTimeout
from ..catalogue import FtkvmError
from ..core.channels import Encryption
from ..core.ha.settings import encryption
from ..core.pair import QemuState, Winner
from ..core.reasons import NOBODY_GOES_LIVE, Reason
from ..keeper.client import KeeperClient
from ..keeper.model import EvidenceEvent, PairSpec
from . import fitness, protecting, steps
from .cold_start import ColdStart
from .context import AgentContext
from .outside import look, tell_primary
from .pair_life import PairLife
from .pair_status import status_row
from .pair_worker import PairWorker
from .peer_requests import PeerRequests
from .placing import choose_host
from .re_protection import ReProtection
from .records import PairDoc, PairStore
from .recovery import inherit, recover
from .storage import patiently
from .turn_off import turn_off, turn_off_stopped

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
SCAN_S = 2.0
FINISH_EVERY_S = 5.0


class PairManager:
    """One per agent. Operations are serialised per VM; nothing of it survives a restart except what is on disk."""

    def __init__(self, ctx: AgentContext) -> None:
        self.ctx = ctx
        self.domains = Domains(ctx.libvirt)
        self.keeper = KeeperClient()
        self.workers: dict[str, PairWorker] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._journals_read = False
        self._subscription: Any = None
        self._finish_at: dict[str, float] = {}
        self.life = PairLife(self)
        self.for_peers = PeerRequests(self)
        self.re_protection = ReProtection(ctx, self.protect)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find what is there, take care of it; never waits for the datastore here."""
        self._subscription = self.keeper.subscribe(self._on_evidence)
        self.ctx.libvirt.on_device(self._on_device)
        threading.Thread(target=self._scan_forever, name="pairs-scan", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        for worker in list(self.workers.values()):
            worker.stop()

    def _on_evidence(self, event: EvidenceEvent) -> None:
        worker = self.workers.get(event.uuid)
        if worker is not None:
            worker.poke("evidence", (event.peer, event.datastore))

    def _scan_forever(self) -> None:
        while not self._stop.is_set():
            try:
                self._scan()
            except FtkvmError as error:
                log.warning("scan: %s", error)
            except Exception:
                log.exception("scan")
            self._stop.wait(SCAN_S)

    def _scan(self) -> None:
        """A worker for every FT VM whose copy is here, by what libvirt and /run/ftkvm/pairs say."""
        for uuid, name in self.domains.running().items():
            if uuid not in self.workers and self._is_ft(uuid):
                self.adopt(uuid, name)
        if not self._journals_read:
            for uuid, name in self._left_by_this_host().items():
                if uuid not in self.workers:
                    self.adopt(uuid, name)
            self._journals_read = True
        for worker in list(self.workers.values()):
            self._inherit(worker)
            self._finish_later(worker)
            self._ask_usage(worker)
            self._look_outside(worker)
        for spec in self._specs():
            if spec.uuid not in self.workers:
                self.adopt(spec.uuid, spec.vm)

    def _left_by_this_host(self) -> dict[str, str]:
        """VMs with an operation that this host began, perhaps before it lost power: uuid → name.

        Nobody else can tell the other host that the copy which waits there waits for nobody.
        """

        def read() -> dict[str, str]:
            found = {}
            for uuid in self.ctx.datastore.list("ft"):
                store = PairStore(self.ctx.datastore, uuid)
                journal = store.operation()
                if journal is not None and journal.host == self.ctx.host:
                    found[uuid] = str((store.vm() or {}).get("name", uuid))
            return found

        return self.ctx.workers.run_alone(read, 5.0, "read journals")

    def _is_ft(self, uuid: str) -> bool:
        """Whether FT is on for a VM, or this host is still to finish an operation on it."""
        store = PairStore(self.ctx.datastore, uuid)

        def read() -> bool:
            if (store.vm() or {}).get("ft", {}).get("enabled"):
                return True
            journal = store.operation()
            return journal is not None and journal.host == self.ctx.host

        return self.ctx.workers.run_alone(read, 2.0, f"read record {uuid}")

    def _inherit(self, worker: PairWorker) -> None:
        """Take up or drop what a host that lost this VM had begun; else its journal would stand here for ever."""
        records, observation = worker.poller.snapshot(), worker.observation
        journal, pair = records.operation, records.pair
        if journal is None or pair is None or observation is None or worker.operation_lock.locked():
            return
        won = isinstance(records.winner, Winner) and records.winner.host == self.ctx.host
        if (
            won
            and observation.qemu is QemuState.PLAIN
            and journal.host != self.ctx.host
            and journal.epoch <= pair.epoch
        ):
            self.ctx.workers.submit(lambda: inherit(self.ctx, worker, journal), f"journal of {worker.name}")

    def _look_outside(self, worker: PairWorker) -> None:
        """Whether somebody changed this host's copy past ftkvm; the secondary's host tells the primary's."""
        try:
            found = look(worker)
        except (FtkvmError, MonitorError, MonitorGone, MonitorTimeout, OSError) as error:
            log.info("%s: not looked at: %s", worker.name, error)
            return
        if found is None:
            return
        known = worker.outside.own
        if known is None or (known.epoch, known.texts) != (found.epoch, found.texts):
            for text in found.texts:
                log.warning("%s", text)
        worker.outside.own = found
        tell_primary(worker, found)

    def _on_device(self, vm_uuid: str, change: str) -> None:
        worker = self.workers.get(vm_uuid)
        if worker is not None:
            worker.poke("device", change)

    def _finish_later(self, worker: PairWorker) -> None:
        """An operation of this host that ended without its undo: QEMU, libvirt or the datastore did not answer then."""
        journal, now = worker.poller.snapshot().operation, time.monotonic()
        if journal is None or journal.host != self.ctx.host or worker.operation_lock.locked():
            return
        if worker.observation is None or worker.observation.qemu is QemuState.ABSENT:
            return  # the VM is gone: the journal stays for whoever starts it again
        if now >= self._finish_at.get(worker.uuid, 0.0):
            self._finish_at[worker.uuid] = now + FINISH_EVERY_S
            self.ctx.workers.submit(lambda: self._finish(worker), f"finish {worker.name}")

    def _finish(self, worker: PairWorker) -> None:
        if not worker.operation_lock.acquire(blocking=False):
            return
        with self._holding(worker, "recovery"):
            try:
                recover(self.ctx, worker, locked=True)  # reads the journal anew: it may be gone by now
            except Exception:
                log.exception("%s: what was left half done stays so; again in %.0f s", worker.name, FINISH_EVERY_S)
        worker.poller.refresh(2.0)

    def _ask_usage(self, worker: PairWorker) -> None:
        """What the secondary takes of its host, asked in the background: `status` shows what was last heard."""
        spec = worker.spec
        if spec is None or spec.role != "primary" or spec.peer is None or not worker.usage.due(time.monotonic()):
            return
        host, path, call = spec.peer.host, f"/v1/peer/pairs/{worker.uuid}", self.ctx.peers.call
        self.ctx.workers.submit(
            lambda: worker.usage.take(call(host, "GET", path, timeout_s=2.0)),
            f"usage of the secondary of {worker.name}",
        )

    def _specs(self) -> list[Any]:
        found = []
        for path in sorted((self.ctx.config.paths.run / "pairs").glob("*.json")):
            try:
                found.append(PairSpec.from_json(json.loads(path.read_text())))
            except (OSError, ValueError) as error:
                log.warning("%s: %s", path, error)
        return found

    def adopt(self, uuid: str, name: str) -> PairWorker:
        """The worker of a VM; one that is new takes up first what was left half done."""
        with self._lock:
            worker = self.workers.get(uuid)
            if worker is None:
                worker = PairWorker(self.ctx, self.keeper, uuid, name, self.re_protection.wanted)
                worker.spec = next((spec for spec in self._specs() if spec.uuid == uuid), None)
                self.workers[uuid] = worker
                self.ctx.workers.submit(lambda: self._begin(worker), f"recover {name}")
        return worker

    def _begin(self, worker: PairWorker) -> None:
        """First what an agent before us left half done, then the worker's own loop."""
        while not self._stop.is_set():
            try:
                recover(self.ctx, worker)
                break
            except Exception:
                log.exception("%s: recovery; trying again", worker.name)
                time.sleep(1.0)
        worker.start()

    # -- operations ----------------------------------------------------------------------------------------

    def enable(self, vm_uuid: str, secondary: str | None, progress: Progress) -> None:
        """Turn FT on for a VM that runs here, and return when it is protected (FT-01).

        :raises FtkvmError: the checks of 4xx, FTKVM-401 already on, FTKVM-501 another operation runs, 51x
        """
        store = PairStore(self.ctx.datastore, vm_uuid)
        name = self.domains.running().get(vm_uuid)
        if name is None:
            raise FtkvmError("FTKVM-102", vm=vm_uuid)
        if secondary == self.ctx.host:
            raise FtkvmError("FTKVM-403", host=secondary, vm=name)
        worker = self.adopt(vm_uuid, name)
        document = self._read(store.vm) or {}
        if document.get("ft", {}).get("enabled"):
            raise FtkvmError("FTKVM-401", vm=name)
        target = choose_host(self.ctx, worker.vm, secondary)
        if self._await_booted(worker, progress):
            target = choose_host(self.ctx, worker.vm, secondary)  # what was seen before is old
        try:
            self.protect(worker, target, progress, enabling=True)
        except FtkvmError:
            raise
        finally:
            worker.poller.refresh(0.5)

    def _await_booted(self, worker: PairWorker, progress: Progress) -> bool:
        """Wait until an emulated guest has booted, hearing QEMU's own word for its resets; False: nothing to wait for.

        :raises FtkvmError: FTKVM-102 it was switched off meanwhile, FTKVM-155 it is reset again and again
        """
        heard = False

        def left_s() -> float:
            nonlocal heard
            if worker.uuid not in self.domains.running():
                raise FtkvmError("FTKVM-102", vm=worker.name)
            left = fitness.booted_in_s(worker)
            if left and not heard:
                heard = True
                with suppress(MonitorError):  # the step that needs it says so
                    worker.vm.monitor(create=True)
            return left

        fitness.await_booted(worker.name, left_s, lambda text: progress(0, len(steps.PROTECT), text))
        return heard

    def protect(self, worker: PairWorker, secondary: str, progress: Progress, *, enabling: bool = False) -> PairDoc:
        """Run the plan once; what fails before the commit point is undone, after it arbitration takes over."""
        if not worker.operation_lock.acquire(blocking=False):
            raise FtkvmError("FTKVM-501", vm=worker.name, operation=worker.operation_name or "unknown")
        with self._holding(worker, "protect"):
            return protecting.protect(worker, secondary, progress, enabling=enabling)

    def settings_changed(self, vm_uuid: str) -> None:
        """A VM's settings were written: its records are read now."""
        worker = self.workers.get(vm_uuid)
        if worker is not None:
            worker.poller.wake()

    def protect_in_turn(self, worker: PairWorker, secondary: str, progress: Progress) -> PairDoc:
        """:meth:`protect` again, as a part of an operation that holds the lock."""
        return protecting.protect(worker, secondary, progress, enabling=False)

    def turn_off(self, vm_uuid: str, progress: Progress, *, disable: bool = False) -> None:
        """Turn FT off: secondary gone, disks merged back, the domain as before.

        ``disable``: the wish for FT and the secondary's place are kept, for `ftkvm enable` to take up (FT-08).

        :raises FtkvmError: FTKVM-402 not on, FTKVM-501
        """
        store = PairStore(self.ctx.datastore, vm_uuid)
        kept = self._place(store) if disable else None
        if vm_uuid not in self.domains.running():
            turn_off_stopped(self._cold(vm_uuid), progress, kept)
            return
        worker = self.workers.get(vm_uuid)
        if worker is None:
            raise FtkvmError("FTKVM-402", vm=vm_uuid)
        wanted = (self._read(worker.store.vm) or {}).get("ft", {}).get("enabled")
        if not wanted and self._read(worker.store.operation) is None:  # else one was cut off: carry it on
            raise FtkvmError("FTKVM-402", vm=worker.name)
        with self.exclusively(worker, "turn-off"):
            turn_off(self.ctx, worker, progress, kept)
        worker.poller.refresh(2.0)

    def _place(self, store: PairStore) -> dict[str, Any]:
        """What `disable` keeps of a pair: the host of its secondary."""
        pair = self._read(store.latest)
        return {"secondary": pair.peer_of(self.ctx.host).host if pair is not None else None}

    def _cold(self, vm_uuid: str) -> ColdStart:
        store = PairStore(self.ctx.datastore, vm_uuid)
        vm = self._read(store.vm) or {}
        xml = self._read(lambda: self.ctx.datastore.read_text(f"vms/{vm_uuid}/domain.xml"))
        return ColdStart(self.ctx, str(vm.get("name", vm_uuid)), store, xml or "")

    @contextmanager
    def exclusively(self, worker: PairWorker, name: str) -> Iterator[None]:
        """The operation lock, from whatever runs: that is cancelled, and undoes itself first.

        :raises FtkvmError: FTKVM-501 it did not end in time
        """
        deadline = time.monotonic() + 30.0
        worker.cancel_operation.set()
        while not worker.operation_lock.acquire(timeout=0.2):
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-501", vm=worker.name, operation=worker.operation_name or "unknown")
        with self._holding(worker, name):
            yield

    @contextmanager
    def _holding(self, worker: PairWorker, name: str) -> Iterator[None]:
        """The operation ``name`` runs inside; the caller has acquired the lock, which is released at the end."""
        try:
            worker.operation_name = name
            worker.cancel_operation.clear()
            yield
        finally:
            worker.operation_name = worker.operation_step = None
            worker.operation_lock.release()

    # -- power ---------------------------------------------------------------------------------------------

    @contextmanager
    def starting(self, vm_uuid: str, name: str) -> Iterator[None]:
        """Around the start of a QEMU that is no copy of an earlier pair.

        safety: a worker that still holds what it knew of an earlier copy here would end the new QEMU with it.
        """
        worker = self.workers.get(vm_uuid)
        if worker is None and not self._is_ft(vm_uuid):
            yield
            return
        worker = worker or self.adopt(vm_uuid, name)
        with self.exclusively(worker, "start"):
            with worker.turn_lock:  # a turn that began before it could see the lock
                worker.forget_copy()
            yield
        worker.poller.refresh(2.0)

    def started(self, vm_uuid: str) -> None:
        """A VM was started here: take up what is to be finished on it."""
        worker = self.workers.get(vm_uuid)
        if worker is not None:
            self.ctx.workers.submit(lambda: recover(self.ctx, worker), f"recover {worker.name}")

    def power_off(self, vm_uuid: str) -> bool:
        """Switch a VM off that runs here: its epoch ends so that nobody goes live, then both copies go. False: no pair.

        :raises FtkvmError: FTKVM-116 the other copy has won; FTKVM-117 QEMU does not end; FTKVM-501
        """
        worker = self.workers.get(vm_uuid)
        if worker is None:
            return False
        with self.exclusively(worker, "power-off"):
            pair = self._read(worker.store.latest)
            if pair is not None and worker.spec is not None and worker.spec.epoch == pair.epoch:
                winner = self._run(
                    lambda: worker.store.arbitrate(pair.epoch, self.ctx.host, self.ctx.boot_id, Reason.POWERED_OFF),
                    "end the epoch",
                )
                if winner.host != self.ctx.host and winner.reason not in NOBODY_GOES_LIVE:
                    raise FtkvmError("FTKVM-116", vm=worker.name, host=winner.host)
            worker.destroy_own(Reason.POWERED_OFF)
            if worker.vm.pid() is not None:
                raise FtkvmError("FTKVM-117", vm=worker.name, host=self.ctx.host)
            worker.poller.refresh(2.0)
            if pair is not None:
                worker.tell_peer(pair.epoch)
        return True

    def has_secondary(self, vm_uuid: str) -> bool:
        """Whether this host's copy of a VM is a secondary, and has not been told to go live."""
        worker = self.workers.get(vm_uuid)
        if worker is None or worker.spec is None or worker.spec.role != "secondary":
            return False
        return worker.vm.pid() is not None

    # -- status --------------------------------------------------------------------------------------------

    def status(self, vm_uuid: str | None) -> list[dict[str, Any]]:
        """What this host knows of its pairs; only hosts on which the VM lives answer for it."""
        rows = []
        for worker in list(self.workers.values()):
            if vm_uuid not in (None, worker.uuid) or worker.observation is None:
                continue
            promoted = worker.write_back.error is not None and worker.observation.qemu is QemuState.SECONDARY_LOADED
            if promoted or worker.observation.qemu in (QemuState.PLAIN, QemuState.PRIMARY):
                refusal = self.re_protection.refusals.get(worker.uuid)
                rows.append(status_row(worker, refusal, self._encryption()))
        return rows

    # -- helpers -------------------------------------------------------------------------------------------

    def _encryption(self) -> Encryption:
        return encryption(self.ctx.cluster.current().settings)

    def _run(self, work: Callable[[], Any], what: str) -> Any:
        return patiently(self.ctx, work, what)

    def _read(self, work: Callable[[], Any]) -> Any:
        return self._run(work, "read datastore")


__all__ = ["PairManager"]
