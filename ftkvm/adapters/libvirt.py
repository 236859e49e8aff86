"""libvirt, bounded: every call runs in a worker with a time-out, and libvirtd may be restarted or hang at any time.

The connection is opened when it is first needed and again when it breaks; a VM is never disturbed by that, since QEMU
belongs to nobody's connection. Only this module imports the binding.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.core.versions import dotted, too_old

T = TypeVar("T")
log = logging.getLogger(__name__)

_KEEPALIVE_S = 3
_KEEPALIVE_COUNT = 3
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}


class LibvirtGone(FtkvmError):
    """libvirtd does not answer; what became of a call under way is unknown. VMs go on."""


class NoDomain(FtkvmError):
    """No domain of that UUID or name on this host."""


@dataclass(frozen=True)
class DomainInfo:
    """A domain as libvirt sees it; ``state`` is one of _STATES' words."""

    uuid: str
    name: str
    state: str
    persistent: bool

    @property
    def active(self) -> bool:
        """A QEMU process exists for it."""
        return self.state not in ("off", "crashed")


@dataclass(frozen=True)
class Versions:
    """Versions as (major, minor, release)."""

    libvirt: tuple[int, int, int]
    qemu: tuple[int, int, int]


LifecycleCallback = Callable[[str, str, int], None]
"""``callback(uuid, event, detail)`` with the words of _LIFECYCLE, ``reset`` (the guest rebooted, or was reset), or
``("", "reconnected", 0)``: events were missed."""


