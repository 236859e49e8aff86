"""The agent process: puts the parts together, then loops over a bounded inbox until it is told to end.

It may be killed at any moment: what it knows is read back from libvirt, the keeper, /run/ftkvm and the datastore.
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ftkvm import __version__
from ftkvm.adapters.datastore import DirectoryDatastore
from ftkvm.adapters.libvirt import Libvirt
from ftkvm.adapters.notify import notify
from ftkvm.adapters.peers import HttpsPeers
from ftkvm.adapters.pki import TlsFiles, unusable
from ftkvm.adapters.trust import Trust, finish_renewal
from ftkvm.adapters.tunnel import TunnelServer
from ftkvm.agent.beat_keys import Keyring
from ftkvm.agent.beat_keys import load as load_keys
from ftkvm.agent.cluster import ClusterReader
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ha.guard import Bridge
from ftkvm.agent.ha.part import HaPart
from ftkvm.agent.health import Health
from ftkvm.agent.migrate import Arrivals
from ftkvm.agent.operations import Operations
from ftkvm.agent.pair_manager import PairManager
from ftkvm.agent.security import Security
from ftkvm.agent.service import Service
from ftkvm.agent.vm_monitor_host import make_vm_monitor
from ftkvm.agent.vms import Vms
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostConfig, Paths
from ftkvm.core.ha import machine
from ftkvm.keeper.client import KeeperClient

if TYPE_CHECKING:
    from ftkvm.api.server import ApiServer

log = logging.getLogger(__name__)
_INBOX = 1000
_TICK_S = 2.0


@dataclass(frozen=True)
class DomainEvent:
    """libvirt saw a domain change (or was connected again: no UUID)."""

    uuid: str
    event: str
    detail: int


@dataclass(frozen=True)
class End:
    """Told to end by a signal."""

    reason: str


Message = DomainEvent | End


class Agent:
    """One host's agent."""

    def __init__(self, config: HostConfig, bridge: Bridge) -> None:
        files = TlsFiles.in_directory(config.paths.pki, "host")
        finish_renewal(files)
        if (found := unusable(files)) is not None:
            raise FtkvmError("FTKVM-601", path=found[0], detail=found[1])
        self.trust = Trust(files)
        self.ctx = make_context(config, self.trust)
        self.operations = Operations(config.name, self.ctx.workers, config.paths.run / "operations")
        self.vms = Vms(self.ctx, self.operations)
        self.service = Service(self.ctx, self.vms, self.operations)
        self.health = Health(self.ctx)
        self.vm_monitor = make_vm_monitor(self.ctx, self.vms, self.operations)
        self.pairs = PairManager(self.ctx)
        self._inbox: queue.Queue[Message] = queue.Queue(_INBOX)
        datastore = DirectoryDatastore(config.datastore, config.name)
        keys = load_keys(config.paths.beat_key)
        self.ha = HaPart(
            self.ctx, self.service, self.operations, self.pairs, self.health, machine, bridge, datastore, keys
        )
        ctx, path = self.ctx, config.paths.beat_key
        self.beat_keys = Keyring(
            ctx.host, path, ctx.datastore, ctx.workers, ctx.cluster, ctx.peers, KeeperClient(), self.ha.use_keys
        )
        self.security = Security(self.ctx, self.trust, self.beat_keys)
        self.ctx.extras["security"] = self.security
        self.arrivals = Arrivals(self.ctx, self.vms)
        self.tunnel = TunnelServer(self.trust, config.migration, config.tunnel_port, self._is_other_host)
        self.api: ApiServer | None = None

    def post(self, message: Message) -> None:
        """Put a message into the inbox; a full inbox drops it, since events are only hints."""
        try:
            self._inbox.put_nowait(message)
        except queue.Full:
            log.error("the inbox is full, dropped %s", message)

    def start(self) -> None:
        """Start all parts; the API last, so that who can ask gets an answer."""
        self.ctx.config.paths.run.mkdir(parents=True, exist_ok=True)
        self.operations.load()
        self.ctx.libvirt.on_lifecycle(lambda uuid, event, detail: self.post(DomainEvent(uuid, event, detail)))
        self.ctx.libvirt.on_lifecycle(self.vm_monitor.on_lifecycle)
        self.ctx.libvirt.start()
        self.pairs.start()
        self.ctx.extras["pairs"] = self.pairs
        self.ctx.extras["ha"] = self.ha
        self.ha.start()
        self.ctx.extras["vm_monitor"] = self.vm_monitor
        self.vm_monitor.start()
        threading.Thread(target=self._look, name="health", daemon=True).start()
        self.tunnel.start()
        from ftkvm.api.serving import make_api  # not before now: see there

        self.api = make_api(self)
        self.api.start()
        log.info("ftkvm %s, host %s: listening on port %d", __version__, self.ctx.host, self.ctx.config.api_port)

    def run(self) -> None:
        """Loop until a message says to end. Nothing in here waits for anything but the inbox."""
        notify("READY=1")
        looked_at = time.monotonic()
        while True:
            try:
                message: Message | None = self._inbox.get(timeout=_TICK_S)
            except queue.Empty:
                message = None
            if time.monotonic() - looked_at >= _TICK_S or message is None:  # also when events never pause
                looked_at = time.monotonic()
                if self.api is None or not self.api.alive:
                    raise FtkvmError("FTKVM-900", detail="the API's thread ended")
                notify("WATCHDOG=1")
            if message is None:
                continue
            if isinstance(message, End):
                log.info("ending: %s; VMs and pairs go on", message.reason)
                return
            self.ha.domain_event(message.uuid, message.event, message.detail)
            level = logging.DEBUG if message.event in ("suspended", "resumed") else logging.INFO  # each checkpoint
            log.log(level, "domain %s: %s (%d)", message.uuid or "-", message.event, message.detail)

    def stop(self) -> None:
        """Stop the parts; nothing that runs for a VM is touched."""
        notify("STOPPING=1")
        if self.api is not None:
            self.api.stop()
        self.tunnel.stop()
        self.pairs.stop()
        self.ctx.libvirt.stop()
        self.ha.stop()  # last: until here this host is guarded

    def _is_other_host(self, name: str) -> bool:
        return name != self.ctx.host and name in self.ctx.cluster.hosts()

    def _look(self) -> None:
        while True:
            try:
                self.arrivals.recover()
            except FtkvmError as error:
                log.warning("VMs on their way here: %s", error)
            try:
                self.health.refresh()
            except Exception:
                log.exception("looking at this host's health failed")
            self.security.refresh()
            time.sleep(_TICK_S)


