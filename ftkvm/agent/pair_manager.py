"""All FT pairs of this host: the operator's operations, the peers' requests, and what is shown of them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..adapters import images
from ..adapters.domains import Domains
from ..adapters.qmp import MonitorError, MonitorGone, MonitorTimeout
from ..catalogue import FtkvmError
from ..core.chain import EpochImages, garbage, parse_overlay
from ..core.channels import Encryption
from ..core.facts import FtSettings
from ..core.ft_settings import effective
from ..core.ha.settings import encryption
from ..core.lockstep import colour
from ..core.pair import Observation, QemuState, Role, Winner
from ..core.reasons import NOBODY_GOES_LIVE, Reason
from ..core.states import view
from ..core.trouble import is_mute
from ..keeper.client import KeeperClient
from ..keeper.model import EvidenceEvent, PairSpec
from . import fitness, steps
from .cold_start import ColdStart
from .context import AgentContext
from .copy_usage import CopyUsage, usage_of
from .figures import DEFAULT_INTERVAL_MS
from .outside import Found, look, tell_primary, warnings
from .own_images import remove_lost, room
from .pair_life import PairLife
from .pair_secondary import prepare
from .pair_worker import PairWorker
from .placing import choose_host, own_facts
from .protect import Protect, undo_protect
from .records import PairDoc, PairStore
from .recovery import inherit, recover
from .turn_off import turn_off, turn_off_stopped

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
SCAN_S = 2.0
FINISH_EVERY_S = 5.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0


class PairManager:
    """One per agent. Operations are serialised per VM; nothing of it survives a restart except what is on disk."""

    def __init__(self, ctx: AgentContext) -> None:
        self.ctx = ctx
        self.domains = Domains(ctx.libvirt)
        self.keeper = KeeperClient()
        self.workers: dict[str, PairWorker] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._retry_at: dict[str, float] = {}
        self._retry_s: dict[str, float] = {}
        self.refusals: dict[str, str] = {}
        self._journals_read = False
        self._subscription: Any = None
        self._finish_at: dict[str, float] = {}
        self.life = PairLife(self)

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
                self._adopt(uuid, name)
        if not self._journals_read:
            for uuid, name in self._left_by_this_host().items():
                if uuid not in self.workers:
                    self._adopt(uuid, name)
            self._journals_read = True
        for worker in list(self.workers.values()):
            self._inherit(worker)
            self._finish_later(worker)
            self._ask_usage(worker)
            self._look_outside(worker)
        for spec in self._specs():
            if spec.uuid not in self.workers:
                self._adopt(spec.uuid, spec.vm)

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

    def changed_on_secondary(self, vm_uuid: str, document: dict[str, Any]) -> dict[str, Any]:
        """What the secondary's host has found of its copy."""
        worker = self.workers.get(vm_uuid)
        if worker is not None:
            worker.outside.peers = Found.from_json(document)
        return {}

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

    def _adopt(self, uuid: str, name: str) -> PairWorker:
        with self._lock:
            worker = self.workers.get(uuid)
            if worker is None:
                worker = PairWorker(self.ctx, self.keeper, uuid, name, self._want_protection)
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
        worker = self._adopt(vm_uuid, name)
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
            return self._protect(worker, secondary, progress, enabling)

    def settings_changed(self, vm_uuid: str) -> None:
        """A VM's settings were written: its records are read now."""
        worker = self.workers.get(vm_uuid)
        if worker is not None:
            worker.poller.wake()

    def protect_in_turn(self, worker: PairWorker, secondary: str, progress: Progress) -> PairDoc:
        """:meth:`protect` again, as a part of an operation that holds the lock."""
        return self._protect(worker, secondary, progress, enabling=False)

    def _protect(self, worker: PairWorker, secondary: str, progress: Progress, enabling: bool) -> PairDoc:
        store = worker.store
        unfinished = self._run(store.operation, "read journal")
        if unfinished is not None and unfinished.host == self.ctx.host:
            # safety: a new journal would overwrite the only document that names the overlays of the one before.
            recover(self.ctx, worker, locked=True)
            if unfinished.kind != "protect":
                raise FtkvmError("FTKVM-501", vm=worker.name, operation=unfinished.kind)
        if enabling:
            self._run(lambda: store.set_ft_enabled(True), "write record")
        epochs = self._run(store.epochs, "read epochs")
        settings = effective((self._read(store.vm) or {}).get("ft", {}).get("settings", {}))
        interval_ms = DEFAULT_INTERVAL_MS

        def told(step: int, steps: int, text: str) -> None:
            worker.operation_step = text
            progress(step, steps, text)

        plan = Protect(
            self.ctx,
            store,
            worker.vm,
            self.keeper,
            secondary,
            (epochs[-1] if epochs else 0) + 1,
            interval_ms=interval_ms,
            uncompared_frames=str(settings["ft.uncompared_frames"]),
            compare_timeout_ms=int(settings["ft.compare_timeout_ms"]),
            max_switchover_s=float(settings["ft.max_switchover_seconds"]),
            start_timeout_s=float(settings["ft.secondary_start_seconds"]),
            copied=settings["ft.disks"] == "copy",
            encrypted=self._encryption().ft,
            progress=told,
            cancelled=worker.cancel_operation.is_set,
            on_record=worker.new_epoch,
        )
        try:
            pair = plan.run()
        except Exception as error:
            log.exception("%s: protect", worker.name)
            try:
                self._undo(worker, plan, enabling)
            except Exception as undo_error:
                log.exception("%s: not undone yet", worker.name)
                raise FtkvmError("FTKVM-518", vm=worker.name, reason=error, detail=undo_error) from error
            if isinstance(error, FtkvmError):
                raise
            raise FtkvmError("FTKVM-515", vm=worker.name, detail=error) from error
        worker.protect_figures = plan.figures
        worker.poller.refresh(2.0)
        return pair

    def _undo(self, worker: PairWorker, plan: Protect, enabling: bool) -> None:
        """Before the commit point undo everything; after it the epoch must be won first."""
        pair = self._run(lambda: worker.store.pair(plan.epoch), "read pair record") if plan.committed else None
        if pair is not None:
            winner = self._run(
                lambda: worker.store.arbitrate(plan.epoch, self.ctx.host, self.ctx.boot_id, Reason.PROTECT_UNDONE),
                "end the epoch",
            )
            if winner.host != self.ctx.host:
                worker.vm.kill()
                return
            worker.publish_solo(plan.epoch)
        if enabling:
            worker.store.set_ft_enabled(False)
        undo_protect(self.ctx, worker.store, worker.vm, plan.journal, self.keeper)
        if enabling or (pair is None and worker.spec is not None and worker.spec.role != "solo"):
            self.keeper.drop_pair(worker.uuid)
            worker.spec = None
        worker.poller.refresh(2.0)

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
        worker = worker or self._adopt(vm_uuid, name)
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

    # -- re-protect ----------------------------------------------------------------------------------------

    def _want_protection(self, worker: PairWorker, reason: Reason) -> None:
        """Called by a worker on every turn while the VM runs alone: start a protect when it is time to."""
        now = time.monotonic()
        if worker.operation_lock.locked() or now < self._retry_at.get(worker.uuid, 0.0):
            return
        left_s = fitness.booted_in_s(worker)
        if left_s:
            self.refusals[worker.uuid] = str(fitness.boots(worker.name, left_s))
            return
        self._retry_at[worker.uuid] = now + 3600.0  # until this attempt has ended
        self.ctx.workers.submit(lambda: self._re_protect(worker, reason), f"re-protect {worker.name}")

    def _re_protect(self, worker: PairWorker, reason: Reason) -> None:
        started = time.monotonic()
        try:
            self._collect_garbage(worker)
            host = choose_host(self.ctx, worker.vm, None)
            self.protect(worker, host, lambda step, of, text: log.info("%s: %d/%d %s", worker.name, step, of, text))
            self._retry_s.pop(worker.uuid, None)
            self.refusals.pop(worker.uuid, None)
            worker.reprotect_s = round(time.monotonic() - started, 3)
            delay_s = 0.0
        except Exception as error:
            self.refusals[worker.uuid] = str(error)
            delay_s = self._retry_s.get(worker.uuid, RETRY_FIRST_S)
            self._retry_s[worker.uuid] = min(RETRY_MAX_S, delay_s * 2)
            log.warning("%s: not protected (%s), again in %.0f s: %s", worker.name, reason, delay_s, error)
        self._retry_at[worker.uuid] = time.monotonic() + delay_s

    def _collect_garbage(self, worker: PairWorker) -> None:
        """Images of copies that lost their epoch go, once no live record and no open chain names them (core.chain)."""
        store = worker.store
        epochs = []
        for epoch in store.epochs():
            pair, winner = store.pair(epoch), store.winner(epoch)
            if pair is not None:
                host = winner.host if isinstance(winner, Winner) else None
                sides = [frozenset(place.disks.values()) for place in (pair.primary, pair.secondary)]
                epochs.append(EpochImages(pair.core(), sides[0], sides[1], host))
        chains = [[image.path for image in images.chain(disk.source)] for disk in worker.vm.shape(fresh=True).disks]
        directories = {Path(chain[-1]).parent for chain in chains}
        bases = {chain[-1] for chain in chains}
        files = [
            str(path)
            for directory in directories
            for path in directory.glob("*.ft-*.qcow2")
            if (overlay := parse_overlay(str(path))) is not None and overlay.base in bases
        ]
        for path in garbage(files, chains, epochs, operation_running=store.operation() is not None):
            log.info("%s: %s is of no use any more", worker.name, path)
            images.remove(path)

    # -- peers ---------------------------------------------------------------------------------------------

    def prepare_for_peer(self, uuid: str, request: dict[str, Any]) -> dict[str, Any]:
        """Start the secondary of a pair that another host makes. :raises FtkvmError: FTKVM-501, 52x"""
        worker = self._adopt(uuid, request["vm"])
        if worker.operation_lock.locked():
            raise FtkvmError("FTKVM-501", vm=worker.name, operation=worker.operation_name or "unknown")
        return prepare(self.ctx, worker, request)

    def has_secondary(self, vm_uuid: str) -> bool:
        """Whether this host's copy of a VM is a secondary, and has not been told to go live."""
        worker = self.workers.get(vm_uuid)
        if worker is None or worker.spec is None or worker.spec.role != "secondary":
            return False
        return worker.vm.pid() is not None

    def facts_for_peer(self) -> dict[str, Any]:
        """What placement wants to know of this host."""
        return own_facts(self.ctx, len(self.workers))

    def room_for_peer(self, directories: Sequence[str], stale: Sequence[str]) -> dict[str, Any]:
        """What is free here for whole copies; see :func:`ftkvm.agent.own_images.room`."""
        found = self._run(lambda: room(directories, stale), "room of directories")
        return {"room": {name: each and asdict(each) for name, each in found.items()}}

    def copy_for_peer(self, uuid: str) -> dict[str, Any]:
        """What this host's copy of a VM is now."""
        worker = self.workers.get(uuid)
        if worker is None:
            return {"qemu": "absent"}
        state = worker.vm.observe().state
        if state is QemuState.SECONDARY_LOADED:
            worker.publish_loaded()
        epoch = worker.spec.epoch if worker.spec else None
        usage = usage_of(worker.vm.pid())
        return {"qemu": str(state), "epoch": epoch, "reset_age_ms": worker.reset_age_ms(), "usage": usage}

    def destroy_for_peer(self, uuid: str, epoch: int, reason: str, copied: Sequence[str] = ()) -> dict[str, Any]:
        """Kill this host's copy of ``epoch`` because the asker owns the VM now. A copy of a later epoch stays.

        :param copied: its images, if they are on this host's own disks; they go too

        safety: the asker is an agent of the cluster (its certificate says so). An *abandoned* copy is a secondary whose
        pair record was never written, or which never was whole: it holds no state that could go live. Any other is
        ended only if the winner file does not name this host. When the datastore does not answer here, the winner's
        word is all there is, and a destroyed loser is always safe.
        """
        worker = self.workers.get(uuid)
        spec = worker.spec if worker is not None else None
        if worker is None or spec is None or worker.vm.pid() is None:
            gone = worker is None or worker.vm.pid() is None
            if gone and (worker is not None or uuid not in self.domains.running()):
                self._remove_copy(uuid, epoch, copied)
            return {"destroyed": gone}
        if spec.epoch > epoch or not self._may_be_ended(worker, spec, reason):
            raise FtkvmError("FTKVM-522", vm=worker.name, host=self.ctx.host, epoch=epoch)
        worker.destroy_own(Reason(reason))
        gone = worker.vm.pid() is None
        if gone:
            self._remove_copy(uuid, epoch, copied)
        return {"destroyed": gone}

    def _remove_copy(self, uuid: str, epoch: int, copied: Sequence[str]) -> None:
        """Images of a secondary that will never go live; its QEMU is gone (libvirt may not have noticed yet)."""
        if copied:
            store = PairStore(self.ctx.datastore, uuid)
            gone = self._run(lambda: remove_lost(store, self.ctx.host, epoch, copied), "remove images")
            log.info("%s: removed %s", uuid, ", ".join(gone) or "nothing")

    def _may_be_ended(self, worker: PairWorker, spec: PairSpec, reason: str) -> bool:
        try:
            winner = self._run(lambda: worker.store.winner(spec.epoch), "read winner")
            if isinstance(winner, Winner):
                return winner.host != self.ctx.host
            recorded = self._run(lambda: worker.store.pair(spec.epoch), "read pair record") is not None
        except FtkvmError as error:
            log.warning("%s: %s; taking the peer's word", worker.name, error)
            return reason != Reason.ABANDONED
        never_whole = worker.vm.observe().state is QemuState.SECONDARY_LOADING
        return reason == Reason.ABANDONED and spec.role == "secondary" and (never_whole or not recorded)

    # -- status --------------------------------------------------------------------------------------------

    def status(self, vm_uuid: str | None) -> list[dict[str, Any]]:
        """What this host knows of its pairs; only hosts on which the VM lives answer for it."""
        rows = []
        for worker in list(self.workers.values()):
            if vm_uuid not in (None, worker.uuid) or worker.observation is None:
                continue
            promoted = worker.write_back.error is not None and worker.observation.qemu is QemuState.SECONDARY_LOADED
            if promoted or worker.observation.qemu in (QemuState.PLAIN, QemuState.PRIMARY):
                rows.append(self._status_row(worker))
        return rows

    def _status_row(self, worker: PairWorker) -> dict[str, Any]:
        observation = worker.observation
        assert observation is not None
        records = worker.poller.snapshot()
        row = view(observation, worker.settings)
        protected = row.state == "protected"
        decided = isinstance(observation.winner, Winner)
        pair = records.pair
        cause = self.refusals.get(worker.uuid) if not protected else None
        if worker.write_back.error is not None:
            cause = str(worker.write_back.error)
        figures = worker.figures.summary()
        shade = colour(figures["lockstep_interval_s"], worker.pacer.interval_ms) if protected else None
        return {
            "vm": worker.name,
            "uuid": worker.uuid,
            "state": str(row.state),
            "reason": str(row.reason),
            "shown_as": row.shown_as,
            "cause": cause,
            "host": self.ctx.host,
            "secondary_host": pair.secondary.host if pair is not None and not decided else None,
            **(worker.usage if protected else CopyUsage()).to_json(),
            "epoch": pair.epoch if pair else 0,
            "encrypted": pair.encrypted if pair is not None and protected else None,
            "operation": worker.operation_name,
            "step": worker.operation_step,
            "warnings": [
                *_warnings(records.ft_settings),
                *(_plain(pair, self._encryption()) if protected else []),
                *_mute(observation, worker.settings),
                *warnings(worker.outside, pair.epoch if pair else 0, records.last_failover),
            ],
            **figures,
            "lockstep": str(shade) if shade else None,
            "checkpoint_interval_ms": worker.pacer.interval_ms,
            "checkpoint_interval_why": worker.pacer.why,
            "log_bandwidth_mbit_s": worker.pacer.log_bandwidth_mbit_s,
            "last_failover": worker.last_failover(),
            "protect": worker.protect_figures,
            "reprotect_s": worker.reprotect_s,
            "decision": str(worker.decision.reason) if worker.decision else None,
        }

    # -- helpers -------------------------------------------------------------------------------------------

    def _encryption(self) -> Encryption:
        return encryption(self.ctx.cluster.current().settings)

    def _run(self, work: Callable[[], Any], what: str) -> Any:
        return self.ctx.workers.run(work, 10.0, what)

    def _read(self, work: Callable[[], Any]) -> Any:
        return self._run(work, "read datastore")


def _warnings(ft_settings: dict[str, Any]) -> list[str]:
    """What an operator has chosen that gives protection up."""
    if effective(ft_settings)["ft.uncompared_frames"] == "allow":
        return ["ft.uncompared_frames=allow: IPv6 and VLAN frames leave uncompared; a failover may contradict them"]
    return []


def _plain(pair: PairDoc | None, wanted: Encryption) -> list[str]:
    """A pair that was made while ft.encryption was off."""
    if pair is None or pair.encrypted or not wanted.ft:
        return []
    return ["its channels are not encrypted: it was made before ft.encryption was on; `ftkvm test restart-secondary` "
            "makes it anew"]  # fmt: skip


def _mute(observation: Observation, settings: FtSettings) -> list[str]:
    """What is seen of a secondary that would be given up, were not others given up lately."""
    silence = observation.secondary_silence
    if observation.role is not Role.PRIMARY or silence is None or not is_mute(silence, settings):
        return []
    return [
        f"the secondary's guest has sent nothing for {silence.ms // 1000} s, so every answer waits for a checkpoint; "
        f"another one is made in {observation.patience_ms // 1000} s"
    ]


__all__ = ["PairManager"]
