"""Checks: what would refuse a VM, a host or the cluster."""

from fastapi import APIRouter
from pydantic import BaseModel

from ftkvm.agent.checks import Checks
from ftkvm.agent.prepare import Prepare
from ftkvm.ports import Json


class LocalPrepareRequest(BaseModel):
    """``dry_run``: show what would change, and change nothing. ``discard``: delete images that were converted."""

    dry_run: bool = False
    discard: bool = False


class PrepareRequest(LocalPrepareRequest):
    """``host``: the one that has the images, if they are not on the datastore."""

    host: str | None = None


def router(checks: Checks, prepare: Prepare) -> APIRouter:
    """Routes /v1/check, /v1/local/check and /v1/vms/…/prepare."""
    routes = APIRouter(prefix="/v1", tags=["checks"])

    @routes.get("/check/vm/{name}")
    def check_vm(name: str, for_ft: bool = False) -> Json:
        """A VM, wherever it runs."""
        return checks.vm(name, for_ft=for_ft)

    @routes.get("/local/check/vm/{uuid}")
    def check_vm_here(uuid: str, for_ft: bool = False) -> Json:
        """A VM that runs on this host."""
        return checks.vm_here(uuid, for_ft=for_ft)

    @routes.get("/check/host/{name}")
    def check_host(name: str) -> Json:
        """A host of the cluster."""
        return checks.host(name)

    @routes.get("/check/cluster")
    def check_cluster() -> Json:
        """The cluster with all its hosts."""
        return checks.cluster()

    @routes.post("/vms/{name}/prepare")
    def prepare_vm(name: str, request: PrepareRequest) -> Json:
        """Mend a VM's definition and disks for FT, as far as that goes mechanically."""
        return prepare.prepare(name, dry_run=request.dry_run, discard=request.discard, host=request.host)

    @routes.post("/local/vms/{uuid}/prepare")
    def prepare_vm_here(uuid: str, request: LocalPrepareRequest) -> Json:
        """The same with the images that this host sees."""
        return prepare.prepare_here(uuid, dry_run=request.dry_run, discard=request.discard)

    @routes.get("/local/check/host")
    def host_here() -> Json:
        """What this host is made of."""
        return checks.host_here()

    return routes
