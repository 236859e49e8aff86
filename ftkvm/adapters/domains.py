"""What FT does to domains through libvirt: freeze disks, merge them back, add monitors; bounded like the rest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import quoteattr

import libvirt

from ..catalogue import FtkvmError
from . import apparmor
from .libvirt import Libvirt

COMMIT_TIMEOUT_S = 600.0


class Domains:
    """Thin verbs over :class:`Libvirt`; every method raises what that raises."""

    def __init__(self, connection: Libvirt) -> None:
        self._libvirt = connection

    def running(self) -> dict[str, str]:
        """UUID → name of the domains that have a QEMU."""
        return {domain.uuid: domain.name for domain in self._libvirt.domains() if domain.active}

    def domain_id(self, uuid: str) -> int:
        """libvirt's number of the running domain."""
        return self._libvirt.call("domain id", lambda c: int(c.lookupByUUIDString(uuid).ID()), 5.0)

    def xml(self, uuid: str, *, migratable: bool = False) -> str:
        """The live XML; ``migratable``: as libvirt would send it to another host."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0)
        return self._libvirt.call("read XML", lambda c: str(c.lookupByUUIDString(uuid).XMLDesc(flags)), 5.0)

    def create_paused(self, xml: str) -> None:
        """Start a transient domain, guest not running."""
        self._libvirt.create(xml, paused=True)

    def monitor_command(self, uuid: str, command: dict[str, Any]) -> Any:
        """One QMP command through libvirt's own monitor; only to add ours."""
        answer = self._libvirt.monitor_command(uuid, command)
        if "error" in answer:
            raise FtkvmError("FTKVM-900", detail=f"{command['execute']}: {answer['error'].get('desc')}")
        return answer.get("return")

    def snapshot_disks(self, uuid: str, overlays: Mapping[str, str], targets: Sequence[str]) -> None:
        """New qcow2 overlays (target → path) on top of the running domain's disks, all at one instant."""
        disks = "".join(
            f"<disk name={quoteattr(target)} snapshot='external'><driver type='qcow2'/>"
            f"<source file={quoteattr(overlays[target])}/></disk>"
            if target in overlays
            else f"<disk name={quoteattr(target)} snapshot='no'/>"
            for target in targets
        )
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        self._libvirt.snapshot(uuid, f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>", flags)

    def is_running(self, uuid: str) -> bool:
        """Whether the guest's CPUs run."""
        state = self._libvirt.call("state", lambda c: c.lookupByUUIDString(uuid).state(), 5.0)[0]
        return bool(state == libvirt.VIR_DOMAIN_RUNNING)

    def suspend(self, uuid: str) -> None:
        """Stop the guest's CPUs."""
        self._libvirt.call("suspend", lambda c: c.lookupByUUIDString(uuid).suspend(), 10.0)

    def resume(self, uuid: str) -> None:
        """Let the guest's CPUs run."""
        self._libvirt.resume(uuid)

    @contextmanager
    def committed(
        self, uuid: str, target: str, base: str, timeout_s: float = COMMIT_TIMEOUT_S
    ) -> Iterator[Callable[[], None]]:
        """Commit everything above ``base`` into it while the guest runs; inside, both hold nearly the same.

        What is given inside makes ``base`` the disk's image; afterwards both hold the same, if the guest stands still
        then. A commit that an earlier agent began is taken up where it is.

        :raises FtkvmError: FTKVM-516 it failed or took too long
        """
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        deadline = time.monotonic() + timeout_s
        if self._job(uuid, target) is None:
            apparmor.let_write(uuid, base)
            self._libvirt.call(
                "block commit", lambda c: c.lookupByUUIDString(uuid).blockCommit(target, base, None, 0, flags), 20.0
            )
        while not self._is_ready(uuid, target):
            self._wait(target, deadline)

        def pivot() -> None:
            while not self._pivot(uuid, target):
                self._wait(target, deadline)

        yield pivot

    def _is_ready(self, uuid: str, target: str) -> bool:
        job = self._job(uuid, target)
        if job is None:
            raise FtkvmError("FTKVM-516", disk=target, detail="the commit ended before it was complete")
        return job["end"] > 0 and job["cur"] == job["end"]

    def _wait(self, target: str, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-516", disk=target, detail="not done in time")
        time.sleep(0.05)

    def _job(self, uuid: str, target: str) -> dict[str, int] | None:
        info = self._libvirt.call("block job", lambda c: c.lookupByUUIDString(uuid).blockJobInfo(target, 0), 5.0)
        return dict(info) if info else None

    def _pivot(self, uuid: str, target: str) -> bool:
        """False while libvirt still says that the job is not ready."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        try:
            self._libvirt.call("pivot", lambda c: c.lookupByUUIDString(uuid).blockJobAbort(target, flags), 20.0)
        except FtkvmError as error:
            if "not ready" in str(error):
                return False
            raise
        return True
