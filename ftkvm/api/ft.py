"""Fault tolerance: turn on and off, status."""

from fastapi import APIRouter
from pydantic import BaseModel

from ftkvm.agent.service import Service
from ftkvm.ports import Json


class EnableRequest(BaseModel):
    """Turn FT on, with the secondary on this host if it is named."""

    secondary: str | None = None


def router(service: Service) -> APIRouter:
    """Routes /v1/status and /v1/vms/…/ft."""
    routes = APIRouter(prefix="/v1", tags=["ft"])

    @routes.get("/status")
    def status(vm: str | None = None) -> Json:
        """All VMs, or one, with the state of their pairs."""
        return service.status(vm)

    @routes.post("/vms/{name}/ft/enable")
    def enable(name: str, request: EnableRequest) -> Json:
        """Turn FT on; answers the operation."""
        return service.enable(name, request.secondary)

    @routes.post("/vms/{name}/ft/turn-off")
    def turn_off(name: str) -> Json:
        """Turn FT off; answers the operation."""
        return service.turn_off(name)

    @routes.get("/vms/{name}/ft/settings")
    def settings(name: str) -> Json:
        """A VM's FT settings."""
        return service.ft_settings(name)

    @routes.post("/vms/{name}/ft/settings")
    def set_settings(name: str, request: dict[str, str]) -> Json:
        """Change FT settings (name to text; an empty text: the default again)."""
        return service.set_ft_settings(name, request)

    return routes
