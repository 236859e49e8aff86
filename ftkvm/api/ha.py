"""HA as one host sees it."""

from fastapi import APIRouter

from ftkvm.agent.ha.part import HaPart
from ftkvm.ports import Json


def router(ha: HaPart) -> APIRouter:
    """Route /v1/local/ha."""
    routes = APIRouter(prefix="/v1/local", tags=["local"])

    @routes.get("/ha")
    def local_ha() -> Json:
        """Role, coordinator, hosts and why, waiting VMs, last events."""
        return ha.status()

    return routes
