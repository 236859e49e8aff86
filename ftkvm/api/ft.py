"""Fault tolerance: turn on and off, status."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ftkvm.agent.service import Service
from ftkvm.ports import Json


class EnableRequest(BaseModel):
    """Turn FT on, with the secondary on this host if it is named."""

    secondary: str | None = None


class MoveSecondaryRequest(BaseModel):
    """To this host; without, to the best one that is not its present one."""

    to: str | None = None


def router(service: Service) -> APIRouter:
    """Routes /v1/status and /v1/vms/…/ft."""
    routes = APIRouter(prefix="/v1", tags=["ft"])

    @routes.get("/status")
    def status(vm: str | None = None) -> Json:
        """All VMs, or one, with the state of their pairs."""
        return service.status(vm)

    @routes.get("/vms/{name}/ft/history")
    def history(name: str) -> Json:
        """Every failover of a VM with its times."""
        return service.failovers(name)

    @routes.post("/vms/{name}/ft/enable")
    def enable(name: str, request: EnableRequest) -> Json:
        """Turn FT on; answers the operation."""
        return service.enable(name, request.secondary)

    @routes.post("/vms/{name}/ft/turn-off")
    def turn_off(name: str) -> Json:
        """Turn FT off; answers the operation."""
        return service.turn_off(name)

    @routes.post("/vms/{name}/ft/disable")
    def disable(name: str) -> Json:
        """Stop protecting, and keep the secondary's place; answers the operation."""
        return service.disable(name)

    @routes.post("/vms/{name}/ft/test/{what}")
    def test(name: str, what: Literal["failover", "restart-secondary"]) -> Json:
        """Try the pair; answers the operation, whose result has the times."""
        return service.test(name, what)

    @routes.post("/vms/{name}/ft/move-secondary")
    def move_secondary(name: str, request: MoveSecondaryRequest) -> Json:
        """Make the secondary anew on another host; answers the operation."""
        return service.move_secondary(name, request.to)

    return routes
