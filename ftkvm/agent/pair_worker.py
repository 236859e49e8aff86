"""One FT pair on this host: observe, let core decide, act. One thread per VM; nothing here outlives a question to it.

The thread's inbox takes QMP events, the keeper's evidence and ticks. All that blocks on the datastore runs in
:class:`RecordPoller` or in a bounded worker, so a hung datastore never stops the thread.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..adapters import images
from ..adapters.guest_figures import starved_ms
from ..catalogue import FtkvmError
from ..core import pair as core
from ..core.chain import Side, parse_overlay
from ..core.facts import OperationPhase, SecondarySilence
from ..core.pair import Observation, QemuState, Role, Winner, decide
from ..core.patience import patience_ms
from ..core.reasons import Reason
from ..core.trouble import unnoticed_ms
from ..engine import primary, secondary
from ..engine.secondary import Overlays
from ..engine.shape import Disk
from ..engine.writeback import WriteBackFailed
from ..hold.status import HoldStatus
from ..keeper.client import KeeperClient
from ..keeper.model import DatastoreHealth, Evidence, PairSpec, PeerSpec
from ..ports import DatastoreError, WorkTimeout
from . import fitness, holds
from .context import AgentContext
from .copy_usage import CopyUsage
from .figures import CheckpointFigures, FailoverFigures
from .local_vm import LocalVm
from .outside import Found, Outside, tell_primary
from .pacer import Pacer
from .poller import RecordPoller
from .records import PairDoc, PairStore
from .write_back import WriteBackTrouble

log = logging.getLogger(__name__)

TICK_S = 0.25
ARBITRATE_WAIT_S = 2.0
OWN_TRIES = 120  # one a second
EVIDENCE_SETTLES_S = 1.0


class PairWorker:
    """Owns this host's copy of one VM. ``on_re_protect(reason)`` is called when a new secondary is wanted."""

    def __init__(
        self,
        ctx: AgentContext,
        keeper: KeeperClient,
        uuid: str,
        name: str,
        on_re_protect: Callable[["PairWorker", Reason], None],
    ) -> None:
        self.ctx = ctx
        self.keeper = keeper
        self.uuid = uuid
        self.name = name
        self.on_re_protect = on_re_protect
        self.store = PairStore(ctx.datastore, uuid)
        self.vm = LocalVm(ctx, uuid, name, self._on_event, lambda: self.poke("monitor-closed"))
        self.poller = RecordPoller(self.store, ctx, lambda: self.poke("records"))
        self.inbox: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1024)
        self.settings = core.FtSettings()
        self.figures = CheckpointFigures()
        self.usage = CopyUsage()
        self.protect_figures: dict[str, float] | None = None
        self.reprotect_s: float | None = None
        self.failover: FailoverFigures | None = None
        self.operation_lock = threading.Lock()  # held while an operation of ours changes this pair
        self.operation_name: str | None = None
        self.operation_step: str | None = None
        """What that operation is doing now, in words."""
        self.turn_lock = threading.Lock()  # held during each turn
        self.cancel_operation = threading.Event()
        self.decision: core.Decision | None = None
        self.observation: Observation | None = None
        self.spec: PairSpec | None = None
        self._evidence: Evidence | None = None
        self._evidence_at: float | None = None
        self._datastore: DatastoreHealth | None = None
        self._datastore_ok_since: float | None = None
        self._watching_since = time.monotonic()
        self._colo_exit_at: float | None = None
        self._ran_as_primary: int | None = None  # the last epoch in which this agent saw it
        self._absent_since: float | None = None
        self._replication_error = False
        self._own_disk_error = False
        self._guest_shut_down = False
        self._reset_at: float | None = None
        self.starved_at_reset_ms = 0
        """How long its QEMU had waited for a processor when the guest was last reset."""
        self._silence: tuple[int, SecondarySilence] | None = None  # with the epoch it is about
        self._given_up_mute: list[float] = []  # when a secondary was given up because its guest was mute
        self.outside = Outside()
        self.write_back = WriteBackTrouble(name)
        self._arbitration: Any = None
        self._arbitrated: tuple[int, Winner] | None = None
        self.pacer = Pacer(self)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pair-{name}", daemon=True)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.poller.start()
        self.pacer.start()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.poke("stop")
        self.poller.stop()
        self.pacer.stop()

    def poke(self, why: str, what: Any = None) -> None:
        """Wake the thread; a full inbox means it is awake anyway."""
        try:
            self.inbox.put_nowait((why, what))
        except queue.Full:
            log.warning("%s: inbox full, %s dropped", self.name, why)

    def catch_up(self, timeout_s: float = 2.0) -> None:
        """Wait until all events that have come so far were noted: those of an epoch that is over, before the next."""
        noted = threading.Event()
        self.poke("caught-up", noted)
        if not noted.wait(timeout_s):
            log.warning("%s: events are noted slowly", self.name)

    def new_epoch(self, spec: PairSpec) -> None:
        """A pair (or a secondary) of a new epoch begins on this host: forget the events of the one before."""
        self._colo_exit_at = None
        self._replication_error = False
        self._own_disk_error = False
        self._guest_shut_down = False
        self._evidence = None
        self._watching_since = time.monotonic()
        self.figures = CheckpointFigures()
        self.spec = spec

    def _on_event(self, event: dict[str, Any]) -> None:
        self.poke("event", event)

    # -- the loop ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = TICK_S
            if self.decision is not None and self.decision.recheck_ms is not None:
                wait_s = min(wait_s, self.decision.recheck_ms / 1000)
            self._drain(wait_s)
            try:
                self.turn()
            except Exception:
                log.exception("%s: turn failed; the next one starts from what is there", self.name)
                time.sleep(0.2)

    def _drain(self, wait_s: float) -> None:
        """Take what is in the inbox, waiting at most ``wait_s`` for the first."""
        timeout: float | None = wait_s
        while True:
            try:
                why, what = self.inbox.get(timeout=timeout) if timeout else self.inbox.get_nowait()
            except queue.Empty:
                return
            timeout = None
            if why == "event":
                self._note_event(what)
            elif why == "evidence":
                self._note_evidence(*what)
            elif why == "device":
                self._note_device(str(what))
            elif why == "caught-up":
                what.set()
            elif why == "worthless":
                self._give_up_copy(what)

    def _note_event(self, event: dict[str, Any]) -> None:
        name, data = event["event"], event.get("data", {})
        self.figures.note(name, event.get("timestamp", {}))
        if name == "COLO_EXIT" and data.get("reason") == "error":
            self._colo_exit_at = self._colo_exit_at or time.monotonic()
            self.cancel_operation.set()
        elif name == "QUORUM_REPORT_BAD" and data.get("error") and not self._operating():
            self._note_lost_write(str(data.get("node-name", "")))
        elif name == "SHUTDOWN" and data.get("guest") and data.get("reason") in ("guest-shutdown", "guest-panic"):
            self._guest_shut_down = True
            self._publish(qemu="shutdown")
        elif name in ("RESET", "GUEST_PANICKED"):
            self._after_reset()
        elif name == "RESUME" and self._guest_shut_down and self.spec is not None and self.spec.role == "secondary":
            self._guest_shut_down = False  # it had run ahead: a checkpoint has put it back to where the primary is
            self._publish(qemu="loaded")
        if name not in ("STOP", "RESUME", "VSERPORT_CHANGE"):  # with each checkpoint
            log.info("%s: %s %s", self.name, name, data)

    def _note_device(self, change: str) -> None:
        """Somebody plugged or unplugged a device of this copy: the next checkpoint may fail of it."""
        spec = self.spec
        if spec is None or spec.role == "solo" or self._operating():
            return
        error = FtkvmError("FTKVM-151", vm=self.name, host=self.ctx.host, difference=change)
        log.warning("%s", error)
        self.outside.own = Found(spec.epoch, (error,))
        tell_primary(self, self.outside.own)

    def _note_lost_write(self, node: str) -> None:
        """The quorum told the guest *success* for a write that one of its two children refused."""
        if node.startswith("ft-"):
            self._replication_error = True
        else:
            self._own_disk_error = True

    def _after_reset(self) -> None:
        """A secondary looks whether it is still a copy; see :mod:`ftkvm.agent.fitness`."""
        self._reset_at, self.starved_at_reset_ms = time.monotonic(), starved_ms(self.vm.pid() or 0)
        spec = self.spec
        if spec is None or spec.role != "secondary" or spec.peer is None:
            return
        peer = spec.peer.host

        def judge() -> None:
            try:
                if fitness.worthless_after_reset(self, peer):
                    self.poke("worthless", spec.epoch)
            except Exception as error:
                log.warning("%s: not known whether this copy is still one: %s", self.name, error)

        self.ctx.workers.submit(judge, f"fitness {self.name}")

    def _give_up_copy(self, epoch: int) -> None:
        """Say that this copy is gone: the primary goes on and gets a new one.

        It is not killed here: should the primary die now, it is still what there is, as of the last checkpoint.
        """
        if self.spec is not None and self.spec.role == "secondary" and self.spec.epoch == epoch:
            log.warning("%s: this copy's guest is not the primary's any more; it asks to be made anew", self.name)
            self._publish(qemu="gone")

    def reset_age_ms(self) -> int | None:
        """Since this copy's guest was last started, reset or panicked; None: not since the agent's start."""
        return _age_ms(self._reset_at, time.monotonic())

    def note_silence(self, status: HoldStatus) -> None:
        """What the hold proxy says of the secondary's guest; called by the pacer's thread."""
        if self.spec is not None:
            silent_ms = int(status.secondary_silent_ms)
            self._silence = (
                self.spec.epoch,
                SecondarySilence(silent_ms, status.silent_intervals, status.silent_frames),
            )

    def _secondary_silence(self) -> SecondarySilence | None:
        if self._silence is None or self.spec is None or self._silence[0] != self.spec.epoch:
            return None
        return self._silence[1]

    def _note_evidence(self, evidence: Evidence, datastore: DatastoreHealth) -> None:
        self._evidence, self._datastore = evidence, datastore
        self._evidence_at = time.monotonic()
        if datastore.state == "failed" and self.spec is not None and self.spec.role == "secondary":
            self._replication_error = True  # the primary's writes failed here; it may die before it can end the epoch
        if datastore.state != "ok":
            self._datastore_ok_since = None
        elif self._datastore_ok_since is None:
            self._datastore_ok_since = time.monotonic()

    def turn(self) -> None:
        """One round: observe, decide, act. While an operation of ours changes this pair, its own plan decides."""
        with self.turn_lock:
            self._turn()

    def _turn(self) -> None:
        if self._operating():
            if self._peer_fell_silent():
                self.cancel_operation.set()
            return
        observation = self.observe()
        self._say_gone(observation)
        self._say_interval()
        decision = decide(observation, self.settings)
        if self.decision is None or decision.actions != self.decision.actions:
            log.info("%s: %s %s", self.name, decision.reason, [str(action) for action in decision.actions])
        self.observation, self.decision = observation, decision
        for action in decision.actions:
            self._act(action)

    def _peer_fell_silent(self) -> bool:
        """During a protect, once its pair is recorded. What is known of an earlier peer does not count."""
        recorded = self.spec is not None and self.spec.role == "primary"
        settled = time.monotonic() - self._watching_since > EVIDENCE_SETTLES_S
        return recorded and settled and self._evidence is not None and self._evidence.verdict == "silent"

    # -- observe -------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Everything core wants to know; QEMU first, the records after it (facts.py says why)."""
        view = self.vm.observe()
        self._drain(0)  # what QEMU told before its answer is noted by now: a guest's power-off explains what was seen
        qemu = view.state
        if self._guest_shut_down:
            qemu = QemuState.SHUT_DOWN
        if qemu is QemuState.SECONDARY_LOADING:
            self.poller.refresh(1.0)  # else a journal written a moment ago would be missed, and the copy ended
        records = self.poller.snapshot()
        winner = records.winner
        if self._arbitrated is not None and records.pair is not None and self._arbitrated[0] == records.pair.epoch:
            winner = self._arbitrated[1]
        epoch = records.pair.epoch if records.pair is not None else None
        if qemu is QemuState.PRIMARY:
            self._ran_as_primary = epoch
        mine = qemu is QemuState.ABSENT and epoch is not None and self._ran_as_primary == epoch
        absent = mine and self.vm.process.gone()
        self._absent_since = (self._absent_since or time.monotonic()) if absent else None
        in_colo = qemu in (QemuState.PRIMARY, QemuState.SECONDARY_LOADED)
        now = time.monotonic()
        if in_colo and not view.colo_running and self._colo_exit_at is None and not self._operating():
            self._colo_exit_at = now
        return Observation(
            now_ms=int(now * 1000),
            me=self.ctx.host,
            boot_id=self.ctx.boot_id,
            record=records.pair.core() if records.pair else None,
            record_known=records.known,
            winner=winner,
            qemu=qemu,
            absent_ms=_age_ms(self._absent_since, now) or 0,
            qemu_epoch=self.spec.epoch if self.spec else None,
            colo_exit_age_ms=_age_ms(self._colo_exit_at, now) if in_colo else None,
            checkpoint_age_ms=_age_ms(max(self._watching_since, self.figures.last_resume), now) if in_colo else None,
            interval_ms=self.figures.interval_in_force_ms(self._told_interval_ms()),
            replication_error=self._replication_error,
            own_disk_error=self._own_disk_error,
            hold_alive=qemu is not QemuState.PRIMARY or self._operating() or holds.alive(self.ctx, self.uuid),
            secondary_silence=self._secondary_silence(),
            changed_outside=records.pair is not None and bool(self.outside.of(records.pair.epoch, now).changes),
            patience_ms=patience_ms(self._given_up_mute, now),
            peer=_core_evidence(self._evidence, _age_ms(self._evidence_at, now) or 0),
            datastore=self._datastore_state(),
            datastore_ok_ms=_age_ms(self._datastore_ok_since, now) or 0,
            operation=self._operation(records.operation_running),
            ft_enabled=records.ft_enabled,
        )

    def _told_interval_ms(self) -> int | None:
        """What the primary's last beat of this epoch said, however long ago: it is in force until set anew."""
        said = self._evidence.said if self._evidence is not None else None
        return (
            said.interval_ms if said is not None and self.spec is not None and said.epoch == self.spec.epoch else None
        )

    def _operating(self) -> bool:
        return self.operation_lock.locked()

    def _operation(self, on_datastore: str | None) -> core.Operation | None:
        if self._operating():
            return core.Operation(self.operation_name or "protect", OperationPhase.PREPARING)
        return core.Operation(on_datastore, OperationPhase.PREPARING) if on_datastore else None

    def _datastore_state(self) -> core.DatastoreState:
        return core.DatastoreState(self._datastore.state if self._datastore else "unknown")

    # -- act -----------------------------------------------------------------------------------------------

    def _act(self, action: core.Action) -> None:
        match action:
            case core.Arbitrate(epoch, reason):
                self._arbitrate(epoch, reason)
            case core.EndEpochShutdown(epoch):
                self._arbitrate(epoch, Reason.GUEST_SHUTDOWN)
            case core.GoLive(epoch):
                self._go_live(epoch)
            case core.GoOnAlone(epoch):
                self._go_on_alone(epoch)
            case core.DestroyOwn(reason):
                self.destroy_own(reason)
            case core.TellPeerDestroy(epoch):
                self.tell_peer(epoch)
            case core.ReProtect(reason):
                self.on_re_protect(self, reason)
            case core.Yield() | core.Nothing():
                pass

    def _arbitrate(self, epoch: int, reason: Reason) -> None:
        """Try to win; wait a bounded time for the datastore, and take the answer up later when it is slow.

        An attempt belongs to its epoch: the late answer of one about an older epoch is thrown away.
        """
        if self.failover is None or self.failover.epoch != epoch:
            if reason is Reason.SECONDARY_DIVERGES:
                self._given_up_mute.append(time.monotonic())
            noticed_ms = unnoticed_ms(self.observation, reason) if self.observation is not None else None
            changes = self.outside.of(epoch, time.monotonic()).changes if reason is Reason.CHANGED_OUTSIDE else ()
            self.failover = FailoverFigures(
                epoch, str(reason), self.figures.last_resume, noticed_ms, "; ".join(map(str, changes)) or None
            )
        if self._arbitration is None or self._arbitration[0] != epoch:
            work = self.ctx.workers.submit(
                lambda: self.store.arbitrate(epoch, self.ctx.host, self.ctx.boot_id, reason), f"arbitrate {self.name}"
            )
            self._arbitration = (epoch, work)
        try:
            winner = self._arbitration[1].result(ARBITRATE_WAIT_S)
        except TimeoutError:
            log.warning("%s: the datastore does not answer; nobody goes live", self.name)
            return
        except FtkvmError as error:
            log.warning("%s: arbitration: %s", self.name, error)
            self._arbitration = None
            time.sleep(0.05)
            return
        self._arbitration = None
        self._arbitrated = (epoch, winner)
        self.failover.arbitrated()
        log.warning("%s: epoch %d is won by %s (%s)", self.name, epoch, winner.host, winner.reason)
        self.poke("arbitrated")

    def _go_live(self, epoch: int) -> None:
        """This secondary becomes the VM. The keeper opens the gate and tells the peer; QEMU goes live at once."""
        if self.write_back.waits(time.monotonic()):
            return
        shape, monitor = self.vm.shape(), self.vm.monitor()
        self.publish_solo(epoch)
        secondary.go_live(monitor, shape)
        if self.failover is not None:
            self.failover.live("secondary")
        monitor.execute("announce-self", {"initial": 20, "max": 500, "rounds": 5, "step": 100})
        try:
            secondary.normalise(monitor, shape, self._scratch_is_old)
        except WriteBackFailed as failure:
            if self.write_back.failed(failure, time.monotonic()):
                self._after_failover(epoch)  # it is live all the same
                self._tell_write_back("write-back-failed", failure.detail)
            log.warning("%s: %s; it is tried again", self.name, self.write_back.error)
            return
        if self.write_back.mended():
            self._tell_write_back("write-back-mended", "")
        else:
            self._after_failover(epoch)

    def _tell_write_back(self, event: str, detail: str) -> None:
        line = {"event": event, "vm": self.name, "at": time.time(), "detail": detail}
        path = f"history/{self.ctx.host}.jsonl"
        self.ctx.workers.submit(lambda: self.ctx.datastore.append_line(path, line), event)

    def _scratch_is_old(self, disk: Disk) -> None:
        """The guest writes to the secondary's image itself now: what lies beside it must never count again.

        safety: the active disk's file says that the image alone is not the newest state (``core.newest``); so it goes
        before anything else may happen, and the promotion is repeated until it is gone. Between QEMU's switch and this
        lie about 10 ms in which the death of this host too would leave a file that is a few writes older than it says.
        """
        overlay = parse_overlay(disk.source)
        if overlay is None or overlay.side is not Side.SECONDARY:
            return
        overlays = Overlays.beside(disk.source)
        for image in (overlays.active, overlays.hidden):
            self.ctx.workers.run(lambda image=image: images.remove(image), 5.0, f"remove {image}")  # type: ignore[misc]

    def _go_on_alone(self, epoch: int) -> None:
        """This primary drops its secondary and runs on."""
        shape, monitor = self.vm.shape(), self.vm.monitor()
        self.publish_solo(epoch)
        primary.release(monitor, shape)
        if self.failover is not None:
            self.failover.live("primary")
        primary.normalise(monitor, shape)
        holds.stop(self.ctx, self.uuid)
        self._after_failover(epoch)

    def _after_failover(self, epoch: int) -> None:
        self._colo_exit_at = None
        self._replication_error = False
        self._own_disk_error = False
        if self.failover is not None and self.failover.epoch == epoch:
            document = self.failover.to_json(self.ctx.host, self.uuid)
            log.warning("%s: %s", self.name, document)
            self.ctx.workers.submit(lambda: self._record_failover(epoch, document), "record failover")

    def _record_failover(self, epoch: int, document: dict[str, Any]) -> None:
        """Own the VM, as soon as the datastore takes it: else nobody releases it, should it end here before."""
        for left in reversed(range(OWN_TRIES)):
            try:
                self.store.own_as_winner(epoch, self.ctx.host, self.ctx.boot_id)
                break
            except DatastoreError as error:
                log.warning("%s: not noted as owner yet: %s", self.name, error)
                if not left:
                    raise
                time.sleep(1.0)
        self.store.save_failover(document)
        self.ctx.datastore.append_line(
            f"history/{self.ctx.host}.jsonl", {"event": "failover", "vm": self.name, **document}
        )

    def destroy_own(self, reason: Reason) -> None:
        """SIGKILL, then forget: the gate stays as long as the process does."""
        gone = self.vm.kill()
        if not gone:
            log.error("%s: QEMU still dies (%s)", self.name, reason)
            return
        holds.stop(self.ctx, self.uuid)
        self._guest_shut_down = False
        self._colo_exit_at = None
        self.write_back.mended()

    def forget_copy(self) -> None:
        """Nothing of an earlier copy counts any more: another one is about to be started here.

        The caller holds the operation lock, and waited for the turn under way.
        """
        self._guest_shut_down = False
        self._colo_exit_at = None
        self.write_back.mended()
        self._replication_error = self._own_disk_error = False
        self._evidence = None
        self._reset_at, self.starved_at_reset_ms = time.monotonic(), 0
        if self.spec is not None:
            self.keeper.drop_pair(self.uuid)
            self.spec = None

    def _say_gone(self, observation: Observation) -> None:
        """Tell the peer at once that there is no QEMU here, and go on telling until the epoch is decided."""
        if self.spec is None or self._operating() or observation.qemu is not QemuState.ABSENT:
            return
        if self.spec.qemu != "shutdown":
            self._publish(qemu="gone")
        record = observation.record
        decided = record is not None and (
            record.epoch > self.spec.epoch
            or (record.epoch == self.spec.epoch and isinstance(observation.winner, Winner))
        )
        never_recorded = observation.record_known and (record is None or record.epoch < self.spec.epoch)
        if decided or (never_recorded and observation.operation is None):
            self.keeper.drop_pair(self.uuid)
            self.spec = None

    def tell_peer(self, epoch: int) -> None:
        """Best effort, short: safety never needs the answer."""
        pair = self.poller.snapshot().pair
        if pair is None or pair.epoch != epoch:
            return
        peer = pair.peer_of(self.ctx.host).host
        evidence = self._evidence

        def tell() -> None:
            self.ctx.peers.call(
                peer,
                "POST",
                f"/v1/peer/pairs/{self.uuid}/destroy",
                {"epoch": epoch, "reason": str(Reason.PEER_WON)},
                timeout_s=3.0,
            )

        try:
            work = self.ctx.workers.submit(tell, f"tell {peer}")
            if evidence is not None and evidence.verdict == "alive":
                work.result(0.3)
        except (FtkvmError, TimeoutError, WorkTimeout) as error:
            log.info("%s: %s was not told: %s", self.name, peer, error)

    # -- what the keeper says for us -----------------------------------------------------------------------

    def publish_solo(self, epoch: int) -> None:
        if self.spec is None:
            self.spec = self._spec_from_record(epoch)
        taps = tuple(nic.tap for nic in self.vm.shape().nics)
        self.spec = replace(self.spec, role="solo", won_epoch=epoch, qemu="running", taps=taps, interval_ms=None)
        self.keeper.set_pair(self.spec)

    def _publish(self, qemu: Any) -> None:
        if self.spec is not None and self.spec.qemu != qemu:
            self.spec = replace(self.spec, qemu=qemu)
            self.keeper.set_pair(self.spec)

    def _say_interval(self) -> None:
        """The secondary has to know when a checkpoint is overdue (``core.trouble``)."""
        interval_ms = self.figures.interval_ms or None
        if self.spec is not None and self.spec.role == "primary" and self.spec.interval_ms != interval_ms:
            self.spec = replace(self.spec, interval_ms=interval_ms)
            self.keeper.set_pair(self.spec)

    def publish_loaded(self) -> None:
        """The secondary says that it could go live."""
        self._publish("loaded")

    def spec_of_pair(self, pair: PairDoc) -> None:
        """Take this host's side of ``pair`` as what the keeper shall be told (a restarted agent has no spec)."""
        if self.spec is None or self.spec.epoch != pair.epoch:
            self.spec = spec_of(self.ctx, pair, pair.core().role_of(self.ctx.host), ())

    def last_failover(self) -> dict[str, Any] | None:
        """The last failover this VM had, as recorded on the datastore."""
        return self.poller.snapshot().last_failover

    def _spec_from_record(self, epoch: int) -> PairSpec:
        pair = self.poller.snapshot().pair
        assert pair is not None and pair.epoch == epoch
        return spec_of(self.ctx, pair, pair.core().role_of(self.ctx.host), ())


