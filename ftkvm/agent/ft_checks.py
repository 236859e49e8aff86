"""What must hold before FT is turned on for a VM, looked at from the primary's host; nothing is touched here."""

import subprocess
from dataclasses import replace

from ftkvm.adapters.images import image_facts
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ft_network import unreached
from ftkvm.agent.gather import gather
from ftkvm.agent.security import Security
from ftkvm.agent.storage import bounded, require_writable
from ftkvm.agent.vms import VmRecord
from ftkvm.catalogue import FtkvmError
from ftkvm.core.checks import model
from ftkvm.core.checks.domain import ImageFacts, Rules, VmFacts, disk_files
from ftkvm.core.checks.vm import CHECKS
from ftkvm.core.ft_settings import effective
from ftkvm.core.ha import settings
from ftkvm.engine.shape import as_if_never_a_secondary
from ftkvm.ports import DatastoreUnreachable


def require_suitable(ctx: AgentContext, record: VmRecord, definition: str | None = None) -> None:
    """The running domain is one the engine can carry; of a VM that is off, its ``definition``.

    :raises FtkvmError: FTKVM-120 … 133, the first reason; the others are in its parameter ``also``
    """
    model.require(look_at_vm(ctx, record, definition or ctx.libvirt.xml(record.uuid)))


def look_at_vm(ctx: AgentContext, record: VmRecord, xml: str, *, for_ft: bool = True) -> model.Report:
    """Run the checks of a VM on its XML and its images.

    :raises FtkvmError: FTKVM-306 the images' storage does not answer
    """
    xml = as_if_never_a_secondary(xml)  # a promoted one shows our own -incoming
    files = disk_files(xml).values()
    images = bounded(ctx, lambda: _image_facts(list(files)), "images of " + record.name, 10.0)
    rules = rules_of(ctx, record)
    given = ctx.cluster.current().settings
    no_ha = not settings.in_force(given)["ha.enabled"] or settings.vm_settings(given, record.ha).priority == "disabled"
    facts = replace(VmFacts.of(xml, rules, images), ha_disabled=no_ha)
    return model.run(f"vm {record.name}", CHECKS, facts, for_ft=for_ft, vm=record.name)


def rules_of(ctx: AgentContext, record: VmRecord) -> Rules:
    """What the checks of a VM need to know of this cluster, and of the VM's settings."""
    bridge, emulation = ctx.config.vm_bridges[0], emulation_allowed(ctx)
    return Rules(datastore=str(ctx.config.datastore), bridge=bridge, emulation=emulation,
                 copied=effective(record.ft_settings)["ft.disks"] == "copy")  # fmt: skip


def emulation_allowed(ctx: AgentContext) -> bool:
    """The cluster's setting ft.emulation."""
    return bool(settings.in_force(ctx.cluster.current().settings)["ft.emulation"])


def _image_facts(paths: list[str]) -> dict[str, ImageFacts]:
    try:
        return {path: facts for path in paths if (facts := image_facts(path)) is not None}
    except subprocess.TimeoutExpired as error:
        raise DatastoreUnreachable("FTKVM-306", host="", path=str(error.cmd[-1])) from error


def require_ready(ctx: AgentContext) -> None:
    """This host can be the primary's: certificate, versions, datastore. The secondary's is verified by asking it.

    :raises FtkvmError: FTKVM-207, 208, 215, 30x, 329, 335, 336
    """
    security = ctx.extras.get("security")
    if isinstance(security, Security):
        security.require()
    ctx.libvirt.require_versions()
    require_writable(ctx)


def require_secondary(ctx: AgentContext, record: VmRecord, wanted: str | None) -> str | None:
    """Make sure that a host for the secondary is there; returns the host to name, None if any will do.

    :raises FtkvmError: FTKVM-201, 202, 403, 405 for a wanted host; FTKVM-404 when no host can, with each one's reason
    """
    if wanted is not None:
        ctx.cluster.host(wanted)
        if wanted == ctx.host:
            raise FtkvmError("FTKVM-403", vm=record.name, host=wanted)
        reason = _unfit(ctx, wanted, gather(ctx, "/v1/health", hosts=[wanted])[wanted])
        if reason is not None:
            raise reason
        return wanted
    others = [name for name in ctx.cluster.hosts() if name != ctx.host]
    answers = gather(ctx, "/v1/health", hosts=others)
    reasons = {name: _unfit(ctx, name, answer) for name, answer in answers.items()}
    fit = [name for name, reason in reasons.items() if reason is None]
    if not fit:
        said = "; ".join(f"{name}: {reason.text}" for name, reason in reasons.items() if reason)
        raise FtkvmError("FTKVM-404", vm=record.name, reasons=said or "the cluster has no other host")
    if len(fit) == len(others):
        return None
    return min(fit, key=lambda name: (_load(answers[name]), name))


def _load(health: object) -> int:
    return int(health.get("vms", 0)) if isinstance(health, dict) else 0


def _unfit(ctx: AgentContext, host: str, health: object) -> FtkvmError | None:
    """Why a host cannot take a secondary now, or None."""
    if isinstance(health, FtkvmError):
        return health
    if not isinstance(health, dict):
        return FtkvmError("FTKVM-901", detail=f"health of {host}")
    if health.get("error"):
        return FtkvmError.from_json(health["error"])
    return unreached(ctx, host)
