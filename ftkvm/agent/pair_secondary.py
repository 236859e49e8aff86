"""The secondary's host: start the waiting copy when the primary's agent asks for it, and take its memory in."""

import logging
import random
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..adapters import images
from ..catalogue import FtkvmError
from ..config import FT_PORTS
from ..core.chain import parse_overlay
from ..core.pair import QemuState
from ..core.reasons import Reason
from ..engine import secondary
from ..engine.machine import machine_of
from ..engine.primary import NicPorts
from ..engine.secondary import Overlays
from ..engine.shape import Shape, secondary_xml
from ..keeper.model import PairSpec, PeerSpec
from . import channel_keys
from .channel import QEMU_WAITS
from .context import AgentContext
from .guarded import require_guard
from .own_images import make_room
from .pair_worker import PairWorker

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""Where the asker is of a version that does not say when it gives up."""
ACCEPT_GRACE_S = 30.0
"""The primary gives up first, and says so."""
KEY_LOOK_S = 1.0
REFUSED_BY_LIBVIRT = ("FTKVM-106", "FTKVM-107")


def prepare(ctx: AgentContext, worker: PairWorker, request: dict[str, Any]) -> dict[str, Any]:
    """Start the secondary of an epoch and answer where it listens.

    :param request: ``vm``, ``epoch``, ``primary`` (host), ``xml`` (migratable), ``disks`` (target → image), ``wait_s``
        (when the primary gives up), ``key`` (what the channels are encrypted with; None: they are plain); of images
        that are this host's own: ``sizes`` (target → bytes), ``stale`` (older ones, to go)
    :raises FtkvmError: FTKVM-520 when a copy of this VM is on this host already (anti-affinity), FTKVM-521 on failure;
        nothing is left behind then; FTKVM-622 this host's heartbeat is not written
    """
    if worker.vm.pid() is not None:
        raise FtkvmError("FTKVM-520", vm=request["vm"], host=ctx.host)
    require_guard(ctx, request["vm"])
    peer = ctx.cluster.host(request["primary"])
    spec = PairSpec(
        worker.uuid,
        request["vm"],
        int(request["epoch"]),
        "secondary",
        PeerSpec(peer.name, peer.ft, peer.keeper_port),
        (),
        "running",
    )
    with worker.operation_lock:
        worker.operation_name = "prepare"
        try:
            return _prepare(ctx, worker, request, spec)
        except Exception as error:
            log.exception("%s: prepare", request["vm"])
            worker.vm.kill()
            worker.keeper.drop_pair(worker.uuid)
            worker.spec = None
            if isinstance(error, FtkvmError) and error.code not in REFUSED_BY_LIBVIRT:
                raise
            detail = error.params["detail"] if isinstance(error, FtkvmError) else error
            raise FtkvmError("FTKVM-521", vm=request["vm"], host=ctx.host, detail=detail) from error


def _prepare(ctx: AgentContext, worker: PairWorker, request: dict[str, Any], spec: PairSpec) -> dict[str, Any]:
    disks: dict[str, str] = request["disks"]
    overlays = {target: Overlays.beside(image) for target, image in disks.items()}
    sizes: dict[str, int] = request.get("sizes") or {}
    if sizes:
        make_room(spec.vm, ctx.host, disks, sizes, request["stale"])
    for target, image in disks.items():
        overlay = parse_overlay(image)
        if overlay is None or overlay.epoch != spec.epoch:
            raise FtkvmError(
                "FTKVM-521", vm=spec.vm, host=ctx.host, detail=f"{image} is no overlay of epoch {spec.epoch}"
            )
        if sizes:
            images.create_empty(image, int(sizes[target]))
        size = images.chain(image)[0].virtual_bytes
        images.create_empty(overlays[target].hidden, size)
        images.create_empty(overlays[target].active, size)
    worker.vm.domains.create_paused(secondary_xml(request["xml"], disks))
    for target, image in disks.items():  # of the scratch images libvirt knows nothing
        images.own_like(overlays[target].hidden, image)
        images.own_like(overlays[target].active, image)
    shape = worker.vm.shape(fresh=True)
    worker.new_epoch(_with_taps(spec, shape))
    worker.keeper.set_pair(_with_taps(spec, shape))
    monitor = worker.vm.monitor(create=True)
    migration_port, nbd_port, *ports = free_ports(ctx.config.ft, 2 + 2 * len(shape.nics))
    nics = {nic.alias: NicPorts(ports[2 * index], ports[2 * index + 1]) for index, nic in enumerate(shape.nics)}
    key_directory = worker.vm.directory() if request.get("key") else None
    if key_directory is not None:
        channel_keys.place(key_directory, request["key"])
    secondary.prepare(monitor, shape, overlays, ctx.config.ft, nbd_port, nics, key_directory)
    listener = socket.create_server((ctx.config.ft, migration_port), backlog=1)
    listener.settimeout(float(request.get("wait_s", START_TIMEOUT_S)) + ACCEPT_GRACE_S)
    arguments = worker, listener, request["primary"], key_directory
    threading.Thread(target=_accept, args=arguments, name="incoming", daemon=True).start()
    return {
        "address": ctx.config.ft,
        "boot_id": ctx.boot_id,
        "migration_port": migration_port,
        "nbd_port": nbd_port,
        "machine": machine_of(worker.vm.domains.xml(worker.uuid)),
        "nics": {alias: vars(pair) for alias, pair in nics.items()},
    }


def _with_taps(spec: PairSpec, shape: Shape) -> PairSpec:
    return PairSpec(
        spec.uuid, spec.vm, spec.epoch, spec.role, spec.peer, tuple(nic.tap for nic in shape.nics), spec.qemu
    )


def _accept(worker: PairWorker, listener: socket.socket, primary_host: str, key_directory: Path | None) -> None:
    """Take the primary's one connection and hand it to QEMU; only its FT address may connect.

    The primary begins when it is told that QEMU waits for it: a host that froze before makes nobody wait.
    """
    wanted = worker.ctx.cluster.host(primary_host).ft
    with listener:
        try:
            while True:
                channel, (address, _port) = listener.accept()
                with channel:
                    if address != wanted:
                        log.warning("%s: connection from %s refused", worker.name, address)
                        continue
                    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    channel.setblocking(True)
                    secondary.accept_migration(worker.vm.monitor(), channel.fileno())
                    channel.sendall(QEMU_WAITS)
                break
        except Exception as error:
            log.warning("%s: no migration came in: %s", worker.name, error)
            _give_up(worker)
    if key_directory is not None:
        _forget_key(worker, key_directory)


def _forget_key(worker: PairWorker, directory: Path) -> None:
    """QEMU reads the key's file at each handshake; once it has taken a checkpoint, or is gone, all are over."""
    while worker.vm.observe().state is QemuState.SECONDARY_LOADING:
        time.sleep(KEY_LOOK_S)
    channel_keys.forget(directory)


def _give_up(worker: PairWorker) -> None:
    """End a copy that nobody has sent anything to: it holds no state, and would stand in the way of the next one."""
    with worker.turn_lock:
        if not worker.operation_lock.locked() and worker.vm.observe().state is QemuState.SECONDARY_LOADING:
            worker.destroy_own(Reason.ABANDONED)


def free_ports(address: str, count: int) -> list[int]:
    """Ports of ``FT_PORTS`` nobody listens on at ``address`` now.

    :raises OSError: there are not that many
    """
    found: list[int] = []
    for port in _shuffled(FT_PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports on {address}")


def _shuffled(ports: Iterable[int]) -> list[int]:
    shuffled = list(ports)
    random.shuffle(shuffled)  # two VMs prepared at once shall not probe the same ports
    return shuffled