def make_context(config: HostConfig, trust: Trust) -> AgentContext:
    """The real adapters for a host."""
    workers = Workers()
    datastore = DirectoryDatastore(config.datastore, config.name)
    cluster = ClusterReader(datastore, workers, config.paths.run / "cluster.json")
    return AgentContext(
        config=config,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        datastore=datastore,
        peers=HttpsPeers(cluster.host, trust.client_context()),
        libvirt=Libvirt(workers, config.name),
        workers=workers,
        cluster=cluster,
    )


class _JournalFormatter(logging.Formatter):
    """Puts the priority before each line, as the journal understands it (sd-daemon)."""

    _PRIORITIES: ClassVar[dict[int, int]] = {
        logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
    }  # fmt: skip

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{self._PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _log_to_journal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JournalFormatter("%(name)s: %(message)s") if "JOURNAL_STREAM" in os.environ else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def main(bridge: Bridge) -> int:
    """Run the agent of this host; returns the exit status. ``bridge``: keeps an armed watchdog off until HA runs."""
    _log_to_journal()
    for noisy in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        agent = Agent(HostConfig.load(Paths()), bridge)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _frame: agent.post(End(signal.Signals(received).name)))
        agent.start()
        agent.run()
        agent.stop()
    except FtkvmError as error:
        log.critical("%s (%s) %s", error, error.cause, error.remedy)
        return 1
    return 0
