"""VMs: list, register, start, stop."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ftkvm.agent.service import Service
from ftkvm.ports import Json


class RegisterRequest(BaseModel):
    """A libvirt domain (name or UUID) of a host; without host, of the one asked."""

    domain: str = Field(min_length=1, max_length=200)
    host: str | None = None


class StartRequest(BaseModel):
    """Start, on this host if it is named."""

    host: str | None = None


class StopRequest(BaseModel):
    """Shut down within ``timeout_s`` seconds, then switch off; at once with ``force``."""

    force: bool = False
    timeout_s: float = Field(default=60.0, gt=0, le=3600)


class MigrateRequest(BaseModel):
    """To this host; without, to the one with the most free memory that can take it."""

    to: str | None = None


class UnregisterRequest(BaseModel):
    """The host whose libvirt gets the definition."""

    host: str


def router(service: Service) -> APIRouter:
    """Routes /v1/vms."""
    routes = APIRouter(prefix="/v1/vms", tags=["vms"])

    @routes.get("")
    def list_vms() -> Json:
        """The registered VMs and where they run."""
        return {"vms": service.list_vms()}

    @routes.post("/register")
    def register(request: RegisterRequest) -> Json:
        """Take a domain over into the cluster."""
        return service.register(request.domain, request.host)

    @routes.post("/{name}/start")
    def start(name: str, request: StartRequest) -> Json:
        """Start a VM; answers the operation."""
        return service.start(name, request.host)

    @routes.post("/{name}/stop")
    def stop(name: str, request: StopRequest) -> Json:
        """Stop a VM; answers the operation."""
        return service.stop(name, force=request.force, timeout_s=request.timeout_s)

    @routes.post("/{name}/migrate")
    def migrate(name: str, request: MigrateRequest) -> Json:
        """Migrate a running VM; answers the operation."""
        return service.migrate(name, request.to)

    @routes.post("/{name}/unregister")
    def unregister(name: str, request: UnregisterRequest) -> Json:
        """Give a VM that is off back to a host's libvirt."""
        return service.unregister(name, request.host)

    return routes
