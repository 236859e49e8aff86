"""The plan that gives a running VM a secondary, run by the agent of the host the VM runs on.

Each step has a name, is written to the journal on the datastore before it begins, and has an undo that asks what is
there before it acts; so the plan can be cut off anywhere and undone by an agent that knows only the journal. The
commit point is ``record``: once the pair record exists, the epoch ends only by its winner file (docs/safety.md).
"""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..adapters import images
from ..catalogue import FtkvmError
from ..core.chain import Side, overlay_path, plan_chain
from ..engine import credentials, graph, primary
from ..engine.graph import EngineError, MonitorPort
from ..engine.machine import machine_of
from ..engine.primary import Endpoints, NicPorts
from ..engine.shape import Shape
from ..keeper.client import KeeperClient
from ..keeper.model import PairSpec, PeerSpec
from . import channel_keys, holds, steps
from .channel import QEMU_WAITS, shut_down_after
from .context import AgentContext
from .fault_points import fault_point
from .local_vm import LocalVm
from .merging import merge_chain
from .own_images import require_own_images, stale_on
from .records import CopyPlace, OperationDoc, PairDoc, PairStore
from .waits import await_done, require_short

log = logging.getLogger(__name__)

SLOWEST_COPY_BYTES_S = 4 << 20
"""A full copy that is slower than this is given up."""
LOCKSTEP_TIMEOUT_S = 20.0
HANDSHAKE_TIMEOUT_S = 2.0
"""So long the guest may stand still because the other side does not answer the handshake of its memory's channel: its
host froze at that very moment. Then the plan ends, before anything is recorded."""
PEER_CHECK_S = 1.5
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Step:
    """One step: ``do`` names a method of :class:`Protect`; :mod:`.protect_undo` takes back what is there of it."""

    name: str
    text: str
    do: str


STEPS: tuple[Step, ...] = (
    Step("freeze", "freeze the disks: new overlay for this copy", "freeze_disks"),
    Step("images", "create the secondary's overlays", "create_images"),
    Step("secondary", "start the secondary", "start_secondary"),
    Step("channels", "connect the network channels", "connect_channels"),
    Step("mirror", "copy what was written since the freeze", "mirror_disks"),
    Step("memory", "copy the memory", "copy_memory"),
    Step("record", "write the pair record", "record_pair"),
    Step("insert", "insert quorum and network filters", "insert_pair"),
    Step("lockstep", "wait for lockstep", "await_lockstep"),
)
COMMIT_STEP = "record"


