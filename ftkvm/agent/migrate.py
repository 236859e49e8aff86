"""Live migration of an ordinary VM to another host (FT VMs have their own ways), one owner at every moment.

    source                                              target
    announce ─────────────────────────────────────────► note who comes (``/run/ftkvm/incoming/<uuid>.json``)
    libvirt moves memory; the copy there stays paused
    arrived ──────────────────────────────────────────► take the owner file's next number, then let it run

safety: libvirt leaves the VM paused on the target, and only the host that the newest owner file names lets it run. If
the source dies in between, HA may take the VM over from the same number: one of the two gets the next number, and a
target that does not get it destroys its paused copy. So the VM never runs twice, whoever is lost at whatever moment.
"""

import json
import logging
import time
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkvm.adapters.pki import TlsFiles
from ftkvm.adapters.tunnel import Tunnel
from ftkvm.agent.context import AgentContext
from ftkvm.agent.placing import hosts_facts
from ftkvm.agent.vms import VmRecord, Vms
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.settings import encryption
from ftkvm.core.move import local_files, refusals
from ftkvm.engine.shape import plain_xml
from ftkvm.ports import DatastoreError, Json, PeerUnknown, PeerUnreachable, Progress

log = logging.getLogger(__name__)

MIGRATE_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 10.0
_ASK_AGAIN_S = 0.5
_PATIENCE_S = 30.0
_LOOK_S = 0.5
STANDSTILL_S = 30.0
"""A guest that stands still for so long at the end of its migration is let go on here: libvirt means it to be 0.3 s."""


@dataclass(frozen=True)
class Incoming:
    """``/run/ftkvm/incoming/<uuid>.json`` on the target: a VM on its way here. ``owner``: the source's number."""

    uuid: str
    name: str
    source: str
    owner: int