class Libvirt:
    """The libvirtd of this host.

    Every method raises :class:`LibvirtGone` (FTKVM-215) when libvirtd is away, ``WorkTimeout`` when it hangs, and
    FTKVM-106/107 when it refuses.
    """

    def __init__(self, workers: Workers, host: str, uri: str = "qemu:///system") -> None:
        self._workers = workers
        self._host = host
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None
        self._callbacks: list[LifecycleCallback] = []
        self._device_callbacks: list[Callable[[str, str], None]] = []
        self._broken = threading.Event()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the event loop and the thread that reconnects. Once per process, before any call."""
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else it prints to stderr
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run_events, name="libvirt-events", daemon=True).start()
        threading.Thread(target=self._keep_connected, name="libvirt-connect", daemon=True).start()
        self._broken.set()

    def stop(self) -> None:
        """Stop reconnecting; running VMs are not touched."""
        self._stopping.set()
        self._broken.set()

    def on_lifecycle(self, callback: LifecycleCallback) -> None:
        """Call back on every lifecycle event, from libvirt's event thread: hand over and return at once."""
        self._callbacks.append(callback)

    def on_device(self, callback: Callable[[str, str], None]) -> None:
        """Call back with a domain's UUID and ``+ALIAS`` or ``-ALIAS`` for each device added or removed; as above."""
        self._device_callbacks.append(callback)

    # what is there

    def versions(self, timeout_s: float = 5.0) -> Versions:
        """Versions of libvirt and of the QEMU binary (not of a QEMU that runs since before an upgrade)."""
        return self._call(
            "versions", lambda c: Versions(_triple(c.getLibVersion()), _triple(c.getVersion())), timeout_s
        )

    def require_versions(self) -> Versions:
        """The versions, if they are new enough.

        :raises FtkvmError: FTKVM-207 QEMU, FTKVM-208 libvirt too old
        """
        found = self.versions()
        code = too_old(found.qemu, found.libvirt)
        if code is not None:
            version = found.qemu if code == "FTKVM-207" else found.libvirt
            raise FtkvmError(code, host=self._host, version=dotted(version))
        return found

    def domains(self, timeout_s: float = 5.0) -> list[DomainInfo]:
        """All domains of this host, running or only defined."""
        return self._call("list domains", _present, timeout_s)

    def domain(self, uuid: str, timeout_s: float = 5.0) -> DomainInfo | None:
        """One domain by UUID, or None."""
        try:
            return self._call("look up domain", lambda c: _info(c.lookupByUUIDString(uuid)), timeout_s)
        except NoDomain:
            return None

    def find(self, name_or_uuid: str, timeout_s: float = 5.0) -> DomainInfo:
        """One domain by name or UUID.

        :raises NoDomain: FTKVM-104
        """
        for info in self.domains(timeout_s):
            if name_or_uuid in (info.name, info.uuid):
                return info
        raise NoDomain("FTKVM-104", domain=name_or_uuid, host=self._host)

    def xml(self, uuid: str, *, inactive: bool = False, migratable: bool = False, timeout_s: float = 5.0) -> str:
        """The domain's XML with its secrets: live, as it would start next (``inactive``), or for another host.

        :raises NoDomain: FTKVM-104
        """
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0)
        flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0
        return self._call("read XML", lambda c: str(c.lookupByUUIDString(uuid).XMLDesc(flags)), timeout_s)

    def has_managed_save(self, uuid: str) -> bool:
        """Whether the (stopped) domain has a saved memory image that its next start would use."""
        return self._call("managed save", lambda c: bool(c.lookupByUUIDString(uuid).hasManagedSaveImage()), 5.0)

    # what is done

    def create(self, xml: str, *, paused: bool = False, timeout_s: float = 60.0) -> DomainInfo:
        """Start a transient domain.

        :raises FtkvmError: FTKVM-107 an image is locked, FTKVM-106 anything else it refuses
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        return self._call("create domain", lambda c: _info(c.createXML(xml, flags)), timeout_s)

    def destroy(self, uuid: str, timeout_s: float = 20.0) -> None:
        """Kill the domain's QEMU; a domain that does not exist or does not run is not an error."""

        def act(connection: Any) -> None:
            try:
                connection.lookupByUUIDString(uuid).destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise

        self._call("destroy domain", act, timeout_s)

    def shutdown(self, uuid: str, timeout_s: float = 5.0) -> None:
        """Press the power button; returns at once."""
        self._call("shut down domain", lambda c: c.lookupByUUIDString(uuid).shutdown(), timeout_s)

    def resume(self, uuid: str, timeout_s: float = 10.0) -> None:
        """Let a paused domain run."""
        self._call("resume domain", lambda c: c.lookupByUUIDString(uuid).resume(), timeout_s)

    def migrate(self, uuid: str, to_uri: str, data_uri: str | None, xml: str, timeout_s: float) -> None:
        """Move the VM's memory to another libvirtd, where it stays *paused*; it is gone here when this returns.

        Peer to peer: should this agent die, the two libvirtds still end it one way or the other.

        :param data_uri: where the two QEMUs connect, in plain; None: the memory goes through libvirt's conversation
            (libvirt.org/migration.html, "Libvirt tunnelled transport")

        safety: libvirt's check whether the disks are on shared storage is switched off, since it knows NFS and a few
        cluster file systems by name and no FUSE ones; the caller has made sure that all of them lie on the datastore,
        and QEMU drops its page cache when it hands an image over.

        :raises FtkvmError: FTKVM-106, it was given up; the VM goes on here
        """
        flags = (
            libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PAUSED
            | libvirt.VIR_MIGRATE_ABORT_ON_ERROR | libvirt.VIR_MIGRATE_AUTO_CONVERGE | libvirt.VIR_MIGRATE_UNSAFE
        )  # fmt: skip
        parameters = {libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml}
        if data_uri is None:
            flags |= libvirt.VIR_MIGRATE_TUNNELLED
        else:
            parameters[libvirt.VIR_MIGRATE_PARAM_URI] = data_uri

        def act(connection: Any) -> None:
            connection.lookupByUUIDString(uuid).migrateToURI3(to_uri, parameters, flags)

        self._call("migrate", act, timeout_s + 30.0)

    def abort_job(self, uuid: str, timeout_s: float = 5.0) -> None:
        """Give up what libvirt does with the domain now (a migration)."""
        self._call("abort job", lambda c: c.lookupByUUIDString(uuid).abortJob(), timeout_s)

    def job_progress(self, uuid: str, timeout_s: float = 5.0) -> tuple[int, int]:
        """(bytes done, bytes in all) of the domain's job."""

        def ask(connection: Any) -> tuple[int, int]:
            stats = connection.lookupByUUIDString(uuid).jobStats()
            return int(stats.get("data_processed", 0)), int(stats.get("data_total", 0))

        return self._call("job", ask, timeout_s)

    def define(self, xml: str, timeout_s: float = 10.0) -> None:
        """Keep a definition in libvirt, as `virsh define` does."""
        self._call("define domain", lambda c: c.defineXML(xml) and None, timeout_s)

    def undefine(self, uuid: str, timeout_s: float = 10.0) -> None:
        """Drop the persistent definition; a running domain goes on as a transient one."""
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        self._call("undefine domain", lambda c: c.lookupByUUIDString(uuid).undefineFlags(flags), timeout_s)

    def snapshot(self, uuid: str, xml: str, flags: int, timeout_s: float = 20.0) -> None:
        """Take a snapshot (``virDomainSnapshotCreateXML``); ``flags`` as libvirt numbers them."""
        self._call("snapshot", lambda c: c.lookupByUUIDString(uuid).snapshotCreateXML(xml, flags), timeout_s)

    def monitor_command(self, uuid: str, command: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        """Pass a QMP command through libvirt's own monitor: for what must go that way only (it takes a job)."""

        def act(connection: Any) -> dict[str, Any]:
            domain = connection.lookupByUUIDString(uuid)
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command), 0))
            return dict(answer)

        return self._call(f"monitor command {command.get('execute')}", act, timeout_s)

    def call(self, name: str, work: Callable[[Any], T], timeout_s: float) -> T:
        """Any other call: ``work`` gets the ``virConnect``; same bounds and errors."""
        return self._call(name, work, timeout_s)

    # the connection

    def _call(self, name: str, work: Callable[[Any], T], timeout_s: float) -> T:
        def act() -> T:
            connection = None
            try:
                connection = self._connect()
                return work(connection)
            except libvirt.libvirtError as error:
                if connection is None or _is_broken(connection, error):
                    self._drop(connection)
                    raise LibvirtGone("FTKVM-215", host=self._host, detail=str(error)) from error
                raise self._refusal(error) from error

        return self._workers.run(act, timeout_s, f"libvirt: {name}")

    def _refusal(self, error: Any) -> FtkvmError:
        text = str(error)
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return NoDomain("FTKVM-104", domain=text.rpartition("uuid")[2].strip(" '") or text, host=self._host)
        if '"write" lock' in text or '"consistent read" lock' in text:
            line = next(line for line in text.splitlines() if " lock" in line)
            return FtkvmError("FTKVM-107", vm="", detail=line.rpartition("}: ")[2])
        return FtkvmError("FTKVM-106", host=self._host, detail=text)

    def _connect(self) -> Any:
        with self._lock:
            if self._connection is None:
                connection = libvirt.open(self._uri)
                connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
                connection.registerCloseCallback(self._closed, None)
                event = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
                connection.domainEventRegisterAny(None, event, self._lifecycle, None)
                reset = libvirt.VIR_DOMAIN_EVENT_ID_REBOOT
                connection.domainEventRegisterAny(None, reset, self._reset, None)
                for kind, sign in (("ADDED", "+"), ("REMOVED", "-")):
                    event = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_DEVICE_{kind}")
                    connection.domainEventRegisterAny(None, event, self._device, sign)
                self._connection = connection
            return self._connection

    def _drop(self, connection: Any) -> None:
        with self._lock:
            if connection is None or self._connection is connection:
                self._connection = None
        self._broken.set()

    def _closed(self, connection: Any, reason: int, _opaque: object) -> None:
        log.warning("libvirtd closed the connection (reason %s); VMs go on, reconnecting", reason)
        self._drop(connection)

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        word = _LIFECYCLE.get(event)
        if word is not None:
            self._tell(str(domain.UUIDString()), word, detail)

    def _reset(self, _connection: Any, domain: Any, _opaque: object) -> None:
        self._tell(str(domain.UUIDString()), "reset", 0)

    def _device(self, _connection: Any, domain: Any, alias: str, sign: str) -> None:
        for callback in list(self._device_callbacks):
            callback(str(domain.UUIDString()), f"{sign}{alias}")

    def _tell(self, uuid: str, word: str, detail: int) -> None:
        for callback in list(self._callbacks):
            try:
                callback(uuid, word, detail)
            except Exception:
                log.exception("a callback failed on %s of %s", word, uuid)

    def _run_events(self) -> None:
        while not self._stopping.is_set():
            if libvirt.virEventRunDefaultImpl() < 0:
                time.sleep(0.1)

    def _keep_connected(self) -> None:
        while True:
            self._broken.wait()
            if self._stopping.is_set():
                return
            self._broken.clear()
            try:
                self._call("connect", lambda c: c.isAlive(), 10.0)
                self._tell("", "reconnected", 0)
            except FtkvmError as error:
                log.warning("%s", error)
                time.sleep(0.5)
                self._broken.set()


def _triple(number: int) -> tuple[int, int, int]:
    return number // 1_000_000, number // 1000 % 1000, number % 1000


def _info(domain: Any) -> DomainInfo:
    state, _reason = domain.state()
    return DomainInfo(
        str(domain.UUIDString()), str(domain.name()), _STATES.get(state, "unknown"), bool(domain.isPersistent())
    )


def _present(connection: Any) -> list[DomainInfo]:
    """All domains; one that ends while they are listed (a secondary on its way out) is not there."""
    found = []
    for domain in connection.listAllDomains():
        try:
            found.append(_info(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def _is_broken(connection: Any, error: Any) -> bool:
    if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
        return False
    try:
        return not connection.isAlive()
    except libvirt.libvirtError:
        return True
