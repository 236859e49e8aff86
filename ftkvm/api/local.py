"""What agents ask each other about one host only. By UUID; nothing here is forwarded."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ftkvm.agent.service import Service
from ftkvm.api.ft import EnableRequest, MoveSecondaryRequest
from ftkvm.api.vms import MigrateRequest, RegisterRequest, StopRequest
from ftkvm.ports import Json


class LocalStartRequest(BaseModel):
    """Start here; ``owner`` is the number of the newest owner file the asking agent saw.

    ``cold_epoch``, ``cold_winner``: both copies of this undecided epoch of
    an FT VM are known to be gone, and its primary's host.
    ``attempt``: HA tries for the n-th time; 0: not told.
    """

    owner: int = Field(ge=0)
    why: Literal["started", "restarted"] = "started"
    cold_epoch: int | None = Field(default=None, ge=0)
    cold_winner: str | None = None
    attempt: int = Field(default=0, ge=0)


def router(service: Service) -> APIRouter:
    """Routes /v1/local."""
    routes = APIRouter(prefix="/v1/local", tags=["local"])

    @routes.get("/vms")
    def local_vms() -> Json:
        """The cluster's VMs with a QEMU here."""
        return {"vms": service.vms.local()}

    @routes.get("/status")
    def local_status() -> Json:
        """The pairs this host takes part in."""
        return {"pairs": service.vms.pair_status(None)}

    @routes.post("/vms/register")
    def register(request: RegisterRequest) -> Json:
        """Take over a domain of this host's libvirt."""
        return service.here.register(request.domain)

    @routes.post("/vms/{uuid}/start")
    def start(uuid: str, request: LocalStartRequest) -> Json:
        """Start a VM here."""
        return service.here.start(
            uuid, request.owner, why=request.why, cold_epoch=request.cold_epoch, cold_winner=request.cold_winner,
            attempt=request.attempt,
        )  # fmt: skip

    @routes.post("/vms/{uuid}/stop")
    def stop(uuid: str, request: StopRequest) -> Json:
        """Stop the VM that runs here."""
        return service.here.stop(uuid, force=request.force, timeout_s=request.timeout_s)

    @routes.post("/vms/{uuid}/migrate")
    def migrate(uuid: str, request: MigrateRequest) -> Json:
        """Move the VM that runs here to another host."""
        return service.here.migrate(uuid, request.to)

    @routes.post("/vms/{uuid}/unregister")
    def unregister(uuid: str) -> Json:
        """Define a VM in this host's libvirt, and have the cluster forget it."""
        return service.vms.unregister(uuid).to_json()

    @routes.get("/evacuation")
    def evacuation() -> Json:
        """What would keep this host from being emptied."""
        return service.here.obstacles()

    @routes.post("/vms/{uuid}/settings-changed")
    def settings_changed(uuid: str) -> Json:
        """A VM's settings were written: read them now."""
        return service.here.settings_changed(uuid)

    @routes.post("/evacuate")
    def evacuate() -> Json:
        """Move all VMs off this host."""
        return service.here.evacuate()

    @routes.post("/vms/{uuid}/ft/enable")
    def enable(uuid: str, request: EnableRequest) -> Json:
        """Protect the VM that runs here."""
        return service.here.enable(uuid, request.secondary)

    @routes.post("/vms/{uuid}/ft/turn-off")
    def turn_off(uuid: str) -> Json:
        """Take the pair of a VM apart."""
        return service.here.turn_off(uuid)

    @routes.post("/vms/{uuid}/ft/disable")
    def disable(uuid: str) -> Json:
        """Take the pair of a VM apart, and keep the wish for one."""
        return service.here.turn_off(uuid, disable=True)

    @routes.post("/vms/{uuid}/ft/test-{what}")
    def test(uuid: str, what: Literal["failover", "restart-secondary"]) -> Json:
        """Try the pair whose primary is here."""
        return service.here.test(uuid, what)

    @routes.post("/vms/{uuid}/ft/move-secondary")
    def move_secondary(uuid: str, request: MoveSecondaryRequest) -> Json:
        """Make the secondary of the VM whose primary is here anew on another host."""
        return service.here.move_secondary(uuid, request.to)

    return routes
