"""What FT does to domains through libvirt: freeze disks, merge them back, add monitors; bounded like the rest."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import libvirt

from ..catalogue import FtkvmError
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

    def commit_top(self, uuid: str, target: str, base: str, timeout_s: float = COMMIT_TIMEOUT_S) -> None:
        """Commit everything above ``base`` into it and make it the disk's image again, while the guest runs.

        A commit that an earlier agent began is taken up where it is.

        :raises FtkvmError: FTKVM-516 it failed or took too long
        """
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        if self._job(uuid, target) is None:
            self._libvirt.call(
                "block commit", lambda c: c.lookupByUUIDString(uuid).blockCommit(target, base, None, 0, flags), 20.0
            )
        deadline = time.monotonic() + timeout_s
        while True:
            job = self._job(uuid, target)
            if job is None:
                raise FtkvmError("FTKVM-516", disk=target, detail="the commit ended before it was complete")
            if job["end"] > 0 and job["cur"] == job["end"] and self._pivot(uuid, target):
                return
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-516", disk=target, detail=f"not done within {timeout_s:g} s")
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