@dataclass
class Protect:
    """One run of the plan. Raises FtkvmError; after an error the caller calls ``undo_protect`` unless committed."""

    ctx: AgentContext
    store: PairStore
    vm: LocalVm
    keeper: KeeperClient
    secondary: str
    epoch: int
    interval_ms: int
    uncompared_frames: str
    compare_timeout_ms: int
    max_switchover_s: float
    start_timeout_s: float
    """In which the secondary has to have disks and memory; a full copy of disks has its own time beside."""
    copied: bool
    """Each side has whole images on its own host's disks (``ft.disks=copy``)."""
    encrypted: bool
    """What the two copies say to each other is encrypted (``ft.encryption``)."""
    progress: Progress
    cancelled: Callable[[], bool]
    on_record: Callable[[PairSpec], None]
    journal: OperationDoc = field(init=False)
    figures: dict[str, float] = field(default_factory=dict)
    _key: str | None = None
    _endpoints: Endpoints | None = None
    _secondary_boot_id: str = ""
    _machine: tuple[str, ...] = ()
    _secondary_machine: tuple[str, ...] = ()
    _owner: int | None = None
    _stopped_at: float = 0.0
    _deadline: float = 0.0
    _copied_percent: int = -1

    def run(self) -> PairDoc:
        """All steps in order.

        :raises FtkvmError: a step failed; ``committed`` tells whether the pair record may exist
        """
        shape = self.vm.shape(fresh=True)
        self.journal = OperationDoc(
            "protect",
            self.ctx.host,
            self.ctx.boot_id,
            self.epoch,
            self.secondary,
            original_disks={disk.target: disk.source for disk in shape.disks},
            copied=self.copied,
        )
        started = time.monotonic()
        self._deadline = started + self.start_timeout_s
        for number, step in enumerate(STEPS, 1):
            if self.cancelled():
                raise FtkvmError("FTKVM-510", vm=self.vm.name, step=step.name)
            self.progress(number, len(STEPS), step.text)
            self._begin(step)
            step_started = time.monotonic()
            getattr(self, step.do)()
            self.figures[f"{step.name}_ms"] = round((time.monotonic() - step_started) * 1000, 1)
            fault_point(self.ctx, step.name)
        self.figures["protect_s"] = round(time.monotonic() - started, 3)
        log.info("%s: protected in %s", self.vm.name, self.figures)
        return self._pair()

    @property
    def committed(self) -> bool:
        """Whether the pair record may have been written: then only arbitration ends the epoch."""
        return COMMIT_STEP in self.journal.steps

    def _begin(self, step: Step) -> None:
        self.journal.steps.append(step.name)
        if step.name not in ("insert", "lockstep"):  # the guest stands still there; QEMU itself shows what was done
            self.store.save_operation(self.journal)

    # -- steps ---------------------------------------------------------------------------------------------

    def freeze_disks(self) -> None:
        """New overlays on top, unless the present ones hold little: then the mirror copies that little.

        With images of its own each side keeps what it has: nothing is shared, so nothing has to stand still.
        """
        shape = self.vm.shape()
        if self.copied:
            require_own_images(str(self.ctx.config.datastore), self.vm.name, shape.disks)
            self.journal.primary_disks = {disk.target: disk.source for disk in shape.disks}
            self.store.save_operation(self.journal)
            return
        wanted: dict[str, str] = {}
        for disk in shape.disks:
            chain = images.chain(disk.source)
            plan = plan_chain([image.path for image in chain], chain[0].allocated_bytes)
            if plan.merge_first:
                self.progress(1, len(STEPS), f"merge the overlays of {disk.target}")
                merge_chain(self.ctx, self.vm, disk.target)
            if plan.snapshot:
                wanted[disk.target] = overlay_path(disk.source, self.epoch, Side.PRIMARY)
        shape = self.vm.shape(fresh=True)
        self.journal.primary_disks = {disk.target: wanted.get(disk.target, disk.source) for disk in shape.disks}
        self.store.save_operation(self.journal)
        if wanted:
            for path in wanted.values():
                images.remove(path)
            self.vm.domains.snapshot_disks(self.vm.uuid, wanted, [disk.target for disk in shape.disks])
        self.vm.shape(fresh=True)

    def create_images(self) -> None:
        """The secondary's overlay on the same backing image; nothing is copied. Whole images its own host makes."""
        shape = self.vm.shape()
        self.journal.secondary_disks = {
            disk.target: overlay_path(disk.source, self.epoch, Side.SECONDARY) for disk in shape.disks
        }
        self.store.save_operation(self.journal)
        for disk in () if self.copied else shape.disks:
            backing = images.chain(disk.source)[1]
            images.create_overlay(self.journal.secondary_disks[disk.target], backing.path, backing.image_format)

    def _sizes(self) -> dict[str, int]:
        """Size of each disk in bytes, if the secondary's host is to make whole images."""
        if not self.copied:
            return {}
        return {disk.target: images.chain(disk.source)[0].virtual_bytes for disk in self.vm.shape().disks}

    def start_secondary(self) -> None:
        self._key = channel_keys.new() if self.encrypted else None
        self._machine = machine_of(self.vm.domains.xml(self.vm.uuid))
        sizes = self._sizes()
        self._deadline += sum(sizes.values()) / SLOWEST_COPY_BYTES_S
        answer = self.ctx.peers.call(
            self.secondary,
            "POST",
            f"/v1/peer/pairs/{self.vm.uuid}/prepare",
            {
                "vm": self.vm.name,
                "epoch": self.epoch,
                "primary": self.ctx.host,
                "xml": self.vm.domains.xml(self.vm.uuid, migratable=True),
                "disks": self.journal.secondary_disks,
                "sizes": sizes,
                "stale": self._stale() if self.copied else [],
                "wait_s": self._left_s(),
                "key": self._key,
            },
            timeout_s=60.0,
        )
        self._secondary_boot_id = str(answer["boot_id"])
        self._secondary_machine = tuple(answer.get("machine", ()))
        self._endpoints = Endpoints(
            answer["address"],
            answer["migration_port"],
            answer["nbd_port"],
            {alias: NicPorts(**ports) for alias, ports in answer["nics"].items()},
            self.encrypted,
        )

    def connect_channels(self) -> None:
        """Our monitors, the hold proxy, and the character devices; no frame takes another way yet."""
        monitor = self.vm.monitor(create=True)
        shape = self.vm.shape()
        sockets = self.vm.hold_sockets(shape)
        self._take_key(monitor)
        holds.start(self.ctx, self.vm, shape, sockets, self._end(), self.uncompared_frames, self._key)
        for nic in shape.nics:
            primary.add_nic_channels(monitor, nic, self._end(), sockets[nic.alias])

    def _take_key(self, monitor: MonitorPort) -> None:
        """Our QEMU reads the key once: its file is there only for that."""
        if self._key is not None:
            directory = self.vm.directory()
            try:
                channel_keys.place(directory, self._key)
                credentials.add(monitor, directory, "client")
            finally:
                channel_keys.forget(directory)

    def _stale(self) -> list[str]:
        return stale_on(self.store, self.secondary, self.journal.primary_disks.values())

    def mirror_disks(self) -> None:
        monitor, disks = self.vm.monitor(), self.vm.shape().disks
        self.vm.job_error = None
        for disk in disks:
            primary.start_mirror(monitor, disk, self._end(), whole=self.copied)

        def ready() -> bool:
            if self.copied:
                done, of = primary.mirrored_bytes(monitor, disks)
                self._tell_copied(100 * done // of if of else 0)
            try:
                return all(primary.mirror_ready(monitor, disk) for disk in disks)
            except EngineError as error:
                detail = self.vm.job_error or error
                raise FtkvmError("FTKVM-157", vm=self.vm.name, host=self.secondary, detail=detail) from error

        what = f"mirror of {', '.join(disk.target for disk in disks)}"
        self._await(what, ready, self._left_s(), 0.2 if self.copied else 0.02)

    def _tell_copied(self, percent: int) -> None:
        if percent != self._copied_percent:
            self._copied_percent = percent
            number = steps.PROTECT.index("mirror") + 1
            self.progress(number, len(STEPS), f"copy the disks to {self.secondary}: {percent} %")

    def copy_memory(self) -> None:
        monitor = self.vm.monitor()
        with socket.create_connection((self._end().address, self._end().migration_port), timeout=5.0) as channel:
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if channel.recv(len(QEMU_WAITS)) != QEMU_WAITS:
                raise EngineError(f"{self.secondary} ended the channel for the memory")
            channel.settimeout(None)
            with shut_down_after(channel, HANDSHAKE_TIMEOUT_S):
                primary.start_migration(monitor, channel.fileno(), self.interval_ms, encrypted=self.encrypted)
        self._await("copy of memory", lambda: primary.at_pre_switchover(monitor), self._left_s(), 0.005)
        self._stopped_at = time.monotonic()

    def record_pair(self) -> None:
        """The commit point: from now on the epoch ends by its winner file only."""
        self._owner = self.store.own(self.ctx.host, self.ctx.boot_id)
        pair = self._pair()
        if self.store.create(pair) != pair:
            raise FtkvmError("FTKVM-512", vm=self.vm.name, epoch=self.epoch)
        spec = self.spec(pair)
        self.on_record(spec)
        self.keeper.set_pair(spec)

    def insert_pair(self) -> None:
        monitor, shape = self.vm.monitor(), self.vm.shape()
        for disk in shape.disks:
            primary.insert_disk(monitor, disk)
        for nic in shape.nics:
            primary.insert_nic(monitor, nic, self.compare_timeout_ms)
        require_short(self.vm.name, self._stopped_at, self.max_switchover_s)
        primary.continue_migration(monitor)

    def await_lockstep(self) -> None:
        monitor = self.vm.monitor()
        remaining_s = max(1.0, min(LOCKSTEP_TIMEOUT_S, self.max_switchover_s - (time.monotonic() - self._stopped_at)))
        self._await(
            "lockstep",
            lambda: (
                graph.colo_mode(monitor) == "primary"
                and monitor.execute("query-status")["status"] in ("running", "colo")
            ),
            remaining_s,
            0.01,
        )
        self.figures["frozen_ms"] = round((time.monotonic() - self._stopped_at) * 1000, 1)
        answer: dict[str, object] = {}

        def loaded() -> bool:
            answer.update(self.ctx.peers.call(self.secondary, "GET", f"/v1/peer/pairs/{self.vm.uuid}", timeout_s=5.0))
            return answer.get("qemu") == "secondary-loaded"

        self._await("first checkpoint on the secondary", loaded, LOCKSTEP_TIMEOUT_S, 0.1)
        self.store.clear_operation()

    # -- helpers -------------------------------------------------------------------------------------------

    def _left_s(self) -> float:
        """What is left of the time in which the secondary has to be there (FT-13)."""
        return max(0.0, self._deadline - time.monotonic())

    def _end(self) -> Endpoints:
        assert self._endpoints is not None
        return self._endpoints

    def _pair(self) -> PairDoc:
        return PairDoc(
            self.vm.uuid,
            self.vm.name,
            self.epoch,
            CopyPlace(self.ctx.host, self.journal.primary_disks, self.ctx.boot_id, self._machine),
            CopyPlace(self.secondary, self.journal.secondary_disks, self._secondary_boot_id, self._secondary_machine),
            self._owner,
            self.copied,
            self.encrypted,
        )

    def spec(self, pair: PairDoc) -> PairSpec:
        """What the keeper is told about this side."""
        host = self.ctx.cluster.host(pair.secondary.host)
        return PairSpec(
            self.vm.uuid,
            self.vm.name,
            pair.epoch,
            "primary",
            PeerSpec(host.name, host.ft, host.keeper_port),
            _taps(self.vm.shape()),
            "running",
        )

    def _await(self, what: str, done: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> None:
        ask_at = time.monotonic() + PEER_CHECK_S

        def meanwhile() -> None:
            nonlocal ask_at
            if time.monotonic() > ask_at:  # a host that died silently would hold the plan until its time-out
                self.ctx.peers.call(self.secondary, "GET", f"/v1/peer/pairs/{self.vm.uuid}", timeout_s=PEER_CHECK_S)
                ask_at = time.monotonic() + PEER_CHECK_S
            if self.cancelled():
                raise FtkvmError("FTKVM-510", vm=self.vm.name, step=what)

        await_done(self.vm.name, what, done, timeout_s, interval_s, meanwhile)


def _taps(shape: Shape) -> tuple[str, ...]:
    return tuple(nic.tap for nic in shape.nics)


assert tuple(step.name for step in STEPS) == steps.PROTECT  # the tests that interrupt each step rely on it