def spec_of(ctx: AgentContext, pair: PairDoc, role: Role, taps: tuple[str, ...]) -> PairSpec:
    """What the keeper is told about this host's side of ``pair``."""
    peer = ctx.cluster.host(pair.peer_of(ctx.host).host)
    return PairSpec(
        pair.uuid,
        pair.vm,
        pair.epoch,
        "primary" if role is Role.PRIMARY else "secondary",
        PeerSpec(peer.name, peer.ft, peer.keeper_port),
        taps,
        "running",
    )


def _age_ms(since: float | None, now: float) -> int | None:
    return None if since is None else max(0, int((now - since) * 1000))


def _core_evidence(evidence: Evidence | None, held_ms: int) -> core.PeerEvidence:
    """The keeper's evidence, which is ``held_ms`` old: ages go on while it lies here."""
    if evidence is None:
        return core.PeerEvidence()
    said = evidence.said
    beat_age_ms = None if evidence.beat_age_ms is None else evidence.beat_age_ms + held_ms
    if said is None or said.epoch is None or said.role is None:
        return core.PeerEvidence(core.Verdict(evidence.verdict), beat_age_ms, None)
    role = Role.SECONDARY if said.role == "secondary" else Role.PRIMARY
    return core.PeerEvidence(
        core.Verdict(evidence.verdict),
        beat_age_ms,
        core.PeerSaid(
            said.epoch,
            role,
            core.PeerQemu(said.qemu or "gone"),
            said.won_epoch,
            core.DatastoreState(said.datastore),
            said.boot_id,
        ),
    )


__all__ = ["PairWorker", "spec_of"]