class Arrivals:
    """The target's side."""

    def __init__(self, ctx: AgentContext, vms: Vms) -> None:
        self._ctx = ctx
        self._vms = vms
        self._directory = ctx.config.paths.run / "incoming"

    def all(self) -> dict[str, Incoming]:
        """VMs on their way here, by UUID."""
        found = {}
        for path in self._directory.glob("*.json"):
            try:
                incoming = Incoming(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                continue  # just being written, or gone
            found[incoming.uuid] = incoming
        return found

    def announce(self, incoming: Incoming) -> None:
        """A VM will come.

        :raises FtkvmError: FTKVM-103 there is a copy here, FTKVM-207/208, FTKVM-30x this host cannot take it
        """
        self._ctx.libvirt.require_versions()
        info = self._ctx.libvirt.domain(incoming.uuid)
        if info is not None and info.active:
            raise FtkvmError("FTKVM-103", vm=incoming.name, host=self._ctx.host)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._note(incoming.uuid)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(incoming)))
        temporary.replace(path)

    def forget(self, uuid: str) -> None:
        """The VM does not come: what there is of it here is paused, and destroyed."""
        if uuid in self.all():
            info = self._ctx.libvirt.domain(uuid)
            if info is not None and info.state == "paused":
                self._ctx.libvirt.destroy(uuid)
            self._note(uuid).unlink(missing_ok=True)

    def _note(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"

    def arrived(self, uuid: str) -> None:
        """All of the VM is here: own it, then let it run. Asked again, it does what is left to do.

        :raises FtkvmError: FTKVM-652 it is not here; FTKVM-103 somebody else owns it: the copy here was destroyed
        """
        incoming = self.all().get(uuid)
        number, owner = self._vms.owner(uuid)
        info = self._ctx.libvirt.domain(uuid)
        if incoming is None and owner == self._ctx.host and info is not None and info.active:
            return
        if incoming is None or info is None or not info.active:
            raise FtkvmError("FTKVM-652", vm=incoming.name if incoming else uuid, host=self._ctx.host)
        if not (owner == self._ctx.host and number == incoming.owner + 1):
            self._own(incoming)
        self._ctx.libvirt.resume(uuid)
        self._note(uuid).unlink(missing_ok=True)

    def _own(self, incoming: Incoming) -> None:
        try:
            self._vms.claim(VmRecord(incoming.uuid, incoming.name), incoming.owner, "migrated")
        except DatastoreError:
            raise  # nothing is known: the copy stays paused, and the source asks again
        except FtkvmError:
            self.forget(incoming.uuid)
            raise

    def recover(self) -> None:
        """Finish or drop what a source left half done; looked at every few seconds.

        A paused copy that its source still owns stays as it is: the source's libvirt ends it with the migration.
        """
        for incoming in self.all().values():
            number, owner = self._vms.owner(incoming.uuid)
            if owner == self._ctx.host:  # taken over, and perhaps not yet let run
                info = self._ctx.libvirt.domain(incoming.uuid)
                if info is not None and info.state == "paused":
                    self._ctx.libvirt.resume(incoming.uuid)
                self._note(incoming.uuid).unlink(missing_ok=True)
            elif number > incoming.owner:
                log.warning("%s was on its way here, %s has it now: dropped", incoming.name, owner)
                self.forget(incoming.uuid)


class Migration:
    """The source's side: one VM, one target."""

    def __init__(self, ctx: AgentContext, vms: Vms, record: VmRecord, target: str) -> None:
        self._ctx, self._vms, self._record, self._target = ctx, vms, record, target

    @property
    def target(self) -> str:
        """The host it goes to."""
        return self._target

    def require(self) -> None:
        """Everything that can be known beforehand.

        :raises FtkvmError: FTKVM-110 FT is on, FTKVM-102 not running, FTKVM-650 same host, FTKVM-651 the target cannot
        """
        record, ctx = self._record, self._ctx
        if record.ft_enabled:
            raise FtkvmError("FTKVM-110", vm=record.name, action="migrating one copy live")
        info = ctx.libvirt.domain(record.uuid)
        if info is None or info.state != "running":
            raise FtkvmError("FTKVM-102", vm=record.name)
        if self._target == ctx.host:
            raise FtkvmError("FTKVM-650", vm=record.name, host=self._target)
        ctx.cluster.host(self._target)
        xml = ctx.libvirt.xml(record.uuid)
        reasons = [*local_files(xml, ctx.config.datastore), *refusals(hosts_facts(ctx), ctx.host, self._target, xml)]
        if reasons:
            raise FtkvmError("FTKVM-651", vm=record.name, host=self._target, reasons=", ".join(reasons))

    def run(self, progress: Progress) -> None:
        """Migrate.

        :raises FtkvmError: FTKVM-653 libvirt gave up and the VM goes on here; FTKVM-654 it is over there and paused
        """
        uuid = self._record.uuid
        progress(1, 4, f"telling {self._target}")
        number, owner = self._vms.owner(uuid)
        if owner != self._ctx.host:
            raise FtkvmError("FTKVM-103", vm=self._record.name, host=owner)
        body = {"name": self._record.name, "source": self._ctx.host, "owner": number}
        self._ask("incoming", body)
        progress(2, 4, "copying memory")
        try:
            self._move(progress)
        except FtkvmError as error:
            self._give_up(error)
        progress(3, 4, f"{self._target} takes it over")
        self._hand_over()
        progress(4, 4, f"runs on {self._target}")

    def _move(self, progress: Progress) -> None:
        target = self._ctx.cluster.host(self._target)
        files = TlsFiles.in_directory(self._ctx.config.paths.pki, "host")
        path = self._ctx.config.paths.run / "migrate" / f"{self._record.uuid}.sock"
        xml = plain_xml(self._ctx.libvirt.xml(self._record.uuid, migratable=True), {})
        encrypted = encryption(self._ctx.cluster.current().settings).migration
        plain_uri = None if encrypted else f"tcp://{target.migration}"
        with Tunnel(target, files, path):
            future = self._ctx.workers.submit(
                lambda: self._ctx.libvirt.migrate(
                    self._record.uuid, f"qemu+unix:///system?socket={path}", plain_uri, xml, MIGRATE_TIMEOUT_S
                ),
                f"migrate {self._record.name}",
            )  # fmt: skip
            self._watch(future, progress)
            future.result()

    def _watch(self, future: "Future[None]", progress: Progress) -> None:
        deadline = time.monotonic() + MIGRATE_TIMEOUT_S
        standstill = time.monotonic() + STANDSTILL_S
        given_up = False
        while not wait([future], _LOOK_S).done:
            now = time.monotonic()
            if now > min(deadline, standstill) and not given_up:
                self._ctx.libvirt.abort_job(self._record.uuid)
                given_up = True
            try:
                if self._runs_here():
                    standstill = now + STANDSTILL_S
                done, total = self._ctx.libvirt.job_progress(self._record.uuid)
            except FtkvmError as error:
                log.info("progress of %s: %s", self._record.name, error)
                continue
            if total:
                progress(2, 4, f"copying memory: {done >> 20} of {total >> 20} MiB")

    def _runs_here(self) -> bool:
        info = self._ctx.libvirt.domain(self._record.uuid)
        return info is not None and info.state == "running"

    def _give_up(self, error: FtkvmError) -> None:
        """The VM goes on here, if it is here; what came over is dropped.

        :raises FtkvmError: FTKVM-653
        """
        info = self._ctx.libvirt.domain(self._record.uuid)
        if info is None or not info.active:
            return  # libvirt lost its answer, not the VM: it is over there
        if info.state == "paused":
            self._ctx.libvirt.resume(self._record.uuid)
        try:
            self._ask("incoming/forget", {})
        except FtkvmError as second:
            log.warning("%s keeps a note of %s: %s", self._target, self._record.name, second)
        raise FtkvmError("FTKVM-653", vm=self._record.name, host=self._target, detail=error.text) from error

    def _hand_over(self) -> None:
        """Until the target says that it runs the VM, or that it does not have it.

        :raises FtkvmError: FTKVM-654 the target does not answer: it goes on by itself, or HA starts the VM again
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._ask("arrived", {})
                return
            except (PeerUnknown, PeerUnreachable, DatastoreError) as error:
                if time.monotonic() > deadline:
                    raise FtkvmError("FTKVM-654", vm=self._record.name, host=self._target) from error
                time.sleep(_ASK_AGAIN_S)

    def _ask(self, what: str, body: Json) -> Json:
        path = f"/v1/local/vms/{self._record.uuid}/{what}"
        return self._ctx.peers.call(self._target, "POST", path, body, _ANSWER_TIMEOUT_S)
