"""Hosts: health of this one, list of all; operations."""

from fastapi import APIRouter
from pydantic import BaseModel

from ftkvm.agent.health import Health
from ftkvm.agent.service import Service
from ftkvm.ports import Json


class RemoveRequest(BaseModel):
    """``dead``: the host does not answer, and the operator has made sure that it is off."""

    dead: bool = False


class MaintenanceRequest(BaseModel):
    """``on``: enter, else exit."""

    on: bool


class FenceRequest(BaseModel):
    """``agent`` (a program of fence-agents) and its own keys; empty: none."""

    parameters: dict[str, str]


def router(service: Service, health: Health) -> APIRouter:
    """Routes /v1/health, /v1/hosts, /v1/operations."""
    routes = APIRouter(prefix="/v1", tags=["hosts"])

    @routes.get("/health")
    def get_health() -> Json:
        """This host: versions, datastore, libvirt; ``error`` says why it cannot take a VM."""
        return health.current()

    @routes.get("/hosts")
    def get_hosts() -> Json:
        """All hosts of the cluster, with their health or why they do not answer."""
        return {"hosts": service.hosts.all()}

    @routes.post("/hosts/{name}/fence")
    def fence_host(name: str, request: FenceRequest) -> Json:
        """Set or remove a host's power fencing device."""
        return service.hosts.set_fence(name, request.parameters)

    @routes.get("/hosts/{name}/removal")
    def may_remove_host(name: str, dead: bool = False) -> Json:
        """Whether the host could be taken out; nothing is changed."""
        return service.hosts.may_remove(name, dead=dead)

    @routes.post("/hosts/{name}/remove")
    def remove_host(name: str, request: RemoveRequest) -> Json:
        """Take a host that runs no VMs out of the configuration."""
        return service.hosts.remove(name, dead=request.dead)

    @routes.post("/hosts/{name}/maintenance")
    def maintenance(name: str, request: MaintenanceRequest) -> Json:
        """Enter (answers the operation that evacuates the host) or exit maintenance mode."""
        return service.hosts.maintenance(name, on=request.on)

    @routes.get("/operations/{operation}")
    def get_operation(operation: str) -> Json:
        """State, progress and error of a long action."""
        return service.operation(operation)

    return routes
